"""Standard output and error: ipykernel's, without what it does at every write and after every cell for nothing."""

from __future__ import annotations

import sys
from typing import Any

from ipykernel.iostream import OutStream

# What of ipykernel's own is used here; the stream of a release that has it otherwise is left as it is.
_INTERNALS = ("_buffers", "_buffer_lock", "_flush_pending")


class CellStream(OutStream):
    """ipykernel's stream with a shorter way for text of the cell that printed last, and for none."""

    # The parent that printed last, and the key of its buffer. One object, as threads print as well.
    _last: tuple[Any, frozenset[Any]] = (None, frozenset())
    _is_sending = False
    _is_known = False
    # How often something was written.
    writes = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_known = all(hasattr(self, name) for name in _INTERNALS)

    def _is_ordinary(self) -> bool:
        return self._is_known and self.echo is None and self._is_master_process()

    def write(self, string: str) -> int | None:
        """Takes text, to be sent a moment later with what follows it."""
        self.writes += 1
        if type(string) is not str or self.pub_thread is None or not self._is_ordinary():
            return super().write(string)
        parent = self.parent_header
        last = self._last
        if last[0] is not parent:
            # Each request has a header of its own, which nobody changes.
            last = self._last = (parent, frozenset(parent.items()))
        with self._buffer_lock:
            self._buffers[last[1]].write(string)
        if not self._flush_pending:
            self._schedule_flush()
        return len(string)

    def flush(self) -> None:
        """Sends what was taken. Waits for the thread that sends, unless there is nothing: most cells print nothing,
        and ipykernel flushes both streams after each."""
        # In this order: what is no longer in a buffer is being sent, or is sent.
        if not self._is_ordinary() or self._buffers or self._is_sending:
            super().flush()

    def _flush(self) -> None:
        self._is_sending = True
        try:
            super()._flush()
        finally:
            self._is_sending = False


def written() -> int | None:
    """How often the session has written to its standard output and error; None if they are not known to tell."""
    outputs = (sys.stdout, sys.stderr)
    if all(isinstance(output, CellStream) for output in outputs):
        return sum(output.writes for output in outputs)
    return None
