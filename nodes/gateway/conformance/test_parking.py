"""A kernel that nobody uses is parked: its notebook is warned before and told why, nothing is lost, and the
next cell goes on."""

import json
from pathlib import Path

import pytest
from live import Cluster, Gateway, ask, channels, execute, wait_until

PARK_AFTER_S = 30
# Its members sleep before they have to warn, on a busy machine too.
HIBERNATE_AFTER_S = 2
HEARD_S = 60


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory):
    """A cluster that parks kernels soon."""
    settings = {"CALLBOARD_PARK_AFTER_S": str(PARK_AFTER_S), "CALLBOARD_HIBERNATE_AFTER_S": str(HIBERNATE_AFTER_S)}
    cluster = Cluster(tmp_path_factory.mktemp("sleepy"), **settings)
    yield cluster
    cluster.stop()


def run(socket, code: str) -> tuple[str, str]:
    """Runs a cell: its request, and what it printed."""
    request = execute(code)
    said = ask(socket, request)
    printed = [it["content"]["text"] for it in said if it["msg_type"] == "stream"]
    return request["header"]["msg_id"], "".join(printed)


def becomes(cluster, kernel: str, *phases: str) -> None:
    """Waits until a kernel is in one of these phases. A look at it keeps nothing awake."""
    wait_until(lambda: cluster.status(kernel)["phase"] in phases, f"it is {phases}", PARK_AFTER_S, pause_s=0.5)


def notice(socket) -> tuple[str, str]:
    """What is said next under a cell: which one, and the text."""
    while True:
        message = json.loads(socket.recv(HEARD_S))
        if message["msg_type"] == "stream":
            return message["parent_header"]["msg_id"], message["content"]["text"]


def test_an_idle_notebook_is_warned_parked_with_a_reason_and_goes_on(sleepy):
    gateway = Gateway(sleepy, "gateway", replicas=3)
    try:
        token = gateway.token("ada")
        kernel = gateway.start_kernel(token)
        with channels(gateway, kernel, token) as socket:
            cell, printed = run(socket, "import os\nx = [41]\nprint(os.getpid())")
            process = Path(f"/proc/{int(printed)}")
            assert process.exists()

            becomes(sleepy, kernel, "hibernating")
            under, text = notice(socket)
            assert under == cell and text.startswith("[callboard] no cell for 27 s: in 3 s"), text
            under, text = notice(socket)
            assert under == cell and text.startswith("[callboard] parked after 30 s without a cell"), text

            wait_until(lambda: not process.exists(), "its process has ended")
            becomes(sleepy, kernel, "parked", "hibernating")
            status = sleepy.status(kernel)
            assert "x" in status["names"] and status["refused"] == []
            cell, printed = run(socket, "print(x, os.getpid())")
            assert printed.startswith("[41] ") and process.name not in printed
            assert sleepy.status(kernel)["last_loss"] is None
    finally:
        gateway.stop()
