"""Five features in two dimensions: as they grow rarer, more of them share the plane, up to a pentagon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toykern import metrics
from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.nn import TiedAutoencoder
from toykern.plot.geometry import feature_directions
from toykern.training.evaluation import evaluate
from toykern.training.optim import AdamW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

N_FEATURES, N_HIDDEN = 5, 2


@dataclass(frozen=True)
class Settings:
    """What may be set."""

    densities: tuple[float, ...] = tuple((20.0 ** -np.linspace(0, 1, 10)).tolist())
    seeds: int = 20
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    importance_decay: float = 0.9
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All densities and seeds, as one stack."""
    importance = settings.importance_decay ** torch.arange(N_FEATURES, dtype=torch.float64, device="cpu")

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(N_FEATURES, N_HIDDEN, points.n_models, seed=seeds, dtype=torch.float32,
                                     device="cpu"),
            "data": SparseFeatures(N_FEATURES, points.density[:, None]),
            "importance": importance,
            "seed": seeds,
        }  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        data = SparseFeatures(N_FEATURES, points.density[:, None])
        return {"fresh_loss": evaluate(run.model, data, 100_000, seed=settings.seed, importance=importance)}

    fit = {"steps": settings.steps, "batch_size": settings.batch_size, "optimizer": AdamW(lr=settings.lr)}
    points = grid(density=settings.densities, seed=range(settings.seeds))
    return [Stage("polygons", points, plan, fit, measure)]


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best model at each density, and how many features it represents."""
    models = trained["polygons"]
    loss = models.read("fresh_loss")
    best = best_over(loss)
    weight = take(models.read("weight"), best)
    norms = np.linalg.norm(weight, axis=1)
    represented = (norms > 0.5).sum(axis=1)
    dimensionality = metrics.feature_dimensionality(torch.from_numpy(weight)).numpy()
    densities = np.asarray(settings.densities)
    dense, sparse = int(densities.argmax()), int(densities.argmin())
    outcomes = (
        Outcome(
            "Dense features",
            "the two most important features alone, orthogonal (introduction, first panel)",
            f"{represented[dense]} features at p = {densities[dense]:.2f}",
            bool(represented[dense] == 2) if densities[dense] == 1 else None,
        ),
        Outcome(
            "Rare features",
            "all five, as a pentagon: D = 2/5 each (introduction, last panel; section Geometry)",
            f"{represented[sparse]} features at p = {densities[sparse]:.2f}, D = "
            f"{dimensionality[sparse].min():.3f} … {dimensionality[sparse].max():.3f}",
            bool(np.abs(dimensionality[sparse] - 0.4).max() < 0.02) if densities[sparse] <= 0.06 else None,
        ),
    )
    return Findings(
        {
            "weight": labelled("density hidden feature", weight),
            "represented": labelled("density", represented),
            "dimensionality": labelled("density feature", dimensionality),
            "loss": labelled("density seed", loss),
        },
        {"density": densities},
        outcomes,
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The directions of the features at each density."""
    count = len(findings["density"])
    columns = min(5, count)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    for at, panel in enumerate(panels[:count]):
        feature_directions(findings["weight"][at], ax=panel)
        panel.set_title(
            f"p = {findings['density'][at]:.2f}: {findings['represented'][at]} features", fontsize=9
        )
        panel.set(xlabel="", ylabel="")


EXPERIMENT = Experiment(
    name="intro-polygons",
    title="Five features in two dimensions",
    source="Elhage et al. 2022, Toy Models of Superposition, introduction",
    summary=(
        "Tied autoencoders of five features and two hidden dimensions, importance 0.9^i, at ten densities. "
        "Dense features: the two most important ones get a dimension each. Rarer ones share: first as "
        "antipodal pairs, then all five as a pentagon."
    ),
    settings=Settings(),
    quick=Settings(densities=(1.0, 0.3, 0.05), seeds=8, steps=2000, lr=1e-2),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.0, 4.2),
)
