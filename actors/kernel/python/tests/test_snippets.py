"""Every snippet of the table holds on another kernel, or is refused by name."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Kernel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SNIPPETS = tomllib.loads((Path(__file__).parent / "snippets.toml").read_text())["snippet"]



# Kernels started ahead of their test, so that start-up overlaps with running cells.
KERNELS_AHEAD = 4


@pytest.fixture(scope="module")
def started():
    """Endless fresh kernels. The threads outlive them: a kernel dies with the thread that made it."""
    with ThreadPoolExecutor(2) as starters:
        ahead = deque(starters.submit(Kernel) for _ in range(KERNELS_AHEAD))

        def fresh() -> Kernel:
            ahead.append(starters.submit(Kernel))
            return ahead.popleft().result()

        yield fresh
        for future in ahead:
            future.result().close()


@pytest.fixture
def pair(started):
    with started() as first, started() as second:
        yield first, second


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[snippet["name"] for snippet in SNIPPETS])
def test_snippet_survives_the_loss_of_its_machine(snippet, pair, tmp_path):
    first, second = pair
    refused: set[str] = set()
    for number, cell in enumerate(snippet["cells"]):
        reply = first.run(cell.replace("{dir}", str(tmp_path)), number in snippet.get("raises", ()))
        refused = {entry["name"] for entry in reply["captured"]["refused"]}
    assert refused == set(snippet.get("refuses", ())) | refused & {"cnt"}
    failed = second.node.restore_from(first.node)
    assert failed == []
    second.run(snippet["check"].replace("{dir}", str(tmp_path)), store_history=True)


def test_the_table_has_at_least_sixty_snippets_with_unique_names():
    names = [snippet["name"] for snippet in SNIPPETS]
    assert len(names) >= 60 and len(set(names)) == len(names)
