"""Runs cells on Callboard kernels over the bus, so that lost messages, brokers and nodes do not matter.

    async with await callboard.client.connect("frontend.json") as client:
        cell = client.execute(kernel, "print('hello')")
        async for message in cell:
            print(message.type, message.content)
        print(cell.outcome)

A request is sent again under the same `msg_id` until its end is known; a kernel runs it at most once.
Outputs come each once and in order; what the bus lost is fetched. docs/protocol.md says how.
"""

import asyncio
import base64
import json
import struct
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import nats
import nats.errors

RESEND_FIRST_S = 0.2
RESEND_EVERY_S = 1.0
# How long the log may lag behind what was announced.
FETCH_PAUSE_S = 0.25

PASSING = {"unavailable", "timed_out", "stale"}


class Fault(Exception):
    """What a kernel refused, and whether the request may have been executed nevertheless."""

    def __init__(self, code: str, message: str, certainty: str) -> None:
        super().__init__(message)
        self.code, self.certainty = code, certainty


class Cursor(NamedTuple):
    """Place of an output in its kernel's stream; numbers have no gaps within a term."""

    term: int
    number: int


@dataclass
class Message:
    """A Jupyter message."""

    channel: str
    header: dict[str, Any]
    content: dict[str, Any]
    parent_header: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    buffers: list[bytes] = field(default_factory=list)

    @property
    def type(self) -> str:
        """Such as `stream` or `execute_reply`."""
        return self.header["msg_type"]

    def encode(self) -> bytes:
        """The message in the framing of `v1.kernel.websocket.jupyter.org`."""
        dicts = (self.header, self.parent_header, self.metadata, self.content)
        parts = [self.channel.encode(), *(json.dumps(part).encode() for part in dicts), *self.buffers]
        ends = [8 * (len(parts) + 2)]
        for part in parts:
            ends.append(ends[-1] + len(part))
        return struct.pack(f"<{len(ends) + 1}Q", len(ends), *ends) + b"".join(parts)

    @classmethod
    def decode(cls, frame: bytes) -> "Message":
        """The message in such a frame."""
        (count,) = struct.unpack_from("<Q", frame)
        ends = struct.unpack_from(f"<{count}Q", frame, 8)
        channel, *parts = (frame[start:end] for start, end in zip(ends, ends[1:]))
        header, parent_header, metadata, content = map(json.loads, parts[:4])
        return cls(channel.decode(), header, content, parent_header, metadata, parts[4:])


async def connect(credentials: str | Path = ".callboard/credentials/frontend.json") -> "Client":
    """Connects with a credentials file that `callboard up` wrote."""
    me = json.loads(Path(credentials).read_text())
    bus = await nats.connect(
        me["url"],
        user=me["user"],
        password=me["password"],
        inbox_prefix=me["inbox_prefix"].encode(),
        max_reconnect_attempts=-1,
    )
    return Client(bus, f"cb.v1.{me['cluster']}")


class Client:
    """A connection to a cluster."""

    def __init__(self, bus: nats.NATS, root: str) -> None:
        self.bus, self.root = bus, root

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bus.close()

    def execute(self, kernel: str, code: str, *, level: str = "durable", msg_id: str | None = None) -> "Cell":
        """A cell to be run, by iterating over it. With a `msg_id` that was used before, that cell again."""
        return Cell(self, kernel, code, level, msg_id or str(uuid.uuid4()))

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Any:
        """Asks once and returns what is under `ok`; raises a `Fault` for what is under `err`."""
        reply = await self.bus.request(f"{self.root}.{subject}", payload, timeout=timeout_s)
        answer = json.loads(reply.data)
        if "err" in answer:
            raise Fault(**answer["err"])
        return answer["ok"]


class Cell:
    """A cell on its way: an iterator over its outputs and its `execute_reply`.

    After it, `outcome` is `{"kind": "completed"}` or `{"kind": "interrupted", "cause": …}`, and
    `is_whole` says whether the kernel still had all of its outputs.
    """

    def __init__(self, client: Client, kernel: str, code: str, level: str, msg_id: str) -> None:
        self.msg_id = msg_id
        self.outcome: dict[str, Any] | None = None
        self.is_whole = True
        self._client, self._kernel = client, kernel
        header = {
            "msg_id": msg_id,
            "msg_type": "execute_request",
            "session": str(uuid.uuid4()),
            "username": "callboard",
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.4",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        metadata = {"callboard": {"level": level}}
        self._frame = Message("shell", header, content, metadata=metadata).encode()
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outputs = Outputs(msg_id)
        self._end: dict[str, Any] | None = None

    async def __aiter__(self) -> AsyncIterator[Message]:
        bus, root = self._client.bus, self._client.root
        events = await bus.subscribe(f"{root}.evt.kernel.{self._kernel}.*", cb=self._inbox.put)
        asking = asyncio.create_task(self._ask_until_ended())
        try:
            while True:
                missing = self._outputs.missing(self._last_output())
                if self._end and not missing:
                    self._outputs.finish()
                while self._outputs.ready:
                    yield self._outputs.ready.popleft()
                if self._end and not missing:
                    break
                if missing:
                    await self._fetch(missing)
                await self._hear(FETCH_PAUSE_S if missing else None)
        finally:
            asking.cancel()
            await events.unsubscribe()
        self.outcome = self._end["outcome"]

    async def _ask_until_ended(self) -> None:
        """Sends the request again and again; answers go to the inbox."""
        wait = RESEND_FIRST_S
        while True:
            try:
                accepted = await self._client.ask(f"kernel.{self._kernel}.shell", self._frame, wait)
                await self._inbox.put(accepted)
                wait = RESEND_EVERY_S
                await asyncio.sleep(wait)
            except Fault as fault:
                if fault.code not in PASSING:
                    return await self._inbox.put(fault)
                await asyncio.sleep(wait / 4)
            except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                await asyncio.sleep(wait / 4)
            wait = min(2 * wait, RESEND_EVERY_S)

    async def _hear(self, timeout_s: float | None) -> None:
        """Waits for the next thing to arrive, and takes in whatever has."""
        try:
            self._take(await asyncio.wait_for(self._inbox.get(), timeout_s))
        except asyncio.TimeoutError:
            return
        while not self._inbox.empty():
            self._take(self._inbox.get_nowait())

    def _take(self, heard: Any) -> None:
        if isinstance(heard, Fault):
            raise heard
        if isinstance(heard, dict):
            self._on_accepted(heard)
        elif heard.subject.endswith(".ended"):
            self._on_ended(json.loads(heard.data))
        elif heard.subject.endswith(".emitted") and "Cb-Cursor" in (heard.headers or {}):
            term, number, cell = map(int, heard.headers["Cb-Cursor"].split("."))
            self._outputs.on_emitted(Cursor(term, number), cell, Message.decode(heard.data))

    def _on_accepted(self, accepted: dict[str, Any]) -> None:
        self._outputs.cell = accepted["seq"]
        if accepted["state"] != "pending":
            self._on_ended(accepted["state"]["ended"])

    def _on_ended(self, end: dict[str, Any]) -> None:
        if end["msg_id"] == self.msg_id:
            self._outputs.cell, self._end = end["seq"], end

    def _last_output(self) -> Cursor | None:
        last = self._end and self._end["last_output"]
        return Cursor(**last) if last else None

    async def _fetch(self, since: Cursor) -> None:
        """Reads the log from a place on."""
        more = True
        while more:
            payload = json.dumps({"since": since._asdict()}).encode()
            try:
                page = await self._client.ask(f"kernel.{self._kernel}.outputs", payload, RESEND_EVERY_S)
            except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                return
            except Fault as fault:
                if fault.code in PASSING:
                    return
                raise
            more = page["more"]
            self.is_whole &= not page["gap"]
            for output in page["outputs"]:
                place = output["place"]
                since = Cursor(**place["cursor"])
                self._outputs.on_fetched(since, place["cell"], Message.decode(base64.b64decode(output["message"])))
            if page["gap"] and not page["outputs"] and self._end:
                self._end["last_output"] = None  # gone for good


class Outputs:
    """Which outputs of a cell are ready to be shown, and which are missing."""

    def __init__(self, msg_id: str) -> None:
        self.cell: int | None = None
        self.ready: deque[Message] = deque()
        self._msg_id = msg_id
        # Everything up to here is ready, was shown, or is another cell's.
        self._mark: Cursor | None = None
        self._held: dict[Cursor, tuple[int, Message]] = {}

    def on_emitted(self, cursor: Cursor, cell: int, message: Message) -> None:
        """An output was announced: perhaps late, twice, or without the ones before it."""
        if self._mark and cursor <= self._mark:
            return
        self._held[cursor] = (cell, message)
        if message.type == "execute_input" and self._is_ours(cell, message):
            self._pass(cursor)  # a cell's first output
        while self._mark and (after := self._mark._replace(number=self._mark.number + 1)) in self._held:
            self._pass(after)

    def on_fetched(self, cursor: Cursor, cell: int, message: Message) -> None:
        """The log has this output next."""
        if not self._mark or cursor > self._mark:
            self._held[cursor] = (cell, message)
            self._pass(cursor)

    def missing(self, last: Cursor | None) -> Cursor | None:
        """From where the log has to be read: for all up to `last`, or for what outputs wait for."""
        if last and (not self._mark or self._mark < last):
            return self._mark or Cursor(last.term, 0)
        waiting = [cursor for cursor, held in self._held.items() if self._is_ours(*held)]
        return (self._mark or Cursor(min(waiting).term, 0)) if waiting else None

    def finish(self) -> None:
        """The log has nothing more."""
        for cursor in sorted(self._held):
            self._pass(cursor)

    def _pass(self, cursor: Cursor) -> None:
        """Everything up to an output is known; what was held before it is not needed."""
        cell, message = self._held[cursor]
        self._mark = cursor
        self._held = {held: value for held, value in self._held.items() if held > cursor}
        if self._is_ours(cell, message):
            self.ready.append(message)

    def _is_ours(self, cell: int, message: Message) -> bool:
        return cell == self.cell or message.parent_header.get("msg_id") == self._msg_id
