"""The kernel class: ipykernel with a capture after every request that can run user code.

Order per request: user code, reply sent and flushed, capture, status `idle`. A capture runs
synchronously on the main thread, so no other cell can interleave with it. A cell of level `received`
says `idle` before the capture, and after it only if the capture had something to say.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import platform
import signal
import sys
import time
import threading
import traceback
from pathlib import Path
from typing import Any

import zmq
from ipykernel.ipkernel import IPythonKernel
from ipykernel.utils import _async_in_context

from . import PROTOCOL_VERSION, comms, live, streams
from .background import Background
from .channel import Channel
from .directory import DIRECTORY
from .packages import PACKAGES
from .delta import Delta, Group
from .isolation import ISOLATION
from .magics import Magics
from .protocol import Answers
from .refusal import CaptureInterrupted
from .restore import HeldGroup, Restore
from .rewind import RewindWish
from .tracker import SAVING_NOTICE_S, Tracker

SOCKET_VARIABLE = "CALLBOARD_STATE_SOCKET"
# After so long without a cell, the tracker gives back what it keeps for speed.
REST_AFTER_S = 30.0
# How long a busy node may keep what is published before a capture that waits for it goes ahead.
PUBLISHED_WITHIN_S = 1.0
# Marks an `idle` that is said before the capture.
_STILL_CAPTURING = {"callboard": {"capturing": True}}
_REQUESTS_WITH_USER_CODE = ("execute_request", "comm_open", "comm_msg", "comm_close")


class CallboardKernel(IPythonKernel):
    """An IPython kernel whose session the node can carry to another machine."""

    _supports_kernel_subshells = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tracker: Tracker | None = None
        self.background: Background | None = None
        self.channel: Channel | None = None
        self._resting: Any = None
        # The request whose `idle` was said before its capture, which had nothing to add.
        self._told: str | None = None
        self.answers = Answers(self)
        for request in _REQUESTS_WITH_USER_CODE:
            self.shell_handlers[request] = self._captured_after(self.shell_handlers[request])

    def start(self) -> None:
        """Starts serving; the session as it is now is what later changes are counted from."""
        super().start()
        # ipykernel asks this thread for its parent to see whether a cell is on the main one.
        self.shell_channel_thread = _NoShellThread()
        # Cells run in one context of their own; what they set in context variables (NumPy's error
        # handling, decimal's precision) is seen by captures, and has to be set there by a restore.
        self._in_cell_context = _async_in_context(_call)
        serve = functools.partial(self._in_cell_context, self._serve)
        self.shell_stream.on_recv(serve, copy=False)
        live.attach(self.shell.user_ns, self.shell, self)
        self.tracker, self.background = Tracker(), Background()
        self.magics = Magics(self.tracker)
        self.rewind = RewindWish()
        self.magics.add_verb("rewind", self.rewind.ask, "rewind STATE    go back to an earlier state after this cell")
        self.magics.register(self.shell)
        path = os.environ.get(SOCKET_VARIABLE)
        if path:
            self.channel = Channel.connect(path)
            self.channel.send(_hello())
            self.channel.listen(self._on_message)

    async def _serve(self, frames: list[Any]) -> None:
        if not self.answers.is_refused(frames):
            await self.shell_main(None, frames)

    def _captured_after(self, handler: Any) -> Any:
        async def handle(stream: Any, ident: Any, parent: Any) -> None:
            ISOLATION.check()
            comms.say_held()
            uninterrupted = signal.getsignal(signal.SIGINT)
            try:
                try:
                    # No earlier and no later: an interrupt beside the handler would leave the request unanswered.
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    result = handler(stream, ident, parent)
                    if inspect.isawaitable(result):
                        await result
                finally:
                    signal.signal(signal.SIGINT, uninterrupted)
            except KeyboardInterrupt:
                # It came before the code ran, or after: ipykernel answers only one in between.
                self._answer_interrupted(stream, ident, parent)
            finally:
                said: int | None = None
                try:
                    if stream is not None and hasattr(stream, "flush"):
                        stream.flush(zmq.POLLOUT)
                    said = self._say_idle_early(parent)
                finally:
                    self._capture(parent["header"]["msg_id"], said)

        return handle

    def pre_handler_hook(self) -> None:
        """Opens a request to interrupts; one that is captured opens itself, for as long as it can answer them."""
        if self.get_parent("shell").get("header", {}).get("msg_type") in _REQUESTS_WITH_USER_CODE:
            self.saved_sigint_handler = signal.getsignal(signal.SIGINT)
        else:
            super().pre_handler_hook()

    def _say_idle_early(self, parent: Any) -> int | None:
        """Tells front-ends that a cell is over which does not wait for its state to be captured.

        It is marked for the node, for which the cell goes on until it is captured. Returns how much was written
        until then, or None if nothing was told.
        """
        if parent["header"]["msg_type"] != "execute_request" or not _is_received(parent) or self.rewind.is_due:
            return None
        for output in (sys.stdout, sys.stderr):
            if output is not None:
                output.flush()
        written = streams.written()
        self.session.send(
            self.iopub_socket,
            "status",
            {"execution_state": "idle"},
            parent=parent,
            ident=self._topic("status"),
            metadata=_STILL_CAPTURING,
        )
        self._wait_until_published()
        return written

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        """Says how a request stands, but not a second time that it is over."""
        told, asked = self._told, parent or self.get_parent(channel)
        if status == "idle" and told is not None and asked.get("header", {}).get("msg_id") == told:
            self._told = None
            return
        super()._publish_status(status, channel, parent)

    def _wait_until_published(self) -> None:
        """Waits until what was published has left: the thread that sends it would get the interpreter's lock only
        when the capture gives it up."""
        left = threading.Event()
        self.iopub_thread.schedule(left.set)
        left.wait(PUBLISHED_WITHIN_S)

    def _answer_interrupted(self, stream: Any, ident: Any, parent: Any) -> None:
        """Ends a cell whose interrupt hit ipykernel's own code, which would leave it unanswered."""
        if parent["header"]["msg_type"] != "execute_request" or stream is None:
            return
        error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
        self.send_response(self.iopub_socket, "error", error)
        content = {"status": "error", "execution_count": self.shell.execution_count, **error}
        content |= {"user_expressions": {}, "payload": []}
        self.session.send(stream, "execute_reply", content, parent, ident=ident)

    def _capture(self, msg_id: str, said: int | None) -> None:
        """Captures and sends exactly one `captured` message, whatever goes wrong.

        `said` is how much had been written when front-ends were told that the request is over, if they were.
        """
        tracker, channel = self.tracker, self.channel
        if tracker is None or channel is None:
            return
        start = time.monotonic()

        def on_interrupt(_signal: int, _frame: Any) -> None:
            if tracker.in_dump and time.monotonic() - start > SAVING_NOTICE_S:
                raise CaptureInterrupted

        previous = signal.signal(signal.SIGINT, on_interrupt)
        try:
            tracker.on_slow = lambda: channel.send({"type": "saving", "msg_id": msg_id})
            known = tracker.groups
            delta = self._safe_capture(tracker)
            if self.background is not None:
                delta.refused.extend(self.background.refused())
            try:
                self._send_captured(msg_id, delta, said)
            except ValueError as error:
                delta = self._lost_capture(tracker, known, str(error))
                self._send_captured(msg_id, delta, said)
            tracker.sent(delta)
            self._rest_later(tracker)
            for notice in delta.notices:
                print(notice, file=sys.stderr)
        except OSError:
            os._exit(1)
        finally:
            signal.signal(signal.SIGINT, previous)

    def _rest_later(self, tracker: Tracker) -> None:
        if self._resting is not None:
            self.io_loop.remove_timeout(self._resting)
        self._resting = self.io_loop.call_later(REST_AFTER_S, tracker.rest)

    def _send_captured(self, msg_id: str, delta: Delta, said: int | None) -> None:
        # What a capture says or makes others say belongs to its request, whose end has to be said after it.
        is_told = said is not None and not delta.notices and said == streams.written()
        self._told = msg_id if is_told else None
        self.channel.send(
            {
                "type": "captured",
                "msg_id": msg_id,
                "upsert": delta.upsert,
                "removed": delta.removed,
                "refused": delta.refused,
                "elapsed_ms": round(delta.elapsed_ms, 3),
                "execution_count": self.shell.execution_count,
                "rewind": self.rewind.take(),
                "is_told": is_told,
            },
            delta.buffers,
        )

    @staticmethod
    def _lost_capture(tracker: Tracker, known: dict[str, Group], reason: str) -> Delta:
        """The node gets nothing of this capture: compare with what it held before, next time."""
        tracker.groups = known
        delta = Delta()
        delta.refused.append({"name": "*", "type": "session", "reason": reason})
        delta.notices.append(f"callboard: the state after this cell was not saved: {reason}")
        return delta

    def _safe_capture(self, tracker: Tracker) -> Delta:
        known = tracker.groups
        try:
            return tracker.capture()
        except BaseException as error:  # a fault here must not take the cell's answer with it
            os.write(2, traceback.format_exc().encode())
            return self._lost_capture(tracker, known, f"capture failed with {type(error).__name__}: {error}")

    def _on_message(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        """Called on the reading thread; hands the message to the main one."""
        self.io_loop.add_callback(self._in_cell_context, self._handle, header, buffers)

    async def _handle(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        async with self._main_asyncio_lock:
            kind = header.get("type")
            try:
                if kind == "restore":
                    self._restore(header, buffers)
                elif kind == "configure":
                    self._configure(header)
                else:
                    raise ValueError(f"unknown message type {kind!r}; this kernel speaks protocol {PROTOCOL_VERSION}")
            except Exception as error:
                message = f"{kind}: {type(error).__name__}: {error}"
                self.channel.send({"type": "error", "message": message})

    def _restore(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        ISOLATION.check()
        start = time.monotonic()
        groups, position = [], 0
        for entry in header["groups"]:
            parts = buffers[position : position + entry["parts"]]
            position += entry["parts"]
            groups.append(HeldGroup(entry["group"], entry["names"], entry["kind"], parts[0], parts[1:]))
        failed = Restore(self.tracker, groups, header["execution_count"]).run()
        elapsed_ms = round((time.monotonic() - start) * 1000, 3)
        self.channel.send({"type": "restored", "failed": failed, "elapsed_ms": elapsed_ms})

    def _configure(self, header: dict[str, Any]) -> None:
        if "capture_budget_ms" in header:
            self.tracker.budget_s = header["capture_budget_ms"] / 1000
        if header.get("directory"):
            # First of all: whether it may go there is a question of whose process it is.
            self._isolate(header.get("user"))
            DIRECTORY.configure(header["directory"])
            self.shell.user_ns["_dh"][:] = [Path.cwd()]
        if header.get("session"):
            # Front-ends drop messages of another session than the newest they know: it is the kernel's and
            # not the process's. Its messages are counted from where no other process counts.
            self.session.session = header["session"]
            self.session.message_count = time.time_ns()
        if header.get("packages"):
            PACKAGES.configure(header["packages"])
        if "state_bytes_max" in header:
            self.tracker.state_bytes_max = header["state_bytes_max"]
        if "exclude" in header:
            self.tracker.namespace.exclude = frozenset(header["exclude"])

    def _isolate(self, user: dict[str, Any] | None) -> None:
        variables = ISOLATION.enter(user)
        if variables:
            # They are this process's, and no change that the session made.
            self.tracker.session.begin_with(variables)
            with contextlib.suppress(Exception):  # where `%store` keeps things; other versions may differ
                self.shell.db = type(self.shell.db)(os.path.join(variables["IPYTHONDIR"], "db"))


def _is_received(parent: Any) -> bool:
    metadata = parent.get("metadata")
    wishes = metadata.get("callboard") if isinstance(metadata, dict) else None
    return isinstance(wishes, dict) and wishes.get("level") == "received"


class _NoShellThread:
    """False like the absent thread it stands for, but able to answer that cells run on the main one."""

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


async def _call(handler: Any, *arguments: Any) -> None:
    await handler(*arguments)


def _hello() -> dict[str, Any]:
    # Directory names only: opening every distribution's metadata would cost a tenth of a second.
    distributions: dict[str, str] = {}
    for directory in map(Path, sys.path):
        for found in directory.glob("*.dist-info") if directory.is_dir() else ():
            name, _, version = found.name[: -len(".dist-info")].partition("-")
            distributions.setdefault(name, version)
    return {
        "type": "hello",
        "protocol": PROTOCOL_VERSION,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "distributions": distributions,
    }
