"""`%callboard VERB …`: what a notebook tells Callboard about its own session.

A verb is a function of the words behind it; other modules add theirs with `add_verb`.
"""

from __future__ import annotations

import shlex
from typing import Any, Callable

from .namespace import is_output
from .tracker import Tracker

# What a verb prints.
Verb = Callable[[list[str]], str]

# The session component that carries what was excluded.
COMPONENT = "callboard"


class Magics:
    """The line magic and its verbs."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._verbs: dict[str, tuple[Verb, str]] = {}
        self.add_verb("exclude", self._exclude, "exclude NAME…   leave names out of what is carried")
        self.add_verb("include", self._include, "include NAME…   carry them again")
        self.add_verb("status", self._status, "status          what is carried, and what is not")
        tracker.session.components[COMPONENT] = (self._state, self._apply)

    def add_verb(self, name: str, verb: Verb, usage: str) -> None:
        """Adds a verb; `usage` is its line in the help."""
        self._verbs[name] = (verb, usage)

    def register(self, shell: Any) -> None:
        """Makes `%callboard` known. Before the tracker looks at which magics are the user's own."""
        shell.register_magic_function(self.callboard, "line", "callboard")

    def callboard(self, line: str) -> None:
        """Runs a verb and prints what it says."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            print(f"%callboard cannot read this line: {error}")
            return
        verb, _ = self._verbs.get(words[0] if words else "", (None, ""))
        if verb is not None:
            print(verb(words[1:]))
            return
        known = "\n".join(f"    %callboard {usage}" for _, usage in self._verbs.values())
        what = f"has no verb {words[0]!r}; it has" if words else "has"
        print(f"%callboard {what}:\n{known}")

    def _exclude(self, names: list[str]) -> str:
        wrong = [name for name in names if not name.isidentifier() or is_output(name)]
        if wrong or not names:
            return f"Not a variable's name: {', '.join(wrong) or '(none given)'}. Nothing was changed."
        self._tracker.namespace.excluded.update(names)
        return (
            f"Left out from now on: {', '.join(names)}. Elsewhere the names explain themselves. What else "
            "refers to the same objects still carries them; earlier states of the session keep them."
        )

    def _include(self, names: list[str]) -> str:
        excluded = self._tracker.namespace.excluded
        unknown = [name for name in names if name not in excluded]
        excluded.difference_update(names)
        carried = [name for name in names if name not in unknown]
        lines = [f"Carried again: {', '.join(carried)}."] if carried else []
        lines += [f"Was not left out: {', '.join(unknown)}."] if unknown else []
        return " ".join(lines) or "Name what to carry again."

    def _status(self, _words: list[str]) -> str:
        tracker = self._tracker
        refused = [entry.refused for entry in tracker.entries.values() if entry.refused is not None]
        groups = [group for group in tracker.groups.values() if group.kind == "variables"]
        count = sum(len(group.names) for group in groups) - len(refused)
        lines = [f"{count} names are carried; the last look took {tracker.elapsed_ms:.0f} ms."]
        lines += [f"    {name} ({kind}) stays here: {reason}" for name, kind, reason in sorted(refused)]
        absent = sorted(tracker.namespace.excluded - {name for name, _, _ in refused})
        lines += [f"    {name} is left out when it is there" for name in absent]
        return "\n".join(lines)

    def _state(self) -> Any:
        excluded = sorted(self._tracker.namespace.excluded)
        return {"excluded": excluded} if excluded else None

    def _apply(self, state: Any) -> None:
        self._tracker.namespace.excluded = set(state["excluded"])
