"""Updates of a topology on the CPU: choosing, drawing, merging, moving (csrc/cpu/sparse_topology.cpp).

Every function gives what `toykern.sparse` computes in PyTorch and NumPy for other devices and dtypes, to the
last bit; `can_choose`, `can_draw` and `on_cpu` say whether it can.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from toykern import _native
from toykern.threads import kernel_threads

LARGEST_BITMAP = 1 << 28
"""Groups of more places than this are drawn from in NumPy: the kernel keeps a bit for each."""

_EMPTY = torch.empty(0, dtype=torch.int64)


def on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether all tensors are ordinary CPU tensors."""
    return all(tensor.device.type == "cpu" for tensor in tensors)


def can_choose(score: torch.Tensor) -> bool:
    """Whether `largest_indices` takes these scores: float32 or float64 on the CPU."""
    return on_cpu(score) and score.dtype in (torch.float32, torch.float64)


def largest_indices(
    score: torch.Tensor,
    counts: torch.Tensor,
    taken: torch.Tensor | None = None,
    *,
    absolute: bool = False,
) -> torch.Tensor:
    """Flat indices, ascending, of the `counts[g]` largest entries of every row g of `score` `[groups, size]`.

    Of equal scores the first are chosen; NaN counts as larger than any number, −0 equals 0. `taken` are
    ascending flat indices that are not to be had; where a row has fewer others than its count, all of them
    are chosen. With `absolute`, the largest |score|. int64 `[chosen]`.

    >>> largest_indices(torch.tensor([[1.0, -3.0, 3.0, 2.0]]), torch.tensor([2]), absolute=True).tolist()
    [1, 2]
    """
    score = score.contiguous()
    counts = counts.to(torch.int64).contiguous()
    taken = _EMPTY if taken is None else taken.contiguous()
    chosen = _native.sparse_largest(
        score=score.data_ptr(),
        counts=counts.data_ptr(),
        taken=taken.data_ptr(),
        n_taken=len(taken),
        groups=score.shape[0],
        size=score.shape[1],
        is_double=score.dtype == torch.float64,
        absolute=absolute,
        threads=kernel_threads(),
    )
    return torch.from_numpy(chosen)


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
        taken=taken.data_ptr(),
        n_taken=len(taken),
        counts=counts.data_ptr(),
        seeds=seeds.ctypes.data,
        ids=ids.ctypes.data,
        groups=len(counts),
        size=size,
        tag=tag,
        step=step,
        threads=kernel_threads(),
    )
    return torch.from_numpy(chosen)


def merge(
    row_start: torch.Tensor, column: torch.Tensor, drop: torch.Tensor, grown: torch.Tensor, in_features: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row_start, column, old_slot) without the slots in `drop` and with the keys in `grown`.

    `drop` is bool `[n_models · capacity]`, `grown` int64, ascending, without repeats and in
    range (unchecked). ValueError("clash <key>") where a grown place stays connected, ValueError("crowded
    <connections>") where a model has too few slots.

    >>> start, column = torch.tensor([[0, 2]]), torch.tensor([0, 1], dtype=torch.int32)
    >>> merge(start, column, torch.tensor([True, False]), torch.tensor([2]), 3)[2].tolist()
    [1, -1]
    """
    row_start, column, drop, grown = (t.contiguous() for t in (row_start, column, drop, grown))
    n_models = row_start.shape[0]
    new_row_start, new_column = torch.empty_like(row_start), torch.empty_like(column)
    old_slot = torch.empty(len(column), dtype=torch.int64)
    _native.sparse_merge(
        n_models=n_models,
        out_features=row_start.shape[1] - 1,
        in_features=in_features,
        capacity=len(column) // n_models,
        row_start=row_start.data_ptr(),
        column=column.data_ptr(),
        drop=drop.data_ptr(),
        grown=grown.data_ptr(),
        n_grown=len(grown),
        new_row_start=new_row_start.data_ptr(),
        new_column=new_column.data_ptr(),
        old_slot=old_slot.data_ptr(),
        threads=kernel_threads(),
    )
    return new_row_start, new_column, old_slot


def keys(row_start: torch.Tensor, column: torch.Tensor, in_features: int) -> torch.Tensor:
    """(model · out_features + row) · in_features + column of every connection, in the order of the slots.

    int64 `[connections]`. The arrays are a `Topology`'s, and checked.

    >>> keys(torch.tensor([[0, 1, 2]]), torch.tensor([2, 0], dtype=torch.int32), 3)
    tensor([2, 3])
    """
    row_start, column = row_start.contiguous(), column.contiguous()
    n_models = row_start.shape[0]
    made = torch.empty(int(row_start[:, -1].sum()), dtype=torch.int64)
    _native.sparse_keys(
        n_models,
        row_start.shape[1] - 1,
        in_features,
        len(column) // n_models,
        row_start.data_ptr(),
        column.data_ptr(),
        made.data_ptr(),
    )
    return made


def moved(tensor: torch.Tensor, old_slot: torch.Tensor) -> torch.Tensor:
    """A new tensor with tensor[old_slot[i]] at i, 0 where that is negative.

    Both are 1-d of one length on one device; the slots must be below it (checked for the CPU).

    >>> moved(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, -1, 1])).tolist()
    [3.0, 0.0, 2.0]
    """
    tensor = tensor.detach().contiguous()
    if not on_cpu(tensor, old_slot) or tensor.element_size() not in (2, 4, 8):
        return tensor[old_slot.clamp(min=0)].masked_fill_(old_slot < 0, 0)
    old_slot = old_slot.contiguous()
    if len(old_slot) and int(old_slot.max()) >= len(tensor):
        raise ValueError(f"old_slot must be below {len(tensor)}, not {int(old_slot.max())}")
    result = torch.empty_like(tensor)
    _native.sparse_move(
        result.data_ptr(),
        tensor.data_ptr(),
        old_slot.data_ptr(),
        len(old_slot),
        tensor.element_size(),
        kernel_threads(),
    )
    return result
