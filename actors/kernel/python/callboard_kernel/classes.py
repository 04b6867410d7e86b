"""Classes by value: rebuilt without running again what the user's own class machinery did once.

`__init_subclass__` and metaclass constructors of the session ran when the class was defined, and
what they changed is part of the captured state. Running them again would repeat side effects, miss
keyword arguments, and need globals that are not restored yet.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any, Iterator

from cloudpickle.cloudpickle import _lookup_class_or_track, _make_skeleton_class

from .functions import is_importable


def reduce_class(reduced: Any) -> Any:
    """Replaces the constructor in cloudpickle's reduction of a class.

    Also drops `__slotnames__`, a cache that pickling the first instance leaves on its class.
    """
    if isinstance(reduced, tuple) and len(reduced) == 6:
        reduced[2][0].pop("__slotnames__", None)
    if isinstance(reduced, tuple) and reduced[0] is _make_skeleton_class:
        return (make_class, *reduced[1:])
    return reduced


def make_class(
    metaclass: Any, name: str, bases: tuple[Any, ...], attributes: dict[str, Any], tracker_id: str, _extra: Any
) -> type:
    """An empty class; its attributes follow when it is in the reader's memo."""
    attributes = {sys.intern(key): value for key, value in attributes.items()}
    with _quiet_bases(bases):
        if is_importable(metaclass):
            skeleton = types.new_class(name, bases, {"metaclass": metaclass}, lambda ns: ns.update(attributes))
        else:
            skeleton = _without_own_metaclass_code(metaclass, name, bases, attributes)
    return _lookup_class_or_track(tracker_id, skeleton)


def _without_own_metaclass_code(
    metaclass: Any, name: str, bases: tuple[Any, ...], attributes: dict[str, Any]
) -> type:
    resolved = types.resolve_bases(bases)
    if resolved is not bases:
        attributes = {**attributes, "__orig_bases__": bases}
    builder = next(kind for kind in metaclass.__mro__ if is_importable(kind))
    made: type = builder.__new__(metaclass, name, resolved, attributes)
    return made


@contextlib.contextmanager
def _quiet_bases(bases: tuple[Any, ...]) -> Iterator[None]:
    """Takes `__init_subclass__` away from the session's own classes for a moment."""
    hushed: dict[type, Any] = {}
    for base in bases:
        for kind in getattr(base, "__mro__", ()):
            if "__init_subclass__" in vars(kind) and not is_importable(kind):
                hushed[kind] = vars(kind)["__init_subclass__"]
    try:
        for kind in hushed:
            type.__setattr__(kind, "__init_subclass__", classmethod(_no_init_subclass))
        yield
    finally:
        for kind, original in hushed.items():
            type.__setattr__(kind, "__init_subclass__", original)


def _no_init_subclass(_cls: type, **_kwargs: Any) -> None:
    """Stands in while a class is rebuilt."""
