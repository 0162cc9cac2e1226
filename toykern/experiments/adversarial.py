"""Superposition makes models easy to attack: small changes of the input, by features per dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toykern import metrics
from toykern.arguments.errors import check_choice
from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.experiments.training import adamw
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, VERMILLION, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADII = ("average", "own")
CHOICES = ("model", "sample")


@dataclass(frozen=True)
class Settings:
    """What may be set.

    `radius` of the attack is of the "average" input's length (the paper: 0.1 of it), or of each input's
    "own". The paper takes, of the optimal attacks on each feature, the one that harms most; `choice` says of
    what: the one for the whole "model", by the loss over all inputs, or one for each "sample". Both choices
    with both radii are measured; these two settings say by which the outcomes are judged. The paper does not
    say in its text which n, m and densities it took.
    """

    n_features: int = 100
    n_hidden: int = 20
    densities: tuple[float, ...] = tuple(np.geomspace(1, 0.01, 15).round(4).tolist())
    models: int = 3
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    size: float = 0.1
    radius: str = "average"
    choice: str = "model"
    samples: int = 2048
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """A few models at each density."""
    check_choice("radius", settings.radius, RADII)
    check_choice("choice", settings.choice, CHOICES)

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(
                settings.n_features, settings.n_hidden, points.n_models, seed=seeds, dtype=torch.float32,
                device="cpu",
            ),
            "data": SparseFeatures(settings.n_features, points.density[:, None]),
            "seed": seeds,
        }  # fmt: skip

    fit = adamw(settings)
    return [Stage("models", grid(density=settings.densities, seed=range(settings.models)), plan, fit)]


def harm(weight: Tensor, bias: Tensor, x: Tensor, radius: Tensor) -> tuple[float, float]:
    """By how much the best of the features' optimal L2 attacks raises the loss of one model.

    The attack on feature i moves the input along ±(WᵀW)ᵢ/‖(WᵀW)ᵢ‖, which changes this output before the
    ReLU most (Elhage et al. 2022, section Relationship to Adversarial Robustness). Of the 2n attacks the one
    that harms most is taken, for all samples together, and for each sample by itself.

    Args:
        weight: `[n_hidden, n_features]`.
        bias: `[n_features]`.
        x: samples `[samples, n_features]`.
        radius: of the attack, `[samples]`.

    Returns:
        The rise of Σᵢ (xᵢ − x′ᵢ)², averaged over samples, by the one attack and by one for each sample.

    >>> one = torch.ones(1, 2)
    >>> harm(torch.eye(2), torch.zeros(2), one, torch.full((1,), 0.5))
    (0.25, 0.25)
    """
    gram = (weight.T @ weight).double()
    rows = gram.norm(dim=1)
    directions = gram[rows > 1e-6] / rows[rows > 1e-6, None]
    before = x.double() @ gram + bias.double()
    clean = (torch.relu(before) - x).square().sum(dim=1)
    worst, whole = clean.clone(), 0.0
    for moved in directions @ gram:
        for sign in (1.0, -1.0):
            after = torch.relu(before + sign * radius[:, None] * moved)
            rise = (after - x).square().sum(dim=1)
            whole = max(whole, float((rise - clean).mean()))
            worst = torch.maximum(worst, rise)
    return whole, float((worst - clean).mean())


def vulnerabilities(settings: Settings, trained: Trained) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Rise of the loss over the mean square of the radius, by (radius, choice): `[densities, models]`.

    An attack within its radius changes the loss of a model that returns its input by 1 at most.
    """
    weight, bias = (torch.from_numpy(trained.read(name)) for name in ("weight", "bias"))
    shape = (len(settings.densities), settings.models)
    found = {(radius, choice): np.empty(shape) for radius in RADII for choice in CHOICES}
    for at, density in enumerate(settings.densities):
        data = SparseFeatures(settings.n_features, density)
        x = data.sample(0, settings.samples, settings.seed, purpose="evaluation")[0]
        lengths = x.double().norm(dim=1)
        for radius in RADII:
            limit = settings.size * (lengths.mean().expand_as(lengths) if radius == "average" else lengths)
            square = max(float(limit.square().mean()), 1e-300)
            for model in range(settings.models):
                rises = harm(weight[at, model], bias[at, model], x, limit)
                for choice, rise in zip(CHOICES, rises, strict=True):
                    found[radius, choice][at, model] = rise / square
    return found


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Vulnerability and features per dimension at each density, both relative to the densest."""
    models = trained["models"]
    weight = models.read("weight")
    flat = metrics.features_per_dimension(torch.from_numpy(weight.reshape(-1, *weight.shape[2:])))
    per_dimension = flat.numpy().reshape(weight.shape[:2]).mean(axis=1)
    densities = np.asarray(settings.densities)
    order = np.argsort(-densities)
    measured = {key: values.mean(axis=1) for key, values in vulnerabilities(settings, models).items()}
    relative = {key: values / values[order[0]] for key, values in measured.items()}
    judged = relative[settings.radius, settings.choice][order]
    features = per_dimension[order] / per_dimension[order[0]]
    tracks = {key: _together(features, values[order]) for key, values in relative.items()}
    dense = densities[order[0]] >= 0.9 and densities[order[-1]] <= 0.1
    top = int(judged.argmax())
    own = tracks[settings.radius, settings.choice]
    others = "; ".join(
        f"{_told(*key)}: up to {relative[key].max():.1f} times, correlation {tracks[key]:.2f}"
        for key in relative
        if key != (settings.radius, settings.choice)
    )
    outcomes = (
        Outcome(
            "Vulnerability as superposition forms",
            "rises sharply, more than threefold (Relationship to Adversarial Robustness)",
            f"up to {judged[top]:.1f} times that of the densest model, at p = {densities[order[top]]:.3g} "
            f"({_told(settings.radius, settings.choice)})",
            bool(judged[top] > 3) if dense else None,
            "" if dense else "the densities do not reach from 1 to 0.1",
        ),
        Outcome(
            "Vulnerability and features per dimension",
            "the one tracks the other closely",
            f"correlation of their logarithms {own:.2f} while features per dimension rise "
            f"{features.max():.1f} times. Otherwise: {others}",
            bool(own > 0.9) if dense else None,
            ("" if dense else "The densities do not reach from 1 to 0.1. ")
            + (
                "With the average length for all, empty inputs are attacked as hard as full ones, and full "
                "ones less; where features are rare most inputs are empty."
                if settings.radius == "average"
                else ""
            ),
        ),
    )
    return Findings(
        {
            "features_per_dimension": labelled("density", per_dimension),
            **{
                f"vulnerability_{radius}_{choice}": labelled("density", values)
                for (radius, choice), values in measured.items()
            },
        },
        {"density": densities},
        outcomes,
    )


def _together(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Correlation of the logarithms."""
    return float(np.corrcoef(np.log(x), np.log(np.maximum(y, 1e-300)))[0, 1])


def _told(radius: str, choice: str) -> str:
    length = "the average input's length" if radius == "average" else "each input's own length"
    return f"{length}, one attack for {'all' if choice == 'model' else 'each input'}"


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Both over the density, and the one against the other."""
    order = np.argsort(-findings["density"])
    rarity = 1 / findings["density"][order]
    features = findings["features_per_dimension"][order]
    left, right = figure.subplots(1, 2)
    left.plot(rarity, features / features[0], color=GREY, linewidth=3, label="features per dimension")
    colours = iter((BLUE, VERMILLION, GREEN, ORANGE))
    for radius in RADII:
        for choice in CHOICES:
            values = findings[f"vulnerability_{radius}_{choice}"][order]
            chosen = (radius, choice) == (settings.radius, settings.choice)
            style: dict[str, Any] = {
                "color": next(colours),
                "linewidth": 2.2 if chosen else 1.0,
                "marker": "o",
                "markersize": 4 if chosen else 2.5,
            }
            left.plot(rarity, values / values[0], label=f"attack: {_told(radius, choice)}", **style)
            right.plot(features, values / values[0], **style)
    right.plot(features, features / features[0], "--", color=GREY, linewidth=1)
    right.annotate("in proportion", (features[-1], features[-1] / features[0]), fontsize=8, color=GREY,
                   xytext=(-6, 6), textcoords="offset points", ha="right")  # fmt: skip
    for panel in (left, right):
        panel.axhline(3, color=GREY, linestyle=":", linewidth=1)
        panel.set_yscale("log")
        panel.set_ylabel("vulnerability, relative to the densest")
        plain_log_ticks(panel.yaxis)
    left.annotate("published: more than 3", (rarity[-1], 3), fontsize=8, color=GREY, ha="right",
                  xytext=(0, -10), textcoords="offset points")  # fmt: skip
    left.set_xscale("log")
    left.set_xlabel("rarity 1/p")
    plain_log_ticks(left.xaxis)
    right.set_xlabel("features per dimension, ‖W‖²/m")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


EXPERIMENT = Experiment(
    name="adversarial",
    title="Superposition and adversarial examples",
    source="Elhage et al. 2022, Toy Models of Superposition, section Relationship to Adversarial Robustness",
    summary=(
        "Models from dense to rare features are attacked within a tenth of the input's length, along the "
        "directions that change the output of one feature most. What the attack adds to the loss, by the "
        "square of its length, grows with the number of features per dimension."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=60,
        n_hidden=12,
        densities=(1.0, 0.5, 0.25, 0.12, 0.07),
        models=2,
        steps=1200,
        lr=1e-2,
        schedule="cosine",
        samples=512,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 5.2),
)
