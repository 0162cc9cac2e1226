"""The largest scores of each group, exactly, with ties decided by index or by random words."""

from __future__ import annotations

from collections.abc import Callable

import torch

from toykern.ops import sparse_topology as native
from toykern.ops.sparse_ties import Ties, first_of_ties


def largest(score: torch.Tensor, counts: torch.Tensor, ties: Ties | None = None) -> torch.Tensor:
    """The `counts[g]` largest entries of every row of `score`: bool, the shape of `score` `[groups, size]`.

    Of equal scores those are taken that `ties` says (an entry is a flat index into `score`), or the first.
    NaN counts as larger than any number (as in torch.sort), −inf marks what is never to be chosen unless
    `counts` leaves no other choice. `counts` is int64 `[groups]`, 0 ≤ counts ≤ size. Which entries are chosen
    depends on the scores and ties alone, not on threads or device.

    >>> largest(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), torch.tensor([1])).tolist()
    [[False, True, False, False]]
    """
    groups, size = score.shape
    if groups == 0 or size == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    counts = counts.to(score.device)
    if native.can_choose(score):
        chosen = torch.zeros(groups * size, dtype=torch.bool, device="cpu")
        chosen[native.largest_indices(score, counts, ties=ties)] = True
        return chosen.reshape(groups, size)
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
    first = equal & (equal.cumsum(dim=1) <= missing)
    if ties is not None:
        first = _by_words(equal, first, missing[:, 0], ties)
    return (above | first) & (counts > 0)[:, None]


def _by_words(equal: torch.Tensor, first: torch.Tensor, missing: torch.Tensor, ties: Ties) -> torch.Tensor:
    """Of the `equal` entries of every row the `missing` ones of smallest word; `first` are the first ones."""
    open_rows = (equal != first).any(dim=1) & (missing > 0)
    if not bool(open_rows.any()):
        return first
    entry = (equal & open_rows[:, None]).reshape(-1).nonzero()[:, 0]
    chosen = first.clone()
    chosen.view(-1)[entry] = first_of_ties(entry // equal.shape[1], ties.words(entry), missing)
    return chosen


def _above(score: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Where a score comes after the threshold in the order of torch.sort, NaN last."""
    return (score > threshold) | (score.isnan() & ~threshold.isnan())


def largest_of_groups(
    score: torch.Tensor,
    group: torch.Tensor,
    counts: torch.Tensor,
    words: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """`largest` where the groups have different sizes: `score` and `group` `[n]`, result bool `[n]`.

    `group` is int64 below len(counts), in any order; a group smaller than its count is chosen whole. `words`
    gives the random words of entries (int64 indices) that decide between equal scores; None: the first ones.

    >>> score, group = torch.tensor([1.0, 5.0, 2.0, 2.0]), torch.tensor([0, 1, 0, 0])
    >>> largest_of_groups(score, group, torch.tensor([1, 1])).tolist()
    [False, True, True, False]
    """
    counts = counts.to(score.device)
    by_score = torch.sort(score, descending=True, stable=True).indices
    order = by_score[torch.sort(group[by_score], stable=True).indices]
    sizes = torch.bincount(group, minlength=len(counts))
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(score), dtype=torch.int64, device=score.device) - start[group[order]]
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[order] = rank < counts[group[order]]
    if words is None:
        return chosen
    # Groups whose last one chosen and first one left out have the same score.
    open_group = ((counts > 0) & (counts < sizes)).nonzero()[:, 0]
    last = score[order[start[open_group] + counts[open_group] - 1]]
    next_one = score[order[start[open_group] + counts[open_group]]]
    tied = (last == next_one) | (last.isnan() & next_one.isnan())
    if not bool(tied.any()):
        return chosen
    threshold = torch.zeros(len(counts), dtype=score.dtype, device=score.device)
    threshold[open_group[tied]] = last[tied]
    is_open = torch.zeros(len(counts), dtype=torch.bool, device=score.device)
    is_open[open_group[tied]] = True
    edge = threshold[group]
    equal = is_open[group] & ((score == edge) | (score.isnan() & edge.isnan()))
    entry = equal.nonzero()[:, 0]
    missing = torch.bincount(group[entry[chosen[entry]]], minlength=len(counts))
    chosen[entry] = first_of_ties(group[entry], words(entry), missing)
    return chosen


def shared_out(total: torch.Tensor, share: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """`total[k]` whole things dealt to the columns of row k in proportion to `share`.

    `total` int64 `[rows]`; `share` float64 ≥ 0 and `room` int64 `[rows, columns]`, room being the most that a
    column takes; returns int64 `[rows, columns]`. What exceeds the room of one column is dealt to the others
    in the same way; where no column with room has a share, by room. Fractions go to the largest remainders,
    the first column of equal ones. Less than the total is dealt only where there is not room for it.

    >>> shared_out(torch.tensor([10]), torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[6, 9]])).tolist()
    [[6, 4]]
    """
    dealt = torch.zeros_like(room)
    while True:
        left = torch.minimum(total - dealt.sum(dim=1), (room - dealt).sum(dim=1))
        if not bool((left > 0).any()):
            return dealt
        open_share = torch.where(room > dealt, share, 0.0)
        weight = torch.where((open_share.sum(dim=1) > 0)[:, None], open_share, (room - dealt).double())
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        wanted = weight * left[:, None]
        whole = wanted.floor().long()
        missing = left - whole.sum(dim=1)
        remainder = torch.where((room > dealt) & (weight > 0), wanted - whole, -1.0)
        rank = torch.sort(remainder, dim=1, descending=True, stable=True).indices.argsort(dim=1)
        whole += (rank < missing[:, None]) & (remainder >= 0)
        dealt += torch.minimum(whole, room - dealt)
