"""How far apart a monosemantic and a polysemantic network are: straight on, and when one is pulled."""

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
from toykern.experiments.seeds import own_seeds
from toykern.fitting.fitting import fit
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREY, ORANGE, VERMILLION
from toykern.training.evaluation import evaluate
from toykern.training.optim import SGLD, Adam

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parameters = dict[str, torch.Tensor]

COLD = 1e-12
"""The step size ε of SGLD that stands for no noise, √ε a step; the rest of a step is as large as ever."""

DIRECTIONS = ("to polysemantic", "to monosemantic")


@dataclass(frozen=True)
class Settings:
    """What may be set. No published size was at hand; the task is the decoder of Jermyn et al. 2022, smaller.

    `strengths` are λ of the penalty λ ‖θ − θ*‖², rising, and `bias` that of units which begin as one
    feature's own.
    """

    n_features: int = 48
    n_inputs: int = 32
    width: int = 96
    density: float = 0.02
    pairs: int = 6
    steps: int = 5000
    batch_size: int = 256
    lr: float = 3e-3
    bias: float = -0.3
    strengths: tuple[float, ...] = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    pull_steps: int = 8000
    pull_lr: float = 2.0
    release_steps: int = 2000
    release_lr: float = 1e-3
    points: int = 21
    samples: int = 20_000
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """Pairs of networks of the same inputs: one begins with a unit for each feature, the other at random."""

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        model = _networks(settings, own_seeds(settings.seed, points.pair))
        begin_monosemantic(model, points.monosemantic == 1, settings.bias)
        return {"model": model, "data": _data(settings), "seed": own_seeds(settings.seed, index)}

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": Adam(lr=settings.lr),
        "schedule": "cosine",
        "loss_reduction": "sum",
    }
    return [Stage("networks", grid(monosemantic=(1, 0), pair=range(settings.pairs)), plan, fit)]


def _data(settings: Settings) -> SparseFeatures:
    return SparseFeatures(settings.n_features, settings.density)


def _networks(settings: Settings, seed: torch.Tensor | None, embedding: Any = None, n_models: int = 1) -> MLP:
    """Networks of the task; with seeds, each with a fixed projection of its own."""
    return MLP(
        settings.n_features, settings.width, settings.n_features, n_models if seed is None else len(seed),
        embedding=settings.n_inputs if embedding is None else embedding, bias=False, seed=seed,
        dtype=torch.float32, device="cpu",
    )  # fmt: skip


def begin_monosemantic(model: MLP, chosen: torch.Tensor, bias: float) -> None:
    """Give every unit of the chosen models, bool `[models]`, one feature of its own, in turns; in place.

    Unit k reads x as ‖p‖⁻² pᵀ P x + bias for the column p of its feature, and writes what makes that
    feature's 1 a
    1 again, shared between the units of the feature.
    """
    assert model.embedding is not None and model.hidden_bias is not None
    n, width = model.n_features, model.n_hidden
    unit = torch.arange(width, dtype=torch.int64, device="cpu")
    feature = unit % n
    units = torch.bincount(feature, minlength=n)[feature]
    reading = model.embedding / model.embedding.square().sum(
        dim=1, keepdim=True
    )  # [models, inputs, features]
    with torch.no_grad():
        for i in chosen.nonzero().flatten().tolist():
            model.encoder[i] = reading[i % len(reading)].mT[feature]
            model.decoder[i] = 0
            model.decoder[i, feature, unit] = 1 / ((1 + bias) * units)
            model.hidden_bias[i] = bias


def measured(settings: Settings, model: MLP) -> tuple[NDArray[Any], NDArray[Any]]:
    """Loss and mean monosemanticity of the units that are alive, float64 `[models]` each."""
    loss = evaluate(model, _data(settings), settings.samples, seed=settings.seed, loss_reduction="sum")
    of_units = metrics.monosemanticity(metrics.single_feature_activations(model).detach()).double()
    alive = of_units > 0
    return loss.numpy(), (of_units.sum(dim=1) / alive.sum(dim=1)).numpy()


def position(at: Parameters, start: Parameters, end: Parameters) -> NDArray[Any]:
    """How far along the line from start (0) to end (1) the nearest point to some weights is, float64
    `[models]`."""
    here, first, last = (
        torch.cat([p[name].double().flatten(1) for name in start], dim=1) for p in (at, start, end)
    )
    line = last - first
    return (((here - first) * line).sum(dim=1) / line.square().sum(dim=1)).numpy()


def _put(model: MLP, parameters: Parameters) -> None:
    with torch.no_grad():
        for name, parameter in model.stacked_parameters().items():
            parameter.copy_(parameters[name])


def _weights(model: MLP) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in model.stacked_parameters().items()}


def pull(settings: Settings, model: MLP, start: Parameters, end: Parameters, strength: torch.Tensor) -> None:
    """Train each model from `start` on its loss + λ ‖θ − end‖², λ = strength `[models]`; in place.

    It is SGLD without noise (`COLD`), whose localisation holds weights near those of its step 0: the run is
    laid out
    at `end`, and its weights are put to `start` before the first step.
    """
    rate = settings.pull_lr
    _put(model, end)
    optimizer = SGLD(lr=COLD, nbeta=2 * rate / COLD, localization=4 * rate * strength / COLD)
    run = fit(
        model, _data(settings), settings.pull_steps, settings.batch_size, optimizer, loss_reduction="sum",
        seed=own_seeds(settings.seed, torch.arange(len(strength), dtype=torch.int64, device="cpu")),
        stop_at=0, progress=False,
    )  # fmt: skip
    _put(model, start)
    fit(resume=run, progress=False)


def _release(settings: Settings, model: MLP) -> None:
    """Train on the loss alone, in place."""
    fit(
        model, _data(settings), settings.release_steps, settings.batch_size, Adam(lr=settings.release_lr),
        schedule="cosine", loss_reduction="sum", progress=False,
        seed=own_seeds(settings.seed, torch.arange(model.n_models, dtype=torch.int64, device="cpu")),
    )  # fmt: skip


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The straight lines between the two of each pair, and what pulls of each strength do, both ways."""
    model = trained["networks"].model()
    assert isinstance(model, MLP) and model.embedding is not None
    pairs, strengths = settings.pairs, settings.strengths
    loss, mono = (values.reshape(2, pairs) for values in measured(settings, model))
    one, other = (
        {name: v[at] for name, v in _weights(model).items()} for at in (slice(pairs), slice(pairs, None))
    )
    matched = metrics.permute_units(other, metrics.match_units(one, other))
    embedding = model.embedding[:pairs]
    positions = np.linspace(0, 1, settings.points)
    lines = np.empty((2, settings.points, pairs))
    single = _networks(settings, None, embedding, pairs)
    for which, end in enumerate((other, matched)):
        path = metrics.linear_path(one, end, settings.points)
        for at in range(settings.points):
            _put(single, {name: values[at] for name, values in path.items()})
            lines[which, at] = measured(settings, single)[0]
    barriers = np.stack([metrics.loss_barrier(torch.from_numpy(line)).numpy() for line in lines])

    copies = 2 * len(strengths)
    many = _networks(settings, None, embedding.repeat(copies, 1, 1), copies * pairs)
    start, end = (
        {n: torch.cat([_repeated(a[n], len(strengths)), _repeated(b[n], len(strengths))]) for n in one}
        for a, b in ((one, matched), (matched, one))
    )
    each = torch.tensor(strengths, dtype=torch.float64, device="cpu").repeat_interleave(pairs).repeat(2)
    pull(settings, many, start, end, each)
    after = [(*measured(settings, many), position(_weights(many), start, end))]
    _release(settings, many)
    after.append((*measured(settings, many), position(_weights(many), start, end)))
    shape = (2, 2, len(strengths), pairs)  # [pulled or released, direction, strength, pair]
    losses, monos, places = (np.stack([when[i] for when in after]).reshape(shape) for i in range(3))
    over = "when direction strength pair"
    return Findings(
        {
            "loss": labelled("kind pair", loss),
            "monosemanticity": labelled("kind pair", mono),
            "line_loss": labelled("matching position pair", lines),
            "barrier": labelled("matching pair", barriers),
            "pulled_loss": labelled(over, losses),
            "pulled_monosemanticity": labelled(over, monos),
            "pulled_position": labelled(over, places),
        },
        {
            "kind": np.asarray(("monosemantic", "polysemantic")),
            "matching": np.asarray(("none", "matched")),
            "position": positions,
            "when": np.asarray(("pulled", "released")),
            "direction": np.asarray(DIRECTIONS),
            "strength": np.asarray(strengths),
        },
        _outcomes(settings, loss, mono, barriers, losses, places),
    )


def _repeated(values: torch.Tensor, times: int) -> torch.Tensor:
    return values.repeat(times, *[1] * (values.ndim - 1))


def _outcomes(
    settings: Settings, loss: NDArray[Any], mono: NDArray[Any], barriers: NDArray[Any], losses: NDArray[Any],
    places: NDArray[Any],
) -> tuple[Outcome, ...]:  # fmt: skip
    """Beside what was published; arrays as in `look`."""
    middle, gap = np.median(loss, axis=1), np.median(mono, axis=1)
    bare, matched = np.median(barriers, axis=1)
    alike = bool(middle[0] < 1.5 * middle[1] and gap[0] > gap[1] + 0.15)
    further = float(np.median(losses[1, 0, 0]))
    released = np.median(places[1], axis=-1)  # [direction, strength]
    strengths = np.asarray(settings.strengths)
    least = np.where((released > 0.5).any(axis=1), strengths[(released > 0.5).argmax(axis=1)], np.nan)
    moved = np.median(places[0] - places[1], axis=-1)
    between = ((released > 0.25) & (released < 0.75)).sum(axis=1)
    how = "; ".join(
        f"{direction}: λ = {_number(least[i])}, and {between[i]} of {len(strengths)} strengths leave it "
        "between a quarter and three quarters of the way"
        for i, direction in enumerate(DIRECTIONS)
    )
    return (
        Outcome(
            "Two kinds of minima",
            "which minimum training finds decides how monosemantic a network is, at much the same loss "
            "(Jermyn et al. 2022)",
            f"loss {middle[0]:.4f} at a mean monosemanticity of {gap[0]:.2f}, {middle[1]:.4f} at "
            f"{gap[1]:.2f}",
            alike,
            "" if alike else f"trained on after the weakest pull, the first goes to {further:.4f}",
        ),
        Outcome(
            "Along the straight line",
            "networks trained apart have a barrier between them, which matching hidden units lowers "
            "(Ainsworth et al. 2022, for larger networks)",
            f"barrier {bare:.4f} as they are, {matched:.4f} matched; the loss at the ends is "
            f"{middle.max():.4f}",
            bool(matched < 0.5 * bare and matched > middle.max()),
        ),
        Outcome(
            "Strength of the pull that takes it across",
            "how hard a monosemantic network must be pulled towards a polysemantic one before it hops (no "
            "number at hand)",
            f"let go again, it is nearer to the other from λ on: {how}",
            None,
            f"a strength depends on how long it acts, {settings.pull_steps} steps at a rate of "
            f"{settings.pull_lr:g} here",
        ),
        Outcome(
            "What happens when it is let go",
            "it falls into one of two basins (what a hop would mean; no number at hand)",
            f"median way that it goes back: {np.abs(moved).max():.2f} of the distance at most; largest "
            f"median loss while pulled {np.median(losses[0], axis=-1).max():.4f}, where the straight line "
            f"rises by {matched:.4f}",
            None,
            "within these steps it stays about where it was left: the pull finds a way around the "
            "barrier, so that the two are ends of one valley rather than two basins, and there is no "
            "strength at which it hops"
            if np.abs(moved).max() < 0.2
            else "it goes back part of the way",
        ),
    )


def _number(value: float) -> str:
    return f"{value:.0e}" if np.isfinite(value) else "none of these"


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The straight lines; how far pulls go, what they cost, and how monosemantic the networks then are."""
    (line, way), (cost, kind) = figure.subplots(2, 2)
    for i, (label, colour) in enumerate((("as they are", GREY), ("units matched", BLUE))):
        values = findings["line_loss"][i]
        line.plot(findings["position"], values, color=colour, linewidth=0.7, alpha=0.5)
        line.plot(findings["position"], np.median(values, axis=1), color=colour, label=label)
    line.set(
        yscale="log", ylabel="loss of a sample", xlabel="from monosemantic (0) to polysemantic (1)",
        title="Along the straight line",
    )  # fmt: skip
    line.legend(frameon=False, fontsize=8)
    strength = findings["strength"]
    for i, colour in enumerate((VERMILLION, BLUE)):
        for when, style in enumerate(("--", "-")):
            label = f"{DIRECTIONS[i]}, {('pulled', 'let go')[when]}"
            for panel, name in (
                (way, "pulled_position"), (cost, "pulled_loss"), (kind, "pulled_monosemanticity"),
            ):  # fmt: skip
                values = np.median(findings[name][when, i], axis=-1)
                panel.plot(strength, values, style, color=colour, label=label, marker="o", markersize=3)
    for at, value in enumerate(np.median(findings["monosemanticity"], axis=1)):
        kind.axhline(value, color=(ORANGE, GREY)[at], linestyle=":", linewidth=1)
        kind.text(
            1.01, value, ("mono", "poly")[at], transform=kind.get_yaxis_transform(), fontsize=8, va="center"
        )
    cost.axhline(np.median(findings["loss"]), color=GREY, linestyle=":", linewidth=1)
    cost.axhline(
        np.median(findings["line_loss"][1].max(axis=0)), color=GREY, linestyle="--", linewidth=1,
    )  # fmt: skip
    cost.text(
        strength[0],
        np.median(findings["line_loss"][1].max(axis=0)),
        "top of the line, matched",
        fontsize=7,
        va="bottom",
    )
    way.legend(frameon=False, fontsize=7, loc="upper left")
    way.set(xscale="log", xlabel="strength λ of the pull", ylabel="share of the way", title="How far it goes")
    cost.set(
        xscale="log",
        yscale="log",
        xlabel="strength λ of the pull",
        ylabel="loss of a sample",
        title="Its loss",
    )
    kind.set(
        xscale="log", xlabel="strength λ of the pull", ylabel="mean monosemanticity", title="What it becomes"
    )


EXPERIMENT = Experiment(
    name="basins",
    title="Pulling a monosemantic network towards a polysemantic one",
    source=(
        "Jermyn, Schiefer and Hubinger 2022, Engineering Monosemanticity in Toy Models (the task); "
        "Ainsworth et al. 2022, Git Re-Basin (matching)"
    ),
    summary=(
        "Two networks that decode sparse features from a fixed projection, one that began with a unit for "
        "each feature, one that began at random: alike in loss, not in how monosemantic they are. Their "
        "units are matched by linear assignment; then the loss along the straight line, and pulls of many "
        "strengths from the one to the other."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=24, n_inputs=18, width=48, pairs=2, steps=2500, strengths=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        pull_steps=2500, release_steps=800, points=11,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.5, 7.0),
)  # fmt: skip
