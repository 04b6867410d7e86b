"""What nbclient relies on, through the gateway with a token: order, whole outputs, and a reason for every end."""

import base64
import json
import re

import nbformat
import pytest
from jupyter_server.gateway.gateway_client import GatewayClient
from live import channels, request
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

MANAGER = "jupyter_server.gateway.managers.GatewayKernelManager"
CELL_S = 120
LINES = 20_000
LARGE = 12_000_000


@pytest.fixture
def client_of(gateway, token, monkeypatch):
    """Makes clients as docs/guides/nbconvert-papermill.md says."""
    monkeypatch.setenv("JUPYTER_GATEWAY_URL", gateway.url)
    monkeypatch.setenv("JUPYTER_GATEWAY_AUTH_TOKEN", token)
    monkeypatch.setenv("JUPYTER_GATEWAY_WS_URL", f"ws{gateway.url.removeprefix('http')}/t/{token}")
    # It is read once per process.
    GatewayClient.clear_instance()

    def client_of(*cells: str, **options) -> NotebookClient:
        notebook = new_notebook(cells=[cell if isinstance(cell, dict) else new_code_cell(cell) for cell in cells])
        return NotebookClient(notebook, kernel_name="python3", kernel_manager_class=MANAGER, timeout=CELL_S, **options)

    yield client_of
    GatewayClient.clear_instance()


def texts(cell: nbformat.NotebookNode) -> str:
    """What a cell printed."""
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")


def test_a_notebook_stops_at_an_error_unless_it_is_expected(client_of):
    client = client_of("1 / 0", "print('ran')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        client.execute()
    assert client.nb.cells[1].execution_count is None
    expected = new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})
    for client in [client_of(expected, "print('ran')"), client_of("1 / 0", "print('ran')", allow_errors=True)]:
        first, second = client.execute().cells
        assert first.outputs[0]["ename"] == "ZeroDivisionError" and texts(second) == "ran\n"


def test_a_flood_of_lines_arrives_whole_and_in_order(client_of):
    # By itself nbclient gives a cell four seconds after its reply, however much of it waits in its own queue.
    client = client_of(f"for i in range({LINES}): print(i, flush=True)", iopub_timeout=CELL_S)
    (cell,) = client.execute().cells
    assert texts(cell) == "".join(f"{i}\n" for i in range(LINES))


def test_a_large_text_arrives_whole_and_a_large_picture_as_a_link_to_it(client_of, gateway, token):
    code = f"import base64, os\nbytes_ = os.urandom({LARGE * 3 // 4})\nprint('x' * {LARGE})"
    shown = "display({'image/png': base64.b64encode(bytes_).decode(), 'text/plain': 'picture'}, raw=True)\nbytes_[:9]"
    linked = []

    def follow(cell, cell_index, execute_reply):
        """While the kernel is there."""
        if cell_index == 1:
            (link,) = re.findall(r'href="([^"]+)"', cell.outputs[0]["data"]["text/html"])
            linked.append(gateway.ask("GET", link, token))

    first, second = client_of(code, shown, on_cell_executed=follow).execute().cells
    assert texts(first) == "x" * LARGE + "\n"
    display, result = second.outputs
    assert "12 MiB is too large to be sent" in display["data"]["text/plain"]
    (answer,) = linked
    assert answer.status == 200
    # The link leads to the message's content, as the kernel sent it.
    whole = base64.b64decode(answer.json["data"]["image/png"])
    assert len(whole) == LARGE * 3 // 4 and repr(whole[:9]) == result["data"]["text/plain"]


def test_a_process_that_dies_in_a_cell_ends_the_run_with_a_reason(client_of):
    # What it prints leaves the process a moment later.
    client = client_of("import os, time\nprint('before', flush=True)\ntime.sleep(1)\nos._exit(3)", "print('ran')")
    with pytest.raises(CellExecutionError, match="process"):
        client.execute()
    first, second = client.nb.cells
    assert texts(first) == "before\n"
    assert first.outputs[-1]["ename"] == "Callboard" and second.execution_count is None


def test_the_debugger_is_passed_on_and_subshells_are_refused_in_a_sentence(gateway, token, kernel):
    def reply(msg_type: str, content: dict) -> dict:
        message = request(msg_type, content, channel="control")
        socket.send(json.dumps(message))
        while True:
            heard = json.loads(socket.recv(60))
            if heard["channel"] == "control" and heard["parent_header"]["msg_id"] == message["header"]["msg_id"]:
                return heard["content"]

    with channels(gateway, kernel, token) as socket:
        debugger = reply("debug_request", {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}})
        assert debugger["success"] and debugger["body"]["isStarted"] is False
        for what in ["create", "list", "delete"]:
            refused = reply(f"{what}_subshell_request", {"subshell_id": "a"})
            assert refused["status"] == "error" and "no subshells" in refused["evalue"]
