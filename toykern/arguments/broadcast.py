"""How hyper-parameters reach models: most broadcast to `[models]`, importance to `[models, n_features]`."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from toykern.arguments.errors import check_dense_tensor, check_int, check_number, describe, is_number
from toykern.arguments.memory import check_free_memory

Values: TypeAlias = ArrayLike | torch.Tensor
"""What arguments for numbers take: a number, a sequence, an array (of NumPy, pandas or xarray), a tensor."""


def from_data(value: Any) -> torch.Tensor:
    """A tensor as it is; what NumPy makes of anything else, as a tensor on the CPU.

    What may not be written to (a column of pandas, a memory map, a broadcast array) is copied: torch has no
    such tensors, and warns.

    >>> from_data(np.broadcast_to(1.5, 2)).tolist()
    [1.5, 1.5]
    """
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    # Torch has neither strides below 0 nor strides that are no whole number of elements.
    whole = np.ascontiguousarray(array).reshape(array.shape)
    return torch.as_tensor(whole if whole.flags.writeable else whole.copy(), device="cpu")


def as_tensor(
    name: str,
    value: Any,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    detach: bool = True,
) -> torch.Tensor:
    """`value` (number, sequence, array or tensor) as a tensor of `dtype`, on the CPU unless told; detached
    unless told.

    TypeError where it holds no numbers, or where `dtype` is an integer type and it does not hold integers.
    """
    tensor = real_tensor(name, value, detach=detach)
    if not dtype.is_floating_point and tensor.is_floating_point():
        raise TypeError(f"{name} must hold integers, not {describe(value)}")
    return tensor.to(device=device or "cpu", dtype=dtype)


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` (number, sequence, array or tensor) as a float64 array; TypeError where it holds no numbers.

    >>> real_array("density", [1, 0.5])
    array([1. , 0.5])
    """
    return as_tensor(name, value, torch.float64).numpy()


def real_tensor(name: str, value: Any, *, detach: bool = True) -> torch.Tensor:
    """`value` (number, sequence, array or tensor) as a tensor where it is, of the dtype it has; detached
    unless told. TypeError where it holds no real numbers.
    """
    if value is None or isinstance(value, str | bytes | bool | np.bool_):
        raise TypeError(
            f"{name} must be a number, a sequence of numbers, an array or a tensor, not {describe(value)}"
        )
    if isinstance(value, torch.Tensor):
        check_dense_tensor(name, value)
    try:
        if isinstance(value, torch.Tensor):
            tensor = value.detach() if detach else value
        elif isinstance(value, int | float):  # apart, so that torch.compile can follow it
            kind = torch.int64 if isinstance(value, int) else torch.float64
            tensor = torch.tensor(value, dtype=kind, device="cpu")
        else:
            array = np.asarray(value)
            if array.dtype.kind == "u" and array.itemsize == 8 and (array > np.iinfo(np.int64).max).any():
                raise OverflowError
            tensor = from_data(array)
    except OverflowError:
        raise ValueError(f"{name} must fit in 63 bits, not {describe(value)}") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be a number, a sequence of numbers, an array or a tensor, not {describe(value)}"
        ) from None
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, not {describe(value)}")
    return tensor


def broadcast_per_model(
    name: str, value: Any, n_models: int, dtype: torch.dtype = torch.float64, *, detach: bool = True
) -> torch.Tensor:
    """A per-model quantity (a number, or `[models]`) as a contiguous CPU tensor `[n_models]` of `dtype`.

    ValueError if it has another shape or is not finite. Without `detach` it has a gradient to a tensor that
    requires one.

    >>> broadcast_per_model("lr", 0.5, 3)
    tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    if type(value) is float and dtype is torch.float64 and math.isfinite(value):
        _check_room(name, n_models, 8)
        return torch.full((n_models,), value, dtype=dtype, device="cpu")
    tensor = as_tensor(name, value, dtype, detach=detach)
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, n_models)):
        raise ValueError(
            f"{name} must be one number or have one entry for each of the {n_models} models "
            f"(shape [{n_models}]), not {describe(value)}"
        )
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} must be finite, not {describe(value)} with {_offender(~torch.isfinite(tensor), tensor)}"
        )
    _check_room(name, n_models, tensor.element_size())
    return tensor.expand(n_models).clone(memory_format=torch.contiguous_format)


def bounded_numbers(name: str, value: Any, most: float, allowed: str) -> torch.Tensor:
    """A number or one for each model, float64 CPU `[]` or `[models]`, finite and in [0, most]; else a
    TypeError or ValueError that says what is `allowed`.

    >>> bounded_numbers("fraction", [0, 0.5], 1.0, "from 0 to 1")
    tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    given = as_tensor(name, value, torch.float64)
    if given.ndim > 1 or given.numel() == 0:
        raise ValueError(f"{name} must be one number or one for each model, not {describe(value)}")
    bad = ~((given >= 0.0) & (given <= most) & given.isfinite())
    if bool(bad.any()):
        raise ValueError(f"{name} must be {allowed}, not {float(given[bad][0]):g}")
    return given


def broadcast_l1(value: Any, n_models: int) -> torch.Tensor | float:
    """The weight of the codes' L1 norm: a number as a float, or float64 `[n_models]`, finite and at least 0.

    >>> broadcast_l1(1, 2), broadcast_l1([0.1, 0.2], 2)
    (1.0, tensor([0.1000, 0.2000], dtype=torch.float64))
    """
    if is_number(value):
        return check_number("l1", value, minimum=0.0)
    weights = broadcast_per_model("l1", value, n_models)
    if bool((weights < 0).any()):
        raise ValueError(
            f"l1 must be at least 0, not {describe(value)} with {_offender(weights < 0, weights)}"
        )
    return weights


def broadcast_seed(name: str, value: Any, n_models: int) -> torch.Tensor:
    """Seeds as a contiguous CPU int64 tensor `[n_models]`.

    None means 0 … n_models−1; an int is every model's seed; or one for each model, `[n_models]`.
    TypeError if they are not integers, ValueError if one is negative or the length is wrong.

    >>> broadcast_seed("seed", None, 3)
    tensor([0, 1, 2])
    >>> broadcast_seed("seed", 7, 3)
    tensor([7, 7, 7])
    """
    if value is None:
        _check_room(name, n_models, 8)
        return torch.arange(n_models, dtype=torch.int64, device="cpu")
    if isinstance(value, int):
        check_int(name, value, minimum=0, maximum=2**63 - 1)
    seeds = broadcast_per_model(name, value, n_models, torch.int64)
    if bool((seeds < 0).any()):
        raise ValueError(
            f"{name} must be at least 0, not {describe(value)} with {_offender(seeds < 0, seeds)}"
        )
    return seeds


def _check_room(name: str, n_models: int, entry_bytes: int) -> None:
    """MemoryError if an entry for every model is more than there is memory for."""
    check_free_memory(f"{name} of n_models={n_models:,}", entry_bytes * n_models, "take fewer models")


def broadcast_importance(
    value: Any,
    n_models: int,
    n_features: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    check_values: bool = True,
    detach: bool = True,
    width: str = "n_features",
) -> torch.Tensor:
    """Importance as a tensor `[1 or n_models, n_features]`; the first dimension is 1 where all share it.

    `value`: a number, `[n_features]`, `[n_models, 1]` or `[n_models, n_features]`, broadcast
    as in NumPy; one dimension always means features, also where n_models = n_features. ValueError for another
    shape and (with `check_values`) for values that are negative or not finite in `dtype`. Without `detach` it
    has a gradient to a tensor that requires one. `width` is what messages call n_features.

    >>> broadcast_importance([1.0, 0.5], n_models=3, n_features=2)
    tensor([[1.0000, 0.5000]])
    >>> broadcast_importance([[1.0], [2.0]], n_models=2, n_features=2)
    tensor([[1., 1.],
            [2., 2.]])
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        # made where it is needed: a copy to another device would wait for it, which a CUDA graph cannot
        if not 0 <= value <= torch.finfo(dtype).max:  # NaN too
            raise ValueError(f"importance must be finite and at least 0, not {describe(value)}")
        return torch.full((1, n_features), float(value), dtype=dtype, device=device or "cpu")
    tensor = as_tensor("importance", value, dtype, device, detach=detach)
    rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor
    if rows.ndim > 2 or rows.shape[0] not in (1, n_models) or rows.shape[1] not in (1, n_features):
        raise ValueError(
            f"importance must broadcast to [models, {width}] = [{n_models}, {n_features}]: one number, "
            f"[{n_features}], [{n_models}, 1] or [{n_models}, {n_features}], not {describe(value)}"
        )
    if check_values:
        bad = ~(torch.isfinite(rows) & (rows >= 0))
        if bool(bad.any()):
            raise ValueError(
                f"importance must be finite and at least 0, not {describe(value)} with {_offender(bad, rows)}"
            )
    return rows.expand(rows.shape[0], n_features).contiguous()


def _offender(bad: torch.Tensor, values: torch.Tensor) -> str:
    """The first bad value and its place, for an error message."""
    where = [int(i) for i in bad.nonzero()[0]]
    place = f" at index {where[0] if len(where) == 1 else where}" if where else ""
    return f"{values[tuple(where)].item()}{place}"
