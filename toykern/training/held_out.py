"""The dataset on which a training is looked at, `fit(test=…)`: its check, its place in what a run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toykern.arguments.errors import describe
from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures
from toykern.data.sources import check_target_of
from toykern.network.specification import NetworkSpec

_HERE, _ITS_OWN = "test/", "data/"  # before the names of its arrays: in a run, and as the dataset gives them


def check_held_out(test: Any, n_models: int, network: NetworkSpec) -> None:
    """TypeError or ValueError where `test` is no dataset that these models can be looked at on.

    >>> check_held_out(Dataset(torch.eye(4)), 2, NetworkSpec(n_features=5, n_hidden=2))
    Traceback (most recent call last):
      ...
    ValueError: test has n_features = 4, the model has 5
    """
    if not isinstance(test, Dataset):
        more = "; SparseFeatures.dataset makes one of a stream" if isinstance(test, SparseFeatures) else ""
        raise TypeError(f"test must be a Dataset, not {describe(test)}{more}")
    if test.n_features != network.n_features:
        raise ValueError(f"test has n_features = {test.n_features}, the model has {network.n_features}")
    if test.n_models not in (None, n_models):
        raise ValueError(f"test has samples for {test.n_models} models, the model stacks {n_models}")
    try:
        check_target_of(test, network)
    except ValueError as error:
        raise ValueError(f"test: {error}") from error


def held_out_arrays(test: Dataset | None) -> dict[str, torch.Tensor]:
    """All that is in it, by the names that runs and stores have for it."""
    held = {} if test is None else test.arrays()
    return {_HERE + name.removeprefix(_ITS_OWN): tensor for name, tensor in held.items()}


def held_out_from(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Dataset | None:
    """That in a run's config and arrays; None where it has none."""
    if "test" not in config:
        return None
    own = {_ITS_OWN + n.removeprefix(_HERE): held for n, held in arrays.items() if n.startswith(_HERE)}
    return Dataset.from_config(config["test"], own)
