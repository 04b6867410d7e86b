"""The session's working directory: where it is on this node, and paths in it said so that they hold on others.

Owns the root, the directories that every node shares, and the limits of what is carried. Looks at
no file; `files` does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
# Begins a path that is meant relative to the root; no real path contains it.
_MARK = "\0root/"


@dataclass
class Directory:
    """The node's word on the working directory. Without a root, paths are carried as they are."""

    root: str | None = None
    # Where the process starts, if not in the root.
    start: str | None = None
    shared: tuple[str, ...] = ()
    file_bytes_max: int = 16 * MIB
    total_bytes_max: int = 256 * MIB
    files_max: int = 10_000
    # What the user is to be told with the next cell.
    notices: list[str] = field(default_factory=list)

    def configure(self, told: dict[str, Any]) -> None:
        """Takes the node's word and goes there."""
        self.root = os.path.realpath(told["root"])
        self.start = told.get("start")
        self.shared = tuple(os.path.realpath(path) for path in told.get("shared", ()))
        for name in ("file_bytes_max", "total_bytes_max", "files_max"):
            setattr(self, name, told.get(name, getattr(self, name)))
        self.go(self.start or self.root)

    def go(self, path: str) -> None:
        """Changes to `path`; if that fails, to the root, and the user is told."""
        try:
            os.chdir(path)
        except OSError as error:
            if self.root is None:
                raise
            os.chdir(self.root)
            self.notices.append(
                f"callboard: the working directory {path!r} cannot be used on this machine ({error.strerror}); "
                f"the session goes on in {self.root!r}"
            )

    @property
    def carries(self) -> bool:
        """Whether files below the root are carried: not if every node sees the same ones."""
        return self.root is not None and not self.is_shared(self.root)

    def is_shared(self, path: str) -> bool:
        """Whether a real path lies in a directory that every node sees."""
        return any(is_below(path, shared) for shared in self.shared)

    def to_carried(self, path: str) -> str:
        """A path as it is carried: relative to the root, if it is in there."""
        if self.root is not None and os.path.isabs(path) and is_below(os.path.normpath(path), self.root):
            return _MARK + os.path.relpath(path, self.root)
        return path

    def from_carried(self, path: str) -> str:
        """The path on this node of what `to_carried` gave on another."""
        if self.root is not None and path.startswith(_MARK):
            return os.path.normpath(os.path.join(self.root, path[len(_MARK) :]))
        return path


def is_below(path: str, directory: str) -> bool:
    """Whether a normal path is a directory or in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


DIRECTORY = Directory()
