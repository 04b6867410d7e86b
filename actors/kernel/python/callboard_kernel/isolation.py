"""Takes the node's rights from a process when it becomes a kernel's: from then on it has a uid of its own.

A process in stock belongs to nobody and is root's, like the node. Before any user code runs it gives
away its uid, gids, capabilities and open files, for good. Whoever cannot, ends: never runs a cell as
root where the node said that kernels are isolated.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
from typing import Any

# Set by the node in processes that are to be isolated.
VARIABLE = "CALLBOARD_ISOLATED"
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_DIRECTORIES = {"IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}


class Isolation:
    """Whether this process is to be isolated, and is."""

    def __init__(self) -> None:
        self.is_done = False

    @property
    def is_wanted(self) -> bool:
        return VARIABLE in os.environ

    def prepare(self) -> None:
        """To be called while the process has one thread: Linux keeps this promise per thread."""
        if self.is_wanted:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def check(self) -> None:
        """Ends the process if it would run user code with the node's rights."""
        if self.is_wanted and not self.is_done:
            os.write(2, b"callboard: asked to run code before it was isolated from the node\n")
            os._exit(1)

    def enter(self, told: dict[str, Any] | None) -> dict[str, str]:
        """Becomes the user that the node names; returns the variables that this sets."""
        if told is None:
            self.check()
            return {}
        try:
            variables = _become(told["uid"], told["home"], told["caches"])
        except BaseException as error:  # it must not go on as root, whatever went wrong
            os.write(2, f"callboard: cannot be isolated from the node: {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        self.is_done = True
        return variables


def _become(uid: int, home: str, caches: str) -> dict[str, str]:
    from .__main__ import die_with_parent

    _keep_sockets_and_log_only(uid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    # These three reach all threads, and with the last one the capabilities are gone.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # Else /proc/self is root's, and the process cannot ask which of its pages were written. Processes
    # of other users cannot look into it all the same.
    _prctl(_PR_SET_DUMPABLE, 1)
    # Linux forgets it when the uid changes.
    die_with_parent()
    _check_threads(uid)
    variables = {"HOME": home}
    for name, below in _DIRECTORIES.items():
        variables[name] = os.path.join(caches, below)
        os.makedirs(variables[name], exist_ok=True)
    for name in ("USER", "LOGNAME"):
        if name in os.environ:
            variables[name] = f"callboard-{uid}"
    os.environ.update(variables)
    return variables


def _keep_sockets_and_log_only(uid: int) -> None:
    """Closes files that root opened, which the process could go on to use."""
    log = os.stat(os.path.join(os.path.dirname(os.environ["CALLBOARD_STATE_SOCKET"]), "log"))
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            status = os.fstat(fd)
        except OSError:  # that of the listing itself
            continue
        is_log = (status.st_dev, status.st_ino) == (log.st_dev, log.st_ino)
        if is_log or stat.S_ISFIFO(status.st_mode):
            # Its own words; by name, as /dev/stderr, its owner alone may open them.
            os.fchown(fd, uid, uid)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            # Replaced, not closed: its owner may close it again, when the number is another's.
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, fd, inheritable=False)
            os.close(nothing)


def _check_threads(uid: int) -> None:
    """Raises PermissionError if a thread has kept anything."""
    wanted = {"Uid": [str(uid)] * 4, "Gid": [str(uid)] * 4, "Groups": [], "NoNewPrivs": ["1"]}
    wanted |= {name: ["0" * 16] for name in ("CapPrm", "CapEff", "CapAmb")}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{thread}/status") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in wanted and value.split() != wanted[name]:
                    raise PermissionError(f"thread {thread} still has {name} {value.strip()}")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


ISOLATION = Isolation()
