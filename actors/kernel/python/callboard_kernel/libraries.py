"""Settings and random states of libraries, read and applied without importing any unasked."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any


def decimal_state() -> Any:
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    context = decimal.getcontext()
    return None if repr(context) == repr(decimal.Context()) else context.copy()


def apply_decimal(state: Any) -> None:
    importlib.import_module("decimal").setcontext(state)


def numpy_state() -> dict[str, Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "get_printoptions"):
        return None
    state = {"print": numpy.get_printoptions(), "errors": numpy.geterr()}
    if "numpy.random" in sys.modules:
        state["random"] = numpy.random.get_state()
    return state


def apply_numpy(state: dict[str, Any]) -> None:
    numpy = importlib.import_module("numpy")
    if "random" in state:
        numpy.random.set_state(state["random"])
    numpy.set_printoptions(**state["print"])
    numpy.seterr(**state["errors"])


def torch_state() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        return None
    state = {"cpu": torch.get_rng_state().numpy().tobytes()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [device.numpy().tobytes() for device in torch.cuda.get_rng_state_all()]
    return state


def apply_torch(state: dict[str, Any]) -> None:
    torch = importlib.import_module("torch")

    def tensor(data: bytes) -> Any:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    torch.set_rng_state(tensor(state["cpu"]))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([tensor(device) for device in state["cuda"]])


_MATPLOTLIB_LIVE = frozenset({"backend", "backend_fallback", "interactive", "toolbar", "timezone"})


def matplotlib_state() -> dict[str, Any] | None:
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is None or not hasattr(matplotlib, "rcParamsDefault"):
        return None
    defaults = matplotlib.rcParamsDefault
    changed = {}
    if not dict.__eq__(matplotlib.rcParams, defaults):
        for key, value in dict.items(matplotlib.rcParams):
            if key not in _MATPLOTLIB_LIVE and not _equal(value, dict.get(defaults, key)):
                changed[key] = value
    backend = dict.get(matplotlib.rcParams, "backend")
    state: dict[str, Any] = {"rc": changed, "interactive": dict.get(matplotlib.rcParams, "interactive")}
    if isinstance(backend, str) and "matplotlib.pyplot" in sys.modules:
        state["backend"] = backend
    return state


def _equal(left: Any, right: Any) -> bool:
    try:
        return bool(left == right)
    except Exception:  # arrays compare element by element
        return False


def apply_matplotlib(state: dict[str, Any]) -> None:
    if not state["rc"] and "backend" not in state:
        return
    matplotlib = importlib.import_module("matplotlib")
    backend = state.get("backend")
    if backend is not None:
        if "inline" in backend:
            from . import live

            importlib.import_module("matplotlib.pyplot")
            live.LIVE.shell.enable_matplotlib("inline")
        else:
            matplotlib.use(backend, force=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcParams.update(state["rc"])
    matplotlib.interactive(bool(state["interactive"]))


def pandas_state() -> dict[str, Any] | None:
    config = sys.modules.get("pandas._config.config")
    if config is None:
        return None
    changed: dict[str, Any] = {}
    for key, option in config._registered_options.items():
        node = config._global_config
        for part in key.split("."):
            node = node[part]
        if node is not option.defval and not _equal(node, option.defval):
            changed[key] = node
    return changed or None


def apply_pandas(state: dict[str, Any]) -> None:
    pandas = importlib.import_module("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in state.items():
            pandas.set_option(key, value)
