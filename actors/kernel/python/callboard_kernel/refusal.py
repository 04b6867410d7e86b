"""Why a value cannot be carried to another machine, in a sentence for the person who made it."""

from __future__ import annotations

import pickle
import re
from typing import Any


class Refused(pickle.PicklingError):
    """A value that is refused on purpose; the message is the sentence to show."""


class BudgetExceeded(BaseException):
    """Capture ran out of its time budget. Not an Exception, which the user's code may swallow."""


class Excluded(Exception):
    """The user asked that a name be left out."""


class CaptureInterrupted(BaseException):
    """The user interrupted a long save; only the value being pickled is given up."""


# What the pickler's "cannot pickle 'X' object" names, in words.
_WORDS = {
    "generator": "a generator is suspended code, and Python cannot write that down",
    "coroutine": "a coroutine is suspended code, and Python cannot write that down",
    "async_generator": "an asynchronous generator is suspended code, and Python cannot write that down",
    "frame": "a stack frame belongs to running code",
    "traceback": "a traceback points into stack frames that exist only in this process",
    "socket": "a socket is an open connection of this process",
    "_thread.lock": "it holds a thread lock, which belongs to this process",
    "_thread.RLock": "it holds a thread lock, which belongs to this process",
    "_thread._local": "it holds thread-local data, which belongs to this process",
    "_thread._ThreadHandle": "a thread belongs to this process",
    "_thread._localdummy": "it holds thread-local data, which belongs to this process",
    "weakref": "it holds a weak reference, which would point at nothing after the move",
    "weakref.ReferenceType": "it holds a weak reference, which would point at nothing after the move",
    "weakref.ProxyType": "it holds a weak reference, which would point at nothing after the move",
    "sqlite3.Connection": "a database connection is open in this process only",
    "sqlite3.Cursor": "a database cursor is open in this process only",
    "select.epoll": "it waits on handles of this process",
    "mmap.mmap": "a memory map is a mapping of this process",
    "_asyncio.Task": "an asyncio task is running code",
    "_asyncio.Future": "an asyncio future belongs to this process's event loop",
}
_CANNOT = re.compile(r"cannot pickle '?([\w.]+)'? object|cannot pickle ([\w.]+) objects?")


_CHANGED = re.compile(r"changed size during iteration|mutated during iteration|keys changed during")


def describe(error: BaseException) -> str:
    """One clause that says why, without a full stop."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, BudgetExceeded):
        return "time budget: saving the state took longer than the time allowed for it"
    if isinstance(error, CaptureInterrupted):
        return "saving it was interrupted"
    if isinstance(error, Excluded):
        return "excluded by you"
    if is_change_meanwhile(error):
        return "it changed while it was being saved, twice: another thread writes to it"
    text = str(error)
    match = _CANNOT.search(text)
    if match:
        kind = match.group(1) or match.group(2)
        return _WORDS.get(kind, f"it holds an object of type {kind}, which Python cannot write down")
    if isinstance(error, RecursionError) or "recursion" in text.lower():
        return "it is nested too deeply to be written down"
    summary = text.splitlines()[0][:300] if text else "no further message"
    return f"writing it down failed with {type(error).__name__}: {summary}"


def is_change_meanwhile(error: BaseException) -> bool:
    """Whether a container was changed by another thread while the pickler walked it."""
    return isinstance(error, RuntimeError) and bool(_CHANGED.search(str(error)))


def type_name(value: Any) -> str:
    """The type as a user would write it."""
    kind = type(value)
    module = getattr(kind, "__module__", "")
    if module in ("builtins", "__main__", "_thread") or not isinstance(module, str):
        return kind.__qualname__
    return f"{module}.{kind.__qualname__}"


def notice(name: str, kind: str, reason: str) -> str:
    """The line that the user sees once for each (name, type)."""
    return (
        f"callboard: {name!r} ({kind}) cannot be carried to another machine: {reason}; "
        "it stays usable here until this machine is lost"
    )
