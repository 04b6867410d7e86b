"""NumPy arrays: owners travel as raw buffers, views as (base, offset, shape, strides).

So `view = base[2:]` still writes through to `base` after a restore, and a restored array owns
writable memory as the original did. NumPy is used only if the session imported it.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any, Callable

# References to a base array when only one view holds it: that view, and this module's two locals.
_ORPHAN_REFERENCES_MAX = 3


def reduce_array(array: Any, check_size: Callable[[int], None]) -> Any:
    """Reduces an exact `numpy.ndarray`; NotImplemented leaves it to NumPy's own way.

    `check_size` raises if so many bytes are too many; asked before an array is copied.
    """
    if array.dtype.itemsize == 0:
        return NotImplemented
    base = _owner(array)
    if base is not None:
        if sys.getrefcount(base) > _ORPHAN_REFERENCES_MAX:
            return _reduce_view(array, base)
        base = None
    if array.dtype.hasobject:
        return NotImplemented
    flags = array.flags
    if flags.c_contiguous:
        order, flat = "C", array.reshape(-1)
    elif flags.f_contiguous:
        order, flat = "F", array.T.reshape(-1)
    else:
        import numpy

        check_size(array.nbytes)
        order, flat = "C", numpy.ascontiguousarray(array).reshape(-1)
    data = pickle.PickleBuffer(flat.view("u1"))
    return make_array, (data, _dtype_spec(array.dtype), array.shape, order, flags.writeable)


def _dtype_spec(dtype: Any) -> Any:
    return dtype.str if dtype.isbuiltin == 1 else dtype


def _owner(array: Any) -> Any:
    """The plain contiguous array whose memory this view shows, or None."""
    numpy = sys.modules["numpy"]
    base = array.base
    while base is not None and not (type(base) is numpy.ndarray and base.base is None):
        base = getattr(base, "base", None)
    if base is None or not base.flags.owndata or not base.flags.forc:
        return None
    if array.dtype.hasobject or base.dtype.hasobject:
        return base if array.dtype == base.dtype else None
    return base


def _reduce_view(view: Any, base: Any) -> tuple[Any, ...]:
    address = view.__array_interface__["data"][0]
    offset = address - base.__array_interface__["data"][0]
    spec = _dtype_spec(view.dtype)
    return make_view, (base, spec, view.shape, offset, view.strides, view.flags.writeable)


def make_array(data: Any, spec: Any, shape: tuple[int, ...], order: str, writeable: bool) -> Any:
    """An array that owns a copy of `data`."""
    import numpy

    array = numpy.empty(shape, numpy.dtype(spec), order)
    if array.size:
        flat = array.reshape(-1) if order == "C" else array.T.reshape(-1)
        flat.view("u1")[:] = numpy.frombuffer(data, "u1")
    if not writeable:
        array.flags.writeable = False
    return array


def make_view(
    base: Any, spec: Any, shape: tuple[int, ...], offset: int, strides: tuple[int, ...], writeable: bool
) -> Any:
    """A view of `base`; `offset` and `strides` in bytes."""
    import numpy

    dtype = numpy.dtype(spec)
    memory = base if base.flags.c_contiguous else base.T
    if dtype.hasobject:
        flat = memory.reshape(-1)[offset // dtype.itemsize :]
        view = numpy.lib.stride_tricks.as_strided(flat, shape, strides)
    else:
        view = numpy.ndarray(shape, dtype, memory, offset, strides)
    if not writeable:
        view.flags.writeable = False
    return view
