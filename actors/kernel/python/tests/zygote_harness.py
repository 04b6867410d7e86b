"""A zygote with a stand-in for the node: this process, as the reaper of its descendants."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PACKAGE_PARENT = Path(__file__).resolve().parents[1]
_PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """A kernel's process, with what the tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            handle = os.pidfd_open(self.pid)
            ended, _, _ = select.select([handle], [], [], timeout)
            os.close(handle)
            if not ended:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Zygote:
    """One zygote. `fork` may be called from any thread."""

    def __init__(self, libraries: str = "numpy pandas matplotlib", environment: dict[str, str] | None = None) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT), **(environment or {})}
        command = [sys.executable, "-m", "callboard_kernel.zygote", "/run-dir", libraries]
        self.process = subprocess.Popen(command, stdin=theirs, env=environment)
        theirs.close()
        self.socket = ours
        self.lines = ours.makefile("r")
        self.ready: dict[str, Any] = json.loads(self.lines.readline())
        self._lock = threading.Lock()

    def fork(self, connection: str, environment: dict[str, str], log: str, **more: Any) -> Forked:
        request = {
            "id": 1, "parent": os.getpid(), "connection": connection, "log": log,
            "cwd": os.getcwd(), "env": environment, **more,
        }
        with self._lock:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self.lines.readline())
        assert answer["type"] == "forked", answer
        return Forked(answer["pid"])

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.process.wait()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_error: Any) -> None:
        self.close()
