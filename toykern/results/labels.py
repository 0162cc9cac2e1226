"""The arrays of a run as people see them: what was trained, and the names of dimensions."""

from __future__ import annotations

from torch import Tensor

from toykern.network.specification import NetworkSpec
from toykern.training.records import records_of
from toykern.training.state import TrainingState


def trained_arrays(run: TrainingState) -> dict[str, Tensor]:
    """What was trained, `[models, …]` each: the parameters, of sparse models with the zeros of "weight", and
    "connections", bool, which exist."""
    return run.model.trained_arrays()


def trailing_dims(name: str, count: int, network: NetworkSpec) -> tuple[str, ...]:
    """Names of the `count` dimensions after the models (and records) of the array called `name`, of models of
    this network."""
    named = {tensor.name: tensor.dims for tensor in (*network.tensors, *network.fixed)}
    if name in named and len(named[name]) == count:
        return named[name]
    record = records_of(network).get(name)
    if record is not None and len(record.dims) == count:
        return record.dims
    return tuple(f"{name}_dim_{k}" for k in range(count))
