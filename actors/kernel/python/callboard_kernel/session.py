"""What a session has changed in its process: directory, environment, random states, settings.

Each component gives a small dict, or None while it is as the process started it. Libraries are
looked at only if the session imported them.
"""

from __future__ import annotations

import locale
import os
import random
import sys
import warnings
from typing import Any, Callable

from . import libraries, live
from .directory import DIRECTORY
from .packages import PACKAGES
from .warned import Warned

_PROCESS_VARIABLES = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "PYTHONPATH", "JPY_PARENT_PID", "JPY_INTERRUPT_EVENT"})


class Session:
    """The process state of a session, against what it was at the start."""

    def __init__(self) -> None:
        self.environ = dict(os.environ)
        self._raw_environ = dict(os.environ._data)
        self.path = list(sys.path)
        self.filters = list(warnings.filters)
        self.recursion_limit = sys.getrecursionlimit()
        self.locale = locale.setlocale(locale.LC_ALL)
        self.ipython = ipython_settings()
        self.extensions = set(loaded_extensions())
        self.warned = Warned()
        self.components: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
            "process": (self.process, self.apply_process),
            "random": (random.getstate, random.setstate),
            "interpreter": (self.interpreter, self.apply_interpreter),
            "ipython": (self.ipython_state, self.apply_ipython),
            "decimal": (libraries.decimal_state, libraries.apply_decimal),
            "numpy": (libraries.numpy_state, libraries.apply_numpy),
            "torch": (libraries.torch_state, libraries.apply_torch),
            "matplotlib": (libraries.matplotlib_state, libraries.apply_matplotlib),
            "pandas": (libraries.pandas_state, libraries.apply_pandas),
            "warned": (self.warned.state, self.warned.apply),
        }

    def begin_with(self, variables: dict[str, str]) -> None:
        """Takes variables that are set already for those that the process was started with."""
        self.environ.update(variables)
        self._raw_environ = {os.fsencode(key): os.fsencode(value) for key, value in self.environ.items()}

    # Components whose state shares no mutable part with the process, so that two states may be
    # compared by value.
    comparable = frozenset({"process", "random", "ipython", "warned"})

    def capture(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Each component's state, and the reasons of those that could not be read."""
        states, failed = {}, {}
        for name, (read, _apply) in self.components.items():
            try:
                state = read()
            except Exception as error:  # library internals may move between versions
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            if state is not None:
                states[name] = state
        return states, failed

    def apply(self, name: str, state: Any) -> None:
        """Puts one component's state in force. Raises what the component raises."""
        self.components[name][1](state)

    def process(self) -> dict[str, Any]:
        changed, removed = {}, []
        if os.environ._data != self._raw_environ:
            for key, value in os.environ.items():
                if self.environ.get(key) != value and _carried(key):
                    changed[key] = value
            removed = [key for key in self.environ if key not in os.environ and _carried(key)]
        added, dropped = [], []
        if sys.path != self.path:
            own = [*self.path, PACKAGES.overlay]
            extra = [(index, entry) for index, entry in enumerate(sys.path) if entry not in own]
            added = [(index, DIRECTORY.to_carried(entry) if isinstance(entry, str) else entry) for index, entry in extra]
            dropped = [entry for entry in self.path if entry not in sys.path]
        try:
            directory = DIRECTORY.to_carried(os.getcwd())
        except FileNotFoundError:
            directory = None
        return {"cwd": directory, "set": changed, "unset": removed, "path_add": added, "path_drop": dropped}

    def apply_process(self, state: dict[str, Any]) -> None:
        for key in list(os.environ):
            if key not in self.environ and _carried(key):
                del os.environ[key]
        os.environ.update({key: value for key, value in self.environ.items() if _carried(key)})
        os.environ.update(state["set"])
        for key in state["unset"]:
            os.environ.pop(key, None)
        path = [entry for entry in self.path if entry not in state["path_drop"]]
        for index, entry in state["path_add"]:
            path.insert(index, DIRECTORY.from_carried(entry) if isinstance(entry, str) else entry)
        sys.path[:] = path
        if PACKAGES.overlay and PACKAGES.overlay not in path:
            sys.path.insert(0, PACKAGES.overlay)
        if state["cwd"] is not None:
            DIRECTORY.go(DIRECTORY.from_carried(state["cwd"]))

    def interpreter(self) -> dict[str, Any] | None:
        state: dict[str, Any] = {}
        if warnings.filters != self.filters:
            state["filters"] = list(warnings.filters)
        if sys.getrecursionlimit() != self.recursion_limit:
            state["recursion_limit"] = sys.getrecursionlimit()
        current = locale.setlocale(locale.LC_ALL)
        if current != self.locale:
            state["locale"] = current
        return state or None

    def apply_interpreter(self, state: dict[str, Any]) -> None:
        if "filters" in state:
            warnings.filters[:] = state["filters"]
            getattr(warnings, "_filters_mutated", getattr(warnings, "_filters_mutated_lock_held", int))()
        if "recursion_limit" in state:
            sys.setrecursionlimit(state["recursion_limit"])
        if "locale" in state:
            locale.setlocale(locale.LC_ALL, state["locale"])

    def ipython_state(self) -> dict[str, Any] | None:
        current = ipython_settings()
        state: dict[str, Any] = {key: value for key, value in current.items() if value != self.ipython[key]}
        extensions = sorted(set(loaded_extensions()) - self.extensions)
        if extensions:
            state["extensions"] = extensions
        reloader = _reloader()
        if reloader is not None:
            state["autoreload"] = "2" if reloader.check_all else "1" if reloader.enabled else "0"
        return state or None

    def apply_ipython(self, state: dict[str, Any]) -> None:
        shell = live.LIVE.shell
        missing = []
        for name in state.get("extensions", ()):
            try:
                shell.extension_manager.load_extension(name)
            except Exception as error:  # an extension's import runs arbitrary code
                missing.append(f"{name} ({type(error).__name__}: {error})")
        for owner, trait in _TRAITS:
            if trait in state:
                setattr(owner(shell), trait, state[trait])
        if "autoreload" in state and _reloader() is not None:
            shell.run_line_magic("autoreload", state["autoreload"])
        if missing:
            raise RuntimeError("extensions that do not load here: " + ", ".join(missing))


_TRAITS: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (lambda shell: shell.display_formatter.formatters["text/plain"], "float_precision"),
    (lambda shell: shell.display_formatter.formatters["text/plain"], "max_seq_length"),
    (lambda shell: shell.display_formatter.formatters["text/plain"], "pprint"),
    (lambda shell: shell, "ast_node_interactivity"),
    (lambda shell: shell, "automagic"),
    (lambda shell: shell, "autoawait"),
    (lambda shell: shell, "call_pdb"),
    (lambda shell: shell.InteractiveTB, "mode"),
)


def ipython_settings() -> dict[str, Any]:
    """IPython's user-facing switches, as `%precision`, `%config`, `%xmode` and `%pdb` set them."""
    shell = live.LIVE.shell
    return {trait: getattr(owner(shell), trait, None) for owner, trait in _TRAITS} if shell else {}


def loaded_extensions() -> set[str]:
    shell = live.LIVE.shell
    return shell.extension_manager.loaded if shell is not None else set()


def _reloader() -> Any:
    shell = live.LIVE.shell
    if shell is None:
        return None
    magics = shell.magics_manager.registry.get("AutoreloadMagics")
    return getattr(magics, "_reloader", None)


def _carried(key: str) -> bool:
    return not key.startswith("CALLBOARD_") and key not in _PROCESS_VARIABLES
