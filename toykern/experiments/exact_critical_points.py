"""One-sparse data: do trained models end at the exact critical points, the regular polygons?"""

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
from toykern.experiments.seeds import best_over, own_seeds
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREY, ORANGE, VERMILLION, plain_log_ticks
from toykern.plot.geometry import feature_directions
from toykern.training.optim import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEATURES = (4, 5)
"""Numbers of features c, each with a stage of its own."""

STILL = 0.01
"""Length of a gradient that counts as 0 for a trained model, whose last batches were samples."""

PUBLISHED = {4: (1.0, 0.0, 0.0), 5: (1.17046, -0.28230, 0.01583)}
"""Radius, bias and loss of the c-gon of c features (Chen et al. 2023)."""


@dataclass(frozen=True)
class Settings:
    """What may be set: `seeds` models of each number of features, by SGD on a cosine down from `lr`.

    A model counts as ended at a polygon where lengths and biases are within `tolerance` of it, and the angles
    between neighbours within `angle_tolerance` degrees.
    """

    seeds: int = 400
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 0.1
    momentum: float = 0.9
    tolerance: float = 0.02
    angle_tolerance: float = 2.0
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All seeds of each number of features, from random weights."""
    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": SGD(lr=settings.lr, momentum=settings.momentum),
        "schedule": "cosine",
        "loss_reduction": "sum",
    }
    return [_stage(c, settings, fit) for c in FEATURES]


def _stage(features: int, settings: Settings, fit: dict[str, Any]) -> Stage:
    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(features, 2, points.n_models, seed=seeds, dtype=torch.float32,
                                     device="cpu"),
            "data": SparseFeatures.one_sparse(features),
            "seed": seeds,
        }  # fmt: skip

    return Stage(f"features-{features}", grid(seed=range(settings.seeds)), plan, fit)


def one_sparse_loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The exact loss of tied autoencoders with ReLU output on one-sparse data, summed over features.

    The samples are x = μ eᵢ with μ uniform on [0, 1] and i uniform over the features (Chen et al. 2023). With
    gᵢⱼ = Wᵢ·Wⱼ, output j is ReLU(μ gᵢⱼ + bⱼ): on the part of [0, 1] where that is positive it is a line in μ,
    whose square, and product with μ, are integrated in closed form.

    Args:
        weight: `[models, n_hidden, n_features]`, float64 for exact results.
        bias: `[models, n_features]`.

    Returns:
        `[models]`; can be differentiated with respect to both.

    >>> square = metrics.polygon(4)
    >>> round(one_sparse_loss(square.weight[None], square.bias[None]).item(), 12)
    0.0
    """
    gram, shift = weight.mT @ weight, bias[:, None, :].expand(-1, weight.shape[-1], -1)
    # The ends of the positive part move with the weights, but the integrand is 0 there: they are constants.
    with torch.no_grad():
        root = (-shift / torch.where(gram == 0, 1.0, gram)).clamp(0.0, 1.0)
        low = torch.where(gram > 0, root, 0.0)
        high = torch.where(gram < 0, root, 1.0)
        high = torch.where((gram == 0) & (shift <= 0), 0.0, high)
    length, second, third = high - low, (high**2 - low**2) / 2, (high**3 - low**3) / 3
    squares = gram**2 * third + 2 * gram * shift * second + shift**2 * length
    products = (gram * third + shift * second).diagonal(dim1=-2, dim2=-1)
    return (squares.sum(dim=(-2, -1)) - 2 * products.sum(dim=-1)) / weight.shape[-1] + 1.0 / 3.0


def gradient_norms(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Length of the exact gradient of `one_sparse_loss`, weights and biases together: `[models]`.

    >>> pentagon = metrics.polygon(5)
    >>> gradient_norms(pentagon.weight[None], pentagon.bias[None]).item() < 1e-9
    True
    """
    parameters = [value.detach().clone().requires_grad_() for value in (weight, bias)]
    gradients = torch.autograd.grad(one_sparse_loss(*parameters).sum(), parameters)
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)


def vertices(
    weight: NDArray[Any], bias: NDArray[Any], tolerance: float, angle_tolerance: float
) -> NDArray[np.int64]:
    """The k of the k-gon that each model is, 0 where it is none: `[models]`; bias `[models, n]`.

    The k represented features must have the length, the biases and the angles of `metrics.polygon(k, n)`, and
    the others a length near 0 (their bias is not looked at).
    """
    n = weight.shape[-1]
    length = np.linalg.norm(weight, axis=1)
    found = np.zeros(len(weight), dtype=np.int64)
    for model, own in enumerate(length):
        shown = own > 0.5
        k = int(shown.sum())
        if k < 2:
            continue
        point = metrics.polygon(k, n)
        angle = np.sort(np.degrees(np.arctan2(weight[model, 1, shown], weight[model, 0, shown])))
        gaps = np.diff(angle, append=angle[0] + 360.0)
        fits = (
            np.abs(own[shown] - point.radius).max() < tolerance
            and np.abs(bias[model, shown] - float(point.bias[0])).max() < tolerance
            and np.abs(gaps - 360.0 / k).max() < angle_tolerance
            and own[~shown].max(initial=0.0) < 0.2
        )
        found[model] = k if fits else 0
    return found


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Where each model ended, its exact loss, and the gradient at the exact points."""
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    outcomes: list[Outcome] = []
    for c in FEATURES:
        models = trained[f"features-{c}"]
        weight, bias = models.read("weight").astype(np.float64), models.read("bias").astype(np.float64)
        tensors = torch.from_numpy(weight), torch.from_numpy(bias)
        loss, gradient = one_sparse_loss(*tensors).numpy(), gradient_norms(*tensors).numpy()
        kinds = vertices(weight, bias, settings.tolerance, settings.angle_tolerance)
        arrays |= {
            f"weight_{c}": labelled(("seed", "hidden", f"feature_{c}"), weight),
            f"bias_{c}": labelled(("seed", f"feature_{c}"), bias),
            f"loss_{c}": labelled("seed", loss),
            f"gradient_{c}": labelled("seed", gradient),
            f"vertices_{c}": labelled("seed", kinds),
            f"training_loss_{c}": labelled("seed record", models.read("loss")),
        }
        outcomes += judge(c, weight, bias, loss, gradient, kinds)
    return Findings(arrays, {}, tuple(outcomes))


def judge(
    c: int,
    weight: NDArray[Any],
    bias: NDArray[Any],
    loss: NDArray[Any],
    gradient: NDArray[Any],
    kinds: NDArray[np.int64],
) -> list[Outcome]:
    """The exact point, and trained models of c features (`[models, …]` each), beside what was published."""
    name = {4: "square", 5: "pentagon"}[c]
    radius, shift, published_loss = PUBLISHED[c]
    point = metrics.polygon(c)
    scales = torch.tensor([1.0, 1.02], dtype=torch.float64, device="cpu")
    length, beside = gradient_norms(scales[:, None, None] * point.weight, point.bias.repeat(2, 1)).tolist()
    exact = one_sparse_loss(point.weight[None], point.bias[None]).item()
    best = int(best_over(loss))
    best_radius = float(np.linalg.norm(weight[best], axis=0).mean())
    best_bias = float(bias[best].mean())
    still = gradient < STILL
    numbers, counts = np.unique(kinds[kinds != c], return_counts=True)
    rest = "".join(
        f", {count} {f'in a {k}-gon with {c - k} left out' if k else 'with fewer, or in no polygon'}"
        for k, count in zip(numbers[::-1], counts[::-1], strict=True)
    )
    return [
        Outcome(
            f"The exact {name}, c = {c}",
            f"radius {radius:g}, bias {shift:g}, loss {published_loss:g}; the gradient vanishes (Chen et "
            "al. 2023)",
            f"radius {point.radius:.5f}, bias {float(point.bias[0]):.5f}, loss {exact:.5f}; gradient "
            f"{length:.1e}, "
            f"{beside:.1e} at a radius 2% larger",
            bool(
                max(
                    abs(point.radius - radius), abs(float(point.bias[0]) - shift), abs(exact - published_loss)
                )
                < 1e-5
                and length < 1e-6
            ),
        ),
        Outcome(
            f"Where models of {c} features end",
            "SGD comes to rest at critical points, regular polygons with or without features that are "
            "left out; "
            f"the {name} is the best of them (same paper)",
            f"the exact gradient is shorter than {STILL} for {still.mean():.0%}; of {len(kinds)} models "
            f"{(kinds == c).sum()} in the {name}{rest}",
            bool(still.mean() > 0.9 and kinds[best] == c),
        ),
        Outcome(
            f"The best model of {c} features",
            f"radius {radius:g}, bias {shift:g}, loss {published_loss:g} (same paper)",
            f"radius {best_radius:.4f}, bias {best_bias:.4f}, exact loss {loss[best]:.5f}",
            bool(
                abs(best_radius - radius) < 0.01
                and abs(best_bias - shift) < 0.01
                and abs(loss[best] - published_loss) < 5e-4
            ),
        ),
    ]


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Training of five features by where it ended, lengths and biases of all models, the best pentagon."""
    curves, points, plane = figure.subplots(1, 3, width_ratios=[1.3, 1.1, 1.0])
    _draw_curves(settings, findings, curves)
    for c, colour, marker in ((5, VERMILLION, "o"), (4, BLUE, "s")):
        length = np.linalg.norm(findings[f"weight_{c}"], axis=1)
        shown = length > 0.5
        points.scatter(length[shown], findings[f"bias_{c}"][shown], s=14, color=colour, marker=marker,
                       alpha=0.3, linewidths=0, label=f"{c} features, trained")  # fmt: skip
    for c, (radius, shift, _) in PUBLISHED.items():
        points.plot(radius, shift, color="black", marker="+", markersize=13, linestyle="none",
                    label="published: square, pentagon" if c == 4 else None)  # fmt: skip
    points.set(
        xlim=(0.85, 1.3),
        ylim=(-0.5, 0.1),
        xlabel="length ‖Wᵢ‖ of a represented feature",
        ylabel="its bias bᵢ",
    )
    points.set_title("where represented features end", fontsize=10)
    points.legend(frameon=False, fontsize=8, loc="lower left")
    best = int(best_over(findings["loss_5"]))
    feature_directions(findings["weight_5"][best], ax=plane)
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    plane.plot(PUBLISHED[5][0] * np.cos(angle), PUBLISHED[5][0] * np.sin(angle), color="black", linewidth=0.9,
               linestyle="--", zorder=0)  # fmt: skip
    plane.set_title(f"best of five; dashed: radius {PUBLISHED[5][0]}", fontsize=10)


def _draw_curves(settings: Settings, findings: Findings, ax: Axes) -> None:
    kinds, training = findings["vertices_5"], findings["training_loss_5"]
    step = (np.arange(training.shape[1]) + 1) * settings.steps / training.shape[1]
    for kind, colour, name in (
        (5, VERMILLION, "pentagon"),
        (4, BLUE, "square, one left out"),
        (0, ORANGE, "others"),
    ):
        chosen = (
            np.flatnonzero(kinds == kind)[:15] if kind else np.flatnonzero((kinds != 4) & (kinds != 5))[:15]
        )
        for nth, model in enumerate(chosen):
            ax.plot(
                step,
                training[model],
                color=colour,
                linewidth=0.7,
                alpha=0.8,
                label=name if nth == 0 else None,
            )
    for k in range(2, 6):
        # A feature that is left out behind a negative bias costs E[μ²] = 1/3 in its fifth of the samples.
        level = metrics.polygon(k).loss * k / 5 + (5 - k) / 15
        ax.axhline(level, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
        ax.annotate(f"{k}", (1.0, level), xycoords=("axes fraction", "data"), xytext=(3, 0),
                    textcoords="offset points", va="center", fontsize=8, color=GREY)  # fmt: skip
    # Four of them, where the bias of the fifth is its mean: the lower of the two levels that squares end at.
    ax.axhline(metrics.polygon(4, 5).loss, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="step", ylabel="training loss, summed over features")
    ax.set_ylim(bottom=5e-3)
    plain_log_ticks(ax.yaxis)
    ax.set_title("five features; dashed: exact, k represented", fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="lower left")


EXPERIMENT = Experiment(
    name="exact-critical-points",
    title="Exact critical points: polygons",
    source="Chen et al. 2023, Dynamical versus Bayesian Phase Transitions in a Toy Model of Superposition",
    summary=(
        "Tied autoencoders of four and of five features in two dimensions, with exactly one active "
        "feature in a "
        "sample. Regular polygons are critical points whose radius, bias and loss are known exactly; SGD "
        "from "
        "random weights comes to rest at them: most models in the square of four features, about half in the "
        "pentagon of five, with the exact numbers."
    ),
    settings=Settings(),
    quick=Settings(seeds=48, steps=1000),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(12.0, 4.2),
)
