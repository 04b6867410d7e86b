"""The text of cells by the file name that their code has: for tracebacks, `name??` and inspect.getsource.

A function keeps its file name when it moves, and the name that the next process would give the same
cell is another one. So the names travel beside the inputs, and are known to IPython and `linecache` again.
"""

from __future__ import annotations

import linecache
from typing import Any

from . import live
from .history import INPUTS_PER_GROUP

# Silent cells whose text is kept beside the inputs, the newest: front-ends run them without end.
SILENT_MAX = 256
_PREFIX = "history:sources:"
# A cell's number, and its lines unless they are those of In[number]: a silent cell has no number.
_Source = tuple[int, "list[str] | None"]


class Sources:
    """What is known of the names so far."""

    def __init__(self) -> None:
        self._known: dict[str, _Source] = {}
        self._inputs = 0

    def capture(self) -> dict[str, dict[str, _Source]]:
        """Groups by id, as plain data."""
        shell = live.LIVE.shell
        groups: dict[str, dict[str, _Source]] = {}
        if shell is None:
            return groups
        inputs, self._inputs = self._inputs, len(shell.history_manager.input_hist_parsed)
        if self._inputs < inputs:
            # `%reset`: In[number] is another cell, or none.
            self._known = {}
        silent = 0
        for name, number in reversed(list(shell.compile._filename_map.items())):
            if name not in self._known or self._known[name][0] != number:
                self._known[name] = _source(shell, name, number)
            known = self._known[name]
            silent += known[1] is not None
            if known[1] is None or silent <= SILENT_MAX:
                groups.setdefault(f"{_PREFIX}{number - number % INPUTS_PER_GROUP}", {})[name] = known
        return groups

    def restore(self, groups: dict[str, Any]) -> None:
        """Makes the names known; runs after the inputs are restored."""
        shell = live.LIVE.shell
        if shell is None:
            return
        self._known, self._inputs = {}, 0
        for key, group in groups.items():
            if key.startswith(_PREFIX):
                self._known.update(group)
        shell.compile._filename_map.clear()
        parsed = shell.history_manager.input_hist_parsed
        # Newest last again, as far as the numbers tell.
        for name, (number, lines) in sorted(reversed(self._known.items()), key=lambda item: item[1][0]):
            if lines is None:
                lines = _lines(parsed[number]) if number < len(parsed) else []
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
            shell.compile._filename_map[name] = number


def _source(shell: Any, name: str, number: int) -> _Source:
    parsed = shell.history_manager.input_hist_parsed
    lines = linecache.getlines(name)
    return number, None if number < len(parsed) and lines == _lines(parsed[number]) else lines


def _lines(text: str) -> list[str]:
    return [f"{line}\n" for line in text.splitlines()]
