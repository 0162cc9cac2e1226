"""Learning in steps: features jump from one dimensionality to another, and the loss drops as they do."""

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
from toykern.fitting.fitting import log_spaced_steps
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREY
from toykern.training.evaluation import evaluate
from toykern.training.optim import AdamW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPRESENTED = 0.5
"""The norm from which on a feature counts as represented."""
JUMP = 0.1
"""How far its dimensionality moves between two snapshots when a represented feature jumps: less than the
distance from a digon (1/2) to a triangle (2/3), as much as that to a pentagon (2/5)."""


@dataclass(frozen=True)
class Settings:
    """What may be set.

    The paper has n = 400, m = 30 and up to 10⁵ steps in its section on geometry, its notebook n = 200, m =
    20; here it is the notebook's size for 10⁵ steps. `density` is in the range where all end as digons, which
    the paper's figure shows. `shrink` multiplies the standard deviation of Xavier's initial weights.
    """

    n_features: int = 200
    n_hidden: int = 20
    density: float = 0.3
    shrink: float = 0.1
    models: int = 4
    steps: int = 100_000
    snapshots: int = 150
    batch_size: int = 1024
    lr: float = 1e-3
    samples: int = 16_384
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """A few models of one shape, their weights kept at steps that are evenly spaced in the logarithm."""
    n, m = settings.n_features, settings.n_hidden
    std = settings.shrink * (2 / (n + m)) ** 0.5

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(
                n, m, points.n_models, init=std, seed=seeds, dtype=torch.float32, device="cpu"
            ),
            "data": SparseFeatures(n, settings.density),
            "seed": seeds,
        }

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": AdamW(lr=settings.lr),
        "snapshots": log_spaced_steps(settings.steps, settings.snapshots),
    }
    return [Stage("learning", grid(seed=range(settings.models)), plan, fit)]


@dataclass(frozen=True)
class Intervals:
    """What happens between the snapshots of one model, `[snapshots − 1]` each.

    Attributes:
        jumps: how many represented features jump.
        moved: by how much the dimensionalities of represented features change, summed.
        drop: by how much the logarithm of the loss falls.
        learned: whether as many features have been represented as are at the end: what happens before is
            that features appear.
    """

    jumps: NDArray[np.int64]
    moved: NDArray[np.float64]
    drop: NDArray[np.float64]
    learned: NDArray[np.bool_]


def between(dimensionality: NDArray[Any], norm: NDArray[Any], loss: NDArray[Any]) -> Intervals:
    """From `[snapshots, features]` twice, and the loss `[snapshots]`.

    >>> d, one = np.array([[0.5, 0.5], [0.5, 0.75]]), np.ones((2, 2))
    >>> found = between(d, one, np.array([1.0, 1.0]))
    >>> found.jumps.tolist(), found.moved.tolist(), found.drop.tolist(), found.learned.tolist()
    ([1], [0.25], [0.0], [True])
    """
    seen = norm > REPRESENTED
    change = np.abs(np.diff(dimensionality, axis=0)) * (seen[1:] | seen[:-1])
    learned = np.maximum.accumulate(seen.sum(axis=1) >= seen[-1].sum())[:-1]
    return Intervals((change > JUMP).sum(axis=1), change.sum(axis=1), -np.diff(np.log(loss)), learned)


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's, of values without ties; NaN of fewer than two.

    >>> rank_correlation(np.array([1, 2, 30]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    if len(x) < 2:
        return float("nan")
    first, second = (np.argsort(np.argsort(values)).astype(np.float64) for values in (x, y))
    return float(np.round(np.corrcoef(first, second)[0, 1], 12))


def snapshot_losses(settings: Settings, trained: Trained, steps: list[int]) -> NDArray[np.float64]:
    """The loss at every snapshot on samples that are the same for all of them, `[models, snapshots]`."""
    data = SparseFeatures(settings.n_features, settings.density)
    kept = {name: trained.read(f"{name}_snapshots") for name in ("weight", "bias")}
    model = TiedAutoencoder(
        settings.n_features, settings.n_hidden, settings.models, dtype=torch.float32, device="cpu"
    )
    found = np.empty((settings.models, len(steps)))
    for at in range(len(steps)):
        with torch.no_grad():
            for name, values in kept.items():
                model.get_parameter(name).copy_(torch.from_numpy(values[:, at]))
        found[:, at] = evaluate(model, data, settings.samples, seed=settings.seed).numpy()
    return found


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Dimensionalities and losses over the steps, and what the two do together."""
    models = trained["learning"]
    steps = log_spaced_steps(settings.steps, settings.snapshots)
    weight = models.read("weight_snapshots")
    count, taken = weight.shape[:2]
    dimensionality = metrics.feature_dimensionality(torch.from_numpy(weight.reshape(-1, *weight.shape[2:])))
    values = dimensionality.numpy().reshape(count, taken, -1)
    norms = np.linalg.norm(weight, axis=2)
    loss = snapshot_losses(settings, models, steps)
    each = [between(values[k], norms[k], loss[k]) for k in range(count)]
    final, represented = values[:, -1], norms[:, -1] > REPRESENTED
    digons = float((np.abs(final - 0.5) < 0.03)[represented].mean()) if represented.any() else 0.0
    jumps = int(sum(part.jumps[part.learned].sum() for part in each))
    intervals = int(sum(part.learned.sum() for part in each))
    holding = int(sum((part.jumps[part.learned] > 0).sum() for part in each))
    together = [rank_correlation(part.moved[part.learned], part.drop[part.learned]) for part in each]
    ratio = [_steeper(part) for part in each]
    enough = intervals >= 10 * count and jumps >= count
    short = "" if enough else "Too few intervals or jumps to tell."
    outcomes = (
        Outcome(
            "Where features end",
            "all features converge into digons, D = 1/2 (Discrete Energy Level Jumps)",
            f"{100 * digons:.0f}% of {int(represented.sum())} represented features of {count} models have "
            f"|D − 1/2| < 0.03",
            bool(digons > 0.8),
        ),
        Outcome(
            "How they get there",
            "the dimensionality of some features jumps between different values",
            f"{jumps} jumps by more than {JUMP} between two snapshots, in {holding} of the {intervals} "
            f"intervals after as many features are represented as at the end",
            bool(holding < 0.5 * intervals) if enough else None,
            short,
        ),
        Outcome(
            "What the loss does meanwhile",
            "it drops suddenly as features jump",
            "rank correlation between what dimensionalities move and what the logarithm of the loss falls in "
            "an interval: " + ", ".join(f"{value:.2f}" for value in together) + "; in the quarter of the "
            "intervals in which they move most it falls "
            + ", ".join(f"{value:.1f}" for value in ratio)
            + " times as fast as in the others",
            bool(np.mean(together) > 0.5 and np.mean(ratio) > 2) if enough else None,
            "Intervals are equally long in the logarithm of the step, so that a jump may take several. "
            + short,
        ),
    )
    return Findings(
        {
            "dimensionality": labelled("model step feature", values),
            "norm": labelled("model step feature", norms),
            "loss": labelled("model step", loss),
            "jumps": labelled("model interval", np.stack([part.jumps for part in each])),
            "moved": labelled("model interval", np.stack([part.moved for part in each])),
            "drop": labelled("model interval", np.stack([part.drop for part in each])),
        },
        {"step": np.asarray(steps)},
        outcomes,
    )


def _steeper(part: Intervals) -> float:
    """How much faster the loss falls in the quarter of the intervals in which features move most."""
    moved, drop = part.moved[part.learned], part.drop[part.learned]
    if len(moved) < 4:
        return float("nan")
    most = moved >= np.quantile(moved, 0.75)
    if most.all():
        return float("nan")
    return float(drop[most].mean() / max(float(drop[~most].mean()), 1e-12))


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """One model: the dimensionality of every feature over the steps, and below it the loss."""
    from matplotlib import colormaps

    steps, jumps = findings["step"], findings["jumps"]
    shown = int(jumps.sum(axis=1).argmax())
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, 1.0))
    values, seen = findings["dimensionality"][shown], findings["norm"][shown] > REPRESENTED

    colours = colormaps["cividis"](np.linspace(0, 0.95, values.shape[1]))
    for feature, colour in enumerate(colours):
        above.plot(steps, values[:, feature], color=colour, linewidth=0.5, alpha=0.35)
        above.plot(steps, np.where(seen[:, feature], values[:, feature], np.nan), color=colour, linewidth=1.3)
    for level, name in ((1, "dedicated"), (2 / 3, "triangle"), (1 / 2, "digon"), (2 / 5, "pentagon")):
        above.axhline(level, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
        above.text(0.01, level + 0.01, name, fontsize=8, color=GREY, transform=above.get_yaxis_transform())
    above.set(ylabel="dimensionality Dᵢ", ylim=(0, 1.08), xscale="log")
    above.set_title("one model: every feature (bold where it is represented)")
    below.plot(steps, findings["loss"][shown], color=BLUE)
    for at in np.flatnonzero(jumps[shown] > 0):
        below.axvspan(steps[at], steps[at + 1], color=GREY, alpha=0.25, linewidth=0)
    begun = np.flatnonzero(seen.any(axis=1))
    first = steps[max(begun[0] - 8, 0)] if len(begun) else steps[0]
    range_of = findings["loss"][shown][steps >= first]
    above.set_xlim(first, steps[-1])
    below.set_ylim(0.99 * range_of.min(), 1.01 * range_of.max())
    below.set(xlabel="training step", ylabel="loss", yscale="log")
    below.set_title("loss (grey: features jump)")
    below.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    below.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
    below.tick_params(axis="y", which="both", labelsize=8)


EXPERIMENT = Experiment(
    name="energy-levels",
    title="Discrete energy-level jumps",
    source="Elhage et al. 2022, Toy Models of Superposition, section Superposition and Learning Dynamics",
    summary=(
        "Tied autoencoders with many equally important features, from weights a tenth as large as usual. "
        "During training the dimensionalities of the features rest at a few levels and jump between them, "
        "and the loss drops as they do; at the end all represented features are digons."
    ),
    settings=Settings(),
    quick=Settings(n_features=40, n_hidden=6, steps=4000, snapshots=70, models=3, lr=3e-3, samples=8192),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(8.5, 6.5),
)
