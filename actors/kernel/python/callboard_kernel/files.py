"""The files of the working directory, as groups that travel with the session.

A capture looks at every file below the root (time, size, inode), reads those that changed, and adds
groups of kind `file`. Small files share 64 bundles, by a hash of their path, so that ten thousand of
them fit into one log entry; a large one has a group of its own. A bundle's first part is its index as
JSON (paths, modes, times), its second the small files' bytes end to end.

Owns a cache of what the files' bytes were; losing it costs reading them again. Never follows a
link, never raises: what cannot be carried is named as left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import zlib
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator
from urllib.parse import quote_from_bytes

from .directory import DIRECTORY, MIB, Directory, is_below

BUNDLES = 64
# Larger files are no part of a bundle, which is written again when any of its files changes.
BUNDLED_BYTES_MAX = 64 * 1024
# Paths shown beside a bundle; with more, a log entry could outgrow the broker's limit.
SHOWN_BYTES_MAX = 256 * 1024
# A directory with more entries, or that takes longer to look at, is looked at in part.
ENTRIES_PER_FILE_MAX = 2
LOOK_MAX_S = 2.0
# Times of files are no finer than this: one that changed so recently is read again next time.
RACY_NS = 50_000_000
READ_ATTEMPTS = 3
# Files named one by one as left behind; the rest is counted.
NAMED_MAX = 20
LEFT_GROUP = "files:left"
_SKIPPED = frozenset({"__pycache__", ".ipynb_checkpoints"})
_SPECIAL = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
_ADVICE = "put it into a shared directory (shared_directories), or make it again after a move"


@dataclass
class Known:
    """The bytes of a file as they were when its times were so."""

    seen: tuple[int, ...]
    digest: str
    racy: bool


@dataclass
class Look:
    """One look at the directory."""

    # path -> index entry; `size` and `digest` are added for files
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    # path -> bytes read during this look
    contents: dict[str, bytearray] = field(default_factory=dict)
    left: list[tuple[str, str]] = field(default_factory=list)
    # Why it is not whole, if so: what was carried and not seen stays as it was.
    partial: str | None = None
    bytes: int = 0


class Files:
    """What the node holds of the working directory."""

    def __init__(self, directory: Directory = DIRECTORY) -> None:
        self.directory = directory
        self.known: dict[str, Known] = {}
        self.carried: dict[str, dict[str, Any]] = {}
        # Another present directory -> its files that are not the session's.
        self._outside: dict[str, dict[str, tuple[int, ...]]] = {}
        self._looked_ns = time.time_ns()

    def groups(self) -> tuple[dict[str, tuple[list[str], Any, Callable[[], list[Any]]]], list[tuple[str, str]]]:
        """Every group of files by id: names, signature, and how to get its parts; and what is left behind."""
        if self.directory.root is None:
            return {}, []
        look = self._look() if self.directory.carries else Look()
        self.carried = look.entries
        left = summary(look.left) + summary(self._left_elsewhere())
        self._looked_ns = time.time_ns()
        found: dict[str, Any] = {}
        bundles: dict[int, list[str]] = {}
        for path in sorted(look.entries):
            bundles.setdefault(bundle_of(path), []).append(path)
        show = sum(len(path) for path in look.entries) <= SHOWN_BYTES_MAX
        for number, paths in bundles.items():
            names = [shown(path) for path in paths] if show else [f"{len(paths)} files"]
            signature = [(path, *look.entries[path].values()) for path in paths]
            found[f"files:{number:02x}"] = (names, signature, lambda paths=paths: self._bundle(paths, look))
        for path, entry in look.entries.items():
            if entry.get("size", 0) > BUNDLED_BYTES_MAX:
                parts = lambda path=path: [self._bytes(path, look)]  # noqa: E731
                found[group_of(path)] = ([], entry["digest"], parts)
        if left:
            index = [{"path": path, "reason": reason, **self._mark(path)} for path, reason in left]
            found[LEFT_GROUP] = ([], index, lambda: [json.dumps(index).encode()])
        return found, left

    def _mark(self, path: str) -> dict[str, int]:
        """By what a file that stayed behind is known again, if it is still there."""
        try:
            status = os.lstat(os.path.join(self.directory.root, path))
        except (OSError, ValueError):
            return {}
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def _look(self) -> Look:
        look, statuses = Look(), {}
        deadline = time.monotonic() + LOOK_MAX_S
        entries_max = self.directory.files_max * ENTRIES_PER_FILE_MAX
        try:
            for path, status in self._walk():
                statuses[path] = status
                if len(statuses) > entries_max:
                    look.partial = f"it has more than {entries_max} entries"
                elif time.monotonic() > deadline:
                    look.partial = f"looking at it takes longer than {LOOK_MAX_S:.0f} s"
                if look.partial:
                    break
        except OSError as error:
            look.partial = f"it cannot be read ({error.strerror})"
        # Those that are carried already come first, so that a new file never pushes out an old one.
        for path in sorted(statuses, key=lambda path: (path not in self.carried, path)):
            self._take(path, statuses[path], look)
        if look.partial:
            look.left.append((".", f"files of the working directory beyond the first are not looked at, as {look.partial}"))
            for path, entry in self.carried.items():
                if path not in statuses and self._is_there(path):
                    look.entries.setdefault(path, entry)
        self.known = {path: known for path, known in self.known.items() if path in look.entries}
        return look

    def _is_there(self, path: str) -> bool:
        return os.path.lexists(os.path.join(self.directory.root, path))

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below the root, directories before what is in them, in order of name."""
        pending = [""]
        while pending:
            relative = pending.pop()
            with os.scandir(os.path.join(self.directory.root, relative)) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
            for entry in entries:
                path = os.path.join(relative, entry.name)
                full = os.path.join(self.directory.root, path)
                if entry.name in _SKIPPED or self.directory.is_shared(full):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    if os.access(full, os.R_OK | os.X_OK):
                        pending.append(path)

    def _take(self, path: str, status: os.stat_result, look: Look) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            look.entries[path] = {"kind": "directory", "mode": mode}
        elif stat.S_ISLNK(status.st_mode):
            self._take_link(path, look)
        elif not stat.S_ISREG(status.st_mode):
            kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "special file")
            look.left.append((path, f"it is a {kind}, which belongs to this machine"))
        elif status.st_size > self.directory.file_bytes_max:
            limit = self.directory.file_bytes_max / MIB
            look.left.append((path, f"it has {status.st_size / MIB:.1f} MiB, over the limit of {limit:g} MiB for one file (carry_file_max_mib): {_ADVICE}"))
        elif look.bytes + status.st_size > self.directory.total_bytes_max:
            limit = self.directory.total_bytes_max / MIB
            look.left.append((path, f"with it the files have more than {limit:g} MiB (carry_files_total_max_mib): {_ADVICE}"))
        elif len(look.entries) >= self.directory.files_max:
            look.left.append((path, f"there are {self.directory.files_max} files without it, which is the limit (carry_files_max): {_ADVICE}"))
        else:
            self._take_file(path, status, look)

    def _take_link(self, path: str, look: Look) -> None:
        full = os.path.join(self.directory.root, path)
        target, real = os.readlink(full), os.path.realpath(full)
        if self.directory.is_shared(real):
            look.entries[path] = {"kind": "link", "target": os.path.join(os.path.dirname(full), target)}
        elif is_below(real, self.directory.root):
            if os.path.isabs(target):
                target = os.path.relpath(real, os.path.dirname(full))
            look.entries[path] = {"kind": "link", "target": target}
        else:
            look.left.append((path, f"it is a link to {shown(target)}, outside the working directory"))

    def _take_file(self, path: str, status: os.stat_result, look: Look) -> None:
        seen = times_of(status)
        known = self.known.get(path)
        if known is None or known.seen != seen or known.racy:
            try:
                content, status = read_whole(os.path.join(self.directory.root, path), self.directory.file_bytes_max)
            except FileNotFoundError:
                return
            except (OSError, Unsteady) as error:
                look.left.append((path, f"it could not be read: {getattr(error, 'strerror', None) or error}"))
                return
            known = self._know(path, status, digest_of(content))
            look.contents[path] = content
        size = known.seen[1]
        look.bytes += size
        look.entries[path] = {
            "kind": "file",
            "mode": stat.S_IMODE(status.st_mode),
            "mtime_ns": known.seen[0],
            "size": size,
            "digest": known.digest,
        }

    def _know(self, path: str, status: os.stat_result, digest: str) -> Known:
        racy = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < RACY_NS
        known = self.known[path] = Known(times_of(status), digest, racy)
        return known

    def _bytes(self, path: str, look: Look) -> bytearray:
        """The bytes that the index of this look speaks of."""
        content = look.contents.pop(path, None)
        if content is not None:
            return content
        content, _status = read_whole(os.path.join(self.directory.root, path), self.directory.file_bytes_max)
        if digest_of(content) != look.entries[path]["digest"]:
            raise Unsteady
        return content

    def _bundle(self, paths: list[str], look: Look) -> list[Any]:
        index, joined = [], bytearray()
        for path in paths:
            entry = dict(look.entries[path], path=path)
            if entry["kind"] == "file" and entry["size"] <= BUNDLED_BYTES_MAX:
                entry["offset"] = len(joined)
                joined += self._bytes(path, look)
            index.append(entry)
        parts: list[Any] = [json.dumps(index).encode()]
        return parts + [joined] if joined else parts

    def adopt(self, path: str, digest: str) -> None:
        """Notes that a restore has just written the file so; nobody else has touched it yet."""
        status = os.lstat(os.path.join(self.directory.root, path))
        self.known[path] = Known(times_of(status), digest, racy=False)

    def _left_elsewhere(self) -> list[tuple[str, str]]:
        """Files that the session wrote into its present directory, if that is outside the root."""
        try:
            here = os.path.realpath(os.getcwd())
            if is_below(here, self.directory.root) or self.directory.is_shared(here):
                return []
            with os.scandir(here) as scan:
                statuses = {
                    entry.path: entry.stat(follow_symlinks=False)
                    for entry, _number in zip(scan, range(self.directory.files_max))
                    if entry.is_file(follow_symlinks=False)
                }
        except OSError:
            return []
        before = self._outside.get(here)
        if before is None:
            # It got here since the last look; what changed since then is taken for its own.
            old = {path: status for path, status in statuses.items() if status.st_ctime_ns < self._looked_ns}
            before = self._outside[here] = {path: times_of(status) for path, status in old.items()}
        user, reason = os.geteuid(), f"it is outside the session's directory {shown(self.directory.root)}: {_ADVICE}"
        return [
            (path, reason)
            for path, status in sorted(statuses.items())
            if status.st_uid == user and before.get(path) != times_of(status)
        ]


class Unsteady(Exception):
    """A file that changes as fast as it is read."""

    def __str__(self) -> str:
        return "it changes while it is read; it is looked at again after the next cell"


def read_whole(path: str, bytes_max: int) -> tuple[bytearray, os.stat_result]:
    """A regular file's bytes at one moment. Raises OSError, or Unsteady if there is none."""
    for _attempt in range(READ_ATTEMPTS):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            if before.st_size > bytes_max or not stat.S_ISREG(before.st_mode):
                break
            content = bytearray(before.st_size)
            view, filled = memoryview(content), 0
            while filled < len(content) and (count := file.readinto(view[filled:])):
                filled += count
            view.release()
            after = os.fstat(descriptor)
            if filled == len(content) and times_of(after) == times_of(before):
                return content, after
    raise Unsteady


def times_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does."""
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)


def digest_of(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def bundle_of(path: str) -> int:
    """Which bundle speaks of a path; part of the format."""
    return zlib.crc32(os.fsencode(path)) % BUNDLES


def group_of(path: str) -> str:
    """The group of a large file's bytes."""
    try:
        path.encode()
        return f"file:{path}"
    except UnicodeEncodeError:
        return f"file%:{quote_from_bytes(os.fsencode(path))}"


def shown(path: str) -> str:
    """A path for people, and for JSON: bytes that are no text are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def summary(left: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first files by name, the rest by number."""
    if len(left) <= NAMED_MAX:
        return [(shown(path), reason) for path, reason in left]
    named = [(shown(path), reason) for path, reason in left[: NAMED_MAX - 1]]
    return [*named, (f"{len(left) - len(named)} more files", left[-1][1])]
