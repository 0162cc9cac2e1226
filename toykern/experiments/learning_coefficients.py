"""How degenerate the polygons of features are: their local learning coefficients, estimated and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.llc.polygons import PolygonCoefficients, polygon_learning_coefficients
from toykern.plot.axes import BLUE, GREY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Settings:
    """What may be set; of every polygon, as many features as it has corners."""

    vertices: tuple[int, ...] = (2, 3, 4, 5, 6)
    samples: int = 10_000
    chains: int = 10
    draws: int = 500
    burn_in: int = 4000
    steps_between_draws: int = 20
    lr: float = 5e-5
    localization: float = 1.0
    batch_size: int = 64
    error: float = 0.2
    """The share of the counted coefficient by which an estimate at finite n may differ."""
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """Nothing is trained: the polygons are exact critical points."""
    return []


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Sample around every polygon."""
    found = [_estimated(settings, k) for k in settings.vertices]
    llc, error, counted, rhat = (
        np.array([float(value(f)[0]) for f in found])
        for value in (
            lambda f: f.estimate.llc,
            lambda f: f.estimate.standard_error,
            lambda f: f.counted,
            lambda f: f.estimate.rhat,
        )
    )
    corners, known = np.asarray(settings.vertices), np.isfinite(counted)
    off = np.abs(llc / counted - 1)
    in_order = bool((np.diff(llc[np.argsort(corners)]) > 0).all())
    outcomes = [
        Outcome(
            "Polygons from least to most complex",
            "polygons of more corners have a lower loss among as many features, and a larger learning "
            "coefficient (Chen et al. 2023, sections on critical points and on phase transitions)",
            ", ".join(f"k = {k}: {a:.2f} ± {e:.2f}" for k, a, e in zip(corners, llc, error, strict=True)),
            in_order if len(corners) > 1 else None,
            "" if len(corners) > 1 else "there is one polygon",
        ),
        Outcome(
            "Estimates beside the count of directions",
            "half of the directions in which the loss grows, where it grows like a form of degree two "
            "(Watanabe 2009); the count for polygons is ours",
            ", ".join(f"k = {k}: {a:.2f} of {c:g}" for k, a, c in zip(corners, llc, counted, strict=True)),
            bool((off[known] < settings.error).all()) if known.any() else None,
            f"agrees if all are within {settings.error:.0%}; at finite n estimates lie above"
            if known.any()
            else "of these polygons no count is known",
        ),
        Outcome(
            "Chains agree",
            "split R̂ near 1 (Gelman et al. 2013)",
            f"at most {np.max(rhat):.2f} with {settings.chains} chains",
            bool(np.max(rhat) < 1.1) if settings.draws >= 500 else None,
            "" if settings.draws >= 500 else "too few draws to judge it",
        ),
    ]  # fmt: skip
    return Findings(
        {
            "llc": labelled("vertices", llc),
            "standard_error": labelled("vertices", error),
            "counted": labelled("vertices", counted),
            "rhat": labelled("vertices", rhat),
            "by_chain": labelled("vertices chain", np.stack([f.estimate.by_chain[0].numpy() for f in found])),
            "loss": labelled("vertices", np.array([float(f.loss[0]) for f in found])),
        },
        {"vertices": corners},
        tuple(outcomes),
    )


def _estimated(settings: Settings, k: int) -> PolygonCoefficients:
    return polygon_learning_coefficients(
        k, [k], samples=settings.samples, sample_seed=settings.seed, chains=settings.chains,
        draws=settings.draws, burn_in=settings.burn_in, steps_between_draws=settings.steps_between_draws,
        lr=settings.lr, localization=settings.localization, batch_size=settings.batch_size,
        seed=settings.seed, progress=False,
    )  # fmt: skip


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Estimates with their errors, single chains, and the counts as dashes."""
    ax = figure.subplots()
    corners = findings["vertices"]
    for at, k in enumerate(corners):
        chains = findings["by_chain"][at]
        ax.plot(
            np.full(len(chains), k), chains, "_", color=GREY, alpha=0.6, label="chains" if not at else None
        )
        ax.plot(
            [k - 0.3, k + 0.3], [findings["counted"][at]] * 2, "--", color=VERMILLION,
            label="half of the directions that count" if not at else None,
        )  # fmt: skip
    ax.errorbar(
        corners, findings["llc"], 2 * findings["standard_error"], fmt="o", color=BLUE, capsize=3,
        label="estimate, two standard errors",
    )  # fmt: skip
    ax.set(xlabel="corners of the polygon, k = features", ylabel="local learning coefficient")
    ax.set_xticks(corners)
    ax.legend(frameon=False, loc="upper left")


EXPERIMENT = Experiment(
    name="learning-coefficients",
    title="Learning coefficients of polygons",
    source=(
        "Chen et al. 2023, Dynamical versus Bayesian phase transitions in a toy model of superposition; "
        "estimator of Lau et al. 2023, The local learning coefficient"
    ),
    summary=(
        "How degenerate a minimum is, in a number: the local learning coefficient of the exact polygons of k "
        "features in two dimensions, on data with one active feature in a sample. Langevin chains around all "
        "of them at once; beside the estimates half of the number of directions in which the loss grows."
    ),
    settings=Settings(),
    quick=Settings(vertices=(2, 4, 5), chains=8, draws=400, burn_in=3000),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(6.5, 4.2),
)
