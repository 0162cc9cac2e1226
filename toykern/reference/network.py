"""The forward pass of the reference, its loss and its gradients by the chain rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from toykern.arguments.broadcast import broadcast_importance
from toykern.arguments.errors import check_choice
from toykern.network.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from toykern.network.losses import EMBEDDED, LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import Options
from toykern.nn.kinds import AnyModel
from toykern.reference.functions import activate, back, loss_slopes, loss_terms

Parameters: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Network(Options):
    """Which member of the family is meant; tied or not, biased or not follows from the parameters.

    Attributes:
        residual: whether e is added to what the decoder gives.
        embedding, unembedding: P `[models or 1, d, n]` and Q `[models or 1, n_outputs, d]`, float64, or None.
        The others are those of `toykern.network.Options`.

    >>> Network(hidden_activation="relu").output_activation
    'relu'
    """

    residual: bool = False
    embedding: torch.Tensor | None = field(default=None, compare=False)
    unembedding: torch.Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_choice("hidden_activation", self.hidden_activation, HIDDEN_ACTIVATIONS)
        check_choice("output_activation", self.output_activation, OUTPUT_ACTIVATIONS)


PLAIN = Network()
"""h = E x, y = ReLU(D h + b)."""


@dataclass(frozen=True)
class Activity:
    """What a forward pass computes, each `[models, batch, …]`: e, a, h (n_hidden wide), z, y (n_outputs)."""

    embedded: torch.Tensor
    pre_hidden: torch.Tensor
    hidden: torch.Tensor
    pre_output: torch.Tensor
    output: torch.Tensor


def network_of(model: AnyModel) -> Network:
    """The `Network` that a module is."""
    fixed = {name: held.cpu().to(torch.float64, copy=True) for name, held in model.fixed_tensors().items()}
    embedding, unembedding = fixed.get("embedding"), fixed.get("unembedding")
    return Network(*model.network.arguments(), model.residual, embedding, unembedding)


def parameters_of(model: AnyModel) -> Parameters:
    """A module's parameters as float64 CPU copies, by name.

    >>> from toykern.nn import TiedAutoencoder
    >>> {name: list(value.shape) for name, value in parameters_of(TiedAutoencoder(5, 2)).items()}
    {'weight': [1, 2, 5], 'bias': [1, 5]}
    """
    return {
        name: value.cpu().to(torch.float64, copy=True) for name, value in model.stacked_parameters().items()
    }


def forward(parameters: Parameters, x: torch.Tensor, network: Network = PLAIN) -> Activity:
    """All activities for inputs x `[models, batch, n]` or `[batch, n]` (taken to float64)."""
    encoder, decoder = _weights(parameters)
    embedded = _inputs(x, len(encoder))
    if network.embedding is not None:
        embedded = embedded @ network.embedding.mT
    pre_hidden = _seen(parameters, embedded, network) @ encoder.mT
    if "hidden_bias" in parameters:
        pre_hidden = pre_hidden + parameters["hidden_bias"].unsqueeze(1)
    hidden = activate(pre_hidden, network.hidden_activation, network)
    pre_output = hidden @ decoder.mT
    if network.residual:
        pre_output = pre_output + embedded
    if network.unembedding is not None:
        pre_output = pre_output @ network.unembedding.mT
    if "bias" in parameters:
        pre_output = pre_output + parameters["bias"].unsqueeze(1)
    output = activate(pre_output, network.output_activation, network)
    return Activity(embedded, pre_hidden, hidden, pre_output, output)


def target_of(clean: torch.Tensor, target: str, network: Network = PLAIN) -> torch.Tensor:
    """The target made from inputs without noise, float64: "identity" gives x, "abs" |x|, "embedding" P x."""
    check_choice("target", target, (*TARGETS, EMBEDDED))
    wanted = clean.to(torch.float64)
    if target == EMBEDDED:
        if network.embedding is None:
            raise ValueError("target='embedding' is for a network with an embedding, not for one without")
        return wanted @ network.embedding.mT
    return wanted.abs() if target == "abs" else wanted


def one_hot(labels: torch.Tensor, n_outputs: int) -> torch.Tensor:
    """The target of labels: float64 `[…, n_outputs]`, 1 at a label and 0 elsewhere.

    >>> one_hot(torch.tensor([1, 0]), 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    numbers = torch.arange(n_outputs, dtype=torch.int64, device="cpu")
    return (labels.unsqueeze(-1) == numbers).to(torch.float64)


def loss_and_gradients(
    parameters: Parameters,
    x: torch.Tensor,
    network: Network = PLAIN,
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
        network: the member of the family.
        importance: broadcast to `[models, n_outputs]`.
        target: "identity" or "abs", of `clean`; "embedding" of it.
        clean: what the target is made from: the inputs without noise, shaped as x; or targets that are given,
            `[models, batch, n_outputs]` or `[batch, n_outputs]` (`one_hot` of labels). None stands for x.
        loss_reduction: "mean" over batch and outputs, or "sum" over outputs and mean over the batch.
        loss: a name in `toykern.network.losses`.
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
    n_models = len(encoder)
    activity = forward(parameters, x, network)
    output, embedded = activity.output, activity.embedded
    origin = _inputs(x if clean is None else clean, n_models)
    wanted = target_of(origin, target, network)
    if wanted.shape != output.shape:
        raise ValueError(f"the target must have the shape of the outputs, {output.shape}, not {wanted.shape}")
    samples, n_outputs = output.shape[1:]
    weights = broadcast_importance(importance, n_models, n_outputs, dtype=torch.float64).unsqueeze(1)
    divisor = Objective(target, loss_reduction, loss).divisor(samples, n_outputs)
    l1_weights = torch.as_tensor(l1, dtype=torch.float64, device="cpu").expand(n_models) / samples
    losses = (weights * loss_terms(output, wanted, loss)).sum(dim=(1, 2)) / divisor
    losses = losses + l1_weights * activity.hidden.abs().sum(dim=(1, 2))

    # dL/dz, dL/da by the chain rule; sums over the batch are matrix products over it
    d_y, d_target = loss_slopes(output, wanted, weights, loss)
    d_output = back(d_y / divisor, activity.pre_output, network.output_activation, network)
    d_decoded = d_output if network.unembedding is None else d_output @ network.unembedding
    d_code = d_decoded @ decoder + l1_weights.reshape(-1, 1, 1) * activity.hidden.sign()
    d_hidden = back(d_code, activity.pre_hidden, network.hidden_activation, network)
    d_decoder = d_decoded.mT @ activity.hidden  # [models, n_outputs or d, m]
    d_encoder = d_hidden.mT @ _seen(parameters, embedded, network)  # [models, m, n or d]
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
        d_embedded = d_seen + d_decoded if network.residual else d_seen
        d_x = d_embedded if network.embedding is None else d_embedded @ network.embedding
        d_origin = d_target / divisor
        if target == EMBEDDED:
            assert network.embedding is not None
            d_origin = d_origin @ network.embedding
        elif target == "abs":
            d_origin = d_origin * origin.sign()
        gradients["x"] = d_x + d_origin if clean is None else d_x
        if clean is not None:
            gradients["clean"] = d_origin
    return losses, gradients


def _inputs(x: torch.Tensor, n_models: int) -> torch.Tensor:
    return x.to(torch.float64).expand(n_models, *x.shape[-2:])


def _seen(parameters: Parameters, embedded: torch.Tensor, network: Network) -> torch.Tensor:
    """What the encoder sees."""
    return embedded - parameters["bias"].unsqueeze(1) if network.centered else embedded


def _weights(parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """(encoder [models, m, n or d], decoder [models, n_outputs or d, m])."""
    if "weight" in parameters:
        return parameters["weight"], parameters["weight"].mT
    return parameters["encoder"], parameters["decoder"]
