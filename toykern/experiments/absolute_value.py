"""Computing |x|: a neuron for each feature and sign, and with rare features computation in superposition."""

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
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.neurons import draw_neurons, features_of_neurons, scaled_to_one
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.experiments.training import adamw
from toykern.nn import Autoencoder
from toykern.plot.axes import BLUE, GREEN, ORANGE, SKY, VERMILLION
from toykern.training.evaluation import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

SMALL_FEATURES, SMALL_HIDDEN = 3, 6


@dataclass(frozen=True)
class Settings:
    """What may be set.

    The small models have n = 3, m = 6 and equal importance; `n_features`, `n_hidden` and `importance_decay`
    are the large ones' (the paper: 100, 40 and 0.8). `init` is the standard deviation of all initial weights:
    from Xavier's, about five times as large here, models of rare features end in solutions that are several
    times worse. A feature belongs to a neuron where its weight is at least `share` of the neuron's largest.
    """

    small_densities: tuple[float, ...] = (1.0, 0.3, 0.1)
    small_seeds: int = 50
    n_features: int = 100
    n_hidden: int = 40
    importance_decay: float = 0.8
    densities: tuple[float, ...] = (1.0, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01)
    seeds: int = 4
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 3e-3
    schedule: str = "cosine"
    init: float = 0.03
    share: float = 0.2
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """Small models of all densities, and large ones."""
    fit = adamw(settings) | {"target": "abs"}
    small = grid(density=settings.small_densities, seed=range(settings.small_seeds))
    large = grid(density=settings.densities, seed=range(settings.seeds))
    sizes = (
        ("small", small, SMALL_FEATURES, SMALL_HIDDEN, 1.0),
        ("large", large, settings.n_features, settings.n_hidden, settings.importance_decay),
    )
    return [
        Stage(name, points, partial(_plan, settings, n, m, decay), fit, partial(_measure, settings, n, decay))
        for name, points, n, m, decay in sizes
    ]


def _importance(n: int, decay: float) -> torch.Tensor:
    return decay ** torch.arange(n, dtype=torch.float64, device="cpu")


def _data(n: int, points: Grid) -> SparseFeatures:
    return SparseFeatures(n, points.density[:, None], magnitude="symmetric")


def _plan(
    settings: Settings, n: int, m: int, decay: float, points: Grid, index: torch.Tensor
) -> dict[str, Any]:
    seeds = own_seeds(settings.seed, index)
    model = Autoencoder(
        n, m, points.n_models, "relu", init=settings.init, seed=seeds, dtype=torch.float32, device="cpu"
    )
    return {"model": model, "data": _data(n, points), "importance": _importance(n, decay), "seed": seeds}


def _measure(
    settings: Settings, n: int, decay: float, run: Run, points: Grid, index: torch.Tensor
) -> dict[str, torch.Tensor]:
    importance = _importance(n, decay)
    return {
        "fresh_loss": evaluate(
            run.model, _data(n, points), 16_384, seed=settings.seed, importance=importance, target="abs"
        )
    }


def one_for_each_sign(encoder: NDArray[Any], share: float) -> bool:
    """Whether every neuron is of one feature, and each feature has a positive and a negative neuron.

    >>> one_for_each_sign(np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 2.0], [0.0, -0.5]]), share=0.2)
    True
    """
    belongs = features_of_neurons(encoder, share)
    if not (belongs.sum(axis=1) == 1).all():
        return False
    main = np.abs(encoder).argmax(axis=1)
    found = {(feature, bool(row[feature] > 0)) for feature, row in zip(main.tolist(), encoder, strict=True)}
    return len(found) == 2 * encoder.shape[1] == len(encoder)


def asymmetric_neurons(encoder: NDArray[Any], decoder: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """Which neurons store two features by unequal weights and read them by reciprocal ones, `[neurons]`.

    Of the features that a neuron computes (|weight in| × weight out at least `share` of an exact |x|, which
    is 1), the two with the largest weights in, a > b, count where b < 0.7 a and the second's weight out is
    more than 1/0.7 of the first's. Of the paper's example, W = (2, −1/2) and (1/2, 2):

    >>> asymmetric_neurons(np.array([[2.0, -0.5]]), np.array([[0.5], [2.0]]), share=0.2).tolist()
    [True]
    """
    computed = np.abs(encoder) * decoder.T
    found = np.zeros(len(encoder), dtype=np.bool_)
    for neuron, row in enumerate(computed):
        features = np.flatnonzero(row >= share)
        if len(features) >= 2:
            first, second = features[np.argsort(-np.abs(encoder[neuron, features]))][:2]
            inward = abs(encoder[neuron, second] / encoder[neuron, first])
            outward = decoder[second, neuron] / decoder[first, neuron]
            found[neuron] = inward < 0.7 and outward > 1 / 0.7
    return found


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best models: of how many features each neuron is, and how it shares them."""
    weights = {}
    for name, models in trained.items():
        best = best_over(models.read("fresh_loss"))
        weights[name] = scaled_to_one(*(take(models.read(part), best) for part in ("encoder", "decoder")))
    small_encoder, encoder, decoder = weights["small"][0], *weights["large"]
    exact = [one_for_each_sign(one, settings.share) for one in small_encoder]
    counts = features_of_neurons(encoder, settings.share).sum(axis=2)
    primary = np.abs(encoder).argmax(axis=2)
    asymmetric = np.stack([
        asymmetric_neurons(*pair, settings.share) for pair in zip(encoder, decoder, strict=True)
    ])  # fmt: skip
    densities = np.asarray(settings.densities)
    order = np.argsort(-densities)
    single = (counts == 1).mean(axis=1)
    dense, rare = order[0], order[-1]
    inner = [at for at in order if 0.1 < single[at] < 0.95]
    pure, shared = (
        np.concatenate([primary[at][chosen[at]] for at in inner] or [np.zeros(0)])
        for chosen in (counts == 1, counts > 1)
    )
    told = min(len(pure), len(shared)) >= 5
    wide = densities[dense] == 1 and densities[rare] <= 0.05
    note = "" if wide else "the densities do not span the shift"
    polysemantic = int((counts > 1).sum())
    outcomes = (
        Outcome(
            "n = 3, m = 6",
            "a positive and a negative neuron for each feature, added up to |x| (Computation in "
            "Superposition, Basic Results)",
            ", ".join(
                f"p = {p:g}: {'so' if so else 'otherwise'}"
                for p, so in zip(settings.small_densities, exact, strict=True)
            ),
            bool(np.mean(exact) > 0.5),
            "Of the best model at each density; more than half of the densities have to show it.",
        ),
        Outcome(
            "Dense and sparse",
            "dense: each neuron represents a single feature; sparse enough: superposition, neurons are "
            "polysemantic (Superposition vs Sparsity)",
            "neurons of one feature: "
            + ", ".join(f"{100 * single[at]:.0f}% at p = {densities[at]:g}" for at in order),
            bool(single[dense] > 0.8 and single[rare] < 0.3) if wide else None,
            note,
        ),
        Outcome(
            "In between",
            "many pure neurons beside some polysemantic ones; those of the most important features tend to "
            "be monosemantic",
            "pure: "
            + (", ".join(f"{100 * single[at]:.0f}% at p = {densities[at]:g}" for at in inner) or "none")
            + f"; mean rank of the main features of {len(pure)} pure neurons "
            + (f"{pure.mean():.1f}, of {len(shared)} others {shared.mean():.1f}" if told else "not told"),
            bool(pure.mean() < shared.mean()) if told else None,
            "" if told else "fewer than five neurons of a kind where both kinds are",
        ),
        Outcome(
            "Asymmetric superposition",
            "a neuron stores two features with different magnitudes and has reciprocal output weights (The "
            "Asymmetric Superposition Motif)",
            f"{int(asymmetric.sum())} neurons at "
            + (", ".join(f"p = {p:g}" for p in densities[asymmetric.any(axis=1)]) or "no density")
            + f", of {polysemantic} polysemantic ones; {int((decoder < -0.3).sum())} inhibiting weights "
            "below −0.3",
            bool(asymmetric.any()) if polysemantic else None,
            "" if polysemantic else "no neuron is polysemantic",
        ),
    )
    return Findings(
        {
            "small_encoder": labelled("small_density neuron coordinate", small_encoder),
            "encoder": labelled("density hidden feature", encoder),
            "decoder": labelled("density feature hidden", decoder),
            "features": labelled("density hidden", counts),
            "asymmetric": labelled("density hidden", asymmetric),
        },
        {"density": densities, "small_density": np.asarray(settings.small_densities)},
        outcomes,
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Stacks of encoder weights: the small model, and the large ones from dense to rare."""
    from matplotlib import colormaps

    densities = findings["density"]
    order = np.argsort(-densities)
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(5, len(order))).round().astype(int))]
    panels = figure.subplots(2, 3).ravel()
    small = findings["small_encoder"][0]
    small = small[np.lexsort((-small.max(axis=1), np.abs(small).argmax(axis=1)))]
    draw_neurons(panels[0], small, np.array([BLUE, VERMILLION, GREEN]))
    panels[0].set_title(f"n = 3, m = 6, p = {findings['small_density'][0]:g} (colour: feature)", fontsize=9)
    bins = np.array([BLUE, SKY, ORANGE, VERMILLION])
    for panel, at in zip(panels[1:], shown, strict=False):
        encoder = np.abs(findings["encoder"][at])
        encoder = encoder[np.argsort(encoder.argmax(axis=1), kind="stable")]
        kept = encoder[:, features_of_neurons(encoder, 0.05).any(axis=0)]
        ranks = np.flatnonzero(features_of_neurons(encoder, 0.05).any(axis=0))
        draw_neurons(panel, kept, colormaps["cividis"](ranks / max(settings.n_features - 1, 1)))
        for neuron, count in enumerate((encoder >= settings.share).sum(axis=1)):
            panel.plot([neuron], [-0.15], "s", markersize=4, color=bins[min(int(count), 4) - 1])
        panel.set_title(
            f"n = {settings.n_features}, m = {settings.n_hidden}, p = {densities[at]:g}", fontsize=9
        )
    for panel in panels[1 + len(shown) :]:
        panel.set_axis_off()
    for panel in panels[[0, 3]]:
        panel.set_ylabel("weights of a neuron, stacked")
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="s", linestyle="", color=colour) for colour in bins]
    figure.legend(
        marks, ["one feature", "two", "three", "four and more"], loc="outside lower center", ncols=4,
        fontsize=8, title="neurons in the order of their main feature (dark: important), squares: how many "
        "features they have",
        title_fontsize=8,
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="absolute-value",
    title="Computing the absolute value",
    source="Elhage et al. 2022, Toy Models of Superposition, section Computation in Superposition",
    summary=(
        "Untied networks with ReLU on both layers learn |x|. With neurons enough there is one for each "
        "feature and sign. With 100 features and 40 neurons, dense features get pure neurons, the most "
        "important first; rare ones are computed in superposition, some of them by unequal weights in "
        "and reciprocal weights out."
    ),
    settings=Settings(),
    quick=Settings(
        small_densities=(1.0, 0.1),
        small_seeds=16,
        n_features=20,
        n_hidden=8,
        densities=(1.0, 0.2, 0.15, 0.1, 0.03),
        seeds=4,
        steps=1500,
        lr=1e-2,
        init=0.1,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(11.0, 6.0),
)
