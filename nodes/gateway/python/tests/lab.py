"""JupyterLab as a user starts it, and its notebooks in a browser, driven by the keyboard."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, expect

START_S = 60
# A cell's end; generous, since a failover may lie before it.
CELL_MS = 30_000
TOKEN = "test"

# Whether the current notebook's kernel would take a cell: connected, introduced, and not busy. Lab
# drops a Shift+Enter that comes before.
IS_READY = """() => {
    const notebook = window.jupyterapp?.shell.currentWidget;
    const session = notebook?.sessionContext;
    const kernel = session?.session?.kernel;
    return Boolean(notebook?.context?.isReady && session.isReady
        && kernel?.connectionStatus === 'connected' && kernel.status === 'idle');
}"""

# Lab asks the user nothing, saves only what the extension makes it save, and waits for completions as
# long as a busy machine takes.
SETTINGS = {
    "completer-extension/manager": {"providerTimeout": 10_000},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


class Lab:
    """A running `jupyter lab`, with a folder of notebooks and nothing of the user's own settings."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        for name, settings in SETTINGS.items():
            file = folder / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        program, *arguments = command
        command = [
            *(str(Path(sys.executable).with_name(program)), *arguments, "--no-browser", "--allow-root"),
            *("--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}"),
            *(f"--ServerApp.root_dir={self.notebooks}", "--LabApp.expose_app_in_browser=True"),
        ]
        home = {
            f"{name}_DIR": str(folder / name.lower())
            for name in ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "IPYTHON", "JUPYTERLAB_WORKSPACES")
        }
        home["IPYTHONDIR"] = home.pop("IPYTHON_DIR")
        home["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
        self.log = folder / "lab.log"
        with self.log.open("w") as log:
            self._server = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **environment, **home}, stdout=log, stderr=subprocess.STDOUT
            )
        print("started:", " ".join(command))
        end = time.monotonic() + START_S
        while not self._answers():
            assert self._server.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/api?token={TOKEN}", timeout=2).status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Ends it; a Lab whose gateway has gone before may not listen to SIGTERM."""
        self._server.terminate()
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()

    def create(self, name: str, cells: list[str]) -> str:
        """Writes a notebook."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")
        return f"{name}.ipynb"

    def saved(self, name: str) -> nbformat.NotebookNode:
        """A notebook as it is on disk."""
        return nbformat.read(self.notebooks / name, as_version=4)


class Notebook:
    """A notebook on a page."""

    def __init__(self, page: Page, lab: Lab, name: str, shots: Path) -> None:
        self.page, self.name = page, name
        self._shots = shots
        self._url = f"{lab.url}/lab/tree/{name}?token={TOKEN}"
        page.goto(f"{self._url}&reset")  # without the notebooks of the page before
        self.wait_until_ready()

    def come_back(self) -> None:
        """Opens the page again."""
        self.page.goto(self._url)

    def leave(self) -> None:
        """Leaves the page without a word, as a closed laptop does."""
        self.page.goto("about:blank")

    def wait_until_ready(self) -> None:
        """Waits until a keystroke that runs a cell is not lost."""
        self.page.wait_for_function(IS_READY, timeout=CELL_MS)

    def cell(self, index: int) -> Locator:
        """A code cell."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def start(self, index: int) -> None:
        """Runs a cell as a user does, and does not wait for its end."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def run(self, index: int) -> str:
        """Runs a cell to its end and returns what it put out."""
        self.start(index)
        self.wait_for_end(index)
        return self.output(index)

    def prompt(self, index: int) -> Locator:
        """A cell's prompt: `[ ]:`, `[*]:`, `[7]:`."""
        return self.cell(index).locator(".jp-InputPrompt")

    def wait_for_end(self, index: int, limit_ms: int = CELL_MS) -> None:
        """Waits for a number in the prompt."""
        expect(self.prompt(index)).to_have_text(re.compile(r"\[\d+\]:"), timeout=limit_ms)

    def output(self, index: int) -> str:
        """The text below a cell."""
        return "\n".join(self.outputs(index).all_inner_texts()).strip()

    def outputs(self, index: int) -> Locator:
        """What is below a cell."""
        return self.cell(index).locator(".jp-OutputArea-output")

    def press(self, *keys: str) -> None:
        """Presses keys in command mode."""
        for key in ("Escape", *keys):
            self.page.keyboard.press(key)

    def kernel(self) -> str:
        """The kernel's id."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.id")

    def shoot(self, what: str) -> None:
        """Keeps a picture of the page."""
        self.page.screenshot(path=self._shots / f"{Path(self.name).stem}-{what}.png")


def chromium() -> str:
    """The browser: Debian's, or the one in CALLBOARD_CHROMIUM."""
    path = shutil.which(os.environ.get("CALLBOARD_CHROMIUM", "chromium"))
    assert path, "found no chromium; run scripts/setup --lab"
    return path
