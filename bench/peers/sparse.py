"""A training step of one sparse layer, by toykern and by the packages that people use for it.

Every contender holds the same connections, values and bias (SparseLab draws its own of the same density), and
does forward, backward to input, values and bias, and PyTorch's fused Adam.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.sparse_workloads import SparseWorkload

OURS = "toykern"
SPARSE_PEERS = ("sparseprop", "sparselab", "torch_csr")
DENSE_PEERS = ("dense", "masked")
SPARSE_CONTENDERS = (OURS, *SPARSE_PEERS, *DENSE_PEERS)
_NEEDS = {"sparseprop": ("sparseprop", "scipy"), "sparselab": ("sparselab",), OURS: ("toykern",)}


def why_absent(contender: str) -> str | None:
    """What a contender needs and is not installed, or None if it can run."""
    absent = [name for name in _NEEDS.get(contender, ()) if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


class SparseStep:
    """A contender's layer on a workload: `step()` is one training step."""

    def __init__(self, contender: str, workload: SparseWorkload) -> None:
        weight, bias, x, self._dy = workload.tensors()
        self.layer: nn.Module = _LAYERS[contender](weight, bias)
        self._x = x.requires_grad_()
        self._optimizer = torch.optim.Adam(self.layer.parameters(), lr=1e-5, fused=True)

    def step(self) -> None:
        self._optimizer.zero_grad()
        self._x.grad = None
        self.layer(self._x).backward(self._dy)
        self._optimizer.step()

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and input gradient: what the tests compare between contenders."""
        y = self.layer(self._x)
        (dx,) = torch.autograd.grad(y, self._x, self._dy)
        return y.detach(), dx


def _toykern(weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    from toykern.nn import SparseLinear
    from toykern.sparse.topology import Topology

    return SparseLinear.from_linear(_dense(weight, bias), Topology.from_mask(weight != 0))


def _dense(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class _Masked(nn.Module):
    """What masked packages do: dense parameters, multiplied by the mask in every pass."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.register_buffer("mask", (weight != 0).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class _CsrProduct(torch.autograd.Function):
    """The best that torch's CSR kernels give: both products by CSR, the gradient by a sampled product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, csr: Any) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.csr = csr
        return torch.sparse.mm(csr.matrix(values), x.T).T

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, values = ctx.saved_tensors
        dx = torch.sparse.mm(ctx.csr.transposed(values), dy.T).T
        pattern = ctx.csr.matrix(torch.zeros_like(values))
        return dx, torch.sparse.sampled_addmm(pattern, dy.T.contiguous(), x, beta=0.0).values(), None


class _Csr(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        csr, csc = weight.to_sparse_csr(), weight.T.contiguous().to_sparse_csr()
        self.shape = weight.shape
        self.start, self.column = csr.crow_indices(), csr.col_indices()
        self.t_start, self.t_column = csc.crow_indices(), csc.col_indices()
        order = torch.sparse_csr_tensor(
            self.start, self.column, torch.arange(1.0, len(self.column) + 1), weight.shape
        )
        self.order = (order.to_dense().T.contiguous().to_sparse_csr().values() - 1).long()
        self.values, self.bias = nn.Parameter(csr.values().clone()), nn.Parameter(bias.clone())

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sparse_csr_tensor(self.start, self.column, values, self.shape, check_invariants=False)

    def transposed(self, values: torch.Tensor) -> torch.Tensor:
        shape = self.shape[::-1]
        return torch.sparse_csr_tensor(
            self.t_start, self.t_column, values[self.order], shape, check_invariants=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _CsrProduct.apply(x, self.values, self) + self.bias


def _sparseprop(weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    from sparseprop.modules import SparseLinear

    return SparseLinear(weight, nn.Parameter(bias.clone()))


def _sparselab(weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    from sparselab import SparseLinear

    density = (weight != 0).float().mean().item()
    return SparseLinear(weight.shape[1], weight.shape[0], sparsity=1.0 - density)


_LAYERS: dict[str, Callable[[torch.Tensor, torch.Tensor], nn.Module]] = {
    OURS: _toykern,
    "sparseprop": _sparseprop,
    "sparselab": _sparselab,
    "torch_csr": _Csr,
    "dense": _dense,
    "masked": _Masked,
}
