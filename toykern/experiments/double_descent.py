"""Few samples are memorised, many are generalised from, and between the two the test loss has a bump."""

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
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import best_over, own_seeds, take
from toykern.fitting.fitting import log_spaced_steps
from toykern.nn import TiedAutoencoder
from toykern.plot.axes import BLUE, GREY, ORANGE, VERMILLION, edges
from toykern.training.evaluation import evaluate
from toykern.training.optim import AdamW
from toykern.training.schedule import WarmupCosine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from toykern.results.run import Run

REPRESENTED = 0.5
"""The length from which on a feature counts as represented."""


@dataclass(frozen=True)
class Settings:
    """What may be set: the ten times smaller version.

    Published are n=10,000 features at p=0.001, 50,000 updates of which 2,500 warm up to a rate of 1e-3, and
    four datasets; each is a setting. A twentieth of the updates are the warm-up.
    """

    n_features: int = 1000
    density: float = 0.01
    hidden: tuple[int, ...] = (2, 3, 5, 8)
    samples: tuple[int, ...] = (3, 5, 8, 15, 30, 50, 100, 200, 500, 1000, 2000, 4000)
    datasets: int = 2
    seeds: int = 2
    steps: int = 5000
    lr: float = 1e-2
    snapshots: int = 12
    test_samples: int = 5000
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """One stack for each number of hidden dimensions m: all sizes of datasets, datasets and seeds."""
    return [_stage(settings, m, m == settings.hidden[0]) for m in settings.hidden]


def name_of(n_hidden: int) -> str:
    """Of the stage of models of so many hidden dimensions."""
    return f"hidden-{n_hidden}"


def kept_steps(settings: Settings) -> list[int]:
    """The updates after which models of the first m are looked at."""
    return list(log_spaced_steps(settings.steps, settings.snapshots))


def dataset_of(settings: Settings, samples: Any, number: torch.Tensor) -> Dataset:
    """The first samples of dataset `number`, int64 `[models]`, scaled to length 1."""
    stream = SparseFeatures(settings.n_features, settings.density)
    return stream.dataset(samples, seed=own_seeds(settings.seed, number), normalize="unit")


def _stage(settings: Settings, n_hidden: int, with_snapshots: bool) -> Stage:
    n, longest = settings.n_features, max(settings.samples)

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {
            "model": TiedAutoencoder(n, n_hidden, points.n_models, seed=seeds, dtype=torch.float32,
                                     device="cpu"),
            "data": dataset_of(settings, points.samples, points.dataset),
            "seed": seeds,
        }  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        test = SparseFeatures(n, settings.density).dataset(
            settings.test_samples, seed=settings.seed, normalize="unit", purpose="evaluation"
        )
        data = dataset_of(settings, points.samples, points.dataset)
        dimensionality = torch.full((len(index), longest), torch.nan, dtype=torch.float32, device="cpu")
        for i, codes in enumerate(codes_of(run.model.stacked_parameters()["weight"].detach(), data)):
            dimensionality[i, : codes.shape[1]] = metrics.feature_dimensionality(codes)
        found = {
            "train_loss": evaluate(run.model, data, loss_reduction="sum"),
            "test_loss": evaluate(run.model, test, loss_reduction="sum"),
            "sample_dimensionality": dimensionality,
        }
        if run.snapshots:
            found["test_loss_at"] = torch.stack(
                [
                    evaluate(_with(run.model, kept), test, loss_reduction="sum")
                    for kept in run.snapshots.values()
                ],
                dim=1,
            )
        return found

    fit = {
        "steps": settings.steps,
        "optimizer": AdamW(lr=settings.lr),
        "schedule": WarmupCosine(max(1, settings.steps // 20)),
        "loss_reduction": "sum",
        "snapshots": kept_steps(settings) if with_snapshots else [],
    }
    points = grid(samples=settings.samples, dataset=range(settings.datasets), seed=range(settings.seeds))
    return Stage(name_of(n_hidden), points, plan, fit, measure)


def codes_of(weight: torch.Tensor, data: Dataset) -> list[torch.Tensor]:
    """Where each model has its samples: W x as columns, `[n_hidden, T]` of its own T for each model."""
    codes = []
    for i, own in enumerate(weight):
        row = data.row(i)
        x = row.batch(step=0, n_models=1)[0][0]
        codes.append(own @ x[: x.shape[0] if row.samples is None else int(row.samples[0])].mT)
    return codes


def _with(model: Any, parameters: Mapping[str, torch.Tensor]) -> TiedAutoencoder:
    """A model of the same shape with other parameters."""
    other = TiedAutoencoder(
        model.n_features, model.n_hidden, model.n_models, dtype=torch.float32, device="cpu"
    )
    other.load_state_dict({name: parameters[name] for name in other.state_dict()})
    return other


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The best of the seeds by training loss, averaged over datasets; of the first m also what is stored."""
    losses: dict[str, list[NDArray[Any]]] = {"train_loss": [], "test_loss": []}
    for m in settings.hidden:
        models = trained[name_of(m)]
        best = best_over(models.read("train_loss"))
        for name, kept in losses.items():
            kept.append(take(models.read(name), best).mean(axis=1))
    models = trained[name_of(settings.hidden[0])]
    best = best_over(models.read("train_loss"))
    weight = take(models.read("weight"), best)[:, 0]  # of the first dataset: [samples, hidden, feature]
    of_samples = take(models.read("sample_dimensionality"), best)[:, 0]
    of_features = metrics.feature_dimensionality(torch.from_numpy(weight)).numpy()
    norms = np.linalg.norm(weight, axis=1)
    first = torch.zeros(len(weight), dtype=torch.int64, device="cpu")
    codes = np.full((len(weight), settings.hidden[0], max(settings.samples)), np.nan, dtype=np.float32)
    data = dataset_of(settings, list(settings.samples), first)
    for i, own in enumerate(codes_of(torch.from_numpy(weight), data)):
        codes[i, :, : own.shape[1]] = own.numpy()
    test, train = np.stack(losses["test_loss"]), np.stack(losses["train_loss"])
    epochs = take(models.read("test_loss_at"), best).mean(axis=1)
    typical = np.nanmedian(of_samples, axis=1)
    represented = (norms > REPRESENTED).sum(axis=1)
    outcomes = (
        *_of_first(settings, train[0], test[0], typical, of_features, represented),
        _of_sizes(settings, test),
        _of_epochs(settings, epochs),
    )
    return Findings(
        {
            "train_loss": labelled("hidden samples", train),
            "test_loss": labelled("hidden samples", test),
            "test_loss_at": labelled("samples step", epochs),
            "sample_dimensionality": labelled("samples sample", of_samples),
            "feature_dimensionality": labelled("samples feature", of_features),
            "represented": labelled("samples", represented),
            "weight": labelled("samples dimension feature", weight),
            "codes": labelled("samples dimension sample", codes),
        },
        {
            "hidden": np.asarray(settings.hidden),
            "samples": np.asarray(settings.samples),
            "step": np.asarray(kept_steps(settings)),
        },
        outcomes,
    )


def _of_first(
    settings: Settings, train: NDArray[Any], test: NDArray[Any], typical: NDArray[Any],
    of_features: NDArray[Any], represented: NDArray[Any],
) -> tuple[Outcome, ...]:  # fmt: skip
    """What the first m tells: the two regimes and what is between them; all arguments by size of dataset."""
    m, sizes = settings.hidden[0], np.asarray(settings.samples)
    few, many, worst = int(sizes.argmin()), int(sizes.argmax()), int(test.argmax())
    fair = m / sizes  # the dimensionality of each of T equal samples
    memorised = np.flatnonzero((train < 0.02 * np.nanmax(train)) & (sizes > m))
    even = np.abs(typical / fair - 1)
    largest = of_features.max(axis=1)
    inside = worst not in (few, many)
    # With the most samples the test loss has to be down again, or their regime has not been reached.
    reached = inside and bool(test[many] < 2 * test[few])
    note = "sizes of datasets that show it are not among the settings"
    beyond = (
        f"T = {sizes[many]} is still in the bump: the regime of many samples begins beyond it"
        if inside
        else note
    )
    return (
        Outcome(
            f"Few samples, m = {m}",
            "the samples, not the features, lie as a regular polygon in the hidden plane: D_X = m/T (the "
            "paper's figure of feature and hidden vectors)",
            "memorised up to T = " + (f"{sizes[memorised].max()}" if len(memorised) else "none")
            + f"; median D_X · T/m there {_span(typical[memorised] / fair[memorised])}",
            bool(even[memorised].max() < 0.25) if len(memorised) else None,
            "" if len(memorised) else note,
        ),
        Outcome(
            f"Many samples, m = {m}",
            "features form a pentagon, as without end of data (D_i = 2/5), and samples have no place of "
            "their own",
            f"T = {sizes[many]}: largest D_i {largest[many]:.2f}, {represented[many]} features longer than "
            f"{REPRESENTED}; at T = {sizes[worst]} {largest[worst]:.2f} and {represented[worst]}",
            bool(largest[many] > 0.2 and represented[many] < 0.5 * represented[worst]) if reached else None,
            "" if reached else beyond,
        ),
        Outcome(
            f"Test loss between, m = {m}",
            "a bump between the two regimes: double descent; where it lies differed in a replication",
            f"{test[few]:.2f} at T = {sizes[few]}, {test[worst]:.2f} at T = {sizes[worst]}, "
            f"{test[many]:.2f} at T = {sizes[many]}",
            bool(test[worst] > 1.2 * max(test[few], test[many])) if inside else None,
            "" if inside else note,
        ),
        Outcome(
            "What is stored where the test loss is largest",
            "neither: dimensionalities of samples and of features are both low there",
            f"T = {sizes[worst]}: median D_X {typical[worst]:.3f}, largest D_i {largest[worst]:.2f}",
            bool(typical[worst] < 0.5 * typical[few] and largest[worst] < 0.75 * largest[many]) if reached
            else None,
            "" if reached else beyond,
        ),
    )  # fmt: skip


def _of_sizes(settings: Settings, test: NDArray[Any]) -> Outcome:
    """How the bump stands to the number of hidden dimensions; test `[hidden, samples]`."""
    hidden, sizes = np.asarray(settings.hidden), np.asarray(settings.samples)
    few, many = test[:, sizes.argmin()], test[:, sizes.argmax()]
    peaks = sizes[test.argmax(axis=1)]
    bumps = test.max(axis=1) > 1.2 * np.maximum(few, many)
    rising = np.sort(hidden).tolist() == hidden.tolist() and len(hidden) > 2
    along = (
        test[1:-1].max(axis=0) > 1.05 * np.maximum(test[0], test[-1]) if rising else np.zeros(0, dtype=bool)
    )
    # Of those without a bump, the ones whose test loss has not come down with the most samples.
    within = ~bumps & (many > 2 * few)
    note = "three or more m, rising, are needed for a bump along m"
    if rising:
        missing = ", ".join(f"m = {m}" for m in hidden[~bumps])
        note = f"no bump along T within the sizes run: {missing}" if missing else ""
    told = bool((bumps | ~within).all())
    return Outcome(
        "Number of hidden dimensions",
        "double descent along T and along m (the paper's map of both)",
        ", ".join(f"m = {m}: largest at T = {peak}" for m, peak in zip(hidden, peaks, strict=True))
        + f"; along m between its ends at {int(along.sum())} of {len(sizes)} T",
        bool(bumps.all() and along.any()) if rising and told else None,
        note,
    )


def _of_epochs(settings: Settings, epochs: NDArray[Any]) -> Outcome:
    """Test loss by updates, `[samples, step]`, of the first m."""
    sizes = np.asarray(settings.samples)
    lost = epochs[:, -1] / epochs.min(axis=1)
    worst, many = int(lost.argmax()), int(sizes.argmax())
    reached = worst != many and bool(epochs[many, -1] < 2 * epochs[sizes.argmin(), -1])
    return Outcome(
        "Test loss by epochs",
        "epochs can hurt as parameters do, where a model can just fit its samples, and not with many more "
        "(Nakkiran et al. 2019, Deep Double Descent; not for this model)",
        f"end over least: {lost[worst]:.2f} at T = {sizes[worst]}, {lost[many]:.2f} at T = {sizes[many]}",
        bool(lost[worst] > 1.2 and lost[many] < 1.05) if reached else None,
        "" if reached else "the largest dataset is still too small",
    )


def _span(values: NDArray[Any]) -> str:
    return f"{values.min():.2f} … {values.max():.2f}" if len(values) else "unknown"


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Losses and what is stored against T; both maps; and the plane itself at five T."""
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.4, 1.0))[:, 0]
    below.suptitle("The hidden plane: samples (orange) and features (blue)", fontsize=11)
    (losses, sizes), (stored, epochs) = above.subplots(2, 2)
    samples, m = findings["samples"], settings.hidden[0]
    losses.plot(samples, findings["test_loss"][0], "o-", color=VERMILLION, label="test", markersize=4)
    losses.plot(samples, findings["train_loss"][0], "o-", color=BLUE, label="training", markersize=4)
    losses.set_yscale("symlog", linthresh=1.0)
    losses.set(xscale="log", ylabel="loss of a sample", title=f"Loss, m = {m}", ylim=(0, None))
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= findings["test_loss"][0].max()]
    losses.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    losses.legend(frameon=False, loc="upper left", fontsize=8)
    for at, size in enumerate(samples):
        values = findings["sample_dimensionality"][at]
        values = values[np.isfinite(values) & (values > 0.01)]
        features = findings["feature_dimensionality"][at]
        features = features[features > 0.01]
        stored.scatter(np.full(len(values), size * 0.95), values, s=6, color=ORANGE, alpha=0.5, linewidths=0)
        stored.scatter(
            np.full(len(features), size * 1.05), features, s=6, color=BLUE, alpha=0.5, linewidths=0
        )
    line = np.geomspace(max(samples.min(), m), samples.max(), 50)
    stored.plot(line, m / line, "--", color=GREY, linewidth=1)
    for colour, label in ((ORANGE, "samples"), (BLUE, "features")):
        stored.scatter([], [], s=18, color=colour, label=label)
    stored.plot([], [], "--", color=GREY, linewidth=1, label="m/T")
    stored.set(
        xscale="log",
        xlabel="samples T",
        ylabel="dimensionality",
        ylim=(0, 0.8),
        title=f"What is stored, m = {m}",
    )
    stored.legend(frameon=False, loc="upper right", fontsize=8)
    _map(sizes, samples, findings["hidden"], findings["test_loss"], "hidden dimensions m", "Test loss")
    later = findings["step"] > 0
    steps, changes = findings["step"][later], findings["test_loss_at"].T[later]
    _map(epochs, samples, steps, changes, "epochs", f"Test loss while training, m = {m}")
    epochs.set_xlabel("samples T")
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(5, len(samples))).round().astype(int))
    for at, panel in zip(chosen, below.subplots(1, len(chosen), squeeze=False)[0], strict=True):
        codes, weight = findings["codes"][at], findings["weight"][at]
        panel.scatter(weight[0], weight[-1], s=8, color=BLUE, linewidths=0)
        panel.scatter(
            codes[0], codes[-1], s=30 if samples[at] < 20 else 8, color=ORANGE, alpha=0.7, linewidths=0
        )
        size = 1.1 * max(np.nanmax(np.abs(codes)), np.abs(weight).max())
        panel.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"T = {samples[at]}", fontsize=9)


def _map(ax: Axes, x: NDArray[Any], y: NDArray[Any], values: NDArray[Any], label: str, title: str) -> None:
    """Values `[y, x]` over two logarithmic axes, in colours of a logarithmic scale."""
    from matplotlib.colors import LogNorm

    shown = ax.pcolormesh(edges(x), edges(y), values, norm=LogNorm(), cmap="cividis", rasterized=True)
    ax.set(xscale="log", yscale="log", ylabel=label, title=title)
    if len(y) < 9 and y.max() < 100:
        ax.set_yticks(y, [f"{value:g}" for value in y])
        ax.minorticks_off()
    bar = ax.figure.colorbar(shown, ax=ax)
    bar.ax.minorticks_off()
    low, high = float(values.min()), float(values.max())
    ticks = np.geomspace(low, high, 4)
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.2g}" for tick in ticks])


EXPERIMENT = Experiment(
    name="double-descent",
    title="Superposition, memorisation and double descent",
    source="Henighan et al. 2023, Superposition, Memorization, and Double Descent",
    summary=(
        "Tied autoencoders on T samples that they see again at every step. With few, the samples "
        "themselves are laid out in the hidden space; with many, some features are, as if there were no "
        "end of data. Between the two neither has much of a place, and the test loss has a bump."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=200, density=0.02, hidden=(2,), samples=(3, 5, 10, 30, 100, 200, 1000), datasets=2,
        seeds=3,
        steps=2000, lr=2e-2, snapshots=8, test_samples=2000,
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(9.5, 7.6),
)  # fmt: skip
