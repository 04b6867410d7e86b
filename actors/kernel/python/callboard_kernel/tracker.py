"""One capture: what changed since the last one, as groups of bytes.

Owns what the node is known to hold: per group its names and digest. A restart loses it; the first
capture after a restore compares against what the restore primed, and sends whatever it cannot
prove equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any, Callable

from . import graph, history, live, pickler, refusal
from .directory import DIRECTORY
from .environment import Imported, facts
from .files import Files, Unsteady
from .fingerprint import Fingerprint, fingerprint, same
from .functions import is_importable
from .namespace import Namespace, is_output
from .packages import PACKAGES
from .placeholder import Unavailable
from .session import Session

DEFAULT_BUDGET_S = 60.0
# Once a capture takes longer than this, the node is told that state is being saved.
SAVING_NOTICE_S = 1.0


def _choose_digest() -> Callable[..., Any]:
    """blake2b, or SHA-256 where the processor computes it faster than that."""
    probe = os.urandom(1 << 18)
    times = {}
    for algorithm in (hashlib.blake2b, hashlib.sha256):
        start = time.perf_counter()
        algorithm(probe).digest()
        times[algorithm] = time.perf_counter() - start
    return min(times, key=lambda algorithm: times[algorithm])


_digest = _choose_digest()


@dataclass
class Entry:
    """What is known about one name."""

    fingerprint: Fingerprint | None
    digest: bytes
    reached: dict[int, int]
    classes: set[str]
    pickled: pickler.Pickled | None
    # (name, type, reason) if the value is refused; its group then holds a placeholder.
    refused: tuple[str, str, str] | None = None


@dataclass
class Group:
    """What the node holds of one group."""

    names: list[str]
    kind: str
    signature: Any


@dataclass
class Delta:
    """One capture's result, ready to be framed."""

    upsert: list[dict[str, Any]] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    elapsed_ms: float = 0.0


class Tracker:
    """Finds what changed in the live session."""

    def __init__(self) -> None:
        self.namespace = Namespace()
        self.session = Session()
        self.files = Files()
        self.imported = Imported(live.LIVE.user_ns)
        self.budget_s = DEFAULT_BUDGET_S
        self.on_slow: Callable[[], None] | None = None
        self.in_dump = False
        self.entries: dict[str, Entry] = {}
        self.groups: dict[str, Group] = {}
        self.anchors: dict[int, str] = {}
        self._told: set[tuple[str, str]] = set()

    def capture(self) -> Delta:
        """Compares the session with what the node holds, and takes the result for what it holds."""
        start = time.monotonic()
        delta = Delta()
        context = pickler.Pass({}, start + self.budget_s, self._slow_tick(start))
        current: dict[str, Group] = {}
        try:
            self._variables(context, current, delta)
        finally:
            self._plain("session", self._session_values(delta), current, delta)
            self._plain("history", history.capture(), current, delta)
            self._files(current, delta)
            self._environment(current, delta)
            delta.notices += DIRECTORY.notices
            DIRECTORY.notices.clear()
            delta.removed = [key for key in self.groups if key not in current]
            self.groups = current
            delta.elapsed_ms = (time.monotonic() - start) * 1000
        return delta

    def prime(self, held: dict[str, list[str]]) -> None:
        """After a restore: takes the session for what the node holds under these groups and names.

        A group that would be cut differently now is left unproven, so the next capture sends it.
        """
        self.entries, self.groups, self.anchors = {}, {}, {}
        notices = list(DIRECTORY.notices)
        self.capture()
        DIRECTORY.notices[:] = notices
        for key, group in self.groups.items():
            if sorted(held.get(key, ())) != sorted(group.names):
                group.signature = None
        for key in held:
            self.groups.setdefault(key, Group(held[key], "variables", None))

    def _slow_tick(self, start: float) -> Callable[[float], None]:
        told = False

        def tick(now: float) -> None:
            nonlocal told
            if not told and now - start > SAVING_NOTICE_S and self.on_slow is not None:
                told = True
                self.on_slow()

        return tick

    def _variables(self, context: pickler.Pass, current: dict[str, Group], delta: Delta) -> None:
        values = self.namespace.collect()
        context.anchors = _class_anchors(values)
        anchors_moved = context.anchors != self.anchors
        entries: dict[str, Entry] = {}
        for name, value in values.items():
            old = self.entries.get(name)
            print_now = fingerprint(value)
            if old and same(old.fingerprint, print_now) and not (anchors_moved and old.classes):
                entries[name] = old
            else:
                entries[name] = self._entry(name, value, print_now, context)
        self._drop_refused_anchors(values, entries, context)
        reached = {name: entry.reached for name, entry in entries.items()}
        for names in graph.partition(reached, {name: entry.classes for name, entry in entries.items()}):
            self._group(names, values, entries, context, current, delta)
        for entry in entries.values():
            entry.pickled = None
            if entry.refused is not None:
                self._report(entry.refused, delta)
        self.entries, self.anchors = entries, context.anchors

    def _entry(self, name: str, value: Any, print_now: Fingerprint | None, context: pickler.Pass) -> Entry:
        try:
            pickled = self._dump({name: value}, context)
        except Exception as error:  # the values' own code may raise anything
            return self._refused_entry(name, value, error)
        except refusal.CaptureInterrupted as error:
            return self._refused_entry(name, value, error)
        digest, reached = _hash(pickled), pickled.reached
        if print_now is not None:
            # This entry may be kept for many captures. Ids of objects that only its pickling made
            # would by then belong to others and tie strangers together.
            alive = set(map(id, print_now))
            reached = {key: place for key, place in reached.items() if key in alive}
        return Entry(print_now, digest, reached, pickled.classes, pickled)

    def _dump(self, values: dict[str, Any], context: pickler.Pass) -> pickler.Pickled:
        context.check()
        self.in_dump = True
        try:
            return pickler.dump(values, context)
        finally:
            self.in_dump = False

    def _refused_entry(self, name: str, value: Any, error: BaseException) -> Entry:
        kind, reason = refusal.type_name(value), refusal.describe(error)
        stand_in = Unavailable(name, kind, reason)
        pickled = pickler.dump({name: stand_in}, pickler.Pass())
        return Entry(None, _hash(pickled), {}, set(), pickled, (name, kind, reason))

    def _drop_refused_anchors(
        self, values: dict[str, Any], entries: dict[str, Entry], context: pickler.Pass
    ) -> None:
        """A class that is refused cannot be referred to: those who did are pickled with it inside."""
        lost = {name for name in context.anchors.values() if entries[name].refused is not None}
        if not lost:
            return
        context.anchors = {key: name for key, name in context.anchors.items() if name not in lost}
        for name, entry in entries.items():
            if entry.classes & lost:
                entries[name] = self._entry(name, values[name], None, context)

    def _group(
        self,
        names: list[str],
        values: dict[str, Any],
        entries: dict[str, Entry],
        context: pickler.Pass,
        current: dict[str, Group],
        delta: Delta,
    ) -> None:
        key = f"variables:{names[0]}"
        members = [entries[name] for name in names]
        signature: Any = members[0].digest
        if len(names) > 1:
            shared = graph.sharing(names, {name: entries[name].reached for name in names})
            signature = (tuple(entry.digest for entry in members), shared)
        current[key] = group = Group(names, "variables", signature)
        known = self.groups.get(key)
        if known is not None and known.names == names and known.signature == signature:
            return
        try:
            pickled = members[0].pickled if len(names) == 1 else None
            if pickled is None:
                pickled = self._dump({name: values[name] for name in names}, context)
        except (Exception, refusal.CaptureInterrupted) as error:
            del current[key]
            for name in names:
                entries[name] = entry = self._refused_entry(name, values[name], error)
                current[f"variables:{name}"] = Group([name], "variables", entry.digest)
                _append(delta, f"variables:{name}", [name], "variables", entry.pickled)
            return
        _append(delta, key, group.names, group.kind, pickled)

    def _session_values(self, delta: Delta) -> dict[str, Any]:
        states, failed = self.session.capture()
        for name, reason in failed.items():
            self._report((f"session:{name}", "session state", reason), delta)
        return {f"session:{name}": state for name, state in states.items()}

    def _plain(self, kind: str, values: dict[str, Any], current: dict[str, Group], delta: Delta) -> None:
        """Groups without sharing: session components and history."""
        for key, value in values.items():
            known = self.groups.get(key)
            comparable = kind == "history" or key.partition(":")[2] in Session.comparable
            if comparable and known is not None and known.signature == value:
                current[key] = known
                continue
            try:
                pickled = pickler.dump({key: value}, pickler.Pass())
            except Exception as error:
                self._report((key, f"{kind} state", refusal.describe(error)), delta)
                continue
            digest = value if comparable else _hash(pickled)
            current[key] = Group([key], kind, digest)
            if known is None or known.signature != digest:
                _append(delta, key, [key], kind, pickled)

    def _files(self, current: dict[str, Group], delta: Delta) -> None:
        """Groups of files; one whose files change just now stays as it was until the next capture."""
        groups, left = self.files.groups()
        for key, (names, signature, parts) in groups.items():
            known = self.groups.get(key)
            if known is None or known.signature != signature:
                try:
                    buffers = parts()
                except (OSError, Unsteady) as error:
                    left.append((names[0] if names else key, str(error)))
                    if known is not None:
                        current[key] = known
                    continue
                delta.upsert.append({"group": key, "names": names, "kind": "file", "parts": len(buffers)})
                delta.buffers += buffers
            current[key] = Group(names, "file", signature)
        for path, reason in left:
            self._report((path, "file", reason), delta)

    def _environment(self, current: dict[str, Group], delta: Delta) -> None:
        """Groups of JSON: what the session has imported, and what it has installed for itself."""
        values: dict[str, Any] = {}
        if imported := self.imported.look(live.LIVE.user_ns, PACKAGES.overlay):
            values["environment:imported"] = {**facts(), "distributions": imported}
        if PACKAGES.requirements:
            values["environment:packages"] = PACKAGES.requirements
        for key, value in values.items():
            text = json.dumps(value, sort_keys=True).encode()
            known = self.groups.get(key)
            if known is None or known.signature != text:
                delta.upsert.append({"group": key, "names": [], "kind": "environment", "parts": 1})
                delta.buffers.append(text)
            current[key] = Group([], "environment", text)

    def _report(self, refused: tuple[str, str, str], delta: Delta) -> None:
        name, kind, reason = refused
        if is_output(name):
            return
        delta.refused.append({"name": name, "type": kind, "reason": reason})
        if (name, kind) not in self._told:
            self._told.add((name, kind))
            delta.notices.append(refusal.notice(name, kind, reason))


def _append(delta: Delta, key: str, names: list[str], kind: str, pickled: Any) -> None:
    parts = 1 + len(pickled.buffers)
    delta.upsert.append({"group": key, "names": names, "kind": kind, "parts": parts})
    delta.buffers.append(pickled.stream)
    delta.buffers += pickled.buffers


def _hash(pickled: pickler.Pickled) -> bytes:
    state = _digest(pickled.stream)
    for buffer in pickled.buffers:
        state.update(buffer.nbytes.to_bytes(8, "big"))
        state.update(buffer)
    return bytes(state.digest())


def _class_anchors(values: dict[str, Any]) -> dict[int, str]:
    """For each class of the session the name to refer to it by: its own if bound, else the first."""
    found: dict[int, str] = {}
    for name, value in values.items():
        if isinstance(value, type) and name.isidentifier() and not is_output(name):
            if value.__name__ == name or id(value) not in found:
                if live.LIVE.user_ns.get(name) is value and not is_importable(value):
                    found[id(value)] = name
    return found
