"""The meaning of the package in plain float64 PyTorch: the oracle that every kernel is tested against.

Nothing here is fast, and nothing here calls autograd or `torch.optim`: the formulas are written out, and
`tests/test_reference.py` checks them against both. Parameters are dictionaries of stacked float64 tensors,
{"weight" [models, m, n], "bias" [models, n]} for the tied network and {"encoder" [models, m, n],
"decoder" [models, n, m], "bias" [models, n]} for the untied one; "bias" may be missing.

Notation, per model: E the encoder (m × n), D the decoder (n × m; tied: D = Eᵀ = Wᵀ), b the bias,

    a = E x,   h = f(a),   z = D h + b,   y = g(z),   L = 1/N · Σ_samples Σ_i I_i ρ(y_i − t_i)

with ρ the square and f, g the identity, ReLU (ReLU′(0) = 0), leaky ReLU (its slope at 0 is the negative
one), GELU (z·Φ(z)) or, g alone, softplus (log(1 + e^z)), and N = batch · n ("mean") or batch ("sum"). What
only the layer has and `train` does not: f = top-k (the k largest codes of a sample stay, of equal ones the
first; slope 1 where one stays), a hidden bias c ("hidden_bias" [models, m]), a centred encoder, a = E (x −
b) + c, and l1 · mean over samples of Σ_k |h_k| in the loss (its slope 0 at 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from toykern.arguments.broadcast import broadcast_importance
from toykern.arguments.errors import check_choice, check_non_negative_int, check_positive_int
from toykern.network.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from toykern.network.losses import LOSSES, REDUCTIONS, TARGETS
from toykern.network.specification import Options
from toykern.nn.sparse_tied_autoencoder import SparseTiedAutoencoder
from toykern.nn.stacked import StackedModel
from toykern.training import exact_step
from toykern.training.optim import Optimizer
from toykern.training.schedule import Schedule, multipliers

Parameters: TypeAlias = dict[str, torch.Tensor]
State: TypeAlias = dict[str, torch.Tensor]
"""Optimiser state by "parameter/name", as "weight/exp_avg"; each has its parameter's shape."""


@dataclass(frozen=True)
class Network(Options):
    """Which member of the family is meant; tied or not follows from the parameters.

    >>> Network(hidden_activation="relu").output_activation
    'relu'
    """

    def __post_init__(self) -> None:
        check_choice("hidden_activation", self.hidden_activation, HIDDEN_ACTIVATIONS)
        check_choice("output_activation", self.output_activation, OUTPUT_ACTIVATIONS)


@dataclass(frozen=True)
class Activity:
    """What a forward pass computes, each `[models, batch, …]`: a, h (n_hidden wide), z, y (n_features)."""

    pre_hidden: torch.Tensor
    hidden: torch.Tensor
    pre_output: torch.Tensor
    output: torch.Tensor


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


def network_of(model: StackedModel | SparseTiedAutoencoder) -> Network:
    """The `Network` that a module is."""
    return Network(*model.network.arguments())


def parameters_of(model: StackedModel | SparseTiedAutoencoder) -> Parameters:
    """A module's parameters as float64 CPU copies, by name.

    >>> from toykern.nn import TiedAutoencoder
    >>> {name: list(value.shape) for name, value in parameters_of(TiedAutoencoder(5, 2)).items()}
    {'weight': [1, 2, 5], 'bias': [1, 5]}
    """
    return {
        name: value.cpu().to(torch.float64, copy=True) for name, value in model.stacked_parameters().items()
    }


def forward(parameters: Parameters, x: torch.Tensor, network: Network = Network()) -> Activity:
    """All activities for inputs x `[models, batch, n]` or `[batch, n]` (taken to float64)."""
    encoder, decoder = _weights(parameters)
    inputs = x.to(torch.float64).expand(encoder.shape[0], *x.shape[-2:])
    if network.centered:
        inputs = inputs - parameters["bias"].unsqueeze(1)
    pre_hidden = inputs @ encoder.mT
    if "hidden_bias" in parameters:
        pre_hidden = pre_hidden + parameters["hidden_bias"].unsqueeze(1)
    hidden = _activate(pre_hidden, network.hidden_activation, network)
    pre_output = hidden @ decoder.mT
    if "bias" in parameters:
        pre_output = pre_output + parameters["bias"].unsqueeze(1)
    return Activity(pre_hidden, hidden, pre_output, _activate(pre_output, network.output_activation, network))


def target_of(clean: torch.Tensor, target: str) -> torch.Tensor:
    """The target t made from inputs without noise: "identity" gives x, "abs" |x|; float64."""
    check_choice("target", target, TARGETS)
    wanted = clean.to(torch.float64)
    return wanted.abs() if target == "abs" else wanted


def loss_and_gradients(
    parameters: Parameters,
    x: torch.Tensor,
    network: Network = Network(),
    *,
    importance: Any = 1.0,
    target: str = "identity",
    clean: torch.Tensor | None = None,
    loss_reduction: str = "mean",
    loss: str = "squared_error",
    l1: Any = 0.0,
    input_gradients: bool = False,
) -> tuple[torch.Tensor, Parameters]:
    """The loss of each model, `[models]`, and its gradient by parameter.

    Args:
        parameters: of the stack.
        x: inputs, `[models, batch, n]` or `[batch, n]`.
        network: the activations.
        importance: broadcast to `[models, n]`.
        target: "identity" or "abs", of `clean`.
        clean: the inputs without noise, shaped as x; None where x has no noise.
        loss_reduction: "mean" over batch and features, or "sum" over features and mean over the batch.
        loss: ρ, a name in `toykern.network.losses`.
        l1: a number or `[models]`, the weight of Σ_k |h_k|.
        input_gradients: add the gradient of the inputs, "x" `[models, batch, n]`, through the target too
            where that is made from x; where there is a `clean`, the target's is "clean".

    >>> parameters = {"weight": torch.ones(1, 1, 2, dtype=torch.float64)}
    >>> loss, gradients = loss_and_gradients(parameters, torch.tensor([[1.0, 0.0]]), loss_reduction="sum")
    >>> loss.item(), gradients["weight"].tolist()
    (1.0, [[[2.0, 2.0]]])
    """
    check_choice("loss_reduction", loss_reduction, REDUCTIONS)
    check_choice("loss", loss, LOSSES)
    encoder, decoder = _weights(parameters)
    n_models, _, n_features = encoder.shape
    activity = forward(parameters, x, network)
    inputs = x.to(torch.float64).expand(n_models, *x.shape[-2:])
    origin = inputs if clean is None else clean.to(torch.float64).expand(inputs.shape)
    error = activity.output - target_of(origin, target)
    weights = broadcast_importance(importance, n_models, n_features, dtype=torch.float64).unsqueeze(1)
    terms = inputs.shape[1] * (n_features if loss_reduction == "mean" else 1)
    l1_weights = torch.as_tensor(l1, dtype=torch.float64, device="cpu").expand(n_models) / inputs.shape[1]
    rho, rho_slope = _loss(error, loss)
    losses = (weights * rho).sum(dim=(1, 2)) / terms + l1_weights * activity.hidden.abs().sum(dim=(1, 2))

    # dL/dz, dL/da by the chain rule; sums over the batch are matrix products over it
    d_error = weights * rho_slope / terms
    d_output = d_error * _slope(activity.pre_output, network.output_activation, network)
    d_code = d_output @ decoder + l1_weights.reshape(-1, 1, 1) * activity.hidden.sign()
    d_hidden = d_code * _slope(activity.pre_hidden, network.hidden_activation, network)
    d_decoder = d_output.mT @ activity.hidden  # [models, n, m]
    seen = inputs - parameters["bias"].unsqueeze(1) if network.centered else inputs
    d_encoder = d_hidden.mT @ seen  # [models, m, n]
    d_seen = d_hidden @ encoder
    if "weight" in parameters:
        gradients = {"weight": d_encoder + d_decoder.mT}
    else:
        gradients = {"encoder": d_encoder, "decoder": d_decoder}
    if "bias" in parameters:
        gradients["bias"] = d_output.sum(dim=1) - (d_seen.sum(dim=1) if network.centered else 0)
    if "hidden_bias" in parameters:
        gradients["hidden_bias"] = d_hidden.sum(dim=1)
    if input_gradients:
        d_origin = -d_error * (origin.sign() if target == "abs" else 1)
        gradients["x"] = d_seen + d_origin if clean is None else d_seen
        if clean is not None:
            gradients["clean"] = d_origin
    return losses, gradients


def initial_state(optimizer: Optimizer, parameters: Parameters) -> State:
    """Every state tensor of every parameter at step 0: zeros, but for SGLD's copy of the parameters.

    >>> from toykern.training.optim import Adam
    >>> list(initial_state(Adam(), {"weight": torch.zeros(1, 2, 5)}))
    ['weight/exp_avg', 'weight/exp_avg_sq']
    """
    return exact_step.initial_state(optimizer, parameters)


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
    return exact_step.optimizer_step(optimizer, parameters, gradients, state, step, multiplier, seed)


def train(
    parameters: Parameters,
    batches: Callable[[int], Any],
    steps: int,
    optimizer: Optimizer,
    network: Network = Network(),
    *,
    importance: Any = 1.0,
    target: str = "identity",
    schedule: Schedule = "constant",
    loss_reduction: str = "mean",
    loss: str = "squared_error",
    start: int = 0,
    stop: int | None = None,
    state: State | None = None,
    connections: Callable[[int], torch.Tensor] | None = None,
    seed: Any = None,
) -> Trained:
    """Train on given batches, for the steps start … stop−1 of a run of `steps` steps.

    Args:
        parameters: where training begins; not changed.
        batches: step -> x `[models, batch, n]`, or (x, clean) for noisy inputs.
        steps: length of the whole run, which the schedule is stretched over.
        optimizer: an `SGD`, `Adam`, `AdamW`, `LAMB` or `SGLD`.
        network, importance, target, loss_reduction, loss: as for `loss_and_gradients`.
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


def _weights(parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """(encoder [models, m, n], decoder [models, n, m])."""
    if "weight" in parameters:
        return parameters["weight"], parameters["weight"].mT
    return parameters["encoder"], parameters["decoder"]


def _activate(value: torch.Tensor, activation: str, network: Network) -> torch.Tensor:
    if activation == "gelu":
        return value * _normal_distribution(value)
    if activation == "softplus":
        return torch.logaddexp(value, torch.zeros_like(value))
    if activation in ("topk", "leaky_relu"):
        return value * _slope(value, activation, network)
    if activation == "relu":
        return value.clamp(min=0)
    assert activation == "none", activation
    return value


def _slope(value: torch.Tensor, activation: str, network: Network) -> torch.Tensor:
    """Derivative of the activation; of ReLU at 0 it is 0, of leaky ReLU the negative slope."""
    if activation == "gelu":
        density = torch.exp(-(value**2) / 2) / math.sqrt(2 * math.pi)
        return _normal_distribution(value) + value * density
    if activation == "softplus":
        return torch.sigmoid(value)
    if activation == "topk":
        largest = value.sort(dim=-1, descending=True, stable=True).indices[..., : network.top_k]
        return torch.zeros_like(value).scatter(-1, largest, 1.0)
    if activation == "leaky_relu":
        return torch.where(value > 0, 1.0, network.negative_slope)
    if activation == "relu":
        return (value > 0).to(value.dtype)
    assert activation == "none", activation
    return torch.ones_like(value)


def _loss(error: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ρ and ρ′ of the errors y − t."""
    assert name == "squared_error", name
    return error**2, 2 * error


def _normal_distribution(value: torch.Tensor) -> torch.Tensor:
    return torch.erfc(-value / math.sqrt(2)) / 2
