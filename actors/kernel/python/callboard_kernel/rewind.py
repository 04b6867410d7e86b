"""`%callboard rewind`: a cell asks for an earlier state of its session.

The node does it, after the cell: this side only takes the wish down, and the message of the cell's
capture carries it. Whether that state is still kept the node says, in the same cell.
"""

from __future__ import annotations

_USAGE = (
    "Name one state: the place of a cell as `callboard kernel log` shows it, 'In[7]', or a checkpoint's "
    "name. 0 is the start of the session."
)


class RewindWish:
    """What the running cell asked for."""

    def __init__(self) -> None:
        self._wish: str | None = None

    def ask(self, words: list[str]) -> str:
        """The verb behind `%callboard rewind`."""
        if len(words) != 1:
            return f"{_USAGE} Nothing was changed."
        self._wish = words[0]
        return f"After this cell the session goes back to the state after {words[0]}."

    @property
    def is_due(self) -> bool:
        """Whether there is one."""
        return self._wish is not None

    def take(self) -> str | None:
        """The wish, once."""
        wish, self._wish = self._wish, None
        return wish
