"""What a sweep will take, said before it is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toykern.fitting.fitting import fit
from toykern.results.run import Run
from toykern.sweeps.boxes import Box
from toykern.sweeps.job import Job
from toykern.sweeps.memory import memory_per_model

_ENOUGH = 0.3  # seconds of training that tell how fast it goes


@dataclass(frozen=True)
class SweepPlan:
    """What `toykern.sweep(…, dry_run=True)` found; nothing was written, and little was trained.

    Attributes:
        models: that are left to train.
        chunks: in which they are.
        chunk_models: the most in one.
        chunk_bytes: memory that a chunk takes.
        store_bytes: size of the whole store before compression.
        rate: model-steps per second, as measured here for a moment.
        seconds: that the training takes at this rate, by all workers together.
        workers: that train at once, as far as is known.
        device: on which the rate was measured.
        share: which part of the sweep the call would begin with.
    """

    models: int
    chunks: int
    chunk_models: int
    chunk_bytes: int
    store_bytes: int
    rate: float
    seconds: float
    workers: int
    device: str
    share: str

    def __str__(self) -> str:
        many = f" by {self.workers} workers" if self.workers > 1 else ""
        return "\n".join(
            [
                f"models   {self.models:,} to train, in {self.chunks:,} chunks of at most "
                f"{self.chunk_models:,}",
                f"memory   {_size(self.chunk_bytes)} a chunk",
                f"store    {_size(self.store_bytes)} before compression",
                f"time     {_time(self.seconds)}{many} at {self.rate:,.0f} model-steps/s a worker on "
                f"{self.device}; {self.share}",
            ]
        )


def plan_of(
    job: Job, boxes: Sequence[Box], finished: np.ndarray, probe: Run, workers: int, share: str, kept: int = 0
) -> SweepPlan:
    """The plan of a sweep of which some chunks may be finished; `probe` is one model at step 0, `kept` how
    many models of unfinished chunks are there."""
    todo = [box for box in boxes if not finished[box.number]]
    models = sum(box.n_models for box in todo) - kept
    one = Box(0, (0,) * len(job.grid.shape), (1,) * len(job.grid.shape), 0)
    values, _ = job.results(job.train(one), one)
    steps, rate = probe.steps_to_make, np.nan
    if todo:
        run, stop = job.begin(todo[0]), 1
        while run.seconds < _ENOUGH and not run.complete:
            run = fit(resume=run, stop_at=min(stop, steps), progress=False)
            stop *= 2
        rate = run.model_steps_per_second
    seconds = models * steps / rate / workers if models else 0.0
    return SweepPlan(
        models, len(todo), boxes[0].n_models, boxes[0].n_models * memory_per_model(probe),
        sum(array.nbytes for array in values.values()) * job.grid.n_models, rate, seconds, workers,
        str(next(probe.model.parameters()).device), share,
    )  # fmt: skip


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
