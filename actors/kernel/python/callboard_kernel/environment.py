"""The Python environment: what is installed here, and what of it the session has imported.

As a program it prints the environment as JSON, for the node, with the kernelspecs of other languages
that Jupyter finds here. It imports nothing of this package, so that any interpreter can run it by its
path.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import string
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any, Iterable

_SEPARATORS = re.compile(r"[-_.]+")
# What Jupyter allows, of a length that fits into a table.
_KERNELSPEC = re.compile(r"[a-z0-9._-]{1,64}")
# Namespaces larger than this are not looked through for modules that nobody imported by name.
_NAMES_LOOKED_AT_MAX = 2_000


def normal(name: str) -> str:
    """A distribution's name as packaging tools compare it."""
    return _SEPARATORS.sub("-", name).lower()


def facts() -> dict[str, str]:
    """The interpreter."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": sysconfig.get_platform(),
    }


def installed(directories: Iterable[str]) -> dict[str, str]:
    """Distributions in these directories: normal name -> version; the first one found counts.

    Directory names only: opening every distribution's metadata would cost a tenth of a second.
    """
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for entry in names:
            stem, dot, kind = entry.rpartition(".")
            if dot and kind in ("dist-info", "egg-info"):
                name, _, version = stem.partition("-")
                found.setdefault(normal(name), version.partition("-")[0])
    return found


def describe(kernelspecs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The environment with its id."""
    described: dict[str, Any] = {**facts(), "distributions": installed(sys.path)}
    if kernelspecs:
        described["kernelspecs"] = {
            name: {"display_name": str(spec.get("display_name") or name), "language": str(spec.get("language") or name)}
            for name, spec in kernelspecs.items()
        }
    canonical = json.dumps(described, sort_keys=True).encode()
    return {"id": hashlib.sha256(canonical).hexdigest()[:16], **described}


def kernelspec_folders() -> list[str]:
    """Where Jupyter looks for kernelspecs, the first place first."""
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return []
    return jupyter_path("kernels")


def find_kernelspecs(folders: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The kernelspecs of other languages than Python: name -> content; the first one found counts."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            place = os.path.join(folder, name)
            try:
                spec = json.loads(Path(place, "kernel.json").read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(spec, dict) and _KERNELSPEC.fullmatch(name.lower()):
                found.setdefault(name.lower(), {**spec, "resource_dir": place})
    return {name: spec for name, spec in found.items() if _is_foreign(spec)}


def _is_foreign(spec: dict[str, Any]) -> bool:
    """Whether a kernelspec is one to start a process by here, and neither Python nor a way to Callboard itself."""
    argv, metadata = spec.get("argv"), spec.get("metadata")
    is_command = isinstance(argv, list) and bool(argv) and all(isinstance(it, str) for it in argv)
    is_elsewhere = isinstance(metadata, dict) and not metadata.keys().isdisjoint(("kernel_provisioner", "callboard"))
    return is_command and not is_elsewhere and str(spec.get("language")).lower() != "python"


def program_of(spec: dict[str, Any]) -> dict[str, Any]:
    """How a kernelspec's process is started here; the connection file has still to be put in."""
    argv = [it.replace("{resource_dir}", spec["resource_dir"]).replace("{prefix}", sys.prefix) for it in spec["argv"]]
    if argv[0] in ("python", "python3", "python%d.%d" % sys.version_info[:2]):
        argv[0] = sys.executable
    env = spec.get("env") if isinstance(spec.get("env"), dict) else {}
    return {
        "argv": argv,
        "env": {str(name): string.Template(str(value)).safe_substitute(os.environ) for name, value in env.items()},
        "interrupt_mode": "message" if spec.get("interrupt_mode") == "message" else "signal",
    }


class Imported:
    """Which distributions the session has imported, with their versions."""

    def __init__(self, user_ns: dict[str, Any]) -> None:
        self.found: dict[str, str] = {}
        self._modules = frozenset(_tops(sys.modules))
        self._names = frozenset(user_ns)
        self._tops: set[str] = set()
        self._count = len(sys.modules)

    def look(self, user_ns: dict[str, Any], skip: str | None = None) -> dict[str, str]:
        """Looks for modules that came since the last look; `skip` is a directory that travels."""
        tops = set()
        if len(sys.modules) != self._count:
            self._count = len(sys.modules)
            tops = set(_tops(sys.modules)) - self._modules
        # A module that the process began with was imported by the session if a name leads to it.
        names = frozenset(user_ns)
        fresh = names - self._names
        if len(fresh) <= _NAMES_LOOKED_AT_MAX:
            tops |= {top for name in fresh if (top := _top_of(user_ns.get(name)))}
        self._names = names
        for top in sorted(tops - self._tops):
            self._tops.add(top)
            found = distribution_of(top)
            if found is not None and not (skip and found[2].startswith(skip)):
                self.found[found[0]] = found[1]
        return self.found

    def adopt(self, carried: dict[str, str]) -> dict[str, str]:
        """Takes over what the session had imported elsewhere; returns what is not the same here."""
        here = installed(sys.path)
        self.found.update({name: here.get(name, version) for name, version in carried.items()})
        return {name: here.get(name, "") for name, version in carried.items() if here.get(name) != version}


def _tops(modules: Iterable[str]) -> Iterable[str]:
    return {name.partition(".")[0] for name in list(modules)}


def _top_of(value: Any) -> str | None:
    name = value.__name__ if issubclass(type(value), types.ModuleType) else getattr(type(value), "__module__", None)
    if name in ("builtins", None) or issubclass(type(value), (types.FunctionType, types.BuiltinFunctionType, type)):
        name = getattr(value, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) and name not in ("builtins", "__main__") else None


def distribution_of(top: str) -> tuple[str, str, str] | None:
    """The distribution that a top-level module is of: normal name, version, directory; None if of none."""
    if top in sys.stdlib_module_names or top.startswith("_"):
        return None
    place = _place_of(sys.modules.get(top))
    if place is None:
        return None
    try:
        entries = [entry for entry in os.listdir(place) if entry.endswith(".dist-info")]
    except OSError:
        return None
    pairs = [(entry, *entry[: -len(".dist-info")].partition("-")[::2]) for entry in entries]
    for _entry, name, version in pairs:
        if normal(name) == normal(top):
            return normal(name), version, place
    patterns = (f"{top}/", f"{top}.py,", f"{top}.")
    for entry, name, version in pairs:
        try:
            record = (Path(place) / entry / "RECORD").read_text(errors="replace")
        except OSError:
            continue
        if any(record.startswith(pattern) or f"\n{pattern}" in record for pattern in patterns):
            return normal(name), version, place
    return None


def _place_of(module: Any) -> str | None:
    """The directory that a top-level module was found in."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        directory = os.path.dirname(file)
        return os.path.dirname(directory) if os.path.basename(file).startswith("__init__.") else directory
    path = list(getattr(module, "__path__", ()) or ())
    return os.path.dirname(path[0]) if path else None


if __name__ == "__main__":
    folders = kernelspec_folders()
    kernelspecs = find_kernelspecs(folders)
    described = {
        "environment": describe(kernelspecs),
        # When one of these changes, so may the environment.
        "directories": [path for path in sys.path if os.path.isdir(path)] + folders,
        "programs": {name: program_of(spec) for name, spec in kernelspecs.items()},
    }
    print(json.dumps(described))
