import tempfile
import time
from pathlib import Path

import pytest
from backends import Callboard, PlainJupyter
from cluster import ROOT, Cluster
from lab import CELL_MS, Lab, Notebook, chromium
from playwright.sync_api import expect, sync_playwright

CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]

expect.set_options(timeout=CELL_MS)


def pytest_addoption(parser):
    parser.addoption("--backend", choices=["callboard", "plain"], default="callboard", help="what runs the kernels")


def pytest_runtest_logreport(report):
    if report.failed:
        report.sections.append(("again", f"scripts/test-lab -k '{report.nodeid.rpartition('::')[2]}'"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A cluster that all tests of a run share."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def backend(request):
    """What runs the kernels behind JupyterLab."""
    if request.config.getoption("--backend") == "plain":
        return PlainJupyter()
    return Callboard(request.getfixturevalue("cluster"))


@pytest.fixture
def callboard(backend):
    """The cluster behind JupyterLab, for tests of what plain Jupyter cannot do."""
    if backend.cluster is None:
        pytest.skip("plain Jupyter cannot do that")
    return backend.cluster


@pytest.fixture(scope="session")
def lab(backend, tmp_path_factory):
    """A JupyterLab before that backend."""
    lab = Lab(tmp_path_factory.mktemp("lab"), backend.command, backend.environment)
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def browser():
    """A browser, running."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A fresh page, with nothing remembered of those before."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    yield context.new_page()
    context.close()


@pytest.fixture
def witness():
    """What cells do, seen from outside; in a folder that kernels reach under whatever uid they run."""
    with tempfile.TemporaryDirectory(prefix="callboard-witness-") as folder:
        Path(folder).chmod(0o777)
        yield Witness(Path(folder))


@pytest.fixture
def open_notebook(lab, page, request):
    """Makes a notebook of some cells, opens it, and pictures it at the end, come what may."""
    shots = ROOT / "out/lab"
    shots.mkdir(parents=True, exist_ok=True)
    opened = []

    def open_notebook(*cells: str) -> Notebook:
        name = lab.create(request.node.name.removeprefix("test_"), list(cells))
        opened.append(Notebook(page, lab, name, shots))
        return opened[-1]

    yield open_notebook
    for notebook in opened:
        notebook.shoot("end")


class Witness:
    """Counts executions where no browser and no kernel can hide them, and holds cells up."""

    def __init__(self, folder: Path) -> None:
        self._file, self._gate = folder / "executions", folder / "gate"

    def cell(self, name: str, code: str) -> str:
        """A cell that is counted."""
        return f"with open({str(self._file)!r}, 'a') as witness: print({name!r}, file=witness)\n{code}"

    def long_cell(self, name: str) -> str:
        """A cell that prints a line every tenth of a second until it is let end, and is counted twice."""
        code = f"""\
import os, time
n = 0
while not os.path.exists({str(self._gate)!r}):
    print('line', n, flush=True)
    n += 1
    time.sleep(0.1)
print('printed', n)
"""
        return self.cell(name, code) + self.cell(f"{name}-ended", "")

    def let_end(self) -> None:
        """Lets long cells end."""
        self._gate.touch()

    def wait_for(self, name: str, limit_s: float = 30) -> None:
        """Waits for a cell to be counted."""
        end = time.monotonic() + limit_s
        while name not in self.executions:
            assert time.monotonic() < end, f"{name} is not among {self.executions}"
            time.sleep(0.1)

    @property
    def executions(self) -> list[str]:
        """The names of the cells executed so far, in order."""
        return self._file.read_text().split() if self._file.exists() else []
