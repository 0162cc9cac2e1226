"""The settings of a run: what `fit` is told, checked in one place for new, resumed and loaded runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toykern import metrics
from toykern.arguments.errors import check_choice, check_dense_tensor, check_int, describe
from toykern.arguments.grids import Grid
from toykern.arguments.memory import check_free_memory
from toykern.data.features import MAX_STEP
from toykern.nn.stacked import LOSS_REDUCTIONS, TARGETS
from toykern.sparse.config import recipe_config
from toykern.sparse.recipe import Recipe
from toykern.training.kernels import AnyModel
from toykern.training.optim import Optimizer
from toykern.training.schedule import Schedule, multipliers

METRICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "features_per_dimension": metrics.features_per_dimension,
    "feature_dimensionality": metrics.feature_dimensionality,
    "superposition": metrics.superposition,
}
"""What `record` may name beside the loss: functions of the weights `[models, n_hidden, n_features]`."""

FEATURE_METRICS = ("feature_dimensionality", "superposition")
"""Those with a value for each feature, `[models, n_features]`; the others have one for each model."""

TOPOLOGY_METRICS = ("density", "explored")
"""What `record` may name where models are sparse: the fraction of connections that exist, or ever did."""

MAX_BATCH = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """What has been checked, in the form that the rest of `fit` takes.

    Attributes:
        steps, batch_size, record_every: whole numbers, at least 1.
        record: names without repetition, "loss" first.
        snapshots: steps in order, without repetition.
    """

    steps: int
    batch_size: int
    record_every: int
    record: tuple[str, ...]
    snapshots: list[int]

    @property
    def n_records(self) -> int:
        """How many records a run of these settings has; the last may be shorter than the others."""
        return -(-self.steps // self.record_every)


def check_settings(
    *,
    model: AnyModel,
    steps: Any,
    batch_size: Any,
    optimizer: Any,
    target: Any,
    schedule: Schedule | None,
    loss_reduction: Any,
    record_every: Any,
    record: Any,
    snapshots: Any,
    grid: Any,
    tracks_explored: bool,
) -> Settings:
    """The settings of a run of `model`, or TypeError or ValueError by the name of the one that is wrong.

    `model` has been checked already; `tracks_explored` says whether a recipe that does is at work. A
    `schedule` of None is not looked at: it stands for a callable that a store could not hold.
    `record_every` None is max(1, steps // 100).
    """
    steps = check_int("steps", steps, minimum=1, maximum=MAX_STEP)
    batch_size = check_int("batch_size", batch_size, minimum=1, maximum=MAX_BATCH)
    if not isinstance(optimizer, Optimizer) or type(optimizer) is Optimizer:
        raise TypeError(f"optimizer must be a toykern SGD, Adam or AdamW, not {describe(optimizer)}")
    optimizer.per_model(model.n_models)
    check_choice("target", target, TARGETS)
    check_choice("loss_reduction", loss_reduction, LOSS_REDUCTIONS)
    if schedule is not None:
        multipliers(schedule, steps, 0, 1)
    every = max(1, steps // 100) if record_every is None else check_int("record_every", record_every, 1)
    names = check_record(record)
    _check_topology_metrics(names, model, tracks_explored)
    kept = check_snapshots(snapshots, steps)
    if grid is not None and (not isinstance(grid, Grid) or grid.n_models != model.n_models):
        raise ValueError(f"grid must be a Grid of {model.n_models} models, not {describe(grid)}")
    return Settings(steps, batch_size, every, names, kept)


def check_memory(model: AnyModel, settings: Settings, *, state_names: Sequence[str]) -> None:
    """MemoryError, before anything is allocated, if what the run keeps on the CPU would not fit there."""
    models, network = model.n_models, model.network
    n = network.n_features
    values = sum(n if name in FEATURE_METRICS else 1 for name in settings.record)
    weights = 4 * models * sum(math.prod(network.shape(tensor)) for tensor in network.parameters)
    connections = models * n * network.n_hidden if network.sparse else 0
    copies = len(settings.snapshots) + 1  # the initial weights are kept too
    needed = 4 * models * settings.n_records * values
    needed += copies * (weights + connections) + len(state_names) * weights
    check_free_memory(
        f"what the run keeps ({settings.n_records:,} records of {', '.join(settings.record)}, "
        f"{len(settings.snapshots):,} snapshots and the optimiser's state, for {models:,} models)",
        needed,
        "a larger record_every, fewer snapshots or fewer models need less",
    )


def topology_config(recipe: Recipe) -> dict[str, Any]:
    """The recipe for a run's config; its seeds are in the run's arrays."""
    own = {"seed": None if recipe.seed is None else "own"}
    return {"recipe": recipe_config(recipe), **own}


def check_record(record: Any) -> tuple[str, ...]:
    """The names of what to record, "loss" first and each once; TypeError or ValueError for others."""
    if isinstance(record, str) or not isinstance(record, Iterable):
        raise TypeError(f"record must be a sequence of names such as ('loss',), not {describe(record)}")
    names = [check_choice("record", name, ["loss", *METRICS, *TOPOLOGY_METRICS]) for name in record]
    return tuple(dict.fromkeys(["loss", *names]))


def check_snapshots(snapshots: Any, steps: int) -> list[int]:
    """The steps of snapshots in order, each once; TypeError or ValueError for what is no step of the run."""
    if isinstance(snapshots, str) or not isinstance(snapshots, Iterable):
        raise TypeError(f"snapshots must be a sequence of steps, not {describe(snapshots)}")
    if isinstance(snapshots, torch.Tensor):
        check_dense_tensor("snapshots", snapshots)  # the numbers in it, not tensors of no dimension
        snapshots = snapshots.tolist() if snapshots.ndim == 1 else [snapshots]
    return sorted({check_int("snapshots", t, minimum=0, maximum=steps) for t in snapshots})


def _check_topology_metrics(names: Sequence[str], model: AnyModel, tracks_explored: bool) -> None:
    if "density" in names and not model.network.sparse:
        raise ValueError(f"record: 'density' is of sparse models, not of {type(model).__name__}")
    if "explored" in names and not tracks_explored:
        raise ValueError("record: 'explored' needs topology=, a recipe with track_explored=True")
