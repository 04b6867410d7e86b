"""Requests beside cells: answered as one session's, before and after it moved, or refused in a sentence."""

from __future__ import annotations

import pytest
from harness import REPLY_TIMEOUT_S, Kernel

SUBSHELL = {"ename": "SubshellsNotSupported", "status": "error"}


@pytest.fixture(scope="module")
def pair():
    """A kernel with a few cells behind it, and the one that its session has moved to."""
    with Kernel() as first, Kernel() as second:
        first.run("import math\nfirst_name = 40")
        first.run("first_name + 2")
        first.run("%precision 3")
        first.run("silent = 1", silent=True)
        first.run("def helper(argument):\n    'says what it does'\n    return argument")
        first.run("1 / 0", allow_error=True)
        assert second.node.restore_from(first.node) == []
        yield first, second


@pytest.fixture(params=["before the move", "after the move"])
def kernel(pair, request):
    return pair[request.param == "after the move"]


def history(kernel, **content):
    request = {"output": False, "raw": True, "hist_access_type": "tail", "n": 100, **content}
    return [tuple(entry[1:]) for entry in kernel.ask("history_request", request)["history"]]


CELLS = {
    1: "import math\nfirst_name = 40",
    2: "first_name + 2",
    3: "%precision 3",
    4: "def helper(argument):\n    'says what it does'\n    return argument",
    5: "1 / 0",
}


def test_the_last_lines_of_history_are_the_sessions(kernel):
    assert history(kernel) == list(CELLS.items())
    assert history(kernel, n=2) == [(4, CELLS[4]), (5, CELLS[5])]


def test_a_range_of_history_has_numbers_and_outputs(kernel):
    chosen = {"hist_access_type": "range", "session": 0}
    assert history(kernel, **chosen, start=2, stop=4) == [(2, CELLS[2]), (3, CELLS[3])]
    assert history(kernel, **chosen, start=3, stop=4, raw=False) == [(3, "get_ipython().run_line_magic('precision', '3')")]
    with_output = kernel.ask("history_request", {**chosen, "start": 1, "stop": 3, "raw": True, "output": True})
    assert with_output["history"] == [[0, 1, [CELLS[1], None]], [0, 2, [CELLS[2], "42"]]]


def test_history_is_searched(kernel):
    assert history(kernel, hist_access_type="search", pattern="*first_name*") == [(1, CELLS[1]), (2, CELLS[2])]
    assert history(kernel, hist_access_type="search", pattern="nothing*") == []


def test_history_goes_on_after_the_move():
    with Kernel() as first, Kernel() as second, Kernel() as third:
        first.run("'one'")
        second.node.restore_from(first.node)
        assert second.run("'two'")["execution_count"] == 2
        third.node.restore_from(second.node)
        assert history(third) == [(1, "'one'"), (2, "'two'")]
        assert third.run("In[2], Out[1], _1, _i2, _")["execution_count"] == 3
        third.run("assert Out[3] == (\"'two'\", 'one', 'one', \"'two'\", 'two')")
        assert [number for number, _ in history(third)] == [1, 2, 3, 4]
        # A session that replaces another one leaves nothing of it.
        second.node.restore_from(third.node)
        second.node.restore_from(first.node)
        assert history(second) == [(1, "'one'")]
        assert history(second, hist_access_type="search", pattern="*") == [(1, "'one'")]


def test_history_is_in_no_file_that_kernels_share():
    with Kernel() as kernel:
        kernel.run("1")
        assert history(kernel) == [(1, "1")]
        kernel.run("import os; found = os.listdir(get_ipython().profile_dir.location)")
        assert kernel.run("print([name for name in found if 'history' in name])")["stdout"] == "[]\n"


def test_an_outputs_text_is_kept_unless_it_is_long():
    with Kernel() as first, Kernel() as second:
        first.run("'x' * 100_000")
        first.run("'y'")
        second.node.restore_from(first.node)
        request = {"hist_access_type": "range", "session": 0, "start": 1, "stop": 3, "raw": True, "output": True}
        assert [entry[2][1] for entry in second.ask("history_request", request)["history"]] == [None, "'y'"]


def test_completion_inspection_and_is_complete(kernel):
    assert kernel.ask("complete_request", {"code": "first_n", "cursor_pos": 7})["matches"] == ["first_name"]
    assert "ceil" in kernel.ask("complete_request", {"code": "math.ce", "cursor_pos": 7})["matches"][0]
    found = kernel.ask("inspect_request", {"code": "helper", "cursor_pos": 6, "detail_level": 1})
    assert found["found"] and "says what it does" in found["data"]["text/plain"]
    assert "Source:" in found["data"]["text/plain"]
    assert not kernel.ask("inspect_request", {"code": "absent", "cursor_pos": 6})["found"]
    assert kernel.ask("is_complete_request", {"code": "for n in x:"}) == {"status": "incomplete", "indent": "    "}
    assert kernel.ask("is_complete_request", {"code": "x = 1"})["status"] == "complete"
    assert kernel.ask("comm_info_request", {}) == {"status": "ok", "comms": {}}


def test_the_source_of_a_function_moves_with_it():
    with Kernel() as first, Kernel() as second, Kernel() as third:
        first.run("%time seen = 1\ndef shown(): raise ValueError('here')  # with a comment")
        first.run("def hidden():\n    return 'from a silent cell'", silent=True)
        second.node.restore_from(first.node)
        second.run("def later(): return 'made after the move'")
        third.node.restore_from(second.node)
        reply = third.run("import inspect\nfor f in shown, hidden, later: print(inspect.getsource(f), end='')")
        assert reply["stdout"].splitlines() == [
            "def shown(): raise ValueError('here')  # with a comment",
            "def hidden():",
            "    return 'from a silent cell'",
            "def later(): return 'made after the move'",
        ]
        text = "".join(third.run("shown()", allow_error=True)["traceback"])
        assert "In[1]" in text and "# with a comment" in text


def test_the_newest_silent_cells_keep_their_source():
    with Kernel() as first, Kernel() as second, Kernel() as third:
        first.run("kernel = get_ipython()\nfor n in range(300): kernel.compile.cache(f'silent_{n}', 5)\ndel kernel, n")
        second.node.restore_from(first.node)
        second.run("silent_300 = 1", silent=True)
        third.node.restore_from(second.node)
        reply = third.run(
            "import linecache\nlines = [one[2][0] for one in linecache.cache.values() if len(one) == 4 and one[2]]\n"
            "print(sorted(int(line.split()[0][7:]) for line in lines if line.startswith('silent_')))"
        )
        assert eval(reply["stdout"]) == list(range(45, 301))


def test_a_source_is_not_taken_for_another_cells_after_the_inputs_were_reset():
    with Kernel() as first, Kernel() as second:
        first.run("def kept(): return 1")
        first.run("get_ipython().history_manager.reset()")
        first.run("x = 1; y = 2")
        second.node.restore_from(first.node)
        assert second.run("import inspect\nprint(inspect.getsource(kept))")["stdout"].strip() == "def kept(): return 1"


def test_kernel_info_promises_the_debugger_and_no_subshells(kernel):
    info = kernel.ask("kernel_info_request", {})
    assert info["status"] == "ok" and info["supported_features"] == ["debugger"]
    assert kernel.ask("kernel_info_request", {}, "control")["supported_features"] == ["debugger"]


@pytest.mark.parametrize("request_kind", ["create", "list", "delete"])
def test_a_request_about_subshells_is_refused_in_a_sentence(kernel, request_kind):
    reply = kernel.ask(f"{request_kind}_subshell_request", {"subshell_id": "a"}, "control")
    assert SUBSHELL.items() <= reply.items() and "one after another" in reply["evalue"]


def test_a_cell_for_a_subshell_is_refused_and_the_next_one_runs(kernel):
    message = kernel.client.session.msg("execute_request", {"code": "in_subshell = 1"})
    message["header"]["subshell_id"] = "a"
    kernel.client.shell_channel.send(message)
    kernel.published_until_idle(message["header"]["msg_id"])
    reply = kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
    assert reply["msg_type"] == "execute_reply" and SUBSHELL.items() <= reply["content"].items()
    assert kernel.run("print('in_subshell' in globals())", store_history=False)["stdout"] == "False\n"


def debug(kernel, command, **arguments):
    request = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
    return kernel.ask("debug_request", request, "control")


def test_the_debugger_stops_at_a_breakpoint_and_a_moved_session_has_none_started():
    with Kernel() as first, Kernel() as second:
        for kernel in (first, second):
            if kernel is second:
                kernel.node.restore_from(first.node)
            assert not debug(kernel, "debugInfo")["body"]["isStarted"]
            assert debug(kernel, "initialize", clientID="test", adapterID="")["success"]
            assert debug(kernel, "attach")["success"]
            code = "stopped = 'not yet'\nstopped = 'went on'"
            path = debug(kernel, "dumpCell", code=code)["body"]["sourcePath"]
            points = debug(kernel, "setBreakpoints", source={"path": path}, breakpoints=[{"line": 2}])
            assert points["success"] and points["body"]["breakpoints"][0]["verified"]
            assert debug(kernel, "configurationDone")["success"]
            msg_id = kernel.client.execute(code)
            while True:
                message = kernel.client.get_iopub_msg(timeout=REPLY_TIMEOUT_S)
                if message["msg_type"] == "debug_event" and message["content"]["event"] == "stopped":
                    break
            thread = message["content"]["body"]["threadId"]
            assert thread in debug(kernel, "debugInfo")["body"]["stoppedThreads"]
            assert debug(kernel, "continue", threadId=thread)["success"]
            kernel.published_until_idle(msg_id)
            captured, _ = kernel.node.wait_for("captured", msg_id)
            assert captured["refused"] == []
            kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
            kernel.run("assert stopped == 'went on'")


def test_input_and_getpass_ask_the_front_end_after_the_move():
    with Kernel() as first, Kernel() as second:
        first.run("import getpass\nfrom getpass import getpass as ask\nheld = input")
        second.node.restore_from(first.node)
        asked = []

        def answer(message):
            asked.append((message["content"]["prompt"], message["content"]["password"]))
            second.client.input(f"answer {len(asked)}")

        reply = second.client.execute_interactive(
            "said = input('a? '), getpass.getpass('b? '), held('c? '), ask('d? ')", allow_stdin=True, stdin_hook=answer, timeout=REPLY_TIMEOUT_S
        )
        second.node.wait_for("captured", reply["parent_header"]["msg_id"])
        assert asked == [("a? ", False), ("b? ", True), ("c? ", False), ("d? ", True)]
        second.run("assert said == tuple(f'answer {n}' for n in (1, 2, 3, 4))")
