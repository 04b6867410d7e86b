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
from dataclasses import dataclass, field
from typing import Any, Callable

import cloudpickle

from . import live, reducers
from .buffers import WATCHED_BYTES_MIN, address_of
from .digests import DIGEST_BYTES, hasher
from .placeholder import missing_class
from .refusal import BudgetExceeded, Refused
from .sharing import NotThere, Reach

# Buffers below this many bytes stay inside the pickle: a message part costs more than the copy.
OUT_OF_BAND_BYTES_MIN = 4096


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
        self.frames: list[bytes] = [live.PREAMBLE]
        self.length = len(live.PREAMBLE)
        self.buffers: list[memoryview] = []
        self.buffer_bytes = 0
        self.large: set[tuple[int, int]] = set()
        # While the pickler's memo is asked, where the answers go.
        self.answers: list[bytes] | None = None
        self._hasher = hasher(live.PREAMBLE)

    def write(self, data: Any) -> None:
        if self.answers is not None:
            self.answers.append(bytes(data))
            return
        if type(data) is not bytes:
            # A large bytearray is handed over as it is, and may change before it is sent.
            data = bytes(data)
        self.frames.append(data)
        self.length += len(data)
        self._hasher.update(data)
        self.context.check()
        self.context.check_size(self.length + self.buffer_bytes)

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
    def frames(self) -> list[bytes]:
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


class StatePickler(cloudpickle.Pickler):
    """cloudpickle, tied to the live session; refuses handles."""

    def __init__(self, context: Pass, own: set[int]) -> None:
        self.sink = sink = Sink(context)
        # Not a method: a cycle through the pickler would keep the user's objects until the next
        # garbage collection.
        super().__init__(sink, protocol=5, buffer_callback=functools.partial(Sink.take_buffer, sink))
        self.context = context
        self.own = own
        self.classes: set[str] = set()
        self.by_value: set[int] = set()
        self.memo = live.seed_memo()
        self.is_asked = False

    def reducer_override(self, obj: Any) -> Any:
        if self.is_asked:
            raise NotThere
        kind = type(obj)
        reducer = _reducers.get(kind)
        if reducer is None:
            reducer = _reducers[kind] = reducers.choose(kind)
        return reducer(self, obj)


_reducers: dict[type, reducers.Reducer] = {}

# What needs neither reducers nor a look at what it shares.
PLAIN_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})


def dump(values: dict[str, Any], context: Pass) -> Pickled:
    """Pickles `values` as one dict. Raises whatever the values' own code raises."""
    if len(values) == 1 and type(next(iter(values.values()))) in PLAIN_TYPES:
        sink = Sink(context)
        sink.write(pickle.dumps(values, 5))
        return Pickled(sink, set())
    own = {id(value) for value in values.values() if isinstance(value, type)}
    pickler = StatePickler(context, own)
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
    names = StateUnpickler(io.BytesIO(stream), buffers=buffers).load()
    return dict(names)
