"""Which names of a session count, and how they are bound again.

Beside plain variables there are pseudo-names that cannot be identifiers: `Out[3]` for a cached
output, `%name` and `%%name` for magics that the user registered, `Target[name]` for comm targets. All
take part in grouping, so an output that is also a variable stays one object.
"""

from __future__ import annotations

import re
import types
from typing import Any

from . import comms, live

_NEVER = frozenset(
    """In Out get_ipython _ih _oh _dh _i _ii _iii __builtin__ __builtins__
    __name__ __doc__ __package__ __loader__ __spec__ __file__ __session__ __vsc_ipynb_file__
    __callboard__ __warningregistry__""".split()
)
_OUTPUT_CACHE = re.compile(r"_(\d+)$")
_OUTPUT = re.compile(r"Out\[(\d+)\]$")
_UNDERSCORES = ("_", "__", "___")


class Namespace:
    """The names of the live session, against what it started with."""

    def __init__(self, exclude: frozenset[str] = frozenset()) -> None:
        self.baseline = dict(live.LIVE.user_ns)
        self.baseline_targets = dict(comms.targets())
        self.baseline_magics = {kind: dict(magics) for kind, magics in self._magics().items()}
        # Names that configuration leaves out without a word, and those that the user left out.
        self.exclude = exclude
        self.excluded: set[str] = set()

    def _magics(self) -> dict[str, dict[str, Any]]:
        shell = live.LIVE.shell
        return shell.magics_manager.magics if shell is not None else {}

    def collect(self) -> dict[str, Any]:
        """Every name that is to be carried, with its value."""
        user_ns = live.LIVE.user_ns
        hidden = getattr(live.LIVE.shell, "user_ns_hidden", {})
        outputs = user_ns.get("_oh", {})
        missing = object()
        found: dict[str, Any] = {}
        for name, value in list(user_ns.items()):
            # In a long session, most names are cached inputs, which are hidden: they leave first.
            if not isinstance(name, str) or (hidden.get(name, missing) is value and name not in _UNDERSCORES):
                continue
            if self.baseline.get(name, missing) is value or name in _NEVER or name in self.exclude:
                continue
            if name[:1] == "_" and self._is_cache(name, value, outputs):
                continue
            found[name] = value
        for number, value in outputs.items():
            found[f"Out[{number}]"] = value
        for kind, prefix in (("line", "%"), ("cell", "%%")):
            baseline = self.baseline_magics.get(kind, {})
            for name, magic in self._magics().get(kind, {}).items():
                if baseline.get(name, missing) is not magic and _is_users(magic):
                    found[prefix + name] = magic
        found |= comms.own_targets(self.baseline_targets)
        return found

    @staticmethod
    def _is_cache(name: str, value: Any, outputs: dict[int, Any]) -> bool:
        match = _OUTPUT_CACHE.match(name)
        if match and outputs.get(int(match.group(1)), outputs) is value:
            return True
        return name in _UNDERSCORES and value == "" if type(value) is str else False

    def clear(self) -> None:
        """Removes every name of the session, without telling front-ends of their comms."""
        for name in self.collect():
            self.unbind(name)
        comms.clear(self.baseline_targets)

    @staticmethod
    def unbind(name: str) -> None:
        user_ns = live.LIVE.user_ns
        if match := _OUTPUT.match(name):
            user_ns.get("_oh", {}).pop(int(match.group(1)), None)
            user_ns.pop(f"_{match.group(1)}", None)
        elif name.startswith("%"):
            kind = "cell" if name.startswith("%%") else "line"
            live.LIVE.shell.magics_manager.magics[kind].pop(name.lstrip("%"), None)
        elif not name.startswith("_") and name in (own := getattr(live.LIVE.shell, "user_ns_hidden", {})):
            # IPython's own `open`, `exit` and `quit`, which a user's variable had replaced.
            user_ns[name] = own[name]
        else:
            user_ns.pop(name, None)

    @staticmethod
    def bind(name: str, value: Any) -> None:
        """Binds a name or pseudo-name to a restored value."""
        user_ns, shell = live.LIVE.user_ns, live.LIVE.shell
        if match := _OUTPUT.match(name):
            number = int(match.group(1))
            user_ns.setdefault("_oh", {})[number] = value
            user_ns[f"_{number}"] = value
            if shell is not None:
                shell.user_ns_hidden[f"_{number}"] = value
        elif comms.bind(name, value):
            return
        elif name.startswith("%"):
            kind = "cell" if name.startswith("%%") else "line"
            shell.magics_manager.magics[kind][name.lstrip("%")] = value
        else:
            user_ns[name] = value


def is_output(name: str) -> bool:
    """Whether a name is a cached output or an underscore, which are dropped without a word."""
    return name in _UNDERSCORES or _OUTPUT.match(name) is not None


def _is_users(magic: Any) -> bool:
    """Whether a magic is the user's own and not one that `%load_ext` brings back."""
    owner = getattr(magic, "__self__", None)
    module = type(owner).__module__ if owner is not None else getattr(magic, "__module__", None)
    return module == "__main__" or (owner is None and isinstance(magic, types.FunctionType) and module is None)
