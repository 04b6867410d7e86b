"""One cluster for all tests, and a gateway that they share."""

import pytest
from live import Cluster, Gateway


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def gateway(cluster):
    gateway = Gateway(cluster, "gateway")
    yield gateway
    gateway.stop()


@pytest.fixture(scope="session")
def token(gateway):
    return gateway.token("ada")


@pytest.fixture(scope="session")
def kernel(gateway, token):
    return gateway.start_kernel(token)
