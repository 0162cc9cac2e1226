"""Updates of a topology on the CPU: choosing and drawing (csrc/cpu/sparse/choice.cpp), merging and moving
(csrc/cpu/sparse/topology.cpp).

Every function gives what `toykern.sparse` computes in PyTorch and NumPy for other devices and dtypes, to the
last bit; `can_choose`, `can_draw` and `on_cpu` say whether it can.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.address import address, address_of_array
from toykern.native.threads import kernel_threads
from toykern.ops.sparse_ties import BY_INDEX, Ties, first_of_ties

LARGEST_BITMAP = 1 << 28
"""Groups of more places than this are drawn from in NumPy: the kernel keeps a bit for each."""

_IS_CPU = operator.attrgetter("is_cpu")
_EMPTY = torch.empty(0, dtype=torch.int64, device="cpu")


def on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether all tensors are ordinary CPU tensors."""
    return all(map(_IS_CPU, tensors))


def can_choose(score: torch.Tensor) -> bool:
    """Whether `largest_indices` takes these scores: float32 or float64 on the CPU."""
    return on_cpu(score) and score.dtype in (torch.float32, torch.float64)


def largest_indices(
    score: torch.Tensor,
    counts: torch.Tensor,
    taken: torch.Tensor | None = None,
    *,
    absolute: bool = False,
    ties: Ties | None = None,
) -> torch.Tensor:
    """Flat indices, ascending, of the `counts[g]` largest entries of every row g of `score` `[groups, size]`.

    Of equal scores those are chosen that `ties` says (entries are flat indices into `score`, a row is of one
    model), or the first; NaN counts as larger than any number, −0 equals 0. `taken` are
    ascending flat indices that are not to be had; where a row has fewer others than its count, all of them
    are chosen. With `absolute`, the largest |score|. int64 `[chosen]`.

    >>> largest_indices(torch.tensor([[1.0, -3.0, 3.0, 2.0]]), torch.tensor([2]), absolute=True).tolist()
    [1, 2]
    """
    score = score.contiguous()
    counts = counts.to(torch.int64).contiguous()
    taken = _EMPTY if taken is None else taken.contiguous()
    chosen = _native.sparse_largest(
        score=address("score", score, score.dtype),
        counts=address("counts", counts, torch.int64),
        taken=address("taken", taken, torch.int64),
        n_taken=len(taken),
        groups=score.shape[0],
        size=score.shape[1],
        is_double=score.dtype == torch.float64,
        absolute=absolute,
        ties=BY_INDEX if ties is None else ties.native(score.numel()),
        threads=kernel_threads(),
    )
    return torch.from_numpy(chosen)


class LargestOfPieces:
    """The `count` places of largest |score| where scores come piece by piece and are not kept.

    Of equal ones those are chosen that `ties` says, by their places, or the first; NaN is larger than any
    number: the choice of `largest_indices` on all pieces together. `first` is a place of the model that the
    pieces are of. What it holds beside a piece is some multiples of `count` and of the piece.

    >>> pieces = LargestOfPieces(2)
    >>> pieces.add(torch.tensor([1.0, -3.0]), 10, torch.tensor([10]))
    >>> pieces.add(torch.tensor([2.0, 1.0]), 12, torch.tensor([], dtype=torch.int64))
    >>> [part.tolist() for part in pieces.finish()]
    [[11, 12], [3.0, 2.0]]
    """

    def __init__(self, count: int, ties: Ties | None = None, first: int = 0) -> None:
        self._count = count
        self._ties = ties
        sequences = BY_INDEX if ties is None else ties.native(first + 1)
        self._stream = _native.LargestStream(count, True, sequences, first)
        self._other: tuple[torch.Tensor, torch.Tensor] | None = None  # what float64 is chosen from

    def add(self, score: torch.Tensor, first: int, taken: torch.Tensor) -> None:
        """Scores of the places from `first` on, float32 or float64 on the CPU, after all that were added.

        `taken` int64, ascending, are places that are not to be had.
        """
        score, taken = score.contiguous(), taken.contiguous()
        if score.dtype == torch.float32:
            self._stream.add(
                score=address("score", score, score.dtype),
                first=first,
                n=len(score),
                taken=address("taken", taken, torch.int64),
                n_taken=len(taken),
                threads=kernel_threads(),
            )
            return
        count = torch.tensor([self._count], dtype=torch.int64, device="cpu")
        ties = None if self._ties is None else self._ties.from_entry(first)
        best = largest_indices(score[None], count, taken - first, absolute=True, ties=ties)
        place, score = best + first, score[best].abs()
        if self._other is not None:
            place, score = (torch.cat(both) for both in zip(self._other, (place, score), strict=True))
            best = self._best_of_both(place, score)
            place, score = place[best], score[best]
        self._other = place, score

    def _best_of_both(self, place: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """The indices of the best of a few places, ascending, int64."""
        best = largest_indices(score[None], torch.tensor([self._count], dtype=torch.int64, device="cpu"))
        if self._ties is None or not 0 < len(best) < len(score):
            return best
        numbers = score[best][~score[best].isnan()]
        least = numbers.min() if len(numbers) else score[best[0]]  # NaN is larger than any number
        equal = ((score == least) | (score.isnan() & least.isnan())).nonzero()[:, 0]
        above = best[~torch.isin(best, equal)]
        group, missing = (
            torch.zeros_like(equal),
            torch.tensor([len(best) - len(above)], dtype=torch.int64, device="cpu"),
        )
        chosen = first_of_ties(group, self._ties.words(place[equal]), missing)
        return torch.sort(torch.cat([above, equal[chosen]])).values

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(places, ascending, int64; their |scores|), all of them where there were fewer. Call it once."""
        if self._other is not None:
            return self._other
        place, score = self._stream.finish()
        return torch.from_numpy(place), torch.from_numpy(score)


def lowest_slots(
    score: torch.Tensor,
    row_start: torch.Tensor,
    *,
    counts: torch.Tensor | None = None,
    fraction: float = 0.0,
    sign: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
    ties: Ties | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(chosen bool `[n_models · capacity]`, how many int64 `[n_models]`): each model's lowest scores.

    Args:
        score: `[n_models · capacity]`, float32 or float64 on the CPU; that of slack is ignored. NaN
            counts as lowest.
        row_start: int64 `[n_models, out + 1]`, a topology's.
        counts: int64 `[n_models]`; without it `fraction` of the connections, rounded down.
        sign: of the shape and dtype of `score`: where it is negative and where it is not, connections are
            chosen from by themselves, `fraction` of each.
        allowed: bool of the shape of `score`, which may be chosen; None: all. Fewer are chosen where fewer
            are allowed.
        ties: which of equal scores are chosen, entries being slots; None: the first ones.

    >>> score, start = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([[0, 3]])
    >>> [part.tolist() for part in lowest_slots(score, start, counts=torch.tensor([2]))]
    [[False, True, True, False], [2]]
    """
    score, row_start = score.contiguous(), row_start.contiguous()
    counts = None if counts is None else counts.to(torch.int64).contiguous()
    sign = None if sign is None else sign.to(score.dtype).contiguous()
    allowed = None if allowed is None else allowed.contiguous()
    n_models = row_start.shape[0]
    if score.ndim != 1 or len(score) < n_models * int(row_start[:, -1].max()) or len(score) % n_models:
        raise ValueError(
            f"score must have one number for each slot of {n_models} models, not {describe(score)}"
        )
    for name, tensor in (("sign", sign), ("allowed", allowed)):
        if tensor is not None and tensor.shape != score.shape:
            raise ValueError(
                f"{name} must have the shape of score, {list(score.shape)}, not {describe(tensor)}"
            )
    drop = torch.empty(len(score), dtype=torch.bool, device="cpu")
    dropped = torch.empty(n_models, dtype=torch.int64, device="cpu")
    _native.sparse_lowest(
        score=address("score", score, score.dtype),
        sign=0 if sign is None else address("sign", sign, score.dtype),
        allowed=0 if allowed is None else address("allowed", allowed, torch.bool),
        counts=0 if counts is None else address("counts", counts, torch.int64),
        row_start=address("row_start", row_start, torch.int64),
        fraction=fraction,
        n_models=n_models,
        out_features=row_start.shape[1] - 1,
        capacity=len(score) // n_models,
        is_double=score.dtype == torch.float64,
        ties=BY_INDEX if ties is None else ties.native(len(score)),
        drop=address("drop", drop, torch.bool),
        dropped=address("dropped", dropped, torch.int64),
        threads=kernel_threads(),
    )
    return drop, dropped


def can_draw(size: int) -> bool:
    """Whether `random_places` takes groups of this many places."""
    return size <= LARGEST_BITMAP


def random_places(
    taken: torch.Tensor,
    counts: torch.Tensor,
    seeds: NDArray[np.int64],
    ids: NDArray[np.int64],
    size: int,
    *,
    tag: int,
    step: int,
) -> torch.Tensor:
    """Keys, ascending, of `counts[g]` free places of every group g of `size` keys, at random.

    `taken` int64, ascending, are the keys that are not free; where fewer are free than asked for, all are
    chosen. Which ones follows from the free places' number, `seeds[g]`, `ids[g]`, `tag` and `step` alone:
    those that `toykern.sparse.draws.distinct` draws. int64 `[chosen]`.

    >>> random_places(torch.tensor([0, 2]), torch.tensor([9]), np.array([3]), np.array([0]), 4, tag=9, step=0)
    tensor([1, 3])
    """
    taken, counts = taken.contiguous(), counts.to(torch.int64).contiguous()
    seeds, ids = (np.ascontiguousarray(a, dtype=np.int64) for a in (seeds, ids))
    chosen = _native.sparse_random_places(
        taken=address("taken", taken, torch.int64),
        n_taken=len(taken),
        counts=address("counts", counts, torch.int64),
        seeds=address_of_array("seeds", seeds, np.int64),
        ids=address_of_array("ids", ids, np.int64),
        groups=len(counts),
        size=size,
        tag=tag,
        step=step,
        threads=kernel_threads(),
    )
    return torch.from_numpy(chosen)


class Merged(NamedTuple):
    """A topology after a change, and what the change was.

    Attributes:
        row_start, column: the new topology's arrays.
        old_slot: int64 `[n_models · capacity]`, where each slot's connection was; −1: new, or slack.
        fresh: int64, ascending: the keys of the new connections.
        dropped, grown: int64 `[n_models]`, connections that went and came.
        active_outputs, active_inputs: int64 `[n_models]`, rows and columns with a connection.
    """

    row_start: torch.Tensor
    column: torch.Tensor
    old_slot: torch.Tensor
    fresh: torch.Tensor
    dropped: torch.Tensor
    grown: torch.Tensor
    active_outputs: torch.Tensor
    active_inputs: torch.Tensor


def merge(
    row_start: torch.Tensor,
    column: torch.Tensor,
    drop: torch.Tensor,
    grown: torch.Tensor,
    in_features: int,
    *,
    keep_returning: bool = False,
) -> Merged:
    """A topology without the slots in `drop` and with the keys in `grown`.

    `drop` is bool `[n_models · capacity]`, `grown` int64. A connection that is dropped and grown counts as
    both, or with `keep_returning` stays as it was and counts as neither. ValueError("unordered 0") where the
    keys do not ascend without repeats within the matrices, ("clash <key>") where a grown place stays
    connected, ("crowded <connections>") where a model has too few slots.

    >>> start, column = torch.tensor([[0, 2]]), torch.tensor([0, 1], dtype=torch.int32)
    >>> merge(start, column, torch.tensor([True, False]), torch.tensor([2]), 3).old_slot.tolist()
    [1, -1]
    """
    row_start, column, drop, grown = (t.contiguous() for t in (row_start, column, drop, grown))
    n_models = row_start.shape[0]
    counts = torch.empty(4, n_models, dtype=torch.int64, device="cpu")
    made = Merged(
        torch.empty_like(row_start),
        torch.empty_like(column),
        torch.empty(len(column), dtype=torch.int64, device="cpu"),
        torch.empty(len(grown), dtype=torch.int64, device="cpu"),
        *counts,
    )
    fresh = _native.sparse_merge(
        n_models=n_models,
        out_features=row_start.shape[1] - 1,
        in_features=in_features,
        capacity=len(column) // n_models,
        row_start=address("row_start", row_start, torch.int64),
        column=address("column", column, torch.int32),
        drop=address("drop", drop, torch.bool),
        grown=address("grown", grown, torch.int64),
        n_grown=len(grown),
        keep_returning=keep_returning,
        new_row_start=address("row_start", made.row_start, torch.int64),
        new_column=address("column", made.column, torch.int32),
        old_slot=address("old_slot", made.old_slot, torch.int64),
        fresh=address("fresh", made.fresh, torch.int64),
        dropped=address("dropped", made.dropped, torch.int64),
        came=address("grown", made.grown, torch.int64),
        active_rows=address("active_outputs", made.active_outputs, torch.int64),
        active_columns=address("active_inputs", made.active_inputs, torch.int64),
        threads=kernel_threads(),
    )
    return made._replace(fresh=made.fresh[:fresh])


def keys(
    row_start: torch.Tensor, column: torch.Tensor, in_features: int, drop: torch.Tensor | None = None
) -> torch.Tensor:
    """(model · out_features + row) · in_features + column of every connection, in the order of the slots.

    int64 `[connections]`; without those in `drop`, bool `[n_models · capacity]`. The arrays are a
    `Topology`'s, and checked.

    >>> keys(torch.tensor([[0, 1, 2]]), torch.tensor([2, 0], dtype=torch.int32), 3)
    tensor([2, 3])
    """
    row_start, column = row_start.contiguous(), column.contiguous()
    drop = None if drop is None else drop.contiguous()
    n_models = row_start.shape[0]
    made = torch.empty(len(column), dtype=torch.int64, device="cpu")  # what is not written to costs nothing
    count = _native.sparse_keys(
        n_models=n_models,
        out_features=row_start.shape[1] - 1,
        in_features=in_features,
        capacity=len(column) // n_models,
        room=len(made),
        row_start=address("row_start", row_start, torch.int64),
        column=address("column", column, torch.int32),
        drop=0 if drop is None else address("drop", drop, torch.bool),
        keys=address("keys", made, torch.int64),
        threads=kernel_threads(),
    )
    return made[:count]


def move(tensors: Sequence[torch.Tensor], old_slot: torch.Tensor) -> None:
    """Entry s of every tensor becomes what was at old_slot[s], or 0 where that is −1; in place.

    All are 1-d of the length of `old_slot` (int64). ValueError, and nothing is changed, where one is
    not, or a slot is outside (on the CPU; a GPU is not made to wait for that).

    >>> moments = torch.tensor([1.0, 2.0, 3.0])
    >>> move([moments], torch.tensor([2, -1, 1]))
    >>> moments
    tensor([3., 0., 2.])
    """
    for tensor in tensors:
        if tensor.shape != old_slot.shape:
            raise ValueError(
                f"tensors must have the shape of old_slot, {list(old_slot.shape)}, not {list(tensor.shape)}"
            )
    at_once = [t for t in tensors if _moves_natively(t, old_slot)]
    if at_once or on_cpu(old_slot):  # the slots are checked, whatever is moved
        old_slot = old_slot.contiguous()
        _native.sparse_move(
            tensors=[(address("tensors", t, t.dtype), t.element_size()) for t in at_once],
            old_slot=address("old_slot", old_slot, torch.int64),
            count=len(old_slot),
            threads=kernel_threads(),
        )
    with torch.no_grad():
        for tensor in at_once:
            if not torch.is_inference(tensor):
                torch.autograd.graph.increment_version(tensor)
        for tensor in tensors:
            if not _moves_natively(tensor, old_slot):
                tensor.copy_(tensor[old_slot.clamp(min=0)].masked_fill_(old_slot < 0, 0))


def _moves_natively(tensor: torch.Tensor, old_slot: torch.Tensor) -> bool:
    return on_cpu(tensor, old_slot) and tensor.is_contiguous() and tensor.element_size() in (2, 4, 8)


def explore(explored: torch.Tensor, fresh: torch.Tensor, n_models: int) -> torch.Tensor:
    """Marks the places `fresh` (int64 keys, ascending) in `explored`, bool `[n_models · out · in]`, in place.

    Returns how many are marked now, int64 `[n_models]`.

    >>> marks = torch.tensor([True, False, False, False])
    >>> explore(marks, torch.tensor([0, 2]), 2).tolist(), marks.tolist()
    ([1, 1], [True, False, True, False])
    """
    if not on_cpu(explored, fresh) or not explored.is_contiguous():
        explored[fresh] = True
        return torch.count_nonzero(explored.reshape(n_models, -1), dim=1)
    counts = torch.empty(n_models, dtype=torch.int64, device="cpu")
    fresh = fresh.contiguous()
    _native.sparse_explore(
        explored=address("explored", explored, torch.bool),
        keys=address("fresh", fresh, torch.int64),
        n_keys=len(fresh),
        n_models=n_models,
        positions=len(explored) // n_models,
        counts=address("counts", counts, torch.int64),
        threads=kernel_threads(),
    )
    return counts
