"""Matrix factorisation: nothing seems to happen, then all of it, since two factors must align at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.grids import Grid, grid
from toykern.data.dataset import Dataset
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.fitting.fitting import log_spaced_steps
from toykern.nn import Autoencoder
from toykern.plot.axes import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from toykern.training.optim import SGD, Adam, AdamW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

LOSSES = {"squared": "squared_error", "entropy": "batch_cross_entropy"}
OPTIMIZERS = ("sgd", "adam", "adamw")
FLAT = 0.215
"""The steepness, −d log ℓ / d log t, up to which a piece of a loss curve is a plateau: half of what an
exponential decay from twice the loss of nothing has at 1.3 times that, log(2/1.3)."""

PUBLISHED_SIZE = 100

TARGETS = 2**31
"""Added to the number of a seed where the seed is that of a target."""


@dataclass(frozen=True)
class Settings:
    """What may be set: 100 × 100 matrices as published; learning rates and the scale of weights are ours.

    `scales` are the standard deviations of the initial factors, relative to those of the target.
    """

    size: int = PUBLISHED_SIZE
    ranks: tuple[int, ...] = (1, 2, 10, 100)
    scales: tuple[float, ...] = (1.0, 0.1)
    seeds: int = 5
    steps: int = 2000
    lr_sgd: float = 0.02
    lr_adam: float = 0.02
    lr_entropy: float = 0.5
    weight_decay: float = 0.3
    snapshots: int = 48
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """One stack for each optimiser and loss: all ranks, scales and seeds."""
    return [_stage(settings, kind, loss) for loss in LOSSES for kind in OPTIMIZERS]


def kept_steps(settings: Settings) -> list[int]:
    """The updates after which the factors are looked at."""
    return [0, *log_spaced_steps(settings.steps, settings.snapshots)]


def factors(size: int, rank: torch.Tensor, scale: torch.Tensor, seed: torch.Tensor) -> Autoencoder:
    """Linear networks D E of rank r, the product's entries of standard deviation scale².

    All have `size` hidden units, those from r on without any weight, which they never get: each of their two
    factors has a gradient of 0 where the other is 0.
    """
    model = Autoencoder(
        size, size, len(rank), hidden_activation="none", output_activation="none", bias=False,
        init=(scale * rank.double() ** -0.25).tolist(), seed=seed, dtype=torch.float32, device="cpu",
    )  # fmt: skip
    there = (torch.arange(size, dtype=torch.int64, device="cpu") < rank[:, None]).float()
    with torch.no_grad():
        model.encoder.mul_(there[:, :, None])
        model.decoder.mul_(there[:, None, :])
    return model


def _stage(settings: Settings, kind: str, loss: str) -> Stage:
    n = settings.size

    def targets(points: Grid) -> torch.Tensor:
        """C, `[models, size, size]`, the same for all scales and optimisers."""
        seeds = own_seeds(settings.seed, points.seed + TARGETS)
        right = factors(n, points.rank, torch.ones_like(points.scale), seeds)
        return (right.decoder @ right.encoder).detach()

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        eye = torch.eye(n, dtype=torch.float32, device="cpu")
        model = factors(n, points.rank, points.scale, own_seeds(settings.seed, points.seed))
        return {"model": model, "data": Dataset(eye, targets(points).mT.contiguous())}

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        c = targets(points)
        products = torch.stack([k["decoder"] @ k["encoder"] for k in run.snapshots.values()], dim=1)
        norm, of_target = products.flatten(2).norm(dim=2), c.flatten(1).norm(dim=1)[:, None]
        directions = torch.linalg.svd(c.double()).U
        angles = torch.stack(
            [cosines(k["decoder"], directions, points.rank) for k in run.snapshots.values()], dim=1
        )
        nothing, all_of_it = _floors(c, loss)
        return {
            "share": (run.loss - all_of_it[:, None]) / (nothing - all_of_it)[:, None],
            "norm": norm / of_target,
            "alignment": (products * c[:, None]).flatten(2).sum(dim=2) / (norm * of_target),
            "bumps": bumps(angles),
            "pairs": angles[:, :, :2, :2],
        }

    rate = settings.lr_sgd if kind == "sgd" else settings.lr_adam
    if loss == "entropy" and kind == "sgd":
        rate = settings.lr_entropy
    optimizer = {
        "sgd": SGD(lr=rate),
        "adam": Adam(lr=rate),
        "adamw": AdamW(lr=rate, weight_decay=settings.weight_decay),
    }[kind]
    fit = {
        "steps": settings.steps,
        "optimizer": optimizer,
        "loss": LOSSES[loss],
        "loss_reduction": "sum",
        "record_every": 1,
        "snapshots": kept_steps(settings),
    }
    points = grid(rank=settings.ranks, scale=settings.scales, seed=range(settings.seeds))
    return Stage(f"{kind}-{loss}", points, plan, fit, measure)


def _floors(c: torch.Tensor, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the product 0 and that of the target itself, float64 `[models]` each."""
    flat = c.double().flatten(1)
    if loss == "squared":
        nothing = flat.square().sum(dim=1) / c.shape[1]
        return nothing, torch.zeros_like(nothing)
    logs = flat.log_softmax(dim=1)
    return torch.full_like(flat[:, 0], float(np.log(flat.shape[1]))), -(logs.exp() * logs).sum(dim=1)


def cosines(decoder: torch.Tensor, directions: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """cos² between each column of a factor and each singular direction of C, `[models, size, size]`.

    NaN for pairs that the rank does not have. decoder `[models, size, size]`; directions the left singular
    ones,
    of the same shape, as columns by falling strength; rank int64 `[models]`.
    """
    unit = torch.nn.functional.normalize(decoder.double(), dim=1)
    number = torch.arange(decoder.shape[1], dtype=torch.int64, device="cpu")
    there = number < rank[:, None]
    return torch.where(there[:, :, None] & there[:, None, :], (unit.mT @ directions).square(), torch.nan)


def bumps(angles: torch.Tensor, least: float = 0.1) -> torch.Tensor:
    """The share of pairs whose alignment rises by `least` and falls by as much again, float64 `[models]`.

    angles: cos² `[models, times, columns, directions]`, NaN for pairs that are not there.

    >>> traces = torch.tensor([[0.0, 0.5, 0.2], [0.0, 0.5, 1.0]])
    >>> bumps(traces.T.reshape(1, 3, 2, 1)).tolist()
    [0.5]
    """
    there = ~angles.isnan().any(dim=1)
    known = torch.where(there[:, None], angles, 0.0)
    highest = known.cummax(dim=1).values
    lowest = known.cummin(dim=1).values
    risen = (highest - lowest >= least) & (known >= highest)  # at a new height, that far above an earlier low
    peak = torch.where(risen, known, -torch.inf).amax(dim=1)
    fallen = peak - known[:, -1] >= least
    return (fallen & there).flatten(1).double().sum(dim=1) / there.flatten(1).sum(dim=1)


def flattest(share: NDArray[Any], pieces: int = 24) -> float:
    """The least steepness −d log ℓ / d log t of a loss curve `[steps]` between ℓ = 1.3 and 0.5 of the loss of
    nothing, over pieces of log time; infinity where it never is there.

    >>> round(flattest(np.linspace(1.2, 0.1, 500) ** 0 * 1.0 / np.arange(1, 501) ** 0.5 * 1.2), 1)
    0.5
    """
    times = np.unique(np.geomspace(1, len(share), pieces).round().astype(int))
    values = share[times - 1]
    if not np.isfinite(values).all():
        return float("inf")
    half = int(np.argmax(values < 0.5)) if (values < 0.5).any() else len(values) - 1
    begun = np.flatnonzero(values[: half + 1] > 1.3)
    first = int(begun[-1]) + 1 if len(begun) else 0
    slopes = [
        -np.log(values[i + 1] / values[i]) / np.log(times[i + 1] / times[i])
        for i in range(first, half)
        if values[i + 1] > 0
    ]
    return float(min(slopes, default=np.inf))


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Plateaus, norms and alignment of each optimiser and loss, the median of the seeds."""
    names = list(trained)
    share = np.stack([trained[name].read("share") for name in names])  # [run, rank, scale, seed, step]
    flat = np.median(np.apply_along_axis(flattest, -1, share), axis=-1)
    norm, alignment, bumped = (
        np.stack([trained[name].read(of) for name in names]) for of in ("norm", "alignment", "bumps")
    )
    pairs = np.stack([trained[name].read("pairs") for name in names])[:, :, 0]
    kept = np.asarray(kept_steps(settings))
    outcomes = (
        *_of_rank_one(settings, names, share[:, 0, 0], norm[:, 0, 0], alignment[:, 0, 0], flat[..., 0], kept),
        _of_bumps(settings, names, bumped[:, :, 0]),
        *_of_full_rank(settings, names, flat),
        _of_entropy(settings, names, share[:, 0, 0], flat[:, :, 0]),
    )
    over = "run rank scale"
    return Findings(
        {
            "share": labelled(f"{over} seed step", share),
            "steepness": labelled(over, flat),
            "norm": labelled(f"{over} seed snapshot", norm),
            "alignment": labelled(f"{over} seed snapshot", alignment),
            "bumps": labelled(f"{over} seed", bumped),
            "pairs": labelled("run rank seed snapshot column direction", pairs),
        },
        {
            "run": np.asarray(names),
            "rank": np.asarray(settings.ranks),
            "scale": np.asarray(settings.scales),
            "snapshot": kept,
            "step": np.arange(settings.steps),
        },
        outcomes,
    )


def _of_rank_one(
    settings: Settings, names: list[str], share: NDArray[Any], norm: NDArray[Any], alignment: NDArray[Any],
    flat: NDArray[Any], kept: NDArray[Any],
) -> tuple[Outcome, ...]:  # fmt: skip
    """The first rank, squared error, first scale: `[run, seed, …]`; flat `[run, rank]`."""
    which = [names.index(f"{kind}-squared") for kind in OPTIMIZERS]
    lowest = norm[which].min(axis=-1) / norm[which][..., 0]
    end = share[which][..., -1]
    at = np.minimum(kept, settings.steps - 1)
    early = (share[which][..., at] > 0.9) & (share[which][..., at] < 1.1)
    turned = np.where(early, np.abs(alignment[which]), np.nan)
    known = early.any(axis=-1).all()
    growth = np.nanmax(turned, axis=-1) / np.nanmin(turned, axis=-1) if known else np.full((3, 1), np.nan)
    one, full = flat[which, 0], flat[which, -1]
    judged = settings.ranks[0] == 1 and settings.scales[0] == 1
    note = "" if judged else "for rank 1 and weights of the target's scale"
    return (
        Outcome(
            "Norm, rank 1",
            "the initial product decays first: what does not fit the target shrinks",
            f"down to {lowest.min():.2f} … {lowest.max():.2f} of what it was",
            bool((lowest < 0.6).all()) if judged else None,
            note,
        ),
        Outcome(
            "Loss, rank 1",
            "a plateau near the loss of nothing, then an S",
            "least steepness −d log ℓ / d log t "
            + ", ".join(f"{a:.2f} ({kind})" for a, kind in zip(one, OPTIMIZERS, strict=True))
            + f", at rank {settings.ranks[-1]} "
            + ", ".join(f"{a:.2f}" for a in full)
            + f" (SGD: a plateau up to {FLAT}; Adam: less than 0.6 of that at the last rank); "
            + f"{np.median(end[0]):.1g}, {np.median(end[1]):.1g}, {np.median(end[2]):.1g} of the loss of "
            "nothing at the end",
            bool(one[0] < FLAT and (one < 0.6 * full).all() and (np.median(end, axis=-1) < 0.1).all())
            if judged and len(settings.ranks) > 1
            else None,
            note or ("" if len(settings.ranks) > 1 else "a higher rank is needed to compare with"),
        ),
        Outcome(
            "Alignment during the plateau, rank 1",
            "grows exponentially while the loss does not show it",
            "while the loss is within 10% of that of nothing, |cos| grows "
            + ", ".join(
                f"{np.median(g):.0f} times ({kind})" for g, kind in zip(growth, OPTIMIZERS, strict=True)
            ),
            bool(np.median(growth[0]) > 3) if judged and known else None,
            note if known else "the loss is never within 10% of that of nothing",
        ),
    )


def _of_bumps(settings: Settings, names: list[str], bumped: NDArray[Any]) -> Outcome:
    """Pairs of a column and a singular direction of C, squared error, first scale: `[run, rank, seed]`."""
    which = [names.index(f"{kind}-squared") for kind in OPTIMIZERS]
    mean = bumped[which].mean(axis=-1)  # [optimizer, rank]
    ranks = np.asarray(settings.ranks)
    one, more = ranks == 1, (ranks > 1) & (ranks <= settings.size // 4)
    judged = bool(one.any() and more.any())
    return Outcome(
        "Alignment bumps",
        "alignment rises and falls again on its way for rank above 1 only",
        "share of pairs of a column of the factor and a singular direction of the target whose cos² does: "
        + "; ".join(
            f"rank {rank} " + ", ".join(f"{mean[k, i]:.2f} ({kind})" for k, kind in enumerate(OPTIMIZERS))
            for i, rank in enumerate(ranks)
        ),
        bool(mean[:, one].max() == 0 and (mean[:, more].max(axis=1) > 0).all()) if judged else None,
        (
            "what was published as alignment was not at hand; at full rank no single pair aligns enough "
            "to tell"
            if judged
            else "rank 1 and one of 2 to a quarter of the size are needed"
        ),
    )


def _of_full_rank(settings: Settings, names: list[str], flat: NDArray[Any]) -> tuple[Outcome, ...]:
    """Whether the loss rests at the full rank; `[run, rank, scale]`."""
    full = settings.ranks[-1] == settings.size and settings.scales[0] == 1

    def seen(kind: str) -> str:
        values = flat[names.index(f"{kind}-squared"), -1]
        return ", ".join(
            f"{v:.2f} (weights × {scale:g})" for v, scale in zip(values, settings.scales, strict=True)
        )

    sgd, *adam = (float(flat[names.index(f"{kind}-squared"), -1, 0]) for kind in OPTIMIZERS)
    rests = min(adam) < FLAT
    note = "" if full else "the last rank is not the full one, or the first scale not that of the target"
    small = "" if settings.size >= PUBLISHED_SIZE else " (smaller than published)"
    return (
        Outcome(
            "Full rank, SGD",
            "no plateau",
            f"least steepness {seen('sgd')}; {FLAT} and less would be one",
            bool(sgd >= FLAT) if full else None,
            note,
        ),
        Outcome(
            "Full rank, Adam",
            "a plateau",
            f"least steepness with Adam {seen('adam')}; with AdamW {seen('adamw')}",
            (True if rests else (None if small else False)) if full else None,
            note
            or (
                ""
                if rests
                else "from weights of the target's own scale there is none here, from small ones there is "
                f"with SGD too; with which weights and learning rate there was one was not at hand{small}"
            ),
        ),
    )


def _of_entropy(settings: Settings, names: list[str], share: NDArray[Any], flat: NDArray[Any]) -> Outcome:
    """The cross-entropy variant: `share` of the least rank `[run, seed, step]`, `flat` `[run, rank]`."""
    which = [names.index(f"{kind}-entropy") for kind in OPTIMIZERS]
    end = np.median(share[which][..., -1], axis=-1)
    return Outcome(
        "Cross-entropy over all entries",
        "S-curves too",
        "least steepness by rank "
        + "; ".join(
            f"{rank}: "
            + ", ".join(f"{flat[i, at]:.2f} ({kind})" for i, kind in zip(which, OPTIMIZERS, strict=True))
            for at, rank in enumerate(settings.ranks)
        )
        + f"; at rank {settings.ranks[0]} {end[1]:.2g} (adam) of the loss of nothing remains",
        None,
        "what counts as one was not published as a number; the excess over the target's own entropy is shown",
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Loss curves by rank for each optimiser and loss; norm and alignment; alignment of single pairs."""
    colours = (BLUE, VERMILLION, GREEN, ORANGE, SKY)
    panels = figure.subplots(3, 3)
    runs = findings["run"].tolist()
    steps = 1 + findings["step"]
    for row, loss in enumerate(LOSSES):
        for column, kind in enumerate(OPTIMIZERS):
            panel, share = panels[row, column], findings["share"][runs.index(f"{kind}-{loss}")]
            for i, rank in enumerate(settings.ranks):
                panel.plot(steps, share[i, 0, 0], color=colours[i % 5], label=f"rank {rank}")
                if len(settings.scales) > 1:
                    panel.plot(steps, share[i, -1, 0], ":", color=colours[i % 5], linewidth=1)
            panel.axhline(1, color=GREY, linestyle="--", linewidth=0.8)
            names = {"sgd": "SGD", "adam": "Adam", "adamw": f"AdamW, decay {settings.weight_decay:g}"}
            panel.set(xscale="log", ylim=(-0.05, 2.1), title=names[kind], xlabel="step")
            panel.title.set_fontsize(10)
        panels[row, 0].set_ylabel("squared error, share" if loss == "squared" else "excess entropy, share")
    handles = panels[0, 0].get_legend_handles_labels()
    panels[0, 2].legend(*handles, frameon=False, fontsize=7, loc="upper right")
    kept = np.maximum(findings["snapshot"], 0.5)
    sgd = runs.index("sgd-squared")
    for name, panel in (("norm", panels[2, 0]), ("alignment", panels[2, 1])):
        for i in range(len(settings.ranks)):
            panel.plot(kept, np.abs(findings[name][sgd, i, 0, 0]), color=colours[i % 5])
        panel.set(xscale="log", xlabel="step", ylabel=f"{name} (SGD)")
    panels[2, 1].set(yscale="log", ylim=(1e-3, 1.5))
    at = min(1, len(settings.ranks) - 1)
    shown = int(findings["bumps"][sgd, at, 0].argmax())
    for i, column in enumerate((0, 1)):
        for j, style in enumerate(("-", "--")):
            trace = findings["pairs"][sgd, at, shown, :, column, j]
            if np.isfinite(trace).all():
                panels[2, 2].plot(
                    kept, trace, style, color=colours[i], label=f"column {i + 1}, direction {j + 1}"
                )
    panels[2, 2].set(
        xscale="log", xlabel="step", ylabel=f"cos², rank {settings.ranks[at]} (SGD)", ylim=(-0.03, 1.03)
    )
    panels[2, 2].legend(frameon=False, fontsize=7, loc="upper left")


EXPERIMENT = Experiment(
    name="s-curves",
    title="Multi-component learning and S-curves",
    source="Jermyn and Shlegeris 2022, Multi-Component Learning and S-Curves",
    summary=(
        "‖U Vᵀ − C‖² and its cross-entropy variant, for targets C of several ranks, by SGD, Adam and "
        "AdamW. The initial product decays, the loss rests near that of nothing while the factors align, "
        "and then falls at once; the higher the rank, the less of a plateau. Dotted curves begin from "
        "smaller weights."
    ),
    settings=Settings(),
    quick=Settings(size=64, ranks=(1, 2, 8, 64), scales=(1.0,), seeds=4, steps=400, snapshots=32),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(10.0, 8.5),
)
