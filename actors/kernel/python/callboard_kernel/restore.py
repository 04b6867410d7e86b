"""Rebuilds a session from the groups that captures sent."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from typing import Any

from cloudpickle import cloudpickle

from . import comms, history, live, pickler
from .directory import DIRECTORY
from .file_restore import FileRestore
from .namespace import Namespace
from .packages import PACKAGES
from .placeholder import Unavailable
from .tracker import Tracker


@dataclass
class HeldGroup:
    """One group as the node holds it."""

    key: str
    names: list[str]
    kind: str
    stream: Any
    buffers: list[Any]


class Restore:
    """Replaces the live session; lives for one restore only."""

    def __init__(self, tracker: Tracker, groups: list[HeldGroup], execution_count: int) -> None:
        self.tracker = tracker
        self.groups = groups
        self.execution_count = execution_count
        self.failed: dict[str, str] = {}
        self._group_of = {name: group for group in groups if group.kind == "variables" for name in group.names}
        self._done: set[str] = set()

    def run(self) -> list[dict[str, str]]:
        """Restores everything that can be, binds placeholders for the rest, primes the tracker.

        Returns what failed, as [{name, reason}].
        """
        self.tracker.namespace.clear()
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.clear()
        live.LIVE.failed_modules.clear()
        self._files()
        self._environment()
        # The directory and sys.path come first: imports depend on them. Random states and settings
        # come last, since loading variables may import what changes them.
        self._session(first=True)
        live.LIVE.load_name = self._load_name
        try:
            with comms.held_back():
                for group in self.groups:
                    if group.kind == "variables":
                        self._variables(group)
        finally:
            live.LIVE.load_name = None
        self._session(first=False)
        self._history()
        for module, reason in live.LIVE.failed_modules.items():
            self.failed.setdefault(module, reason)
        self.tracker.prime({group.key: group.names for group in self.groups})
        return [{"name": name, "reason": reason} for name, reason in self.failed.items()]

    def _files(self) -> None:
        """Files come before all else: the directory, imports and what is loaded may need them."""
        if DIRECTORY.root is not None:
            DIRECTORY.go(DIRECTORY.start or DIRECTORY.root)
        files = FileRestore(self.tracker.files, [group for group in self.groups if group.kind == "file"])
        files.run()
        self.failed.update(files.failed)
        DIRECTORY.notices += files.notices

    def _environment(self) -> None:
        """Installs what the session installed, and says what it imported that is not the same here."""
        groups = {group.key: json.loads(bytes(group.stream)) for group in self.groups if group.kind == "environment"}
        requirements = groups.get("environment:packages", {})
        if requirements or PACKAGES.overlay:
            DIRECTORY.notices += PACKAGES.replay(requirements)
        imported = groups.get("environment:imported", {}).get("distributions", {})
        other = self.tracker.imported.adopt(imported)
        if other:
            words = [
                f"{name} {version} instead of {imported[name]}" if version else f"no {name} (it was {imported[name]})"
                for name, version in sorted(other.items())
            ]
            DIRECTORY.notices.append(
                f"callboard: this machine has {', '.join(words)}: what depends on it may fail or give other results"
            )

    def _load_name(self, name: str) -> None:
        group = self._group_of.get(name)
        if group is not None:
            self._variables(group)

    def _variables(self, group: HeldGroup) -> None:
        if group.key in self._done:
            return
        self._done.add(group.key)
        try:
            values = self._load(group)
        except Exception as error:  # the values' own code runs here
            reason = f"restoring it failed with {type(error).__name__}: {error}"
            values = {name: Unavailable(name, "unknown type", reason) for name in group.names}
            self.failed.update(dict.fromkeys(group.names, reason))
        for name, value in values.items():
            try:
                Namespace.bind(name, value)
            except Exception as error:
                self.failed[name] = f"binding it failed with {type(error).__name__}: {error}"

    def _load(self, group: HeldGroup) -> dict[str, Any]:
        """Loads a group; a global that its code misses is loaded first, and the group once more."""
        while True:
            try:
                with comms.reviving():
                    return pickler.load(group.stream, group.buffers)
            except NameError as error:
                wanted = self._group_of.get(error.name or "")
                if wanted is None or wanted.key in self._done:
                    raise
                self._variables(wanted)
            # A widget of this attempt would take that of the next one with it when it is collected.
            gc.collect()

    def _session(self, first: bool) -> None:
        for group in self.groups:
            name = group.key.partition(":")[2]
            if group.kind != "session" or (name == "process") != first:
                continue
            try:
                state = pickler.load(group.stream, group.buffers)[group.key]
                self.tracker.session.apply(name, state)
            except Exception as error:  # settings of other versions or machines may not apply
                self.failed[group.key] = f"{type(error).__name__}: {error}"

    def _history(self) -> None:
        loaded: dict[str, Any] = {}
        for group in self.groups:
            if group.kind == "history":
                try:
                    loaded.update(pickler.load(group.stream, group.buffers))
                except Exception as error:
                    self.failed[group.key] = f"{type(error).__name__}: {error}"
        history.restore(loaded, self.execution_count)
        self.tracker.sources.restore(loaded)
