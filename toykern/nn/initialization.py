"""Initial weights: normal draws from the project's own counter-based generator, each model from its own seed.

The weights of a model depend on its seed, its shape and its standard deviation alone, so a model is the
same to the bit whatever stands beside it (docs/data_stream.md §8).

Xavier-normal called on a stacked 3-D tensor, as in the published notebooks, has a standard deviation that
depends on the number of instances I: stacked [I, n, m] gives √(2/(m(n+I))), stacked [I, m, n] gives
√(2/(n(m+I))), where one model of n features and m hidden units has √(2/(n+m)). The default is the true one;
the others have names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import broadcast_per_model
from toykern.arguments.errors import check_choice, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.philox import normal

INITIALIZATIONS = ("xavier", "xavier_stacked_features_hidden", "xavier_stacked_hidden_features")
"""The initialisations with a name; a standard deviation can be given instead."""


def initial_std(init: Any, n_features: int, n_hidden: int, n_models: int) -> torch.Tensor:
    """The standard deviation of the initial weights of each model, float64 `[n_models]`.

    `init` is one of

    * `"xavier"`: √(2/(n+m)), Xavier-normal (Glorot & Bengio 2010) of each model by itself;
    * `"xavier_stacked_features_hidden"`: √(2/(m(n+I))), Xavier-normal of the stacked tensor [I, n, m], I =
      n_models;
    * `"xavier_stacked_hidden_features"`: √(2/(n(m+I))), likewise of [I, m, n];
    * a number ≥ 0, or one for each model, `[n_models]`.

    To reproduce one model of a published stack of 10, pass the number: `init=float(initial_std(name, n, m,
    10)[0])`. ValueError or TypeError for anything else.

    >>> initial_std("xavier", n_features=5, n_hidden=2, n_models=1).round(decimals=4)
    tensor([0.5345], dtype=torch.float64)
    >>> float(initial_std("xavier_stacked_features_hidden", 5, 2, n_models=10)[0].round(decimals=4))
    0.2582
    """
    n_features, n_hidden = check_size("n_features", n_features), check_size("n_hidden", n_hidden)
    n_models = check_size("n_models", n_models)
    check_free_memory(f"init of n_models={n_models:,}", 8 * n_models, "take fewer models")
    if isinstance(init, str):
        name = check_choice("init", init, INITIALIZATIONS)
        if name == "xavier":
            std = math.sqrt(2 / (n_features + n_hidden))
        elif name == "xavier_stacked_features_hidden":
            std = math.sqrt(2 / (n_hidden * (n_features + n_models)))
        else:
            std = math.sqrt(2 / (n_features * (n_hidden + n_models)))
        return torch.full((n_models,), std, dtype=torch.float64, device="cpu")
    if init is None or isinstance(init, bool):
        allowed = ", ".join(map(repr, INITIALIZATIONS))
        raise TypeError(f"init must be one of {allowed}, or a standard deviation, not {describe(init)}")
    stds = broadcast_per_model("init", init, n_models, torch.float64)
    if bool((stds < 0).any()):
        first = int((stds < 0).nonzero()[0])
        raise ValueError(
            f"init (a standard deviation) must be at least 0, not {stds[first].item()} (model {first})"
        )
    return stds


def initial_weights(
    shape: tuple[int, ...], seed: torch.Tensor, std: torch.Tensor, member: int
) -> torch.Tensor:
    """Initial values of one stacked parameter, float32 CPU `[models, *shape]`.

    `seed` int64 `[models]`, `std` `[models]` (rounded to single precision), `member` the number of the
    parameter. Draw i of a model fills the flat index i of its tensor.

    >>> initial_weights((2, 5), torch.tensor([0, 1]), torch.tensor([0.1, 0.1]), member=0).shape
    torch.Size([2, 2, 5])
    """
    if not bool(std.any()):
        return torch.zeros((len(seed), *shape), dtype=torch.float32, device="cpu")
    draws = normal(seed.numpy(), math.prod(shape), member=member)
    draws *= std.numpy().astype(np.float32)[:, None]
    return torch.from_numpy(draws).reshape(len(seed), *shape)
