"""Cuts off code of the user's that hangs while its values are captured."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Callable, Iterator

from .refusal import BudgetExceeded

# Code that swallows the exception gets it again after this long.
AGAIN_AFTER_S = 1.0
# The kernel's shortest timer: 0 would switch it off.
_SOON_S = 1e-6


@contextlib.contextmanager
def watchdog(budget_s: float, is_user_code: Callable[[], bool]) -> Iterator[None]:
    """Raises BudgetExceeded in the main thread when the time is up and user code is at work.

    It borrows the alarm signal; a timer that the session had set is put back with the rest of its
    time. Elsewhere than in the main thread there are no signals, and this does nothing.
    """

    def on_alarm(_signal: int, _frame: object) -> None:
        if is_user_code():
            raise BudgetExceeded

    try:
        previous = signal.signal(signal.SIGALRM, on_alarm)
    except ValueError:
        yield
        return
    start = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, max(budget_s, _SOON_S), AGAIN_AFTER_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous if previous is not None else signal.SIG_DFL)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), _SOON_S), interval)
