"""What one capture sends: groups of parts, each part whole or as what differs from the last time.

A part is a pickle stream or one of its out-of-band buffers. Against the version of its group that
the node holds, a part may be sent as a patch: the same length, and the chunks that differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Sequence

from .buffers import Content
from .digests import DIGEST_BYTES
from .pickler import Pickled

# Parts up to this size are sent whole when they changed: the node keeps them as one chunk.
WHOLE_BYTES_MAX = 1 << 20


@dataclass
class Group:
    """What the node holds of one group."""

    names: list[str]
    kind: str
    signature: Any
    # The capture that sent it, and what its parts were then; None if it is not known exactly.
    version: int | None = None
    parts: list[Content] = field(default_factory=list)
    # The buffers it was sent from, until they are on their way.
    sent: list[memoryview] = field(default_factory=list)


@dataclass
class Delta:
    """One capture's result, ready to be framed."""

    upsert: list[dict[str, Any]] = field(default_factory=list)
    # Per part, the pieces that follow each other on the socket.
    buffers: list[list[Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    elapsed_ms: float = 0.0

    def add(self, key: str, group: Group, pickled: Pickled, contents: list[Content], known: Group | None) -> None:
        """Adds a group, as patches of what is `known` to be held where that is less."""
        parts = [Content(pickled.length, 0, pickled.digest), *contents]
        pieces: list[Sequence[Any]] = [pickled.frames, *([view] for view in pickled.buffers)]
        base = known.parts if known is not None and known.version is not None else []
        patches = []
        for index, (part, whole) in enumerate(zip(parts, pieces)):
            changed = _changed(base[index], part) if index < len(base) else None
            if changed is None:
                self.buffers.append(list(whole))
                continue
            patches.append({"part": index, "length": part.length, "chunk": part.chunk, "changed": changed})
            self.buffers.append([whole[0][at * part.chunk : (at + 1) * part.chunk] for at in changed])
        entry: dict[str, Any] = {"group": key, "names": group.names, "kind": group.kind, "parts": len(parts)}
        entry["version"] = group.version
        if patches and known is not None:
            entry |= {"base": known.version, "patches": patches}
        self.upsert.append(entry)
        group.parts, group.sent = parts, list(pickled.buffers)

    def add_whole(self, key: str, names: list[str], kind: str, buffers: list[Any]) -> None:
        """Adds a group that is no pickle."""
        self.upsert.append({"group": key, "names": names, "kind": kind, "parts": len(buffers), "version": None})
        self.buffers += [[buffer] for buffer in buffers]


def _changed(before: Content, now: Content) -> list[int] | None:
    """The chunks in which a part differs; none at all, or None if it is better sent whole."""
    if before == now:
        return []
    if before.length != now.length or before.chunk != now.chunk or now.length <= WHOLE_BYTES_MAX or not now.chunk:
        return None
    old, new = before.digests, now.digests
    size = DIGEST_BYTES
    changed = [at // size for at in range(0, len(new), size) if old[at : at + size] != new[at : at + size]]
    return changed if 2 * len(changed) * size <= len(new) else None
