"""PyTorch tensors: storages travel as raw buffers, tensors as (storage, offset, shape, strides).

So tensors that share a storage still do after a restore, and nothing is copied for a tensor on the CPU.
A storage on another device is copied to the host when it is captured, and back to that device where a
restore finds one; else it stays on the CPU. PyTorch is used only if the session imported it.
"""

from __future__ import annotations

import ctypes
import importlib
import pickle
import sys
from typing import Any, Callable


class Holder:
    """Stands for a storage, whose Python object PyTorch makes anew each time it is asked for.

    One per storage and capture, so that every pickle of the capture has the same.
    """

    __slots__ = ("storage", "device", "__weakref__")

    def __init__(self, storage: Any, device: str) -> None:
        self.storage = storage
        self.device = device


# Where a storage is: by its tensor. Apart, so that a device can be stood in for.
def device_of(tensor: Any) -> str:
    return str(tensor.device)


def to_host(storage: Any) -> Any:
    """A copy on the CPU of a storage on another device."""
    return storage.cpu()


def to_device(storage: Any, device: str) -> Any:
    """A copy of a host's storage on a device. Raises what PyTorch does if there is none."""
    torch = importlib.import_module("torch")
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    return untyped(flat.to(device))


def untyped(tensor: Any) -> Any:
    """The bytes behind a tensor."""
    return tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage().untyped()


def reduce_tensor(tensor: Any, holders: dict[Any, Holder], check_size: Callable[[int], None]) -> Any:
    """Reduces a plain tensor or parameter; NotImplemented leaves it to PyTorch's own way."""
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return NotImplemented
    if tensor._backward_hooks or tensor.is_conj() or tensor.is_neg():
        return NotImplemented
    holder = _holder(tensor, holders, check_size)
    is_parameter = type(tensor) is not torch.Tensor
    arguments = (
        holder, str(tensor.dtype).partition(".")[2], tensor.storage_offset(), tuple(tensor.shape),
        tensor.stride(), tensor.requires_grad, is_parameter,
    )  # fmt: skip
    # Asking a tensor inside a graph for its gradient warns.
    grad = tensor.grad if tensor.is_leaf else None
    attributes = tensor.__dict__ or None
    if grad is None and attributes is None:
        return make_tensor, arguments
    return make_tensor, arguments, (grad, attributes), None, None, set_tensor_state


def _holder(tensor: Any, holders: dict[Any, Holder], check_size: Callable[[int], None]) -> Holder:
    storage, device = untyped(tensor), device_of(tensor)
    size = storage.nbytes()
    # Empty storages have no address to tell them apart by.
    key = (device, storage.data_ptr(), size) if size else object()
    holder = holders.get(key)
    if holder is None:
        if device != "cpu":
            check_size(size)
        holder = holders[key] = Holder(storage if device == "cpu" else to_host(storage), device)
    return holder


def reduce_holder(holder: Holder) -> tuple[Any, ...]:
    size = holder.storage.nbytes()
    raw = (ctypes.c_ubyte * size).from_address(holder.storage.data_ptr()) if size else bytearray()
    if size:
        # The memory is the storage's: whoever holds the view holds the storage.
        raw.storage = holder.storage  # type: ignore[union-attr]
    return make_storage, (pickle.PickleBuffer(raw), holder.device)


def make_storage(data: Any, device: str) -> Any:
    """A storage that owns a copy of `data`, on the device if it is there."""
    torch = importlib.import_module("torch")
    view = memoryview(data)
    flat = torch.empty(view.nbytes, dtype=torch.uint8)
    if view.nbytes:
        flat.copy_(torch.frombuffer(view if not view.readonly else bytearray(view), dtype=torch.uint8))
    storage = untyped(flat)
    if device == "cpu":
        return storage
    try:
        return to_device(storage, device)
    except Exception:  # no such device here, or no memory on it: the host's copy is as good
        return storage


def make_tensor(
    storage: Any,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    is_parameter: bool,
) -> Any:
    """A tensor on `storage`; `offset` and `strides` in elements."""
    torch = importlib.import_module("torch")
    tensor = torch.empty(0, dtype=getattr(torch, dtype), device=storage.device)
    tensor = tensor.set_(storage, offset, shape, strides)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def set_tensor_state(tensor: Any, state: tuple[Any, dict[str, Any] | None]) -> None:
    """Second phase of a tensor: its gradient and attributes."""
    grad, attributes = state
    if grad is not None:
        tensor.grad = grad
    if attributes:
        tensor.__dict__.update(attributes)
