"""The gradients of the loss to importance and l1, against autograd through plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import toykern as tk
from toykern.arguments.broadcast import broadcast_importance

MODELS = {
    "tied": lambda dtype: tk.TiedAutoencoder(6, 3, 2, "relu", dtype=dtype),
    "untied, gelu, centred": lambda dtype: tk.Autoencoder(
        6, 4, 2, "relu", "gelu", centered=True, hidden_bias=True, dtype=dtype
    ),
    "top-k": lambda dtype: tk.TiedAutoencoder(6, 4, 2, "topk", top_k=2, dtype=dtype),
}


def plain_loss(
    model: Any, x: torch.Tensor, importance: torch.Tensor, l1: torch.Tensor, target: Any, reduction: str
) -> torch.Tensor:
    """In float64 by torch's own operations."""
    weights = [getattr(model, name).detach().double() for name in model.weight_names]
    encoder, decoder = weights[0], weights[1] if len(weights) > 1 else weights[0].mT
    x, bias = x.double(), model.bias.detach().double().unsqueeze(1)
    codes = (x - bias if model.centered else x) @ encoder.mT
    if model.hidden_bias is not None:
        codes = codes + model.hidden_bias.detach().double().unsqueeze(1)
    if model.top_k:
        kept = torch.zeros_like(codes).scatter(2, codes.topk(model.top_k, dim=2).indices, 1.0)
        codes = codes * kept
    else:
        codes = codes.relu()
    output = codes @ decoder.mT + bias
    output = torch.nn.functional.gelu(output) if model.output_activation == "gelu" else output.relu()
    wanted = x.abs() if target == "abs" else x if target == "identity" else target.double()
    errors = (wanted - output).square().sum(1) / (x.shape[-2] * (x.shape[-1] if reduction == "mean" else 1))
    return (errors * importance).sum(1) + l1 * codes.abs().sum(2).mean(1)


@pytest.mark.parametrize("shape", [(6,), (2, 1), (2, 6)], ids=str)
@pytest.mark.parametrize("target", ["identity", "abs", "tensor"])
@pytest.mark.parametrize("kind", MODELS)
def test_importance_and_l1_get_the_gradient_of_autograd(
    kind: str, target: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = MODELS[kind](torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    x = tk.SparseFeatures(6, 0.5, "symmetric").sample(0, 7, n_models=2).double()
    wanted: Any = torch.rand_like(x) if target == "tensor" else target
    reduction = "sum" if shape == (6,) else "mean"
    want = [torch.rand(shape, dtype=torch.float64), torch.rand(2, dtype=torch.float64)]
    got = [price.clone().requires_grad_() for price in want]
    rescaled = torch.tensor([0.5, -3.0], dtype=torch.float64)
    (plain_loss(model, x, *(p.requires_grad_() for p in want), wanted, reduction) * rescaled).sum().backward()
    for batch in (x, tk.SparseBatch.from_dense(x)):
        for price in got:
            price.grad = None
        (model.loss(batch, got[0], wanted, reduction, l1=got[1]) * rescaled).sum().backward()
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_one_l1_for_all_models_and_a_batch_that_models_share() -> None:
    model, x = tk.TiedAutoencoder(6, 3, 4, "relu"), torch.rand(5, 6)
    l1 = torch.tensor(0.1, requires_grad=True)
    model.loss(tk.SparseBatch.from_dense(x), l1=l1).sum().backward()
    norms = torch.relu(x @ model.weight.detach().mT).sum(2).mean(1)
    torch.testing.assert_close(l1.grad, norms.sum())


def test_bfloat16_and_the_sparse_model() -> None:
    x = tk.SparseFeatures(6, 0.5).sample(0, 7, n_models=2)
    dense = tk.TiedAutoencoder(6, 3, 2, dtype=torch.bfloat16)
    for model, batch in ((dense, x.bfloat16()), (tk.SparseTiedAutoencoder(6, 3, 0.5, n_models=2), x)):
        importance = torch.ones(2, 6, requires_grad=True)
        model.loss(batch, importance).sum().backward()
        # the loss is linear in importance
        want = torch.stack([model.loss(batch, torch.eye(6)[j]).detach().float() for j in range(6)], dim=1)
        torch.testing.assert_close(importance.grad, want, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_a_price_has_no_derivative_either() -> None:
    importance = torch.ones(5, requires_grad=True)
    loss = tk.TiedAutoencoder(5, 2).loss(torch.rand(4, 5), importance).sum()
    (gradient,) = torch.autograd.grad(loss, importance, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_broadcast_keeps_no_graph_unless_asked() -> None:
    value = torch.ones(3, requires_grad=True)
    assert not broadcast_importance(value, 1, 3).requires_grad
    assert broadcast_importance(value, 1, 3, detach=False).requires_grad


def test_it_compiles_without_a_graph_break() -> None:
    model, x = tk.TiedAutoencoder(5, 2, 3), torch.rand(4, 5)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    found = []
    for loss in (model.loss, compiled):
        prices = torch.rand(5, generator=torch.Generator().manual_seed(0)), torch.tensor(0.1)
        loss(x, prices[0].requires_grad_(), l1=prices[1].requires_grad_()).sum().backward()
        found.append([price.grad for price in prices])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for l1 in (0.0, 0.1, 0.2):  # numbers that change from call to call
        torch.testing.assert_close(compiled(x, l1=l1), model.loss(x, l1=l1))
