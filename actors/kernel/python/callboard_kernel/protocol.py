"""Requests of the Jupyter protocol that are answered here, since ipykernel would leave them unanswered.

Subshells are refused: they run cells beside each other on other threads, against the one order in
which the node logs them. A message to a comm that is not there gets the protocol's `comm_close`.
"""

from __future__ import annotations

from typing import Any

NO_SUBSHELLS = (
    "Callboard runs the requests of a session one after another, in the order of its log; "
    "it has no subshells, which would run beside it."
)
_SUBSHELL_REQUESTS = ("create_subshell_request", "delete_subshell_request", "list_subshell_request")


class Answers:
    """Answers for one kernel; on the control thread for subshells, on the main one for the rest."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        for request in _SUBSHELL_REQUESTS:
            kernel.control_handlers[request] = self._refuse_subshell
        self._known_comm = {request: kernel.shell_handlers[request] for request in ("comm_msg", "comm_close")}
        for request in self._known_comm:
            kernel.shell_handlers[request] = self._comm

    def is_refused(self, frames: list[Any]) -> bool:
        """Whether a request on the shell channel was for a subshell, and has got its answer."""
        kernel = self._kernel
        try:
            ident, rest = kernel.session.feed_identities(frames, copy=False)
            if b"subshell_id" not in rest[1].bytes:
                # To read a header takes a good part of the time of a short cell.
                return False
            parent = kernel.session.deserialize(rest, content=False, copy=False)
        except Exception:  # ipykernel says what is wrong with it
            return False
        kind = parent["msg_type"]
        # ipykernel, too, takes messages to comms wherever they come from.
        if parent["header"].get("subshell_id") is None or kind in self._known_comm:
            return False
        kernel._publish_status("busy", "shell", parent=parent)
        self._refuse_subshell(kernel.shell_stream, ident, parent)
        kernel._publish_status("idle", "shell", parent=parent)
        return True

    def _refuse_subshell(self, stream: Any, ident: Any, parent: Any) -> None:
        kind = parent["header"]["msg_type"].removesuffix("_request") + "_reply"
        content = {"status": "error", "ename": "SubshellsNotSupported", "evalue": NO_SUBSHELLS, "traceback": []}
        self._kernel.session.send(stream, kind, content, parent, ident=ident)

    def _comm(self, stream: Any, ident: Any, parent: Any) -> Any:
        kernel, comm_id = self._kernel, parent["content"].get("comm_id")
        kind = parent["header"]["msg_type"]
        if comm_id in kernel.comm_manager.comms:
            return self._known_comm[kind](stream, ident, parent)
        if kind == "comm_msg":
            content = {"comm_id": comm_id, "data": {}}
            kernel.session.send(kernel.iopub_socket, "comm_close", content, parent, ident=f"comm-{comm_id}".encode())
        return None
