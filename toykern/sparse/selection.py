"""The largest scores of each group, exactly, with ties broken by index."""

from __future__ import annotations

import torch


def largest(score: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The `counts[g]` largest entries of every row of `score`: bool, the shape of `score` `[groups, size]`.

    Of equal scores the first ones are taken. NaN counts as larger than any number (as in torch.sort), −inf
    marks what is never to be chosen unless `counts` leaves no other choice. `counts` is int64 `[groups]`, 0 ≤
    counts ≤ size. Which entries are chosen depends on the scores alone, not on threads or device.

    >>> largest(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), torch.tensor([1])).tolist()
    [[False, True, False, False]]
    """
    groups, size = score.shape
    if groups == 0 or size == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    counts = counts.to(score.device)
    if groups == 1 or bool((counts == counts[0]).all()):
        count = int(counts[0])
        if count == 0 or count == size:
            return torch.full_like(score, count == size, dtype=torch.bool)
        rank = size - count + 1  # of the smallest one chosen, ascending from 1
        threshold = torch.kthvalue(score, rank, dim=1, keepdim=True).values
    else:
        ordered = torch.sort(score, dim=1).values
        threshold = ordered.gather(1, (size - counts).clamp(max=size - 1)[:, None])
    above = _above(score, threshold)
    equal = (score == threshold) | (score.isnan() & threshold.isnan())
    missing = counts[:, None] - above.sum(dim=1, keepdim=True)
    return (above | (equal & (equal.cumsum(dim=1) <= missing))) & (counts > 0)[:, None]


def _above(score: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Where a score comes after the threshold in the order of torch.sort, NaN last."""
    return (score > threshold) | (score.isnan() & ~threshold.isnan())
