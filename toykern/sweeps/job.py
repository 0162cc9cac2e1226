"""What a sweep does with one chunk of its models: the runs that a plan makes, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.broadcast import from_data
from toykern.arguments.errors import describe
from toykern.arguments.grids import Grid
from toykern.fitting.fitting import fit
from toykern.results.labels import trailing_dims, trained_arrays
from toykern.results.run import Run
from toykern.sweeps.boxes import Box, Part
from toykern.training.optim import rate_names
from toykern.training.progress import BarMaker

Plan = Callable[[Grid, Tensor], Mapping[str, Any]]
Measure = Callable[[Run, Grid, Tensor], Mapping[str, Any]]

OURS = ("progress", "resume", "stop_at", "grid", "callback")  # arguments of fit that a sweep sees to
_INPUTS = ("seed", "importance", "lr", "weight_decay", "l1", "probability", "init_seed", "topology_seed")


@dataclass(frozen=True)
class Job:
    """What is to be done with a chunk.

    Attributes:
        grid: of the whole sweep.
        plan, measure: as `toykern.sweep` takes them.
        settings: arguments of `fit` that all chunks share.
        device: where the models go; None: they stay where the plan puts them.
    """

    grid: Grid
    plan: Plan
    measure: Measure | None
    settings: Mapping[str, Any]
    device: torch.device | None = None

    def begin(self, box: Box | Part) -> Run:
        """The run of a chunk, or of a part of one, at step 0."""
        return fit(**self._arguments(box), stop_at=0, progress=False)

    def train(self, box: Box | Part, progress: bool | None | BarMaker = False) -> Run:
        """The run of a chunk, or of a part of one, to its end or to Ctrl-C."""
        try:
            return fit(**self._arguments(box), progress=progress)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            smaller = max(1, box.n_models // 2)
            raise MemoryError(
                f"a chunk of {box.n_models:,} models does not fit ({error}); try chunk={smaller} (--chunk "
                f"{smaller})"
            ) from error

    def results(self, run: Run, box: Box | Part) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
        """Everything of a finished run that is stored, `[models, …]`, and the names of the dimensions after
        the models'."""
        network = run.model.network
        found: dict[str, Tensor] = {"loss": run.loss, "diverged_at": run.diverged_at, **run.records}
        dims = {"loss": ("record",), "diverged_at": ()}
        dims |= {n: ("record", *trailing_dims(n, v.ndim - 2, network)) for n, v in run.records.items()}
        for name, trained in trained_arrays(run).items():
            found[name], dims[name] = trained, trailing_dims(name, trained.ndim - 1, network)
        for name in next(iter(run.snapshots.values()), {}):
            stacked = torch.stack([snapshot[name] for snapshot in run.snapshots.values()], dim=1)
            found[f"{name}_snapshots"] = stacked
            dims[f"{name}_snapshots"] = ("snapshot", *trailing_dims(name, stacked.ndim - 2, network))
        for name, value in self._measured(run, box, found).items():
            found[name], dims[name] = value, trailing_dims(name, value.ndim - 1, network)
        for name, value in inputs_of(run).items():
            found[f"inputs/{name}"] = value
            of_outputs = name == "importance"
            whole = (network.output_dim if of_outputs else "feature",)
            dims[f"inputs/{name}"] = whole if value.ndim == 2 else ()
        return {name: value.detach().cpu().numpy() for name, value in found.items()}, dims

    def _measured(self, run: Run, box: Box | Part, taken: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.measure is None:
            return {}
        measured = self.measure(run, box.points(self.grid), box.index)
        if not isinstance(measured, Mapping):
            raise TypeError(f"measure must return a dictionary of arrays, not {describe(measured)}")
        found = {}
        for name, value in measured.items():
            if not isinstance(name, str) or not name.isidentifier() or name in (*taken, *self.grid.dims):
                raise ValueError(f"measure: {name!r} is no name for a result, or is taken already")
            found[name] = from_data(value)
            if found[name].ndim == 0 or len(found[name]) != box.n_models:
                raise ValueError(
                    f"measure: {name} must have one row for each of the {box.n_models} models, not be "
                    f"{describe(value)}"
                )
        return found

    def _arguments(self, box: Box | Part) -> dict[str, Any]:
        """Those of `fit` for a chunk."""
        points = box.points(self.grid)
        planned = self.plan(points, box.index)
        if not isinstance(planned, Mapping):
            raise TypeError(f"plan must return a dictionary of arguments of fit, not {describe(planned)}")
        if "callback" in planned:
            raise TypeError(f"plan must not give callback: {why_not('callback')}")
        twice = sorted((planned.keys() & self.settings.keys()) | (planned.keys() & set(OURS)))
        if twice:
            raise TypeError(f"plan must not give {twice[0]}: sweep gives it to all chunks")
        if self.device is not None and isinstance(planned.get("model"), torch.nn.Module):
            planned = {**planned, "model": planned["model"].to(self.device)}
        return {"seed": box.index, **planned, **self.settings, "grid": points}


def why_not(name: str) -> str:
    """Why an argument of `fit` that is in `OURS` is not for a sweep."""
    if name == "callback":
        return (
            "a finished chunk is one that was trained to its end, and is the same whoever trains it, often "
            "another process; measure= looks at finished chunks"
        )
    return "it sees to that itself"


def inputs_of(run: Run) -> dict[str, Tensor]:
    """The exact inputs of every model."""
    names = dict.fromkeys([*_INPUTS, *rate_names(run.config["optimizer"])])
    return {
        name: run.arrays[name].expand(run.n_models, *run.arrays[name].shape[1:])
        for name in names
        if name in run.arrays
    }
