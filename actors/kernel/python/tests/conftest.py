"""Puts the package on the path, and makes the in-process session that the unit tests work on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def session(monkeypatch):
    """An empty namespace that plays `__main__`, as the kernel's does."""
    import types

    from callboard_kernel import live

    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    live.attach(main.__dict__)
    yield main.__dict__
    live.attach({})
