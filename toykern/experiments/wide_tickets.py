"""Which connections a sparse wide layer has: a mask at random, one that moves, and winning tickets."""

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
from toykern.experiments.feature_decoding import MONOSEMANTIC
from toykern.experiments.seeds import own_seeds
from toykern.fitting import fit
from toykern.nn import SparseTiedAutoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from toykern.sparse import SET, GradualMagnitude, LotteryTicket, RigL, Static, Topology
from toykern.sparse.recipe import Recipe
from toykern.training.evaluation import evaluate
from toykern.training.optim import Adam

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

FIXED, REINITIALISED = "static", "re-initialised"
GROWING, PRUNED = ("set", "rigl"), ("gradual", "ticket")
METHODS = (FIXED, *GROWING, *PRUNED, REINITIALISED)
LABELS = ("fixed random mask", "SET", "RigL", "gradual pruning", "lottery ticket", "ticket, new weights")
_OTHER_SEED = 1 << 31  # added to a model's seed, it gives none that another model has


@dataclass(frozen=True)
class Settings:
    """What may be set.

    No sparse layer has an embedding before it or a bias of the hidden layer, so that this is not the network
    in which Jermyn et al. compared prune-and-grow with a fixed mask: it is a tied autoencoder with ReLU on
    both layers, and with more neurons than features.

    Attributes:
        n_features, n_hidden: n and m.
        probability: of each feature.
        densities: shares of connections that there are at the end of training.
        seeds: of each method and density.
        steps, batch_size, lr: of training, with a cosine; for tickets, of the last round.
        updates: how often connections change in the first three quarters of training.
        drop_fraction: of connections that the first of these moves.
        rounds: of the lottery; all but the last train for half of `steps`.
        evaluated: samples of the loss at the end.
        seed: of everything.
    """

    n_features: int = 128
    n_hidden: int = 256
    probability: float = 1 / 32
    densities: tuple[float, ...] = (0.0625, 0.03125, 0.015625, 0.0078125)
    seeds: int = 8
    steps: int = 5000
    batch_size: int = 512
    lr: float = 1e-2
    updates: int = 30
    drop_fraction: float = 0.3
    rounds: int = 8
    evaluated: int = 16_384
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """All connections, and each method at each density; methods that prune begin with all connections."""
    found = [_stage(settings, "dense", 1.0, Static())]
    for number, density in enumerate(settings.densities):
        for method in METHODS[:-1]:
            recipe = _recipe(settings, method, density)
            begin = 1.0 if method in PRUNED else density
            found.append(_stage(settings, f"{method}-{number}", begin, recipe))
    return found


def _recipe(settings: Settings, method: str, density: float) -> Recipe:
    end = max(1, 3 * settings.steps // 4)
    interval = max(1, end // settings.updates)
    if method == "set":
        return SET(drop_fraction=settings.drop_fraction, schedule="cosine", interval=interval, end=end)
    if method == "rigl":
        return RigL(drop_fraction=settings.drop_fraction, interval=interval, end=end)
    if method == "gradual":
        return GradualMagnitude(final_density=density, interval=interval, end=end)
    if method == "ticket":
        drop = 1 - density ** (1 / settings.rounds)
        return LotteryTicket(
            rounds=settings.rounds, round_steps=max(1, settings.steps // 2), drop_fraction=drop
        )
    return Static()


def _stage(settings: Settings, name: str, density: float, recipe: Recipe) -> Stage:
    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, points.seed)
        return {"model": _autoencoders(settings, seeds, density=density), "data": _data(settings),
                "seed": seeds}  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        return _measured(settings, run)

    options = _training(settings) | {"topology": recipe}
    return Stage(name, grid(seed=range(settings.seeds)), plan, options, measure)


def _autoencoders(settings: Settings, seeds: torch.Tensor, **connections: Any) -> SparseTiedAutoencoder:
    return SparseTiedAutoencoder(
        settings.n_features, settings.n_hidden, n_models=len(seeds), hidden_activation="relu", seed=seeds,
        dtype=torch.float32, device="cpu", **connections,
    )  # fmt: skip


def _data(settings: Settings) -> SparseFeatures:
    return SparseFeatures(settings.n_features, settings.probability)


def _training(settings: Settings) -> dict[str, Any]:
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": Adam(lr=settings.lr),
        "schedule": "cosine",
        "loss_reduction": "sum",
    }


def _measured(settings: Settings, run: Run) -> dict[str, torch.Tensor]:
    """Loss as a share of that of zeros, and of each neuron the monosemanticity: feature i alone gives the
    codes ReLU(W e_i), the positive part of a column."""
    model = run.model
    loss = evaluate(model, _data(settings), settings.evaluated, seed=settings.seed, loss_reduction="sum")
    weight = model.stacked_parameters()["weight"]
    nothing = settings.n_features * settings.probability / 3
    return {"fresh_loss": loss / nothing, "purity": metrics.monosemanticity(weight.mT)}


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The tickets with other initial weights are trained here; then losses and neurons of all."""
    shape = (len(METHODS), len(settings.densities), settings.seeds)
    loss, density = np.empty(shape), np.empty(shape)
    purity = np.empty((*shape, settings.n_hidden))
    for number in range(len(settings.densities)):
        for at, method in enumerate(METHODS[:-1]):
            models = trained[f"{method}-{number}"]
            loss[at, number], purity[at, number] = models.read("fresh_loss"), models.read("purity")
            density[at, number] = models.read("connections").mean(axis=(-2, -1))
        again = _trained_again(settings, trained[f"ticket-{number}"].read("connections"))
        loss[-1, number], purity[-1, number] = again["fresh_loss"], again["purity"]
        density[-1, number] = density[METHODS.index("ticket"), number]
    alive = purity > 0
    share = (purity > MONOSEMANTIC).sum(axis=-1) / np.maximum(alive.sum(axis=-1), 1)
    dense = trained["dense"].read("purity")
    dense_share = (dense > MONOSEMANTIC).sum(axis=-1) / np.maximum((dense > 0).sum(axis=-1), 1)
    arrays = {
        "loss": labelled("method density seed", loss),
        "connections": labelled("method density seed", density),
        "share": labelled("method density seed", share),
        "alive": labelled("method density seed", alive.mean(axis=-1)),
        "dense_loss": labelled("seed", trained["dense"].read("fresh_loss")),
        "dense_share": labelled("seed", dense_share),
    }
    coords = {"method": np.asarray(METHODS), "density": np.asarray(settings.densities)}
    outcomes = judge(loss.mean(axis=-1), share.mean(axis=-1), float(dense_share.mean()), coords["density"])
    return Findings(arrays, coords, outcomes)


def _trained_again(settings: Settings, connections: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The same connections, each with the weights and the data of another seed."""
    seeds = own_seeds(settings.seed, torch.arange(settings.seeds, dtype=torch.int64, device="cpu"))
    topology = Topology.from_mask(torch.from_numpy(np.ascontiguousarray(connections)))
    model = _autoencoders(settings, seeds + _OTHER_SEED, topology=topology)
    run = fit(model, _data(settings), seed=seeds + _OTHER_SEED, progress=False, **_training(settings))
    return {name: value.numpy() for name, value in _measured(settings, run).items()}


def judge(
    loss: NDArray[np.float64],
    share: NDArray[np.float64],
    dense_share: float,
    densities: NDArray[np.float64],
) -> tuple[Outcome, ...]:
    """What was published, beside mean losses and shares `[method, density]`."""

    def told(values: NDArray[np.float64], *methods: str, form: str = ".3f") -> str:
        lines = []
        for method in methods:
            at = METHODS.index(method)
            lines.append(f"{LABELS[at]} " + ", ".join(format(value, form) for value in values[at]))
        return "; ".join(lines)

    def of(values: NDArray[np.float64], method: str) -> NDArray[np.float64]:
        return values[METHODS.index(method)]

    at_densities = "at densities of " + ", ".join(f"{density:.3g}" for density in densities)
    tried = [of(loss, method) < of(loss, FIXED) for method in GROWING]
    least = int(densities.argmin())
    return (
        Outcome(
            "Prune and grow",
            "beats a fixed random mask of the same density (Jermyn, Schiefer and Hubinger 2022)",
            f"loss {at_densities}: {told(loss, FIXED, *GROWING)}",
            bool(np.all(tried)),
            "agrees if both methods do at every density; another network than the published one",
        ),
        Outcome(
            "Tickets beside random masks",
            "connections found by magnitude train better than random ones (Frankle and Carbin 2019)",
            f"loss {at_densities}: {told(loss, 'ticket', FIXED)}",
            bool((of(loss, "ticket") < of(loss, FIXED)).all()),
            "agrees if they do at every density",
        ),
        Outcome(
            "Tickets with new weights",
            "train worse than with the weights they were found with (Frankle and Carbin 2019)",
            f"loss {at_densities}: {told(loss, 'ticket', REINITIALISED)}",
            bool(of(loss, "ticket")[least] < of(loss, REINITIALISED)[least]),
            "agrees if they do at the least density",
        ),
        Outcome(
            "Monosemanticity of tickets",
            "none that we know of",
            f"monosemantic among the living neurons: with all connections {dense_share:.1%}; {at_densities} "
            f"{told(share, 'ticket', *GROWING, FIXED, form='.0%')}",
            None,
            "nothing to compare with; a neuron with one connection is monosemantic whatever it learns",
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Loss and monosemantic neurons against the density."""
    by_loss, by_share = figure.subplots(1, 2)
    density = findings["density"]
    looks = ((GREY, "s--"), (SKY, "o-"), (BLUE, "o-"), (ORANGE, "^-"), (VERMILLION, "D-"), (GREEN, "D:"))
    for number, (colour, style) in enumerate(looks):
        lines = {"color": colour, "label": LABELS[number], "markersize": 5}
        by_loss.plot(density, findings["loss"][number].mean(axis=-1), style, **lines)
        by_share.plot(density, findings["share"][number].mean(axis=-1), style, **lines)
    with_all = {"color": "black", "linewidth": 0.8, "linestyle": "--", "label": "all connections"}
    by_loss.axhline(findings["dense_loss"].mean(), **with_all)
    by_share.axhline(findings["dense_share"].mean(), **with_all)
    by_loss.set(ylabel="loss (1: nothing is kept)", ylim=(-0.02, None))
    by_share.set(ylabel="monosemantic, of the living neurons", ylim=(0, 1.03))
    for panel in (by_loss, by_share):
        panel.set(xscale="log", xlabel="share of connections")
        panel.set_xticks(density, [f"{part:.3g}" for part in density])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_loss.get_legend_handles_labels(), loc="outside right center", frameon=False)


EXPERIMENT = Experiment(
    name="wide-tickets",
    title="Sparse connections of wide layers",
    source="Jermyn et al. 2022; Frankle and Carbin 2019; Evci et al. 2020; Mocanu et al. 2018",
    summary=(
        "Tied autoencoders with more neurons than features and few of the connections: fixed at random, "
        "moved by SET and RigL while training, pruned from all, or found as lottery tickets, also with new "
        "weights. What each loses at the same density, and how monosemantic the neurons are."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=32, n_hidden=64, probability=1 / 16, densities=(0.08, 0.04), seeds=6, steps=1000,
        batch_size=128, rounds=6,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.5, 4.0),
)  # fmt: skip
