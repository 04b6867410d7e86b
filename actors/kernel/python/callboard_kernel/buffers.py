"""The content of large buffers, as digests of chunks; unwritten memory is not read again.

Owns, per address range, the digests as of the last look and what must be compared to trust them:
the pages are watched (`dirty`), the bytes of the first and last page that the buffer shares with
others are kept. Content belongs to the range and not to a Python object: another array at the same
address with untouched pages is equal. Where pages cannot be watched, everything is hashed.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import Any, Callable

from .digests import DIGEST_BYTES, digest
from .dirty import PAGE_BYTES, Pages, Ranges, open_pages

CHUNK_BYTES_MIN = 256 << 10
# A list of the chunks of one buffer has at most this many; beyond, chunks double in length.
CHUNKS_MAX = 2048
# Below this, hashing costs less than watching.
WATCHED_BYTES_MIN = 1 << 20
# Each watched range splits its mapping, of which a process may have 65,530.
WATCHED_RANGES_MAX = 4096
# Chunks hashed between two looks at the clock: some milliseconds.
_CHUNKS_PER_CHECK = 16


def chunk_length(length: int) -> int:
    """Bytes per chunk of a buffer: a power of two, the same on both sides of the socket."""
    chunk = CHUNK_BYTES_MIN
    while length > chunk * CHUNKS_MAX:
        chunk *= 2
    return chunk


@dataclass
class Content:
    """What a buffer holds: a digest per chunk, one behind the other."""

    length: int
    chunk: int
    digests: bytes


@dataclass
class _Range:
    """A watched buffer. `start` and `end` are the pages that are wholly inside it."""

    address: int
    length: int
    chunk: int
    start: int
    end: int
    digests: bytearray | None = None
    edges: tuple[bytes, bytes] = (b"", b"")
    # Written parts that a look at an overlapping buffer reported.
    pending: Ranges = field(default_factory=list)
    overlaps: list[_Range] = field(default_factory=list)

    def edges_of(self, view: memoryview) -> tuple[bytes, bytes]:
        return bytes(view[: self.start - self.address]), bytes(view[self.end - self.address :])

    def chunks_of(self, ranges: Ranges) -> set[int]:
        """The chunks that contain a part of `ranges`."""
        found: set[int] = set()
        for start, end in ranges:
            first = max(0, start - self.address) // self.chunk
            last = (min(end, self.address + self.length) - self.address - 1) // self.chunk
            found.update(range(first, last + 1))
        return found


class Buffers:
    """Digests of buffers, remembered from one capture to the next."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Range] = {}
        self._seen: set[tuple[int, int]] = set()
        self._pages: Pages | None = None
        self._owner = -1

    def begin(self) -> None:
        """A capture begins."""
        if self._owner != os.getpid():
            # The first capture, or a fork of a process that had one: nothing is watched here.
            self._owner = os.getpid()
            if self._pages is not None:
                self._pages.close()
            self._pages = open_pages()
            self._known.clear()
        self._seen.clear()

    def end(self) -> None:
        """A capture ended: what it did not look at is forgotten."""
        for key in self._known.keys() - self._seen:
            self._drop(self._known.pop(key))

    def content(self, view: memoryview, check: Callable[[], None]) -> Content:
        """The digests of a buffer. `check` raises when there is no time to go on."""
        length = view.nbytes
        chunk = chunk_length(length)
        if length < WATCHED_BYTES_MIN or self._pages is None:
            return Content(length, chunk, bytes(_hash(view, chunk, None, None, check)))
        key = (address_of(view), length)
        # Until the end, so that an interruption leaves nothing that was looked at but not read.
        known = self._known.pop(key, None) or self._watch(*key, chunk)
        if known is None:
            return Content(length, chunk, bytes(_hash(view, chunk, None, None, check)))
        changed = self._look(known, view)
        try:
            known.edges = known.edges_of(view)
            known.digests = _hash(view, chunk, known.digests, changed, check)
        except BaseException:
            self._drop(known)
            raise
        self._known[key] = known
        self._seen.add(key)
        return Content(length, chunk, bytes(known.digests))

    def written_since(self, view: memoryview) -> set[int]:
        """Chunks that were written after `content` looked, for what was sent meanwhile."""
        known = self._known.get((address_of(view), view.nbytes)) if self._pages else None
        if known is None or self._pages is None:
            return set()
        return known.chunks_of(self._pages.look(known.start, known.end, protect=False) or [])

    def _watch(self, address: int, length: int, chunk: int) -> _Range | None:
        start = -(-address // PAGE_BYTES) * PAGE_BYTES
        end = (address + length) // PAGE_BYTES * PAGE_BYTES
        if len(self._known) >= WATCHED_RANGES_MAX or self._pages is None or not self._pages.watch(start, end):
            return None
        made = _Range(address, length, chunk, start, end)
        for other in self._known.values():
            if other.start < end and start < other.end:
                other.overlaps.append(made)
                made.overlaps.append(other)
        return made

    def _look(self, known: _Range, view: memoryview) -> set[int] | None:
        """The chunks to be read again; None for all."""
        assert self._pages is not None
        ranges = self._pages.look(known.start, known.end)
        if ranges is None:
            # Its memory was given back and is another's now.
            self._pages.watch(known.start, known.end)
            ranges = self._pages.look(known.start, known.end)
            known.digests = None
        if ranges is None or known.digests is None:
            ranges = [(known.start, known.end)]
        for other in known.overlaps:
            other.pending += ranges
        if known.digests is None:
            known.pending.clear()
            return None
        changed = known.chunks_of(ranges + known.pending)
        known.pending.clear()
        head, tail = known.edges_of(view)
        if head != known.edges[0]:
            changed.add(0)
        if tail != known.edges[1]:
            changed.update(known.chunks_of([(known.end, known.address + known.length)]))
        return changed

    def _drop(self, known: _Range) -> None:
        if self._pages is not None:
            self._pages.forget(known.start, known.end)
        for other in known.overlaps:
            # Its pages are partly unwatched now.
            other.overlaps.remove(known)
            other.pending.append((other.start, other.end))


def _hash(
    view: memoryview,
    chunk: int,
    digests: bytearray | None,
    changed: set[int] | None,
    check: Callable[[], None],
) -> bytearray:
    """The digests with those of the changed chunks (None: of all) computed anew."""
    count = -(-view.nbytes // chunk)
    if digests is None:
        digests, changed = bytearray(count * DIGEST_BYTES), None
    for number, index in enumerate(range(count) if changed is None else sorted(changed)):
        if number % _CHUNKS_PER_CHECK == 0 and number:
            check()
        place = index * DIGEST_BYTES
        digests[place : place + DIGEST_BYTES] = digest(view[index * chunk : (index + 1) * chunk])
    return digests


class _BufferInfo(ctypes.Structure):
    """CPython's `Py_buffer`."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


def address_of(view: Any) -> int:
    """Where a contiguous buffer begins."""
    info = _BufferInfo()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(info), 0)
    try:
        return info.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(info))
