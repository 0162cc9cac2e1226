"""Which connections a stack of sparse matrices has, as the kernels take it: by row, and by column.

The numbers in an index are looked at where it is made, and on a GPU once more where kernels are handed
tensors that nobody looked at (`check_contents`).
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.address import address
from toykern.native.threads import kernel_threads
from toykern.ops.gate import check_device_of_kernels

_CHECKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # index: (its starts, what was looked at)


class SparseIndex(NamedTuple):
    """A topology as the kernels take it: by row, and the same connections by column.

    Attributes:
        in_features: columns of each matrix; `row_start` knows the rows and the models.
        row_start, column: as in `toykern.sparse.Topology`.
        column_start: int64 `[n_models, in_features + 1]`; the places of each column, counted from the model's
            first.
        row, slot: int32 `[n_models · capacity]` by place, the connection's row and its slot counted from the
            model's first; 0 beyond the connections.

    `SparseIndex.of` makes one. The kernels check every number in it at every call.
    """

    in_features: int
    row_start: torch.Tensor
    column: torch.Tensor
    column_start: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor

    @classmethod
    def of(
        cls,
        in_features: int,
        row_start: torch.Tensor,
        column: torch.Tensor,
        into: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> SparseIndex:
        """With the index by column made by counting sort, O(connections + in_features).

        `into` are contiguous CPU tensors (column_start, row, slot) to write it to, in memory of their own;
        None makes new ones. ValueError, and nothing is written, where row_start or column is no topology.

        >>> SparseIndex.of(3, torch.tensor([[0, 2, 3]]), torch.tensor([0, 2, 2], dtype=torch.int32)).row
        tensor([0, 0, 1], dtype=torch.int32)
        """
        n_models, out_features = check_rows(row_start, column)
        if column.shape[0] // n_models >= 2**31:
            raise ValueError(f"a model must have fewer than 2³¹ slots, not {column.shape[0] // n_models}")
        row_start, column = row_start.contiguous(), column.contiguous()
        if row_start.device.type == "cuda":
            check_contents(row_start, column, in_features, "column")
            return cls(in_features, row_start, column, *transposed_index(in_features, row_start, column))
        check_device_of_kernels("sparse_linear_forward", row_start.device)
        if into is None:
            column_start = torch.empty(n_models, in_features + 1, dtype=torch.int64, device="cpu")
            row, slot = torch.empty_like(column), torch.empty_like(column)
        else:
            column_start, row, slot = into
            if list(column_start.shape) != [n_models, in_features + 1] or {row.shape, slot.shape} != {
                column.shape
            }:
                raise ValueError("into must have the shapes of the index by column of this topology")
        _native.sparse_transpose(
            n_models,
            out_features,
            in_features,
            column.shape[0] // n_models,
            address("row_start", row_start, torch.int64),
            address("column", column, torch.int32),
            address("column_start", column_start, torch.int64),
            address("row", row, torch.int32),
            address("slot", slot, torch.int32),
            kernel_threads(),
        )
        return cls(in_features, row_start, column, column_start, row, slot)

    def places(self) -> torch.Tensor:
        """The inverse of `slot`: the place of each slot, int32 `[n_models · capacity]`, 0 in the slack."""
        n_models = self.row_start.shape[0]
        slot = self.slot.reshape(n_models, -1).long()
        capacity = slot.shape[1]
        here = torch.arange(capacity, dtype=torch.int32, device=slot.device)
        # What lies beyond the connections is sent past the end, and cut off.
        slot = torch.where(here < self.row_start[:, -1:], slot, capacity)
        place = self.slot.new_zeros(n_models, capacity + 1).scatter_(1, slot, here.expand(n_models, -1))
        return place[:, :capacity].reshape(-1)

    def transposed(self, places: torch.Tensor | None = None) -> SparseIndex:
        """The same connections of the matrix transposed; its values are `by_column(values, index)`.

        `places` is what `places()` gives, where that is at hand.
        """
        place = self.places() if places is None else places
        out_features = self.row_start.shape[1] - 1
        return SparseIndex(out_features, self.column_start, self.row, self.row_start, self.column, place)


def check_index(in_features: int, row_start: torch.Tensor, column: torch.Tensor) -> None:
    """ValueError unless the arrays, on the CPU, are a topology that `SparseIndex.of` can make an index of.

    >>> check_index(3, torch.tensor([[0, 1]]), torch.tensor([2], dtype=torch.int32))
    """
    n_models, out_features = check_rows(row_start, column)
    row_start, column = row_start.contiguous(), column.contiguous()
    _native.sparse_check_index(
        n_models,
        out_features,
        in_features,
        column.shape[0] // n_models,
        address("row_start", row_start, torch.int64),
        address("column", column, torch.int32),
    )


def check_rows(row_start: torch.Tensor, column: torch.Tensor) -> tuple[int, int]:
    """(n_models, out_features); ValueError or TypeError where the two cannot be a topology."""
    if (
        row_start.dtype != torch.int64
        or row_start.ndim != 2
        or row_start.shape[0] < 1
        or row_start.shape[1] < 2
    ):
        raise ValueError(
            "row_start must be an int64 tensor of shape [n_models, out_features + 1], "
            f"not {describe(row_start)}"
        )
    n_models, out_features = row_start.shape[0], row_start.shape[1] - 1
    if column.dtype != torch.int32 or column.ndim != 1 or column.shape[0] % n_models:
        raise ValueError(
            f"column must be an int32 tensor of shape [n_models · capacity] with n_models = {n_models}, "
            f"not {describe(column)}"
        )
    return n_models, out_features


def check_contents(start: torch.Tensor, index: torch.Tensor, limit: int, name: str) -> None:
    """ValueError for an index that would lead out of its array. Looks once at every version of a tensor.

    Looking waits for the device, so it is left out while a CUDA graph is being captured: there the checks
    that a layer makes when it takes its topology have to do, and those of the steps before.
    """
    tracked = not (torch.is_inference(index) or torch.is_inference(start))
    if tracked:
        versions = (start._version, index._version, limit)
        seen = _CHECKED.get(index)
        if seen is not None and seen[0]() is start and seen[1] == versions:
            return
    if index.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    n_models = start.shape[0]
    capacity = index.shape[0] // n_models
    wrong = (start[:, 0] != 0).any() | (start.diff(dim=1) < 0).any() | (start[:, -1] > capacity).any()
    live = torch.arange(capacity, dtype=torch.int64, device=index.device) < start[:, -1:]
    numbers = index.reshape(n_models, capacity)
    outside = (live & ((numbers < 0) | (numbers >= limit))).any()
    if bool(wrong):
        raise ValueError(f"the starts of {name} must begin with 0, never descend, and end by {capacity}")
    if bool(outside):
        raise ValueError(f"{name} must be from 0 to {limit - 1} in all slots that are in use")
    if tracked:
        _CHECKED[index] = (weakref.ref(start), versions)


def transposed_index(
    in_features: int, row_start: torch.Tensor, column: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(column_start, row, slot) of a `SparseIndex` by a stable sort on the tensors' device, without waiting.

    >>> row_start, column = torch.tensor([[0, 2, 3]]), torch.tensor([0, 2, 2], dtype=torch.int32)
    >>> transposed_index(3, row_start, column)[1:]
    (tensor([0, 0, 1], dtype=torch.int32), tensor([0, 1, 2], dtype=torch.int32))
    """
    n_models = row_start.shape[0]
    capacity = column.shape[0] // n_models
    here = torch.arange(capacity, dtype=torch.int64, device=column.device)
    live = here < row_start[:, -1:]
    key = torch.where(live, column.view(n_models, capacity).long(), in_features)  # slack comes last
    order = torch.sort(key, dim=1, stable=True).indices
    counts = torch.zeros(n_models, in_features + 1, dtype=torch.int64, device=column.device)
    counts.scatter_add_(1, key, live.long())
    start = torch.zeros_like(counts)
    torch.cumsum(counts[:, :in_features], dim=1, out=start[:, 1:])
    row = torch.searchsorted(row_start.contiguous(), here.expand(n_models, -1).contiguous(), right=True) - 1
    row = torch.where(live, row.gather(1, order), 0)
    slot = torch.where(live, order, 0)
    return start, row.reshape(-1).to(torch.int32), slot.reshape(-1).to(torch.int32)
