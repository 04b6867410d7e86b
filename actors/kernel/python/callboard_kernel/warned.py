"""Warnings that a session has shown already, and that Python therefore does not show again.

Python notes in the module that warns, per text, class and line, that a warning was shown, and drops
all notes once the filters have changed since. IPython drops those of cells before each cell. Modules
are looked at only after a warning was shown.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

_REGISTRY = "__warningregistry__"
_VERSION = "version"


class _Probe(Warning):
    """Warned of by nobody; shows which version of the filters is in force."""


class Warned:
    """What was shown, as a session component."""

    def __init__(self) -> None:
        self._notes: dict[str, list[Any]] = {}
        self._version: Any = None
        self._is_stale = True
        self._show = warnings._showwarnmsg
        warnings._showwarnmsg = self._on_shown

    def _on_shown(self, message: Any) -> None:
        if message.category is not _Probe:
            self._is_stale = True
            self._show(message)

    def state(self) -> dict[str, list[Any]] | None:
        """The notes in force: module -> [(text, class, line)]; None if there are none."""
        version = self._version_now()
        if self._is_stale or version != self._version:
            self._notes = _notes(version)
            self._version, self._is_stale = version, False
        return self._notes or None

    def apply(self, state: dict[str, list[Any]]) -> None:
        """Puts the notes into the modules that are loaded here."""
        version = self._version_now()
        for name, notes in state.items():
            module = sys.modules.get(name)
            if module is not None:
                registry = module.__dict__.setdefault(_REGISTRY, {})
                if registry.get(_VERSION) != version:
                    registry.clear()
                registry.update(dict.fromkeys(notes, True))
                registry[_VERSION] = version
        self._is_stale = True

    def _version_now(self) -> Any:
        """Python tells the version only by writing it into the notes of a module that warns."""
        key = ("", _Probe, 0)
        registry: dict[Any, Any] = {_VERSION: self._version, key: True}
        try:
            warnings.warn_explicit("", _Probe, "", 0, "callboard", registry)
        except _Probe:  # the session's filters make errors of warnings
            pass
        warnings.onceregistry.pop(("", _Probe), None)
        return registry.get(_VERSION)


def _notes(version: Any) -> dict[str, list[Any]]:
    found = {}
    for name, module in list(sys.modules.items()):
        registry = getattr(module, "__dict__", {}).get(_REGISTRY) if name != "__main__" else None
        if isinstance(registry, dict) and registry.get(_VERSION) == version:
            notes = [key for key in registry if _is_note(key)]
            if notes:
                found[name] = notes
    return found


def _is_note(key: Any) -> bool:
    """Leaves out classes of the session, which are other ones after a restore."""
    return isinstance(key, tuple) and len(key) == 3 and getattr(key[1], "__module__", "__main__") != "__main__"
