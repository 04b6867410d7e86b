"""Becomes the process of a kernel that is not Python: the session's user, in its directory.

The node runs it with what to do as JSON, and it ends as the program that the kernelspec names. That has
the process id, the limits and the uid of this one, and ends with the node as this one would.
"""

from __future__ import annotations

import json
import os
import signal

from .__main__ import die_with_parent
from .isolation import ISOLATION


def main(told: str) -> None:
    """Does not return."""
    die_with_parent()
    ISOLATION.prepare()
    job = json.loads(told)
    # What the user wrote is read from here on only: nothing of it is imported before.
    ISOLATION.enter(job["user"])
    for name in [name for name in os.environ if name.startswith("CALLBOARD_")]:
        del os.environ[name]
    # Python ignores some, and a shell has what runs in the background ignore interrupts; a new program
    # would go on to.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    argv = job["argv"]
    try:
        os.chdir(job["directory"])
        os.environ["PWD"] = job["directory"]
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"callboard: cannot run {argv[0]} in {job['directory']}: {error.strerror}\n".encode())
        os._exit(127)
