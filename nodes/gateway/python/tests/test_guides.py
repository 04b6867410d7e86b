"""The code blocks of docs/guides, run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cluster import ROOT
from guides import blocks

LIMIT_S = 90
NODE_MODULES = ROOT / "nodes/gateway/labextension/node_modules"


def run(folder: Path, command: list[str], **environment: str) -> str:
    """Runs a command with the tests' own Python first on the PATH, and returns what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "NODE_PATH": str(NODE_MODULES), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def folder(cluster, tmp_path):
    """A folder in which the cluster's credentials are where guides have them."""
    (tmp_path / ".callboard").symlink_to(cluster.folder / "data")
    return tmp_path


@pytest.mark.parametrize(
    ("guide", "language", "file"),
    [("python-client", "python", "client.py"), ("javascript-client", "js", "client.js")],
)
def test_a_client_prints_what_a_cell_prints(cluster, folder, guide, language, file):
    (program,) = blocks(f"guides/{guide}.md", language)
    (folder / file).write_text(program)
    command = blocks(f"guides/{guide}.md", "sh")[-1]
    printed = run(folder, ["sh", "-euc", command], KERNEL=cluster.start_kernel())
    assert "hello" in printed and "completed" in printed


def test_the_client_of_the_protocol_needs_nothing_but_nats_py(cluster, folder):
    (program,) = blocks("protocol.md", "python")
    printed = run(
        folder, [sys.executable, "-c", program, str(cluster.credentials("frontend")), cluster.start_kernel(), "6 * 7"]
    )
    assert '"text/plain": "42"' in printed and '"kind":"completed"' in printed


def write_notebook(folder: Path) -> None:
    parameters = nbformat.v4.new_code_cell("n = 3", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("print('n is', n)")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "analysis.ipynb")


def outputs(folder: Path) -> str:
    cells = nbformat.read(folder / "done.ipynb", as_version=4).cells
    return "".join(output.text for cell in cells for output in cell.get("outputs", []) if "text" in output)


def test_nbconvert_and_papermill_run_a_notebook_on_the_cluster(cluster, folder):
    export, nbconvert = blocks("guides/nbconvert-papermill.md", "sh")
    (papermill,) = blocks("guides/nbconvert-papermill.md", "python")
    derived = "\n".join(line for line in export.splitlines() if "WS_URL" in line)
    write_notebook(folder)
    run(folder, ["sh", "-euc", f"{derived}\n{nbconvert}"], **cluster.gateway())
    assert outputs(folder) == "n is 3\n"
    (folder / "papermill_run.py").write_text(papermill)
    run(folder, ["sh", "-euc", f"{derived}\npython papermill_run.py"], **cluster.gateway())
    assert outputs(folder) == "n is 4\n"


def test_visual_studio_code_finds_what_it_asks_for(cluster, folder):
    (requests,) = blocks("guides/vscode.md", "sh")
    answers = run(folder, ["sh", "-euc", requests], **cluster.gateway())
    assert '"version"' in answers and '"kernelspecs"' in answers
