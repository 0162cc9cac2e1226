"""A batch of sparse features as its active entries alone."""

from __future__ import annotations

from typing import Any, Self

import torch

from toykern.arguments.errors import MAX_SIZE, check_dense_tensor, check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.ops.gate import check_entries


class SparseBatch:
    """The active entries of a batch, sample by sample: what a layer needs of an input that is mostly zeros.

    Entry e of sample s of model i: row_start[i·batch_size + s] ≤ e < row_start[i·batch_size + s + 1], with
    feature[e] rising strictly within the sample.

    Args:
        row_start: int64 `[models · batch_size + 1]`, from 0 to the number of entries.
        feature: int32 (or int64, converted) `[entries]`, in 0 … n_features−1.
        value: `[entries]`; may require a gradient.
        n_features: of a sample.
        n_models: 1 where all models of a stack are to see the same samples.

    Raises:
        ValueError, TypeError: naming what does not fit; indices out of range or not sorted, with the sample.

    Example:
        >>> batch = SparseBatch.from_dense(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> batch.row_start, batch.feature, batch.value
        (tensor([0, 1, 1]), tensor([1], dtype=torch.int32), tensor([2.]))
        >>> batch.to_dense().shape
        torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        row_start: torch.Tensor,
        feature: torch.Tensor,
        value: torch.Tensor,
        n_features: int,
        n_models: int = 1,
    ) -> None:
        for name, tensor in (("row_start", row_start), ("feature", feature), ("value", value)):
            check_dense_tensor(name, tensor)
        self.n_features = check_size("n_features", n_features)
        self.n_models = check_size("n_models", n_models)
        rows = row_start.numel() - 1
        if row_start.ndim != 1 or rows < 0 or rows % self.n_models:
            raise ValueError(
                f"row_start must have the shape [n_models · batch_size + 1] with n_models = {self.n_models}, "
                f"not {describe(row_start)}"
            )
        if feature.dtype == torch.int64:
            outside = (feature < 0) | (feature >= self.n_features)
            if bool(outside.any()):
                raise ValueError(
                    f"feature must lie in 0 … {self.n_features - 1}, not {int(feature[outside][0])}"
                )
            feature = feature.to(torch.int32)
        self.batch_size = rows // self.n_models
        self.row_start, self.feature, self.value = (
            row_start.contiguous(),
            feature.contiguous(),
            value.contiguous(),
        )
        check_entries(self.row_start, self.feature, self.value, rows, self.n_features)

    @classmethod
    def from_dense(cls, x: torch.Tensor) -> Self:
        """The entries of x that are not zero: `[models, batch, n_features]`, or `[batch, n_features]` for one
        model or for all of a stack.

        NaN is an entry, −0 is none; a batch may be all zeros, or of no samples. The values have a gradient to
        x where it requires one. ValueError for another shape, TypeError for what is no floating-point tensor.

        >>> SparseBatch.from_dense(torch.tensor([[0.0, 3.0], [torch.nan, -0.0]])).coo()[0].tolist()
        [[0, 0], [0, 1], [1, 0]]
        """
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided:
            raise TypeError(f"x must be a dense floating-point tensor, not {describe(x)}")
        if x.ndim not in (2, 3):
            raise ValueError(
                f"x must be a tensor [models, batch, n_features] or [batch, n_features], not {describe(x)}"
            )
        stacked = x if x.ndim == 3 else x.unsqueeze(0)
        models, batch, n_features = stacked.shape
        active = stacked.detach() != 0
        counts = active.sum(dim=2).flatten().cumsum(0)
        row_start = torch.cat([counts.new_zeros(1), counts])
        where = active.nonzero(as_tuple=True)
        return cls(row_start, where[2], stacked[where], n_features, models)

    @classmethod
    def from_coo(
        cls, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int, int] | list[int]
    ) -> Self:
        """From int64 indices `[3, entries]` (model, sample, feature; sorted) and values `[entries]`.

        `shape` is (models, batch_size, n_features). The inverse of `coo`.
        """
        if not isinstance(shape, tuple | list) or len(shape) != 3:
            raise TypeError(f"shape must be (models, batch_size, n_features), not {describe(shape)}")
        models, batch, n_features = (check_int("a size in shape", size, minimum=0) for size in shape)
        if models * batch > MAX_SIZE:
            raise ValueError(
                f"shape must have at most {MAX_SIZE} samples of all models, not {describe(shape)}"
            )
        check_free_memory(
            f"the rows of a batch of the shape {list(shape)}", 16 * models * batch, "take fewer"
        )
        check_dense_tensor("indices", indices)
        check_dense_tensor("values", values)
        if indices.ndim != 2 or indices.shape[0] != 3 or indices.dtype != torch.int64:
            raise ValueError(f"indices must be int64 of the shape [3, entries], not {describe(indices)}")
        if values.shape != indices.shape[1:] or not values.is_floating_point():
            raise ValueError(
                f"values must be {indices.shape[1]} floating-point numbers, one for each column of indices, "
                f"not {describe(values)}"
            )
        model, sample = indices[0], indices[1]
        bad = (model < 0) | (model >= models) | (sample < 0) | (sample >= batch)
        if bool(bad.any()):
            first = indices[:, bad][:, 0].tolist()
            raise ValueError(f"indices must lie within {models} models and {batch} samples, not {first}")
        row = model * batch + sample
        if bool((row.diff() < 0).any()):
            raise ValueError("indices must be sorted by model, sample and feature")
        counts = torch.bincount(row, minlength=models * batch).cumsum(0)
        row_start = torch.cat([counts.new_zeros(1), counts])
        return cls(row_start, indices[2], values, n_features, models)

    @classmethod
    def from_csr(cls, csr: torch.Tensor, n_models: int = 1) -> Self:
        """From a torch CSR tensor `[models · batch_size, n_features]`; columns sorted in each row."""
        if not isinstance(csr, torch.Tensor) or csr.layout != torch.sparse_csr or csr.ndim != 2:
            raise TypeError(f"csr must be a two-dimensional torch CSR tensor, not {describe(csr)}")
        start = csr.crow_indices().to(torch.int64)
        return cls(start, csr.col_indices().to(torch.int64), csr.values(), csr.shape[1], n_models)

    def to_csr(self) -> torch.Tensor:
        """A torch CSR tensor `[models · batch_size, n_features]`, with int64 indices."""
        shape = (self.n_models * self.batch_size, self.n_features)
        return torch.sparse_csr_tensor(
            self.row_start,
            self.feature.to(torch.int64),
            self.value,
            shape,
            device=self.device,
            check_invariants=False,  # a SparseBatch is checked when it is made
        )

    def coo(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(indices, values): int64 `[3, entries]` (model, sample, feature; sorted) and `[entries]`."""
        row = self._rows()
        stacked = torch.stack(
            [row // max(self.batch_size, 1), row % max(self.batch_size, 1), self.feature.to(torch.int64)]
        )
        return stacked, self.value

    def to_dense(self) -> torch.Tensor:
        """`[models, batch_size, n_features]`, with a gradient to the values."""
        rows = self.n_models * self.batch_size
        flat = self.value.new_zeros(rows * self.n_features)
        place = self._rows() * self.n_features + self.feature.to(torch.int64)
        return flat.index_put((place,), self.value).view(self.n_models, self.batch_size, self.n_features)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """On another device or with values of another dtype, as `torch.Tensor.to`; not checked again."""
        value = self.value.to(*args, **kwargs)
        if not value.is_floating_point():
            raise TypeError(f"the values of a SparseBatch must be floating point, not {value.dtype}")
        moved = type(self).__new__(type(self))
        moved.n_features, moved.n_models, moved.batch_size = self.n_features, self.n_models, self.batch_size
        moved.row_start, moved.feature = self.row_start.to(value.device), self.feature.to(value.device)
        moved.value = value
        return moved

    def of_model(self, i: int) -> SparseBatch:
        """The samples of model `i` alone, 0 … n_models−1."""
        i = check_int("i", i, minimum=0, maximum=self.n_models - 1)
        start = self.row_start[i * self.batch_size : (i + 1) * self.batch_size + 1]
        first, end = int(start[0]), int(start[-1])
        return SparseBatch(start - first, self.feature[first:end], self.value[first:end], self.n_features)

    @property
    def shape(self) -> torch.Size:
        """(models, batch_size, n_features)."""
        return torch.Size((self.n_models, self.batch_size, self.n_features))

    @property
    def leaves_nothing_out(self) -> bool:
        """Whether every feature of every sample has an entry: the values are the dense batch then.

        >>> batch = SparseBatch.from_dense(torch.ones(2, 3))
        >>> batch.leaves_nothing_out, batch.value.view(batch.shape).shape
        (True, torch.Size([1, 2, 3]))
        """
        return self.value.numel() == self.n_models * self.batch_size * self.n_features

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Of all three tensors."""
        return self.value.device

    def __repr__(self) -> str:
        return (
            f"SparseBatch({self.value.numel()} entries of {list(self.shape)}, {self.dtype}, "
            f"device={str(self.device)!r})"
        )

    def _rows(self) -> torch.Tensor:
        rows = torch.arange(self.row_start.numel() - 1, dtype=torch.int64, device=self.row_start.device)
        return torch.repeat_interleave(rows, self.row_start.diff())
