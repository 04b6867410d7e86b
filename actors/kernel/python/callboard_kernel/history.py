"""In, the underscores and the directory history; cached outputs travel as names (`Out[3]`).

With In travels what a `history_request` gives of the outputs: their text, as it was shown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import live
from .directory import DIRECTORY

# Inputs per group: a cell changes the last group only, so its cost does not grow with the session.
INPUTS_PER_GROUP = 64
# The text of a longer output is not kept a second time.
SHOWN_LENGTH_MAX = 16 << 10
_UNDERSCORES = ("_", "__", "___")


def capture() -> dict[str, Any]:
    """History groups by id, as plain data."""
    shell = live.LIVE.shell
    if shell is None:
        return {}
    history = shell.history_manager
    parsed, raw = history.input_hist_parsed, history.input_hist_raw
    groups: dict[str, Any] = {}
    for start in range(0, len(parsed), INPUTS_PER_GROUP):
        end = start + INPUTS_PER_GROUP
        groups[f"history:In:{start}"] = (start, list(parsed[start:end]), list(raw[start:end]))
    for number, shown in history.output_hist_reprs.items():
        if len(shown) <= SHOWN_LENGTH_MAX:
            start = number - number % INPUTS_PER_GROUP
            groups.setdefault(f"history:shown:{start}", {})[number] = shown
    hidden, user_ns = shell.user_ns_hidden, live.LIVE.user_ns
    owned = [name for name in _UNDERSCORES if name in hidden and hidden[name] is user_ns.get(name)]
    groups["history:core"] = {"owned": owned, "directories": _directories(user_ns)}
    return groups


def restore(groups: dict[str, Any], execution_count: int) -> None:
    """Replaces the history; runs after the variables, which bind the underscores."""
    shell = live.LIVE.shell
    if shell is None:
        return
    history, user_ns = shell.history_manager, live.LIVE.user_ns
    parsed, raw = [""], [""]
    shown: dict[int, str] = {}
    for key, group in groups.items():
        if key.startswith("history:In:"):
            start, parsed_part, raw_part = group
            _put(parsed, start, parsed_part)
            _put(raw, start, raw_part)
        elif key.startswith("history:shown:"):
            shown.update(group)
    history.input_hist_parsed[:] = parsed
    history.input_hist_raw[:] = raw
    history.output_hist_reprs = shown
    _record(history)
    for index in range(1, len(raw)):
        shell.push({f"_i{index}": raw[index]}, interactive=False)
    recent = ([""] * 3 + raw[1:])[-1:-4:-1]
    history._i, history._ii, history._iii = recent
    history._i00 = recent[0]
    shell.push({"_i": recent[0], "_ii": recent[1], "_iii": recent[2]}, interactive=False)
    core = groups.get("history:core", {"owned": [], "directories": []})
    for name in _UNDERSCORES:
        value = user_ns.setdefault(name, "")
        if name in core["owned"]:
            shell.user_ns_hidden[name] = value
            setattr(shell.displayhook, name, value)
        else:
            shell.user_ns_hidden.pop(name, None)
    if core["directories"]:
        user_ns["_dh"][:] = [_here(entry) for entry in core["directories"]]
    shell.execution_count = execution_count


def _record(history: Any) -> None:
    """Makes IPython's database, which answers for the last lines and for searches, say the same."""
    if not history.enabled:
        return
    session = history.session_number
    lines = zip(history.input_hist_parsed[1:], history.input_hist_raw[1:])
    history.writeout_cache()
    with history.db:
        history.db.execute("DELETE FROM history WHERE session = ?", (session,))
        history.db.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?)",
            [(session, number, parsed, raw) for number, (parsed, raw) in enumerate(lines, 1)],
        )


def _put(target: list[str], start: int, part: list[str]) -> None:
    target.extend([""] * (start + len(part) - len(target)))
    target[start : start + len(part)] = part


def _directories(user_ns: dict[str, Any]) -> list[Any]:
    """`_dh`, with those below the session's root as text relative to it."""
    found = []
    for entry in user_ns.get("_dh", ()):
        text = os.fspath(entry)
        carried = DIRECTORY.to_carried(text)
        found.append(entry if carried == text else carried)
    return found


def _here(entry: Any) -> Any:
    path = DIRECTORY.from_carried(entry) if isinstance(entry, str) else entry
    return entry if path == entry else Path(path)
