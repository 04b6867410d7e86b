"""Threads and processes of the session that no name need lead to are reported, and go when they end."""

from __future__ import annotations

from harness import Kernel


def refused(reply):
    return [entry["name"] for entry in reply["captured"]["refused"]]


def test_a_thread_and_a_process_without_a_name_are_reported_until_they_end():
    with Kernel() as kernel:
        assert refused(kernel.run("x = 1")) == []
        code = """
import subprocess, sys, threading
def work(stop=threading.Event()):
    work.stop = stop
    stop.wait()
threading.Thread(target=work, name="work", daemon=True).start()
def launch():
    launch.pid = subprocess.Popen(["sleep", "600"]).pid
launch()
print(launch.pid)
"""
        reply = kernel.run(code)
        pid = reply["stdout"].strip()
        assert {"thread work", f"process {pid}"} <= set(refused(reply))
        kernel.run(f"import os, signal; os.kill({pid}, signal.SIGKILL); os.waitpid({pid}, 0); work.stop.set()")
        kernel.run("[t.join() for t in threading.enumerate() if t.name == 'work']")
        assert not {"thread work", f"process {pid}"} & set(refused(kernel.run("1")))


def test_what_libraries_start_for_themselves_is_not_reported():
    with Kernel() as kernel:
        reply = kernel.run("import asyncio\nawait asyncio.get_running_loop().run_in_executor(None, print)")
        assert refused(reply) == []
        # A large output is sent without a copy, which pyzmq has a thread for.
        assert refused(kernel.run("from IPython.display import HTML\nHTML('x' * 3_000_000)")) == []
        kernel.run("del Out[2], HTML, _, _2", allow_error=True)
        assert "GarbageCollectorThread" in kernel.run("import threading; print(threading.enumerate())")["stdout"]
        assert refused(kernel.run("import numpy; a = numpy.ones((300, 300)); b = a @ a; del a, b")) == []
