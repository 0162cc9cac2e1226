"""Sparse autoencoders on activations of which the true directions are known: what recovers them.

Sharkey, Braun and Millidge 2022, *Taking features out of superposition with sparse autoencoders*, the part on
toy data: 512 directions in 256 dimensions, five of them active on average, frequencies that decay as 0.99ⁱ,
and a grid of L1 weights α = 10^(e/4), e = −8 … 8, times dictionaries of 2^−2 … 2^5 times the true size. Their
loss is ‖x − x̂‖²/d + α/n ‖c‖₁ with n units. Here it is d times that, which has the same minimum: a sum of
squares and an L1 weight of α d/n. They reconstruct by a decoder of unit columns without a bias, as here.

Not as there: weights begin Xavier-normal, not orthogonal; correlations come from a Gaussian copula with a few
common factors, and not from an own random probability of every sample, so that frequencies are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toykern.arguments.grids import Grid, grid
from toykern.data.dependence import Copula
from toykern.data.features import SparseFeatures
from toykern.experiments.dictionary_learning import (
    decaying_probabilities,
    dictionary_of,
    principal_directions,
    random_directions,
    recovery,
    score_codes,
)
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.metrics.dictionaries import mean_max_cosine_similarity
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, VERMILLION
from toykern.training.optim import Adam, UnitNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

SCORES = ("mmcs", "l0", "explained", "dead")


@dataclass(frozen=True)
class Settings:
    """What may be set. The published dictionaries go up to 2⁵ times the true size, which is four times the
    work: `ratio_exponents` −2 … 5 gives all 136 models. The number of updates is reckoned for an hour
    of two cores, and was not run."""

    d: int = 256
    directions: int = 512
    mean_active: float = 5.0
    decay: float = 0.99
    factors: int = 8
    loading: float = 0.4
    alpha_exponents: tuple[int, ...] = tuple(range(-8, 9))
    ratio_exponents: tuple[int, ...] = tuple(range(-2, 4))
    tied_ratio_exponent: int = 1
    top_ks: tuple[int, ...] = (2, 5, 10, 20)
    steps: int = 8000
    batch_size: int = 256
    lr: float = 3e-3
    samples: int = 4096
    seed: int = 0


def sizes(settings: Settings) -> list[int]:
    """The units of each dictionary, at least one."""
    return [max(1, round(settings.directions * 2.0**e)) for e in settings.ratio_exponents]


def alphas(settings: Settings) -> list[float]:
    """The published L1 weights."""
    return [10.0 ** (e / 4) for e in settings.alpha_exponents]


def stream(settings: Settings) -> SparseFeatures:
    """The true features: rare, of decaying frequency, and correlated by a few common factors."""
    probabilities = decaying_probabilities(settings.directions, settings.decay, settings.mean_active)
    if settings.loading == 0 or settings.factors == 0:
        return SparseFeatures(settings.directions, probabilities)
    loadings = settings.loading * random_directions(settings.factors, settings.directions, settings.seed + 1)
    return SparseFeatures(
        settings.directions, probabilities, dependence=Copula(loadings=loadings.mT.double())
    )


def stages(settings: Settings) -> list[Stage]:
    """One stage for each size of the dictionary, with all L1 weights; the tied ones; and one for each k."""
    if max(settings.ratio_exponents) < 0:
        raise ValueError(f"ratio_exponents must hold one that is at least 0, not {settings.ratio_exponents}")
    tied_size = max(1, round(settings.directions * 2.0**settings.tied_ratio_exponent))
    alone = grid(alpha=alphas(settings))
    kept = grid(repeat=[0])
    return (
        [_stage(settings, f"dictionary-{size}", alone, n_hidden=size) for size in sizes(settings)]
        + [_stage(settings, f"tied-{tied_size}", alone, n_hidden=tied_size, tied=True)]
        + [
            _stage(settings, f"top-{k}", kept, n_hidden=tied_size, hidden_activation="topk", top_k=k)
            for k in settings.top_ks
        ]
    )


def _stage(settings: Settings, name: str, points: Grid, **network: Any) -> Stage:
    truth = random_directions(settings.d, settings.directions, settings.seed)
    data = stream(settings)

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        model = MLP(
            settings.directions, n_outputs=settings.d, n_models=points.n_models, bias=False, embedding=truth,
            seed=seeds, dtype=torch.float32, device="cpu", **network,
        )  # fmt: skip
        weighted = {"l1": points.alpha * settings.d / network["n_hidden"]} if "alpha" in points.dims else {}
        return {"model": model, "data": data, "seed": seeds, **weighted}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        assert isinstance(run.model, MLP)
        x = data.sample(0, settings.samples, settings.seed, n_models=1, purpose="evaluation")[0]
        return {"mmcs": recovery(run.model, truth), **score_codes(run.model, x, x @ truth.mT)}

    tensor = "weight" if network.get("tied") else "decoder"
    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": Adam(lr=settings.lr, unit_norm=UnitNorm(tensor)),
        "schedule": "cosine",
        "target": "embedding",
        "loss_reduction": "sum",
    }
    return Stage(name, points, plan, fit, measure)


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Recovery over the grid, its borders, the decomposition that cannot, and the other encoders."""
    names = [f"dictionary-{size}" for size in sizes(settings)]
    scores = {score: np.stack([trained[name].read(score) for name in names]) for score in SCORES}
    (tied,) = (part for name, part in trained.items() if name.startswith("tied-"))
    top = {score: np.array([trained[f"top-{k}"].read(score)[0] for k in settings.top_ks]) for score in SCORES}
    truth = random_directions(settings.d, settings.directions, settings.seed)
    x = stream(settings).sample(0, 16_384, settings.seed, n_models=1, purpose="evaluation")[0]
    decomposed = float(mean_max_cosine_similarity(principal_directions(x @ truth.mT), truth.double()))
    arrays = {score: labelled("ratio alpha", values) for score, values in scores.items()}
    arrays |= {f"tied_{score}": labelled("alpha", tied.read(score)) for score in SCORES}
    arrays |= {f"top_{score}": labelled("k", values) for score, values in top.items()}
    arrays["within_larger"] = labelled("ratio alpha", _within_larger([trained[name] for name in names]))
    arrays["svd_mmcs"] = labelled("", decomposed)
    coords = {
        "ratio": 2.0 ** np.array(settings.ratio_exponents),
        "alpha": np.array(alphas(settings)),
        "k": np.array(settings.top_ks),
    }
    findings = Findings(arrays, coords)
    return Findings(arrays, coords, _outcomes(settings, findings))


def _within_larger(trained: list[Trained]) -> np.ndarray:
    """MMCS of each dictionary's directions with the next larger one's of the same α; NaN for the largest."""
    found = np.full((len(trained), trained[0].stage.grid.n_models), np.nan)
    dictionaries = [dictionary_of(part.model()) for part in trained]
    for i, (small, large) in enumerate(zip(dictionaries, dictionaries[1:], strict=False)):
        for j in range(found.shape[1]):
            found[i, j] = mean_max_cosine_similarity(large[j].double(), small[j].double())
    return found


def band(mmcs: np.ndarray, alpha: np.ndarray, within: float = 0.02) -> float:
    """The middle, by its logarithm, of the L1 weights whose MMCS is within so much of the best.

    >>> round(band(np.array([0.5, 0.98, 0.99, 0.6]), np.array([0.1, 1.0, 100.0, 1e3])), 6)
    10.0
    """
    best = mmcs >= mmcs.max() - within
    return float(np.exp(np.log(alpha[best]).mean()))


def _outcomes(settings: Settings, findings: Findings) -> tuple[Outcome, ...]:
    ratio, alpha, mmcs = findings["ratio"], findings["alpha"], findings["mmcs"]
    best = np.unravel_index(mmcs.argmax(), mmcs.shape)
    top = float(mmcs[best])
    enough = np.flatnonzero(ratio >= 1)
    same = int(np.abs(np.log(ratio)).argmin())
    small = int(ratio.argmin())
    by_size = mmcs.max(axis=1)
    middles = np.array([band(mmcs[i], alpha) for i in enough])
    slope = float(np.polyfit(np.log(ratio[enough]), np.log(middles), 1)[0]) if len(enough) > 1 else np.nan
    pairs = mmcs[enough[:-1]].ravel(), findings["within_larger"][enough[:-1]].ravel()
    together = float(np.corrcoef(*pairs)[0, 1]) if len(enough) > 1 else np.nan
    svd = float(findings["svd_mmcs"])
    k = int(findings["top_mmcs"].argmax())
    return (
        Outcome(
            "Recovery at the right L1 weight and size",
            "MMCS near 1 in a band of L1 weights, for dictionaries larger than the truth (Figure 3)",
            f"{top:.3f} at α = {alpha[best[1]]:.3g} and {ratio[best[0]]:g} times the true size; the best for "
            "each size " + ", ".join(f"{ratio[i]:g}: {by_size[i]:.2f}" for i in range(len(ratio))),
            bool(top >= 0.95 and ratio[best[0]] >= 1 and by_size[ratio > 1].min(initial=1.0) >= 0.9),
        ),
        Outcome(
            "Too small a dictionary",
            "not all directions are recovered, whatever the L1 weight (Figure 3)",
            f"{by_size[small]:.2f} at most with {ratio[small]:g} of the true size",
            bool(by_size[small] <= top - 0.15) if ratio[small] < 1 else None,
            "" if ratio[small] < 1 else "no smaller dictionary is in the settings",
        ),
        Outcome(
            "Too small an L1 weight",
            "low MMCS, at every size (Figure 3)",
            f"{mmcs[enough, 0].max():.2f} at most for α = {alpha[0]:.3g}, {findings['l0'][same, 0]:.0f} "
            f"units on "
            f"in a sample of {settings.mean_active:g} features",
            bool(mmcs[enough, 0].max() <= top - 0.2),
        ),
        Outcome(
            "Too large an L1 weight",
            "units die and MMCS falls (Figures 3 and 4)",
            f"{mmcs[same, -1]:.2f} for α = {alpha[-1]:.3g} at {ratio[same]:g} times the true size, "
            f"{100 * findings['dead'][same, -1]:.0f}% of the units dead",
            bool(mmcs[same, -1] <= top - 0.2 and findings["dead"][same, -1] > 0.5),
        ),
        Outcome(
            "The right α by size",
            "grows with the dictionary, since α is divided by its units: called a mistake later, in the "
            "authors' own review",
            f"α ∝ ratio^{slope:.2f} for the middle of the band",
            bool(0.5 <= slope <= 1.5) if np.isfinite(slope) else None,
            "" if np.isfinite(slope) else "needs two sizes of at least the true one",
        ),
        Outcome(
            "Agreement with the next larger dictionary",
            "is high where the truth is recovered, so that it can be seen without knowing it (Figure 10)",
            f"a correlation of {together:.2f} with the MMCS over the grid from the true size on",
            bool(together >= 0.7) if np.isfinite(together) else None,
            "" if np.isfinite(together) else "needs two sizes of at least the true one",
        ),
        Outcome(
            "SVD",
            "finds no more directions than the rank, and none in superposition (introduction)",
            f"MMCS {svd:.2f} of the {settings.d} singular vectors with both signs",
            bool(svd <= top - 0.2),
        ),
        Outcome(
            "Active units at the best",
            f"{settings.mean_active:g} features are active in a sample (the truth)",
            f"L0 {findings['l0'][best]:.1f}, {100 * findings['explained'][best]:.0f}% of the variance "
            f"explained, "
            f"{100 * findings['dead'][best]:.0f}% of the units dead",
            None,
            "no number was published",
        ),
        Outcome(
            "Tied weights",
            "are what Cunningham et al. 2023 use, and recover too",
            f"MMCS {findings['tied_mmcs'].max():.3f} at 2^{settings.tied_ratio_exponent} times the true size",
            bool(findings["tied_mmcs"].max() >= max(0.85, svd + 0.2)),
        ),
        Outcome(
            "Top-k codes in place of an L1 weight",
            "sparse without shrinking (Gao et al. 2024)",
            f"MMCS {findings['top_mmcs'][k]:.3f} at k = {settings.top_ks[k]}",
            None,
            "not published for this data",
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Recovery over the grid; along α at the true size; and the other encoders by their L0."""
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    ratio, alpha = findings["ratio"], findings["alpha"]
    image = left.pcolormesh(findings["mmcs"], cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, ax=left, label="MMCS with the true directions")
    every = -(-len(alpha) // 7)
    left.set_xticks(np.arange(len(alpha))[::every] + 0.5, [f"{a:.2g}" for a in alpha[::every]])
    left.set_yticks(np.arange(len(ratio)) + 0.5, [f"{r:g}" for r in ratio])
    left.set(
        xlabel="L1 weight α (divided by the units)", ylabel="size of the dictionary / true size",
        title="Recovery",
    )  # fmt: skip
    one = int(np.abs(np.log(ratio) - settings.tied_ratio_exponent * np.log(2)).argmin())
    for label, l0s, values, colour, marker in (
        (f"ReLU, {ratio[one]:g} × true size", findings["l0"][one], findings["mmcs"][one], BLUE, "o"),
        ("tied", findings["tied_l0"], findings["tied_mmcs"], ORANGE, "s"),
        ("top-k", findings["top_l0"], findings["top_mmcs"], GREEN, "^"),
    ):
        shown = l0s > 0.05  # others have collapsed
        right.plot(l0s[shown], values[shown], color=colour, marker=marker, ms=4, lw=1.2, label=label)
    right.axhline(float(findings["svd_mmcs"]), color=VERMILLION, ls="--", lw=1, label="SVD")
    right.axvline(settings.mean_active, color=GREY, ls=":", lw=1, label="true L0")
    right.set(xscale="log", ylim=(0, 1.03), xlabel="active units in a sample (L0)", ylabel="MMCS",
              title="Encoders")  # fmt: skip
    right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.55, 0.02))


EXPERIMENT = Experiment(
    name="toy-saes",
    title="Sparse autoencoders on directions that are known",
    source="Sharkey, Braun, Millidge 2022, Taking features out of superposition; Cunningham et al. 2023",
    summary=(
        "Activations that superpose twice as many known directions as they have dimensions, and autoencoders "
        "over a grid of L1 weights and dictionary sizes. Those of the right L1 weight that are large enough "
        "recover the directions (mean max cosine similarity near 1); too weak or strong a penalty, too small "
        "a dictionary and a singular value decomposition do not."
    ),
    settings=Settings(),
    quick=Settings(
        d=32, directions=64, mean_active=1.5, alpha_exponents=(-8, -4, -2, 0, 1, 2, 4, 8),
        ratio_exponents=(-2, 0, 1, 2), top_ks=(2,), steps=600, batch_size=128, lr=1e-2, samples=2048,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 4.2),
)  # fmt: skip
