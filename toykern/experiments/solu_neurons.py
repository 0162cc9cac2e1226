"""Other activations on the same task: ReLU, GELU, softmax linear units, and x eˣ, once called so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.grids import grid
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.feature_decoding import (
    MONOSEMANTIC,
    FeatureDecoding,
    decoding_stage,
    features,
    small,
)
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVATIONS = ("relu", "gelu", "x_exp", "solu")
LABELS = ("ReLU", "GELU", "x eˣ", "SoLU")
_CODED = 512  # samples whose codes are looked at


@dataclass(frozen=True, kw_only=True)
class Settings(FeatureDecoding):
    """What may be set, beside what `FeatureDecoding` has.

    Attributes:
        n_hidden: k.
        lrs: learning rates; of each activation the one with the least loss is looked at.
        initial_bias: what the hidden bias begins at.
        seeds: models of each learning rate.
    """

    n_hidden: int = 1024
    lrs: tuple[float, ...] = (0.003, 0.007, 0.03)
    initial_bias: float = 0.0
    seeds: int = 1


def stages(settings: Settings) -> list[Stage]:
    """A stage for each activation."""
    points = grid(lr=settings.lrs, seed=range(settings.seeds))
    return [
        decoding_stage(settings, name, points, settings.n_hidden, settings.initial_bias, name)
        for name in ACTIVATIONS
    ]


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Loss, purity of the neurons, and how many of them code a sample, of each activation's best models."""
    losses = np.stack([trained[name].read("fresh_loss") for name in ACTIVATIONS])
    best = best_over(losses.mean(axis=-1))
    loss = take(losses, best)
    purity = take(np.stack([trained[name].read("purity") for name in ACTIVATIONS]), best)
    coding = take(np.stack([_coding(settings, trained[name]) for name in ACTIVATIONS]), best)
    alive = purity > 0
    mean_purity = purity.sum(axis=-1) / np.maximum(alive.sum(axis=-1), 1)
    share = (purity > MONOSEMANTIC).mean(axis=-1)
    arrays = {
        "losses": labelled("activation lr seed", losses),
        "loss": labelled("activation seed", loss),
        "purity": labelled("activation seed neuron", purity),
        "mean_purity": labelled("activation seed", mean_purity),
        "share": labelled("activation seed", share),
        "coding": labelled("activation seed", coding),
    }
    coords = {"activation": np.asarray(ACTIVATIONS), "lr": np.asarray(settings.lrs)}
    means = [values.mean(axis=-1) for values in (loss, mean_purity, share, coding)]
    return Findings(arrays, coords, judge(*means))


def judge(
    loss: NDArray[np.float64],
    purity: NDArray[np.float64],
    share: NDArray[np.float64],
    coding: NDArray[np.float64],
) -> tuple[Outcome, ...]:
    """What was published, beside means for each of `ACTIVATIONS`."""

    def told(values: NDArray[np.float64], form: str) -> str:
        return ", ".join(
            f"{label} {format(value, form)}" for label, value in zip(LABELS, values, strict=True)
        )

    relu, gelu, x_exp, solu = range(4)
    return (
        Outcome(
            "SoLU by itself costs performance",
            "networks with softmax linear units are worse than with GELU, until a layer norm follows "
            "(Elhage et al. 2022, Softmax Linear Units)",
            f"loss: {told(loss, '.4f')}",
            bool(loss[solu] > loss[gelu]),
            "here no layer norm follows",
        ),
        Outcome(
            "Lateral inhibition",
            "the largest activations of a sample suppress the others (Elhage et al. 2022)",
            f"(Σ|h|)²/Σh² of a sample's codes, of all neurons: {told(coding, '.1%')}",
            bool(coding[solu] < coding[gelu]),
            "agrees if fewer neurons code a sample with SoLU than with GELU",
        ),
        Outcome(
            "Polysemanticity of SoLU",
            "more neurons of language models seem interpretable with SoLU than GELU (Elhage et al. 2022)",
            f"mean purity of the living neurons: {told(purity, '.2f')}; monosemantic: {told(share, '.1%')}",
            None,
            "language models, a layer norm and people's judgement there; none of them here. Purity counts "
            "activations above 0 alone, however small",
        ),
        Outcome(
            "Smooth activations beside ReLU",
            "Jermyn, Schiefer and Hubinger 2022 ran GELU and, as SoLU, x eˣ; their numbers were not at hand",
            f"monosemantic: ReLU {share[relu]:.1%}, GELU {share[gelu]:.1%}, x eˣ {share[x_exp]:.1%}",
            None,
            "nothing to compare with",
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Purities in order, losses against learning rates, and numbers."""
    by_neuron, by_rate, bars = figure.subplots(1, 3)
    colours = (BLUE, VERMILLION, ORANGE, GREEN)
    for number, (label, colour) in enumerate(zip(LABELS, colours, strict=True)):
        purity = np.sort(findings["purity"][number], axis=-1)[:, ::-1].mean(axis=0)
        by_neuron.plot(np.linspace(0, 1, len(purity)), purity, color=colour, label=label)
        by_rate.plot(findings["lr"], findings["losses"][number].mean(axis=-1), "o-", color=colour)
    by_neuron.set(xlabel="neurons, the purest first (share)", ylabel="purity: largest / sum", ylim=(0, 1.03))
    by_neuron.legend(frameon=False, loc="upper right")
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="loss (1: nothing is decoded)")
    by_rate.set_xticks(findings["lr"], [f"{lr:g}" for lr in findings["lr"]])
    by_rate.minorticks_off()
    by_rate.set_ylim(bottom=0)
    bars.barh(np.arange(4) - 0.2, findings["coding"].mean(axis=-1), 0.38, color=colours)
    bars.barh(np.arange(4) + 0.2, findings["share"].mean(axis=-1), 0.38, color=GREY)
    bars.set_yticks(np.arange(4), LABELS)
    bars.invert_yaxis()
    bars.set(xlabel="share of neurons: that code a\nsample; monosemantic (grey)")
    for panel in (by_neuron, by_rate, bars):
        panel.spines[["top", "right"]].set_visible(False)


def participation(codes: torch.Tensor) -> torch.Tensor:
    """(Σ|h|)²/(k Σh²) of each sample's codes `[…, k]`, averaged over the samples, the last but one dimension;
    those without any do not count. 1 if all neurons have the same code, 1/k if one alone has one.

    >>> float(participation(torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]])))
    0.75
    """
    codes = codes.double()
    squares = codes.square().sum(dim=-1)
    some = squares > 0
    ratio = codes.abs().sum(dim=-1).square() / torch.where(some, squares, 1.0) / codes.shape[-1]
    return torch.where(some, ratio, 0.0).sum(dim=-1) / some.sum(dim=-1).clamp(min=1)


@torch.no_grad()
def _coding(settings: Settings, trained: Trained) -> NDArray[np.float64]:
    """`participation`, `[lr, seed]`, on samples of no training."""
    points = trained.stage.grid
    data = features(settings, own_seeds(settings.seed, points.seed))
    x = data.sample(0, _CODED, settings.seed, n_models=1, purpose="evaluation")[0]
    model = trained.model()
    assert isinstance(model, MLP)
    found: NDArray[np.float64] = points.unflatten(participation(model.encode(x))).numpy()
    return found


EXPERIMENT = Experiment(
    name="solu-neurons",
    title="Neurons of ReLU, GELU, SoLU and x eˣ",
    source="Elhage et al. 2022, Softmax Linear Units; Jermyn, Schiefer and Hubinger 2022",
    summary=(
        "Feature decoders that differ in their activation alone: ReLU, GELU, x·softmax(x), and x·eˣ, which "
        "Jermyn et al. ran as SoLU. How pure neurons are, how many of them code a sample, and what it costs."
    ),
    settings=Settings(),
    quick=Settings(**small(n_hidden=128, lrs=(0.01, 0.03))),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(11.0, 3.9),
)
