"""The geometry of superposition: how much of a dimension each feature has, as all of them grow rarer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern import metrics
from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.experiments.training import adamw
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREY
from toykern.plot.geometry import POLYTOPES, dimensionality_scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPRESENTED = 0.5
"""Least norm ‖W_i‖ of a feature that is represented."""

_NEAR = 0.01
"""Half width of the band around a polytope's dimensionality."""


@dataclass(frozen=True)
class Settings:
    """What may be set: one model at each of `points` densities, 1/p from 1 to `rarest`, logarithmic."""

    n_features: int = 400
    n_hidden: int = 30
    points: int = 24
    rarest: float = 100.0
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All densities, as one stack."""
    n, m = settings.n_features, settings.n_hidden
    if not settings.rarest > 1:
        raise ValueError(f"rarest must be greater than 1, as 1/p is, not {settings.rarest}")

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(n, m, points.n_models, seed=seeds, dtype=torch.float32, device="cpu"),
            "data": SparseFeatures(n, points.density[:, None]),
            "seed": seeds,
        }

    fit = adamw(settings)
    return [Stage("densities", grid(density=1.0 / _rarities(settings)), plan, fit)]


def _rarities(settings: Settings) -> NDArray[np.float64]:
    return np.geomspace(1.0, settings.rarest, settings.points)


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Dimensions per feature of each model, and the dimensionality of each of its features."""
    weight = trained["densities"].read("weight")
    stacked = torch.from_numpy(weight)
    dimensions = 1.0 / metrics.features_per_dimension(stacked).numpy()
    own = metrics.feature_dimensionality(stacked).numpy()
    norm = np.linalg.norm(weight, axis=1)
    rarity = _rarities(settings)
    return Findings(
        {
            "weight": labelled("rarity hidden feature", weight),
            "norm": labelled("rarity feature", norm),
            "dimensions_per_feature": labelled("rarity", dimensions),
            "dimensionality": labelled("rarity feature", own),
        },
        {"rarity": rarity},
        tuple(judge(rarity, dimensions, own, norm > REPRESENTED)),
    )


def judge(
    rarity: NDArray[Any], dimensions: NDArray[Any], own: NDArray[Any], represented: NDArray[np.bool_]
) -> list[Outcome]:
    """What the paper says of the dimensions, beside these.

    Args:
        rarity: 1/p, ascending, `[models]`.
        dimensions: D* = m/‖W‖²_F, `[models]`.
        own: D_i, `[models, features]`; `represented`: which of them count.
    """
    level = np.abs(dimensions - 0.5) < 0.05
    paired = np.array(
        [
            (np.abs(values[shown] - 0.5) < _NEAR).mean() if shown.any() else 0.0
            for values, shown in zip(own, represented, strict=True)
        ]
    )
    if level.any():
        first, last = rarity[level][[0, -1]]
        high, low = dimensions[level].max(), dimensions[level].min()
        where = f"D* = {high:.2f} … {low:.2f} for 1/p = {first:.2f} … {last:.2f}"
    else:
        where = "D* is nowhere within 0.05 of 1/2"
    values = own[represented]
    rare = own[-1][represented[-1]]
    shares = {
        name: (np.abs(values - above / below) < _NEAR).mean() if len(values) else 0.0
        for name, (above, below) in POLYTOPES.items()
    }
    return [
        Outcome(
            "Dense features",
            "as many features as dimensions: D* begins at about 1 (section The Geometry of Superposition)",
            f"D* = {dimensions[0]:.3f} at p = 1",
            bool(abs(dimensions[0] - 1.0) < 0.1),
        ),
        Outcome(
            "A plateau at 1/2",
            "D* stays near 1/2 over a range of densities (same section)",
            where,
            bool(level.sum() >= 2 and last / first > 1.25) if level.any() else False,
        ),
        Outcome(
            "What the plateau is made of",
            "antipodal pairs: D_i = 1/2 for every feature that is represented (same section)",
            f"up to {100 * paired.max():.0f}% of the represented features within {_NEAR} of 1/2, at 1/p = "
            f"{rarity[paired.argmax()]:.2f}",
            bool(paired.max() > 0.9),
        ),
        Outcome(
            "Rarer features",
            "dimensions per feature fall on, past the pentagon's 2/5 and the antiprism's 3/8 (same section)",
            f"D* = {dimensions[-1]:.3f} at 1/p = {rarity[-1]:.3g}, median D_i = "
            f"{np.median(rare) if len(rare) else np.nan:.3f}",
            bool(dimensions[-1] < 3 / 8),
        ),
        Outcome(
            "Other polytopes",
            "features gather at the dimensionalities of tetrahedra, triangles, pentagons and square "
            "antiprisms "
            "as well (same section)",
            f"of all represented features, within {_NEAR} of: "
            + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items()),
            None,
            "which of them appear depends on the model and the density, and the paper gives no share",
        ),
    ]


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """D* and all D_i against 1/p with the lines of polytopes, and beside it how often each D_i is met."""
    scatter, counts = figure.subplots(1, 2, width_ratios=[3.2, 1.0])
    rarity = findings["rarity"]
    dimensionality_scatter(findings["weight"], 1.0 / rarity, ax=scatter)
    scatter.set_title(
        f"{settings.n_features} features in {settings.n_hidden} dimensions, one model a density", fontsize=10
    )
    values = findings["dimensionality"][findings["norm"] > REPRESENTED]
    counts.hist(values, bins=np.arange(0.0, 1.09, 0.02), orientation="horizontal", color=BLUE)
    for above, below in POLYTOPES.values():
        counts.axhline(above / below, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
    counts.set(ylim=scatter.get_ylim(), xlabel="represented features")
    counts.set_title("all densities", fontsize=10)
    counts.tick_params(labelleft=False)
    counts.spines[["top", "right"]].set_visible(False)


EXPERIMENT = Experiment(
    name="geometry",
    title="The geometry of superposition",
    source="Elhage et al. 2022, Toy Models of Superposition, section The Geometry of Superposition",
    summary=(
        "Tied autoencoders of 400 equally important features in 30 dimensions, at densities from 1 to 0.01. "
        "The dimensions per feature, D* = m/‖W‖²_F, fall from 1 with a plateau at 1/2, where features lie in "
        "antipodal pairs; the features' own dimensionalities gather at those of polytopes."
    ),
    settings=Settings(),
    quick=Settings(n_features=60, n_hidden=10, points=14, rarest=10.0, steps=1500, batch_size=512, lr=1e-2,
                   schedule="cosine"),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 4.8),
)  # fmt: skip
