"""Demonstrating superposition: a linear and a ReLU autoencoder side by side, as features grow rarer."""

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
from toykern.plot.axes import BLUE, GREY, VERMILLION
from toykern.training.evaluation import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

ACTIVATIONS = {"linear": "none", "relu": "relu"}
"""Output activations by the names of their stages."""

REPRESENTED, SHARED = 0.5, 0.25
"""Least norm ‖W_i‖ of a feature that is represented, least superposition of one that is not alone."""


@dataclass(frozen=True)
class Settings:
    """What may be set. Sizes stand in tuples of one length: the first of each makes one panel, and so on."""

    n_features: tuple[int, ...] = (20, 80)
    n_hidden: tuple[int, ...] = (5, 20)
    importance_decays: tuple[float, ...] = (0.7, 0.9)
    densities: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    seeds: int = 4
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0


def sizes(settings: Settings) -> list[tuple[int, int, float]]:
    """n, m and the decay of importance of each panel; ValueError where their numbers differ or repeat."""
    counts = {len(settings.n_features), len(settings.n_hidden), len(settings.importance_decays)}
    if len(counts) != 1 or len(set(settings.n_features)) != len(settings.n_features):
        raise ValueError(
            "n_features, n_hidden and importance_decays must be as many, and n_features all different, not "
            f"{settings.n_features}, {settings.n_hidden} and {settings.importance_decays}"
        )
    return list(zip(settings.n_features, settings.n_hidden, settings.importance_decays, strict=True))


def stages(settings: Settings) -> list[Stage]:
    """For each size a stack of linear and one of ReLU models, all densities and seeds in each."""
    fit = adamw(settings)
    points = grid(density=settings.densities, seed=range(settings.seeds))
    return [
        _stage(f"{name}-{n}", points, n, m, decay, activation, settings.seed, fit)
        for n, m, decay in sizes(settings)
        for name, activation in ACTIVATIONS.items()
    ]


def _stage(
    name: str, grid_: Grid, n: int, m: int, decay: float, activation: str, seed: int, fit: dict[str, Any]
) -> Stage:
    importance = decay ** torch.arange(n, dtype=torch.float64, device="cpu")

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(seed, index)
        return {
            "model": TiedAutoencoder(n, m, points.n_models, output_activation=activation, seed=seeds,
                                     dtype=torch.float32, device="cpu"),
            "data": SparseFeatures(n, points.density[:, None]),
            "importance": importance,
            "seed": seeds,
        }  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        data = SparseFeatures(n, points.density[:, None])
        return {
            "fresh_loss": evaluate(
                run.model, data, 1 << 14, seed=seed, importance=importance, method="stratified"
            )
        }

    return Stage(name, grid_, plan, fit, measure)


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best model of each kind at each density: which features it represents, and how far they share."""
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    outcomes: list[Outcome] = []
    for n, m, _ in sizes(settings):
        weights, biases, losses = [], [], []
        for kind in ACTIVATIONS:
            models = trained[f"{kind}-{n}"]
            losses.append(models.read("fresh_loss"))
            best = best_over(losses[-1])
            weights.append(take(models.read("weight"), best))
            biases.append(take(models.read("bias"), best))
        weight = np.stack(weights)
        flat = torch.from_numpy(weight.reshape(-1, m, n))
        norm = np.linalg.norm(weight, axis=2)
        superposition = metrics.superposition(flat).numpy().reshape(norm.shape)
        feature = f"feature_{n}"
        arrays |= {
            f"weight_{n}": labelled(("activation", "density", f"hidden_{n}", feature), weight),
            f"bias_{n}": labelled(("activation", "density", feature), np.stack(biases)),
            f"norm_{n}": labelled(("activation", "density", feature), norm),
            f"superposition_{n}": labelled(("activation", "density", feature), superposition),
            f"loss_{n}": labelled("activation density seed", np.stack(losses)),
        }
        outcomes += judge(weight, norm, superposition, np.asarray(settings.densities))
    coords = {"activation": np.array(list(ACTIVATIONS)), "density": np.asarray(settings.densities)}
    return Findings(arrays, coords, tuple(outcomes))


def judge(
    weight: NDArray[Any], norm: NDArray[Any], superposition: NDArray[Any], densities: NDArray[Any]
) -> list[Outcome]:
    """What the paper says of one size, beside what its models do.

    Args:
        weight: of the linear and the ReLU models, `[2, densities, m, n]`, features by falling importance.
        norm, superposition: of their features, `[2, densities, n]`.
        densities: `[densities]`.
    """
    m, n = weight.shape[2:]
    size = f"n = {n}, m = {m}"
    represented = norm > REPRESENTED
    counts = represented.sum(axis=2)
    first_m = (represented == (np.arange(n) < m)).all(axis=2)
    alone = np.where(represented, superposition, 0.0).max(axis=2) < SHARED
    dense, rare = densities == 1.0, int(densities.argmin())
    outcomes = [
        Outcome(
            f"Linear models, {size}",
            "keep the m most important features at every density, as principal components would, and have no "
            "superposition (section Demonstrating superposition)",
            f"the first {m} and no others at {int(first_m[0].sum())} of {len(densities)} densities, largest "
            f"superposition of one of them {np.where(represented, superposition, 0.0)[0].max():.2g}",
            bool(first_m[0].all() and alone[0].all()),
        ),
        Outcome(
            f"ReLU models of dense features, {size}",
            "do the same as linear ones (same section)",
            f"{counts[1][dense][0]} features at p = 1, superposition up to "
            f"{np.where(represented, superposition, 0.0)[1][dense].max():.2g}"
            if dense.any()
            else "p = 1 was not trained",
            bool((first_m & alone)[1][dense].all()) if dense.any() else None,
            "" if dense.any() else "densities has no 1",
        ),
        Outcome(
            f"ReLU models of rare features, {size}",
            "represent many more features than they have dimensions, in superposition (same section)",
            f"{counts[1, rare]} features in {m} dimensions at p = {densities[rare]:g}",
            bool(counts[1, rare] >= 2 * m) if densities[rare] <= 0.01 else None,
            "" if densities[rare] <= 0.01 else "no density of 0.01 or less was trained",
        ),
    ]
    shared = represented & (superposition >= SHARED)
    single = represented & ~shared
    both = np.flatnonzero(shared[1].any(axis=1) & single[1].any(axis=1))
    at = both[densities[both].argmax()] if len(both) else None
    if at is None:
        seen, agrees, note = "no model has some of each", None, "the densities leave out where it begins"
    else:
        places = np.arange(n)
        opposite = _share_opposite(weight[1, at], shared[1, at])
        ranks = places[single[1, at]].mean(), places[shared[1, at]].mean()
        seen = (
            f"at p = {densities[at]:g} mean rank {ranks[0]:.1f} with a dimension of their own, "
            f"{ranks[1]:.1f} in "
            f"superposition; {100 * opposite:.0f}% of these in an antipodal pair"
        )
        agrees, note = bool(ranks[0] < ranks[1] and opposite > 0.5), ""
    outcomes.append(
        Outcome(
            f"Where superposition begins, {size}",
            "with the less important features, in antipodal pairs; the most important ones keep "
            "dimensions of "
            "their own (same section)",
            seen,
            agrees,
            note,
        )
    )
    return outcomes


def _share_opposite(weight: NDArray[Any], shared: NDArray[np.bool_]) -> float:
    """Of the features in superposition, the share that has an opposite one (cosine below −0.9)."""
    unit = weight[:, shared] / np.linalg.norm(weight[:, shared], axis=0)
    return float(((unit.T @ unit) < -0.9).any(axis=1).mean())


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """WᵀW with the biases beside it, and under it the norms, coloured by superposition."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    diverging = LinearSegmentedColormap.from_list("blue_white_vermillion", [BLUE, "white", VERMILLION])
    scale, shades = Normalize(-1.0, 1.0), ScalarMappable(Normalize(0.0, 1.0), "cividis")
    densities = findings["density"]
    order = np.argsort(-densities)
    columns = [(0, int(order[0]))] + [(1, int(at)) for at in order]
    all_sizes = sizes(settings)
    panels = figure.subplots(
        2 * len(all_sizes), len(columns), squeeze=False, height_ratios=[2.0, 1.0] * len(all_sizes)
    )
    for row, (n, m, _) in enumerate(all_sizes):
        for column, (kind, at) in enumerate(columns):
            weight = findings[f"weight_{n}"][kind, at]
            norm = findings[f"norm_{n}"][kind, at]
            matrix, bars = panels[2 * row, column], panels[2 * row + 1, column]
            matrix.imshow(
                weight.T @ weight, cmap=diverging, norm=scale, interpolation="nearest", aspect="auto"
            )
            matrix.set(xticks=[], yticks=[])
            name = "linear" if kind == 0 else "ReLU"
            matrix.set_title(
                f"{name}, p = {densities[at]:g}\n{int((norm > REPRESENTED).sum())} of {n}", fontsize=9
            )
            beside = matrix.inset_axes((1.04, 0.0, 0.07, 1.0))
            beside.imshow(
                findings[f"bias_{n}"][kind, at][:, None],
                cmap=diverging,
                norm=scale,
                interpolation="nearest",
                aspect="auto",
            )
            beside.set(xticks=[0], yticks=[])
            beside.set_xticklabels(["b"], fontsize=8)
            beside.tick_params(length=0)
            superposition = np.where(norm > 1e-3, findings[f"superposition_{n}"][kind, at], 0.0)
            bars.bar(np.arange(n), norm, width=1.0, color=shades.to_rgba(superposition))
            bars.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
            bars.set(xlim=(-0.5, n - 0.5), ylim=(0.0, 1.35), xticks=[0, n - 1], yticks=[0, 1])
            bars.spines[["top", "right"]].set_visible(False)
            bars.tick_params(labelsize=8, labelleft=column == 0)
        panels[2 * row, 0].set_ylabel(f"WᵀW, n = {n}, m = {m}")
        panels[2 * row + 1, 0].set_ylabel("norm ‖Wᵢ‖")
    figure.supxlabel("feature i, by falling importance", fontsize=10)
    figure.colorbar(
        ScalarMappable(scale, diverging),
        ax=panels[: len(all_sizes)].ravel().tolist(),
        label="Wᵢ·Wⱼ, bias bᵢ",
        aspect=30,
    )
    figure.colorbar(
        shades,
        ax=panels[len(all_sizes) :].ravel().tolist(),
        label="superposition Σⱼ (Ŵᵢ·Wⱼ)²",
        aspect=30,
        extend="max",
    )


EXPERIMENT = Experiment(
    name="demonstration",
    title="Demonstrating superposition",
    source="Elhage et al. 2022, Toy Models of Superposition, section Demonstrating superposition",
    summary=(
        "Tied autoencoders with a linear and with a ReLU output, 20 features in 5 dimensions (importance "
        "0.7^i) and 80 in 20 (0.9^i), at densities from 1 to 0.001. The linear model keeps the most "
        "important "
        "features, one a dimension, at every density; the ReLU model does so for dense features, and puts "
        "more and more of them into superposition as they grow rarer."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=(20, 40),
        n_hidden=(5, 10),
        importance_decays=(0.7, 0.8),
        densities=(1.0, 0.1, 0.003),
        seeds=3,
        steps=1500,
        lr=1e-2,
        schedule="cosine",
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(15.0, 8.0),
)
