"""One of two gateways is lost while front-ends run cells: they come back to the other one, miss nothing
and see nothing twice.

Which output the loss follows is drawn from a seed, which a failure prints.
"""

import asyncio
import json
import random

import pytest
from live import Gateway, execute
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CLIENTS = 3
CELLS = 3
LINES = 12
SEEDS = range(4)
ROUND_S = 90


class FrontEnd:
    """A notebook: a cell shows what belongs to its request, and is cleared by `clear_output`."""

    def __init__(self, number: int, kernel: str, token: str, heard: asyncio.Event) -> None:
        self.number, self.kernel, self.token, self.heard = number, kernel, token, heard
        self.shown: dict[str, str] = {}
        self.replies: dict[str, int] = {}
        self.heard_of: set[str] = set()
        self.lines = 0
        self.reconnects = 0

    async def run(self, gateway_now) -> None:
        """Runs its cells, on whichever gateway there is."""
        session = f"session-{self.kernel}"
        cells = [
            execute(self.code(cell), msg_id=f"{self.kernel}-{cell}", session=session) for cell in range(CELLS)
        ]
        waiting = list(cells)
        while True:
            try:
                url = gateway_now().channels(self.kernel, session)
                headers = {"Authorization": f"token {self.token}"}
                async with connect(url, additional_headers=headers, max_size=None) as socket:
                    while waiting:
                        msg_id = waiting[0]["header"]["msg_id"]
                        # One that nothing was heard of may be lost. The kernel runs it once in any case.
                        if msg_id not in self.heard_of:
                            await socket.send(json.dumps(waiting[0]))
                        await self.show(socket, msg_id)
                        waiting.pop(0)
                    return
            except (ConnectionClosed, OSError):
                self.reconnects += 1
                await asyncio.sleep(0.05)

    async def show(self, socket, msg_id: str) -> None:
        """Shows what comes until a cell has its reply and is idle."""
        idle, replied = False, False
        while not (idle and replied):
            message = json.loads(await socket.recv())
            parent, content = message["parent_header"].get("msg_id"), message["content"]
            self.heard_of.add(parent)
            match message["msg_type"]:
                case "clear_output":
                    self.shown[parent], self.replies[parent] = "", 0
                    if parent == msg_id:
                        idle, replied = False, False
                case "stream":
                    self.shown[parent] = self.shown.get(parent, "") + content["text"]
                    self.lines += 1
                    self.heard.set()
                case "execute_reply":
                    self.replies[parent] = self.replies.get(parent, 0) + 1
                    replied |= parent == msg_id
                case "status" if content["execution_state"] == "idle":
                    idle |= parent == msg_id

    def code(self, cell: int) -> str:
        """A cell that prints line by line."""
        line = f"print('{self.number}.{cell}.%d' % i, flush=True)"
        return f"import time\nfor i in range({LINES}):\n    {line}; time.sleep(0.03)"

    def check(self) -> None:
        """Fails unless every cell shows what it printed, once."""
        for cell in range(CELLS):
            msg_id = f"{self.kernel}-{cell}"
            expected = "".join(f"{self.number}.{cell}.{line}\n" for line in range(LINES))
            assert self.shown.get(msg_id) == expected, f"client {self.number}, cell {cell}"
            assert self.replies.get(msg_id) == 1, f"client {self.number}, cell {cell}: {self.replies}"


@pytest.mark.parametrize("seed", SEEDS)
def test_front_ends_that_lose_their_gateway_miss_nothing_and_see_nothing_twice(cluster, token, seed):
    draw = random.Random(seed)
    gateways = [Gateway(cluster, f"gateway-{seed}-{which}") for which in "ab"]
    after = draw.randrange(1, CLIENTS * CELLS * LINES * 2 // 3)
    print(f"seed {seed}: the first gateway is lost after {after} outputs")
    try:
        kernels = [gateways[0].start_kernel(token) for _ in range(CLIENTS)]
        asyncio.run(asyncio.wait_for(_round(gateways, kernels, token, after), ROUND_S))
        for kernel in kernels:
            gateways[1].ask("DELETE", f"/api/kernels/{kernel}", token)
    finally:
        for gateway in gateways:
            gateway.kill()


async def _round(gateways: list[Gateway], kernels: list[str], token: str, after: int) -> None:
    heard = asyncio.Event()
    clients = [FrontEnd(number, kernel, token, heard) for number, kernel in enumerate(kernels)]
    now = [gateways[0]]
    runs = [asyncio.create_task(client.run(lambda: now[0])) for client in clients]
    while sum(client.lines for client in clients) < after:
        await heard.wait()
        heard.clear()
    gateways[0].child.kill()
    now[0] = gateways[1]
    await asyncio.gather(*runs)
    for client in clients:
        client.check()
    assert sum(client.reconnects for client in clients) > 0
