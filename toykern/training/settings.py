"""The settings of a run: what `fit` is told, checked in one place for new, resumed and loaded runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toykern.arguments.broadcast import broadcast_importance, broadcast_l1, broadcast_seed
from toykern.arguments.errors import check_dense_tensor, check_int, describe
from toykern.arguments.grids import Grid
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset import Dataset
from toykern.data.philox import MAX_STEP
from toykern.data.sources import Source, check_target_of, source_from_config
from toykern.network.losses import Objective
from toykern.network.specification import NetworkSpec
from toykern.nn.kinds import AnyModel
from toykern.sparse.config import recipe_config
from toykern.sparse.recipe import Recipe
from toykern.training.held_out import check_held_out, held_out_arrays, held_out_from
from toykern.training.optim import (
    PER_MODEL,
    Optimizer,
    optimizer_from_config,
    rate_names,
    told_rate,
    without_rates,
)
from toykern.training.records import Asked, check_record, check_records, values_per_model
from toykern.training.schedule import Schedule, multipliers, schedule_config, schedule_from_config

MAX_BATCH = 2**31 - 1

BATCH_SIZE = 1024
"""Of a stream, where none is given."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """All that a run is told beside its models, by the names of `fit`'s arguments.

    As they are given; `check` makes of them what they are for some models. What a run keeps of them is
    `config` and `arrays`, and `from_config` is the way back.
    """

    data: Source
    steps: Any
    batch_size: Any
    optimizer: Optimizer
    importance: Any = 1.0
    seed: Any = None
    target: str = "identity"
    schedule: Schedule | None = "constant"
    loss_reduction: str = "mean"
    record_every: Any = None
    record: Any = ("loss",)
    snapshots: Any = ()
    grid: Grid | None = None
    topology: Recipe | None = None
    loss: str = Objective.loss
    l1: Any = 0.0
    test: Dataset | None = None

    def check(self, model: AnyModel, tracks_explored: bool | None = None) -> Settings:
        """The same with numbers checked, records and snapshots in order, and seed and importance as tensors;
        TypeError or ValueError by the name of the one that is wrong.

        `model` and `data` have been checked already. `tracks_explored` says whether a recipe that does is at
        work where `topology` does not. A `schedule` of None is not looked at: it stands for a callable that
        a store could not hold. `record_every` None is max(1, steps // 100).
        """
        steps = check_int("steps", self.steps, minimum=1, maximum=MAX_STEP)
        batch_size = self.batch_size
        if batch_size is None and not isinstance(self.data, Dataset):
            batch_size = BATCH_SIZE
        if batch_size is not None:  # None: every step sees the whole dataset
            batch_size = check_int("batch_size", batch_size, minimum=1, maximum=MAX_BATCH)
        if not isinstance(self.optimizer, Optimizer) or type(self.optimizer) is Optimizer:
            raise TypeError(
                f"optimizer must be a toykern SGD, Adam, AdamW, LAMB or SGLD, not {describe(self.optimizer)}"
            )
        self.optimizer.check_for(model.network, model.n_models)
        self.objective.check_objective()
        l1 = broadcast_l1(self.l1, model.n_models)
        network = check_objective_of(model, self.objective, l1)
        check_target_of(self.data, network)
        if self.schedule is not None:
            multipliers(self.schedule, steps, 0, 1)
        every = max(1, steps // 100)
        if self.record_every is not None:
            every = check_int("record_every", self.record_every, 1)
        names = check_record(self.record, network)
        if tracks_explored is None:
            tracks_explored = self.topology is not None and self.topology.track_explored
        if self.test is not None:
            check_held_out(self.test, model.n_models, network)
        check_records(names, Asked(network, type(model).__name__, self.data, self.test, tracks_explored))
        kept = check_snapshots(self.snapshots, steps)
        if self.grid is not None and (
            not isinstance(self.grid, Grid) or self.grid.n_models != model.n_models
        ):
            raise ValueError(f"grid must be a Grid of {model.n_models} models, not {describe(self.grid)}")
        return dataclasses.replace(
            self,
            steps=steps,
            batch_size=batch_size,
            record_every=every,
            record=names,
            snapshots=kept,
            seed=broadcast_seed("seed", self.seed, model.n_models),
            importance=broadcast_importance(
                self.importance, model.n_models, network.n_outputs, width=model.output_width
            ).clone(),
            l1=l1,
        )

    @property
    def objective(self) -> Objective:
        """What the models are trained for."""
        return Objective(self.target, self.loss_reduction, self.loss)

    def network(self, model: AnyModel) -> NetworkSpec:
        """What each of these models is, and what it is trained for."""
        return model.network.trained_for(self.objective)

    @property
    def n_records(self) -> int:
        """How many records a run of these settings has; the last may be shorter than the others."""
        return -(-self.steps // self.record_every)

    def config(self) -> dict[str, Any]:
        """JSON-able: what a run's config says beside its model. What is given per model is in `arrays`."""
        assert self.schedule is not None
        described = {
            "data": self.data.config(),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer.config(),
            "schedule": schedule_config(self.schedule),
            "target": self.target,
            "loss_reduction": self.loss_reduction,
            "record_every": self.record_every,
            "record": list(self.record),
            "snapshots": list(self.snapshots),
        }
        if self.loss != Objective.loss:  # which stores that are older than the choice do not name
            described["loss"] = self.loss
        if self.test is not None:
            described["test"] = self.test.config()
        if self._has_l1:
            described["l1"] = PER_MODEL if isinstance(self.l1, torch.Tensor) else self.l1
        return described | ({} if self.topology is None else {"topology": topology_config(self.topology)})

    def arrays(self, n_models: int) -> dict[str, torch.Tensor]:
        """What is given per model, `[n_models, …]` or one row for all of them."""
        return {
            "seed": self.seed,
            "importance": self.importance,
            **self.optimizer.arrays(n_models),
            **({"l1": self._l1_of(n_models)} if self._has_l1 else {}),
            **self.data.arrays(),
            **held_out_arrays(self.test),
        }

    @property
    def _has_l1(self) -> bool:
        """Whether what a run keeps says something of it: in all chunks of a sweep where it is per model."""
        return isinstance(self.l1, torch.Tensor) or self.l1 != 0

    def _l1_of(self, n_models: int) -> torch.Tensor:
        """float64 `[n_models]`."""
        return torch.as_tensor(self.l1, dtype=torch.float64, device="cpu").expand(n_models).contiguous()

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        arrays: dict[str, torch.Tensor],
        *,
        data: Source | None = None,
        test: Dataset | None = None,
        schedule: Schedule | None = None,
        topology: Recipe | None = None,
        grid: Grid | None = None,
    ) -> Settings:
        """The settings of a run with this config and these arrays.

        `data` and `test` are those described, where they are at hand. `schedule` is needed where it was a
        callable (else it stays None), `topology` where there is a recipe: neither can be made of its
        description. Rates of the optimizer are the arrays', as numbers where they are still those described.
        """
        described = config["optimizer"]
        told = {name: told_rate(described, name) for name in rate_names(described)}
        given = {
            name: arrays[name]
            for name, rate in told.items()
            if rate == PER_MODEL or not bool((arrays[name] == rate).all())
        }
        if schedule is None and config["schedule"]["name"] != "callable":
            schedule = schedule_from_config(config["schedule"])
        same = ("steps", "batch_size", "target", "loss_reduction", "record_every")
        return cls(
            data=source_from_config(config["data"], arrays) if data is None else data,
            optimizer=optimizer_from_config(described, **given),
            importance=arrays["importance"],
            seed=arrays["seed"],
            schedule=schedule,
            record=tuple(config["record"]),
            snapshots=tuple(config["snapshots"]),
            grid=grid,
            topology=topology,
            loss=config.get("loss", Objective.loss),
            l1=l1_from(config, arrays),
            test=held_out_from(config, arrays) if test is None else test,
            **{name: config[name] for name in same},
        )

    def row(self, i: int) -> Settings:
        """Those of model `i` alone: one row of everything that is given per model; without the grid."""

        def of(values: Any) -> Any:
            whole = isinstance(values, torch.Tensor) and len(values) == len(self.seed)
            return values[i : i + 1] if whole else values

        described, rates = self.optimizer.config(), self.optimizer.arrays(len(self.seed))
        own = [n for n in rates if n in ("lr", "weight_decay") or told_rate(described, n) == PER_MODEL]
        return dataclasses.replace(
            self,
            data=self.data.row(i),
            test=None if self.test is None else self.test.row(i),
            optimizer=optimizer_from_config(described, **{name: rates[name][i : i + 1] for name in own}),
            seed=of(self.seed),
            importance=of(self.importance),
            l1=of(self.l1),
            grid=None,
            topology=None
            if self.topology is None
            else dataclasses.replace(self.topology, seed=of(self.topology.seed)),
        )

    def differences(self, other: Settings) -> list[str]:
        """The names of settings in which two runs of as many models differ; both have been checked. Recipes
        are not looked at, nor are schedules of which one is a callable that is not there any more."""
        n_models = len(self.seed)
        ours, theirs = (
            {"optimizer_rates": s.optimizer.arrays(n_models), "seed": {"seed": s.seed},
             "importance": {"importance": s.importance.expand(n_models, -1)},
             "l1": {"l1": s._l1_of(n_models)}}
            for s in (self, other)
        )  # fmt: skip
        unlike = {name for name in ours if not _equal(ours[name], theirs[name])}
        if not _equal(self.data.arrays(), other.data.arrays()):
            unlike.add("data")
        if not _equal(held_out_arrays(self.test), held_out_arrays(other.test)):
            unlike.add("test")

        def described(settings: Settings) -> dict[str, Any]:
            # A schedule that is not there any more is like every other.
            whole = settings if None not in (self.schedule, other.schedule) else _without_schedule(settings)
            config = whole.config() | {"grid": None if settings.grid is None else settings.grid.config()}
            config.pop("l1", None)
            config["optimizer"] = without_rates(config["optimizer"])
            return config

        of_arrays = {"optimizer_rates": "optimizer"}
        found = {of_arrays.get(name, name) for name in unlike}
        found |= set(described_differences(described(self), described(other))) - {"topology"}
        return [field.name for field in dataclasses.fields(self) if field.name in found]


def check_objective_of(model: AnyModel, objective: Objective, l1: torch.Tensor | float) -> NetworkSpec:
    """What each model is and is trained or evaluated for; ValueError for what it cannot be."""
    network = model.network.trained_for(objective)
    network.check_loss()
    has_l1 = bool(l1.any()) if isinstance(l1, torch.Tensor) else l1 != 0
    unknown = network.untrained(has_l1)
    if unknown:
        given = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        raise ValueError(
            f"the kernels have no {given} for this model: that is not of a {type(model).__name__}"
        )
    return network


def l1_from(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Any:
    """The weight of the codes' L1 norm in a run's config and arrays, as a number where it is still that."""
    told = config.get("l1", 0.0)
    if "l1" not in arrays or (told != PER_MODEL and bool((arrays["l1"] == told).all())):
        return told
    return arrays["l1"]


def _equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _without_schedule(settings: Settings) -> Settings:
    return dataclasses.replace(settings, schedule="constant")


def described_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The names of entries in which two descriptions of settings differ, those that one of them lacks among
    them.

    >>> described_differences({"steps": 3, "target": "abs"}, {"steps": 4, "target": "abs", "record": []})
    ['steps', 'record']
    """
    return [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]


def check_memory(model: AnyModel, settings: Settings, *, state_names: Sequence[str]) -> None:
    """MemoryError, before anything is allocated, if what the run keeps on the CPU would not fit there."""
    models, network = model.n_models, model.network
    n = network.n_features
    values = values_per_model(settings.record, network)
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


def check_snapshots(snapshots: Any, steps: int) -> list[int]:
    """The steps of snapshots in order, each once; TypeError or ValueError for what is no step of the run."""
    if isinstance(snapshots, str) or not isinstance(snapshots, Iterable):
        raise TypeError(f"snapshots must be a sequence of steps, not {describe(snapshots)}")
    if isinstance(snapshots, torch.Tensor):
        check_dense_tensor("snapshots", snapshots)  # the numbers in it, not tensors of no dimension
        snapshots = snapshots.tolist() if snapshots.ndim == 1 else [snapshots]
    return sorted({check_int("snapshots", t, minimum=0, maximum=steps) for t in snapshots})
