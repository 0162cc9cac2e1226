"""Training in the reference: optimisers' steps, runs on given batches, means of their losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from toykern.arguments.errors import check_non_negative_int, check_positive_int
from toykern.reference.network import PLAIN, Network, Parameters, loss_and_gradients
from toykern.training import step as step_of
from toykern.training.optim import Optimizer
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
    """Every state tensor of every parameter at step 0: zeros, but for SGLD's copy of the parameters.

    >>> from toykern.training.optim import Adam
    >>> list(initial_state(Adam(), {"weight": torch.zeros(1, 2, 5)}))
    ['weight/exp_avg', 'weight/exp_avg_sq']
    """
    return step_of.initial_state(optimizer, parameters)


def optimizer_step(
    optimizer: Optimizer,
    parameters: Parameters,
    gradients: Parameters,
    state: State,
    step: int,
    multiplier: float = 1.0,
    seed: Any = None,
) -> tuple[Parameters, State]:
    """One update, number `step` (from 0): the new parameters and state; the arguments stay as they are.

    `multiplier` is the schedule's; the learning rate of the step is lr · multiplier, also in AdamW's decay.
    `seed`, as `toykern.fit` takes it, says what the noise of SGLD is.
    """
    return step_of.optimizer_step(optimizer, parameters, gradients, state, step, multiplier, seed)


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
    seed: Any = None,
) -> Trained:
    """Train on given batches, for the steps start … stop−1 of a run of `steps` steps.

    Args:
        parameters: where training begins; not changed.
        batches: step -> x `[models, batch, n]`, or (x, clean) for noisy inputs and targets that are given.
        steps: length of the whole run, which the schedule is stretched over.
        optimizer: an `SGD`, `Adam`, `AdamW`, `LAMB` or `SGLD`.
        network, importance, target, loss_reduction, loss, l1: as for `loss_and_gradients`.
        schedule: as for `toykern.training.schedule.multipliers`.
        start, stop: which steps; all of them by default.
        state: the optimiser's state to begin with; zeros by default.
        connections: step -> bool `[models, m, n]`, which connections of a (tied) sparse "weight" exist in
            that step: no others have a weight, a gradient or optimiser state. A new one begins with zeros.
        seed: of the noise of SGLD, as for `optimizer_step`.

    >>> from toykern.training.optim import SGD
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
            optimizer, parameters, gradients, state, step, factors[step - start], seed
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
