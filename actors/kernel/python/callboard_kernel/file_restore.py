"""Makes the working directory what the groups of kind `file` say.

Files go to a temporary name and are renamed, so that none is ever half there. What the directory
held beside them (a former term's files, or those of a cell that did not complete) is moved out of the
way, into a directory beside the root that the next restore empties: nothing is lost by a takeover that
its user might want to look at.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import uuid
from typing import Any

from .files import LEFT_GROUP, Files, digest_of, group_of, shown

# Files named in a message; the rest is counted.
_NAMED_MAX = 10
ASIDE_SUFFIX = ".before"


class FileRestore:
    """One restore of the working directory."""

    def __init__(self, files: Files, groups: list[Any]) -> None:
        self.files = files
        self.root = files.directory.root
        self.groups = {group.key: group for group in groups}
        self.failed: dict[str, str] = {}
        self.notices: list[str] = []
        self._aside: list[str] = []

    def run(self) -> None:
        """Restores what can be; `failed` and `notices` say what could not, and what to tell the user."""
        if self.root is None or not self.files.directory.carries:
            return
        entries, left = self._read()
        self.files.known.clear()
        self.files.carried = {path: entry for path, (entry, _content) in entries.items()}
        shutil.rmtree(self.root + ASIDE_SUFFIX, ignore_errors=True)
        kept = self._clear(entries, {item["path"]: item for item in left})
        for kind in ("directory", "file", "link"):
            for path in sorted(path for path, (entry, _content) in entries.items() if entry["kind"] == kind):
                self._attempt(path, *entries[path])
        for path in sorted((path for path in entries if entries[path][0]["kind"] == "directory"), reverse=True):
            self._attempt_mode(path, entries[path][0]["mode"])
        self._say([item for item in left if item["path"] not in kept])

    def _read(self) -> tuple[dict[str, tuple[dict[str, Any], Any]], list[dict[str, Any]]]:
        entries: dict[str, tuple[dict[str, Any], Any]] = {}
        left: list[dict[str, Any]] = []
        for key, group in self.groups.items():
            if key == LEFT_GROUP:
                left = json.loads(bytes(group.stream))
            elif key.startswith("files:"):
                joined = memoryview(group.buffers[0]) if group.buffers else memoryview(b"")
                for entry in json.loads(bytes(group.stream)):
                    path = entry["path"]
                    if not _is_plain(path):
                        self.failed[f"file {shown(path)!r}"] = "its path leads out of the working directory"
                        continue
                    entries[path] = (entry, self._content(path, entry, joined))
        return entries, left

    def _content(self, path: str, entry: dict[str, Any], joined: memoryview) -> Any:
        if entry["kind"] != "file":
            return None
        if "offset" in entry:
            return joined[entry["offset"] : entry["offset"] + entry["size"]]
        group = self.groups.get(group_of(path))
        return None if group is None else memoryview(group.stream)

    def _clear(self, entries: dict[str, Any], left: dict[str, dict[str, Any]]) -> set[str]:
        """Moves away what does not belong; returns the files that were not carried and are still here."""
        kept: set[str] = set()
        pending = [""]
        while pending:
            relative = pending.pop()
            full = os.path.join(self.root, relative)
            os.chmod(full, 0o700)
            with os.scandir(full) as scan:
                found = list(scan)
            for item in found:
                path = os.path.join(relative, item.name)
                if self.files.directory.is_shared(item.path):
                    continue
                status = item.stat(follow_symlinks=False)
                wanted = entries.get(path, ({},))[0]
                if item.name == "__pycache__":
                    shutil.rmtree(item.path, ignore_errors=True)
                elif stat.S_ISDIR(status.st_mode) and wanted.get("kind") == "directory":
                    pending.append(path)
                elif _is_same(left.get(shown(path)), status):
                    kept.add(shown(path))
                elif not _is_same(wanted, status):
                    self._move_aside(path)
        return kept

    def _move_aside(self, path: str) -> None:
        target = os.path.join(self.root + ASIDE_SUFFIX, path)
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(os.path.join(self.root, path), target)
            self._aside.append(path)
        except OSError as error:
            self.failed[f"file {shown(path)!r}"] = f"it could not be moved away: {error.strerror}"

    def _attempt(self, path: str, entry: dict[str, Any], content: Any) -> None:
        try:
            self._put(path, entry, content)
        except OSError as error:
            self.failed[f"file {shown(path)!r}"] = f"it could not be written: {error.strerror}"
        except ValueError as error:
            self.failed[f"file {shown(path)!r}"] = str(error)

    def _put(self, path: str, entry: dict[str, Any], content: Any) -> None:
        full = os.path.join(self.root, path)
        if entry["kind"] == "directory":
            os.makedirs(full, mode=0o700, exist_ok=True)
            return
        temporary = os.path.join(os.path.dirname(full), f".callboard-{uuid.uuid4().hex}")
        if entry["kind"] == "link":
            os.symlink(entry["target"], temporary)
        else:
            if content is None or len(content) != entry["size"]:
                raise ValueError("its bytes are not among what was carried")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                written = 0
                while written < len(content):
                    written += file.write(content[written:])
                os.fchmod(descriptor, entry["mode"])
                os.utime(descriptor, ns=(entry["mtime_ns"], entry["mtime_ns"]))
        os.replace(temporary, full)
        if entry["kind"] == "file":
            self.files.adopt(path, digest_of(content))

    def _attempt_mode(self, path: str, mode: int) -> None:
        try:
            os.chmod(os.path.join(self.root, path), mode)
        except OSError as error:
            self.failed[f"file {shown(path)!r}"] = f"its mode could not be set: {error.strerror}"

    def _say(self, left: list[dict[str, Any]]) -> None:
        if left:
            names = _listed([item["path"] for item in left])
            self.notices.append(
                f"callboard: the session moved to another machine, and these files stayed behind: {names}"
            )
        gone = [path for path in self._aside if path not in self.files.carried]
        if gone:
            names = _listed([shown(path) for path in gone])
            self.notices.append(
                "callboard: the working directory is as after the last completed cell; what it held beside that "
                f"({names}) was moved to {self.root + ASIDE_SUFFIX!r} on this machine, until the session moves again"
            )
        for name, reason in self.failed.items():
            self.notices.append(f"callboard: {name} was not restored: {reason}")


def _is_plain(path: str) -> bool:
    """Whether a path names something below the root, without detours."""
    return bool(path) and not os.path.isabs(path) and os.path.normpath(path) == path and path.split("/")[0] != ".."


def _is_same(entry: dict[str, Any] | None, status: os.stat_result) -> bool:
    """Whether a file is, by size and time, the one an entry speaks of."""
    return (
        entry is not None
        and stat.S_ISREG(status.st_mode)
        and entry.get("size") == status.st_size
        and entry.get("mtime_ns") == status.st_mtime_ns
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
