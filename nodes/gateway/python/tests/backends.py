"""What is behind JupyterLab in a test: its own kernels, or Callboard's."""

import shlex

from cluster import Cluster
from guides import blocks


class PlainJupyter:
    """JupyterLab's own kernels: what a user has without Callboard."""

    cluster = None
    command = ["jupyter", "lab"]
    environment: dict[str, str] = {}


class Callboard:
    """A cluster and its gateway, used as the guide says."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        _export, command = blocks("guides/jupyterlab.md", "sh")
        self.command = shlex.split(command)
        self.environment = cluster.gateway()
