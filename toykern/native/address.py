"""Addresses for native code, taken here alone, so that no kernel is sent to memory that is not there.

Kernels get raw pointers, and a wrong one ends the process. A tensor that stands for others (a DTensor of
FSDP2, a fake or functional tensor), one on the meta device or one whose storage was freed has address 0 or
none; one of another dtype, device or stride has an address that means something else to the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike

from toykern.arguments.errors import describe

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def address(name: str, tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | None = None) -> int:
    """The address of a plain, contiguous tensor of this dtype on the device, None for the CPU.

    TypeError, with the name, for whatever else it is given: tensor subclasses that dispatch for themselves,
    such as DTensor and fake tensors, tensors inside torch.func transforms, meta and sparse ones, another
    dtype or device, strides that are not contiguous, storage that was freed. Of an empty tensor it may be 0.

    >>> address("x", torch.zeros(3, dtype=torch.float32), torch.float32) != 0
    True
    >>> address("x", torch.zeros(3, dtype=torch.float64), torch.float32)
    Traceback (most recent call last):
      ...
    TypeError: x must be a contiguous float32 tensor on 'cpu', not a float64 tensor of shape [3]
    """
    # A layer's call takes a dozen addresses, so what is usual is seen at once.
    found = usual_address(tensor, dtype, device)
    return found or _address_of_unusual(name, tensor, dtype, device or torch.device("cpu"))


def usual_address(tensor: Any, dtype: torch.dtype, device: torch.device | None = None) -> int:
    """The address where it can be seen at once that a kernel may use it, by the rules of `address`; else 0.

    >>> usual_address(torch.zeros(3), torch.float32) != 0, usual_address(torch.zeros(3, 2).T, torch.float32)
    (True, 0)
    """
    if (
        type(tensor) in _PLAIN
        and tensor.dtype is dtype
        and (tensor.is_cpu if device is None else tensor.device == device)
    ):
        try:
            if tensor.is_contiguous() and not tensor.is_neg() and tensor.untyped_storage().nbytes():
                return tensor.data_ptr()
        except (RuntimeError, NotImplementedError):
            pass  # a layout without strides, or a transform's tensor without storage
    return 0


def address_of_own(tensor: torch.Tensor | None) -> int:
    """The address of a tensor that the caller has just made for the kernels, and that nobody else has seen; 0
    where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def address_of_array(name: str, array: Any, dtype: DTypeLike) -> int:
    """The address of a C-contiguous NumPy array of this dtype; TypeError, with the name, for anything else.

    >>> address_of_array("ids", np.zeros(3, dtype=np.int64), np.int64) != 0
    True
    """
    if type(array) is np.ndarray and array.dtype == dtype and array.flags.c_contiguous:
        return int(array.ctypes.data)
    raise TypeError(f"{name} must be a contiguous {np.dtype(dtype)} array, not {describe(array)}")


def storage_address(tensor: torch.Tensor) -> int:
    """Where the tensor's storage begins: to tell whether two share it, not to hand it to anyone."""
    return tensor.untyped_storage().data_ptr()


def refuse_distributed(**tensors: torch.Tensor | None) -> None:
    """TypeError with the name of the first DTensor, which parameters are under FSDP2 outside of forward.

    >>> refuse_distributed(weight=torch.zeros(3), bias=None)
    """
    for name, tensor in tensors.items():
        if type(tensor) not in _PLAIN and type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"{name} must be a plain tensor, not a DTensor. FSDP2 makes parameters plain within forward; "
                "torch.distributed.fsdp.register_fsdp_forward_method does so for another method. Recipes "
                "change whole layers, which DDP keeps"
            )


def spans_its_storage(tensor: torch.Tensor) -> bool:
    """Whether the storage holds the tensor alone; true of those that have none of their own, such as DTensor.

    >>> spans_its_storage(torch.zeros(6)), spans_its_storage(torch.zeros(6)[:3])
    (True, False)
    """
    if type(tensor) not in _PLAIN or tensor.layout != torch.strided:
        return True
    return tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()


def _address_of_unusual(name: str, tensor: Any, dtype: torch.dtype, device: torch.device) -> int:
    """The address after all (of a subclass that only adds to Tensor, of an empty one), or the TypeError."""
    fault = _fault(tensor, dtype, device)
    if fault:
        kind = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name} must be a contiguous {kind} tensor on {str(device)!r}, not {fault}")
    return int(tensor.data_ptr())


def _fault(tensor: Any, dtype: torch.dtype, device: torch.device) -> str:
    """What is wrong with it, in words that follow "not"; "" where nothing is."""
    if not isinstance(tensor, torch.Tensor):
        return describe(tensor)
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        name = type(tensor).__name__
        more = "; give its full_tensor() or to_local()" if name == "DTensor" else ""
        return f"a {name}, which has no memory of its own that kernels could use{more}"
    if tensor.device.type == "meta":
        return f"{describe(tensor)} on 'meta', which has no numbers"
    if tensor.layout != torch.strided:
        return f"one of layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.device != device:
        return f"{describe(tensor)} on {str(tensor.device)!r}"
    if tensor.dtype != dtype:
        return describe(tensor)
    try:
        held = tensor.untyped_storage().nbytes()
        if not tensor.is_contiguous():
            return f"{describe(tensor)} with strides {tensor.stride()}"
        tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return "a tensor of a torch.func transform or a trace, which has no memory"
    if tensor.is_neg():
        return f"{describe(tensor)} that is the negative of what its memory holds; use resolve_neg()"
    if tensor.numel() and (held == 0 or tensor.data_ptr() == 0):
        return f"{describe(tensor)} whose memory was freed"
    return ""
