"""Bytes for a set of names, and names from bytes.

A pickle is one dict {name: value} in protocol 5, prefixed by the live seeds. Beside the bytes it
yields what grouping needs: the mutable objects it reached, and the classes it named instead of
containing.
"""

from __future__ import annotations

import functools
import io
import pickle
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable

import cloudpickle

from . import live, reducers
from .buffers import WATCHED_BYTES_MIN, address_of
from .digests import DIGEST_BYTES, hasher
from .placeholder import missing_class
from .refusal import BudgetExceeded, Refused
from .sharing import Reach

# Buffers below this many bytes stay inside the pickle: a message part costs more than the copy.
OUT_OF_BAND_BYTES_MIN = 4096


# Opcode and version; opcode and length of a frame; opcode and length of a large string at most.
_PROTOCOL_BYTES, _FRAME_BYTES, _HEADER_BYTES_MAX = 2, 9, 9
# Without frames the reader asks for each value by itself; it looks ahead if its file can.
_LOOK_AHEAD_BYTES = 256 << 10


@dataclass
class Pass:
    """What is fixed during one capture: class anchors, limits, and who to tell of slowness."""

    # id of a session class -> the name that other groups refer to it by
    anchors: dict[int, str] = field(default_factory=dict)
    deadline: float = float("inf")
    tick: Callable[[float], None] | None = None
    # Bytes that a session's state may have, and those that the names before this one have taken.
    bytes_max: float = float("inf")
    bytes_used: int = 0
    # The large buffers among them: those of an array and of its views are the same.
    buffers: set[tuple[int, int]] = field(default_factory=set)
    # What stands for the storages of tensors.
    holders: dict[Any, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises BudgetExceeded if the time is up."""
        now = time.monotonic()
        if self.tick is not None:
            self.tick(now)
        if now > self.deadline:
            raise BudgetExceeded

    def check_size(self, size: int) -> None:
        """Raises Refused if a value of this many bytes does not fit beside the others."""
        if self.bytes_used + size > self.bytes_max:
            raise Refused(
                f"it needs {_in_mib(size)} or more beside the {_in_mib(self.bytes_used)} of the other names, "
                f"and {_in_mib(self.bytes_max)} is the limit for a session's state (state_mib_max)"
            )

    def take(self, sink: Sink) -> None:
        """Counts what a name needs: it was accepted."""
        self.bytes_used += sink.length + sink.buffer_bytes
        self.buffers |= sink.large


def _in_mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


class Sink:
    """The file that a pickler writes to: keeps the frames as they come, and hashes them.

    The pickler hands over a frame every 64 KiB, also from inside one large list of plain values, so
    this is where its time and its size are looked at.
    """

    def __init__(self, context: Pass) -> None:
        self.context = context
        self.frames: list[bytes | memoryview] = [live.PREAMBLE]
        self.length = len(live.PREAMBLE)
        self.buffers: list[memoryview] = []
        self.buffer_bytes = 0
        self.large: set[tuple[int, int]] = set()
        # While the pickler's memo is asked, where the answers go.
        self.answers: list[bytes] | None = None
        self._hasher = hasher(live.PREAMBLE)
        # The end of what was written last.
        self._end = b""

    def write(self, data: Any) -> None:
        if self.answers is not None:
            self.answers.append(bytes(data))
            return
        if type(data) is not bytes:
            # A large bytearray is handed over as it is, and may change before it is sent.
            data = bytes(data)
        frame = data if self._is_payload(data) else _unframed(data)
        self._end = data[-_HEADER_BYTES_MAX:]
        self.frames.append(frame)
        self.length += len(frame)
        self._hasher.update(frame)
        self.context.check()
        self.context.check_size(self.length + self.buffer_bytes)

    def _is_payload(self, data: bytes) -> bool:
        """Whether this is a large string of the user's, written as it is behind a header with its length.

        Perhaps also when it is not: then its frame stays in the pickle.
        """
        end, length = self._end, len(data)
        return end[-4:] == length.to_bytes(8, "little")[:4] or end[-8:] == length.to_bytes(8, "little")

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Keeps a large buffer beside the pickle; true leaves a small one inside."""
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES_MIN:
            return True
        if not self._is_counted(raw):
            self.buffer_bytes += raw.nbytes
            self.context.check_size(self.length + self.buffer_bytes)
        self.buffers.append(raw)
        return False

    def _is_counted(self, raw: memoryview) -> bool:
        if raw.nbytes < WATCHED_BYTES_MIN:
            return False
        key = (address_of(raw), raw.nbytes)
        if key in self.context.buffers:
            return True
        self.large.add(key)
        return False

    def digest(self) -> bytes:
        return bytes(self._hasher.digest()[:DIGEST_BYTES])


def _unframed(data: bytes) -> bytes | memoryview:
    """What the pickler wrote, without the frame around it.

    A frame has about 64 KiB, so one insertion would move the edges of all that follow, and leave no
    chunk of the stream as it was. Readers need no frames.
    """
    start = _PROTOCOL_BYTES if data[:1] == pickle.PROTO else 0
    if data[start : start + 1] != pickle.FRAME:
        return data
    content = memoryview(data)[start + _FRAME_BYTES :]
    return data[:start] + bytes(content) if start else content


@dataclass
class Pickled:
    """The bytes of some names and what they reached."""

    sink: Sink
    # names of the session classes that are referred to
    classes: set[str]
    # None if nothing that could be shared was reached.
    reach: Reach | None = None

    def __post_init__(self) -> None:
        self.digest = self.sink.digest()

    @property
    def frames(self) -> list[bytes | memoryview]:
        return self.sink.frames

    @property
    def buffers(self) -> list[memoryview]:
        return self.sink.buffers

    @property
    def length(self) -> int:
        """Bytes of the stream."""
        return self.sink.length

    @property
    def stream(self) -> bytes:
        """The frames as one."""
        return b"".join(self.sink.frames)


class _NotThere(Exception):
    """The object that a pickler was asked for is not in its memo."""


class StatePickler(cloudpickle.Pickler):
    """cloudpickle, tied to the live session; refuses handles."""

    def __init__(self, context: Pass, own: set[int]) -> None:
        self.sink = sink = Sink(context)
        # Not a method: a cycle through the pickler would keep the user's objects until the next
        # garbage collection.
        super().__init__(sink, protocol=5, buffer_callback=functools.partial(Sink.take_buffer, sink))
        self.memo = live.seed_memo()
        self._begin(context, own)

    def _begin(self, context: Pass, own: set[int]) -> None:
        self.context = context
        self.own = own
        self.classes: set[str] = set()
        self.by_value: set[int] = set()
        # cloudpickle's own notes, by ids of objects that may be gone.
        self.globals_ref: dict[int, Any] = {}

    def rest(self) -> None:
        """Lets go of every object, but not of the memory of the memo."""
        self.clear_memo()
        self._begin(Pass(), set())
        self.sink.__init__(self.context)  # type: ignore[misc]

    def renew(self, context: Pass, own: set[int]) -> bool:
        """Makes a released pickler ready again, in the memory that its memo has already.

        False if it cannot be: then its memo lacks the seeds.
        """
        self._begin(context, own)
        seeds = [seed() for seed in live.SEEDS]
        if any(type(seed) not in (dict, list) for seed in seeds) or len(set(map(id, seeds))) < len(seeds):
            return False
        for seed in seeds:
            # It enters the memo before its contents, which are not let in.
            self.ask(seed)
        self.persistent_id = _nothing
        self.sink.__init__(context)  # type: ignore[misc]
        return True

    def ask(self, obj: Any) -> bytes:
        """The pickle of an object that the memo knows, which refers to its place; else of no use."""
        answers: list[bytes] = []
        self.sink.answers = answers
        is_first = True

        def refuse_contents(_obj: Any) -> None:
            nonlocal is_first
            if not is_first:
                raise _NotThere
            is_first = False

        self.persistent_id = refuse_contents
        try:
            pickle.Pickler.dump(self, obj)
        except _NotThere:
            return b""
        finally:
            self.sink.answers = None
        return b"".join(answers)

    def reducer_override(self, obj: Any) -> Any:
        if self.sink.answers is not None:
            raise _NotThere
        kind = type(obj)
        reducer = _reducers.get(kind)
        if reducer is None:
            reducer = _reducers[kind] = reducers.choose(kind)
        return reducer(self, obj)


# A `persistent_id` that knows no object, without running Python code. It cannot be taken away again.
_nothing = deque(maxlen=0).append
_reducers: dict[type, reducers.Reducer] = {}

# What needs neither reducers nor a look at what it shares.
PLAIN_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})


def dump(values: dict[str, Any], context: Pass, spare: StatePickler | None = None) -> Pickled:
    """Pickles `values` as one dict, with a released pickler if given one.

    Raises whatever the values' own code raises; a spare is of no use then.
    """
    if len(values) == 1 and type(next(iter(values.values()))) in PLAIN_TYPES:
        sink = Sink(context)
        sink.write(pickle.dumps(values, 5))
        return Pickled(sink, set())
    own = {id(value) for value in values.values() if issubclass(type(value), type)}
    pickler = spare if spare is not None and spare.renew(context, own) else StatePickler(context, own)
    pickler.dump(values)
    return Pickled(pickler.sink, pickler.classes, Reach(pickler, id(values)))


class StateUnpickler(pickle.Unpickler):
    """Loads a group; what cannot be imported becomes a placeholder that says so."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__" and "." not in name:
            return live.class_by_name(name)
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            reason = f"{module}.{name} cannot be imported here ({type(error).__name__}: {error})"
            live.LIVE.failed_modules[module] = reason
            return missing_class(module, name, reason)


def load(stream: Any, buffers: list[Any]) -> dict[str, Any]:
    """The names of one group. Runs the values' own code, which may raise anything."""
    file = io.BufferedReader(io.BytesIO(stream), _LOOK_AHEAD_BYTES)
    names = StateUnpickler(file, buffers=buffers).load()
    return dict(names)
