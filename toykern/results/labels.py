"""The arrays of a run as people see them: what was trained, and the names of dimensions."""

from __future__ import annotations

from torch import Tensor

from toykern.network.specification import TENSORS
from toykern.training.state import TrainingState

_DIMENSIONS = {tensor.name: tensor.dims for tensor in TENSORS}


def trained_arrays(run: TrainingState) -> dict[str, Tensor]:
    """What was trained, `[models, …]` each: the parameters, of sparse models with the zeros of "weight", and
    "connections", bool, which exist."""
    return run.model.trained_arrays()


def trailing_dims(name: str, count: int) -> tuple[str, ...]:
    """Names of the `count` dimensions after the models (and records) of the array called `name`."""
    if name in _DIMENSIONS and len(_DIMENSIONS[name]) == count:
        return _DIMENSIONS[name]
    if name == "feature_dimensionality" and count == 1:
        return ("feature",)
    return tuple(f"{name}_dim_{k}" for k in range(count))
