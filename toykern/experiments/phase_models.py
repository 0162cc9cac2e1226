"""The models of a phase diagram, point by point, and the loss by which the best of each is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.nn import TiedAutoencoder
from toykern.results.run import Run
from toykern.training.evaluation import evaluate

FRESH_LOSS = "fresh_loss"
"""The name of `PhaseDiagram.loss` in a store."""

MINIMUM_IMPORTANCE, MAXIMUM_IMPORTANCE = 0.1, 10.0
MINIMUM_DENSITY = 0.01
_EVALUATION_SAMPLES = 1 << 14


def phase_diagram_grid(shape: Sequence[int], seeds: int) -> Grid:
    """The grid importance (0.1 … 10) × density (0.01 … 1), both logarithmic, × `seeds` models a point."""
    points_importance, points_density = shape
    return grid(
        importance=np.geomspace(MINIMUM_IMPORTANCE, MAXIMUM_IMPORTANCE, points_importance),
        density=np.geomspace(MINIMUM_DENSITY, 1.0, points_density),
        seed=range(seeds),
    )


@dataclass(frozen=True)
class PhasePlan:
    """The models of some points, as `toykern.sweep` asks for them; other processes can be given it."""

    n_features: int
    n_hidden: int
    seed: int
    device: str | torch.device
    n_points: int
    seeds: int

    def __call__(self, points: Grid, index: Tensor) -> dict[str, Any]:
        """The arguments of `toykern.fit` for the models of these numbers in the grid."""
        # The first model of every point, then the second of every one: so more seeds change none of them.
        point, nth = index // self.seeds, index % self.seeds
        own_seed = (self.seed << 32) + nth * self.n_points + point
        return {
            "model": TiedAutoencoder(
                self.n_features,
                self.n_hidden,
                points.n_models,
                seed=own_seed,
                dtype=torch.float32,
                device=self.device,
            ),
            "data": SparseFeatures(self.n_features, points.density[:, None]),
            "importance": _importance(points, self.n_features),
            "seed": own_seed,
        }


@dataclass(frozen=True)
class PhaseMeasure:
    """The loss on fresh data, as `toykern.sweep` asks for it."""

    seed: int

    def __call__(self, run: Run, points: Grid, index: Tensor) -> dict[str, Tensor]:
        """The loss of each model of a finished run, by its name in a store."""
        return {FRESH_LOSS: fresh_loss(run, points, self.seed)}


def _importance(points: Grid, n_features: int) -> Tensor:
    """float32 `[models, n_features]`: that of the last feature varies."""
    importance = torch.ones(points.n_models, n_features, dtype=torch.float32, device="cpu")
    importance[:, -1] = points.importance
    return importance


def fresh_loss(run: Run, points: Grid, seed: int) -> Tensor:
    """Loss of every model on data that none was trained on, float64 CPU `[models]`.

    What tells the solutions apart is samples with two active features, a share of about p²: random samples
    would have too few of them. All models see the same, also those of another chunk.
    """
    return evaluate(
        run.model,
        SparseFeatures(run.data.n_features, points.density[:, None]),
        samples=_EVALUATION_SAMPLES,
        seed=seed,
        importance=_importance(points, run.data.n_features),
        method="stratified",
    ).cpu()
