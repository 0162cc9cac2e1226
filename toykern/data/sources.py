"""What a training may draw its samples from: a stream of features, or a finite dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures, features_from_config

Source: TypeAlias = SparseFeatures | Dataset
"""Both say `n_features`, `n_models`, `config()`, `arrays()` and `row(i)` of themselves."""


def source_from_config(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Source:
    """What `config()` described, with its `arrays()`.

    >>> data = Dataset(torch.eye(3))
    >>> source_from_config(data.config(), data.arrays())
    Dataset(3 samples of n_features=3, shared by all models)
    """
    if "dataset" in config:
        return Dataset.from_config(config, arrays)
    return features_from_config(config, arrays)
