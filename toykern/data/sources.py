"""What a training may draw its samples from: a stream of features, or a finite dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures, features_from_config

Source: TypeAlias = SparseFeatures | Dataset
"""Both say `n_features`, `n_outputs`, `n_models`, `config()`, `arrays()` and `row(i)` of themselves."""


def check_target_of(data: Source, target: str) -> None:
    """ValueError where `data` says itself what is to be given, and `target` would pass over that.

    >>> check_target_of(Dataset(torch.eye(3), labels=[0, 2, 1]), "abs")
    Traceback (most recent call last):
      ...
    ValueError: target must be 'identity' where data has labels, not 'abs'
    """
    if isinstance(data, Dataset):
        own = "labels" if data.label is not None else "targets" if data.target is not None else None
    else:
        own = None if data.projection is None else "a projection"
    if own is None or target == "identity" or (own == "targets" and target == "abs"):
        return
    allowed = "'identity' or 'abs'" if own == "targets" else "'identity'"
    raise ValueError(f"target must be {allowed} where data has {own}, not {target!r}")


def source_from_config(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Source:
    """What `config()` described, with its `arrays()`.

    >>> data = Dataset(torch.eye(3))
    >>> source_from_config(data.config(), data.arrays())
    Dataset(3 samples of n_features=3, shared by all models)
    """
    if "dataset" in config:
        return Dataset.from_config(config, arrays)
    return features_from_config(config, arrays)
