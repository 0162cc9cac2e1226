"""Activations in PyTorch's own operations, differentiable any number of times: where no kernel is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def activated(value: torch.Tensor, activation: str, model: Any) -> torch.Tensor:
    """f(value), of any shape with a sample's numbers in the last dimension; what f takes (`top_k`,
    `negative_slope`) is the model's.

    The slope of ReLU at 0 is 0, that of leaky ReLU the negative slope; of equal codes "topk" keeps the first.

    >>> activated(torch.tensor([-1.0, 2.0]), "square", None)
    tensor([1., 4.])
    """
    if activation == "none":
        return value
    if activation == "relu":
        return functional.relu(value)
    if activation == "leaky_relu":
        return functional.leaky_relu(value, model.negative_slope)
    if activation == "gelu":
        return functional.gelu(value)
    if activation == "softplus":
        return torch.logaddexp(value, torch.zeros_like(value))
    if activation == "square":
        return value.square()
    if activation == "x_exp":
        return value * value.exp()
    if activation == "solu":
        return value * value.softmax(-1)
    assert activation == "topk", activation
    largest = value.sort(dim=-1, descending=True, stable=True).indices[..., : model.top_k]
    kept = torch.zeros_like(value, dtype=torch.bool).scatter(-1, largest, True)
    return torch.where(kept, value, 0.0)
