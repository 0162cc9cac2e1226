"""Loss on fresh data, resident: what to compare models by."""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.broadcast import Values, broadcast_importance, broadcast_l1, broadcast_seed
from toykern.arguments.errors import check_choice, check_int
from toykern.data.dataset import Dataset
from toykern.data.philox import MAX_STEP
from toykern.data.sources import Source, check_target_of
from toykern.network.losses import Objective
from toykern.nn.kinds import AnyModel
from toykern.training.kernels import check_data, check_model
from toykern.training.settings import check_objective_of
from toykern.training.stratified import stratified_loss
from toykern.training.ways import evaluated

METHODS = ("samples", "stratified")

_BATCH = 4096


def evaluate(
    model: AnyModel,
    data: Source,
    samples: int = 65_536,
    seed: Values | None = None,
    importance: Values = 1.0,
    target: str = "identity",
    loss_reduction: str = "mean",
    method: str = "samples",
    loss: str = Objective.loss,
    l1: Values = 0.0,
) -> torch.Tensor:
    """Each model's loss over `samples` samples of a stream that training never draws from.

    Choosing the best of many seeds by the last training batches would choose by their noise. Where features
    are rare, so would a loss over random samples: solutions differ in samples with two active features, a
    share of p², of which 10⁵ samples have ten at p = 0.01. `method="stratified"` sorts samples by how many
    features are active, weights each number by its exact probability and lists the patterns of few active
    ones (`toykern.training.stratified`).

    Args:
        model: a `TiedAutoencoder`, an `Autoencoder`, an `MLP` or a `SparseTiedAutoencoder`.
        data: the distribution; or a `Dataset`, all of whose samples are then taken, each once, whatever
            `samples` and `seed` say.
        samples: how many; "samples" rounds up to whole batches of 4,096 where it is larger than one,
            "stratified" takes about as many at most.
        seed: int, or `[models]`. One seed for all compares models on the same samples. None means 0 …
            models−1 with "samples", and 0 for all with "stratified", which is quickest so.
        importance, target, loss_reduction: as in `toykern.fit`.
        method: "samples", random samples as training draws them; or "stratified", to choose the best where
            features are rare or few. The standard error for trained models and the default of `samples`,
            in percent of the loss:

            | n → m, density | "samples" | "stratified" |
            |---|---|---|
            | 2 → 1, 0.01 | 34 | 0.0002 |
            | 3 → 2, 0.01 | 50 | 0.007 |
            | 5 → 2, 0.01 | 5 | 0.003 |
            | 5 → 2, 0.3 | 0.8 | 0.004 |
            | 10 → 5, 0.03 | 9 | 0.16 |
            | 20 → 5, 0.01 | 3 | 0.05 |
            | 20 → 5, 0.1 | 0.4 | 0.16 |
            | 20 → 10, 0.5 | 0.4 | 0.5 |

            Where many features are active at a time the two are alike, and "samples" is quicker.
        loss, l1: as in `toykern.fit`; "batch_cross_entropy" is of a whole batch, so not for "stratified".

    Returns:
        float64 `[models]`, the same bits for a model whatever stands beside it; but for what a CUDA device
        evaluates by batched products (`toykern.fit` says what), which has no promise about bits.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; among them data of more than 4,096
            features and groups with "stratified", and a `Dataset` with it.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=2, n_hidden=1, n_models=3)
        >>> tk.evaluate(model, tk.SparseFeatures(2, 0.1), samples=100, seed=0).shape
        torch.Size([3])
    """
    check_model(model, "evaluate")
    check_data(data, model)
    samples = check_int("samples", samples, minimum=1, maximum=_BATCH * MAX_STEP)
    check_choice("method", method, METHODS)
    if seed is None and method == "stratified":
        seed = 0
    settings: dict[str, Any] = {
        "seed": broadcast_seed("seed", seed, model.n_models),
        "importance": broadcast_importance(
            importance, model.n_models, model.n_outputs, width=model.output_width
        ),
        "objective": Objective(target, loss_reduction, loss),
    }
    settings["objective"].check_objective()
    prices = broadcast_l1(l1, model.n_models)
    check_target_of(data, check_objective_of(model, settings["objective"], prices))
    if not isinstance(prices, float):
        settings["l1"] = prices
    elif prices:
        settings["l1"] = torch.full((model.n_models,), prices, dtype=torch.float64, device="cpu")
    if isinstance(data, Dataset):
        if method == "stratified":
            raise ValueError(
                "method='stratified' is for a SparseFeatures; of a Dataset all samples are taken"
            )
        return evaluated(model, data, batches=1, batch_size=None, **settings)
    if method == "stratified":
        return stratified_loss(model, data, samples=samples, **settings)
    batch_size = min(samples, _BATCH)
    return evaluated(model, data, batches=-(-samples // batch_size), batch_size=batch_size, **settings)
