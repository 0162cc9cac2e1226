"""Feature absorption: a child that is only active together with its parent takes the parent's direction over.

Chanin et al. 2024, *A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders*,
and the toy models of it (Chanin, Dulka and others 2024, *Toy Models of Feature Absorption in SAEs*): a few
orthogonal features of which one is active only together with another. An L1 weight makes both cheaper by one
unit that writes parent + child, with the parent's unit silent whenever the child is there: a hole in its
recall. Features that are independent are not absorbed, tied weights do not absorb, and where magnitudes vary,
the parent's unit is silent sometimes and weak at other times.

Here: four features along orthogonal directions, as many units as features. Features 2 and 3 are roots of
their own. The probabilities and L1 weights are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.grids import Grid, grid
from toykern.data.dependence import Hierarchy
from toykern.data.features import SparseFeatures
from toykern.experiments.dictionary_learning import dictionary_of
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, VERMILLION
from toykern.training.evaluation import evaluate
from toykern.training.optim import Adam, UnitNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

N_FEATURES, PARENT, CHILD = 4, 0, 1
KINDS = ("hierarchy", "independent", "tied", "varied")
"""A hierarchy; the same frequencies without it; the hierarchy with tied weights; with uniform magnitudes."""
SEEN = ("recall", "strength", "mixed")


@dataclass(frozen=True)
class Settings:
    """What may be set. `children` are the probabilities of the child given its parent."""

    d: int = 50
    parent: float = 0.25
    children: tuple[float, ...] = (0.1, 0.2, 0.3)
    others: float = 0.05
    l1s: tuple[float, ...] = (0.03, 0.05, 0.1, 0.15, 0.2)
    seeds: int = 12
    steps: int = 8000
    batch_size: int = 256
    lr: float = 1e-2
    samples: int = 20_000
    seed: int = 0


def stream(settings: Settings, kind: str, child: Any) -> SparseFeatures:
    """Features of a kind; `child` is the probability of the child given its parent, one for each model."""
    given = torch.as_tensor(child, dtype=torch.float64, device="cpu").reshape(-1, 1)
    if kind == "independent":
        given = given * settings.parent
    parent, other = torch.full_like(given, settings.parent), torch.full_like(given, settings.others)
    probability = torch.cat([parent, given, other, other], dim=1)
    magnitude = "uniform" if kind == "varied" else "constant"
    if kind == "independent":
        return SparseFeatures(N_FEATURES, probability, magnitude)
    return SparseFeatures(N_FEATURES, probability, magnitude, dependence=Hierarchy([-1, PARENT, -1, -1]))


def stages(settings: Settings) -> list[Stage]:
    """All L1 weights, frequencies of the child and seeds, for each kind."""
    points = grid(child=settings.children, l1=settings.l1s, seed=range(settings.seeds))
    return [_stage(settings, kind, points) for kind in KINDS]


def _stage(settings: Settings, kind: str, points: Grid) -> Stage:
    directions = torch.eye(settings.d, N_FEATURES, dtype=torch.float32, device="cpu")

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        model = MLP(
            N_FEATURES, N_FEATURES, settings.d, points.n_models, tied=kind == "tied", embedding=directions,
            seed=seeds, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        return {"model": model, "data": stream(settings, kind, points.child), "seed": seeds, "l1": points.l1}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        assert isinstance(run.model, MLP)
        data = stream(settings, kind, points.child)
        loss = evaluate(run.model, data, settings.samples, settings.seed, target="embedding", l1=points.l1,
                        loss_reduction="sum")  # fmt: skip
        x = data.sample(0, min(settings.samples, 4096), settings.seed, n_models=points.n_models,
                        purpose="evaluation")  # fmt: skip
        return {"fresh_loss": loss, **absorption(run.model, x, directions[:, PARENT])}

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": Adam(lr=settings.lr, unit_norm=UnitNorm("weight" if kind == "tied" else "decoder")),
        "schedule": "cosine",
        "target": "embedding",
        "loss_reduction": "sum",
    }
    return Stage(kind, points, plan, fit, measure)


@torch.no_grad()
def absorption(model: MLP, x: torch.Tensor, parent: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far the child has taken the parent over, double precision `[models]` each.

    The parent's unit is the one that is most active where the parent alone is; the child's is, of the others,
    the one that grows most when the child is added. "recall": the share of samples with both in which the
    parent's unit is active, divided by that of samples with the parent without the child; "strength": the
    same of its mean activity; "mixed": the cosine of the child's direction with the parent's. NaN where there
    is no sample of a kind, or the parent's unit is never active.

    x: features `[models, samples, 4]`; parent: its direction, `[d]`.
    """
    patterns = torch.zeros(2, N_FEATURES, dtype=x.dtype, device=x.device)
    patterns[:, PARENT] = patterns[1, CHILD] = 1.0
    alone, both = model.encode(patterns).unbind(1)
    at_parent = alone.argmax(1, keepdim=True)
    grown = (both - alone).scatter(1, at_parent, -torch.inf)
    at_child = grown.argmax(1)
    codes = model.encode(x).gather(2, at_parent[:, None].expand(-1, x.shape[1], 1)).squeeze(2).double()
    with_child = (x[..., PARENT] > 0) & (x[..., CHILD] > 0)
    without = (x[..., PARENT] > 0) & (x[..., CHILD] == 0)

    def ratio(values: torch.Tensor) -> torch.Tensor:
        means = [(values * mask).sum(1) / mask.sum(1) for mask in (with_child, without)]
        return torch.where(means[1] > 0, means[0] / means[1], torch.nan)

    columns = dictionary_of(model)[
        torch.arange(len(at_child), dtype=torch.int64, device=at_child.device), :, at_child
    ].double()
    cosine = columns @ parent.double() / columns.norm(dim=1).clamp(min=1e-30)
    return {"recall": ratio((codes > 0).double()), "strength": ratio(codes), "mixed": cosine}


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """What the best of the seeds does, for each kind, L1 weight and frequency of the child."""
    best = {kind: best_over(trained[kind].read("fresh_loss")) for kind in KINDS}
    arrays = {
        name: labelled("kind child l1", np.stack([take(trained[k].read(name), best[k]) for k in KINDS]))
        for name in SEEN
    }
    coords = {"kind": np.array(KINDS), "child": np.array(settings.children), "l1": np.array(settings.l1s)}
    return Findings(arrays, coords, _outcomes(Findings(arrays, coords)))


def _median(values: NDArray[np.float64]) -> float:
    """Of those that are there; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _outcomes(findings: Findings) -> tuple[Outcome, ...]:
    strength, mixed, recall = (
        dict(zip(KINDS, findings[n], strict=True)) for n in ("strength", "mixed", "recall")
    )
    # Where the parent's unit is never active nothing is known, and neither a hole nor its absence was seen.
    known = {kind: strength[kind][np.isfinite(strength[kind])] for kind in KINDS}
    holes = {kind: float(np.mean(known[kind] < 0.5)) if known[kind].size else np.nan for kind in KINDS}

    def seen(kind: str) -> str:
        return (
            f"where the child is, the parent's unit is active at {_median(strength[kind]):.2f} of its "
            f"strength "
            f"and the child's direction has the cosine {_median(mixed[kind]):.2f} with the parent's "
            f"(medians); "
            f"less than half of its strength in {100 * holes[kind]:.0f}% of the settings"
        )

    return (
        Outcome(
            "A child that needs its parent",
            "is absorbed: the parent's unit is silent with it, and its own unit writes both, cosine 0.71",
            seen("hierarchy"),
            bool(holes["hierarchy"] > 0.5 and _median(mixed["hierarchy"]) > 0.5),
        ),
        Outcome(
            "The same frequencies, independent",
            "every feature has a unit of its own",
            seen("independent"),
            bool(holes["independent"] < 0.2 and _median(mixed["independent"]) < 0.2),
        ),
        Outcome(
            "Tied weights",
            "do not absorb",
            seen("tied"),
            bool(holes["tied"] < min(0.25, holes["hierarchy"] / 2)),
            "with a strong L1 weight and a frequent child tied ones join both in one unit, too",
        ),
        Outcome(
            "Magnitudes that vary",
            "absorb partly: the parent's unit is silent in some samples and weak in others",
            f"it is active in {100 * _median(recall['varied']):.0f}% as many samples with the child "
            f"as without, "
            f"at {_median(strength['varied']):.2f} of its strength (medians; constant magnitudes: "
            f"{100 * _median(recall['hierarchy']):.0f}%)",
            bool(
                0.05 < _median(strength["varied"]) < 0.9
                and _median(recall["varied"]) > _median(recall["hierarchy"]) + 0.05
            ),
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The strength of the parent's unit with the child, and the child's direction, by L1 weight."""
    panels = figure.subplots(1, 2)
    dashes = ("-", "--", ":", "-.")
    for panel, name in zip(panels, ("strength", "mixed"), strict=True):
        for k, (kind, colour) in enumerate(zip(KINDS, (VERMILLION, BLUE, ORANGE, GREEN), strict=True)):
            for c, child in enumerate(settings.children):
                label = f"{kind}, P(child | parent) = {child:g}" if c == 0 else f"{kind}, {child:g}"
                plain = {"color": colour, "ls": dashes[c % 4], "marker": "o", "ms": 3, "lw": 1.2}
                panel.plot(settings.l1s, findings[name][k, c], label=label, **plain)
        panel.set(xscale="log", xlabel="L1 weight (beside a sum of squares)")
        panel.set_xticks(settings.l1s, [f"{weight:g}" for weight in settings.l1s])
        panel.minorticks_off()
    panels[0].set(ylabel="parent's unit: activity with / without child", title="Holes of the parent's unit")
    panels[1].set(
        ylabel="cosine of the child's direction with the parent's", title="What the child's unit writes"
    )
    panels[1].axhline(0.5**0.5, color=GREY, ls="--", lw=0.8)
    at = (settings.l1s[0], 0.5**0.5)
    panels[1].annotate("(parent + child)/√2", at, (0, 3), textcoords="offset points", fontsize=7, color=GREY)
    panels[1].set_ylim(top=0.79)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)


EXPERIMENT = Experiment(
    name="hierarchy-absorption",
    title="Feature absorption in a hierarchy",
    source="Chanin et al. 2024, A is for Absorption; Toy Models of Feature Absorption in SAEs",
    summary=(
        "Sparse autoencoders on four orthogonal features of which one, the child, is only active together "
        "with "
        "another, its parent. The child's unit takes the parent's direction over, and the parent's unit is "
        "silent where the child is. Independent features and tied weights have no such holes."
    ),
    settings=Settings(),
    quick=Settings(d=8, children=(0.3,), l1s=(0.1, 0.15), seeds=10, steps=4000, lr=2e-2, samples=4096),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(11.0, 4.2),
)  # fmt: skip
