"""Cheap proof that a value cannot have changed: the objects it consists of, compared by identity.

Only values whose every part is immutable have a fingerprint; everything else is pickled and hashed
at each capture, so that a change in place is never missed.
"""

from __future__ import annotations

import re
import types
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from operator import is_
from pathlib import PosixPath, PurePosixPath
from typing import Any

from .functions import is_importable

_IMMUTABLE = frozenset(
    {
        int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range,
        date, timedelta, Decimal, Fraction, PosixPath, PurePosixPath, re.Pattern, types.CodeType,
        types.WrapperDescriptorType, types.MethodDescriptorType,
        types.GetSetDescriptorType, types.MemberDescriptorType, types.ModuleType,
    }
)  # fmt: skip
# Longer tuples are cheaper to pickle than to look through one by one.
_TUPLE_LENGTH_MAX = 64
_ENOUGH_PARTS = 4096

Fingerprint = tuple[Any, ...]


def fingerprint(value: Any) -> Fingerprint | None:
    """The identities that `value` is made of, or None if it must be pickled to be compared."""
    if type(value) in _IMMUTABLE:
        return (value,)
    parts: list[Any] = []
    return tuple(parts) if _collect(value, parts) else None


def same(old: Fingerprint | None, new: Fingerprint | None) -> bool:
    """Whether both are fingerprints of the same, unchanged thing."""
    return old is not None and new is not None and len(old) == len(new) and all(map(is_, old, new))


def _collect(value: Any, parts: list[Any]) -> bool:
    kind = type(value)
    if kind in _IMMUTABLE:
        parts.append(value)
        return True
    if len(parts) > _ENOUGH_PARTS:
        return False
    if kind is tuple:
        parts.append(value)
        return len(value) <= _TUPLE_LENGTH_MAX and all(_collect(item, parts) for item in value)
    if kind is types.FunctionType:
        return _collect_function(value, parts)
    if kind is type:
        return _collect_class(value, parts)
    if kind is types.BuiltinFunctionType:
        # `[].append` is one of these too, and holds its list.
        parts.append(value)
        return value.__self__ is None or type(value.__self__) is types.ModuleType
    if kind is property:
        parts.append(value)
        return all(_collect(part, parts) for part in (value.fget, value.fset, value.fdel, value.__doc__))
    if kind is staticmethod or kind is classmethod:
        parts.append(value)
        return _collect(value.__func__, parts)
    return False


def _collect_function(func: types.FunctionType, parts: list[Any]) -> bool:
    parts.append(func)
    if is_importable(func):
        return True
    if func.__dict__:
        return False
    parts += (func.__code__, func.__name__, func.__qualname__, func.__doc__, func.__module__)
    for names in (func.__kwdefaults__, _annotations(func)):
        if names:
            parts.append(names)
            parts += names
            if not all(_collect(part, parts) for part in names.values()):
                return False
        parts.append(None)
    if not _collect(func.__defaults__, parts):
        return False
    for cell in func.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            return False
        parts.append(cell)
        if not _collect(content, parts):
            return False
    return True


def _annotations(func: types.FunctionType) -> dict[str, Any]:
    try:
        return func.__annotations__
    except Exception:  # lazily evaluated annotations may name what is not there yet
        return {}


def _collect_class(cls: type, parts: list[Any]) -> bool:
    if any(part is cls for part in parts):
        return True
    parts.append(cls)
    if is_importable(cls):
        return True
    parts += cls.__bases__
    for name, value in cls.__dict__.items():
        if name in ("__dict__", "__weakref__", "__slotnames__"):
            continue
        parts.append(name)
        if not _collect(value, parts):
            return False
    return True
