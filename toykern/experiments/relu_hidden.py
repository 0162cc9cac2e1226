"""A ReLU on the hidden layer gives it a basis: neurons of one feature where features are dense, of several
where they are rare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.neurons import draw_neurons, features_of_neurons
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.experiments.training import adamw
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREY, VERMILLION
from toykern.training.evaluation import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

N_FEATURES, N_HIDDEN = 10, 5


@dataclass(frozen=True)
class Settings:
    """What may be set.

    A feature belongs to a neuron where its weight is at least `share` of the neuron's largest. The paper
    trains 1,000 models a panel, and does not say in its text at which densities.
    """

    densities: tuple[float, ...] = (0.7, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01)
    seeds: int = 1000
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    importance_decay: float = 0.75
    share: float = 0.3
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All densities and seeds, as one stack."""
    importance = settings.importance_decay ** torch.arange(N_FEATURES, dtype=torch.float64, device="cpu")

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        model = TiedAutoencoder(
            N_FEATURES, N_HIDDEN, points.n_models, "relu", seed=seeds, dtype=torch.float32, device="cpu"
        )
        data = SparseFeatures(N_FEATURES, points.density[:, None])
        return {"model": model, "data": data, "importance": importance, "seed": seeds}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        data = SparseFeatures(N_FEATURES, points.density[:, None])
        return {
            "fresh_loss": evaluate(
                run.model, data, 8192, seed=settings.seed, importance=importance, method="stratified"
            )
        }

    fit = adamw(settings)
    points = grid(density=settings.densities, seed=range(settings.seeds))
    return [Stage("neurons", points, plan, fit, measure)]


def sorted_neurons(weight: NDArray[Any]) -> NDArray[Any]:
    """The neurons in the order of their strongest feature, then of how strong it is.

    >>> sorted_neurons(np.array([[0.0, 1.0], [2.0, 0.0]])).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    size = np.abs(weight)
    return weight[np.lexsort((-size.max(axis=1), size.argmax(axis=1)))]


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best model at each density: of how many features each of its neurons is."""
    models = trained["neurons"]
    loss = models.read("fresh_loss")
    weight = np.stack([sorted_neurons(one) for one in take(models.read("weight"), best_over(loss))])
    counts = features_of_neurons(weight, settings.share).sum(axis=2)
    densities = np.asarray(settings.densities)
    order = np.argsort(-densities)
    single, several = (counts == 1).sum(axis=1), (counts > 1).sum(axis=1)
    mean = counts.mean(axis=1)
    dense, rare = order[0], order[-1]
    mixed = (single > 0) & (several > 0)
    text = ", ".join(f"{single[at]} at {densities[at]:g}" for at in order)
    wide = 0.5 <= densities[dense] <= 0.8 and densities[rare] <= 0.1
    falls = all(single[b] <= single[a] + 1 for a, b in zip(order[:-1], order[1:], strict=True))
    note = "" if wide else "the densities do not span the shift"
    outcomes = (
        Outcome(
            "Monosemantic neurons",
            "a shift from monosemantic to polysemantic neurons as sparsity increases (Superposition in a "
            "Privileged Basis)",
            f"neurons of one feature, of {N_HIDDEN}: {text}",
            bool(single[dense] >= N_HIDDEN - 1 and single[rare] == 0 and falls) if wide else None,
            note,
        ),
        Outcome(
            "Both in the same model",
            "monosemantic and polysemantic neurons can exist in the same model",
            "at p = " + (", ".join(f"{p:g}" for p in densities[mixed]) or "none of the densities"),
            bool(mixed.any()) if wide else None,
            note,
        ),
        Outcome(
            "Features of a neuron",
            "from one, to a few, to gradually more",
            ", ".join(f"{mean[at]:.1f} at {densities[at]:g}" for at in order),
            bool(mean[dense] < 1.5 and mean[rare] > 3) if wide else None,
            note
            or "The number that counts depends on the share of a neuron's largest weight that is asked "
            f"for, here {settings.share:g}.",
        ),
    )
    return Findings(
        {
            "weight": labelled("density hidden feature", weight),
            "features": labelled("density hidden", counts),
            "loss": labelled("density seed", loss),
        },
        {"density": densities},
        outcomes,
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """A stack of weights for each neuron; features that share a neuron in another colour."""
    densities = findings["density"]
    order = np.argsort(-densities)
    columns = min(4, len(order))
    grid_of = figure.subplots(-(-len(order) // columns), columns, squeeze=False, sharey=True)
    panels = grid_of.ravel()
    for panel in panels[len(order) :]:
        panel.set_axis_off()
    for panel, at in zip(panels, order, strict=False):
        weight = findings["weight"][at]
        belongs = features_of_neurons(weight, settings.share)
        alone = np.array([
            all(row.sum() == 1 for row in belongs if row[feature]) and belongs[:, feature].any()
            for feature in range(N_FEATURES)
        ])  # fmt: skip
        colours = np.where(alone, BLUE, np.where(belongs.any(axis=0), VERMILLION, GREY))
        draw_neurons(panel, weight, colours)
        panel.set_title(f"p = {densities[at]:g}", fontsize=9)
        for neuron, count in enumerate(findings["features"][at]):
            panel.annotate(
                str(count), (neuron, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
    low, high = grid_of[0, 0].get_ylim()
    grid_of[0, 0].set_ylim(low - 0.12 * (high - low), high)
    for row in grid_of:
        row[0].set_ylabel("weights of a neuron, stacked")
    figure.supxlabel("neuron (the number: its features)", fontsize=9)
    figure.suptitle(
        "blue: a feature with neurons of its own; vermillion: one that shares; grey: less than the share",
        fontsize=9,
    )


EXPERIMENT = Experiment(
    name="relu-hidden",
    title="A ReLU on the hidden layer",
    source="Elhage et al. 2022, Toy Models of Superposition, section Superposition in a Privileged Basis",
    summary=(
        "Tied autoencoders of ten features and five ReLU neurons, importance 0.75^i, many seeds a density "
        "and the best one kept. Dense features: each neuron is one of the most important features. As they "
        "grow rarer, more neurons are shared, until all of them are polysemantic."
    ),
    settings=Settings(),
    quick=Settings(densities=(0.5, 0.3, 0.1, 0.03), seeds=30, steps=1500, lr=1e-2, schedule="cosine"),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.5, 5.0),
)
