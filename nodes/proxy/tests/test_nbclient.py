"""What programs that run notebooks rely on, beside what the notebooks show: through the kernelspec as with
plain ipykernel."""

import nbformat
import papermill
import pytest
from conftest import PATIENCE_S, Session
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from test_programs import shown

KERNELS = ["python3", "callboard"]
LINES = 20_000
LARGE = 12_000_000
# Long enough that what is sent meanwhile waits behind it.
RAISES = "import time\ntime.sleep(1)\n1 / 0"
# What it prints leaves the process a moment later.
DIES = "import os, time\nprint('before', flush=True)\ntime.sleep(1)\nos._exit(3)"


def client_of(kernel_name, *cells, **options):
    cells = [cell if isinstance(cell, dict) else new_code_cell(cell) for cell in cells]
    return NotebookClient(new_notebook(cells=cells), kernel_name=kernel_name, timeout=120, **options)


def texts(cell):
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")


@pytest.fixture(params=KERNELS)
def either(request, cluster):
    """A session on plain ipykernel, and one on ours: both behave the same."""
    session = Session(request.param)
    yield session
    session.close()


def replies(client, sent):
    """The content of the replies to some requests."""
    found = {}
    while not found.keys() >= set(sent):
        reply = client.get_shell_msg(timeout=PATIENCE_S)
        found[reply["parent_header"]["msg_id"]] = reply["content"]
    return [found[msg_id] for msg_id in sent]


def test_cells_that_wait_behind_one_that_raises_are_aborted_unless_told_otherwise(either):
    client = either.client
    sent = [client.execute(code) for code in [RAISES, "behind = 1", "behind = 2"]]
    assert [reply["status"] for reply in replies(client, sent)] == ["error", "aborted", "aborted"]
    assert either.run("'behind' in globals()") == "False"
    sent = [client.execute(RAISES, stop_on_error=False), client.execute("behind = 3")]
    assert [reply["status"] for reply in replies(client, sent)] == ["error", "ok"]
    assert either.run("behind") == "3"


def test_a_notebook_stops_at_an_error_unless_it_is_expected(cluster):
    ran = {}
    for kernel_name in KERNELS:
        client = client_of(kernel_name, "1 / 0", "print('ran')")
        with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
            client.execute()
        expected = new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})
        tagged = client_of(kernel_name, expected, "print('ran')").execute()
        assert texts(tagged.cells[1]) == "ran\n"
        ran[kernel_name] = shown(client.nb), shown(tagged)
    assert ran["callboard"] == ran["python3"]


def test_a_flood_of_lines_arrives_whole_and_in_order(cluster):
    (cell,) = client_of("callboard", f"for i in range({LINES}): print(i, flush=True)").execute().cells
    assert texts(cell) == "".join(f"{i}\n" for i in range(LINES))


def test_a_large_text_and_a_large_picture_arrive_whole(cluster):
    picture = f"display({{'image/png': '{{}}' * ({LARGE} // 2), 'text/plain': 'picture'}}, raw=True)"
    cells = [f"print('x' * {LARGE})", picture.replace("{}", "Ab")]
    results = [shown(client_of(kernel_name, *cells).execute()) for kernel_name in KERNELS]
    # What differs of so much must not be printed.
    assert (results[0] == results[1]) is True
    (_, (text,)), (_, (display,)) = results[1]
    assert len(text["text"]) == LARGE + 1 and len(display["data"]["image/png"]) == LARGE


def asked(session, msg_type, content):
    """The reply on the control channel."""
    message = session.client.session.msg(msg_type, content)
    session.client.control_channel.send(message)
    while True:
        reply = session.client.get_control_msg(timeout=PATIENCE_S)
        if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
            return reply["msg_type"], reply["content"]


def test_the_debugger_is_passed_on(either):
    content = {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}}
    kind, reply = asked(either, "debug_request", content)
    assert kind == "debug_reply" and reply["success"] and reply["body"]["isStarted"] is False
    # Any command but `initialize` would be refused before that one.
    arguments = {"clientID": "test", "adapterID": "", "linesStartAt1": True, "columnsStartAt1": True}
    content |= {"seq": 2, "command": "initialize", "arguments": arguments}
    assert asked(either, "debug_request", content)[1]["success"]


def test_subshells_are_not_promised_and_refused_in_a_sentence(session):
    (info,) = replies(session.client, [session.client.kernel_info()])
    assert "kernel subshells" not in info["supported_features"]
    for request in ["create", "list", "delete"]:
        kind, reply = asked(session, f"{request}_subshell_request", {"subshell_id": "a"})
        assert kind == f"{request}_subshell_reply" and reply["status"] == "error"
        assert "no subshells" in reply["evalue"]
    assert session.run("1 + 1") == "2"


def test_a_process_that_dies_in_a_cell_ends_nbclient_with_a_reason(cluster):
    before = cluster.kernels()
    client = client_of("callboard", DIES, "print('ran')")
    with pytest.raises(CellExecutionError, match="code 3"):
        client.execute()
    first, second = client.nb.cells
    assert texts(first) == "before\n"
    assert first.outputs[-1]["ename"] == "Callboard" and second.execution_count is None
    assert cluster.kernels() == before


def test_a_process_that_dies_in_a_cell_ends_papermill_with_a_reason(cluster, tmp_path):
    source, target = tmp_path / "dies.ipynb", tmp_path / "done.ipynb"
    nbformat.write(client_of("callboard", DIES, "print('ran')").nb, source)
    with pytest.raises(papermill.PapermillExecutionError, match="code 3"):
        papermill.execute_notebook(source, target, kernel_name="callboard", language="python", progress_bar=False)
    done = nbformat.read(target, as_version=4)
    assert any("code 3" in output.get("evalue", "") for cell in done.cells for output in cell.get("outputs", []))
