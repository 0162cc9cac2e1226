"""More neurons, fewer features in each: loss and monosemantic neurons against the size of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toykern.arguments.grids import grid
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.feature_decoding import MONOSEMANTIC, FeatureDecoding, decoding_stage, small
from toykern.plot.axes import BLUE, GREY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Settings(FeatureDecoding):
    """What may be set, beside what `FeatureDecoding` has.

    The published sweeps, by their names: K0, with a bias that begins at 0, uniform; K1, with one that begins
    at −1 and decays; K2, the same with a power law. A batch has 2^(23 − ⌈log₂ k⌉) samples there and
    `batch_size` here for every k. The learning rate of these sweeps is not in the scripts that were read;
    0.007 is in the middle of those of the others.

    Attributes:
        n_hidden: the sizes k of the layer, increasing.
        initial_bias: what the hidden bias begins at.
        lr: learning rate.
        seeds: models of each size.
    """

    n_hidden: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    initial_bias: float = -1.0
    lr: float = 0.015
    seeds: int = 1


def stages(settings: Settings) -> list[Stage]:
    """A stage for each size."""
    points = grid(lr=[settings.lr], seed=range(settings.seeds))
    return [decoding_stage(settings, f"k-{k}", points, k, settings.initial_bias) for k in settings.n_hidden]


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Loss, and the number of neurons of each kind, against k."""
    sizes = np.asarray(settings.n_hidden)
    purity = [trained[f"k-{k}"].read("purity")[0] for k in settings.n_hidden]
    loss = np.stack([trained[f"k-{k}"].read("fresh_loss")[0] for k in settings.n_hidden])
    monosemantic = np.stack([(part > MONOSEMANTIC).sum(axis=-1) for part in purity])
    dead = np.stack([(part == 0).sum(axis=-1) for part in purity])
    arrays = {
        "loss": labelled("n_hidden seed", loss),
        "monosemantic": labelled("n_hidden seed", monosemantic),
        "dead": labelled("n_hidden seed", dead),
    }
    outcomes = judge(sizes, settings.n_features, loss.mean(axis=-1), monosemantic.mean(axis=-1))
    return Findings(arrays, {"n_hidden": sizes}, outcomes)


def judge(
    sizes: NDArray[np.int64], n_features: int, loss: NDArray[np.float64], number: NDArray[np.float64]
) -> tuple[Outcome, ...]:
    """What was published, beside losses and numbers of monosemantic neurons by size, means of the seeds."""
    wide = sizes > n_features
    share = number / sizes
    compared = bool(wide.any() and not wide.all())
    most, narrow = int(sizes.argmax()), int(sizes.argmin())
    at = int(np.abs(np.log(sizes / n_features)).argmin())
    note = "" if compared else "needs sizes on both sides of the number of features"
    return (
        Outcome(
            "Loss against size",
            "falls as the layer grows (sweeps K0 … K2)",
            ", ".join(f"{part:.3f} at k = {k}" for k, part in zip(sizes, loss, strict=True)),
            bool((np.diff(loss) < 0).all()) if len(sizes) > 1 else None,
            "agrees if every larger layer has a smaller loss",
        ),
        Outcome(
            "Number of monosemantic neurons",
            "grows with the layer (abstract: more neurons make models more monosemantic)",
            ", ".join(f"{part:g} at k = {k}" for k, part in zip(sizes, number, strict=True)),
            bool(number[most] > 2 * number[at] and number[most] >= 0.1 * n_features) if compared else None,
            note or "agrees if the widest layer has more than twice those of k nearest n, and 0.1 n or more",
        ),
        Outcome(
            "Share of monosemantic neurons",
            "the same (abstract)",
            f"{share[narrow]:.1%} of {sizes[narrow]} neurons, {share[at]:.1%} of {sizes[at]}, "
            f"{share[most]:.1%} of {sizes[most]}, for {n_features} features",
            bool(share[most] > max(share[narrow], share[at])) if compared else None,
            note or "agrees if it is largest in the widest layer of the three",
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Loss and numbers against k."""
    by_loss, by_number = figure.subplots(1, 2)
    sizes = findings["n_hidden"]
    by_loss.plot(sizes, findings["loss"].mean(axis=-1), "o-", color=BLUE)
    by_loss.set(ylabel="loss (1: nothing is decoded)", ylim=(0, 1.08 * findings["loss"].max()))
    by_number.plot(
        sizes, findings["monosemantic"].mean(axis=-1), "o-", color=VERMILLION, label="monosemantic"
    )
    by_number.plot(sizes, findings["dead"].mean(axis=-1), "s:", color=GREY, label="dead")
    by_number.set(ylabel="neurons", ylim=(-0.02 * sizes.max(), 1.05 * sizes.max()))
    by_number.plot(sizes, sizes, color="black", linewidth=0.7, label="all")
    for panel in (by_loss, by_number):
        panel.axvline(settings.n_features, color=GREY, linestyle="--", linewidth=0.9)
        panel.set(xscale="log", xlabel="neurons in the layer, k")
        panel.set_xticks(sizes, [str(k) for k in sizes])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    by_loss.text(
        settings.n_features, 0.98, " k = n", color=GREY, va="top", transform=by_loss.get_xaxis_transform()
    )
    by_number.legend(frameon=False, loc="center left")


EXPERIMENT = Experiment(
    name="hidden-size",
    title="Monosemantic neurons against the size of the layer",
    source="Jermyn, Schiefer and Hubinger 2022, Engineering Monosemanticity in Toy Models",
    summary=(
        "The same feature decoders with layers from much narrower than the number of features to much wider. "
        "The loss falls with every doubling; monosemantic neurons appear once there are more neurons than "
        "features."
    ),
    settings=Settings(steps=16384),  # after 4,096 at half the rate most neurons of wide layers are dead
    quick=Settings(**small(n_hidden=(8, 16, 32, 64, 128, 256), seeds=2)),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.0, 4.0),
)
