"""One capture: what changed since the last one, as groups of bytes.

Owns what the node is known to hold: per group its names and digest. A restart loses it; the first
capture after a restore compares against what the restore primed, and sends whatever it cannot
prove equal.
"""

from __future__ import annotations

import gc
import json
import time
import types
from dataclasses import dataclass
from typing import Any, Callable

from . import bundles, comms, graph, history, live, pickler, refusal
from .directory import DIRECTORY
from .environment import Imported, facts
from .files import Files, Unsteady
from .buffers import Buffers, Content
from .delta import Delta, Group
from .digests import DIGEST_BYTES, digest
from .fingerprint import Fingerprint, fingerprint, same
from .functions import is_importable
from .namespace import Namespace, is_output
from .packages import PACKAGES
from .placeholder import Unavailable
from .session import Session
from .sharing import joins
from .sources import Sources
from .watchdog import watchdog

DEFAULT_BUDGET_S = 60.0
DEFAULT_STATE_BYTES_MAX = 16 << 30
# Once a capture takes longer than this, the node is told that state is being saved.
SAVING_NOTICE_S = 1.0
# The memo behind a shorter pickle is copied at once: that is cheaper than to keep its pickler.
_SMALL_PICKLE_BYTES_MAX = 256 << 10
# What user code may raise, and what the capture raises into it.
_FAULTS = (Exception, refusal.BudgetExceeded, refusal.CaptureInterrupted)


@dataclass
class Entry:
    """What is known about one value and the names that are bound to it."""

    names: list[str]
    fingerprint: Fingerprint | None
    digest: bytes
    # None while the pickler has not been asked yet.
    reached: dict[int, int] | None
    classes: set[str]
    pickled: pickler.Pickled | None
    contents: list[Content]
    # (name, type, reason) if the value is refused; its group then holds a placeholder.
    refused: tuple[str, str, str] | None = None

    def objects(self) -> dict[int, Any]:
        """What was reached, by id. The objects are alive."""
        reached = self.reached or {}
        if self.pickled is not None and self.pickled.reach is not None:
            return {key: self.pickled.reach.object_at(key) for key in reached}
        return {id(part): part for part in self.fingerprint or () if id(part) in reached}

    def among(self, objects: dict[int, Any]) -> set[int]:
        """The ids of those of `objects`, by id and alive, that were reached."""
        if self.reached is None and self.pickled is not None and self.pickled.reach is not None:
            return set(self.pickled.reach.among(objects))
        return objects.keys() & (self.reached or {}).keys()


class Tracker:
    """Finds what changed in the live session."""

    def __init__(self) -> None:
        self.namespace = Namespace()
        self.session = Session()
        self.sources = Sources()
        self.files = Files()
        self.imported = Imported(live.LIVE.user_ns)
        self.buffers = Buffers()
        self.budget_s = DEFAULT_BUDGET_S
        self.state_bytes_max: float = DEFAULT_STATE_BYTES_MAX
        self.on_slow: Callable[[], None] | None = None
        self.in_dump = False
        self.entries: dict[str, Entry] = {}
        self.groups: dict[str, Group] = {}
        self.anchors: dict[int, str] = {}
        self.captures = 0
        # The last capture's time, for `bench state`.
        self.elapsed_ms = 0.0
        self._told: set[tuple[str, str]] = set()
        # The name whose pickle was the largest, and a pickler with a memo of that size: to grow one
        # costs as much as the pickling.
        self._spare: tuple[str, pickler.StatePickler] | None = None

    def capture(self) -> Delta:
        """Compares the session with what the node holds, and takes the result for what it holds."""
        start = time.monotonic()
        self.captures += 1
        delta = Delta()
        tick = self._slow_tick(start)
        context = pickler.Pass({}, start + self.budget_s, tick, self.state_bytes_max)
        current: dict[str, Group] = {}
        # Walking millions of objects sets off collections that find nothing.
        collects = gc.isenabled()
        gc.disable()
        self.buffers.begin()
        self.session.warned.is_quiet = True
        try:
            with watchdog(self.budget_s, lambda: self.in_dump):
                self._variables(context, current, delta)
        finally:
            if collects:
                gc.enable()
            self.buffers.end()
            self.session.warned.is_quiet = False
            self._plain("session", self._session_values(delta), current, delta)
            self._plain("history", history.capture() | self.sources.capture(), current, delta)
            self._files(current, delta)
            self._environment(current, delta)
            delta.notices += DIRECTORY.notices
            DIRECTORY.notices.clear()
            delta.removed = [key for key in self.groups if key not in current]
            self.groups = current
            delta.elapsed_ms = self.elapsed_ms = (time.monotonic() - start) * 1000
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
            # The same values, but perhaps not the same bytes at the same places.
            group.version, group.sent = None, []
        for key in held:
            self.groups.setdefault(key, Group(held[key], "variables", None))

    def sent(self, delta: Delta) -> None:
        """The delta is on its way. What was written while it was read must go again."""
        for entry in delta.upsert:
            group = self.groups[entry["group"]]
            for part, view in zip(group.parts[1:], group.sent):
                torn = bytearray(part.digests)
                for chunk in self.buffers.written_since(view):
                    torn[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] = bytes(DIGEST_BYTES)
                if torn != part.digests:
                    part.digests, group.signature = bytes(torn), None
            group.sent = []

    def rest(self) -> None:
        """Gives back memory that only makes the next capture quicker."""
        self._spare = None

    def _slow_tick(self, start: float) -> Callable[[float], None]:
        told = False

        def tick(now: float) -> None:
            nonlocal told
            if not told and now - start > SAVING_NOTICE_S and self.on_slow is not None:
                told = True
                self.on_slow()

        return tick

    def _variables(self, context: pickler.Pass, current: dict[str, Group], delta: Delta) -> None:
        values, too_many = bundles.within_limit(self.namespace.collect())
        if too_many is not None:
            self._report(("*", "names", too_many), delta)
        context.anchors = _class_anchors(values)
        entries: dict[str, Entry] = {}
        excluded = self.namespace.excluded
        for name in excluded & values.keys():
            entries[name] = self._refused_entry(name, values[name], refusal.Excluded())
        for names in _bound_together({name: values[name] for name in values if name not in excluded}):
            self._look_at(names, values, entries, context)
        self._comms(values, entries, context, delta)
        self._drop_refused_anchors(values, entries, context)
        largest = _ask_picklers(entries)
        reached = {name: entry.reached or {} for name, entry in entries.items()}
        groups = graph.partition(reached, {name: entry.classes for name, entry in entries.items()})
        for key, members in bundles.bundle(groups, values):
            self._group(key, members, values, entries, context, current, delta)
        if largest is not None and largest.pickled is not None and largest.pickled.reach is not None:
            self._spare = (largest.names[0], largest.pickled.reach.release())
        self._report_refused(values, entries, delta)
        for entry in entries.values():
            entry.pickled, entry.contents = None, []
        self.entries, self.anchors = entries, context.anchors

    def _comms(
        self, values: dict[str, Any], entries: dict[str, Entry], context: pickler.Pass, delta: Delta
    ) -> None:
        """Adds the comms that nothing else leads to, as names."""
        left, too_many = comms.newest_first()
        if too_many is not None:
            self._report(("*", "comms", too_many), delta)
        by_id = {id(comm): comm for comm in left}
        reached = {key for entry in entries.values() for key in entry.among(by_id)} if left else set()
        roots: dict[int, str] = {}
        for comm in left:
            if id(comm) in reached:
                continue
            name, value = comms.named(comm)
            values[name] = value
            self._look_at([name], values, entries, context)
            found = entries[name].among(by_id)
            reached |= found
            for key in found & roots.keys():
                # The order was no help: this one leads to one that was taken for a root.
                del values[roots[key]], entries[roots.pop(key)]
            roots[id(comm)] = name

    def _look_at(
        self, names: list[str], values: dict[str, Any], entries: dict[str, Entry], context: pickler.Pass
    ) -> None:
        """Takes what is known about a value if it cannot have changed, else pickles it."""
        old = self.entries.get(names[0])
        print_now = fingerprint(values[names[0]])
        anchors_moved = context.anchors != self.anchors
        if old and same(old.fingerprint, print_now) and not (anchors_moved and old.classes):
            entries[names[0]] = old
            return
        self._pickle(names, values, entries, print_now, context)

    def _pickle(
        self,
        names: list[str],
        values: dict[str, Any],
        entries: dict[str, Entry],
        print_now: Fingerprint | None,
        context: pickler.Pass,
    ) -> None:
        try:
            pickled = self._dump({name: values[name] for name in names}, context, self._take_spare(names[0]))
            contents = [self.buffers.content(view, context.check) for view in pickled.buffers]
        except _FAULTS as error:
            for name in names:
                entries[name] = self._refused_entry(name, values[name], error)
            return
        context.take(pickled.sink)
        reached: dict[int, int] | None = None
        if pickled.reach is None:
            reached = {}
        elif pickled.length <= _SMALL_PICKLE_BYTES_MAX or print_now is not None:
            reached = pickled.reach.everything()
            if print_now is not None:
                # This entry may be kept for many captures. Ids of objects that only its pickling
                # made would by then belong to others and tie strangers together.
                alive = set(map(id, print_now))
                reached = {key: place for key, place in reached.items() if key in alive}
        entries[names[0]] = Entry(
            names, print_now, _digest_of(pickled, contents), reached, pickled.classes, pickled, contents
        )

    def _take_spare(self, name: str) -> pickler.StatePickler | None:
        if self._spare is None or self._spare[0] != name:
            return None
        spare, self._spare = self._spare[1], None
        return spare

    def _dump(
        self, values: dict[str, Any], context: pickler.Pass, spare: pickler.StatePickler | None = None
    ) -> pickler.Pickled:
        """Pickles; once more if another thread changed a container meanwhile."""
        for is_last in (False, True):
            context.check()
            self.in_dump = True
            try:
                return pickler.dump(values, context, spare)
            except RuntimeError as error:
                if is_last or not refusal.is_change_meanwhile(error):
                    raise
                spare = None
            finally:
                self.in_dump = False
        raise AssertionError("unreachable")

    def _refused_entry(self, name: str, value: Any, error: BaseException) -> Entry:
        kind, reason = refusal.type_name(value), refusal.describe(error)
        if issubclass(type(value), Unavailable):
            # Excluded on another machine, and still.
            kind = value._cb_type
        stand_in = Unavailable(name, kind, reason)
        pickled = pickler.dump({name: stand_in}, pickler.Pass())
        return Entry([name], None, _digest_of(pickled, []), {}, set(), pickled, [], (name, kind, reason))

    def _drop_refused_anchors(
        self, values: dict[str, Any], entries: dict[str, Entry], context: pickler.Pass
    ) -> None:
        """A class that is refused cannot be referred to: those who did are pickled with it inside."""
        lost = {name for name in context.anchors.values() if entries[name].refused is not None}
        if not lost:
            return
        context.anchors = {key: name for key, name in context.anchors.items() if name not in lost}
        for entry in list(entries.values()):
            if entry.classes & lost:
                del entries[entry.names[0]]
                self._pickle(entry.names, values, entries, None, context)

    def _group(
        self,
        key: str,
        members: list[str],
        values: dict[str, Any],
        entries: dict[str, Entry],
        context: pickler.Pass,
        current: dict[str, Group],
        delta: Delta,
    ) -> None:
        first = entries[members[0]]
        names = sorted(name for member in members for name in entries[member].names)
        signature: Any = first.digest
        if len(members) > 1:
            shared = graph.sharing(members, {name: entries[name].reached or {} for name in members})
            signature = (tuple(entries[name].digest for name in members), shared)
        group = Group(names, "variables", signature, self.captures)
        known = self.groups.get(key)
        if known is not None and known.names == names and known.signature == signature:
            current[key] = known
            return
        try:
            pickled = first.pickled if len(members) == 1 else None
            contents = first.contents
            if pickled is None:
                alone = pickler.Pass(context.anchors, context.deadline, context.tick, context.bytes_max)
                alone.holders = context.holders
                pickled = self._dump({name: values[name] for name in names}, alone)
                contents = [self.buffers.content(view, context.check) for view in pickled.buffers]
        except _FAULTS as error:
            for name in names:
                entries[name] = entry = self._refused_entry(name, values[name], error)
                current[f"variables:{name}"] = lone = Group([name], "variables", entry.digest, self.captures)
                assert entry.pickled is not None
                delta.add(f"variables:{name}", lone, entry.pickled, [], None)
            return
        current[key] = group
        delta.add(key, group, pickled, contents, known)

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
                contents = [self.buffers.content(view, lambda: None) for view in pickled.buffers]
            except Exception as error:
                self._report((key, f"{kind} state", refusal.describe(error)), delta)
                continue
            signature = value if comparable else _digest_of(pickled, contents)
            if known is not None and known.signature == signature:
                current[key] = known
                continue
            current[key] = group = Group([key], kind, signature, self.captures)
            delta.add(key, group, pickled, contents, known)

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
                delta.add_whole(key, names, "file", buffers)
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
                delta.add_whole(key, [], "environment", [text])
            current[key] = Group([], "environment", text)

    def _report_refused(self, values: dict[str, Any], entries: dict[str, Entry], delta: Delta) -> None:
        """Reports each refused name, but no comm of what a refused variable is bound to as well."""
        refused = [entry.refused for entry in entries.values() if entry.refused is not None]
        bound = {id(values[name]) for name, _, _ in refused if not comms.is_comm(name)}
        for one in refused:
            if not comms.is_comm(one[0]) or id(values[one[0]]) not in bound:
                self._report(one, delta)

    def _report(self, refused: tuple[str, str, str], delta: Delta) -> None:
        name, kind, reason = refused
        if is_output(name):
            return
        delta.refused.append({"name": name, "type": kind, "reason": reason})
        # Of comms, which nobody knows by name, each kind once.
        told = ("Comm" if comms.is_comm(name) else name, kind)
        if told not in self._told:
            self._told.add(told)
            delta.notices.append(refusal.notice(name, kind, reason))


def _bound_together(values: dict[str, Any]) -> list[list[str]]:
    """The names in their order; those that are bound to one mutable object together, sorted.

    An output that is also a variable would otherwise be pickled twice to be found in one group.
    """
    names_of: dict[int, list[str]] = {}
    for name, value in values.items():
        is_code = issubclass(type(value), (type, types.FunctionType))
        key = id(value) if not is_code and joins(type(value)) else -len(names_of) - 1
        names_of.setdefault(key, []).append(name)
    return [sorted(names) for names in names_of.values()]


def _ask_picklers(entries: dict[str, Entry]) -> Entry | None:
    """Finds out what was reached where the memo was too large to be copied at once.

    The largest is only asked for what the others reached, since nothing else can be shared; it is
    returned.
    """
    large = [
        (entry.pickled.length, name, entry.pickled.reach)
        for name, entry in entries.items()
        if entry.reached is None and entry.pickled is not None and entry.pickled.reach is not None
    ]
    if not large:
        return None
    *rest, (_, last, reach) = sorted(large, key=lambda one: one[:2])
    for _, name, other in rest:
        entries[name].reached = other.everything()
    objects: dict[int, Any] = {}
    for name, entry in entries.items():
        if name != last:
            objects.update(entry.objects())
    entries[last].reached = reach.among(objects)
    return entries[last]


def _digest_of(pickled: pickler.Pickled, contents: list[Content]) -> bytes:
    if not contents:
        return pickled.digest
    lengths = b"".join(content.length.to_bytes(8, "big") + content.digests for content in contents)
    return digest(pickled.digest + lengths)


def _class_anchors(values: dict[str, Any]) -> dict[int, str]:
    """For each class of the session the name to refer to it by: its own if bound, else the first."""
    found: dict[int, str] = {}
    for name, value in values.items():
        if issubclass(type(value), type) and name.isidentifier() and not is_output(name):
            if value.__name__ == name or id(value) not in found:
                if live.LIVE.user_ns.get(name) is value and not is_importable(value):
                    found[id(value)] = name
    return found
