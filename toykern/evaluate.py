"""Loss on fresh data, resident: what to compare models by."""

from __future__ import annotations

from typing import Any

import torch

from toykern.broadcast import broadcast_importance, broadcast_seed
from toykern.data.features import SparseFeatures
from toykern.errors import check_choice, check_positive_int
from toykern.nn.stacked import LOSS_REDUCTIONS, TARGETS
from toykern.resident import AnyModel, check_data, check_model, evaluate_models

_BATCH = 4096


def evaluate(
    model: AnyModel,
    data: SparseFeatures,
    samples: int = 65_536,
    seed: Any = None,
    importance: Any = 1.0,
    target: str = "identity",
    loss_reduction: str = "mean",
) -> torch.Tensor:
    """Each model's loss over `samples` samples of a stream that training never draws from.

    Choosing the best of many seeds by the last training batches would choose by their noise.

    Args:
        model: a `TiedAutoencoder`, an `Autoencoder` or a `SparseTiedAutoencoder`.
        data: the distribution.
        samples: how many; rounded up to whole batches of 4,096 where it is larger than one.
        seed: int, or `[models]`; None means 0 … models−1. One seed for all compares models on the same
            samples.
        importance, target, loss_reduction: as in `toykern.fit`.

    Returns:
        float64 `[models]`.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=2, n_hidden=1, n_models=3)
        >>> tk.evaluate(model, tk.SparseFeatures(2, 0.1), samples=100, seed=0).shape
        torch.Size([3])
    """
    check_model(model, "evaluate")
    check_data(data, model)
    samples = check_positive_int("samples", samples)
    batch_size = min(samples, _BATCH)
    return evaluate_models(
        model,
        data,
        batches=-(-samples // batch_size),
        batch_size=batch_size,
        seed=broadcast_seed("seed", seed, model.n_models),
        importance=broadcast_importance(importance, model.n_models, model.n_features),
        target=check_choice("target", target, TARGETS),
        loss_reduction=check_choice("loss_reduction", loss_reduction, LOSS_REDUCTIONS),
    )
