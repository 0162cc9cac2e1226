"""One of five features rarer or denser than the others: a pentagon gives way to two opposite pairs."""

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
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.experiments.training import adamw
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, VERMILLION, plain_log_ticks
from toykern.training.evaluation import evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from toykern.results.run import Run

N_FEATURES, N_HIDDEN = 5, 2
VARIED = 0
"""The feature whose density varies."""

REPRESENTED = 0.5
"""Least norm ‖W_i‖ of a feature that is represented."""

STARTS = ("random", "pentagon", "digons")
"""What models begin from: a third of them each, so that both solutions are found where they are minima."""

OTHER, PENTAGON, DIGONS, DIGONS_WITH_VARIED = 0, 1, 2, 3
"""What models end as: all five features; two pairs without the varied feature; two pairs that include it."""

PUBLISHED_CHANGE = 0.4
"""Relative density of the change as the paper has it: about 2.5 times sparser than the others."""


@dataclass(frozen=True)
class Settings:
    """What may be set: `points` relative densities of the varied feature, 0.1 … 10; `seeds` of each start."""

    density: float = 0.05
    points: int = 41
    seeds: int = 12
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All relative densities, starts and seeds, as one stack."""
    if settings.density > 0.1:
        raise ValueError(
            f"density must be at most 0.1, not {settings.density}: one feature is up to ten times as dense"
        )

    def data(points: Grid) -> SparseFeatures:
        probability = torch.full(
            (points.n_models, N_FEATURES), settings.density, dtype=torch.float64, device="cpu"
        )
        probability[:, VARIED] *= points.ratio
        return SparseFeatures(N_FEATURES, probability)

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        model = TiedAutoencoder(
            N_FEATURES, N_HIDDEN, points.n_models, seed=seeds, dtype=torch.float32, device="cpu"
        )
        begin(model, points.start)
        return {"model": model, "data": data(points), "seed": seeds}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "fresh_loss": evaluate(run.model, data(points), 1 << 15, seed=settings.seed, method="stratified")
        }

    fit = adamw(settings)
    ratios = np.geomspace(0.1, 10.0, settings.points)
    points = grid(ratio=ratios, start=range(len(STARTS)), seed=range(settings.seeds))
    return [Stage("ratios", points, plan, fit, measure)]


def begin(model: TiedAutoencoder, start: torch.Tensor) -> None:
    """Put models where they start: as they are, at a pentagon, or at two pairs without the varied feature.

    A tenth of the random weights stays in the latter two, so that seeds differ and no symmetry is exact.
    """
    pentagon = metrics.polygon(N_FEATURES)
    square = metrics.polygon(4, N_FEATURES)
    with torch.no_grad():
        weight, bias = model.get_parameter("weight"), model.get_parameter("bias")
        for number, point in ((1, pentagon), (2, square)):
            # The columns of 0 come last in a polygon; the varied feature stands first.
            turn = 0 if number == 1 else 1
            columns = point.weight.roll(turn, dims=1).to(weight)
            chosen = (start == number).to(weight.device)
            weight[chosen] = columns + 0.1 * weight[chosen]
            bias[chosen] = point.bias.roll(turn).to(bias)


def kind_of(weight: NDArray[Any]) -> NDArray[np.int64]:
    """What each model is, by the features that it represents: `OTHER`, …; weight `[…, 2, 5]`."""
    represented = np.linalg.norm(weight, axis=-2) > REPRESENTED
    count, varied = represented.sum(axis=-1), represented[..., VARIED]
    kind = np.where(count == N_FEATURES, PENTAGON, OTHER)
    kind[(count == N_FEATURES - 1) & ~varied] = DIGONS
    kind[(count == N_FEATURES - 1) & varied] = DIGONS_WITH_VARIED
    return kind


def neighbour_angle(weight: NDArray[Any]) -> NDArray[np.float64]:
    """Mean angle between the varied feature and its two neighbours, degrees; weight `[…, 2, 5]`."""
    angle = np.arctan2(weight[..., 1, :], weight[..., 0, :]).astype(np.float64)
    ahead = np.mod(angle - angle[..., VARIED : VARIED + 1], 2 * np.pi)
    others = np.sort(np.delete(ahead, VARIED, axis=-1), axis=-1)
    mean: NDArray[np.float64] = np.degrees(0.5 * (others[..., 0] + 2 * np.pi - others[..., -1]))
    return mean


def crossing(ratio: NDArray[Any], first: NDArray[Any], second: NDArray[Any]) -> float:
    """The ratio where the first loss becomes the lower of the two, NaN where it never does.

    Log-linear between points where both are finite.

    >>> round(crossing(np.array([0.1, 1.0]), np.array([2.0, 1.0]), np.array([1.0, 2.0])), 3)
    0.316
    """
    both = np.isfinite(first) & np.isfinite(second)
    at, gap = np.log(ratio[both]), np.log(first[both] / second[both])
    for k in range(len(at) - 1):
        if gap[k] > 0 >= gap[k + 1]:
            return float(np.exp(at[k] + (at[k + 1] - at[k]) * gap[k] / (gap[k] - gap[k + 1])))
    return float("nan")


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The lowest loss of each kind of solution at each relative density, and the shape of the pentagons."""
    models = trained["ratios"]
    ratio = models.stage.grid.coords["ratio"]
    weight = models.read("weight").reshape(len(ratio), -1, N_HIDDEN, N_FEATURES)
    loss = models.read("fresh_loss").reshape(len(ratio), -1)
    kind = kind_of(weight)
    lowest = np.stack(
        [
            np.where(kind == which, loss, np.inf).min(axis=1)
            for which in (PENTAGON, DIGONS, DIGONS_WITH_VARIED)
        ]
    )
    lowest[~np.isfinite(lowest)] = np.nan
    at = best_over(np.where(kind == PENTAGON, loss, np.inf))
    angle = np.where(np.isfinite(lowest[0]), neighbour_angle(take(weight, at)), np.nan)
    best = best_over(loss)
    counts = np.stack([(kind == which).sum(axis=1) for which in range(4)])
    return Findings(
        {
            "loss": labelled("solution ratio", lowest),
            "neighbour_angle": labelled("ratio", angle),
            "best_weight": labelled("ratio hidden feature", take(weight, best)),
            "best_kind": labelled("ratio", take(kind, best)),
            "counts": labelled("kind ratio", counts),
        },
        {
            "ratio": ratio,
            "solution": np.array(["pentagon", "two digons", "two digons with the varied feature"]),
        },
        tuple(judge(ratio, lowest, angle, take(kind, best))),
    )


def judge(
    ratio: NDArray[Any], lowest: NDArray[Any], angle: NDArray[Any], best_kind: NDArray[Any]
) -> list[Outcome]:
    """Beside the paper: `lowest` is `[3, ratios]`, NaN where not found, the others `[ratios]`."""
    change = crossing(ratio, lowest[0], lowest[1])
    step = float(np.log(ratio[1] / ratio[0])) if len(ratio) > 1 else np.inf
    tolerance = np.log(1.25)
    sparser, denser = angle[ratio < 0.7], angle[ratio > 1.4]
    both = np.isfinite(lowest[:2]).all(axis=0)
    place_note = (
        "the paper says where it sees the change, not by which criterion: this is where the exact minima "
        "change "
        "places; which minimum one run ends in is another question, and was not compared"
    )
    coarse = step > tolerance
    rarest, uniform = int(ratio.argmin()), int(np.abs(np.log(ratio)).argmin())
    return [
        Outcome(
            "The sparsest feature",
            "is left out, and the other four form two antipodal pairs (section Non-Uniform Superposition)",
            f"the best model at a relative density of {ratio[rarest]:.2g} is "
            f"{('neither', 'a pentagon', 'two digons without it', 'two digons with it')[best_kind[rarest]]}",
            bool(best_kind[rarest] == DIGONS),
        ),
        Outcome(
            "Equal features",
            "a regular pentagon (same section)",
            f"the best model at {ratio[uniform]:.2g} has all five, neighbours at {angle[uniform]:.1f}°",
            bool(best_kind[uniform] == PENTAGON and abs(angle[uniform] - 72.0) < 3.0),
        ),
        Outcome(
            "A first-order change",
            "the losses of the two solutions cross (same section)",
            f"both are minima at {int(both.sum())} of {len(ratio)} relative densities; equal at {change:.2f}"
            if np.isfinite(change)
            else "they do not cross where both were found",
            bool(np.isfinite(change)),
        ),
        Outcome(
            "Where it is",
            f"at a relative density of about {PUBLISHED_CHANGE}, 2.5 times sparser (same section)",
            f"equal losses at {change:.2f}, {1 / change:.1f} times sparser",
            None if coarse or not np.isfinite(change) else bool(abs(np.log(change / 0.4)) < tolerance),
            "the relative densities lie too far apart to tell" if coarse else place_note,
        ),
        Outcome(
            "The pentagon before the change",
            "stretches: the others move away from a denser feature and towards a sparser one (same section)",
            f"mean angle to its neighbours {np.nanmin(angle):.0f}° … {np.nanmax(angle):.0f}°, from sparse "
            "to dense",
            bool(np.nanmax(sparser) < 72.0 < np.nanmin(denser))
            if np.isfinite(sparser).any() and np.isfinite(denser).any()
            else None,
            ""
            if np.isfinite(sparser).any() and np.isfinite(denser).any()
            else "no pentagon on one of the sides",
        ),
    ]


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The losses of the solutions against the relative density, and best models along it."""
    ratio = findings["ratio"]
    grid_ = figure.add_gridspec(2, 5, height_ratios=[2.2, 1.0])
    losses: Axes = figure.add_subplot(grid_[0, :3])
    angles: Axes = figure.add_subplot(grid_[0, 3:])
    looks = ((VERMILLION, "o", "pentagon"), (BLUE, "s", "two digons, the varied feature left out"),
             (GREEN, "^", "two digons, another feature left out"))  # fmt: skip
    for values, (colour, marker, name) in zip(findings["loss"], looks, strict=True):
        losses.plot(ratio, values, color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
    change = crossing(ratio, *findings["loss"][:2])
    if np.isfinite(change):
        losses.axvline(change, color="black", linewidth=0.9, label=f"equal losses: {change:.2f}")
    losses.axvline(
        PUBLISHED_CHANGE,
        color=GREY,
        linestyle="--",
        linewidth=1.0,
        label=f"published change: about {PUBLISHED_CHANGE}",
    )
    losses.set(xscale="log", yscale="log", ylabel="lowest loss, mean over features")
    losses.legend(frameon=False, fontsize=8, loc="lower right")
    angles.plot(ratio, findings["neighbour_angle"], color=VERMILLION, marker="o", markersize=3, linewidth=1.4)
    angles.axhline(72.0, color=GREY, linestyle="--", linewidth=1.0)
    angles.annotate("regular: 72°", (0.98, 72.0), xycoords=("axes fraction", "data"), xytext=(0, -3),
                    textcoords="offset points", ha="right", va="top", fontsize=8, color=GREY)  # fmt: skip
    angles.set(xscale="log", ylabel="angle of the varied feature\nto its neighbours (degrees)")
    for ax in (losses, angles):
        ax.set_xlabel("density of the varied feature / that of the others")
        ax.set_xlim(ratio.min(), ratio.max())
        plain_log_ticks(ax.xaxis)
    losses.set_title("both are minima; the lower one changes", fontsize=10)
    angles.set_title("pentagons", fontsize=10)
    wanted = np.geomspace(ratio.min(), ratio.max(), 5)
    for column, value in enumerate(wanted):
        _draw_best(
            figure.add_subplot(grid_[1, column]), findings, int(np.abs(np.log(ratio / value)).argmin())
        )


def _draw_best(ax: Axes, findings: Findings, at: int) -> None:
    """The best model at one relative density, turned so that its varied feature points up."""
    weight = findings["best_weight"][at]
    turn = np.pi / 2 - np.arctan2(*weight[::-1, VARIED])
    weight = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ weight
    for feature in range(N_FEATURES):
        colour = VERMILLION if feature == VARIED else GREY
        ax.plot([0.0, weight[0, feature]], [0.0, weight[1, feature]], color=colour, linewidth=1.2, marker="o",
                markevery=[1], markersize=5)  # fmt: skip
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])
    ax.set_title(f"best at {findings['ratio'][at]:.2g}", fontsize=9)


EXPERIMENT = Experiment(
    name="one-feature-perturbed",
    title="One feature perturbed",
    source="Elhage et al. 2022, Toy Models of Superposition, section Non-Uniform Superposition",
    summary=(
        "Tied autoencoders of five features in two dimensions at p = 0.05, but for one feature whose density "
        "varies from a tenth to ten times that. Its pentagon stretches, and where it is sparse enough a "
        "solution without it, two antipodal pairs of the others, has the lower loss: both are minima on both "
        "sides, and their losses cross."
    ),
    settings=Settings(),
    quick=Settings(points=9, seeds=4, steps=1500, lr=1e-2, schedule="cosine"),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 6.0),
)
