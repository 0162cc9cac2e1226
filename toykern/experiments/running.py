"""Runs an experiment: trains its stages in memory or in stores, and says what it would take."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from toykern import _native
from toykern.arguments.errors import check_flag
from toykern.experiments.experiment import Experiment, Findings, Stage, Trained
from toykern.experiments.registry import get
from toykern.nn.kinds import AnyModel
from toykern.results.store_format import StoreError, check_path
from toykern.sweeps import Sweep, SweepPlan, sweep
from toykern.sweeps.boxes import Box, boxes_of
from toykern.sweeps.job import Job
from toykern.training.progress import labelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Unfinished(RuntimeError):
    """Other processes are still training a part of a stage, in the same store."""


@dataclass(frozen=True, repr=False)
class Result:
    """An experiment that was run: made by `run`. A notebook shows it as its figure.

    Attributes:
        experiment: which.
        settings: with which.
        quick: whether they began as those for seconds.
        findings: labelled numbers, and the outcomes beside the published ones.
        trained: the models, by stage.
        seconds, processor_seconds: that all of it took, of wall-clock and processor time.
    """

    experiment: Experiment
    settings: Any
    quick: bool
    findings: Findings
    trained: Mapping[str, Trained]
    seconds: float
    processor_seconds: float

    def figure(self) -> Figure:
        """The experiment's figure; ImportError without matplotlib (`pip install toykern[plot]`)."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("drawing needs matplotlib: pip install 'toykern[plot]'") from error
        figure = Figure(figsize=self.experiment.figsize, layout="constrained")
        self.experiment.draw(self.settings, self.findings, figure)
        return figure

    def summary(self) -> dict[str, Any]:
        """What a page says of it, JSON-able: settings, models, seconds, threads, outcomes, version."""
        return {
            "experiment": self.experiment.name,
            "quick": self.quick,
            "settings": dataclasses.asdict(self.settings),
            "models": sum(trained.stage.grid.n_models for trained in self.trained.values()),
            "seconds": round(self.seconds, 1),
            "processor_seconds": round(self.processor_seconds, 1),
            "threads": torch.get_num_threads(),
            "outcomes": [dataclasses.asdict(outcome) for outcome in self.findings.outcomes],
            "toykern": _native.build_info()["version"],
        }

    def __repr__(self) -> str:
        agree = [outcome.agrees for outcome in self.findings.outcomes]
        judged = sum(verdict is not None for verdict in agree)
        return (
            f"<toykern.experiments.Result of {self.experiment.name}: {agree.count(True)} of {judged} agree>"
        )

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.figure().savefig(picture, format="png", dpi=100)
        return picture.getvalue()

    def __str__(self) -> str:
        lines = [f"{self.experiment.title} ({self.experiment.source})"]
        for outcome in self.findings.outcomes:
            mark = {True: "agrees ", False: "DIFFERS", None: "       "}[outcome.agrees]
            lines += [f"{mark}  {outcome.what}", f"  published  {outcome.published}"]
            lines += [f"  seen       {outcome.seen}"] + ([f"  {outcome.note}"] if outcome.note else [])
        return "\n".join(lines)


def run(
    name: str,
    *,
    quick: bool = False,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Result:
    """Train an experiment of the literature from scratch, and set what comes out beside what was published.

    Args:
        name: one of `names()`.
        quick: with its settings for seconds, which may be too few to see all of it.
        store: a folder with a sweep for each stage (`toykern.sweep`): trained in chunks that are kept, so
            that `resume` goes on after an interruption. None: in memory.
        resume, overwrite: as `toykern.sweep` takes them; for a `store` alone.
        progress: a bar for each stage, or a line a minute; True, False or None as in `toykern.fit`.
        **settings: of the experiment, in place of its own (`get(name).settings`).

    Raises:
        ValueError, TypeError: there is no such experiment or setting; an argument that does not fit.
        KeyboardInterrupt: Ctrl-C; with a `store`, what was finished is there.
        StoreError: `store` is no folder and cannot be made one, or what it holds does not fit.
        Unfinished: a share of several (`toykern.sweep`) is done, and other processes are not.

    Example:
        >>> from toykern import experiments
        >>> result = experiments.run("intro-polygons", quick=True, steps=20, densities=(1.0, 0.1))
        >>> result.findings["weight"].shape
        (2, 2, 5)
    """
    experiment, quick = get(name), check_flag("quick", quick)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if store is None and (resume or overwrite):
        raise ValueError("resume and overwrite are for a store: give store, or leave them out")
    folder = None if store is None else Path(check_path(store, "store"))
    chosen = experiment.configure(quick, **settings)
    began, trained = (time.perf_counter(), time.process_time()), dict[str, Trained]()
    for stage in experiment.stages(chosen):
        if folder is None:
            trained[stage.name] = _in_memory(stage, progress)
        else:
            trained[stage.name] = _in_store(stage, folder, resume, overwrite, progress)
    findings = experiment.look(chosen, trained)
    return Result(
        experiment, chosen, quick, findings, trained, time.perf_counter() - began[0],
        time.process_time() - began[1],
    )  # fmt: skip


def check(experiment: Experiment, settings: Any) -> int:
    """How many models the stages of an experiment train, after beginning one of each.

    Raises:
        ValueError, TypeError: a setting with which that cannot be done.
    """
    stages = experiment.stages(settings)
    for stage in stages:
        job = Job(stage.grid, stage.plan, stage.measure, stage.fit)
        axes = len(stage.grid.shape)
        job.begin(Box(0, (0,) * axes, (1,) * axes, 0))
    return sum(stage.grid.n_models for stage in stages)


def plan(name: str, *, quick: bool = False, **settings: Any) -> dict[str, SweepPlan]:
    """What each stage of an experiment would take: models, memory, size of its store, time.

    One model of each is trained, and a moment of the others, to see how fast it goes; nothing is written.
    What an experiment trains afterwards, by what came out, is not in it.
    """
    experiment = get(name)
    chosen = experiment.configure(check_flag("quick", quick), **settings)
    plans = {}
    for stage in experiment.stages(chosen):
        planned = sweep(
            stage.grid, stage.plan, f"{experiment.name}-{os.getpid()}-planned.zarr", measure=stage.measure,
            dry_run=True, progress=False, **stage.fit,
        )  # fmt: skip
        plans[stage.name] = planned
    return plans


@dataclass(frozen=True)
class _InMemory:
    stage: Stage
    arrays: Mapping[str, NDArray[Any]]
    stack: AnyModel

    def read(self, name: str) -> NDArray[Any]:
        return self.stage.grid.unflatten(self.arrays[name])

    def model(self) -> AnyModel:
        return self.stack


@dataclass(frozen=True)
class _InStore:
    stage: Stage
    sweep: Sweep

    def read(self, name: str) -> NDArray[Any]:
        return self.sweep.read(name)

    def model(self) -> AnyModel:
        index = torch.arange(self.stage.grid.n_models, dtype=torch.int64, device="cpu")
        model: AnyModel = self.stage.plan(self.stage.grid, index)["model"]
        trained = {
            name: torch.from_numpy(self.read(name)).flatten(0, len(self.stage.grid.shape) - 1)
            for name in model.trained_arrays()
        }
        return model.begun_with(trained)


def _in_memory(stage: Stage, progress: bool | None) -> Trained:
    job = Job(stage.grid, stage.plan, stage.measure, stage.fit)
    (whole,) = boxes_of(stage.grid.shape, stage.grid.shape)
    done = job.train(whole, labelled(progress, f"{stage.name}, "))
    if done.interrupted:
        raise KeyboardInterrupt(f"stopped in {stage.name} after {done.step:,} of its steps; nothing is kept")
    return _InMemory(stage, job.results(done, whole)[0], done.model)


def _in_store(stage: Stage, folder: Path, resume: bool, overwrite: bool, progress: bool | None) -> Trained:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"store: cannot make the folder {folder}: {error.strerror or error}") from error
    path = folder / f"{stage.name}.zarr"
    done = sweep(
        stage.grid, stage.plan, path, measure=stage.measure, resume=resume, overwrite=overwrite,
        progress=progress, **stage.fit,
    )  # fmt: skip
    if not done.complete:
        finished = f"{stage.name} has {int(done.finished.sum())} of its {len(done.boxes)} chunks"
        if done.interrupted:
            raise KeyboardInterrupt(f"stopped: {finished}; resume goes on")
        raise Unfinished(f"{finished}, and others are training the rest; resume when they are done")
    return _InStore(stage, done)
