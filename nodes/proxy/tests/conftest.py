"""A cluster of real processes with its kernelspec, beside plain ipykernel.

Reproduce: `make build && .venv/bin/python -m pytest nodes/proxy/tests`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CALLBOARD = Path(os.environ.get("CALLBOARD_BINARY", TARGET / "debug/callboard"))

# Kernels start while other tests build; only what never comes has to be told apart.
PATIENCE_S = 60


class Cluster:
    """What `callboard up` runs, and the command line against it."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.log = (folder / "up.log").open("w")
        self.up = subprocess.Popen(
            [CALLBOARD, "up", "--data", self.data, "--python", sys.executable],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"CALLBOARD_DISK_HIGH_WATER_PERCENT": "100"},
            start_new_session=True,
        )
        for line in self.up.stdout:
            if line.startswith("ready"):
                return
        raise AssertionError((folder / "up.log").read_text())

    def stop(self):
        self.up.send_signal(signal.SIGTERM)
        self.up.communicate()
        self.log.close()

    def run(self, *args, code=0, role="operator"):
        context = self.data / f"credentials/{role}.json"
        ran = subprocess.run(
            [CALLBOARD, "--context", context, *args], capture_output=True, text=True, check=False
        )
        assert ran.returncode == code, ran
        return ran

    def data_of(self, *args):
        return json.loads(self.run(*args, "--output", "json").stdout)

    def kernels(self):
        return {kernel["kernel"] for kernel in self.data_of("kernel", "list")["kernels"]}

    def kill(self, node):
        """SIGKILL for a node's process: it is gone when this returns."""
        pids = {it["node"]: it["pid"] for it in self.data_of("nodes")["nodes"]}
        handle = os.pidfd_open(pids[node])
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [])
        os.close(handle)

    def executor(self, kernel):
        """The node that runs the kernel's cells."""

        def found():
            replicas = self.data_of("kernel", "show", kernel)["status"]["replicas"]
            return [it["node"] for it in replicas if it["role"] == "executor"]

        return eventually(found)[0]


def eventually(found, patience_s=PATIENCE_S):
    """What `found` returns once that is true."""
    until = time.monotonic() + patience_s
    while not (result := found()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    for variable in ["CALLBOARD_CONTEXT", "CALLBOARD_KERNEL", "KERNEL_ID", "JUPYTER_DATA_DIR"]:
        os.environ.pop(variable, None)
    prefix = folder / "prefix"
    os.environ["JUPYTER_PATH"] = str(prefix / "share/jupyter")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    cluster = Cluster(folder)
    try:
        cluster.prefix = prefix
        cluster.run("kernelspec", "install", "--prefix", prefix, role="gateway")
        yield cluster
    finally:
        cluster.stop()


class Session:
    """A kernel behind a proxy, as a Jupyter program has it."""

    def __init__(self, kernel_name="callboard", **how):
        transport = how.pop("transport", "tcp")
        self.manager = KernelManager(kernel_name=kernel_name, transport=transport)
        self.manager.start_kernel(**how)
        self.clients = []
        self.client = self.new_client()

    def new_client(self):
        """One more program that uses the kernel: with a session of its own."""
        client = self.manager.blocking_class()
        client.load_connection_file(self.manager.connection_file)
        # On a busy machine a kernel does not answer within a second and is no less alive.
        client.hb_channel.time_to_dead = PATIENCE_S
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE_S)
        self.clients.append(client)
        return client

    @property
    def kernel(self):
        """The id of the kernel in the cluster, as the proxy notes it."""
        connection = json.loads(Path(self.manager.connection_file).read_text())
        return connection["callboard"]["kernel"]

    @property
    def pid(self):
        return self.manager.provisioner.pid

    def run(self, code, client=None):
        """The text that a cell shows, and its error's name."""
        client = client or self.client
        shown = []

        def hook(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                shown.append(content["data"]["text/plain"])

        reply = client.execute_interactive(code, output_hook=hook, timeout=PATIENCE_S)
        return "".join(shown) + reply["content"].get("ename", "")

    def reconnect(self):
        """After a restart: the sockets are those of another process."""
        self.client.wait_for_ready(timeout=PATIENCE_S)

    def ended(self):
        """How the proxy ended."""
        return eventually(lambda: self.manager.provisioner.process.poll() is not None) and (
            self.manager.provisioner.process.returncode
        )

    def close(self):
        while self.clients:
            self.clients.pop().stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel()


@pytest.fixture
def session(cluster):
    session = Session()
    yield session
    session.close()
