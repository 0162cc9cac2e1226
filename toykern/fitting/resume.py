"""What may be said beside `fit(resume=run)`: what the run was begun with, and how much longer it is to be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from toykern.arguments.broadcast import broadcast_importance, broadcast_seed
from toykern.arguments.errors import describe
from toykern.data.features import SparseFeatures
from toykern.fitting.longer import check_longer_snapshots
from toykern.native.devices import arch_of
from toykern.nn import SparseTiedAutoencoder
from toykern.results.run import Run
from toykern.training.optim import Optimizer
from toykern.training.resident_topology import ResidentTopology, check_recipe
from toykern.training.schedule import schedule_config
from toykern.training.settings import check_record, topology_config


def check_resume(
    run: Run, given: dict[str, Any], importance: Any, record: Any, snapshots: Any, steps: int
) -> list[int]:
    """Check that what is given beside `resume` is what the run was begun with.

    Returns the snapshots of the run when it is `steps` long. ValueError or TypeError by name.
    """

    def disagree(name: str) -> ValueError:
        return ValueError(f"{name} differs from that of the run to resume; leave it out, or give the same")

    config = run.config
    if given["model"] is not None and given["model"] is not run.model:
        raise ValueError("model must be the run's own (run.model) when resuming, or be left out")
    data = given["data"]
    if data is not None and (
        not isinstance(data, SparseFeatures)
        or data.config() != config["data"]
        or not torch.equal(data.probability, run.arrays["probability"])
    ):
        raise disagree("data")
    optimizer = given["optimizer"]
    if optimizer is not None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a toykern SGD, Adam or AdamW, not {describe(optimizer)}")
        rates = ("lr", "weight_decay")
        settings = [
            {k: v for k, v in c.items() if k not in rates} for c in (optimizer.config(), config["optimizer"])
        ]
        given_rates = zip(optimizer.per_model(run.n_models), rates, strict=True)
        if settings[0] != settings[1] or not all(torch.equal(a, run.arrays[name]) for a, name in given_rates):
            raise disagree("optimizer")
    if given["seed"] is not None and not torch.equal(
        broadcast_seed("seed", given["seed"], run.n_models), run.arrays["seed"]
    ):
        raise disagree("seed")
    if given["grid"] is not None and (run.grid is None or given["grid"].config() != run.grid.config()):
        raise disagree("grid")
    if "schedule" in given and schedule_config(given["schedule"]) != config["schedule"]:
        raise disagree("schedule")
    if run.schedule is None and config["schedule"]["name"] == "callable":
        if "schedule" not in given:
            raise ValueError("schedule must be given: it is a callable, which the run's store could not hold")
        run.schedule = given["schedule"]
    _check_resumed_topology(run, given["topology"], disagree)
    for name in ("batch_size", "target", "loss_reduction", "record_every"):
        if given.get(name) is not None and given[name] != config[name]:
            raise disagree(name)
    given_importance = broadcast_importance(importance, run.n_models, run.model.n_features)
    if not isinstance(importance, float) or importance != 1.0:
        begun_with = run.arrays["importance"]
        if not torch.equal(given_importance.expand(run.n_models, -1), begun_with.expand(run.n_models, -1)):
            raise disagree("importance")
    if tuple(record) != ("loss",) and list(check_record(record)) != list(config["record"]):
        raise disagree("record")
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
        assert isinstance(run.model, SparseTiedAutoencoder) and run.topology_state is not None
        run.topology = ResidentTopology.restored(recipe, run.model, seeds, run.topology_state)
        run.topology_state = None
