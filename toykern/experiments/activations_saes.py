"""Sparse autoencoders on the activations of a trained and of a random transformer: what tells them apart.

Cunningham et al. 2023, *Sparse Autoencoders Find Highly Interpretable Features in Language Models*, learn
dictionaries of a residual stream over a sweep of L1 weights. Bricken et al. 2023, *Towards Monosemanticity*,
look at a model with random weights: its features are mostly single tokens. Heap et al. 2025, *Sparse
Autoencoders Can Interpret Randomly Initialized Transformers* (later: *Automated Interpretability Metrics Do
Not Distinguish Trained and Random Transformers*), find the usual measures alike for both, and ask for
measures of how abstract features are. Paulo and Belrose 2025, *Sparse Autoencoders Trained on the Same Data
Learn Different Features*, compare seeds.

All of these are about language models. Here it is a transformer of one layer that adds the classes of two
tokens (`small_transformer.py`), trained on the spot: what a feature is about can be measured, as the share of
its variance that the token, or the answer, explains. Any tensor of activations would do in place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.arguments.errors import check_int
from toykern.arguments.grids import Grid, grid
from toykern.data.dataset import Dataset
from toykern.experiments.dictionary_learning import at_l0, dictionary_of, random_directions, score_codes
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.seeds import own_seeds
from toykern.experiments.small_transformer import Task, Weights, accuracy, random_weights, residual, train
from toykern.metrics.dictionaries import dead_units, mean_max_cosine_similarity
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREY, VERMILLION
from toykern.training.optim import Adam, UnitNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

KINDS = ("trained", "random")
SEEDS = 2
WIDE = 64
"""Dimensions from which on dictionaries are compared with published ones."""
FEW = (
    "this task has far fewer features than language: a transformer that has learnt it keeps a few "
    "directions of "
    "its activations alone, which fewer units explain"
)


@dataclass(frozen=True)
class Settings:
    """What may be set: the transformer and its training, the sequences, and the autoencoders."""

    tokens: int = 64
    classes: int = 8
    length: int = 6
    d: int = 64
    transformer_steps: int = 1000
    transformer_batch: int = 256
    transformer_lr: float = 3e-3
    transformer_decay: float = 0.3
    sequences: int = 8192
    units_per_dimension: int = 4
    l1_exponents: tuple[int, ...] = tuple(range(-10, 1))
    compare_l0: float = 4.0
    steps: int = 2000
    batch_size: int = 128
    lr: float = 2e-3
    samples: int = 4096
    seed: int = 0


@dataclass(frozen=True)
class Activations:
    """Activations of one transformer, centred and of mean squared length 1, and what they are about.

    Attributes:
        training: `[sequences · (length − 1), d]`.
        fresh: of sequences that no autoencoder is trained on, `[samples, d]`.
        labels: for each fresh one, int64 `[samples]`: the "token" at its position, and the "answer".
        right: the share of answers that the transformer gets right.
    """

    training: torch.Tensor
    fresh: torch.Tensor
    labels: dict[str, torch.Tensor]
    right: float


def task_of(settings: Settings) -> Task:
    """What the transformer is to do."""
    return Task(settings.tokens, settings.classes, settings.length)


@lru_cache(maxsize=4)
def activations(settings: Settings) -> dict[str, Activations]:
    """Those of the trained transformer and of the one that it began as, made once.

    The last bits of the training may depend on the number of threads, as those of any training by PyTorch.
    """
    task = task_of(settings)
    start = random_weights(task, settings.d, settings.seed)
    trained = train(
        task, start, settings.transformer_steps, settings.transformer_batch, settings.transformer_lr,
        settings.transformer_decay, settings.seed,
    )  # fmt: skip
    return {"trained": _activations(settings, trained), "random": _activations(settings, start)}


@torch.no_grad()
def _activations(settings: Settings, weights: Weights) -> Activations:
    task, per_sequence = task_of(settings), settings.length - 1
    x, _ = task.draw(settings.sequences, torch.Generator("cpu").manual_seed(settings.seed + 1))
    seen = residual(weights, x)[:, 1:].flatten(0, 1)
    mean = seen.mean(0)
    scale = (seen - mean).square().sum(1).mean().sqrt()
    count = -(-settings.samples // per_sequence)
    x, answers = task.draw(count, torch.Generator("cpu").manual_seed(settings.seed + 2))
    fresh = residual(weights, x)[:, 1:].flatten(0, 1)[: settings.samples]
    labels = {"token": x[:, 1:].flatten(), "answer": answers.flatten()}
    return Activations(
        ((seen - mean) / scale).contiguous(),
        ((fresh - mean) / scale).contiguous(),
        {name: label[: settings.samples] for name, label in labels.items()},
        accuracy(task, weights, 2048, settings.seed + 3),
    )


def explained_by(codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """η², the share of each unit's variance between groups of samples of the same label, `[models,
    n_hidden]`.

    codes: `[models, samples, n_hidden]`; labels: integers from 0, `[samples]`. NaN for a unit that is
    constant.

    >>> explained_by(torch.tensor([[[0.0], [0.0], [2.0], [4.0]]]), torch.tensor([0, 0, 1, 1])).item()
    0.8181818181818182
    """
    wide = codes.double() - codes.double().mean(1, keepdim=True)
    groups = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=groups).double()
    sums = torch.zeros(wide.shape[0], groups, wide.shape[2], dtype=torch.float64, device=wide.device)
    sums.index_add_(1, labels, wide)
    between = (sums.square() / counts.clamp(min=1)[:, None]).sum(1)
    whole = wide.square().sum(1)
    return torch.where(whole > 0, between / torch.where(whole > 0, whole, 1.0), torch.nan)


def stages(settings: Settings) -> list[Stage]:
    """All L1 weights and two seeds, for each of the two transformers."""
    check_int("length", settings.length, 2)  # the first place of a sequence has no answer
    points = grid(l1=[10.0 ** (e / 4) for e in settings.l1_exponents], seed=range(SEEDS))
    return [_stage(settings, kind, points) for kind in KINDS]


def _stage(settings: Settings, kind: str, points: Grid) -> Stage:
    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        units = settings.units_per_dimension * settings.d
        model = MLP(
            settings.d, units, n_models=points.n_models, seed=seeds, dtype=torch.float32, device="cpu"
        )
        return {"model": model, "data": Dataset(activations(settings)[kind].training), "seed": seeds,
                "l1": points.l1}  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        assert isinstance(run.model, MLP)
        found = activations(settings)[kind]
        with torch.no_grad():
            codes = run.model.encode(found.fresh)
        scores = score_codes(run.model, found.fresh, found.fresh)
        alive = ~dead_units(codes)
        for name, labels in found.labels.items():
            share = explained_by(codes, labels)
            scores[f"by_{name}"] = torch.stack([share[i, alive[i]].mean() for i in range(len(share))])
        return {**scores, "alive": alive}

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": Adam(lr=settings.lr, unit_norm=UnitNorm("decoder")),
        "schedule": "cosine",
        "loss_reduction": "sum",
    }
    return Stage(kind, points, plan, fit, measure)


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """The MMCS of two dictionaries, the mean of both ways; NaN where one of them is empty."""
    if 0 in (one.shape[1], other.shape[1]):
        return float("nan")
    ways = [mean_max_cosine_similarity(one, other), mean_max_cosine_similarity(other, one)]
    return float(torch.stack(ways).mean())


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """Scores, how far two seeds and the two transformers agree, and what features are about."""
    scores = ("l0", "explained", "dead", "by_token", "by_answer")
    arrays = {
        score: labelled("kind l1 seed", np.stack([trained[kind].read(score) for kind in KINDS]))
        for score in scores
    }
    living = [_alive_directions(trained[kind]) for kind in KINDS]
    count = len(settings.l1_exponents)
    seeds = [[agreement(*living[kind][j]) for j in range(count)] for kind in range(2)]
    across = [agreement(living[0][j][0], living[1][j][0]) for j in range(count)]
    units = [living[0][j][1].shape[1] for j in range(count)]
    chance = [
        agreement(living[0][j][0], random_directions(settings.d, max(1, units[j]), settings.seed).double())
        for j in range(count)
    ]
    arrays["between_seeds"] = labelled("kind l1", seeds)
    arrays["between_kinds"] = labelled("l1", across)
    arrays["by_chance"] = labelled("l1", chance)
    arrays["right"] = labelled("kind", [activations(settings)[kind].right for kind in KINDS])
    coords = {"l1": 10.0 ** (np.array(settings.l1_exponents) / 4), "kind": np.array(KINDS)}
    return Findings(arrays, coords, _outcomes(settings, Findings(arrays, coords)))


def _alive_directions(trained: Trained) -> list[list[torch.Tensor]]:
    """By L1 weight and seed: the directions of units that fresh samples activate, `[d, units]`, double."""
    dictionary = dictionary_of(trained.model()).double()
    alive = torch.from_numpy(trained.read("alive"))
    by_point = dictionary.reshape(*alive.shape[:2], *dictionary.shape[1:])
    return [[by_point[j, s][:, alive[j, s]] for s in range(SEEDS)] for j in range(len(alive))]


def at_same_l0(settings: Settings, findings: Findings, values: NDArray[Any]) -> list[float]:
    """`values` `[kind, l1]` of the two kinds at the L0 of the settings."""
    l0s = findings["l0"].mean(axis=-1)
    return [at_l0(l0s[kind], values[kind], settings.compare_l0) for kind in range(len(KINDS))]


def _outcomes(settings: Settings, findings: Findings) -> tuple[Outcome, ...]:
    explained = at_same_l0(settings, findings, findings["explained"].mean(axis=-1))
    answer = at_same_l0(settings, findings, findings["by_answer"].mean(axis=-1))
    token = at_same_l0(settings, findings, findings["by_token"].mean(axis=-1))
    seeds = at_same_l0(settings, findings, findings["between_seeds"])
    across, chance = (
        at_same_l0(settings, findings, np.stack([findings[name]] * 2))[0]
        for name in ("between_kinds", "by_chance")
    )
    known = bool(np.isfinite([*explained, *answer, *token, *seeds, across, chance]).all())
    unknown = "" if known else f"no L1 weight gives an L0 of {settings.compare_l0:g} on both"
    alike = bool(abs(explained[0] - explained[1]) < 0.1)
    wide = settings.d >= WIDE
    narrow = "" if wide else f"{settings.d} dimensions are too few to compare with those of language models"
    right = findings["right"]
    where = f"at L0 = {settings.compare_l0:g}"
    return (
        Outcome(
            "The transformers",
            "one has learnt its task, one has not (what there is to compare)",
            f"{100 * right[0]:.0f}% and {100 * right[1]:.0f}% of the answers right, "
            f"{100 / settings.classes:.0f}% by chance",
            bool(right[0] > 0.95 and right[1] < 2 / settings.classes),
        ),
        Outcome(
            "What features of random weights are about",
            "mostly single tokens (Bricken et al. 2023, appendix on randomized transformers)",
            f"the token explains {100 * token[1]:.0f}% of an active unit's variance {where}, the answer "
            f"{100 * answer[1]:.0f}%",
            bool(token[1] > 2 * token[0] and token[1] > 10 * answer[1]) if known else None,
            unknown,
        ),
        Outcome(
            "How abstract features are",
            "what tells trained from random, where the usual scores do not (Heap et al. 2025; Bricken et "
            "al. 2023)",
            f"the answer explains {100 * answer[0]:.0f}% of an active unit's variance with trained weights "
            f"and "
            f"{100 * answer[1]:.0f}% with random ones {where}",
            bool(answer[0] > answer[1] + 0.1) if known else None,
            unknown,
        ),
        Outcome(
            "Dictionaries of the two transformers",
            "have little in common, unlike those of two seeds on the same activations (below 0.3 against "
            "above "
            "0.95, told from memory of language models in a discussion of 2024)",
            f"MMCS {across:.2f} {where}; between seeds {seeds[0]:.2f} (trained) and {seeds[1]:.2f} "
            f"(random); with "
            f"random directions {chance:.2f}",
            bool(across - chance < (min(seeds) - chance) / 2) if known and wide else None,
            unknown
            or narrow
            or "judged by whether more than half of the agreement above that of random directions is lost",
        ),
        Outcome(
            "Explained variance",
            "broadly alike for trained and random weights (Heap et al. 2025)",
            f"{100 * explained[0]:.0f}% (trained) and {100 * explained[1]:.0f}% (random) {where}",
            alike if known and wide else None,
            unknown or narrow or ("" if alike else FEW),
        ),
        Outcome(
            "Agreement between seeds",
            "partial in language models, and more with an L1 weight than with top-k (Paulo and Belrose "
            "2025); not "
            "compared with random weights there",
            f"{seeds[0]:.2f} (trained) and {seeds[1]:.2f} (random) {where}",
            None,
            "nothing was published to compare with",
        ),
    )


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """The trade-off of both, the agreement of dictionaries, and what features are about, by L0."""
    trade, agree, about = figure.subplots(1, 3)
    l0s = findings["l0"].mean(axis=-1)
    for kind, (name, colour) in enumerate(zip(KINDS, (BLUE, VERMILLION), strict=True)):
        shown = l0s[kind] > 0.05
        plain = {"color": colour, "lw": 1.2, "ms": 4}
        at = l0s[kind][shown]
        trade.plot(at, findings["explained"][kind].mean(-1)[shown], marker="o", label=name, **plain)
        agree.plot(
            at, findings["between_seeds"][kind][shown], marker="o", label=f"two seeds, {name}", **plain
        )
        answer, token = (findings[f"by_{what}"][kind].mean(-1)[shown] for what in ("answer", "token"))
        about.plot(at, answer, marker="o", label=f"answer, {name}", **plain)
        about.plot(at, token, marker="s", mfc="white", ls="--", label=f"token, {name}", **plain)
    shown = l0s[0] > 0.05
    agree.plot(l0s[0][shown], findings["between_kinds"][shown], color=GREY, marker="^", ms=4, lw=1.2,
               label="trained and random")  # fmt: skip
    agree.plot(
        l0s[0][shown], findings["by_chance"][shown], color=GREY, ls=":", lw=1.2, label="random directions"
    )
    trade.set(ylabel="explained variance", title="Trade-off")
    agree.set(ylabel="MMCS of two dictionaries", title="Agreement")
    about.set(ylabel="share of a unit's variance explained", title="What units are about")
    for panel in (trade, agree, about):
        panel.axvline(settings.compare_l0, color=GREY, lw=0.6, zorder=0)
        panel.set(xscale="log", ylim=(0, 1.03), xlabel="active units in a sample (L0)")
        panel.legend(fontsize=7, loc="best")
    trade.legend(fontsize=7, loc="lower right")
    agree.set_ylim(0, 1.35)  # leaves room for the names


EXPERIMENT = Experiment(
    name="activations-saes",
    title="Sparse autoencoders on a trained and on a random transformer",
    source="Cunningham et al. 2023; Bricken et al. 2023; Heap et al. 2025; Paulo and Belrose 2025",
    summary=(
        "A transformer of one layer learns to add the classes of two tokens. Sparse autoencoders are "
        "trained on "
        "its residual stream, and on that of the same transformer with the weights it began with. Both give "
        "sparse codes that reconstruct; those of random weights are about single tokens, those of trained "
        "ones "
        "about what the task asks for."
    ),
    settings=Settings(),
    quick=Settings(
        tokens=20, classes=4, length=4, d=16, transformer_steps=400, transformer_batch=64,
        transformer_lr=1e-2, transformer_decay=0.3, sequences=1024, l1_exponents=tuple(range(-8, 1)),
        compare_l0=6.0, steps=500, batch_size=128, lr=5e-3, samples=2048, ), stages=stages, look=look,
        draw=draw, figsize=(12.0, 4.0), )  # fmt: skip
