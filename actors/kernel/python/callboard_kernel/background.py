"""What runs beside the cells: threads and child processes that a session started.

They end with this process and no name need lead to them, so no capture of names meets them. They are
reported like a name that cannot be carried, so that people see them, and so that the node does not
end an idle process that still works for its user.
"""

from __future__ import annotations

import os
import threading

from zmq.utils.garbage import GarbageCollectorThread

# Started by libraries for themselves, and idle unless a cell runs.
_HARMLESS = ("asyncio_", "tqdm_monitor", "ThreadPoolExecutor-", "pydevd.", "callboard-")


class Background:
    """Compares with what ran when the session began."""

    def __init__(self) -> None:
        self._own = {thread.ident for thread in threading.enumerate()}
        self._own_children = set(_children())

    def refused(self) -> list[dict[str, str]]:
        """One entry for each thread and child process of the session, by name and reason."""
        found = []
        for thread in threading.enumerate():
            # pyzmq starts its own, without a name, for the first message that it need not copy.
            is_harmless = thread.name.startswith(_HARMLESS) or isinstance(thread, GarbageCollectorThread)
            if thread.ident not in self._own and not is_harmless:
                reason = "a thread runs in this process only; it ends with it"
                found.append({"name": f"thread {thread.name}", "type": "Thread", "reason": reason})
        for pid in _children():
            if pid not in self._own_children:
                reason = "a process that this one started; it ends with it"
                found.append({"name": f"process {pid}", "type": "Popen", "reason": reason})
        return found


def _children() -> list[int]:
    """Child processes that have not ended."""
    try:
        # One system call for the usual answer: there is none.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    found = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as children:
                found.extend(int(pid) for pid in children.read().split())
        return [pid for pid in found if _lives(pid)]
    except OSError:  # a task that ended meanwhile, or a system without the list
        return []


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
