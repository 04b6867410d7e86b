"""The client on the bus: outputs in order from a bus that loses, and cells on a live cluster."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from callboard.client import Cursor, Message, Outputs, connect


def output(number: int, parent: str = "mine", msg_type: str = "stream") -> tuple[Cursor, int, Message]:
    header = {"msg_id": f"o{number}", "msg_type": msg_type}
    message = Message("iopub", header, {"n": number}, {"msg_id": parent}, buffers=[bytes([number])])
    return Cursor(3, number), 1 if parent == "mine" else 0, message


def test_a_message_is_the_same_after_encoding_and_decoding():
    _, _, message = output(7)
    assert Message.decode(message.encode()) == message


def test_outputs_are_shown_once_and_in_order_whatever_the_bus_lost():
    log = [output(1, "other"), output(2, msg_type="execute_input"), *map(output, range(3, 20)), output(20, "other")]
    for seed in range(200):
        chance = random.Random(seed)
        outputs = Outputs("mine")
        heard = [item for item in log for _ in range(chance.randrange(3))]
        for item in heard:
            outputs.on_emitted(*item)
        while since := outputs.missing(Cursor(3, 19)):
            for item in [item for item in log if item[0] > since][: chance.randrange(1, 9)]:
                outputs.on_fetched(*item)
        outputs.finish()
        shown = [message.content["n"] for message in outputs.ready]
        assert shown == list(range(2, 20)), f"seed {seed}"


def run(cluster, kernel, code, **options):
    async def main():
        async with await connect(cluster.credentials("frontend")) as client:
            cell = client.execute(kernel, code, **options)
            messages = [message async for message in cell]
            text = "".join(message.content["text"] for message in messages if message.type == "stream")
            return text, cell

    # Playwright, if it has run before, keeps an event loop in this thread.
    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(asyncio.run, asyncio.wait_for(main(), 60)).result()


def test_a_cell_runs_once_however_often_it_is_asked_for(cluster):
    kernel = cluster.start_kernel()
    code = "n = globals().get('n', 0) + 1\nprint(n)"
    text, cell = run(cluster, kernel, code)
    again, same = run(cluster, kernel, code, msg_id=cell.msg_id)
    assert (text, again) == ("1\n", "1\n")
    assert cell.outcome == same.outcome == {"kind": "completed"}
    assert cell.is_whole and same.is_whole


def test_a_session_goes_on_after_the_loss_of_its_executor(cluster):
    kernel = cluster.start_kernel()
    run(cluster, kernel, "x = 41")
    cluster.lose_executor(kernel)
    text, cell = run(cluster, kernel, "print(x + 1)")
    assert (text, cell.outcome) == ("42\n", {"kind": "completed"})


def test_a_cell_whose_executor_is_lost_ends_as_interrupted(cluster):
    kernel = cluster.start_kernel()
    loss = threading.Timer(2, cluster.lose_executor, [kernel])
    loss.start()
    text, cell = run(cluster, kernel, "import time\nfor i in range(100):\n    print(i, flush=True)\n    time.sleep(0.1)")
    loss.join()
    assert text.startswith("0\n1\n2\n") and cell.outcome["kind"] == "interrupted"
