"""Which models of a stack an index chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import from_data
from toykern.arguments.errors import check_dense_tensor, describe, is_int


def model_index(index: Any, n_models: int) -> slice | torch.Tensor:
    """A slice (for an int or a slice) or int64 indices; IndexError outside the stack or if none is chosen."""
    if isinstance(index, torch.Tensor | np.ndarray) and index.ndim == 0:
        index = index.item()
    if is_int(index):
        if not -n_models <= index < n_models:
            raise IndexError(f"index must be from {-n_models} to {n_models - 1}, not {describe(index)}")
        first = int(index) % n_models
        return slice(first, first + 1)
    if isinstance(index, slice):
        start, stop, step = index.indices(n_models)
        if step < 0:
            raise ValueError(
                "index must be a slice with a positive step; for another order give a list of indices"
            )
        if stop <= start:
            raise IndexError(f"index {index} chooses none of {n_models} models")
        return slice(start, stop, step)
    if not isinstance(index, list | range | torch.Tensor | np.ndarray):
        raise TypeError(
            f"index must be an int, a slice, or a list or array of ints or bools, not {describe(index)}"
        )
    if isinstance(index, torch.Tensor):
        check_dense_tensor("index", index)
    try:
        chosen = from_data(index).detach().cpu()
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"index must be an int, a slice, or a list or array of ints or bools, not {describe(index)}"
        ) from None
    if chosen.ndim != 1:
        raise IndexError(f"index must have one dimension where it is an array, not be {describe(index)}")
    if chosen.dtype == torch.bool:
        if len(chosen) != n_models:
            raise IndexError(f"index must have {n_models} entries where it is a mask, not {len(chosen)}")
        chosen = chosen.nonzero()[:, 0]
    if len(chosen) == 0:
        raise IndexError(f"index {describe(index)} chooses none of {n_models} models")
    if chosen.is_floating_point() or chosen.is_complex():
        raise TypeError(f"index must hold integers or bools, not {describe(index)}")
    chosen = chosen.to(torch.int64)
    outside = (chosen < -n_models) | (chosen >= n_models)
    if bool(outside.any()):
        raise IndexError(f"index must be from {-n_models} to {n_models - 1}, not {int(chosen[outside][0])}")
    return chosen % n_models
