"""Functions, closures and classes by value, tied to the live namespace.

cloudpickle gives a function a private copy of the globals it uses; here a function of the session
gets the session's own namespace, so that it sees later changes. Closure cells keep their identity:
two functions that share a variable still share it after a restore.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

from cloudpickle.cloudpickle import (
    _PICKLE_BY_VALUE_MODULES,
    _make_empty_cell,
    _should_pickle_by_reference,
)

from . import live

# Functions of libraries' classes, which stay as long as the process: the class, and the name there.
_homes: dict[Any, tuple[type, str]] = {}
_FUNCTION_SLOTS = ("__defaults__", "__kwdefaults__", "__qualname__", "__module__", "__doc__")


def is_importable(obj: Any) -> bool:
    """Whether a class or function is found again by importing its module."""
    module = sys.modules.get(obj.__module__)
    if module is not None and module.__dict__.get(obj.__qualname__) is obj and not _PICKLE_BY_VALUE_MODULES:
        return module.__dict__ is not live.LIVE.user_ns and module.__name__ != "__main__"
    return bool(_should_pickle_by_reference(obj))


def globals_spec(func: types.FunctionType) -> str | dict[str, Any]:
    """How to find a function's globals again: a module's name, or the dict itself.

    The session's namespace is in the pickler's memo, so passing the dict costs two bytes.
    """
    namespace = func.__globals__
    if namespace is live.LIVE.user_ns:
        return namespace
    name = namespace.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is not None and getattr(module, "__dict__", None) is namespace:
        return name
    return namespace


def reduce_function(func: types.FunctionType) -> tuple[Any, ...]:
    """Reduces a function that cannot be imported."""
    try:
        annotations = func.__annotations__
    except Exception:  # lazily evaluated annotations may name what is not there yet
        annotations = {}
    slots = tuple(getattr(func, slot) for slot in _FUNCTION_SLOTS)
    state = (slots, annotations or None, func.__dict__ or None)
    arguments = (func.__code__, globals_spec(func), "".join(func.__name__), func.__closure__)
    return make_function, arguments, state, None, None, set_function_state


def make_function(
    code: types.CodeType, spec: str | dict[str, Any], name: str, closure: tuple[Any, ...] | None
) -> types.FunctionType:
    """The function without what may refer back to it."""
    namespace = live.module_globals(spec) if isinstance(spec, str) else spec
    return types.FunctionType(code, namespace, name, None, closure)


def reduce_method(method: types.MethodType) -> Any:
    """Reduces a bound method of a library's class whose function is not found by its own name.

    A decorator has replaced it; by value it would be a copy, and tie all objects that hold it together.
    """
    func = method.__func__
    if not isinstance(func, types.FunctionType):
        return NotImplemented
    if func not in _homes:
        if is_importable(func):
            return NotImplemented
        for base in type(method.__self__).__mro__:
            for name, value in vars(base).items():
                if value is func and is_importable(base):
                    _homes[func] = base, name
    base, name = _homes.get(func, (object, ""))
    return (make_method, (method.__self__, base, name)) if vars(base).get(name) is func else NotImplemented


def make_method(obj: Any, kind: type, name: str) -> types.MethodType:
    return types.MethodType(vars(kind)[name], obj)


def set_function_state(func: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Second phase of a function: defaults, names, annotations, attributes."""
    slots, annotations, attributes = state
    for slot, value in zip(_FUNCTION_SLOTS, slots):
        setattr(func, slot, value)
    if annotations:
        func.__annotations__ = annotations
    if attributes:
        func.__dict__.update(attributes)


def reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    """Reduces a closure cell in two phases, so that it may contain its own function."""
    try:
        state = (cell.cell_contents,)
    except ValueError:
        return _make_empty_cell, ()
    return _make_empty_cell, (), state, None, None, set_cell


def set_cell(cell: types.CellType, state: tuple[Any]) -> None:
    cell.cell_contents = state[0]


def reduce_lru_cache(cached: Any) -> Any:
    """Reduces an `lru_cache`d function: the function and the settings, not what is cached."""
    module = sys.modules.get(getattr(cached, "__module__", None) or "")
    if module is not None and module.__name__ != "__main__":
        found: Any = module
        for part in cached.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is cached:
            return NotImplemented
    settings = cached.cache_parameters()
    arguments = (settings["maxsize"], settings["typed"])
    return make_lru_cache, (cached.__wrapped__, *arguments), cached.__dict__, None, None, set_attributes


def make_lru_cache(func: Any, size_max: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=size_max, typed=typed)(func)


def set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    obj.__dict__.update(attributes)
