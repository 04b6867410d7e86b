"""The state socket: framed messages between this process and its node.

A frame is a 4-byte big-endian length, a JSON header of that many bytes, then raw buffers whose
lengths the header lists under `buffers`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from typing import Any, Callable, Iterable

# Enough for the names of a million variables; more is a broken peer.
HEADER_BYTES_MAX = 16 * 1024 * 1024
# Shorter pieces are copied together, to be written at once.
_GATHERED_BYTES_MAX = 32 * 1024
_LENGTH = struct.Struct(">I")

Message = tuple[dict[str, Any], list[bytearray]]


class Channel:
    """A blocking connection; `send` may be called from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, path: str) -> Channel:
        """Connects to the node, which listens before it starts this process."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(path)
        return cls(connection)

    def send(self, header: dict[str, Any], buffers: Iterable[list[Any]] = ()) -> None:
        """Writes one message; each buffer is a list of pieces that follow each other.

        Raises OSError if the node is gone, ValueError if the header is too long.
        """
        views = [[memoryview(piece).cast("B") for piece in pieces] for pieces in buffers]
        lengths = [sum(view.nbytes for view in pieces) for pieces in views]
        encoded = json.dumps({**header, "buffers": lengths}).encode()
        if len(encoded) > HEADER_BYTES_MAX:
            raise ValueError(f"a header of {len(encoded)} bytes is over the limit of {HEADER_BYTES_MAX}")
        with self._lock:
            gathered = bytearray(_LENGTH.pack(len(encoded)) + encoded)
            for pieces in views:
                for view in pieces:
                    if view.nbytes <= _GATHERED_BYTES_MAX:
                        gathered += view
                    if len(gathered) > _GATHERED_BYTES_MAX or view.nbytes > _GATHERED_BYTES_MAX:
                        self._socket.sendall(gathered)
                        gathered.clear()
                    if view.nbytes > _GATHERED_BYTES_MAX:
                        self._socket.sendall(view)
            self._socket.sendall(gathered)

    def receive(self) -> Message | None:
        """Reads one message; None when the node closed the connection."""
        prefix = self._read(_LENGTH.size)
        if prefix is None:
            return None
        (length,) = _LENGTH.unpack(prefix)
        if length > HEADER_BYTES_MAX:
            raise ValueError(f"the node announced a header of {length} bytes; the limit is {HEADER_BYTES_MAX}")
        encoded = self._read(length)
        if encoded is None:
            return None
        header = json.loads(bytes(encoded))
        buffers = []
        for size in header.get("buffers", ()):
            buffer = self._read(size)
            if buffer is None:
                return None
            buffers.append(buffer)
        return header, buffers

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                return None
            view = view[count:]
        return data

    def listen(self, on_message: Callable[[dict[str, Any], list[bytearray]], None]) -> None:
        """Reads in a thread of its own; when the node is gone, so is this process, at once."""

        def run() -> None:
            try:
                while (message := self.receive()) is not None:
                    on_message(*message)
            except (OSError, ValueError) as error:
                os.write(2, f"callboard: the state socket failed: {error}\n".encode())
            finally:
                os._exit(1)

        threading.Thread(target=run, name="callboard-state", daemon=True).start()

    def close(self) -> None:
        self._socket.close()
