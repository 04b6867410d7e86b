"""`python -m callboard_kernel -f CONNECTION_FILE`: runs the kernel until its node ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from callboard_kernel.isolation import ISOLATION

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process when the thread that started it ends.

    A second line of defence behind the end of file on the state socket, which also covers a parent
    that died before this call. Linux means the starting thread, so the node must start kernels from
    a thread that lives as long as it does.
    """
    if sys.platform == "linux" and os.environ.get("CALLBOARD_STATE_SOCKET"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    die_with_parent()
    ISOLATION.prepare()
    # `-m` put the start directory first; IPython adds "", which follows the session's directory.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    run()


def run() -> None:
    """Runs the kernel that `sys.argv` asks for, until it ends."""
    # A shell starts what runs in the background with interrupts ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import zmq
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    from callboard_kernel.kernel import CallboardKernel

    class Application(IPKernelApp):
        """ipykernel's application with one shell thread, outputs that are never dropped, and no hints for
        people at a terminal."""

        def init_control(self, context: Any) -> None:
            """Leaves out the thread that would hand requests to subshells."""
            super().init_control(context)
            self.shell_channel_thread = None

        def _bind_socket(self, socket: Any, port: int) -> Any:
            """Has outputs wait for a busy node; ZeroMQ would drop what is over its mark without a word."""
            if socket.socket_type == zmq.XPUB:
                socket.setsockopt(zmq.XPUB_NODROP, 1)
            elif socket.socket_type == zmq.PUB:
                # That of an older ipykernel; it cannot wait.
                socket.set_hwm(0)
            return super()._bind_socket(socket, port)

        def initialize(self, argv: Any = None) -> None:
            """Has the logger make no records that its handler drops: they cost a short cell a twentieth."""
            super().initialize(argv)
            self.log.setLevel(self.log_level)

        def log_connection_info(self) -> None:
            """The node knows the connection file; nobody reads this."""

    # A session's history travels with it. IPython's own is one file on one machine, for all kernels.
    outputs = {"outstream_class": "callboard_kernel.streams.CellStream"}
    config = Config({"HistoryManager": {"hist_file": ":memory:"}, "IPKernelApp": outputs})
    Application.launch_instance(kernel_class=CallboardKernel, config=config)


if __name__ == "__main__":
    main()
