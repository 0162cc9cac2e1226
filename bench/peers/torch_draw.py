"""Two ways to draw a batch of sparse features with PyTorch, both exact in distribution.

A draw returns the same buffer every time, of the shape it was made for; negative entries stand for inactive
features and a ReLU removes them, in whichever pass over the batch costs least. `lowest_of` is for those who
write the first way into a compiled function: U[−(1−p)/p, 1] is positive with probability p, and then U[0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

Draw = Callable[[], torch.Tensor]


def lowest_of(probability: np.ndarray, device: str) -> torch.Tensor:
    """−(1−p)/p, float32 `[models or 1, 1, 1]`, for a probability `[models or 1, 1]`."""
    p = torch.tensor(probability, dtype=torch.float32, device=device)[:, :, None]
    return -(1.0 - p) / p


def uniform_draw(shape: tuple[int, ...], probability: np.ndarray, device: str = "cpu") -> Draw:
    """One number gives gate and magnitude: U[-(1-p)/p, 1] is positive with probability p, then U[0, 1]."""
    batch = torch.empty(shape, device=device)
    if probability.size == 1:
        lowest = -(1.0 - probability.item()) / probability.item()

        def draw() -> torch.Tensor:
            return batch.uniform_(lowest, 1.0)

        return draw
    lower = lowest_of(probability, device)
    width = 1.0 - lower

    def draw_each() -> torch.Tensor:
        return torch.addcmul(lower, batch.uniform_(), width, out=batch)

    return draw_each


def gap_draw(shape: tuple[int, ...], probability: np.ndarray, device: str = "cpu") -> Draw:
    """Jumps from one active entry of the flattened batch to the next; the cost follows the active entries.

    The gaps between the successes of a Bernoulli process are geometric, and so is
    1 + floor(ln(1-U) / ln(1-p)) for U uniform on [0, 1). (`exponential_` would do too, at 15 ns a number,
    five times this.) As many gaps are drawn as the batch needs save with probability 1e-14; what falls past
    its end goes to a spare slot. On a CPU, for one probability of all models.
    """
    p, size = probability.item(), math.prod(shape)
    if size >= 2**24:
        raise ValueError(f"shape must have less than 2**24 entries (positions are float32), got {shape}")
    rate = -math.log1p(-p)
    mean = size * p
    count = int(mean + 8.0 * math.sqrt(mean) + 16.0)
    batch = torch.zeros(size + 1, device=device)
    gaps, arrivals, magnitudes = (torch.empty(count, device=device) for _ in range(3))
    positions = torch.empty(count, dtype=torch.int64, device=device)

    def draw() -> torch.Tensor:
        gaps.uniform_().neg_().log1p_().mul_(-1.0 / rate).floor_().add_(1.0)
        torch.cumsum(gaps, 0, out=arrivals)
        positions.copy_(arrivals.sub_(1.0).clamp_(max=size))
        batch.zero_()
        batch.scatter_(0, positions, magnitudes.uniform_())
        return batch[:size].view(shape)

    return draw


DRAWS = {"uniform": uniform_draw, "gaps": gap_draw}
