"""Sparse layers that every implementation is compared on: data only, and the float64 oracle they are held to.

The oracle is dense PyTorch: the weights with their zeros, F.linear and autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toykern.ops.sparse_index import SparseIndex
from toykern.sparse.topology import Topology


@dataclass(frozen=True)
class SparseCase:
    """One stack of layers and one batch."""

    name: str
    in_features: int
    out_features: int
    batch: int
    density: float
    n_models: int = 1
    relu: bool = False
    bias: bool = True
    shared: bool = False  # one batch for all models
    slack: int = 0  # slots of each model that belong to no connection


SPARSE_CASES = [
    SparseCase("one of everything", 1, 1, 1, 1.0),
    SparseCase("one sample", 33, 17, 1, 0.3, relu=True),
    SparseCase("odd", 96, 7, 40, 0.3, relu=True, slack=3),
    SparseCase("a panel", 64, 32, 64, 0.1),
    SparseCase("a panel and a sample", 64, 48, 65, 0.1, relu=True),
    SparseCase("two panels less one", 30, 50, 127, 0.2, bias=False),
    SparseCase("many panels", 70, 90, 300, 0.05, relu=True, slack=5),
    SparseCase("dense", 40, 40, 33, 1.0),
    SparseCase("empty rows and columns", 200, 300, 50, 0.002),
    SparseCase("long rows", 3000, 20, 70, 0.3, relu=True),
    SparseCase("tall", 5, 900, 20, 0.4),
    SparseCase("stack", 20, 30, 64, 0.5, n_models=9, relu=True, slack=7),
    SparseCase("stack on one batch", 33, 17, 129, 0.2, n_models=3, shared=True),
    SparseCase("more slack than a warp takes", 20, 6, 9, 0.5, slack=200),
    SparseCase("pair", 100, 64, 7, 0.05, n_models=2, bias=False, relu=True),
    SparseCase("large", 300, 250, 130, 0.1, relu=True),
    # 1 MiB of outputs in float32: these are written past the caches, where samples are whole cache lines
    SparseCase("past the caches", 30, 2064, 140, 0.05, relu=True),
    SparseCase("too large for caches, lines shared", 30, 2051, 140, 0.05, bias=False),
    SparseCase("gradient past the caches", 2064, 30, 140, 0.05),
    # panels of more than a block of tiles, with a block that is not full
    SparseCase("blocks of tiles", 1500, 1700, 300, 0.003, relu=True, slack=4),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
FLOORS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float64: 1e-14}
"""Errors that are allowed whatever plain PyTorch's is, relative to the largest number of the result."""


@dataclass
class SparseProblem:
    """The tensors of a case; `mask` says where connections are."""

    index: SparseIndex
    topology: Topology
    mask: torch.Tensor  # bool [n_models, out, in]
    x: torch.Tensor  # [n_models | 1, batch, in]
    values: torch.Tensor  # [n_models · capacity]
    bias: torch.Tensor | None
    dy: torch.Tensor  # [n_models, batch, out]


def problem_of(case: SparseCase, dtype: torch.dtype, seed: int = 0) -> SparseProblem:
    generator = torch.Generator().manual_seed(seed + case.in_features)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    mask = torch.rand(case.n_models, case.out_features, case.in_features, generator=generator) < case.density
    capacity = int(mask.sum(dim=(1, 2)).max()) + case.slack
    topology = Topology.from_mask(mask, capacity=capacity)
    values = draw(case.n_models * capacity).masked_fill(~topology.occupied(), 0)
    return SparseProblem(
        SparseIndex.of(case.in_features, topology.row_start, topology.column),
        topology,
        mask,
        draw(1 if case.shared else case.n_models, case.batch, case.in_features),
        values,
        draw(case.n_models, case.out_features) if case.bias else None,
        draw(case.n_models, case.batch, case.out_features),
    )


def dense_results(case: SparseCase, p: SparseProblem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """y and the gradients of x, values and bias, by dense PyTorch in `dtype`, all float64.

    The derivative of ReLU is taken from y as stored in the problem's own dtype, as the kernels do, so that an
    output rounded to 0 does not count as an error of the gradients.
    """
    x, dy = p.x.to(dtype, copy=True).requires_grad_(), p.dy.to(dtype)
    values = p.values.to(dtype, copy=True).requires_grad_()
    bias = None if p.bias is None else p.bias.to(dtype, copy=True).requires_grad_()
    weight = p.topology.to_dense(values)
    y = x.matmul(weight.mT)
    y = y if bias is None else y + bias.unsqueeze(1)
    if case.relu:
        y = y.relu()
    y.backward(dy)
    results = {"y": y.detach(), "x": x.grad, "values": values.grad}
    if bias is not None:
        results["bias"] = bias.grad
    return {name: tensor.double() for name, tensor in results.items()}
