"""What may be said beside `fit(resume=run)`: what the run was begun with, and how much longer it is to be."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch

from toykern.arguments.broadcast import broadcast_importance, broadcast_l1, broadcast_seed
from toykern.arguments.errors import describe
from toykern.arguments.grids import Grid
from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures
from toykern.fitting.longer import check_longer_snapshots
from toykern.native.devices import arch_of
from toykern.nn.kinds import has_connections
from toykern.results.run import Run
from toykern.training.optim import Optimizer
from toykern.training.records import check_record
from toykern.training.resident_topology import ResidentTopology, check_recipe
from toykern.training.schedule import schedule_config
from toykern.training.settings import topology_config

_AS_GIVEN = (
    "data", "optimizer", "grid", "schedule", "batch_size", "target", "loss_reduction", "record_every",
    "loss", "test",
)  # fmt: skip


def check_resume(
    run: Run, given: dict[str, Any], importance: Any, record: Any, snapshots: Any, steps: int, l1: Any
) -> list[int]:
    """Check that what is given beside `resume` is what the run was begun with.

    Returns the snapshots of the run when it is `steps` long. ValueError or TypeError by name.
    """

    def disagree(name: str) -> ValueError:
        return ValueError(f"{name} differs from that of the run to resume; leave it out, or give the same")

    config = run.config
    if given["model"] is not None and given["model"] is not run.model:
        raise ValueError("model must be the run's own (run.model) when resuming, or be left out")
    changed = {name: given[name] for name in _AS_GIVEN if given.get(name) is not None}
    for name, kind in (("data", SparseFeatures | Dataset), ("grid", Grid), ("test", Dataset)):
        if not isinstance(changed.get(name), kind | None):
            raise disagree(name)
    if not isinstance(changed.get("optimizer"), Optimizer | None):
        raise TypeError(
            "optimizer must be a toykern SGD, Adam, AdamW, LAMB or SGLD, not "
            f"{describe(changed['optimizer'])}"
        )
    if given["seed"] is not None:
        changed["seed"] = broadcast_seed("seed", given["seed"], run.n_models)
    outputs, width = run.model.n_outputs, run.model.output_width
    given_importance = broadcast_importance(importance, run.n_models, outputs, width=width)
    if not isinstance(importance, float) or importance != 1.0:
        changed["importance"] = given_importance
    given_l1 = broadcast_l1(l1, run.n_models)
    if not isinstance(given_l1, float) or given_l1 != 0:
        changed["l1"] = given_l1
    if tuple(record) != ("loss",):
        changed["record"] = check_record(record, run.model.network)
    begun_with = run.settings
    if "schedule" in changed and schedule_config(changed["schedule"]) != config["schedule"]:
        raise disagree("schedule")
    for name in begun_with.differences(dataclasses.replace(begun_with, **changed)):
        raise disagree(name)
    if begun_with.schedule is None:
        if "schedule" not in changed:
            raise ValueError("schedule must be given: it is a callable, which the run's store could not hold")
        run.schedule = changed["schedule"]
    _check_resumed_topology(run, given["topology"], disagree)
    kept = check_longer_snapshots(run, snapshots, steps)
    if kept is None:
        raise disagree("snapshots")
    level, now = run.provenance.get("instruction_set"), arch_of(next(run.model.parameters()).device)
    if level is not None and level != now:
        warnings.warn(
            f"the run was begun at the instruction-set level {level!r} and goes on at {now!r}: "
            "the bits will not be those of an uninterrupted run",
            stacklevel=3,
        )
    return kept


def _check_resumed_topology(run: Run, given: Any, disagree: Callable[[str], ValueError]) -> None:
    """A recipe that is given must be the run's; one that its store could not hold must be given."""
    begun_with = run.config.get("topology")
    if given is None:
        if begun_with is not None and run.topology is None:
            raise ValueError(
                "topology must be given: its recipe has a callable or a class of your own in it, which the "
                "run's store could not hold"
            )
        return
    recipe = check_recipe(given)
    if begun_with is None or topology_config(recipe) != begun_with:
        raise disagree("topology")
    seeds = run.arrays["topology_seed"]
    if recipe.seed is not None and not torch.equal(broadcast_seed("seed", recipe.seed, run.n_models), seeds):
        raise disagree("topology")
    if run.topology is None:
        assert has_connections(run.model) and run.topology_state is not None
        run.topology = ResidentTopology.restored(recipe, run.model, seeds, run.topology_state)
        run.topology_state = None
