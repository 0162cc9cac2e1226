"""Features that come together lie at right angles or side by side, those that exclude each other opposite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.data.groups import Anticorrelated, Correlated
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.experiments.training import adamw
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, VERMILLION
from toykern.plot.geometry import interference
from toykern.training.evaluation import evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from toykern.results.run import Run

BASES_FEATURES, BASES_HIDDEN = 20, 10


@dataclass(frozen=True)
class Settings:
    """What may be set.

    `density` is 1 − S of a *set*: a correlated feature has this probability, an anticorrelated one of k a kth
    of it. `densities` are those of six features in three pairs, of which the sparsest is a panel of its own;
    `bases_density` is that of the two sets of ten.
    """

    density: float = 0.03
    densities: tuple[float, ...] = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
    bases_density: float = 0.03
    seeds: int = 100
    bases_seeds: int = 8
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """Two pairs of each kind, three correlated pairs at all densities, two correlated sets of ten."""
    fit = adamw(settings)
    pairs = grid(density=[settings.density], seed=range(settings.seeds))
    collapse = grid(density=settings.densities, seed=range(settings.seeds))
    bases = grid(density=[settings.bases_density], seed=range(settings.bases_seeds))
    shapes = (
        ("correlated", pairs, Correlated, 2, 2, 2),
        ("anticorrelated", pairs, Anticorrelated, 2, 2, 2),
        ("three-pairs", collapse, Correlated, 3, 2, 2),
        ("bases", bases, Correlated, 2, BASES_FEATURES // 2, BASES_HIDDEN),
    )
    return [
        Stage(
            name,
            points,
            partial(_plan, settings.seed, kind, sets, members, hidden),
            fit,
            partial(_measure, settings.seed, kind, sets, members),
        )
        for name, points, kind, sets, members, hidden in shapes
    ]


def _data(kind: type, sets: int, members: int, points: Grid) -> SparseFeatures:
    """`sets` sets of `members` features each, one after the other."""
    groups = [kind(range(members * k, members * (k + 1))) for k in range(sets)]
    share = members if kind is Anticorrelated else 1
    return SparseFeatures(sets * members, points.density[:, None] / share, groups=groups)


def _plan(
    seed: int, kind: type, sets: int, members: int, hidden: int, points: Grid, index: torch.Tensor
) -> dict[str, Any]:
    seeds = own_seeds(seed, index)
    model = TiedAutoencoder(
        sets * members, hidden, points.n_models, seed=seeds, dtype=torch.float32, device="cpu"
    )
    return {"model": model, "data": _data(kind, sets, members, points), "seed": seeds}


def _measure(
    seed: int, kind: type, sets: int, members: int, run: Run, points: Grid, index: torch.Tensor
) -> dict[str, torch.Tensor]:
    data = _data(kind, sets, members, points)
    if sets * members > 12:
        return {"fresh_loss": evaluate(run.model, data, seed=seed)}
    return {"fresh_loss": evaluate(run.model, data, 4096, seed=seed, method="stratified")}


def pair_cosines(weight: NDArray[Any]) -> NDArray[Any]:
    """Of the two features of each pair (0, 1), (2, 3), …; `[…, n_hidden, n_features]` → `[…, pairs]`.

    >>> pair_cosines(np.array([[1.0, -2.0], [0.0, 0.0]])).tolist()
    [-1.0]
    """
    first, second = weight[..., 0::2], weight[..., 1::2]
    lengths = np.linalg.norm(first, axis=-2) * np.linalg.norm(second, axis=-2)
    found: NDArray[Any] = (first * second).sum(axis=-2) / np.maximum(lengths, 1e-12)
    return found


def pair_components(weight: NDArray[Any]) -> NDArray[Any]:
    """How much of the principal components (a + b)/√2 and (a − b)/√2 of each pair is represented.

    ‖W (e_a ± e_b)/√2‖² of `[…, n_hidden, n_features]`, as `[…, 2, pairs]`.

    >>> pair_components(np.array([[1.0, 1.0]])).round(6).tolist()
    [[2.0], [0.0]]
    """
    first, second = weight[..., 0::2], weight[..., 1::2]
    parts = [((first + sign * second) ** 2).sum(axis=-2) / 2 for sign in (1, -1)]
    return np.stack(parts, axis=-2)


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best model of each panel: angles within pairs, which pairs have collapsed, angles within sets."""
    weights = {
        name: take(models.read("weight"), best_over(models.read("fresh_loss")))
        for name, models in trained.items()
    }
    together = pair_cosines(weights["correlated"][0])
    apart = pair_cosines(weights["anticorrelated"][0])
    densities = np.asarray(settings.densities)
    order = np.argsort(densities)
    cosines = pair_cosines(weights["three-pairs"])
    plus, minus = np.moveaxis(pair_components(weights["three-pairs"]), -2, 0)
    collapsed = ((minus < 0.1 * plus) & (plus > 0.3)).sum(axis=-1)
    sparse, dense = order[0], order[-1]
    gram = weights["bases"][0].T @ weights["bases"][0]
    norms = np.sqrt(np.diag(gram).clip(min=1e-12))
    angle = np.abs(gram / np.outer(norms, norms) - np.eye(BASES_FEATURES))
    half = BASES_FEATURES // 2
    within = max(float(angle[:half, :half].max()), float(angle[half:, half:].max()))
    across = float(angle[:half, half:].max())
    represented = int((norms > 0.5).sum())
    text = ", ".join(f"{count} at {p:g}" for p, count in zip(densities[order], collapsed[order], strict=True))
    outcomes = (
        Outcome(
            "Two correlated pairs in the plane",
            "the two of a pair are orthogonal, in different tegum factors (Organization of Correlated and "
            "Anticorrelated Features)",
            "cosines within pairs " + ", ".join(f"{cosine:.2f}" for cosine in together),
            bool(np.abs(together).max() < 0.1),
        ),
        Outcome(
            "Two anticorrelated pairs in the plane",
            "the two of a pair are antipodal",
            "cosines within pairs " + ", ".join(f"{cosine:.2f}" for cosine in apart),
            bool(apart.max() < -0.95),
        ),
        Outcome(
            "Three correlated pairs in the plane, sparse",
            "no room to be orthogonal: a hexagon with the two of a pair side by side",
            f"cosines within pairs at p = {densities[sparse]:g}: "
            + ", ".join(f"{cosine:.2f}" for cosine in cosines[sparse]),
            bool((cosines[sparse] > 0.2).all() and collapsed[sparse] == 0)
            if densities[sparse] <= 0.05
            else None,
            "" if densities[sparse] <= 0.05 else "no density is sparse enough for the hexagon",
        ),
        Outcome(
            "Three correlated pairs in the plane, denser",
            "pairs collapse one after another into their principal component (a + b)/√2 until all is PCA "
            "(Collapsing of Correlated Features)",
            f"collapsed pairs: {text}",
            bool(collapsed[sparse] == 0 and collapsed[dense] == 3 and (np.diff(collapsed[order]) >= 0).all())
            if densities[sparse] <= 0.05 and 0.4 <= densities[dense] <= 0.7
            else None,
            "" if 0.4 <= densities[dense] <= 0.7 else "no density where everything has collapsed",
        ),
        Outcome(
            "Two correlated sets of ten in ten dimensions",
            "each set by itself is (nearly) an orthogonal basis, while the two are in superposition with "
            "each other (Local Almost-Orthogonal Bases)",
            f"{represented} features represented; largest |cosine| within a set {within:.2f}, between the "
            f"sets {across:.2f}",
            bool(within < 0.25 and across > 2 * within and represented > BASES_HIDDEN),
        ),
    )
    return Findings(
        {
            "correlated": labelled("hidden four", weights["correlated"][0]),
            "anticorrelated": labelled("hidden four", weights["anticorrelated"][0]),
            "three_pairs": labelled("density hidden six", weights["three-pairs"]),
            "cosines": labelled("density pair", cosines),
            "principal": labelled("density pair", plus),
            "second": labelled("density pair", minus),
            "collapsed": labelled("density", collapsed),
            "bases": labelled("code feature", weights["bases"][0]),
        },
        {"density": densities},
        outcomes,
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Features in the plane, pairs by colour; below them what happens as six grow denser; WᵀW of two sets."""
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1.0, 1.15))).tolist()
    densities = findings["density"]
    order = np.argsort(densities)
    shown = order[np.unique(np.linspace(0, len(order) - 1, 3).round().astype(int))]
    panels = above.subplots(1, 2 + len(shown), squeeze=False)[0]
    _pairs(panels[0], findings["correlated"], "correlated pairs")
    _pairs(panels[1], findings["anticorrelated"], "anticorrelated pairs")
    for panel, at in zip(panels[2:], shown, strict=True):
        _pairs(panel, findings["three_pairs"][at], f"correlated, p = {densities[at]:g}")
    left, right = below.subplots(1, 2, width_ratios=(1.0, 1.0))
    for name, colour, label in (
        ("principal", BLUE, "(a + b)/√2"),
        ("second", VERMILLION, "(a − b)/√2"),
    ):
        values = findings[name][order]
        left.plot(densities[order], values, "o", color=colour, markersize=4, alpha=0.7)
        left.plot(densities[order], values.mean(axis=1), color=colour, label=label)
    left.set(
        xscale="log",
        xlabel="density p of a pair",
        ylabel="represented, ‖W u‖²",
        title="three correlated pairs: principal components u",
    )
    left.set_ylim(-0.05, 1.25 * float(findings["principal"].max()))
    left.legend(loc="upper right", fontsize=8, ncols=2)
    interference(findings["bases"], ax=right, title="two correlated sets of ten: WᵀW")


def _pairs(panel: Axes, weight: NDArray[Any], title: str) -> None:
    """Features as arrows, the two of a pair in one colour and with markers of their own."""
    turn = np.linspace(0, 2 * np.pi, 200)
    panel.plot(np.cos(turn), np.sin(turn), ":", color=GREY, linewidth=0.8)
    for feature, (x, y) in enumerate(weight.T):
        colour = (BLUE, VERMILLION, GREEN)[feature // 2]
        panel.plot([0, x], [0, y], color=colour, linewidth=1.2)
        marker, size = (("o", 9.0), ("s", 5.0))[feature % 2]
        panel.plot([x], [y], marker, color=colour, markersize=size, markeredgecolor="black")
    reach = 1.25 * max(1.0, float(np.abs(weight).max()))
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    panel.set_title(title, fontsize=9)


EXPERIMENT = Experiment(
    name="correlated-features",
    title="Correlated and anticorrelated features",
    source="Elhage et al. 2022, Toy Models of Superposition, section Correlated and Anticorrelated Features",
    summary=(
        "Pairs of features that are active together lie at right angles, pairs of which at most one is "
        "active lie opposite. Where three correlated pairs share a plane, they lie side by side, and as they "
        "grow denser collapse into their principal components. In ten dimensions, each of two correlated "
        "sets of ten is nearly an orthogonal basis of its own."
    ),
    settings=Settings(),
    quick=Settings(
        densities=(0.01, 0.03, 0.1, 0.2, 0.3, 0.5),
        seeds=12,
        bases_seeds=2,
        steps=2000,
        lr=1e-2,
        schedule="cosine",
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.5, 6.4),
)
