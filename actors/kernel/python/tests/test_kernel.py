"""The kernel process: order of messages, interrupts, the state socket, features left alone."""

from __future__ import annotations

import queue
import time

import pytest
from harness import REPLY_TIMEOUT_S, Kernel


@pytest.fixture(scope="module")
def kernel():
    with Kernel() as one:
        yield one


def groups(reply):
    return {entry["group"] for entry in reply["captured"]["upsert"]}


def test_hello_names_versions(kernel):
    assert kernel.hello["protocol"] == 2 and kernel.hello["pid"] == kernel.process.pid
    assert "numpy" in kernel.hello["distributions"]


def test_each_request_with_user_code_is_captured_once(kernel):
    for options in ({}, {"silent": True}, {"store_history": False}):
        before = len(kernel.node.captures)
        kernel.run("once = 1", **options)
        assert len(kernel.node.captures) == before + 1
    before = len(kernel.node.captures)
    with pytest.raises(AssertionError):
        kernel.run("boom = 1; 1/0")
    assert len(kernel.node.captures) == before + 1
    assert kernel.node.groups["variables:boom"]


def test_a_comm_message_is_captured(kernel):
    kernel.run("seen = []\nget_ipython().kernel.comm_manager.register_target('t', lambda comm, msg: seen.append(msg['content']['data']))")
    message = kernel.client.session.msg("comm_open", {"comm_id": "c1", "target_name": "t", "data": {"k": 1}})
    kernel.client.shell_channel.send(message)
    captured, _ = kernel.node.wait_for("captured", message["header"]["msg_id"])
    assert "variables:seen" in {entry["group"] for entry in captured["upsert"]}
    assert kernel.run("assert seen == [{'k': 1}]")["status"] == "ok"


def test_idle_comes_after_the_capture(kernel):
    """The state message is already with the node when the client sees `idle`."""
    msg_id = kernel.client.execute("late = [1]")
    while True:
        message = kernel.client.get_iopub_msg(timeout=REPLY_TIMEOUT_S)
        if message["parent_header"].get("msg_id") == msg_id and message["content"].get("execution_state") == "idle":
            break
    kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
    captured, _ = kernel.node.wait_for("captured", msg_id)
    assert "variables:late" in {entry["group"] for entry in captured["upsert"]}


def test_a_cell_that_does_not_wait_for_its_capture_says_idle_before_and_after_it(kernel):
    """What the capture has to say comes between the two, of which the first is marked for the node."""
    message = kernel.client.session.msg("execute_request", {"code": "early = (n for n in [1])", "silent": False})
    message["metadata"] = {"callboard": {"level": "received"}}
    kernel.client.shell_channel.send(message)
    first = kernel.published_until_idle(message["header"]["msg_id"])
    then = kernel.published_until_idle(message["header"]["msg_id"])
    assert "stream" not in {published["msg_type"] for published in first}
    assert any("cannot be carried" in published["content"].get("text", "") for published in then)
    captured, _ = kernel.node.wait_for("captured", message["header"]["msg_id"])
    assert "early" in {entry["name"] for entry in captured["refused"]}
    kernel.run("del early")


def test_a_cell_whose_capture_has_nothing_to_say_is_idle_once(kernel):
    message = kernel.client.session.msg("execute_request", {"code": "plain = 1", "silent": False})
    message["metadata"] = {"callboard": {"level": "received"}}
    kernel.client.shell_channel.send(message)
    kernel.published_until_idle(message["header"]["msg_id"])
    captured, _ = kernel.node.wait_for("captured", message["header"]["msg_id"])
    assert captured["is_told"]
    durable = kernel.client.execute("plain = 2")
    between = kernel.published_until_idle(durable)
    assert all(published["parent_header"]["msg_id"] == durable for published in between)
    captured, _ = kernel.node.wait_for("captured", durable)
    assert not captured["is_told"]


def test_what_is_printed_while_a_cell_is_captured_comes_before_its_last_idle(kernel):
    code = "class Loud:\n    def __reduce__(self):\n        print('pickled'); return int, ()\nloud = Loud()"
    message = kernel.client.session.msg("execute_request", {"code": code, "silent": False})
    message["metadata"] = {"callboard": {"level": "received"}}
    kernel.client.shell_channel.send(message)
    kernel.published_until_idle(message["header"]["msg_id"])
    then = kernel.published_until_idle(message["header"]["msg_id"])
    assert any("pickled" in published["content"].get("text", "") for published in then)
    captured, _ = kernel.node.wait_for("captured", message["header"]["msg_id"])
    assert not captured["is_told"]
    kernel.run("del loud, Loud")


@pytest.mark.parametrize("place", ["comms.say_held", "kernel._say_idle_early", "kernel._answer_interrupted"])
def test_an_interrupt_beside_the_code_leaves_no_request_unanswered(kernel, place):
    """Each is a place of ipykernel's or ours around the code, where a signal may come in."""
    owner, name = place.split(".")
    kernel.run(
        "import os, signal\nfrom callboard_kernel import comms\nkernel = get_ipython().kernel\n"
        f"before = {place}\n"
        f"{place} = lambda *arguments: (os.kill(os.getpid(), signal.SIGINT), before(*arguments))[1]"
    )
    try:
        reply = kernel.run("raise KeyboardInterrupt" if "answer" in name else "after = 1", allow_error=True)
        assert reply["captured"] and reply["status"] == ("error" if "answer" in name else "ok")
    finally:
        kernel.run(f"{place} = before\ndel comms, kernel, before")


def test_that_idle_has_left_before_the_capture_begins(kernel):
    """Else the thread that sends it would wait for the interpreter's lock until the capture is done."""
    kernel.run(
        "k = get_ipython().kernel\nk.waiting, k.unwatched = [], k.tracker.capture\n"
        "k.tracker.capture = lambda: (k.waiting.append(len(k.iopub_thread._events)), k.unwatched())[1]"
    )
    for _ in range(5):
        message = kernel.client.session.msg("execute_request", {"code": "1", "silent": False})
        message["metadata"] = {"callboard": {"level": "received"}}
        kernel.client.shell_channel.send(message)
        kernel.node.wait_for("captured", message["header"]["msg_id"])
    kernel.run("assert k.waiting[1:] == [0] * 5, k.waiting")
    kernel.run("k.tracker.capture = k.unwatched\ndel k")


def test_a_refusal_is_told_once_and_stays_usable(kernel):
    reply = kernel.run("gen = (n for n in [1, 2])")
    assert reply["stderr"].count("'gen' (generator) cannot be carried") == 1
    reply = kernel.run("assert next(gen) == 1")
    assert "cannot be carried" not in reply["stderr"]
    assert "gen" in {entry["name"] for entry in reply["captured"]["refused"]}
    kernel.run("del gen")


def test_what_a_capture_warns_of_is_not_shown_in_the_cell(kernel):
    reply = kernel.run(
        "import numpy as np, warnings\nwide, _ = np.broadcast_arrays(np.zeros(3), np.zeros((2, 3)))\n"
        "class Loud:\n    def __reduce__(self):\n        warnings.warn('loud'); return int, ()\nloud = Loud()"
    )
    assert reply["stderr"] == "" and reply["captured"]["refused"] == []
    assert "own" in kernel.run("warnings.warn('own')")["stderr"]
    kernel.run("del wide, _, loud, Loud")


def test_an_interrupted_cell_is_captured_with_what_it_did(kernel):
    msg_id = kernel.client.execute("done = [1]\nprint('ready', flush=True)\nimport time\ntime.sleep(60)\ndone.append(2)")
    while True:
        message = kernel.client.get_iopub_msg(timeout=REPLY_TIMEOUT_S)
        if message["msg_type"] == "stream" and "ready" in message["content"]["text"]:
            break
    kernel.interrupt()
    reply = kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    captured, _ = kernel.node.wait_for("captured", msg_id)
    assert "variables:done" in {entry["group"] for entry in captured["upsert"]}
    kernel.run("assert done == [1]")


def test_an_interrupt_during_a_long_capture_costs_one_name_and_not_the_kernel(kernel):
    code = (
        "import os, time\nclass Slow:\n    def __reduce__(self):\n        for _ in range(6000): time.sleep(0.01)\n"
        "        return (int, ())\nclass Quick:\n    def __reduce__(self):\n        time.sleep(1.2); return (int, ())\n"
        "a_quick = Quick()\nb_after = object.__new__(Quick)\nslow = Slow()"
    )
    msg_id = kernel.client.execute(code)
    kernel.node.wait_for("saving", msg_id)
    deadline = time.monotonic() + REPLY_TIMEOUT_S
    while True:
        kernel.interrupt()
        try:
            header, buffers = kernel.node.messages.get(timeout=0.5)
        except queue.Empty:
            assert time.monotonic() < deadline
            continue
        if header["type"] == "captured":
            break
    kernel.node.keep(header, buffers)
    assert "slow" in {entry["name"] for entry in header["refused"]} and header["msg_id"] == msg_id
    kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
    kernel.run("del slow, a_quick, b_after")


def test_cells_queued_behind_an_error_are_aborted_and_later_ones_run(kernel):
    first = kernel.client.execute("1/0")
    second = kernel.client.execute("never_ran = 1")
    replies = {}
    while len(replies) < 2:
        message = kernel.client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
        replies[message["parent_header"]["msg_id"]] = message["content"]["status"]
    assert replies[first] == "error" and replies[second] in ("aborted", "ok")
    kernel.node.wait_for("captured", first)
    if replies[second] == "ok":
        kernel.node.wait_for("captured", second)
    kernel.run("still = 1")


def test_an_async_cell_and_completion_and_inspection_work(kernel):
    kernel.run("import asyncio\nawait asyncio.sleep(0)\nlonely_name = 3")
    kernel.client.complete("lonely_n", reply=True, timeout=REPLY_TIMEOUT_S)
    reply = kernel.client.inspect("lonely_name", reply=True, timeout=REPLY_TIMEOUT_S)
    assert reply["content"]["found"]


def test_input_works(kernel):
    def answer(_message):
        kernel.client.input("typed")

    reply = kernel.client.execute_interactive(
        "said = input('? ')", allow_stdin=True, stdin_hook=answer, timeout=REPLY_TIMEOUT_S
    )
    kernel.node.wait_for("captured", reply["parent_header"]["msg_id"])
    kernel.run("assert said == 'typed'")


def test_configure_excludes_names_and_bad_messages_get_an_error(kernel):
    kernel.node.send({"type": "configure", "exclude": ["hush"], "capture_budget_ms": 30_000}, [])
    kernel.node.send({"type": "nonsense"}, [])
    error, _ = kernel.node.wait_for("error")
    assert "nonsense" in error["message"]
    assert "variables:hush" not in groups(kernel.run("hush = [1]"))


def test_after_a_restore_nothing_is_sent_again(kernel):
    with Kernel() as other:
        kernel.run("import numpy as np\narr = np.zeros(10_000); part = arr[5:]\nclass Q: pass\nqs = [Q()]")
        other.node.restore_from(kernel.node)
        reply = other.run("qs[0].new = 1")
        assert {key for key in groups(reply) if key.startswith("variables:")} == {"variables:qs"}
        assert reply["captured"]["removed"] == []


def test_the_kernel_ends_with_its_node():
    with Kernel() as one:
        one.node.connection.shutdown(2)
        assert one.process.wait(timeout=REPLY_TIMEOUT_S) == 1
