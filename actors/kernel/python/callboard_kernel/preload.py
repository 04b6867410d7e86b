"""Libraries imported ahead of time, kept out of sight until a session imports them.

A zygote imports the configured libraries once; the kernels forked from it share the pages. So that a
forked session behaves like any other, the modules are taken out of `sys.modules` and put back by an
import hook when something imports one of them: what looks for imported libraries (captures, IPython)
sees what the session imported, and settings that a library reads when it is imported are read then.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Iterable, Sequence

# Libraries read these when they are loaded, and start that many threads.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_INLINE_BACKEND = "module://matplotlib_inline.backend_inline"
_OPENBLAS_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


class Preloaded:
    """Modules that are loaded and not in `sys.modules`; a finder that puts them back."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        self.hidden: set[str] = set()
        self._specs: dict[str, ModuleSpec | None] = {}
        self._needs: dict[str, set[str]] = {}
        self._environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        self._rc_file: str | None = None
        # What importing a package set in the environment.
        self._sets: dict[str, dict[str, str]] = {}
        self._before = set(sys.modules)

    def load(self, name: str) -> str | None:
        """Imports one library; the reason why not, if it cannot be."""
        changed = {variable: "1" for variable in THREAD_VARIABLES}
        changed.setdefault("MPLBACKEND", os.environ.get("MPLBACKEND") or _INLINE_BACKEND)
        former = dict(os.environ)
        os.environ.update(changed)
        try:
            importlib.import_module(name)
        except BaseException as error:  # a library may raise anything, or try to exit
            return f"{type(error).__name__}: {error}"
        finally:
            now = dict(os.environ)
            os.environ.clear()
            os.environ.update(former)
        ours = {**former, **changed}
        sets = {key: value for key, value in now.items() if ours.get(key) != value}
        self._sets.setdefault(_package(name), {}).update(sets)
        return None

    def hide(self) -> None:
        """Takes what was loaded out of sight. Modules of the standard library stay."""
        for name in set(sys.modules) - self._before:
            module = sys.modules[name]
            if _package(name) in sys.stdlib_module_names or not isinstance(module, ModuleType):
                continue
            self.modules[name] = module
            self._specs[name] = getattr(module, "__spec__", None)
        packages = {_package(name) for name in self.modules}
        for name, module in self.modules.items():
            used = {_package(_origin(value)) for value in list(vars(module).values())}
            self._needs.setdefault(_package(name), set()).update(used & packages - {_package(name)})
        matplotlib = self.modules.get("matplotlib")
        if matplotlib is not None:
            self._rc_file = matplotlib.matplotlib_fname()
        for name in self.modules:
            del sys.modules[name]
        self.hidden = set(self.modules)
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Called by the import system for a module that is not in `sys.modules`; changes nothing."""
        if name not in self.hidden:
            return None
        spec, former = ModuleSpec(name, self), self._specs[name]
        if former is not None:
            spec.origin = former.origin
            spec.submodule_search_locations = former.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Gives the import system the module that is loaded already."""
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module's package and all it needs back, and does what its import would do now."""
        name = next(name for name, known in self.modules.items() if known is module)
        module.__spec__ = self._specs[name]
        todo, packages = [_package(name)], set()
        while todo:
            package = todo.pop()
            if package not in packages:
                packages.add(package)
                todo.extend(self._needs.get(package, ()))
        shown = {name for name in self.hidden if _package(name) in packages}
        self.hidden -= shown
        for name in shown:
            sys.modules[name] = self.modules[name]
        for package in packages:
            for key, value in self._sets.pop(package, {}).items():
                os.environ.setdefault(key, value)
        if not self.hidden and self in sys.meta_path:
            sys.meta_path.remove(self)
        if "numpy" in shown:
            _restore_threads(self._environment)
        if "numpy.random" in shown:
            self.modules["numpy.random"].seed()
        if "ipywidgets" in shown:
            # Its import does so where a kernel runs.
            self.modules["ipywidgets"].register_comm_target()
        if "matplotlib" in shown:
            self._reread_settings(self.modules["matplotlib"])

    def _reread_settings(self, matplotlib: Any) -> None:
        """What matplotlib reads when it is imported may have changed since it was loaded."""
        current = matplotlib.matplotlib_fname()
        if current != self._rc_file:
            matplotlib.rc_file(current)
        backend = os.environ.get("MPLBACKEND")
        if backend:
            matplotlib.rcParams["backend"] = backend
        else:
            original = dict.__getitem__(matplotlib.rcParamsOrig, "backend")
            dict.__setitem__(matplotlib.rcParams, "backend", original)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _origin(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    try:
        name = getattr(value, "__module__", None)
    except Exception:  # a lazy object may do anything
        return ""
    return name if isinstance(name, str) else ""


def _restore_threads(environment: dict[str, str | None]) -> None:
    """Gives numeric libraries, loaded with one thread, the threads they would have had."""
    available = len(os.sched_getaffinity(0))

    def wanted(*variables: str) -> int:
        for variable in variables:
            text = os.environ.get(variable, environment.get(variable)) or ""
            if text.isdigit() and int(text) > 0:
                return int(text)
        return available

    for path in _mapped_libraries():
        name = os.path.basename(path)
        if "openblas" in name:
            _call(path, _OPENBLAS_SETTERS, wanted("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
        elif name.startswith(("libgomp", "libomp", "libiomp")):
            _call(path, ("omp_set_num_threads",), wanted("OMP_NUM_THREADS"))


def _mapped_libraries() -> Iterable[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count(" ") >= 5 and "/" in line}
    return sorted(path for path in paths if ".so" in path)


def _call(path: str, names: Iterable[str], threads: int) -> None:
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return
    for name in names:
        setter = getattr(library, name, None)
        if setter is not None:
            setter(ctypes.c_int(threads))
            return
