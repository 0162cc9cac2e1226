"""The sparse layers of the bench, and what each of them is asked to reach on two AVX-512 cores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SPARSITIES = (0.5, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class SparseWorkload:
    """One training step of one sparse layer: forward, backward to input, values and bias, Adam.

    Attributes:
        batch, in_features, out_features: the shape.
        sparsity: the fraction of connections that do not exist.
        sparse_ratio: how many times faster than the best sparse peer the step is asked to be, or None.
        dense_ratio: how many times faster than dense with fused Adam, or None.
    """

    batch: int
    in_features: int
    out_features: int
    sparsity: float
    sparse_ratio: float | None = None
    dense_ratio: float | None = None

    @property
    def shape(self) -> str:
        """`1024, 768→3072`."""
        return f"{self.batch}, {self.in_features}→{self.out_features}"

    @property
    def key(self) -> str:
        """For files and test ids: `1024-768-3072-0.9`."""
        return f"{self.batch}-{self.in_features}-{self.out_features}-{self.sparsity:g}"

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Dense weights with their zeros `[out, in]`, bias `[out]`, x `[batch, in]`, dy `[batch, out]`."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.out_features, self.in_features)
        count = round((1.0 - self.sparsity) * self.out_features * self.in_features)
        weight = torch.zeros(shape).view(-1)
        where = torch.randperm(len(weight), generator=generator)[:count]
        # never exactly 0, which some peers would take for a connection that is not there
        weight[where] = (torch.rand(count, generator=generator) + 0.1) * 0.1
        bias = torch.randn(self.out_features, generator=generator)
        x = torch.randn(self.batch, self.in_features, generator=generator)
        dy = torch.randn(self.batch, self.out_features, generator=generator)
        return weight.view(shape), bias, x, dy


def _workloads() -> tuple[SparseWorkload, ...]:
    shapes = ((1024, 768, 3072), (256, 1024, 1024), (64, 3072, 1024), (128, 512, 256))
    at_90 = {shapes[0]: 3.5, shapes[1]: 4.5, shapes[2]: 4.5}
    found = []
    for shape in shapes:
        for sparsity in SPARSITIES:
            sparse = 2.0 if sparsity >= 0.8 and shape in at_90 else None
            dense = at_90.get(shape) if sparsity == 0.9 else None
            if shape == shapes[0] and sparsity >= 0.6:
                dense = dense or 1.0
            found.append(SparseWorkload(*shape, sparsity, sparse, dense))
    return tuple(found)


SPARSE_WORKLOADS = _workloads()
