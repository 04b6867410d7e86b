"""What the node does with a captured group: puts patches on the parts that it holds."""

from __future__ import annotations

from typing import Any


def patched(entry: dict[str, Any], buffers: list[bytes], held: list[bytes], version: int | None) -> list[bytes]:
    """The parts of a group whole, from those that were sent and those of the version before."""
    parts = [bytes(buffer) for buffer in buffers]
    if "patches" in entry:
        assert entry["base"] == version, "a patch for another version than the one that is held"
    for patch in entry.get("patches", ()):
        part, chunk = patch["part"], patch["chunk"]
        made, new = bytearray(held[part]), parts[part]
        assert len(made) == patch["length"]
        for index in patch["changed"]:
            end = min((index + 1) * chunk, len(made))
            made[index * chunk : end], new = new[: end - index * chunk], new[end - index * chunk :]
        assert not new
        parts[part] = bytes(made)
    return parts
