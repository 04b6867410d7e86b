"""What is behind JupyterLab in a test: its own kernels, or Callboard's."""

from cluster import Cluster


class PlainJupyter:
    """JupyterLab's own kernels: what a user has without Callboard."""

    cluster = None
    lab_arguments: list[str] = []


class Callboard:
    """A cluster and its gateway."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        url, token = cluster.gateway()
        self.lab_arguments = [
            f"--gateway-url={url}",
            f"--GatewayClient.auth_token={token}",
            "--ServerApp.kernel_websocket_connection_class=callboard.jupyter.GatewayConnection",
        ]
