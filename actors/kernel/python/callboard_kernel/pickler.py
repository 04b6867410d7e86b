"""Bytes for a set of names, and names from bytes.

A pickle is one dict {name: value} in protocol 5, prefixed by the live seeds. Beside the bytes it
yields what grouping needs: the mutable objects it reached, and the classes it named instead of
containing.
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
import re
import sys
import time
import types
from dataclasses import dataclass, field
from datetime import date, time as day_time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Callable

import cloudpickle

from . import arrays, classes, functions, live, quirks
from .placeholder import Unavailable, missing_class
from .refusal import BudgetExceeded, Refused

# Buffers below this many bytes stay inside the pickle: a message part costs more than the copy.
OUT_OF_BAND_BYTES_MIN = 4096

# Instances of these are values, not places: sharing one does not tie two names together.
_VALUE_TYPES: tuple[type, ...] = (
    str, bytes, int, float, complex, bool, tuple, frozenset, range, slice, type(None), types.CodeType,
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.ModuleType, types.GenericAlias,
    date, day_time, timedelta, timezone, Decimal, Fraction, PurePath, re.Pattern, enum.Enum,
    pickle.PickleBuffer, Unavailable,
)  # fmt: skip
_VALUE_TYPE_NAMES = {"numpy.dtype", "numpy.ufunc", "numpy.generic", "zoneinfo.ZoneInfo", "uuid.UUID"}
_joins_by_type: dict[type, bool] = {}


def _joins(kind: type) -> bool:
    """Whether two names that both reach an instance of this type must travel together."""
    known = _joins_by_type.get(kind)
    if known is None:
        names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
        known = not (issubclass(kind, _VALUE_TYPES) or names & _VALUE_TYPE_NAMES)
        _joins_by_type[kind] = known
    return known


@dataclass
class Pass:
    """What is fixed during one capture: class anchors, deadline, and who to tell of slowness."""

    # id of a session class -> the name that other groups refer to it by
    anchors: dict[int, str] = field(default_factory=dict)
    deadline: float = float("inf")
    tick: Callable[[float], None] | None = None

    def check(self) -> None:
        now = time.monotonic()
        if self.tick is not None:
            self.tick(now)
        if now > self.deadline:
            raise BudgetExceeded


@dataclass
class Pickled:
    """The bytes of some names and what they reached."""

    stream: bytes
    buffers: list[memoryview]
    # id of a mutable object -> its place in the pickle
    reached: dict[int, int]
    # names of the session classes that are referred to
    classes: set[str]
    # Keeps temporary objects alive, so that ids stay unique until grouping is done.
    keep: Any = None


class StatePickler(cloudpickle.Pickler):
    """cloudpickle, tied to the live session; refuses handles."""

    def __init__(self, file: Any, context: Pass, own: set[int]) -> None:
        self.buffers: list[memoryview] = []
        # Not a method: a cycle through the pickler would keep the user's objects until the next
        # garbage collection.
        super().__init__(file, protocol=5, buffer_callback=functools.partial(_take_buffer, self.buffers))
        self.context = context
        self.own = own
        self.classes: set[str] = set()
        self.by_value: set[int] = set()
        self.memo = live.seed_memo()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        reducer = _reducers.get(kind)
        if reducer is None:
            reducer = _reducers[kind] = _choose_reducer(kind)
        return reducer(self, obj)

    def reached(self) -> dict[int, int]:
        """Mutable objects in the memo: what another name may share."""
        by_value = self.by_value
        found = {}
        self.keep = memo = self.memo.copy()
        for key, (index, obj) in memo.items():
            kind = type(obj)
            if kind is types.FunctionType or isinstance(obj, type):
                if key in by_value:
                    found[key] = index
            elif _joins(kind) and index >= len(live.SEEDS):
                found[key] = index
        return found


def _take_buffer(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Keeps a large buffer beside the pickle; true leaves a small one inside."""
    raw = buffer.raw()
    if raw.nbytes < OUT_OF_BAND_BYTES_MIN:
        return True
    buffers.append(raw)
    return False


def _default(_pickler: StatePickler, _obj: Any) -> Any:
    return NotImplemented


def _function(pickler: StatePickler, func: Any) -> Any:
    if functions.is_importable(func):
        return NotImplemented
    pickler.by_value.add(id(func))
    return functions.reduce_function(func)


def _class(pickler: StatePickler, cls: Any) -> Any:
    if pickle_by_name(cls):
        return NotImplemented
    name = pickler.context.anchors.get(id(cls))
    if name is not None and id(cls) not in pickler.own:
        pickler.classes.add(name)
        return live.class_by_name, (name,)
    pickler.context.check()
    reduced = classes.reduce_class(cloudpickle.Pickler.reducer_override(pickler, cls))
    if reduced is not NotImplemented and len(reduced) == 6:
        pickler.by_value.add(id(cls))
    return reduced


def pickle_by_name(cls: Any) -> bool:
    """The common case of an importable class, without cloudpickle's search."""
    module = sys.modules.get(cls.__module__) if isinstance(cls.__module__, str) else None
    return (
        module is not None
        and module.__dict__ is not live.LIVE.user_ns
        and module.__dict__.get(cls.__qualname__) is cls
        and functions.is_importable(cls)
    )


def _instance(pickler: StatePickler, _obj: Any) -> Any:
    context = pickler.context
    if context.deadline != float("inf") or context.tick is not None:
        context.check()
    return NotImplemented


def _module(_pickler: StatePickler, module: Any) -> Any:
    if sys.modules.get(module.__name__) is module:
        return live.module_by_name, (module.__name__,)
    return NotImplemented


def _stream(_pickler: StatePickler, stream: Any) -> Any:
    for name in ("stdout", "stderr", "stdin"):
        if stream is getattr(sys, name):
            return live.get_stream, (name,)
    return quirks.reduce_file(stream)


def _memoryview(_pickler: StatePickler, _view: Any) -> Any:
    raise Refused("a memoryview points into this process's memory (bytes(view) makes a copy that can move)")


def _random_state(_pickler: StatePickler, state: Any) -> Any:
    return (live.numpy_global_random, ()) if state is live.numpy_global_random() else NotImplemented


def _shell(_pickler: StatePickler, shell: Any) -> Any:
    return (live.get_shell, ()) if shell is live.LIVE.shell else NotImplemented


def _kernel(_pickler: StatePickler, kernel: Any) -> Any:
    return (live.get_kernel, ()) if kernel is live.LIVE.kernel else NotImplemented


def _by(reduce: Callable[[Any], Any]) -> Callable[[StatePickler, Any], Any]:
    """A reducer that needs no pickler."""
    return lambda _pickler, obj: reduce(obj)


_reducers: dict[type, Callable[[StatePickler, Any], Any]] = {}


_EXACT: dict[str, Callable[[StatePickler, Any], Any]] = {
    "builtins.function": _function,
    "builtins.memoryview": _memoryview,
    "numpy.random.mtrand.RandomState": _random_state,
    "builtins.cell": _by(functions.reduce_cell),
    "functools._lru_cache_wrapper": _by(functions.reduce_lru_cache),
    "numpy.ndarray": _by(arrays.reduce_array),
    "_struct.Struct": _by(quirks.reduce_struct),
    "_io.BytesIO": _by(quirks.reduce_buffer),
    "_io.StringIO": _by(quirks.reduce_buffer),
    "os._Environ": _by(quirks.reduce_environ),
    "matplotlib.cbook.CallbackRegistry": _by(quirks.reduce_callback_registry),
}


def _choose_reducer(kind: type) -> Callable[[StatePickler, Any], Any]:
    """Which reducer an object of this type gets; asked once per type."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    exact = _EXACT.get(name)
    if exact is not None:
        return exact
    if issubclass(kind, type):
        return _class
    if issubclass(kind, types.ModuleType):
        return _module
    if issubclass(kind, io.IOBase) and not issubclass(kind, (io.BytesIO, io.StringIO)):
        return _stream
    if live.LIVE.shell is not None and kind is type(live.LIVE.shell):
        return _shell
    if live.LIVE.kernel is not None and kind is type(live.LIVE.kernel):
        return _kernel
    return _default if issubclass(kind, _VALUE_TYPES) else _instance


# What needs neither reducers nor a look at what it shares.
_PLAIN_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})


def dump(values: dict[str, Any], context: Pass) -> Pickled:
    """Pickles `values` as one dict. Raises whatever the values' own code raises."""
    if len(values) == 1 and type(next(iter(values.values()))) in _PLAIN_TYPES:
        return Pickled(live.PREAMBLE + pickle.dumps(values, 5), [], {}, set())
    own = {id(value) for value in values.values() if isinstance(value, type)}
    file = io.BytesIO()
    pickler = StatePickler(file, context, own)
    pickler.dump(values)
    reached = pickler.reached()
    reached.pop(id(values), None)
    stream = live.PREAMBLE + file.getvalue()
    return Pickled(stream, pickler.buffers, reached, pickler.classes, pickler.keep)


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
