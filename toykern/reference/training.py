"""Training in the reference: optimisers' steps, runs on given batches, means of their losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from toykern.arguments.errors import check_non_negative_int, check_positive_int
from toykern.reference.network import PLAIN, Network, Parameters, loss_and_gradients
from toykern.training.optim import SGD, Adam, AdamW, Optimizer
from toykern.training.schedule import Schedule, multipliers

State: TypeAlias = dict[str, torch.Tensor]
"""Optimiser state by "parameter/name", as "weight/exp_avg"; each has its parameter's shape."""


@dataclass(frozen=True)
class Trained:
    """Outcome of `train`.

    Attributes:
        losses: float64 `[models, steps]`, each step's batch loss before its update.
        parameters: after the last update.
        state: of the optimiser, after the last update.
    """

    losses: torch.Tensor
    parameters: Parameters
    state: State


def initial_state(optimizer: Optimizer, parameters: Parameters) -> State:
    """Zeros for every state tensor of every parameter.

    >>> list(initial_state(Adam(), {"weight": torch.zeros(1, 2, 5)}))
    ['weight/exp_avg', 'weight/exp_avg_sq']
    """
    return {
        f"{name}/{state}": torch.zeros_like(value)
        for name, value in parameters.items()
        for state in optimizer.state_names
    }


def optimizer_step(
    optimizer: Optimizer,
    parameters: Parameters,
    gradients: Parameters,
    state: State,
    step: int,
    multiplier: float = 1.0,
) -> tuple[Parameters, State]:
    """One update, number `step` (from 0): the new parameters and state; the arguments stay as they are.

    `multiplier` is the schedule's; the learning rate of the step is lr · multiplier, also in AdamW's decay.
    """
    n_models = next(iter(parameters.values())).shape[0]
    lr, weight_decay = optimizer.per_model(n_models)
    new_parameters, new_state = {}, {}
    for name, parameter in parameters.items():
        old_state = {key: state[f"{name}/{key}"] for key in optimizer.state_names}
        rate, decay = (
            value.reshape(-1, *[1] * (parameter.ndim - 1)) for value in (lr * multiplier, weight_decay)
        )
        if isinstance(optimizer, SGD):
            update = _sgd(optimizer, parameter, gradients[name], old_state, step, rate, decay)
        elif isinstance(optimizer, Adam | AdamW):
            update = _adam(optimizer, parameter, gradients[name], old_state, step, rate, decay)
        else:
            raise TypeError(f"optimizer must be an SGD, Adam or AdamW, not {optimizer!r}")
        new_parameters[name] = update[0]
        new_state.update({f"{name}/{key}": value for key, value in update[1].items()})
    return new_parameters, new_state


def train(
    parameters: Parameters,
    batches: Callable[[int], Any],
    steps: int,
    optimizer: Optimizer,
    network: Network = PLAIN,
    *,
    importance: Any = 1.0,
    target: str = "identity",
    schedule: Schedule = "constant",
    loss_reduction: str = "mean",
    loss: str = "squared_error",
    l1: Any = 0.0,
    start: int = 0,
    stop: int | None = None,
    state: State | None = None,
    connections: Callable[[int], torch.Tensor] | None = None,
) -> Trained:
    """Train on given batches, for the steps start … stop−1 of a run of `steps` steps.

    Args:
        parameters: where training begins; not changed.
        batches: step -> x `[models, batch, n]`, or (x, clean) for noisy inputs and targets that are given.
        steps: length of the whole run, which the schedule is stretched over.
        optimizer: an `SGD`, `Adam` or `AdamW`.
        network, importance, target, loss_reduction, loss, l1: as for `loss_and_gradients`.
        schedule: as for `toykern.training.schedule.multipliers`.
        start, stop: which steps; all of them by default.
        state: the optimiser's state to begin with; zeros by default.
        connections: step -> bool `[models, m, n]`, which connections of a (tied) sparse "weight" exist in
            that step: no others have a weight, a gradient or optimiser state. A new one begins with zeros.

    >>> start = {"weight": torch.full((1, 1, 2), 0.5, dtype=torch.float64)}
    >>> trained = train(start, lambda step: torch.eye(2), steps=3, optimizer=SGD(lr=0.1))
    >>> trained.losses.shape
    torch.Size([1, 3])
    """
    steps = check_positive_int("steps", steps)
    start = check_non_negative_int("start", start)
    stop = steps if stop is None else stop
    factors = multipliers(schedule, steps, start, stop)
    state = initial_state(optimizer, parameters) if state is None else state
    losses = []
    for step in range(start, stop):
        if connections is not None:
            exists = connections(step)
            parameters = parameters | {"weight": _where(exists, parameters["weight"])}
            state = {
                name: _where(exists, value) if name.startswith("weight/") else value
                for name, value in state.items()
            }
        drawn = batches(step)
        x, clean = drawn if isinstance(drawn, tuple) else (drawn, None)
        batch_loss, gradients = loss_and_gradients(
            parameters,
            x,
            network,
            importance=importance,
            target=target,
            clean=clean,
            loss_reduction=loss_reduction,
            loss=loss,
            l1=l1,
        )
        if connections is not None:
            gradients["weight"] = _where(exists, gradients["weight"])
        parameters, state = optimizer_step(
            optimizer, parameters, gradients, state, step, factors[step - start]
        )
        losses.append(batch_loss)
    n_models = next(iter(parameters.values())).shape[0]
    stacked = (
        torch.stack(losses, dim=1) if losses else torch.zeros(n_models, 0, dtype=torch.float64, device="cpu")
    )
    return Trained(stacked, dict(parameters), dict(state))


def record_means(losses: torch.Tensor, record_every: int) -> torch.Tensor:
    """Means of per-step losses `[models, steps]` over windows: record r covers steps [r·e, (r+1)·e).

    The last window is shorter where e does not divide the steps. `[models, records]`.

    >>> record_means(torch.tensor([[1.0, 3.0, 5.0]]), 2)
    tensor([[2., 5.]])
    """
    windows = losses.split(check_positive_int("record_every", record_every), dim=1)
    return torch.stack([window.mean(dim=1) for window in windows], dim=1)


def _where(exists: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.where(exists, value, 0.0)


def _sgd(
    optimizer: SGD,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    state: State,
    step: int,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
) -> tuple[torch.Tensor, State]:
    direction = gradient + weight_decay * parameter
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
    state: State,
    step: int,
    lr: torch.Tensor,
    weight_decay: torch.Tensor,
) -> tuple[torch.Tensor, State]:
    if isinstance(optimizer, AdamW):
        parameter = parameter * (1 - lr * weight_decay)
    else:
        gradient = gradient + weight_decay * parameter
    beta1, beta2 = optimizer.betas
    mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient**2
    unbiased_mean = mean / (1 - beta1 ** (step + 1))
    unbiased_square = square / (1 - beta2 ** (step + 1))
    update = unbiased_mean / (unbiased_square.sqrt() + optimizer.eps)
    return parameter - lr * update, {"exp_avg": mean, "exp_avg_sq": square}
