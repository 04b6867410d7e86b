"""Objects with traits (traitlets), with those who observe them.

traitlets pickles such an object without its observers: `link`, `observe` and widgets' callbacks would
be lost without a word. Handlers that belong to the class are there again when the object is made.
"""

from __future__ import annotations

from typing import Any

from traitlets import All, HasTraits
from traitlets.traitlets import EventHandler

_WAYS_OF_PICKLING = {
    "__getstate__": HasTraits, "__setstate__": HasTraits, "__reduce__": object, "__reduce_ex__": object,
}  # fmt: skip


def is_plain(kind: type) -> bool:
    """Whether a class with traits has no way of its own to be pickled."""
    own = any(getattr(kind, way) is not getattr(owner, way) for way, owner in _WAYS_OF_PICKLING.items())
    return not own and not hasattr(kind, "__getnewargs__") and not hasattr(kind, "__getnewargs_ex__")


def reduce_traits(obj: Any) -> tuple[Any, ...]:
    """Reduces an object of a plain class to its attributes and observers."""
    attributes = obj.__getstate__()
    del attributes["_trait_notifiers"], attributes["_trait_validators"]
    observers = [
        (None if name is All else name, None if change is All else change, handler)
        for name, by_change in obj._trait_notifiers.items()
        for change, handlers in by_change.items()
        for handler in handlers
        if not isinstance(handler, EventHandler)
    ]
    return make_traits, (type(obj),), (attributes, observers), None, None, set_traits


def reduce_progress_box(box: Any) -> tuple[Any, ...]:
    """tqdm's widget without the loop that it shows, which ends with its process; tqdm does without, too."""
    make, arguments, (attributes, observers), *rest = reduce_traits(box)
    attributes.pop("pbar", None)
    return make, arguments, (attributes, observers), *rest


def make_traits(kind: Any) -> Any:
    """An object with the class's own handlers; no constructor runs."""
    return kind.__new__(kind)


def set_traits(obj: Any, state: tuple[dict[str, Any], list[tuple[str | None, str | None, Any]]]) -> None:
    """Second phase: attributes, which notify nobody, and observers."""
    attributes, observers = state
    obj.__dict__.update(attributes)
    for name, change, handler in observers:
        obj.observe(handler, names=All if name is None else name, type=All if change is None else change)
