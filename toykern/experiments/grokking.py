"""Modular addition: a network first remembers the sums it is shown, and long after gets the others right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern import metrics
from toykern.arguments.grids import Grid, grid
from toykern.data.dataset import Dataset
from toykern.data.modular import modular_addition
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.fitting.fitting import log_spaced_steps
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from toykern.training.optim import AdamW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from toykern.results.run import Run

LEARNT = 0.9
"""The share of sums right from which on they count as learnt."""

PUBLISHED_MODULUS = 97


@dataclass(frozen=True)
class Settings:
    """What may be set: the published map, 4 × 17 × 17 runs, which takes two quiet cores some three hours,
    reckoned from the steps of a few.

    `curve_fraction` of the pairs, without wrong labels, are trained on where curves over time are looked at.
    """

    p: int = PUBLISHED_MODULUS
    width: int = 500
    init: float = 0.05
    decays: tuple[float, ...] = (0.0, 5.0, 15.0, 20.0)
    fractions: tuple[float, ...] = tuple((0.1 + 0.05 * np.arange(17)).round(2).tolist())
    noises: tuple[float, ...] = tuple((0.05 * np.arange(17)).round(2).tolist())
    curve_fraction: float = 0.5
    curve_seeds: int = 2
    snapshots: int = 24
    steps: int = 2000
    lr: float = 1e-2
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """The map of fractions and wrong labels, after training; and curves over time of one fraction."""
    whole = grid(decay=settings.decays, fraction=settings.fractions, noise=settings.noises)
    curves = grid(
        decay=settings.decays,
        fraction=(settings.curve_fraction,),
        noise=(0.0,),
        seed=range(settings.curve_seeds),
    )
    return [_stage(settings, "map", whole, 0), _stage(settings, "curves", curves, settings.snapshots)]


def kept_steps(settings: Settings) -> list[int]:
    """The updates after which the accuracies of the curves are looked at."""
    return list(log_spaced_steps(settings.steps, settings.snapshots))


def _stage(settings: Settings, name: str, points: Grid, snapshots: int) -> Stage:
    p = settings.p

    def pairs(points: Grid) -> Dataset:
        return modular_addition(p, points.fraction, noise=points.noise, seed=settings.seed)[0]

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        model = MLP(
            2 * p, settings.width, p, points.n_models, hidden_activation="square", bias=False,
            hidden_bias=False, init=settings.init, seed=seeds, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        return {"model": model, "data": pairs(points), "seed": seeds}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        given = given_sums(pairs(points), p, len(index))
        weights = run.model.stacked_parameters()
        encoder, decoder = weights["encoder"].detach(), weights["decoder"].detach()
        values = torch.cat([encoder[..., :p], encoder[..., p:], decoder.mT], dim=1)
        found = {
            "right": shares_right(encoder, decoder, given),
            "participation": metrics.inverse_participation_ratio(values).nanmedian(dim=1).values,
            "frequencies": metrics.key_frequencies(values).sum(dim=1),
        }
        if run.snapshots:
            kept = run.snapshots.values()
            found["right_at"] = torch.stack(
                [shares_right(k["encoder"], k["decoder"], given) for k in kept], dim=1
            )
        return found

    fit: dict[str, Any] = {
        "steps": settings.steps,
        "snapshots": kept_steps(settings) if snapshots else [],
    }

    def with_decay(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        return plan(points, index) | {"optimizer": AdamW(lr=settings.lr, weight_decay=points.decay)}

    return Stage(name, points, with_decay, fit, measure)


def given_sums(data: Dataset, p: int, n_models: int) -> torch.Tensor:
    """The label each model is given for a pair a, b, int64 `[models, p, p]`; −1 for pairs it does not see.

    >>> train, _ = modular_addition(5, fraction=0.4)
    >>> (given_sums(train, 5, 1) >= 0).sum().item()
    10
    """
    given = torch.full((n_models, p, p), -1, dtype=torch.int64, device="cpu")
    for i in range(n_models):
        x, label = (part[0] for part in data.row(i).batch(step=0, n_models=1, n_outputs=p))
        there = x.sum(dim=1) > 0
        a, b = x[there, :p].argmax(dim=1), x[there, p:].argmax(dim=1)
        given[i, a, b] = label[there].argmax(dim=1)
    return given


def shares_right(encoder: torch.Tensor, decoder: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Of the labels trained on, of all other pairs, and of the wrong labels: which share is answered so.

    Float64 `[models, 3]`, NaN where there are none. encoder `[models, width, 2p]`, decoder `[models, p,
    width]`,
    `given` as from `given_sums`.
    """
    models, p = given.shape[:2]
    number = torch.arange(p, dtype=torch.int64, device="cpu")
    true = (number[:, None] + number) % p
    shares = torch.empty((models, 3), dtype=torch.float64, device="cpu")
    for i in range(models):
        codes = (encoder[i, :, :p, None] + encoder[i, :, None, p:]).square()  # [width, p, p]
        answer = (decoder[i] @ codes.flatten(1)).argmax(dim=0).view(p, p)
        seen, wrong = given[i] >= 0, (given[i] >= 0) & (given[i] != true)
        for at, (asked, wanted) in enumerate(((seen, given[i]), (~seen, true), (wrong, given[i]))):
            shares[i, at] = (answer == wanted)[asked].double().mean()
    return shares


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Accuracies and Fourier structure by decay, fraction and noise; and when the curves rise."""
    right = trained["map"].read("right")
    train, test, wrong = right[..., 0], right[..., 1], right[..., 2]
    curves = trained["curves"].read("right_at")[:, 0, 0].mean(axis=1)  # [decay, step, which]
    steps = np.asarray(kept_steps(settings))
    participation = trained["map"].read("participation")
    frequencies = trained["map"].read("frequencies")
    outcomes = (
        *_of_curves(settings, steps, curves[..., 0], curves[..., 1]),
        _of_few(settings, train, test),
        _of_structure(train, test, participation, frequencies),
        *_of_wrong_labels(settings, test, wrong),
    )
    over = "decay fraction noise"
    return Findings(
        {
            "train": labelled(over, train),
            "test": labelled(over, test),
            "wrong": labelled(over, wrong),
            "participation": labelled(over, participation),
            "frequencies": labelled(over, frequencies),
            "train_at": labelled("decay step", curves[..., 0]),
            "test_at": labelled("decay step", curves[..., 1]),
        },
        {
            "decay": np.asarray(settings.decays),
            "fraction": np.asarray(settings.fractions),
            "noise": np.asarray(settings.noises),
            "step": steps,
        },
        outcomes,
    )


def reached(steps: NDArray[Any], share: NDArray[Any], level: float) -> NDArray[np.float64]:
    """The first of the steps at which each curve `[…, step]` is at a level; infinity where none is."""
    there = share >= level
    return np.where(there.any(axis=-1), steps[there.argmax(axis=-1)], np.inf)


def _of_curves(
    settings: Settings, steps: NDArray[Any], train: NDArray[Any], test: NDArray[Any]
) -> tuple[Outcome, ...]:
    """What happens when, without wrong labels; accuracies `[decay, step]`."""
    decays = np.asarray(settings.decays)
    known, understood = reached(steps, train, LEARNT), reached(steps, test, LEARNT)
    half = reached(steps, test, 0.5)
    some = decays > 0
    both = some & np.isfinite(understood) & np.isfinite(known)
    late = understood[both] / known[both]
    rising = half[some][np.argsort(decays[some])]
    seen = ", ".join(
        f"decay {d:g}: {_step(k)}, {_step(u)}" for d, k, u in zip(decays, known, understood, strict=True)
    )
    none = ~some
    at = f"{settings.curve_fraction:.0%} of the pairs"
    follows = bool(both.any() and late.min() >= 3)
    plateau = (
        f"no plateau: the other sums are right after {late.min():.1f} to {late.max():.1f} times the steps"
        if both.any()
        else "the other sums are never right"
    )
    without = test[none, -1].max() if none.any() else float("nan")
    return (
        Outcome(
            "Test accuracy follows training accuracy",
            "late: with weight decay, long after all training sums are right, the others become so (Power "
            "et al. 2022; Gromov 2023)",
            f"90% of training and of other sums right after steps: {seen} ({at})",
            follows if some.any() else None,
            ("" if follows else plateau) if some.any() else "no weight decay among the settings",
        ),
        Outcome(
            "More weight decay",
            "earlier",
            "half of the other sums right after steps: "
            + ", ".join(f"{_step(h)} (decay {d:g})" for d, h in zip(decays, half, strict=True)),
            bool(np.isfinite(rising).any() and (rising[1:] <= rising[:-1]).all()) if some.sum() > 1 else None,
            "" if some.sum() > 1 else "two weight decays are needed",
        ),
        Outcome(
            "No weight decay",
            f"none within these steps where few pairs are known; {at} here",
            f"{without:.0%} of the other sums right after {settings.steps}" if none.any() else "not tried",
            bool(without < 0.5) if none.any() else None,
            ("" if without < 0.5 else f"{at} are enough without any")
            if none.any()
            else "every model had some",
        ),
    )


def _step(at: float) -> str:
    return f"{at:.0f}" if np.isfinite(at) else "never"


def _of_few(settings: Settings, train: NDArray[Any], test: NDArray[Any]) -> Outcome:
    fractions, quiet = np.asarray(settings.fractions), int(np.argmin(settings.noises))
    few, many = int(fractions.argmin()), int(fractions.argmax())
    known = train[:, few, quiet] >= LEARNT
    judged = fractions[few] <= 0.25 and settings.noises[quiet] == 0
    agrees = bool(known.any() and test[:, few, quiet].max() < 0.3 and test[:, many, quiet].max() > LEARNT)
    enough = [f"{d:g}" for d, right in zip(settings.decays, test[:, few, quiet], strict=True) if right >= 0.3]
    other = (
        f"{fractions[few]:.0%} are not too few with a decay of {', '.join(enough)}" if enough else "see there"
    )
    return Outcome(
        "Too few pairs",
        "are remembered and never generalised from, whatever the decay",
        f"{fractions[few]:.0%} of the pairs: training sums right by {int(known.sum())} of {len(known)} "
        f"decays, at most {test[:, few, quiet].max():.0%} of the others; {fractions[many]:.0%}: up to "
        f"{test[:, many, quiet].max():.0%}",
        agrees if judged else None,
        ("" if agrees else other)
        if judged
        else "no fraction up to a quarter without wrong labels is among the settings",
    )


def _of_structure(
    train: NDArray[Any], test: NDArray[Any], participation: NDArray[Any], frequencies: NDArray[Any]
) -> Outcome:
    """Fourier structure of models that generalise and of ones that only remember, over the whole map."""
    knows, remembers = test >= LEARNT, (train >= LEARNT) & (test < 0.3)
    judged = bool(knows.any() and remembers.any())
    what, spread = "too few models of either kind", ""
    if judged:
        one, other = np.nanmedian(participation[knows]), np.nanmedian(participation[remembers])
        what = (
            f"median inverse participation ratio {one:.2f} where the other sums are right, {other:.2f} "
            f"where they are only remembered; {np.median(frequencies[knows]):.0f} and "
            f"{np.median(frequencies[remembers]):.0f} key frequencies"
        )
        low, high = np.nanquantile(participation[knows], (0.1, 0.9))
        spread = (
            f"networks that generalise differ: a tenth have at most {low:.2f}, a tenth {high:.2f} or more"
        )
    return Outcome(
        "Fourier structure",
        "in networks that generalise each unit's weights are a cosine of one frequency (ratio 1), in ones "
        "that remember they are spread over many (Gromov 2023; Doshi et al. 2024)",
        what,
        bool(one > 2 * other and one > 0.5) if judged else None,
        ("" if one > 2 * other and one > 0.5 else spread)
        if judged
        else "needs both kinds among the settings",
    )


def _of_wrong_labels(settings: Settings, test: NDArray[Any], wrong: NDArray[Any]) -> tuple[Outcome, ...]:
    """What becomes of wrong labels; `[decay, fraction, noise]`, NaN where there are none."""
    decays = np.asarray(settings.decays)
    noisy = np.isfinite(wrong)
    both = noisy & (test >= LEARNT) & (wrong >= LEARNT)
    inverted = noisy & (test >= LEARNT) & (wrong < 0.1)
    partly = noisy & (test >= 0.8)
    least = float(wrong[partly].min()) if partly.any() else float("nan")
    full = settings.p >= PUBLISHED_MODULUS and noisy.any()
    small = "" if full else "fewer and smaller models than published, which may have none at these settings"
    by_decay = [
        f"{d:g}: {int(both[i].sum())} and {int(inverted[i].sum())}"
        for i, d in enumerate(decays)
        if noisy.any()
    ]
    return (
        Outcome(
            "Wrong labels remembered",
            "a network can answer all wrong labels as given and still generalise (Doshi et al. 2024)",
            f"both for {int(both.sum())} of {int(noisy.sum())} models with wrong labels",
            True if both.any() else (False if full else None),
            "" if both.any() else small,
        ),
        Outcome(
            "Wrong labels under weight decay",
            "enough decay makes a network leave them: it answers the true sum where it was shown a wrong "
            "one (inversion; Doshi et al. 2024)",
            "models that generalise and know at least 90% or less than 10% of the wrong labels, by decay: "
            f"{'; '.join(by_decay)}. The least share known where 80% of the other sums are right: "
            f"{least:.2f}",
            True if inverted.any() else (False if full else None),
            "" if inverted.any() else small,
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Curves over time, and for each decay a map of what was learnt."""
    decays = findings["decay"]
    colours = (GREY, SKY, BLUE, GREEN, ORANGE, VERMILLION)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.1, 1.0))[:, 0]
    time, structure = above.subplots(1, 2, width_ratios=(1.6, 1.0))
    for i, decay in enumerate(decays):
        colour = colours[i % len(colours)]
        time.plot(findings["step"], findings["train_at"][i], ":", color=colour)
        time.plot(findings["step"], findings["test_at"][i], color=colour, label=f"decay {decay:g}")
    time.plot([], [], ":", color="black", label="training sums")
    time.set(
        xscale="log", xlabel="step", ylabel="share right", ylim=(-0.03, 1.03),
        title=f"{settings.curve_fraction:.0%} of the pairs of p = {settings.p}",
    )  # fmt: skip
    time.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.55))
    for i, decay in enumerate(decays):
        structure.scatter(
            findings["test"][i].ravel(), findings["participation"][i].ravel(), s=14,
            color=colours[i % len(colours)], alpha=0.8, linewidths=0, label=f"decay {decay:g}",
        )  # fmt: skip
    structure.set(
        xlabel="share of other sums right", ylabel="inverse participation ratio", ylim=(0, 1.03),
        title="Fourier structure",
    )  # fmt: skip
    panels = below.subplots(2, len(decays), squeeze=False, sharex=True, sharey=True)
    for row, (name, label) in enumerate((("test", "other sums"), ("wrong", "wrong labels"))):
        for i, decay in enumerate(decays):
            shown = _map(panels[row, i], findings, findings[name][i])
            if row == 0:
                panels[row, i].set_title(f"decay {decay:g}", fontsize=9)
        panels[row, 0].set_ylabel(f"{label}:\nshare of wrong labels", fontsize=8)
    if len(findings["noise"]) <= 4:
        panels[0, 0].set_yticks(findings["noise"])
    below.supxlabel("fraction of the pairs trained on", fontsize=9)
    below.colorbar(shown, ax=panels, label="share answered so")


def _map(ax: Axes, findings: Findings, values: NDArray[Any]) -> Any:
    """Values `[fraction, noise]` in colours; grey where there are none."""
    x, y = findings["fraction"], findings["noise"]
    ax.set_facecolor("#cccccc")
    shown = ax.pcolormesh(_edges(x), _edges(y), values.T, vmin=0, vmax=1, cmap="cividis", rasterized=True)
    return shown


def _edges(centres: NDArray[Any]) -> NDArray[Any]:
    """Borders of the cells around centres in rising order."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.05, centres[0] + 0.05])
    between = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


EXPERIMENT = Experiment(
    name="grokking",
    title="Grokking modular addition",
    source=(
        "Power et al. 2022, Grokking; Gromov 2023, Grokking modular arithmetic; Doshi et al. 2024, To "
        "grok or not to grok"
    ),
    summary=(
        "Two-layer networks with a quadratic activation learn a + b mod p from a fraction of all pairs, "
        "some with wrong labels. All training sums are soon right; the others follow long after, earlier "
        "with more weight decay, and then every unit is a wave of one frequency."
    ),
    settings=Settings(),
    quick=Settings(
        p=23, width=128, init=0.1, decays=(0.0, 2.0, 5.0), fractions=(0.2, 0.5, 0.8), noises=(0.0, 0.05),
        snapshots=12,
        steps=500,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.5, 7.5),
)  # fmt: skip
