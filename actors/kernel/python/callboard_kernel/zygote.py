"""`python -m callboard_kernel.zygote RUN_DIR LIBRARIES [SKIPPED]`: a process that forks kernels.

It has imported ipykernel, this package and the configured libraries, has one thread, and serves its
node over the socket that is its standard input: one JSON object per line. It reads
`{"id", "parent", "connection", "log", "cwd", "env", "nice"}` and answers `forked` with the process id
or `failed` with a reason; once, before the first request, it says `ready`. It ends when its node does.

A kernel is forked twice, so that it becomes a child of the node, which made itself the reaper of its
descendants: it outlives the zygote, dies with the node, and the node sees how it ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from typing import Any

from callboard_kernel.isolation import ISOLATION

# What ipykernel and IPython import only once a kernel runs; none of it is the session's.
_IMPORTED_WHEN_A_KERNEL_STARTS = (
    "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger", "IPython.core.oinspect",
    "IPython.extensions.storemagic", "IPython.utils.wildcard", "callboard_kernel.__main__",
    "concurrent.futures.thread", "faulthandler", "ipykernel.debugger", "pkgutil", "pydoc", "runpy", "secrets",
    "sqlite3", "encodings.ascii", "encodings.idna", "encodings.latin_1", "tornado.gen", "tornado.locks",
    "tornado.platform.asyncio", "tornado.queues", "unicodedata",
)
REQUEST_BYTES_MAX = 1 << 20
# Closed in a child where the system names no limit of open files.
DESCRIPTORS_MAX = 1 << 20
# A child waits this long for the process between it and the zygote to end.
ADOPTED_WITHIN_S = 10.0


def main() -> None:
    # `-m` put the start directory first; kernels do not have it, and nothing may shadow a library.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    _run_dir, libraries, *rest = sys.argv[1:]
    skipped: dict[str, str] = json.loads(rest[0]) if rest else {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ISOLATION.prepare()
    gc.disable()
    preloaded, loaded = _preload(libraries.split(), skipped)
    # With what importing ipykernel sets in any kernel; what libraries set is set when they are shown.
    environment = dict(os.environ)
    preloaded.hide()
    gc.collect()
    gc.freeze()
    node = socket.socket(fileno=0)
    ready = {"type": "ready", "loaded": loaded, "skipped": skipped, "paths": _watched_paths()}
    request = _serve(node, ready)
    if request is not None:
        # The descriptor is replaced, not closed: its number must not go to anything else.
        node.detach()
        del preloaded
        _become_kernel(request, environment)


def _preload(libraries: list[str], skipped: dict[str, str]) -> tuple[Any, list[str]]:
    import callboard_kernel.kernel  # noqa: F401  what every kernel needs
    import callboard_kernel.preload as preload
    import ipykernel.kernelapp  # noqa: F401

    for name in _IMPORTED_WHEN_A_KERNEL_STARTS:
        with contextlib.suppress(Exception):  # other versions may lack some
            importlib.import_module(name)
    _one_thread_or_begin_again("ipykernel", skipped)
    preloaded, loaded = preload.Preloaded(), []
    for name in libraries:
        if name in skipped:
            continue
        reason = preloaded.load(name)
        if reason is not None:
            skipped[name] = reason
            continue
        _one_thread_or_begin_again(name, skipped)
        loaded.append(name)
    return preloaded, loaded


def _one_thread_or_begin_again(name: str, skipped: dict[str, str]) -> None:
    """A thread does not survive a fork, and the locks it held stay locked: never import its maker."""
    threads = len(os.listdir("/proc/self/task"))
    if threads == 1:
        return
    if name == "ipykernel":
        raise SystemExit(f"importing ipykernel starts {threads - 1} threads; kernels cannot be forked")
    skipped[name] = f"importing it starts {threads - 1} threads"
    command = [sys.executable, "-m", "callboard_kernel.zygote", *sys.argv[1:3], json.dumps(skipped)]
    os.execv(sys.executable, command)


def _watched_paths() -> list[str]:
    """Directories whose change means that other libraries are installed now."""
    return [path for path in sys.path if os.path.isdir(path)]


def _serve(node: socket.socket, ready: dict[str, Any]) -> dict[str, Any] | None:
    """Answers requests until the node is gone. Returns a request in the process that is to be its kernel."""
    _send(node, ready)
    pending = b""
    while True:
        received = node.recv(1 << 16)
        if not received or len(pending) > REQUEST_BYTES_MAX:
            return None
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid, reason = _fork(request)
            if pid == 0:
                return request
            if pid is None:
                _send(node, {"type": "failed", "id": request["id"], "reason": reason})
            else:
                _send(node, {"type": "forked", "id": request["id"], "pid": pid})


def _send(node: socket.socket, message: dict[str, Any]) -> None:
    node.sendall(json.dumps(message).encode() + b"\n")


def _fork(request: dict[str, Any]) -> tuple[int | None, str]:
    """The new kernel's process id; 0 in that process."""
    reader, writer = os.pipe()
    try:
        between = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        return None, str(error)
    if between == 0:
        try:
            child = os.fork()
        except OSError as error:
            os.write(writer, f"cannot fork: {error}".encode())
            os._exit(1)
        if child == 0:
            return 0, ""
        os.write(writer, str(child).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        # The grandchild closes its end when it closes all it was given.
        said = pipe.read(256).decode()
    # Once the process between is gone, the node is the parent.
    os.waitpid(between, 0)
    return (int(said), "") if said.isdigit() else (None, said or "the fork was killed")


def _become_kernel(request: dict[str, Any], environment: dict[str, str]) -> None:
    """Makes this process what `python -m callboard_kernel` would be, and runs the kernel."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, limit if limit > 0 else DESCRIPTORS_MAX)
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _die_with(request["parent"])
        if request.get("nice"):
            os.nice(request["nice"])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(environment)
        os.environ.update(request["env"])
        _forget_the_zygote()
        gc.enable()
        main_file = os.path.join(os.path.dirname(__file__), "__main__.py")
        sys.argv = [main_file, "-f", request["connection"]]
        from callboard_kernel.__main__ import run
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    run()


def _die_with(parent: int) -> None:
    from callboard_kernel.__main__ import die_with_parent

    until = time.monotonic() + ADOPTED_WITHIN_S
    while os.getppid() != parent:
        if time.monotonic() > until:
            raise RuntimeError(f"process {os.getppid()} is the parent, not the node, {parent}")
        time.sleep(0.0005)
    die_with_parent()
    if os.getppid() != parent:
        raise RuntimeError("the node ended")


def _forget_the_zygote() -> None:
    """What is drawn once per process is drawn again. `random`, `tempfile` and OpenSSL see to themselves."""
    random.seed()
    secrets_of_multiprocessing = sys.modules.get("multiprocessing.process")
    if secrets_of_multiprocessing is not None:
        current = secrets_of_multiprocessing.current_process()
        current.authkey = os.urandom(32)
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        uuid._node = None
        uuid._last_timestamp = None


if __name__ == "__main__":
    main()
