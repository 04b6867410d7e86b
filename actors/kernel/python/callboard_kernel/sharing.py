"""What the pickling of one name put in its memo: the objects that another name may share.

Copying a memo of millions of objects costs several times the pickling itself. So the memo of the
largest name is not copied: its pickler is asked for the few objects that other names reached. An
object that a pickler knows is pickled as a reference to its place, and only that is looked at.
"""

from __future__ import annotations

import enum
import pickle
import re
import types
from datetime import date, time as day_time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from . import live
from .placeholder import Unavailable

# Instances of these are values, not places: sharing one does not tie two names together.
VALUE_TYPES: tuple[type, ...] = (
    str, bytes, int, float, complex, bool, tuple, frozenset, range, slice, type(None), types.CodeType,
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.ModuleType, types.GenericAlias,
    date, day_time, timedelta, timezone, Decimal, Fraction, PurePath, re.Pattern, enum.Enum,
    pickle.PickleBuffer, Unavailable,
)  # fmt: skip
_VALUE_TYPE_NAMES = {"numpy.dtype", "numpy.ufunc", "numpy.generic", "zoneinfo.ZoneInfo", "uuid.UUID"}
_joins_by_type: dict[type, bool] = {}

# Pickle opcodes that refer to a place in the memo, or precede the one that does.
_FRAME, _GET, _LONG_GET = 0x95, ord("h"), ord("j")
_PROTOCOL_BYTES, _FRAME_BYTES = 2, 9


def joins(kind: type) -> bool:
    """Whether two names that both reach an instance of this type must travel together."""
    known = _joins_by_type.get(kind)
    if known is None:
        names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
        known = not (issubclass(kind, VALUE_TYPES) or names & _VALUE_TYPE_NAMES)
        _joins_by_type[kind] = known
    return known


class Reach:
    """The memo of a pickler that has done its work. Holds it, and with it the objects, alive."""

    def __init__(self, pickler: Any, root: int) -> None:
        self._pickler = pickler
        self._root = root
        self._memo: dict[int, tuple[int, Any]] | None = None

    def everything(self) -> dict[int, int]:
        """Ids of all objects that count, each with its place."""
        self._memo = memo = self._pickler.memo.copy()
        return {key: place for key, (place, obj) in memo.items() if self._counts(key, place, obj)}

    def object_at(self, key: int) -> Any:
        """An object that `everything` named."""
        assert self._memo is not None
        return self._memo[key][1]

    def among(self, objects: dict[int, Any]) -> dict[int, int]:
        """Those of `objects` (by id) that count here, each with its place. The pickler is done then."""
        found = {}
        for key, obj in objects.items():
            place = _place(self._pickler.ask(obj))
            if place is not None and self._counts(key, place, obj):
                found[key] = place
        return found

    def release(self) -> Any:
        """The pickler, with room in its memo for as many objects, and none of them in it."""
        self._pickler.rest()
        return self._pickler

    def _counts(self, key: int, place: int, obj: Any) -> bool:
        kind = type(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            return key in self._pickler.by_value
        return joins(kind) and place >= len(live.SEEDS) and key != self._root


def _place(answer: bytes) -> int | None:
    """The place that a pickle refers to, if it is nothing but a reference."""
    start = _PROTOCOL_BYTES
    if len(answer) <= start:
        return None
    if answer[start] == _FRAME:
        start += _FRAME_BYTES
    if answer[start] == _GET:
        return answer[start + 1]
    if answer[start] == _LONG_GET:
        return int.from_bytes(answer[start + 1 : start + 5], "little")
    return None
