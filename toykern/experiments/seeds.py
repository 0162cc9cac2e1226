"""Seeds of models that follow from their numbers in a grid, and the best of several."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def own_seeds(seed: int, index: torch.Tensor) -> torch.Tensor:
    """A seed for each model number, int64 `[models]`: others for another `seed` (0 … 2³¹ − 1), everywhere.

    >>> own_seeds(1, torch.arange(2)).tolist()
    [4294967296, 4294967297]
    """
    return (seed << 32) + index


def best_over(loss: NDArray[Any], axis: int = -1) -> NDArray[np.int64]:
    """The position of the least finite loss along an axis: the best of several seeds.

    >>> best_over(np.array([[3.0, np.nan, 1.0]])).tolist()
    [2]
    """
    return np.where(np.isfinite(loss), loss, np.inf).argmin(axis=axis)


def take(values: NDArray[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    """`values[…, at[…], …]`: what stands at one position of the axis after those of `at`, for each of these.

    >>> take(np.array([[[1, 2], [3, 4]]]), np.array([1])).tolist()
    [[3, 4]]
    """
    positions = at.reshape(*at.shape, *[1] * (values.ndim - at.ndim))
    found: NDArray[Any] = np.take_along_axis(values, positions, axis=at.ndim).squeeze(at.ndim)
    return found
