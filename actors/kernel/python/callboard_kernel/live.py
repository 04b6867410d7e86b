"""The running session that pickled state refers to instead of containing it.

Owns the one `Live` record of this process. Objects named here (the user namespace, the shell, the
output cache, ...) are never written into a pickle: a pickle names them, and loading it yields those
of the process it is loaded into.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from dataclasses import dataclass, field
from typing import Any, Callable

from .placeholder import Unavailable


@dataclass
class Live:
    """What a restored object can be tied to."""

    user_ns: dict[str, Any] = field(default_factory=dict)
    shell: Any = None
    kernel: Any = None
    # Set while a restore runs: loads the group that binds a name, if it is not bound yet.
    load_name: Callable[[str], None] | None = None
    # Modules that a restore could not import: name -> reason.
    failed_modules: dict[str, str] = field(default_factory=dict)


LIVE = Live()


def attach(user_ns: dict[str, Any], shell: Any = None, kernel: Any = None) -> Live:
    """Makes this process's session the one that pickles are tied to."""
    LIVE.user_ns, LIVE.shell, LIVE.kernel = user_ns, shell, kernel
    return LIVE


def seed_user_ns() -> Any:
    return LIVE.user_ns


def seed_builtins() -> Any:
    return builtins.__dict__


def seed_outputs() -> Any:
    return LIVE.user_ns.setdefault("_oh", {})


def seed_inputs() -> Any:
    return LIVE.user_ns.setdefault("_ih", [""])


def seed_sys_path() -> Any:
    return sys.path


def seed_sys_modules() -> Any:
    return sys.modules


# Exact dicts and lists never reach a pickler's reducers, so these enter its memo beforehand; a
# pickle begins with code that puts the same ones into the reader's memo. The order is the format.
SEEDS: tuple[Callable[[], Any], ...] = (
    seed_user_ns,
    seed_builtins,
    seed_outputs,
    seed_inputs,
    seed_sys_path,
    seed_sys_modules,
)
PREAMBLE: bytes = b"\x80\x05" + b"".join(
    b"c" + __name__.encode() + b"\n" + seed.__name__.encode() + b"\n)R\x940" for seed in SEEDS
)


def seed_memo() -> dict[int, tuple[int, Any]]:
    """The pickler memo that goes with `PREAMBLE`."""
    memo = {}
    for index, seed in enumerate(SEEDS):
        obj = seed()
        memo[id(obj)] = (index, obj)
    return memo


def get_shell() -> Any:
    return LIVE.shell


def get_kernel() -> Any:
    return LIVE.kernel


def get_stream(name: str) -> Any:
    """One of `stdin`, `stdout`, `stderr` as they are in this process."""
    return getattr(sys, name)


def numpy_global_random() -> Any:
    """NumPy's legacy global generator."""
    return importlib.import_module("numpy.random").mtrand._rand


def class_by_name(name: str) -> Any:
    """The class that the user's variable `name` is bound to."""
    if name not in LIVE.user_ns and LIVE.load_name is not None:
        LIVE.load_name(name)
    return LIVE.user_ns[name]


def module_by_name(name: str) -> Any:
    """A module, or what explains why this machine cannot import it."""
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        importlib.import_module(name)
        return sys.modules[name]
    except Exception as error:  # a module's import runs arbitrary code
        reason = f"importing it failed with {type(error).__name__}: {error}"
        LIVE.failed_modules[name] = reason
        return Unavailable(name, "module", reason)


def module_globals(name: str) -> dict[str, Any]:
    """The globals of a module, for a function that was made inside it."""
    return importlib.import_module(name).__dict__
