"""Which way models are trained and evaluated where they are: by kernels of ours, or by batched products.

The CPU's kernels take everything. A CUDA device's take what `beyond_kernels` does not name; the rest goes by
batched products (`toykern.training.batched`). This is the one place that chooses.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.network.specification import NetworkSpec
from toykern.nn.kinds import AnyModel
from toykern.training.batched import BatchedResident, evaluate_batched
from toykern.training.kernels import Resident, device_of, evaluate_models
from toykern.training.optim import Optimizer
from toykern.training.settings import Settings

AnyResident: TypeAlias = Resident | BatchedResident

KERNELS, BATCHED = "kernels", "batched products"


def way_of(device: torch.device, asked: list[str]) -> str:
    """`KERNELS` or `BATCHED`, for what `beyond_kernels` names.

    >>> way_of(torch.device("cuda", 0), ["loss"]), way_of(torch.device("cpu"), ["loss"])
    ('batched products', 'kernels')
    """
    return BATCHED if device.type == "cuda" and asked else KERNELS


def beyond_kernels(
    network: NetworkSpec, data: Source, l1: torch.Tensor | float | None, optimizer: Optimizer | None = None
) -> list[str]:
    """The names of what is asked that no CUDA kernel of ours takes, as arguments and options have them.

    >>> from toykern.data import SparseFeatures
    >>> network = NetworkSpec(n_features=5, n_hidden=3, hidden_bias=True)
    >>> beyond_kernels(network, SparseFeatures(5, active=2), l1=0.1)
    ['hidden_bias', 'l1', 'active']
    """
    has_l1 = l1 is not None and bool(torch.as_tensor(l1, device="cpu").any())
    found = list(network.without_kernels(has_l1))
    if isinstance(data, Dataset):
        found.append("data")
    else:
        joint = "active" if data.active is not None else "dependence"
        found += [] if data.drawn_on_devices else [joint]
        found += [] if data.projection is None else ["projection"]
    return found if optimizer is None else found + optimizer.without_kernels()


def trainer_of(model: AnyModel, data: Source, settings: Settings) -> dict[str, Any]:
    """What a run's provenance says: "trainer", `KERNELS` or `BATCHED`, and, of the latter, "trainer_because",
    what of it no kernel takes."""
    device, asked = device_of(model), []
    if device.type == "cuda":
        asked = beyond_kernels(settings.network(model), data, settings.l1, settings.optimizer)
    way = way_of(device, asked)
    return {"trainer": way} | ({"trainer_because": asked} if way == BATCHED else {})


def resident_of(
    model: AnyModel, data: Source, settings: Settings, way: str | None = None, **arrays: Any
) -> AnyResident:
    """What trains the models of a run: `arrays` are those of `Resident`; `way` stands for that chosen."""
    if way is None:
        way = trainer_of(model, data, settings)["trainer"]
    kind = BatchedResident if way == BATCHED else Resident
    return kind(model, data, settings, **arrays)


def evaluated(model: AnyModel, data: Source, way: str | None = None, **settings: Any) -> torch.Tensor:
    """The losses that `evaluate` returns: `settings` are those of `evaluate_models`. `way` stands for that
    chosen."""
    if way is None:
        device, asked = device_of(model), []
        if device.type == "cuda":
            network = model.network.trained_for(settings["objective"])
            asked = beyond_kernels(network, data, settings.get("l1"))
        way = way_of(device, asked)
    return (evaluate_batched if way == BATCHED else evaluate_models)(model, data, **settings)
