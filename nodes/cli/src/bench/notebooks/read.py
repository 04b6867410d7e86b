"""Prints the notebooks below a folder as JSON: [{"path": …, "cells": [code, …]}, …]."""

import gzip
import json
import os
import sys

root = sys.argv[1]
notebooks = []
for folder, _, names in os.walk(root):
    for name in names:
        if not name.endswith((".ipynb", ".ipynb.gz")) or ".ipynb_checkpoints" in folder:
            continue
        path = os.path.join(folder, name)
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            document = json.load(file)
        sources = ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]
        cells = [source for source in sources if source.strip()]
        notebooks.append({"path": os.path.relpath(path, root), "cells": cells})
json.dump(notebooks, sys.stdout)
