"""Activations and losses of the reference: values, and what goes back through them, written out."""

from __future__ import annotations

import math

import torch

from toykern.network.specification import Options


def activate(value: torch.Tensor, activation: str, options: Options) -> torch.Tensor:
    """f(z), of z with a sample's numbers in the last dimension."""
    if activation == "gelu":
        return value * _normal_distribution(value)
    if activation == "softplus":
        return torch.logaddexp(value, torch.zeros_like(value))
    if activation in ("topk", "leaky_relu"):
        return value * _slope(value, activation, options)
    if activation == "relu":
        return value.clamp(min=0)
    if activation == "square":
        return value**2
    if activation == "x_exp":
        return value * torch.exp(value)
    if activation == "solu":
        return value * _softmax(value)
    assert activation == "none", activation
    return value


def back(d_value: torch.Tensor, value: torch.Tensor, activation: str, options: Options) -> torch.Tensor:
    """dL/dz from dL/df(z). All activations but "solu" are elementwise.

    ∂(z_k s_k)/∂z_i = s_k (δ_ik + z_k (δ_ik − s_i)) with s = softmax(z).
    """
    if activation == "solu":
        share = _softmax(value)
        weighted = (d_value * value * share).sum(dim=-1, keepdim=True)
        return share * (d_value * (1 + value) - weighted)
    return d_value * _slope(value, activation, options)


def loss_terms(output: torch.Tensor, target: torch.Tensor, name: str) -> torch.Tensor:
    """Each output's part of the loss before importance, `[models, batch, n_outputs]`."""
    if name == "cross_entropy":
        return target * (_log_of_sum(output, (-1,)) - output)
    if name == "batch_cross_entropy":
        return _softmax(target, (-2, -1)) * (_log_of_sum(output, (-2, -1)) - output)
    assert name == "squared_error", name
    return (output - target) ** 2


def loss_slopes(
    output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """∂/∂y and ∂/∂t of Σ weights · terms.

    With p = softmax(y) and w = weights · t: ∂/∂y_j = p_j Σ_i w_i − w_j. Where t = softmax(T) over the batch,
    ∂/∂T_j = t_j (a_j − Σ_i t_i a_i) with a = weights · (lse(y) − y).
    """
    if name == "cross_entropy":
        weighted = weights * target
        d_output = _softmax(output) * weighted.sum(dim=-1, keepdim=True) - weighted
        return d_output, weights * (_log_of_sum(output, (-1,)) - output)
    if name == "batch_cross_entropy":
        whole = (-2, -1)
        share = _softmax(target, whole)
        weighted = weights * share
        d_output = _softmax(output, whole) * weighted.sum(dim=whole, keepdim=True) - weighted
        cost = weights * (_log_of_sum(output, whole) - output)
        return d_output, share * (cost - (share * cost).sum(dim=whole, keepdim=True))
    assert name == "squared_error", name
    d_output = 2 * weights * (output - target)
    return d_output, -d_output


def _slope(value: torch.Tensor, activation: str, options: Options) -> torch.Tensor:
    """Derivative of the activation; of ReLU at 0 it is 0, of leaky ReLU the negative slope."""
    if activation == "gelu":
        density = torch.exp(-(value**2) / 2) / math.sqrt(2 * math.pi)
        return _normal_distribution(value) + value * density
    if activation == "softplus":
        return torch.sigmoid(value)
    if activation == "topk":
        largest = value.sort(dim=-1, descending=True, stable=True).indices[..., : options.top_k]
        return torch.zeros_like(value).scatter(-1, largest, 1.0)
    if activation == "leaky_relu":
        return torch.where(value > 0, torch.ones_like(value), options.negative_slope)
    if activation == "relu":
        return (value > 0).to(value.dtype)
    if activation == "square":
        return 2 * value
    if activation == "x_exp":
        return (1 + value) * torch.exp(value)
    assert activation == "none", activation
    return torch.ones_like(value)


def _normal_distribution(value: torch.Tensor) -> torch.Tensor:
    return torch.erfc(-value / math.sqrt(2)) / 2


def _softmax(value: torch.Tensor, over: tuple[int, ...] = (-1,)) -> torch.Tensor:
    return torch.exp(value - _log_of_sum(value, over))


def _log_of_sum(value: torch.Tensor, over: tuple[int, ...]) -> torch.Tensor:
    """log Σ e^z over these dimensions, which stay with a length of 1."""
    largest = value.amax(dim=over, keepdim=True)
    return largest + torch.log(torch.exp(value - largest).sum(dim=over, keepdim=True))
