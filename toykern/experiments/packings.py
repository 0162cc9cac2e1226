"""Why features would lie in orthogonal subspaces: what packings of almost orthogonal directions interfere."""

from __future__ import annotations

import math
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
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, plain_log_ticks
from toykern.training.optim import AdamW

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Settings:
    """What may be set: `n_features` in `n_dimensions` are packed by the formula, at these `moments`; models
    of `trained_features` and `trained_hidden` are trained to compare with it (at least 24 ln n dimensions,
    below which the lemma says nothing). `points` are the numbers of subspaces that are looked at."""

    n_features: int = 100_000
    n_dimensions: int = 10_000
    moments: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    points: int = 400
    trained_features: int = 400
    trained_hidden: int = 160
    trained_densities: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)
    steps: int = 3000
    batch_size: int = 1024
    lr: float = 3e-3
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """A model at each of a few densities; the formula needs no training."""

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(
                settings.trained_features,
                settings.trained_hidden,
                points.n_models,
                seed=seeds,
                dtype=torch.float32,
                device="cpu",
            ),
            "data": SparseFeatures(settings.trained_features, points.density[:, None]),
            "seed": seeds,
        }

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": AdamW(lr=settings.lr),
        "schedule": "cosine",
    }
    return [Stage("trained", grid(density=settings.trained_densities), plan, fit)]


def largest_k(n: float, d: float) -> float:
    """The largest number of subspaces for which the lemma has an ε ≤ 1, counted up from 1; NaN where none.

    >>> round(largest_k(1e5, 1e4))
    55
    """
    if 24 * np.log(n) > d:
        return float("nan")
    low, high = 1.0, min(d, n / math.e)
    if 24 * high * np.log(n / high) <= d:
        return high
    while high - low > 1e-9 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if 24 * middle * np.log(n / middle) <= d else (low, middle)
    return low


def cosines(weight: NDArray[Any], represented: float = 0.5) -> NDArray[np.float64]:
    """|cosine| of all pairs of represented features of one model `[n_hidden, n_features]`.

    >>> cosines(np.array([[1.0, 1.0, 0.01], [0.0, 1.0, 0.0]])).round(3).tolist()
    [0.707]
    """
    norms = np.linalg.norm(weight, axis=0)
    unit = weight[:, norms > represented] / norms[norms > represented]
    found: NDArray[np.float64] = np.abs(unit.T @ unit)[np.triu_indices(unit.shape[1], 1)]
    return found


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Loss and derivative by number of subspaces, the best number by moment, and trained models' angles."""
    n, d = float(settings.n_features), float(settings.n_dimensions)
    moments = np.sort(np.asarray(settings.moments))
    last = largest_k(n, d)
    if not last > 1:
        raise ValueError(
            f"n_dimensions must be at least 24 ln n_features = {24 * np.log(n):.0f}, not "
            f"{settings.n_dimensions}"
        )
    k = np.geomspace(1.0, last * (1 - 1e-9), settings.points)
    epsilon = metrics.packing_interference(n, d, k)
    loss = metrics.packing_loss(n, d, k, moments[:, None])
    slope = metrics.packing_slope(n, d, k, moments[:, None])
    best = metrics.best_packing(n, d, moments)
    fine = np.linspace(moments[0], moments[-1], 60)
    low = moments <= 2
    inside = (best[low] > 1.01) & (best[low] < 0.999 * last)
    shares = (best / last).round(4)
    weight = trained["trained"].read("weight")
    angles = [cosines(one) for one in weight]
    represented = (np.linalg.norm(weight, axis=1) > 0.5).sum(axis=1)
    bound = metrics.packing_interference(np.maximum(represented, 1), settings.trained_hidden)
    highest = np.array([part.max() if len(part) else 0.0 for part in angles])
    typical = np.array([np.sqrt((part**2).mean()) if len(part) else 0.0 for part in angles])
    superposed = (represented > settings.trained_hidden) & np.isfinite(bound)
    text = ", ".join(f"{k_:.3g} at p = {p:g}" for k_, p in zip(best, moments, strict=True))
    outcomes = (
        Outcome(
            "The best number of subspaces at low moments",
            "for moments from 0.5 to 2 the least loss lies within the range of k, if just barely at 0.5 "
            "(Jermyn 2022, correction in the comments)",
            f"best k: {text}; the range ends at k = {last:.1f}",
            bool(inside.all()) if low.any() else None,
            "" if low.any() else "no moment up to 2",
        ),
        Outcome(
            "As higher moments count",
            "the best number of subspaces falls: what avoids the worst interference is one large packing",
            "best k over the largest: " + ", ".join(f"{share:g}" for share in shares),
            bool((np.diff(best) <= 1e-6 * best[:-1]).all() and best[-1] < best[0]) if len(best) > 1 else None,
            "" if len(best) > 1 else "a single moment",
        ),
        Outcome(
            "Where the range ends",
            "the interference reaches 1 long before the subspaces have one dimension each",
            f"ε = {epsilon[-1]:.3f} with subspaces of {d / last:.0f} dimensions",
            bool(d / last > 10),
        ),
        Outcome(
            "Trained models beside one packing",
            "directions with |cosine| ≤ ε exist (the lemma, with the constants of Dasgupta and Gupta 2003)",
            "largest |cosine| of represented features: "
            + ", ".join(
                f"{a:.2f} (ε = {e:.2f}, {count} features, p = {p:g})"
                for a, e, count, p in zip(
                    highest, bound, represented, settings.trained_densities, strict=True
                )
            ),
            None,
            "Training lowers a loss that cares little for the largest: opposite pairs have cosine −1. The "
            "lemma only bounds what the best packing reaches.",
        ),
        Outcome(
            "Typical interference of trained models",
            "nothing was published; the lemma's ε is of the worst pair",
            "root mean square of cosines "
            + ", ".join(
                f"{a:.3f} at p = {p:g}" for a, p in zip(typical, settings.trained_densities, strict=True)
            )
            + f"; {int(superposed.sum())} of {len(superposed)} models hold more features than dimensions",
            None,
            "shown for comparison",
        ),
    )
    return Findings(
        {
            "epsilon": labelled("k", epsilon),
            "loss": labelled("moment k", loss),
            "slope": labelled("moment k", slope),
            "best": labelled("moment", best),
            "best_fine": labelled("fine", metrics.best_packing(n, d, fine)),
            "represented": labelled("density", represented),
            "largest_cosine": labelled("density", highest),
            "typical_cosine": labelled("density", typical),
            "bound": labelled("density", bound),
        },
        {"k": k, "moment": moments, "fine": fine, "density": np.asarray(settings.trained_densities)},
        outcomes,
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Loss and derivative over the number of subspaces, the best number over the moment, trained models."""
    panels = figure.subplots(2, 2)
    k, moments = findings["k"], findings["moment"]
    colours = (BLUE, SKY, GREEN, ORANGE, VERMILLION, GREY)
    for at, moment in enumerate(moments):
        colour, loss = colours[at % len(colours)], findings["loss"][at]
        panels[0, 0].plot(k, loss / loss[0], color=colour, label=f"{moment:g}")
        panels[1, 0].plot(k, findings["slope"][at] * k / loss, color=colour)
    panels[0, 0].set(xscale="log", yscale="log", ylabel="loss / loss at k = 1", title="(n²/k) εᵖ")
    panels[0, 0].legend(title="moment p", fontsize=8, title_fontsize=8, ncols=2)
    panels[1, 0].axhline(0, color=GREY, linewidth=0.8)
    panels[1, 0].set(xscale="log", ylim=(-1.5, 3), xlabel="subspaces k", ylabel="d ln loss / d ln k")
    panels[0, 1].plot(findings["fine"], findings["best_fine"], color=BLUE)
    panels[0, 1].plot(moments, findings["best"], "o", color=BLUE)
    panels[0, 1].axhline(k[-1], color=GREY, linestyle="--", linewidth=1)
    panels[0, 1].annotate("ε = 1", (moments[-1], k[-1]), color=GREY, fontsize=8, ha="right", xytext=(0, -11),
                          textcoords="offset points")  # fmt: skip
    panels[0, 1].set(xlabel="moment p", ylabel="best number of subspaces", yscale="log", title="best packing")
    density = findings["density"]
    panels[1, 1].plot(density, findings["bound"], "--", color=GREY, label="ε of one packing")
    panels[1, 1].plot(density, findings["largest_cosine"], "o-", color=VERMILLION, label="largest |cosine|")
    panels[1, 1].plot(density, findings["typical_cosine"], "o-", color=BLUE, label="root mean square")
    panels[1, 1].set(xscale="log", xlabel="density p", ylabel="between features", title="trained models")
    panels[1, 1].set_ylim(0, 1.45)
    panels[1, 1].legend(fontsize=8, loc="upper center", ncols=2)
    plain_log_ticks(panels[1, 1].xaxis)


EXPERIMENT = Experiment(
    name="packings",
    title="Packings and tegum products",
    source="Jermyn 2022, Toy Models and Tegum Products (with the correction in its comments)",
    summary=(
        "n features in k orthogonal subspaces of d/k dimensions interfere as the lemma of Johnson and "
        "Lindenstrauss has it; the loss (n²/k) εᵖ has its minimum at a number of subspaces that falls "
        "with the moment p. Beside it, the angles between the features of trained models."
    ),
    settings=Settings(),
    quick=Settings(
        points=100,
        trained_features=200,
        trained_hidden=130,
        trained_densities=(0.03, 0.003),
        steps=300,
        lr=1e-2,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.0, 6.4),
)
