"""Runs a notebook as the users of one program do: nbconvert on its command line, nbclient and papermill
from Python.

    run.py PROGRAM KERNEL MANAGER TRANSPORT NOTEBOOK FOLDER

FOLDER gets `done.ipynb`, and is where the notebook runs. MANAGER is a class, or empty for the program's own.
"""

import gzip
import os
import shutil
import sys

program, kernel, manager, transport, notebook, folder = sys.argv[1:]
source, done = os.path.join(folder, "notebook.ipynb"), os.path.join(folder, "done.ipynb")
with (gzip.open if notebook.endswith(".gz") else open)(notebook, "rb") as packed, open(source, "wb") as file:
    shutil.copyfileobj(packed, file)

if program == "nbconvert":
    options = ["--to", "notebook", "--execute", "--output", "done", f"--ExecutePreprocessor.kernel_name={kernel}"]
    if manager:
        options.append(f"--ExecutePreprocessor.kernel_manager_class={manager}")
    else:
        options.append(f"--KernelManager.transport={transport}")
    os.execv(sys.executable, [sys.executable, "-m", "nbconvert", *options, source])

from traitlets.config import Config

how = {"kernel_name": kernel}
if manager:
    how["kernel_manager_class"] = manager
else:
    how["config"] = Config({"KernelManager": {"transport": transport}})

if program == "nbclient":
    import nbformat
    from nbclient import NotebookClient

    executed = nbformat.read(source, as_version=4)
    NotebookClient(executed, resources={"metadata": {"path": folder}}, **how).execute()
    nbformat.write(executed, done)
elif program == "papermill":
    import papermill

    papermill.execute_notebook(source, done, cwd=folder, progress_bar=False, **how)
else:
    sys.exit(f"there is no program {program}")
