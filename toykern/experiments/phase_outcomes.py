"""The phase diagrams as experiments: what those of two and of three features have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern import metrics
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.phase_models import FRESH_LOSS, PhaseMeasure, PhasePlan, phase_diagram_grid
from toykern.experiments.seeds import best_over, take
from toykern.experiments.training import adamw
from toykern.plot.phases import phase_diagram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE = "points"

_SOURCE = "Elhage et al. 2022, Toy Models of Superposition, section Superposition as a Phase Change"

_DENSE, _RARE = 0.9, 0.05
"""Densities from which on, and up to which, the outcomes call features dense and rare."""


@dataclass(frozen=True)
class Settings:
    """What may be set: points along importance and density (0.1 … 10 and 0.01 … 1), models at each, training.

    The hard version, a finer picture of the same, is 256 × 256 points of 16 seeds: 10¹⁰ model-steps.
    """

    importances: int = 48
    densities: int = 48
    seeds: int = 10
    steps: int = 10_000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: str = "constant"
    seed: int = 0


def phase_experiment(name: str, n_features: int, n_hidden: int) -> Experiment:
    """The experiment of one diagram: what becomes of the last of n features in m dimensions.

    >>> phase_experiment("phase-diagram", 2, 1).settings.seeds
    10
    """
    return Experiment(
        name=name,
        title=f"The phase diagram of {n_features} features in {n_hidden} dimension{'s' * (n_hidden > 1)}",
        source=_SOURCE,
        summary=(
            f"Tied autoencoders of {n_features} features and {n_hidden} hidden dimension"
            f"{'s' * (n_hidden > 1)}, ten at each point of a grid of feature density × relative "
            "importance of "
            "the last feature; the best of each, by fresh loss, shows whether that feature is left out, "
            "has a "
            "dimension of its own or is in superposition. The three regions have sharp borders, which follow "
            "from the exact losses of solutions made by hand."
        ),
        settings=Settings(),
        quick=Settings(importances=16, densities=16, seeds=6, steps=800, lr=2e-2, schedule="cosine"),
        stages=_stages(n_features, n_hidden),
        look=look,
        draw=draw,
        figsize=(8.0, 5.0),
    )


def _stages(n_features: int, n_hidden: int) -> Callable[[Settings], list[Stage]]:
    def stages(settings: Settings) -> list[Stage]:
        """All points and seeds, as one stack."""
        shape = (settings.importances, settings.densities)
        plan = PhasePlan(n_features, n_hidden, settings.seed, "cpu", shape[0] * shape[1], settings.seeds)
        fit = adamw(settings)
        return [
            Stage(STAGE, phase_diagram_grid(shape, settings.seeds), plan, fit, PhaseMeasure(settings.seed))
        ]

    return stages


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The phase of the last feature in each point's best model, and in the best exact solution."""
    models = trained[STAGE]
    loss = models.read(FRESH_LOSS)
    weight = take(models.read("weight"), best_over(loss))
    coords = models.stage.grid.coords
    importance, density = coords["importance"], coords["density"]
    features = weight.shape[-1]
    flat = torch.from_numpy(weight).flatten(0, 1)
    phase = metrics.classify_phase(flat).numpy().reshape(loss.shape[:2])
    theory = metrics.best_solution(density[None, :], importance[:, None], features)
    shared = metrics.superposition(flat)[:, -1].numpy().reshape(phase.shape)
    norm = np.linalg.norm(weight[..., -1], axis=-1)
    return Findings(
        {
            "weight": labelled("importance density hidden feature", weight),
            "loss": labelled("importance density seed", loss),
            "phase": labelled("importance density", phase),
            "theory": labelled("importance density", theory),
            "norm": labelled("importance density", norm),
            "superposition": labelled("importance density", shared),
        },
        {"importance": importance, "density": density},
        tuple(judge(density, phase, theory, norm)),
    )


def judge(
    density: NDArray[Any], phase: NDArray[Any], theory: NDArray[Any], norm: NDArray[Any]
) -> list[Outcome]:
    """The diagram beside theory and the paper; the arrays are `[importances, densities]`."""
    agreement = float((phase == theory).mean())
    shares = [float((phase == kind).mean()) for kind in range(3)]
    expected = [float((theory == kind).mean()) for kind in range(3)]
    dense, rare = density >= _DENSE, density <= _RARE
    crowded = float((phase[:, dense] == metrics.SUPERPOSITION).mean()) if dense.any() else np.nan
    packed, expected_packed = (
        float((of[:, rare] == metrics.SUPERPOSITION).mean()) if rare.any() else np.nan
        for of in (phase, theory)
    )
    undecided = float(((norm > 0.25) & (norm < 0.75)).mean())
    return [
        Outcome(
            "Beside theory",
            "the phases are those of the best of the exact solutions (section Superposition as a Phase "
            "Change)",
            f"{100 * agreement:.1f}% of {phase.size} points agree",
            agreement >= 0.9,
        ),
        Outcome(
            "Three phases",
            "the last feature is not represented, has a dimension of its own, or is in superposition (same "
            "section)",
            f"{_percent(shares)} of the points in this order (theory: {_percent(expected)})",
            bool(min(shares) > 0.05),
        ),
        Outcome(
            "Dense and rare features",
            "superposition is for rare features: there is none for dense ones (same section)",
            f"in superposition {crowded:.0%} of the points with p ≥ {_DENSE}, {packed:.0%} of those with p ≤ "
            f"{_RARE} (theory: {expected_packed:.0%})",
            bool(crowded < 0.05 and abs(packed - expected_packed) < 0.1)
            if dense.any() and rare.any()
            else None,
            "" if dense.any() and rare.any() else "no such densities were trained",
        ),
        Outcome(
            "A sudden change",
            "at the borders the feature appears at once, not by degrees: a first-order change (same section)",
            f"the norm of the last feature is between 0.25 and 0.75 at {undecided:.1%} of the points",
            undecided < 0.1,
        ),
    ]


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The diagram by colour, with the exact borders."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ax = figure.subplots()
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0.0, 0.0, 0.93, 1.0))  # the key is wider than the legend that room is made for
    phase_diagram(findings["weight"], findings["importance"], findings["density"], ax=ax)
    agreement = (findings["phase"] == findings["theory"]).mean()
    ax.set_title(f"{ax.get_title()}\n{agreement:.1%} of the points as in theory", fontsize=11)
