"""Programs that run notebooks, through the kernelspec: outputs as of plain ipykernel."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import Session
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOKS = {
    "state": [
        "import sys\nsquares = [n * n for n in range(n_max)]",
        "print(sum(squares))\nprint('careful', file=sys.stderr)",
        "squares[-1]",
        "squares.append(_)\n_",
        "%xmode",
        "In[-2], len(Out)",
    ],
    "error": [
        "def half(x):\n    return x / 0",
        "print('before')\nhalf(n_max)",
        "print('after')",
        "1 +",
    ],
    "rich": [
        "from IPython.display import HTML, Math, Markdown, clear_output, display, update_display",
        "display(HTML('<b>bold</b>'), Math('x^2'))\nMarkdown('*text*')",
        "display({'text/plain': 'one'}, raw=True, display_id='it')\n"
        "update_display({'text/plain': 'two'}, raw=True, display_id='it')",
        "print('gone')\nclear_output()\nprint('stays')",
        "import pandas\npandas.DataFrame({'n': range(n_max)})",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot(range(n_max));",
        "object()",
    ],
}


def notebook(name):
    parameters = new_code_cell("n_max = 3", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# {name}"), parameters, *map(new_code_cell, NOTEBOOKS[name])]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernelspec})


def shown(notebook):
    """What the cells show, without what differs between two runs of one kernel."""

    def plain(it):
        if isinstance(it, dict):
            return {key: plain(value) for key, value in it.items()}
        if isinstance(it, list):
            return [plain(value) for value in it]
        if isinstance(it, str):
            it = re.sub(r"0x[0-9a-f]+", "0x…", it)
            return re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "<cell>", it)
        return it

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.execution_count, merged(plain(cell.outputs))) for cell in cells]


def merged(outputs):
    """Two pieces of one stream are one."""
    result = []
    for output in outputs:
        last = result[-1] if result else {}
        if output["output_type"] == "stream" == last.get("output_type") and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            result.append(output)
    return result


def by_nbclient(name, kernel_name, folder):
    result = notebook(name)
    NotebookClient(result, kernel_name=kernel_name, allow_errors=True, timeout=120).execute()
    return result


def by_nbconvert(name, kernel_name, folder):
    source = folder / f"{name}.ipynb"
    nbformat.write(notebook(name), source)
    command = ["nbconvert", "--to", "notebook", "--execute", "--allow-errors", source]
    options = [f"--ExecutePreprocessor.kernel_name={kernel_name}", "--output", f"{name}-done"]
    subprocess.run([sys.executable, "-m", *command, *options], check=True, env=os.environ)
    return nbformat.read(folder / f"{name}-done.ipynb", as_version=4)


def by_papermill(name, kernel_name, folder):
    source, target = folder / f"{name}.ipynb", folder / f"{name}-done.ipynb"
    nbformat.write(notebook(name), source)
    try:
        papermill.execute_notebook(
            source, target, parameters={"n_max": 5}, kernel_name=kernel_name, progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        assert name == "error", error
    return nbformat.read(target, as_version=4)


@pytest.mark.parametrize("program", [by_nbclient, by_nbconvert, by_papermill])
def test_a_notebook_shows_what_it_shows_on_ipykernel(cluster, program, tmp_path):
    before = cluster.kernels()
    for name in NOTEBOOKS:
        results = {}
        for kernel_name in ["python3", "callboard"]:
            folder = tmp_path / kernel_name
            folder.mkdir(exist_ok=True)
            results[kernel_name] = shown(program(name, kernel_name, folder))
        assert results["callboard"] == results["python3"], name
        assert any(outputs for _, outputs in results["callboard"])
    # Each of them ended its kernel.
    assert cluster.kernels() == before


# Notebooks of others, that no test of ours was written for: those of papermill's own tests, broken ones,
# exits and interrupts among them. Their digests choose, so that nobody does.
REAL = sorted(
    (Path(papermill.__file__).parent / "tests/notebooks").glob("*.ipynb"),
    key=lambda path: hashlib.sha256(path.name.encode()).digest(),
)[:10]


@pytest.fixture
def here(cluster):
    """A directory that sessions may enter under whatever uid, and a kernelspec that starts them there."""
    named = ["--name", "here", "--directory", "."]
    cluster.run("kernelspec", "install", "--prefix", cluster.prefix, *named, role="gateway")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_notebook_of_others_shows_what_it_shows_on_ipykernel(cluster, here, path):
    results = []
    for kernel_name in ["python3", "here"]:
        result = nbformat.v4.upgrade(nbformat.read(path, as_version=4))
        client = NotebookClient(
            result,
            kernel_name=kernel_name,
            allow_errors=True,
            # One of them sleeps for a minute.
            timeout=20,
            interrupt_on_timeout=True,
            resources={"metadata": {"path": here}},
        )
        client.execute()
        results.append(shown(result))
    assert results[0] == results[1]


def test_kernels_of_another_language_are_offered_and_run(cluster):
    install = ["kernelspec", "install", "--prefix", cluster.prefix, "--name", "shell", "--kernelspec"]
    cluster.run(*install, "bash", role="gateway")
    spec = json.loads((cluster.prefix / "share/jupyter/kernels/shell/kernel.json").read_text())
    assert (spec["language"], spec["display_name"]) == ("bash", "Bash (Callboard, not replicated)")
    refused = cluster.run(*install, "nosuch", role="gateway", code=3)
    assert "no node has a kernelspec 'nosuch': there are bash" in refused.stderr
    session = Session("shell")
    try:
        assert session.run("x=5; echo one") == "one\n"
        assert session.run("echo $x") == "5\n"
        started = cluster.data_of("kernel", "show", session.kernel)
        assert started["spec"]["settings"]["kernelspec"] == "bash"
        session.manager.restart_kernel()
        session.reconnect()
        assert session.run('echo "[$x]"') == "[]\n"
    finally:
        session.close()
