"""The layer and its peers: one call does forward, loss and backward, and leaves the gradients behind."""

from __future__ import annotations

from collections.abc import Callable

import torch

import toykern as tk

Step = Callable[[], None]
OURS = ("toykern", "toykern, entries")
PEERS = ("eager", "compile")
READ = "read x"
"""Not a contender: a sum over the dense x, which is the least that anyone who looks at it can take."""


def plain_loss(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The loss as an expert writes it in PyTorch: two batched products, one fused bias."""
    out = torch.baddbmm(bias.unsqueeze(1), torch.matmul(x, weight.mT), weight).relu()
    return (x - out).square().mean(dim=(1, 2))


def contenders(model: tk.TiedAutoencoder, x: torch.Tensor) -> dict[str, Step]:
    """Every contender on one model and one batch, by name."""
    entries = tk.SparseBatch.from_dense(x)
    compiled = torch.compile(plain_loss, dynamic=False)
    assert model.bias is not None
    weight, bias = model.weight, model.bias

    def step(loss: Callable[[], torch.Tensor]) -> Step:
        def run() -> None:
            weight.grad = bias.grad = None
            loss().sum().backward()

        return run

    def read() -> None:
        x.sum()

    return {
        "toykern": step(lambda: model.loss(x)),
        "toykern, entries": step(lambda: model.loss(entries)),
        "eager": step(lambda: plain_loss(weight, bias, x)),
        READ: read,  # before a peer, which it may help: it leaves x in the caches
        "compile": step(lambda: compiled(weight, bias, x)),
    }
