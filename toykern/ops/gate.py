"""The one input gate of the ops: what kernels trust is checked here, by the argument's name.

Kernels are handed raw pointers. Autograd hands out expanded gradients (stride 0), users hand in slices,
transposes and tensors at an offset; all of them become contiguous here, and whatever has the wrong dtype,
device or shape is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toykern.arguments.errors import describe
from toykern.native.address import address
from toykern.native.threads import kernel_threads

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def check_device_of_kernels(op: str, device: torch.device) -> None:
    """RuntimeError where there are no kernels of this op for a device."""
    if device.type == "cpu":
        return
    from toykern import _native

    state = _native.build_info()["cuda"]
    raise RuntimeError(
        f"toykern::{op} has no kernel for the device {str(device)!r} in this version "
        f"(CUDA kernels: {state}); move the model and its input with .to('cpu')"
    )


def check_float_dtype(name: str, tensor: torch.Tensor) -> torch.dtype:
    """The dtype of a tensor; TypeError if kernels have no arithmetic for it."""
    if tensor.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name} must be of one of the dtypes {allowed}, not {describe(tensor)}")
    return tensor.dtype


def check_like(name: str, tensor: torch.Tensor, like: torch.Tensor, like_name: str) -> None:
    """TypeError or ValueError unless the tensor has the dtype of another and lies on its device."""
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, not {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, not {tensor.device}")


def check_shape(
    name: str, tensor: torch.Tensor, allowed: Sequence[int | None], *others: Sequence[int | None]
) -> None:
    """ValueError unless the shape is one of those allowed; None stands for any size."""
    for shape in (allowed, *others):
        if tensor.ndim == len(shape) and all(
            wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
        ):
            return
    texts = [
        "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        for shape in (allowed, *others)
    ]
    raise ValueError(f"{name} must have the shape {' or '.join(texts)}, not {describe(tensor)}")


def shared_over_models(tensor: torch.Tensor) -> torch.Tensor:
    """`[1, …]` where a stack only repeats one (stride 0 over the models), else the tensor itself."""
    return tensor[:1] if tensor.shape[0] > 1 and tensor.stride(0) == 0 else tensor


def check_entries(
    row_start: torch.Tensor, feature: torch.Tensor, value: torch.Tensor, rows: int, n_features: int
) -> None:
    """ValueError or TypeError unless these are entries by row, features rising within each and in range."""
    from toykern import _native

    check_entry_tensors(row_start, feature, value, rows)
    if value.device.type != "cpu":
        _check_entries_in_torch(row_start, feature, rows, n_features)
        return
    what, row = _native.check_entries(
        address("row_start", row_start, torch.int64),
        rows,
        address("feature", feature, torch.int32),
        feature.numel(),
        n_features,
        kernel_threads(),
    )
    if what:
        raise ValueError(_fault_text(what, row, feature.numel(), n_features))


def check_entry_tensors(
    row_start: torch.Tensor, feature: torch.Tensor, value: torch.Tensor, rows: int
) -> None:
    """The same without a look at the numbers: dtypes, devices, shapes."""
    for name, tensor, dtype in (("row_start", row_start, torch.int64), ("feature", feature, torch.int32)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, not {describe(tensor)}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on the device of value, {value.device}, not {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, not {describe(tensor)} with strides {tensor.stride()}"
            )
    check_shape("row_start", row_start, [rows + 1])
    if feature.ndim != 1 or value.ndim != 1 or feature.numel() != value.numel():
        raise ValueError(
            "feature and value must have the same shape, [entries], not "
            f"{list(feature.shape)} and {list(value.shape)}"
        )


def _check_entries_in_torch(
    row_start: torch.Tensor, feature: torch.Tensor, rows: int, n_features: int
) -> None:
    """The same where the entries are on a device: one wait for one number."""
    lengths = row_start.diff()
    good = (row_start[0] == 0) & (row_start[-1] == feature.numel()) & (lengths >= 0).all()
    if not bool(good):
        raise ValueError(_fault_text("order of rows", -1, feature.numel(), n_features))
    row = torch.repeat_interleave(torch.arange(rows, dtype=torch.int64, device=feature.device), lengths)
    falls = (feature[1:] <= feature[:-1]) & (row[1:] == row[:-1])
    if bool(((feature < 0) | (feature >= n_features)).any()):
        raise ValueError(_fault_text("range", -1, feature.numel(), n_features))
    if bool(falls.any()):
        raise ValueError(_fault_text("order", -1, feature.numel(), n_features))


def _fault_text(what: str, row: int, entries: int, n_features: int) -> str:
    where = "" if row < 0 else f" (sample {row})"
    return {
        "start": "row_start must begin with 0",
        "order of rows": f"row_start must never fall and end at the number of entries, {entries}{where}",
        "end": f"row_start must end at the number of entries, {entries}",
        "range": f"feature must lie in 0 … {n_features - 1}, the model's features{where}",
        "order": f"feature must rise strictly within a sample: sorted, none twice{where}",
    }[what]
