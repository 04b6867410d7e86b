"""A kernel forked from a zygote is like one that was started, and shares nothing but memory pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from harness import Kernel
from zygote_harness import PACKAGE_PARENT, Forked, Zygote


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as zygote:
        yield zygote


def open_descriptors(pid: int) -> set[str]:
    directory = f"/proc/{pid}/fd"
    found = set()
    for name in os.listdir(directory):
        try:
            found.add(os.readlink(f"{directory}/{name}"))
        except FileNotFoundError:
            pass
    return found


def test_it_has_one_thread_and_says_what_it_loaded(zygote):
    assert os.listdir(f"/proc/{zygote.process.pid}/task") == [str(zygote.process.pid)]
    assert zygote.ready["loaded"] == ["numpy", "pandas", "matplotlib"]
    assert zygote.ready["skipped"] == {}


def test_a_kernel_is_a_child_of_the_node_in_a_session_of_its_own_and_says_how_it_ended(zygote):
    with Kernel(zygote=zygote) as kernel:
        pid = kernel.process.pid
        assert kernel.run("import os; print(os.getppid(), os.getsid(0), os.getpid())")["stdout"].split() == [
            str(os.getpid()), str(pid), str(pid)
        ]
        os.kill(pid, signal.SIGKILL)
        assert kernel.process.wait() == -signal.SIGKILL


def test_no_library_is_seen_before_it_is_imported(zygote):
    code = """
import sys
seen = [name for name in ("numpy", "pandas", "matplotlib") if name in sys.modules]
import pandas
after = [name for name in ("numpy", "pandas", "matplotlib") if name in sys.modules]
print(seen, after, pandas.__spec__.origin == pandas.__file__, pandas.DataFrame({"a": [1, 2]}).a.sum())
"""
    with Kernel(zygote=zygote) as kernel:
        assert kernel.run(code)["stdout"] == "[] ['numpy', 'pandas'] True 3\n"


def test_looking_for_a_library_does_not_import_it(zygote):
    code = """
import importlib.util, sys
spec = importlib.util.find_spec("numpy")
print("numpy" in sys.modules, "numpy" in spec.origin)
import numpy, numpy.linalg, importlib
print(numpy.linalg.norm([3, 4]), numpy.__spec__.loader is spec.loader, "numpy.linalg" in sys.modules)
"""
    with Kernel(zygote=zygote) as kernel:
        assert kernel.run(code)["stdout"] == "False True\n5.0 False True\n"


@pytest.mark.parametrize("chosen", [None, "agg", "svg"])
def test_the_backend_of_matplotlib_is_chosen_when_it_is_imported(zygote, chosen):
    code = f"import os\nif {chosen!r}: os.environ['MPLBACKEND'] = {chosen!r}\nimport matplotlib\nprint(matplotlib.get_backend())"
    said = []
    for source in (zygote, None):
        with Kernel(zygote=source) as kernel:
            said.append(kernel.run(code)["stdout"])
    assert said[0] == said[1]


def test_environment_paths_and_arguments_are_those_of_a_started_kernel(zygote, monkeypatch):
    monkeypatch.delenv("CALLBOARD_TEST_ZYGOTE", raising=False)
    code = """
import os, sys, signal, threading
changing = ("CALLBOARD_STATE_SOCKET", "CALLBOARD_TEST_ZYGOTE", "IPYTHONDIR", "PYTEST_CURRENT_TEST", "_")
environment = {k: v for k, v in os.environ.items() if k not in changing}
print(sorted(environment.items()), sys.path, os.path.basename(sys.argv[0]), len(sys.argv), os.getcwd(),
      signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD), sorted(t.name.lstrip("Thread-0123456789") for t in threading.enumerate()))
"""
    said = []
    for source in (zygote, None):
        with Kernel(zygote=source) as kernel:
            said.append(kernel.run(code)["stdout"])
    assert said[0] == said[1]


def test_what_a_library_sets_in_the_environment_is_set_when_it_is_imported(tmp_path):
    (tmp_path / "sets_here.py").write_text("import os; os.environ['SET_HERE'] = 'yes'")
    environment = {"PYTHONPATH": os.pathsep.join([str(PACKAGE_PARENT), str(tmp_path)])}
    with Zygote("sets_here", environment) as zygote, Kernel(zygote=zygote) as kernel:
        code = "import os; before = os.environ.get('SET_HERE'); import sets_here; print(before, os.environ['SET_HERE'])"
        assert kernel.run(code)["stdout"] == "None yes\n"


def test_ipywidgets_has_its_targets_once_it_is_imported():
    with Zygote("ipywidgets") as zygote, Kernel(zygote=zygote) as kernel:
        assert "ipywidgets" in zygote.ready["loaded"]
        targets = "print(sorted(get_ipython().kernel.comm_manager.targets))"
        assert kernel.run(targets)["stdout"] == "[]\n"
        assert "jupyter.widget.control" in kernel.run(f"import ipywidgets\n{targets}")["stdout"]


def test_numeric_libraries_have_the_threads_they_would_have(zygote):
    code = """
import numpy, os
a = numpy.ones((600, 600)); a @ a
print(len(os.listdir("/proc/self/task")))
"""
    said = []
    for source in (zygote, None):
        with Kernel(zygote=source) as kernel:
            said.append(kernel.run(code)["stdout"])
    assert said[0] == said[1]


def test_no_two_kernels_draw_the_same_numbers(zygote):
    code = """
import random, uuid, tempfile, os, ssl, multiprocessing, numpy, secrets
print([random.random(), numpy.random.rand(), uuid.uuid4(), secrets.token_hex(8), ssl.RAND_bytes(8),
       tempfile.mktemp(), bytes(multiprocessing.current_process().authkey)])
"""
    said = []
    for _ in range(2):
        with Kernel(zygote=zygote) as kernel:
            said.append(kernel.run(code)["stdout"].strip("[]\n").split(", "))
    assert len(said[0]) == 7
    assert not set(said[0]) & set(said[1])


def test_a_kernel_holds_nothing_of_the_zygote_or_of_another_kernel(zygote):
    with Kernel(zygote=zygote) as first, Kernel(zygote=zygote) as second:
        shared = open_descriptors(zygote.process.pid) - {"/dev/null"}
        ours, others = open_descriptors(second.process.pid), open_descriptors(first.process.pid)
        sockets = {name for name in ours if name.startswith(("socket:", "pipe:", "anon_inode:["))}
        named = {name for name in shared | others if name.startswith(("socket:", "pipe:"))}
        assert not sockets & named
        assert not any(first.scratch.name in name for name in ours)
        memory = second.run("print(open('/proc/self/environ').read())")["stdout"]
        assert first.scratch.name not in memory


def test_kernels_outlive_their_zygote():
    with Zygote("") as zygote, Kernel(zygote=zygote) as kernel:
        zygote.process.kill()
        zygote.process.wait()
        assert kernel.run("print(1 + 1)")["stdout"] == "2\n"


def test_a_zygote_ends_with_its_node():
    zygote = Zygote("")
    zygote.socket.close()
    zygote.lines.close()
    assert zygote.process.wait(timeout=30) == 0


def test_what_cannot_be_imported_is_named_and_skipped(tmp_path):
    (tmp_path / "raises_here.py").write_text("1/0")
    (tmp_path / "exits_here.py").write_text("raise SystemExit(3)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": os.pathsep.join([str(PACKAGE_PARENT), path])}
    with Zygote("no_such_library raises_here exits_here numpy", environment) as zygote:
        assert zygote.ready["loaded"] == ["numpy"]
        skipped = zygote.ready["skipped"]
        assert "No module named" in skipped["no_such_library"]
        assert skipped["raises_here"] == "ZeroDivisionError: division by zero"
        assert skipped["exits_here"] == "SystemExit: 3"


def test_a_library_that_starts_a_thread_is_not_preloaded(tmp_path):
    (tmp_path / "threads_here.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(PACKAGE_PARENT), str(tmp_path)])}
    with Zygote("numpy threads_here", environment) as zygote, Kernel(zygote=zygote) as kernel:
        assert zygote.ready["loaded"] == ["numpy"]
        assert zygote.ready["skipped"] == {"threads_here": "importing it starts 1 threads"}
        assert kernel.run("print(1)")["stdout"] == "1\n"


def test_a_kernel_that_cannot_start_says_why_in_its_log(zygote, tmp_path):
    log = tmp_path / "log"
    forked = zygote.fork("none.json", {}, str(log), cwd=str(tmp_path / "nowhere"))
    assert forked.wait() == 1
    assert "nowhere" in log.read_text()
    assert "FileNotFoundError" in log.read_text()


def test_a_fork_is_quick(zygote):
    began = time.monotonic()
    forked = zygote.fork("none.json", {}, "/dev/null")
    print(f"forked in {time.monotonic() - began:.4f} s")
    forked.kill()
    forked.wait()
    assert isinstance(forked, Forked)
    assert subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0
