"""Sessions of very many names: small values travel in bundles, and there is a limit.

A group costs the log about a hundred bytes, and a file if its bytes do not fit there. One cell's entry
has to fit into one message of the broker, whatever it binds.
"""

from __future__ import annotations

import zlib
from typing import Any

from .pickler import PLAIN_TYPES

# With more small values than this, they are bundled: a change then costs its bundle.
_ALONE_MAX = 512
_BUNDLES = 64
# A string longer than this is no small value.
_SMALL_LENGTH_MAX = 256
# Names that are carried: small values, and others.
SMALL_NAMES_MAX = 16_384
OTHER_NAMES_MAX = 4_096


def _is_small(value: Any) -> bool:
    kind = type(value)
    return kind in PLAIN_TYPES and (kind not in (str, bytes) or len(value) <= _SMALL_LENGTH_MAX)


def within_limit(values: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The oldest names, if there are more than can be carried, and a sentence about the rest."""
    if len(values) <= OTHER_NAMES_MAX:
        return values, None
    left = {True: SMALL_NAMES_MAX, False: OTHER_NAMES_MAX}
    kept: dict[str, Any] = {}
    first = None
    for name, value in values.items():
        is_small = _is_small(value)
        if left[is_small] > 0:
            left[is_small] -= 1
            kept[name] = value
        elif first is None:
            first = name
    if first is None:
        return values, None
    return kept, (
        f"{len(values) - len(kept):,} names from {first!r} on are over the limit of {SMALL_NAMES_MAX:,} small "
        f"values and {OTHER_NAMES_MAX:,} others for a session: keep them in a dict, which is one name"
    )


def bundle(groups: list[list[str]], values: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The groups with their keys; those of single small values together, if they are many."""
    small = [names[0] for names in groups if len(names) == 1 and _is_small(values.get(names[0], values))]
    if len(small) <= _ALONE_MAX:
        return [(f"variables:{names[0]}", names) for names in groups]
    # No variable has such a name.
    bundles: dict[str, list[str]] = {}
    for name in small:
        bundles.setdefault(f"variables:#{zlib.crc32(name.encode()) % _BUNDLES}", []).append(name)
    is_bundled = set(small)
    alone = [(f"variables:{names[0]}", names) for names in groups if names[0] not in is_bundled]
    return alone + [(key, sorted(names)) for key, names in bundles.items()]
