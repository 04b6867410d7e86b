"""Which objects are not pickled as cloudpickle would, and what is done instead.

A reducer gets the pickler at work and an object of its type; NotImplemented leaves the object to
cloudpickle and to its own way.
"""

from __future__ import annotations

import io
import sys
import types
from typing import Any, Callable

import cloudpickle
from comm.base_comm import BaseComm
from traitlets import HasTraits

from . import arrays, classes, comms, functions, live, quirks, tensors, traits
from .sharing import VALUE_TYPES

Reducer = Callable[[Any, Any], Any]


def _default(_pickler: Any, _obj: Any) -> Any:
    return NotImplemented


def _function(pickler: Any, func: Any) -> Any:
    if functions.is_importable(func):
        return NotImplemented
    pickler.by_value.add(id(func))
    return functions.reduce_function(func)


def _class(pickler: Any, cls: Any) -> Any:
    if pickle_by_name(cls):
        return NotImplemented
    name = pickler.context.anchors.get(id(cls))
    if name is not None and id(cls) not in pickler.own:
        pickler.classes.add(name)
        return live.class_by_name, (name,)
    pickler.context.check()
    reduced = classes.reduce_class(cloudpickle.Pickler.reducer_override(pickler, cls))
    if reduced is not NotImplemented and len(reduced) == 6:
        pickler.by_value.add(id(cls))
    return reduced


def pickle_by_name(cls: Any) -> bool:
    """The common case of an importable class, without cloudpickle's search."""
    module = sys.modules.get(cls.__module__) if isinstance(cls.__module__, str) else None
    return (
        module is not None
        and module.__dict__ is not live.LIVE.user_ns
        and module.__dict__.get(cls.__qualname__) is cls
        and functions.is_importable(cls)
    )


def _instance(pickler: Any, _obj: Any) -> Any:
    context = pickler.context
    if context.deadline != float("inf") or context.tick is not None:
        context.check()
    return NotImplemented


def _array(pickler: Any, array: Any) -> Any:
    return arrays.reduce_array(array, pickler.context.check_size)


def _module(_pickler: Any, module: Any) -> Any:
    if sys.modules.get(module.__name__) is module:
        return live.module_by_name, (module.__name__,)
    return NotImplemented


def _stream(_pickler: Any, stream: Any) -> Any:
    for name in ("stdout", "stderr", "stdin"):
        if stream is getattr(sys, name):
            return live.get_stream, (name,)
    return quirks.reduce_file(stream)


def _random_state(_pickler: Any, state: Any) -> Any:
    return (live.numpy_global_random, ()) if state is live.numpy_global_random() else NotImplemented


def _shell(_pickler: Any, shell: Any) -> Any:
    return (live.get_shell, ()) if shell is live.LIVE.shell else NotImplemented


def _kernel(_pickler: Any, kernel: Any) -> Any:
    return (live.get_kernel, ()) if kernel is live.LIVE.kernel else NotImplemented


def _traits(pickler: Any, obj: Any) -> Any:
    _instance(pickler, obj)
    return traits.reduce_traits(obj)


def _tensor(pickler: Any, tensor: Any) -> Any:
    return tensors.reduce_tensor(tensor, pickler.context.holders, pickler.context.check_size)


def _by(reduce: Callable[[Any], Any]) -> Reducer:
    """A reducer that needs no pickler."""
    return lambda _pickler, obj: reduce(obj)


_EXACT: dict[str, Reducer] = {
    "builtins.function": _function,
    "builtins.method": _by(functions.reduce_method),
    "builtins.memoryview": _by(quirks.reduce_memoryview),
    "numpy.random.mtrand.RandomState": _random_state,
    "weakref.ReferenceType": _by(quirks.reduce_weak),
    "weakref.ProxyType": _by(quirks.reduce_weak),
    "builtins.generator": _by(quirks.reduce_generator),
    "builtins.cell": _by(functions.reduce_cell),
    "functools._lru_cache_wrapper": _by(functions.reduce_lru_cache),
    "numpy.ndarray": _array,
    "torch.Tensor": _tensor,
    "torch.nn.parameter.Parameter": _tensor,
    "callboard_kernel.tensors.Holder": _by(tensors.reduce_holder),
    "_struct.Struct": _by(quirks.reduce_struct),
    "_io.BytesIO": _by(quirks.reduce_buffer),
    "_io.StringIO": _by(quirks.reduce_buffer),
    "os._Environ": _by(quirks.reduce_environ),
    "tqdm.notebook.TqdmHBox": _by(traits.reduce_progress_box),
    "matplotlib.cbook.CallbackRegistry": _by(quirks.reduce_callback_registry),
}


def choose(kind: type) -> Reducer:
    """Which reducer an object of this type gets; asked once per type."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    exact = _EXACT.get(name)
    if exact is not None:
        return exact
    if issubclass(kind, type):
        return _class
    if issubclass(kind, types.ModuleType):
        return _module
    if issubclass(kind, io.IOBase) and not issubclass(kind, (io.BytesIO, io.StringIO)):
        return _stream
    if live.LIVE.shell is not None and kind is type(live.LIVE.shell):
        return _shell
    if live.LIVE.kernel is not None and kind is type(live.LIVE.kernel):
        return _kernel
    if issubclass(kind, BaseComm):
        return _by(comms.reduce_comm)
    if issubclass(kind, HasTraits) and traits.is_plain(kind):
        return _traits
    return _default if issubclass(kind, VALUE_TYPES) else _instance
