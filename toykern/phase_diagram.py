"""The phase diagram of Toy Models of Superposition (Elhage et al. 2022), trained from scratch.

At every point of a grid of feature density × relative importance several models with seeds of their own are
trained at once; the best of each point, by its loss on data none of them has seen, tells what becomes of the
last feature there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toykern import metrics
from toykern.data.features import SparseFeatures
from toykern.errors import check_int, check_number, check_positive_int
from toykern.evaluate import evaluate
from toykern.fit import fit
from toykern.grid import Grid, grid
from toykern.nn import TiedAutoencoder
from toykern.optim import AdamW
from toykern.run import Run

__all__ = ["PhaseDiagram", "phase_diagram_grid", "train_phase_diagram"]

MINIMUM_IMPORTANCE, MAXIMUM_IMPORTANCE = 0.1, 10.0
MINIMUM_DENSITY = 0.01
_EVALUATION_SAMPLES = 1 << 15


@dataclass(frozen=True)
class PhaseDiagram:
    """A trained phase diagram; I importances, D densities.

    Attributes:
        run: all models of all seeds, on the grid importance × density × seed.
        importance: relative importance of the last feature, float64 `[I]`, ascending.
        density: probability that a feature is active, float64 `[D]`, ascending.
        loss: loss of every model on fresh data, float64 `[I·D·seeds]`.
        best: flat number of the best model of each point, int64 `[I, D]`; −1 where all diverged.
        interrupted: whether Ctrl-C cut short the training, or the evaluation (then `loss` is that of the
            last training batches).
    """

    run: Run
    importance: NDArray[np.float64]
    density: NDArray[np.float64]
    loss: Tensor
    best: NDArray[np.int64]
    interrupted: bool = False

    @property
    def weight(self) -> Tensor:
        """Weights of the best models, `[I, D, n_hidden, n_features]`; NaN where all diverged."""
        weight = self.run.model.get_parameter("weight").detach().cpu()
        chosen = weight[torch.from_numpy(np.maximum(self.best, 0))]
        chosen[torch.from_numpy(self.best < 0)] = torch.nan
        return chosen

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
        features = int(self.run.config["model"]["n_features"])
        return metrics.best_solution(self.density[None, :], self.importance[:, None], features)

    @property
    def agreement(self) -> float:
        """Fraction of the grid where the trained phase is that of the best hand-made solution."""
        return float((self.phase == self.theory).mean())


def phase_diagram_grid(shape: Sequence[int], seeds: int) -> Grid:
    """The grid importance (0.1 … 10) × density (0.01 … 1), both logarithmic, × `seeds` models a point."""
    points_importance, points_density = shape
    return grid(
        importance=np.geomspace(MINIMUM_IMPORTANCE, MAXIMUM_IMPORTANCE, points_importance),
        density=np.geomspace(MINIMUM_DENSITY, 1.0, points_density),
        seed=range(seeds),
    )


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
) -> PhaseDiagram:
    """Train the phase diagram: what becomes of the last feature at each density and relative importance?

    One tied autoencoder per point and seed, with U[0, 1] magnitudes and AdamW, as in the paper; the
    importance of the last feature varies, that of the others is 1. Every model has a seed of its own for its
    initial weights and its data. The best of a point is chosen by the loss over 32,768/density fresh
    samples, the same for all models of the point.

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

    Returns:
        A `PhaseDiagram`. After Ctrl-C (`diagram.interrupted`) it shows the models as far as they were
        trained.

    Raises:
        ValueError, TypeError: an argument that is out of range or of the wrong kind; the message names it.

    Example:
        >>> from toykern.phase_diagram import train_phase_diagram
        >>> diagram = train_phase_diagram(shape=(3, 3), seeds=2, steps=5, batch_size=8)
        >>> diagram.best.shape, diagram.run.n_models
        ((3, 3), 18)
    """
    if len(shape) != 2:
        raise ValueError(f"shape must be two numbers of points, importance and density, got {shape!r}")
    shape = [check_int(f"shape[{at}]", points, minimum=2) for at, points in enumerate(shape)]
    seeds = check_positive_int("seeds", seeds)
    seed = check_int("seed", seed, minimum=0, maximum=2**31 - 1)
    lr = check_number("lr", lr, minimum=0.0)
    points = phase_diagram_grid(shape, seeds)
    own_seed = (seed << 32) + torch.arange(points.n_models)
    importance = torch.ones(points.n_models, n_features)
    importance[:, -1] = points.importance
    data = SparseFeatures(n_features, points.density[:, None])
    model = TiedAutoencoder(n_features, n_hidden, points.n_models, seed=own_seed, device=device)
    run = fit(
        model,
        data,
        steps=steps,
        batch_size=batch_size,
        optimizer=AdamW(lr=lr),
        importance=importance,
        seed=own_seed,
        schedule=schedule,
        grid=points,
        progress=progress,
    )
    interrupted = run.interrupted
    try:
        loss = _fresh_loss(run, importance, seed)
    except KeyboardInterrupt:
        loss, interrupted = run.final_loss.double(), True
    coords, best = points.coords, run.best(over="seed", by=loss)
    return PhaseDiagram(run, coords["importance"], coords["density"], loss, best, interrupted)


def _fresh_loss(run: Run, importance: Tensor, seed: int) -> Tensor:
    """Loss of every model on data that none was trained on, float64 `[models]`.

    What tells the solutions apart is samples with two active features, a share of about p²: the rarer they
    are, the more samples are drawn. All models of a point see the same ones.
    """
    points = run.grid
    assert points is not None
    seeds = points.shape[-1]
    loss = torch.empty(points.n_models, dtype=torch.float64)
    for density in points.coords["density"]:
        chosen = torch.from_numpy(points.index(density=density).reshape(-1))
        loss[chosen] = evaluate(
            run.model[chosen],
            SparseFeatures(run.data.n_features, density),
            samples=round(_EVALUATION_SAMPLES / density),
            seed=(seed << 32) + chosen // seeds,
            importance=importance[chosen],
        )
    return loss
