"""Which local minimum is found decides how monosemantic neurons are, at nearly the same loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toykern.arguments.grids import grid
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.feature_decoding import MONOSEMANTIC, FeatureDecoding, decoding_stage, small
from toykern.plot.axes import BLUE, GREEN, ORANGE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEARLY = 1.25
"""Losses are nearly equal up to this factor."""


@dataclass(frozen=True, kw_only=True)
class Settings(FeatureDecoding):
    """What may be set, beside what `FeatureDecoding` has.

    The published runs, by their names: LR1, with a bias that begins at 0, uniform; LR2, the same with a power
    law; LR3 and LR4, as these with a bias that begins at −1 and decays; LR5, "abs" with 2,048 neurons; RP1,
    "re-project". All have these learning rates, taken from the published scripts.

    Attributes:
        n_hidden: k.
        lrs: learning rates, all of which are trained with each of the
        initial_biases: what the hidden bias begins at.
        seeds: of each.
    """

    n_hidden: int = 1024
    lrs: tuple[float, ...] = (0.001, 0.003, 0.005, 0.007, 0.01, 0.03)
    initial_biases: tuple[float, ...] = (0.0, -1.0)
    seeds: int = 1


def stages(settings: Settings) -> list[Stage]:
    """A stage for each bias to begin with: that is one number for all models of a stack."""
    points = grid(lr=settings.lrs, seed=range(settings.seeds))
    return [
        decoding_stage(settings, f"bias-{number}", points, settings.n_hidden, initial)
        for number, initial in enumerate(settings.initial_biases)
    ]


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Share of monosemantic neurons, loss and bias of each model."""
    of = [trained[f"bias-{number}"] for number in range(len(settings.initial_biases))]
    purity = np.stack([models.read("purity") for models in of])
    loss = np.stack([models.read("fresh_loss") for models in of])
    share = (purity > MONOSEMANTIC).mean(axis=-1)
    alive = purity > 0
    bias = np.stack([models.read("hidden_bias") for models in of]).astype(np.float64)
    mean_bias = np.where(alive, bias, 0).sum(axis=-1) / np.maximum(alive.sum(axis=-1), 1)
    initial = np.asarray(settings.initial_biases)
    arrays = {
        "loss": labelled("initial_bias lr seed", loss),
        "share": labelled("initial_bias lr seed", share),
        "alive": labelled("initial_bias lr seed", alive.mean(axis=-1)),
        "mean_bias": labelled("initial_bias lr seed", mean_bias),
        "purity": labelled("initial_bias lr seed neuron", purity),
    }
    outcomes = judge(initial, np.asarray(settings.lrs), loss, share, mean_bias)
    return Findings(arrays, {"initial_bias": initial, "lr": np.asarray(settings.lrs)}, outcomes)


def judge(
    initial: NDArray[np.float64],
    lrs: NDArray[np.float64],
    loss: NDArray[np.float64],
    share: NDArray[np.float64],
    mean_bias: NDArray[np.float64],
) -> tuple[Outcome, ...]:
    """What was published, beside losses, shares and mean biases `[initial_bias, lr, seed]`."""
    zero, negative = int(np.abs(initial).argmin()), int(initial.argmin())
    mean_loss, mean_share = (
        np.where(np.isfinite(loss), part, np.inf).mean(axis=-1) for part in (loss, share)
    )
    near = mean_loss <= NEARLY * mean_loss.min(axis=1, keepdims=True)
    low, high = (_extreme(mean_share[zero], near[zero], sign) for sign in (1, -1))
    apart = mean_share[zero, high] - mean_share[zero, low]
    minima = Outcome(
        "Minima of the same loss",
        "models of the same loss differ widely in how monosemantic they are; the learning rate decides which "
        "of the minima is found (abstract; sweep LR1)",
        f"from a bias of {initial[zero]:g}: {mean_share[zero, low]:.1%} of the neurons at a learning rate of "
        f"{lrs[low]:g} (loss {mean_loss[zero, low]:.4f}), {mean_share[zero, high]:.1%} at {lrs[high]:g} "
        f"(loss {mean_loss[zero, high]:.4f})",
        bool(apart >= 0.1),
        f"agrees if shares differ by 10% of all neurons where losses do by less than {NEARLY - 1:.0%}",
    )
    if negative == zero:
        return (minima,)
    both = near[zero] & near[negative] & (mean_loss[negative] <= NEARLY * mean_loss[zero])
    at = np.flatnonzero(both)
    gain = mean_share[negative] - mean_share[zero]
    negative_bias = Outcome(
        "A negative bias to begin with",
        "makes models much more monosemantic without more loss (abstract; sweep LR3 beside LR1)",
        "at learning rates of nearly the least loss, shares from "
        f"{initial[zero]:g} and from {initial[negative]:g}: "
        + ", ".join(f"{mean_share[zero, i]:.1%} and {mean_share[negative, i]:.1%} at {lrs[i]:g}" for i in at),
        bool(gain[at].mean() >= 0.1) if len(at) else None,
        "agrees if the mean difference is 10% of all neurons"
        if len(at)
        else "there is no learning rate at which both reach nearly their least loss",
    )
    chosen = near[..., None] & np.isfinite(loss)
    most, least = (_extreme(share.ravel(), chosen.ravel(), sign) for sign in (-1, 1))
    moderate = Outcome(
        "The bias of monosemantic minima",
        "moderately negative (abstract)",
        f"mean bias of the living neurons {mean_bias.ravel()[most]:.3f} where {share.ravel()[most]:.1%} are "
        f"monosemantic, {mean_bias.ravel()[least]:.3f} where {share.ravel()[least]:.1%} are",
        bool(-1 < mean_bias.ravel()[most] < min(0.0, mean_bias.ravel()[least])),
        "the two extremes among models of nearly the least loss",
    )
    highest = float(share[negative].max())
    high_share = Outcome(
        "Highly monosemantic models",
        "can be engineered by this (abstract): most of the neurons",
        f"{highest:.1%} of the neurons at most",
        True if highest > 0.5 else None,
        "" if highest > 0.5 else "training is much shorter than the published 2^17 steps of 8,192 samples",
    )
    return minima, negative_bias, moderate, high_share


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Share against learning rate, loss and bias."""
    by_rate, by_loss, by_bias = figure.subplots(1, 3, sharey=True)
    colours = (BLUE, VERMILLION, GREEN, ORANGE, SKY)
    share, loss, bias = (findings[name] for name in ("share", "loss", "mean_bias"))
    for number, initial in enumerate(findings["initial_bias"]):
        look_of = {"color": colours[number % len(colours)], "label": f"bias begins at {initial:g}"}
        by_rate.plot(findings["lr"], share[number].mean(axis=-1), "o-", **look_of)
        by_loss.plot(loss[number].ravel(), share[number].ravel(), "o", **look_of)
        by_bias.plot(bias[number].ravel(), share[number].ravel(), "o", **look_of)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="share of monosemantic neurons")
    by_rate.set_xticks(findings["lr"], [f"{lr:g}" for lr in findings["lr"]], rotation=45)
    by_rate.minorticks_off()
    by_loss.set(xlabel="loss (1: nothing is decoded)", xlim=(0, 1.05 * loss.max()))
    by_bias.set(xlabel="mean bias of living neurons")
    by_bias.axvline(0, color="black", linewidth=0.7)
    for panel in (by_loss, by_bias):
        panel.locator_params(axis="x", nbins=5)  # numbers of three places would run into one another
    for panel in (by_rate, by_loss, by_bias):
        panel.set_ylim(bottom=-0.02)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *by_rate.get_legend_handles_labels(), loc="outside upper center", ncols=len(share), frameon=False
    )


def _extreme(values: NDArray[np.float64], among: NDArray[np.bool_], sign: int) -> int:
    """The position of the least value (sign 1) or the largest (−1) among some."""
    return int(np.where(among, sign * values, np.inf).argmin())


EXPERIMENT = Experiment(
    name="engineering-monosemanticity",
    title="Monosemantic neurons by choice of the minimum",
    source="Jermyn, Schiefer and Hubinger 2022, Engineering Monosemanticity in Toy Models",
    summary=(
        "Networks with one layer of ReLU neurons decode sparse features from a fixed random projection. They "
        "are trained at several learning rates, with a hidden bias that begins at 0, or at −1 and decays. "
        "Their losses are nearly the same; the share of neurons that one feature alone activates is not."
    ),
    settings=Settings(),
    quick=Settings(**small(n_hidden=160, lrs=(0.01, 0.015, 0.025))),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 3.9),
)
