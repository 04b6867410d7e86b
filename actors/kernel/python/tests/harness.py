"""Real kernels with a stand-in for the node: a Unix socket that keeps the groups that arrive."""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from zygote_harness import Forked, Zygote

from node_side import patched

PACKAGE_PARENT = Path(__file__).resolve().parents[1]
REPLY_TIMEOUT_S = 60.0


class CellError(AssertionError):
    """A cell raised."""


class NodeStandIn:
    """Accepts one kernel, keeps its state as the node would, and can send it to another."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.connection: socket.socket | None = None
        self.messages: queue.Queue[tuple[dict[str, Any], list[bytes]]] = queue.Queue()
        self.groups: dict[str, tuple[dict[str, Any], list[bytes]]] = {}
        self.execution_count = 1
        self.captures: list[dict[str, Any]] = []

    def accept(self) -> dict[str, Any]:
        self.connection, _ = self.listener.accept()
        threading.Thread(target=self._read_all, daemon=True).start()
        return self.wait_for("hello")[0]

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _read_all(self) -> None:
        try:
            while True:
                (length,) = struct.unpack(">I", self._read(4))
                header = json.loads(self._read(length))
                self.messages.put((header, [self._read(size) for size in header["buffers"]]))
        except (EOFError, OSError):
            self.messages.put(({"type": "closed"}, []))

    def send(self, header: dict[str, Any], buffers: list[bytes]) -> None:
        encoded = json.dumps({**header, "buffers": [len(buffer) for buffer in buffers]}).encode()
        self.connection.sendall(struct.pack(">I", len(encoded)) + encoded + b"".join(buffers))

    def wait_for(self, kind: str, msg_id: str | None = None) -> tuple[dict[str, Any], list[bytes]]:
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while True:
            header, buffers = self.messages.get(timeout=max(0.01, deadline - time.monotonic()))
            if header["type"] in ("error", "closed") and header["type"] != kind:
                raise AssertionError(f"waiting for {kind}, got {header}")
            if header["type"] == "captured":
                self.keep(header, buffers)
            if header["type"] == kind and msg_id in (None, header.get("msg_id")):
                return header, buffers

    def keep(self, header: dict[str, Any], buffers: list[bytes]) -> None:
        self.captures.append(header)
        position = 0
        for entry in header["upsert"]:
            before, held = self.groups.get(entry["group"], ({}, []))
            sent = buffers[position : position + entry["parts"]]
            self.groups[entry["group"]] = (entry, patched(entry, sent, held, before.get("version")))
            position += entry["parts"]
        for key in header["removed"]:
            self.groups.pop(key, None)
        self.execution_count = header["execution_count"]

    def restore_from(self, other: NodeStandIn) -> list[dict[str, str]]:
        entries = [entry for entry, _parts in other.groups.values()]
        buffers = [part for _entry, parts in other.groups.values() for part in parts]
        self.send({"type": "restore", "groups": entries, "execution_count": other.execution_count}, buffers)
        restored, _ = self.wait_for("restored")
        self.groups = dict(other.groups)
        self.execution_count = other.execution_count
        return restored["failed"]


@functools.cache
def shared_zygote() -> Zygote:
    """With CALLBOARD_TEST_ZYGOTE, the zygote that the kernels of all tests are forked from."""
    return Zygote()


class Kernel:
    """A kernel process with a client and its node's stand-in."""

    def __init__(
        self,
        directory: Path | None = None,
        zygote: Zygote | None = None,
        root: Path | None = None,
        packages: dict[str, str] | None = None,
        **limits: Any,
    ) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="callboard-test-")
        scratch = Path(self.scratch.name)
        state_path = str(scratch / "state.sock")
        self.node = NodeStandIn(state_path)
        connection_file, _ = write_connection_file(
            str(scratch / "connection.json"), transport="ipc", ip=str(scratch / "zmq"), key=b"test"
        )
        if zygote is None and os.environ.get("CALLBOARD_TEST_ZYGOTE"):
            zygote = shared_zygote()
        changes = {
            "CALLBOARD_STATE_SOCKET": state_path,
            "PYTHONPATH": str(PACKAGE_PARENT),
            "IPYTHONDIR": str(scratch / "ipython"),
            "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "callboard-test-matplotlib"),
        }
        self.process: subprocess.Popen[bytes] | Forked
        if zygote is not None:
            cwd = str(directory or os.getcwd())
            self.process = zygote.fork(connection_file, changes, str(scratch / "log"), cwd=cwd)
        else:
            command = [sys.executable, "-m", "callboard_kernel", "-f", connection_file]
            self.process = subprocess.Popen(command, env={**os.environ, **changes}, cwd=directory)
        self.hello = self.node.accept()
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
            told = {"type": "configure", "directory": {"root": str(root), **limits}, "packages": packages}
            self.node.send(told, [])
        self.client = BlockingKernelClient(connection_file=connection_file)
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=REPLY_TIMEOUT_S)

    def run(self, code: str, allow_error: bool = False, **options: Any) -> dict[str, Any]:
        """Runs a cell; returns its reply with `stdout`, `stderr` and `captured`."""
        out = {"stdout": "", "stderr": ""}
        order: list[str] = []

        def on_output(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                out[content["name"]] += content["text"]
            order.append(message["msg_type"])

        reply = self.client.execute_interactive(
            code, output_hook=on_output, timeout=REPLY_TIMEOUT_S, allow_stdin=False, **options
        )
        captured, _ = self.node.wait_for("captured", reply["parent_header"]["msg_id"])
        content = reply["content"]
        if content["status"] != "ok" and not allow_error:
            raise CellError(f"{code}\n{content.get('ename')}: {content.get('evalue')}\n" + out["stderr"])
        return {**content, **out, "captured": captured, "order": order}

    def ask(self, kind: str, content: dict[str, Any], channel: str = "shell", **header: str) -> dict[str, Any]:
        """Sends a request without user code; returns its reply's content."""
        message = self.client.session.msg(kind, content)
        message["header"].update(header)
        return self._answer(message, channel)

    def _answer(self, message: dict[str, Any], channel: str) -> dict[str, Any]:
        socket = getattr(self.client, f"{channel}_channel")
        socket.send(message)
        while True:
            reply = socket.get_msg(timeout=REPLY_TIMEOUT_S)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return reply["content"]

    def tell_comm(self, kind: str, content: dict[str, Any], **parts: Any) -> list[dict[str, Any]]:
        """Sends a message about a comm as a front-end; returns all that is published until it is handled."""
        message = self.client.session.msg(kind, content)
        message |= parts
        self.client.session.send(self.client.shell_channel.socket, message, buffers=parts.get("buffers"))
        msg_id = message["header"]["msg_id"]
        published = self.published_until_idle(msg_id)
        self.node.wait_for("captured", msg_id)
        return published

    def published_until_idle(self, msg_id: str) -> list[dict[str, Any]]:
        """All messages of the publishing channel, whosever they are, until a request is over."""
        found = []
        while True:
            message = self.client.get_iopub_msg(timeout=REPLY_TIMEOUT_S)
            is_own = message["parent_header"].get("msg_id") == msg_id
            if is_own and message["content"].get("execution_state") == "idle":
                return found
            found.append(message)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.client.stop_channels()
        self.process.kill()
        self.process.wait()
        self.scratch.cleanup()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_error: Any) -> None:
        self.close()
