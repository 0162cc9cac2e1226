"""What a training may draw its samples from: a stream of features, or a finite dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures, features_from_config
from toykern.network.specification import NetworkSpec

Source: TypeAlias = SparseFeatures | Dataset
"""Both say `n_features`, `n_outputs`, `n_models`, `config()`, `arrays()`, `row(i)` and `of_models(…)` of
themselves."""


def check_target_of(data: Source, network: NetworkSpec) -> None:
    """ValueError where `data` does not say of each output of the network what it is to be, or where it says
    so itself and the network's target would pass over that; labels out of range among it.

    >>> data = Dataset(torch.eye(3), labels=[0, 2, 1])
    >>> check_target_of(data, NetworkSpec(n_features=3, n_hidden=2, n_outputs=2))
    Traceback (most recent call last):
      ...
    ValueError: labels must be from 0 to n_outputs − 1 = 1, not 2 (sample 1)
    """
    if isinstance(data, Dataset):
        own = "labels" if data.label is not None else None if data.target is None else "targets"
    else:
        own = None if data.projection is None else "a projection"
    if own in ("labels", "a projection") and network.target != "identity":
        raise ValueError(f"target must be 'identity' where data has {own}, not {network.target!r}")
    if isinstance(data, Dataset) and data.label is not None:
        data.check_labels(network.n_outputs)
    else:
        network.check_target(None if own is None else data.n_outputs)


def source_from_config(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Source:
    """What `config()` described, with its `arrays()`.

    >>> data = Dataset(torch.eye(3))
    >>> source_from_config(data.config(), data.arrays())
    Dataset(3 samples of n_features=3, shared by all models)
    """
    if "dataset" in config:
        return Dataset.from_config(config, arrays)
    return features_from_config(config, arrays)
