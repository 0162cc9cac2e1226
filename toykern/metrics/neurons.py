"""What single hidden units answer to: the activations of single features, and how monosemantic units are.

Jermyn, Schiefer and Hubinger 2022, *Engineering Monosemanticity in Toy Models*. Activations are
`[models, n_features, n_hidden]` or `[n_features, n_hidden]`: row i has those at the input of feature i alone.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_number, describe, is_int
from toykern.metrics.stacks import check_stack, models_first, models_last, total


def single_feature_activations(model: Any, magnitude: float = 1.0) -> torch.Tensor:
    """The codes of each feature alone, `[models, n_features, n_hidden]`: row i is h at x = magnitude · e_i.

    model: a `toykern.MLP`, or any model with `n_features` and an `encode` that takes `[batch, n_features]`;
    the inputs are of the dtype and on the device of its parameters. A feature that may be negative has a
    second row, of another `magnitude`. `TiedAutoencoder` and `Autoencoder` have no `encode`: without a hidden
    activation, bias or centring theirs are `magnitude · weight.mT`. The result can be differentiated.

    Raises:
        TypeError: naming the argument.

    >>> import toykern as tk
    >>> single_feature_activations(tk.MLP(5, 3, n_models=2)).shape
    torch.Size([2, 5, 3])
    """
    magnitude = check_number("magnitude", magnitude)
    encode, n_features = getattr(model, "encode", None), getattr(model, "n_features", None)
    if isinstance(model, type) or not callable(encode) or n_features is None or not is_int(n_features):
        raise TypeError(f"model must have encode and n_features, as an MLP has, not be {describe(model)}")
    like = next(iter(model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
    inputs: torch.Tensor = magnitude * torch.eye(int(n_features), dtype=dtype, device=device)
    codes: torch.Tensor = encode(inputs)
    return codes


def monosemanticity(activations: Values) -> torch.Tensor:
    """max_i a_i / Σ_i a_i of each hidden unit, `[models, n_hidden]`, over the features i.

    1 for a unit that one feature alone activates, 1/n_features for one that all activate alike. Activations
    below 0, as GELU has, count as 0; a unit that no feature activates (it is dead) has 0. NaN where an
    activation of the unit is NaN or infinite. A model's bits are its own, whatever stands beside it.

    activations: `[models, n_features, n_hidden]` or `[n_features, n_hidden]`, of single features
    (`single_feature_activations`). Of the same dtype, computed in double precision; can be differentiated.

    >>> monosemanticity(torch.tensor([[2.0, 3.0, 0.0], [-1.0, 1.0, 0.0]])).tolist()
    [1.0, 0.75, 0.0]
    """
    a = check_stack("activations", activations, ("n_features", "n_hidden"))
    return models_first(_monosemanticity(a), a)


def monosemantic_share(activations: Values, threshold: float = 0.999) -> torch.Tensor:
    """The share of hidden units whose `monosemanticity` is above `threshold`, `[models]`, of all units.

    Dead ones are among them and are not monosemantic. For the share of the others, divide by
    `1 - dead.double().mean(-1)`, with `dead = monosemanticity(activations) == 0`. NaN for a model with a unit
    that is not finite. A model's bits are its own.

    activations: as `monosemanticity` takes them; of the same dtype. `threshold`: 0 … 1.

    >>> monosemantic_share(torch.tensor([[2.0, 3.0], [0.0, 1.0]])).item()
    0.5
    """
    a = check_stack("activations", activations, ("n_features", "n_hidden")).detach()
    threshold = check_number("threshold", threshold, minimum=0.0, maximum=1.0)
    purity = _monosemanticity(a)
    share = (purity > threshold).sum(0).double() / len(purity)
    return models_first(torch.where(purity.isnan().any(0), torch.nan, share), a)


def _monosemanticity(activations: torch.Tensor) -> torch.Tensor:
    """float64 `[n_hidden, models]`."""
    positive = models_last(activations).clamp(min=0)
    largest = positive.amax(0)
    dead = largest == 0
    # Divided before they are added, so that no sum overflows or loses digits; ∞ / ∞ is NaN.
    return torch.where(dead, 0.0, 1 / total(positive / torch.where(dead, 1.0, largest)).clamp(min=1))
