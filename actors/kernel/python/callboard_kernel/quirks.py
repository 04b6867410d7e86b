"""Types whose own pickling refuses, or changes the object, for no reason that concerns a session."""

from __future__ import annotations

import io
import itertools
import os
import struct
import weakref
from typing import Any

import zmq

from .refusal import Refused


def reduce_struct(value: struct.Struct) -> tuple[Any, ...]:
    return struct.Struct, (value.format,)


def reduce_callback_registry(registry: Any) -> tuple[Any, ...]:
    """matplotlib's registry counts up each time it is pickled; here the counter is put back."""
    state = registry.__getstate__()
    next_id = state.get("_cid_gen")
    if isinstance(next_id, int):
        registry._cid_gen = itertools.count(next_id)
    return type(registry).__new__, (type(registry),), state


def reduce_buffer(buffer: io.BytesIO | io.StringIO) -> Any:
    """A closed in-memory file has no content left, but `with` leaves its name behind."""
    return (closed_buffer, (type(buffer),)) if buffer.closed else NotImplemented


def closed_buffer(kind: type) -> Any:
    buffer = kind()
    buffer.close()
    return buffer


def reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    """A view of bytes, as ipywidgets keeps images, is a value; one of anything else is refused."""
    if type(view.obj) is bytes or isinstance(view.obj, zmq.Frame):
        return make_memoryview, (view.tobytes(), view.format, view.shape)
    raise Refused("a memoryview points into this process's memory (bytes(view) makes a copy that can move)")


def make_memoryview(data: bytes, form: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(data)
    return view if (form, shape) == (view.format, view.shape) else view.cast(form, shape)


def reduce_file(file: Any) -> tuple[Any, ...]:
    """A closed file stays a closed file; an open one is refused."""
    name, mode = getattr(file, "name", None), getattr(file, "mode", None)
    if file.closed and isinstance(name, (str, bytes, int)) and isinstance(mode, str):
        return closed_file, (name, mode, getattr(file, "encoding", None))
    raise Refused("a file handle is open on this machine only (keep its path and open it again)")


def closed_file(name: Any, mode: str, encoding: str | None) -> Any:
    """A closed file of that name, without touching the name's file."""

    def null(_path: Any, _flags: int) -> int:
        return os.open(os.devnull, os.O_RDWR)

    mode = mode.replace("x", "w").replace("a", "w")
    name = f"<descriptor {name}>" if isinstance(name, int) else name
    file = open(name, mode, encoding=None if "b" in mode else encoding, opener=null)
    file.close()
    return file


def reduce_generator(generator: Any) -> Any:
    """A generator that has ended has no code left to suspend, but its name stays behind."""
    if generator.gi_frame is None:
        return ended_generator, (generator.__name__, generator.__qualname__)
    return NotImplemented


def ended_generator(name: str, qualname: str) -> Any:
    generator = (item for item in ())
    generator.close()
    generator.__name__, generator.__qualname__ = name, qualname
    return generator


def reduce_weak(reference: Any) -> Any:
    """A weak reference or proxy whose object is gone points at nothing already, as one that tqdm leaves."""
    kind = type(reference)
    try:
        is_dead = reference() is None if kind is weakref.ReferenceType else reference.__class__ is None
    except ReferenceError:
        is_dead = True
    return (dead_weak, (kind is weakref.ReferenceType,)) if is_dead else NotImplemented


def dead_weak(is_reference: bool) -> Any:
    return (weakref.ref if is_reference else weakref.proxy)(set())


def reduce_environ(_environ: Any) -> tuple[Any, ...]:
    return get_environ, ()


def get_environ() -> Any:
    return os.environ
