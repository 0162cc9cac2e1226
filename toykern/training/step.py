"""One optimiser step in torch operations, written out.

In float64 it is the part of the reference that optimisers are compared with (`toykern.reference` hands out
what is public); in float32 what trains on a device where no kernel of ours does. Numbers per model are
float64 and rounded to the parameters' dtype where they meet them.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.broadcast import broadcast_seed
from toykern.data.philox import KIND_LANGEVIN, normal
from toykern.network.specification import ROLES
from toykern.training.optim import LAMB, SGD, SGLD, Adam, AdamW, BiasDecay, Optimizer, UnitNorm

Tensors = dict[str, torch.Tensor]

_NUMBERED = ("encoder", "decoder", "bias", "hidden_bias")
"""Roles by their numbers in the data stream (docs/data_stream.md §12)."""


def initial_state(optimizer: Optimizer, parameters: Tensors) -> Tensors:
    """See `toykern.reference.initial_state`."""
    return {
        f"{name}/{state}": optimizer.initial_state(state, value)
        for name, value in parameters.items()
        for state in optimizer.state_names
    }


def optimizer_step(
    optimizer: Optimizer,
    parameters: Tensors,
    gradients: Tensors,
    state: Tensors,
    step: int,
    multiplier: float = 1.0,
    seed: Any = None,
    *,
    rates: Tensors | None = None,
    noise: Tensors | None = None,
) -> tuple[Tensors, Tensors]:
    """See `toykern.reference.optimizer_step`.

    `rates`: `optimizer.arrays(n_models)` on the parameters' device; `noise`: of SGLD, by parameter. What is
    not given is made on the CPU. A tensor that is not among `parameters` is not trained.
    """
    n_models = next(iter(parameters.values())).shape[0]
    rates = optimizer.arrays(n_models) if rates is None else rates
    gradients = {name: gradients[name] for name in parameters}
    unit = optimizer.unit_norm
    unit = unit if isinstance(unit, UnitNorm) and unit.tensor in parameters else None
    if unit is not None and unit.remove_parallel:
        gradients[unit.tensor] = _without_parallel(unit.tensor, parameters, gradients)
    if "clip_norm" in rates:
        gradients = _clipped(gradients, rates["clip_norm"])
    new_parameters, new_state = {}, {}
    for name, parameter in parameters.items():
        old_state = {key: state[f"{name}/{key}"] for key in optimizer.state_names}
        shaped = {key: rate.reshape(-1, *[1] * (parameter.ndim - 1)) for key, rate in rates.items()}
        lr = shaped["lr"] * multiplier * shaped.get(f"lr_scale/{name}", 1.0)
        decay = shaped["weight_decay"] * shaped.get(f"weight_decay_scale/{name}", 1.0)
        gradient = gradients[name]
        if isinstance(optimizer, SGD):
            update = _sgd(optimizer, parameter, gradient, old_state, step, lr, decay)
        elif isinstance(optimizer, Adam | AdamW):
            update = _adam(optimizer, parameter, gradient, old_state, step, lr, decay)
        elif isinstance(optimizer, LAMB):
            update = _lamb(optimizer, parameter, gradient, old_state, step, lr, decay)
        elif isinstance(optimizer, SGLD):
            drawn = langevin_noise(name, parameter, step, seed) if noise is None else noise[name]
            update = _sgld(parameter, gradient, old_state, lr, decay, shaped, drawn)
        else:
            raise TypeError(f"optimizer must be an SGD, Adam, AdamW, LAMB or SGLD, not {optimizer!r}")
        new_parameters[name] = update[0]
        new_state.update({f"{name}/{key}": value for key, value in update[1].items()})
        if _shrinks(optimizer.bias_decay, name, step):
            left = _like(parameter, 1 - shaped["bias_decay"] * lr)
            new_parameters[name] = new_parameters[name] * left
    if unit is not None:
        value, dim = new_parameters[unit.tensor], _vectors(unit.tensor)
        norm = value.norm(dim=dim, keepdim=True)
        new_parameters[unit.tensor] = value / torch.where(norm == 0, 1.0, norm)
    return new_parameters, new_state


def langevin_noise(name: str, parameter: torch.Tensor, step: int, seed: Any = None) -> torch.Tensor:
    """η of one step of SGLD (docs/data_stream.md §12), float64 in the shape of the parameter `[models, …]`.

    `name` is the tensor's; `seed` as `toykern.fit` takes it.

    >>> langevin_noise("bias", torch.zeros(2, 5), step=3).shape
    torch.Size([2, 5])
    """
    n_models = parameter.shape[0]
    seeds = broadcast_seed("seed", seed, n_models).numpy()
    member = _NUMBERED.index(ROLES[name])
    drawn = normal(seeds, parameter[0].numel(), member=member, kind=KIND_LANGEVIN, step=step)
    return torch.from_numpy(drawn).to(torch.float64).reshape(parameter.shape)


def _like(parameter: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """A number per model, float64, as it meets the parameter."""
    return rate.to(parameter.dtype)


def _shrinks(decay: BiasDecay | None, name: str, step: int) -> bool:
    return decay is not None and decay.tensor == name and (decay.until is None or step < decay.until)


def _vectors(tensor: str) -> int:
    """Along which dimension the vector of a hidden unit lies."""
    return -2 if ROLES[tensor] == "decoder" else -1


def _without_parallel(tensor: str, parameters: Tensors, gradients: Tensors) -> torch.Tensor:
    value, gradient, dim = parameters[tensor], gradients[tensor], _vectors(tensor)
    squares = value.square().sum(dim=dim, keepdim=True)
    share = (value * gradient).sum(dim=dim, keepdim=True) / torch.where(squares == 0, 1.0, squares)
    return gradient - share * value


def _clipped(gradients: Tensors, most: torch.Tensor) -> Tensors:
    """As torch.nn.utils.clip_grad_norm_, of each model."""
    squares = torch.zeros_like(most)
    for gradient in gradients.values():
        squares = squares + gradient.square().flatten(1).sum(dim=1)
    factor = (most / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    return {name: g * _like(g, factor.reshape(-1, *[1] * (g.ndim - 1))) for name, g in gradients.items()}


def _sgd(
    optimizer: SGD,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    state: Tensors,
    step: int,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
) -> tuple[torch.Tensor, Tensors]:
    lr = _like(parameter, lr)
    direction = gradient + _like(parameter, weight_decay) * parameter
    if optimizer.momentum == 0:
        return parameter - lr * direction, {}
    if step == 0:
        buffer = direction  # the first gradient is not dampened
    else:
        buffer = optimizer.momentum * state["momentum_buffer"] + (1 - optimizer.dampening) * direction
    update = direction + optimizer.momentum * buffer if optimizer.nesterov else buffer
    return parameter - lr * update, {"momentum_buffer": buffer}


def _adam(
    optimizer: Adam | AdamW,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    state: Tensors,
    step: int,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
) -> tuple[torch.Tensor, Tensors]:
    if isinstance(optimizer, AdamW):
        parameter = parameter * _like(parameter, 1 - lr * weight_decay)
    else:
        gradient = gradient + _like(parameter, weight_decay) * parameter
    beta1, beta2 = optimizer.betas
    mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient**2
    unbiased_mean = mean / (1 - beta1 ** (step + 1))
    unbiased_square = square / (1 - beta2 ** (step + 1))
    update = unbiased_mean / (unbiased_square.sqrt() + optimizer.eps)
    return parameter - _like(parameter, lr) * update, {"exp_avg": mean, "exp_avg_sq": square}


def _lamb(
    optimizer: LAMB,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    state: Tensors,
    step: int,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
) -> tuple[torch.Tensor, Tensors]:
    beta1, beta2 = optimizer.betas
    mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient**2
    left1, left2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    if optimizer.debias and optimizer.form == "paper":
        direction = (mean / left1) / ((square / left2).sqrt() + optimizer.eps)
    else:
        direction = mean / (square.sqrt() + optimizer.eps)
        lr = lr * (left2**0.5 / left1 if optimizer.debias else 1.0)
    direction = torch.where(mean == 0, 0.0, direction) + _like(parameter, weight_decay) * parameter
    dims = tuple(range(1, parameter.ndim))
    weight_norm = parameter.square().sum(dim=dims, keepdim=True).sqrt()
    if optimizer.clamp is not None:
        weight_norm = weight_norm.clamp(max=optimizer.clamp)
    norm = direction.square().sum(dim=dims, keepdim=True).sqrt()
    trust = torch.where((weight_norm == 0) | (norm == 0), 1.0, weight_norm / norm)
    return parameter - _like(parameter, lr) * trust * direction, {"exp_avg": mean, "exp_avg_sq": square}


def _sgld(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    state: Tensors,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
    rates: Tensors,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, Tensors]:
    nbeta, decay = _like(parameter, rates["nbeta"]), _like(parameter, weight_decay)
    force = nbeta * gradient + decay * parameter
    if "initial" in state:
        force = force + _like(parameter, rates["localization"]) * (parameter - state["initial"])
    moved = parameter - _like(parameter, lr / 2) * force
    return moved + _like(parameter, lr.sqrt()) * noise, state
