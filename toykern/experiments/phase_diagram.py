"""The phase diagram of Toy Models of Superposition (Elhage et al. 2022), trained from scratch.

At every point of a grid of feature density × relative importance several models with seeds of their own are
trained at once; the best of each point, by its loss on data none of them has seen, tells what becomes of the
last feature there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toykern import metrics
from toykern.arguments.errors import check_flag, check_int, check_number, check_size, describe
from toykern.experiments.phase_models import (
    FRESH_LOSS,
    PhaseMeasure,
    PhasePlan,
    fresh_loss,
    phase_diagram_grid,
)
from toykern.experiments.phase_outcomes import phase_experiment
from toykern.fitting.fitting import fit
from toykern.results.run import Run
from toykern.results.store_format import check_path
from toykern.sweeps import Sweep, SweepPlan, sweep
from toykern.training.optim import AdamW

__all__ = [
    "EXPERIMENT",
    "PhaseDiagram",
    "diagram_of",
    "fresh_loss",
    "phase_diagram_grid",
    "train_phase_diagram",
]

EXPERIMENT = phase_experiment("phase-diagram", 2, 1)

MAX_POINTS = 1 << 16
"""Largest number of points along importance or density."""


@dataclass(frozen=True)
class PhaseDiagram:
    """A trained phase diagram; I importances, D densities.

    Attributes:
        importance: relative importance of the last feature, float64 `[I]`, ascending.
        density: probability that a feature is active, float64 `[D]`, ascending.
        loss: loss of every model on fresh data, float64 `[I·D·seeds]`.
        best: flat number of the best model of each point, int64 `[I, D]`; −1 where all diverged.
        weight: weights of the best models, `[I, D, n_hidden, n_features]`; NaN where all diverged.
        run: all models of all seeds, on the grid importance × density × seed; None if they are in a store.
        sweep: the store that they are in, or None.
        interrupted: whether Ctrl-C cut short the training, or the evaluation (then `loss` is that of the
            last training batches).
    """

    importance: NDArray[np.float64]
    density: NDArray[np.float64]
    loss: Tensor
    best: NDArray[np.int64]
    weight: Tensor
    run: Run | None = None
    sweep: Sweep | None = None
    interrupted: bool = False

    @property
    def phase(self) -> NDArray[np.int64]:
        """Phase of the last feature, `[I, D]`: 0 not represented, 1 own dimension, 2 in superposition.

        −1 where all models diverged.
        """
        phase = metrics.classify_phase(self.weight.flatten(0, 1)).numpy().reshape(self.best.shape)
        return np.where(self.best < 0, -1, phase)

    @property
    def theory(self) -> NDArray[np.int64]:
        """Phase in the best hand-made solution, `[I, D]` (`toykern.metrics.best_solution`)."""
        features = self.weight.shape[-1]
        return metrics.best_solution(self.density[None, :], self.importance[:, None], features)

    @property
    def agreement(self) -> float:
        """Fraction of the grid where the trained phase is that of the best hand-made solution."""
        return float((self.phase == self.theory).mean())


def train_phase_diagram(
    n_features: int = 2,
    n_hidden: int = 1,
    *,
    shape: Sequence[int] = (48, 48),
    seeds: int = 10,
    steps: int = 1500,
    batch_size: int = 1024,
    lr: float = 2e-2,
    schedule: Any = "cosine",
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    store: str | os.PathLike[str] | None = None,
    chunk: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
) -> PhaseDiagram | SweepPlan:
    """Train the phase diagram: what becomes of the last feature at each density and relative importance?

    One tied autoencoder per point and seed, with U[0, 1] magnitudes and AdamW, as in the paper; the
    importance of the last feature varies, that of the others is 1. Every model has a seed of its own for its
    initial weights and its data. The best of a point is chosen by `tk.evaluate(…, method="stratified")` on
    samples that are the same for all models: its error is far below the differences between solutions, also
    where features are rare.

    Args:
        n_features: n.
        n_hidden: m. The paper shows n = 2, m = 1 and n = 3, m = 2.
        shape: points along importance and density.
        seeds: models per point.
        steps: updates of each model.
        batch_size: samples per update.
        lr: learning rate.
        schedule: of the learning rate, as `toykern.fit` takes it. The paper's is constant; a decaying one
            gets as far in fewer steps.
        seed: ≥ 0; another one gives other models everywhere.
        device: where to train.
        progress: as `toykern.fit` takes it.
        store: a Zarr directory; the models are then trained in chunks that go there one by one, and never
            lie in memory all at once (`toykern.sweep`). None: all at once, in memory.
        chunk, resume, overwrite: as `toykern.sweep` takes them; for a `store` alone.
        options: further arguments of `toykern.sweep`, such as `share` and `executor`; for a `store` alone.

    Returns:
        A `PhaseDiagram` (with the option `dry_run` a `SweepPlan`). After Ctrl-C (`diagram.interrupted`) it
        shows the models as far as they were trained; with a store, points of chunks that are not finished
        are NaN.

    Raises:
        ValueError, TypeError: an argument that is out of range or of the wrong kind; the message names it.
        StoreError: as `toykern.sweep` raises it.

    Example:
        >>> from toykern.experiments.phase_diagram import train_phase_diagram
        >>> diagram = train_phase_diagram(shape=(3, 3), seeds=2, steps=5, batch_size=8)
        >>> diagram.best.shape, diagram.run.n_models
        ((3, 3), 18)
    """
    if not isinstance(shape, Sequence) or len(shape) != 2:
        raise ValueError(
            f"shape must be two numbers of points, importance and density, not {describe(shape)}"
        )
    shape = [
        check_int(f"shape[{at}]", points, minimum=2, maximum=MAX_POINTS) for at, points in enumerate(shape)
    ]
    seeds = check_size("seeds", seeds)
    seed = check_int("seed", seed, minimum=0, maximum=2**31 - 1)
    lr = check_number("lr", lr, minimum=0.0)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if store is not None:
        check_path(store, "store")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options must be a mapping of arguments of toykern.sweep, not {describe(options)}")
    if store is None and (chunk is not None or resume or overwrite or options):
        raise ValueError(
            "chunk, resume, overwrite and options are for a store: give store, or leave them out"
        )
    n_features, n_hidden = check_size("n_features", n_features), check_size("n_hidden", n_hidden)
    if store is None:
        check_size("the number of models, shape[0] · shape[1] · seeds,", shape[0] * shape[1] * seeds)
    whole = phase_diagram_grid(shape, seeds)

    plan, measure = (
        PhasePlan(n_features, n_hidden, seed, device, shape[0] * shape[1], seeds),
        PhaseMeasure(seed),
    )
    settings: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "optimizer": AdamW(lr=lr), "schedule": schedule,
    }  # fmt: skip
    if store is not None:
        done = sweep(
            whole, plan, store, measure=measure, chunk=chunk, resume=resume, overwrite=overwrite,
            progress=progress, **(options or {}), **settings,
        )  # fmt: skip
        return diagram_of(done) if isinstance(done, Sweep) else done
    index = torch.arange(whole.n_models, dtype=torch.int64, device="cpu")
    run = fit(**plan(whole, index), **settings, grid=whole, progress=progress)
    interrupted = run.interrupted
    try:
        loss = measure(run, whole, index)[FRESH_LOSS]
    except KeyboardInterrupt:
        loss, interrupted = run.final_loss.double().cpu(), True
    best = run.best(over="seed", by=loss)
    weight = run.model.get_parameter("weight").detach().cpu()[torch.from_numpy(np.maximum(best, 0))]
    weight[torch.from_numpy(best < 0)] = torch.nan
    coords = whole.coords
    return PhaseDiagram(
        coords["importance"], coords["density"], loss, best, weight, run=run, interrupted=interrupted
    )


def diagram_of(done: Sweep) -> PhaseDiagram:
    """The phase diagram in the store of a sweep, read chunk by chunk: only the best of each point are kept.

    Points of chunks that are not finished are NaN, their best model −1.
    """
    coords, (rows, columns, seeds) = done.grid.coords, done.grid.shape
    best = np.full((rows, columns), -1, dtype=np.int64)
    lowest = np.full((rows, columns), np.inf)
    loss = np.full((rows, columns, seeds), np.nan)
    trailing = next(entry["shape"][3:] for entry in done.attributes["manifest"] if entry["path"] == "weight")
    weight = torch.full((rows, columns, *trailing), torch.nan, dtype=torch.float32, device="cpu")
    finished = done.finished
    for box in done.boxes:
        if not finished[box.number]:
            continue
        found, weights = done.read(FRESH_LOSS, box), done.read("weight", box)
        loss[box.region] = found
        usable = np.isfinite(found) & (done.read("diverged_at", box) < 0)
        ranked = np.where(usable, found, np.inf)
        chosen = ranked.argmin(axis=2)[..., None]
        value = np.take_along_axis(ranked, chosen, axis=2)[..., 0]
        # A chunk may hold some seeds of a point alone; ties go to the lowest number, as in Run.best.
        better = value < lowest[box.region[:2]]
        lowest[box.region[:2]][better] = value[better]
        numbers = np.take_along_axis(box.index.numpy().reshape(box.shape), chosen, axis=2)[..., 0]
        best[box.region[:2]][better] = numbers[better]
        winners = np.take_along_axis(weights, chosen[..., None, None], axis=2)[:, :, 0]
        weight[box.region[:2]][torch.from_numpy(better)] = torch.from_numpy(winners[better])
    return PhaseDiagram(
        coords["importance"],
        coords["density"],
        torch.from_numpy(loss.reshape(-1)),
        best,
        weight,
        sweep=done,
        interrupted=done.interrupted,
    )
