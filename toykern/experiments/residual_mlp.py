"""A residual network with fewer neurons than functions to compute, that is taken apart by parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toykern.arguments.grids import Grid, grid
from toykern.data.features import SparseFeatures
from toykern.data.groups import Anticorrelated
from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained, labelled
from toykern.experiments.neurons import features_of_neurons
from toykern.experiments.seeds import own_seeds
from toykern.nn import MLP
from toykern.plot.axes import BLUE, GREY, VERMILLION
from toykern.training.evaluation import evaluate
from toykern.training.optim import AdamW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toykern.results.run import Run

EMBEDDINGS = ("random", "identity")


@dataclass(frozen=True)
class Settings:
    """What may be set: the sizes are those of the published code with one layer.

    A feature belongs to a neuron where it drives the neuron at least `share` as much as the strongest does.
    """

    n_features: int = 100
    n_embedding: int = 1000
    n_hidden: int = 50
    density: float = 0.01
    models: int = 3
    steps: int = 1000
    batch_size: int = 2048
    lr: float = 3e-3
    samples: int = 131_072
    share: float = 0.3
    seed: int = 0


def embedding(settings: Settings, kind: str) -> Tensor:
    """P, float32 `[d, n_features]`: random columns of length 1, or the identity (then d = n_features)."""
    if kind == "identity":
        return torch.eye(settings.n_features, dtype=torch.float32, device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(settings.seed)
    drawn = torch.randn(
        settings.n_embedding, settings.n_features, generator=generator, dtype=torch.float32, device="cpu"
    )
    return torch.nn.functional.normalize(drawn, dim=0)


def signed_features(n_features: int, density: float) -> SparseFeatures:
    """Features x in [−1, 1] with the target x + ReLU(x), as two non-negative ones each.

    x = u − v, where at most one of u (features 0 … n−1) and v (n … 2n−1) is active, each with half the
    density and uniform on [0, 1]; then x + ReLU(x) = 2u − v, which is a projection.

    >>> data = signed_features(3, 0.5)
    >>> u, v = data.sample(0, 64).chunk(2, dim=2)
    >>> x = u - v
    >>> bool(torch.equal(data.targets(0, 64), x + x.relu())) and bool((x < 0).any())
    True
    """
    eye = torch.eye(n_features, dtype=torch.float32, device="cpu")
    groups = [Anticorrelated((i, n_features + i)) for i in range(n_features)]
    return SparseFeatures(
        2 * n_features, density / 2, groups=groups, projection=torch.cat([2 * eye, -eye], dim=1)
    )


def network(settings: Settings, kind: str, n_models: int, seeds: Any = None) -> MLP:
    """Models y = Pᵀ (e + D ReLU(E e)), e = P (u − v), without biases; of the neurons' weights alone."""
    p = embedding(settings, kind)
    return MLP(
        2 * settings.n_features,
        settings.n_hidden,
        settings.n_features,
        n_models,
        bias=False,
        hidden_bias=False,
        embedding=torch.cat([p, -p], dim=1),
        unembedding=p.T.contiguous(),
        residual=True,
        seed=seeds,
        dtype=torch.float32,
        device="cpu",
    )


def naive(settings: Settings, kind: str, neurons: int | None = None) -> MLP:
    """The solution with a neuron for each of the first features, and none for the others."""
    model, p = network(settings, kind, 1), embedding(settings, kind)
    with torch.no_grad():
        model.encoder.zero_()
        model.decoder.zero_()
        count = min(settings.n_hidden if neurons is None else neurons, settings.n_features)
        model.encoder[0, :count] = p[:, :count].T
        model.decoder[0, :, :count] = p[:, :count]
    return model


def stages(settings: Settings) -> list[Stage]:
    """Models in a random embedding, as published, and the same without one."""
    data = signed_features(settings.n_features, settings.density)

    def plan(kind: str, points: Grid, index: Tensor) -> dict[str, Any]:
        seeds = own_seeds(settings.seed, index)
        return {"model": network(settings, kind, points.n_models, seeds), "data": data, "seed": seeds}

    def measure(run: Run, points: Grid, index: Tensor) -> dict[str, Tensor]:
        return {"fresh_loss": evaluate(run.model, data, settings.samples, seed=settings.seed)}

    fit = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": AdamW(lr=settings.lr),
        "schedule": "cosine",
    }
    points = grid(seed=range(settings.models))
    return [Stage(kind, points, partial(plan, kind), fit, measure) for kind in EMBEDDINGS]


def contributions(encoder: NDArray[Any], decoder: NDArray[Any], p: NDArray[Any]) -> NDArray[np.float64]:
    """What each neuron adds to feature i's output when feature i is 1 and alone: `[…, features, neurons]`.

    ReLU(E Pᵢ) · Pᵢᵀ D of `encoder` `[…, neurons, d]`, `decoder` `[…, d, neurons]`, `p` `[d, features]`; the
    sum over neurons is 1 where ReLU(x) is computed.
    """
    into = np.moveaxis(np.maximum(encoder @ p, 0.0), -1, -2)
    out: NDArray[np.float64] = into * (p.T @ decoder)
    return out


def spread(share: NDArray[Any]) -> NDArray[np.float64]:
    """Over how many neurons contributions are spread: (Σ|c|)² / Σc² along the last dimension.

    >>> spread(np.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    size = np.abs(share)
    return np.asarray(size.sum(axis=-1) ** 2 / np.maximum((size**2).sum(axis=-1), 1e-30))


def look(settings: Settings, trained: Mapping[str, Trained]) -> Findings:
    """The loss beside that of the naive solution, and how features and neurons share each other."""
    data = signed_features(settings.n_features, settings.density)
    scale = 1 / settings.density
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    loss, response, neurons_of, features_of = {}, {}, {}, {}
    for kind in EMBEDDINGS:
        models = trained[kind]
        fresh = models.read("fresh_loss")
        best = int(np.argmin(fresh))
        p = embedding(settings, kind).numpy().astype(np.float64)
        encoder, decoder = models.read("encoder")[best], models.read("decoder")[best]
        given = contributions(encoder, decoder, p)
        loss[kind] = scale * fresh
        response[kind] = given.sum(axis=1)
        neurons_of[kind] = spread(given)
        features_of[kind] = features_of_neurons(encoder @ p, settings.share).sum(axis=1)
        arrays |= {
            f"loss_{kind}": labelled("model", loss[kind]),
            f"response_{kind}": labelled("feature", response[kind]),
            f"neurons_{kind}": labelled("feature", neurons_of[kind]),
            f"features_{kind}": labelled("neuron", features_of[kind]),
        }
    kept = settings.n_hidden / settings.n_features
    ideal = max(0.0, 1 - kept) / 6

    def without_training(kind: str, neurons: int) -> float:
        made = naive(settings, kind, neurons)
        return scale * float(evaluate(made, data, settings.samples, seed=settings.seed))

    by_hand = {kind: without_training(kind, settings.n_hidden) for kind in EMBEDDINGS}
    nothing = {kind: without_training(kind, 0) for kind in EMBEDDINGS}
    arrays["naive"] = labelled("embedding", np.array([by_hand[kind] for kind in EMBEDDINGS]))
    arrays["without"] = labelled("embedding", np.array([nothing[kind] for kind in EMBEDDINGS]))
    weakest = float(response["random"].min())
    half = response["random"] > 0.3
    few = 0.35 <= kept <= 0.65
    note = "" if few else "the published network has half as many neurons as features"
    outcomes = (
        Outcome(
            "Loss beside the naive solution",
            "trained networks do better than the naive solution, which computes as many ReLUs as there are "
            "neurons, exactly, and none of the others (Braun et al. 2025, section 3.2)",
            f"loss by density {loss['random'].min():.4f}, the naive one's {ideal:.4f} (with its own "
            f"interference in this embedding {by_hand['random']:.4f})",
            bool(loss["random"].max() < ideal) if few else None,
            note,
        ),
        Outcome(
            "Which features are computed",
            "x + ReLU(x) for each of the features, with half as many neurons (section 3.2)",
            f"{100 * half.mean():.0f}% of the features get more than 0.3 of ReLU(1), the weakest "
            f"{weakest:.2f}, on average {response['random'].mean():.2f}",
            bool(half.mean() > 0.9) if few else None,
            note,
        ),
        Outcome(
            "Features and neurons",
            "a feature is computed by several neurons, which take part in that of others (section 3.2)",
            f"a feature is spread over {neurons_of['random'].mean():.1f} neurons on average, a neuron is of "
            f"{features_of['random'].mean():.1f} features",
            bool(neurons_of["random"].mean() > 2 and features_of["random"].mean() > 2) if few else None,
            note,
        ),
        Outcome(
            "The same without an embedding",
            "the advantage vanishes: it comes from the features that the embedding mixes into the residual "
            "path (Bhagat et al. 2025)",
            f"loss by density {loss['identity'].min():.4f}, the naive one's {by_hand['identity']:.4f}",
            bool(loss["identity"].min() > 0.98 * by_hand["identity"]) if few else None,
            note,
        ),
    )
    return Findings(arrays, {"embedding": np.asarray(EMBEDDINGS)}, outcomes)


def draw(settings: Settings, findings: Findings, figure: Figure) -> None:
    """Losses beside the naive ones; how far each feature is computed; features of each neuron."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.4, 1.2))
    ideal = max(0.0, 1 - settings.n_hidden / settings.n_features) / 6
    for at, (kind, colour) in enumerate(zip(EMBEDDINGS, (BLUE, VERMILLION), strict=True)):
        losses = findings[f"loss_{kind}"]
        left.plot(np.full(len(losses), at), losses, "o", color=colour, markersize=7)
        middle.plot(np.sort(findings[f"response_{kind}"])[::-1], color=colour, label=f"{kind} embedding")
        counts = np.bincount(findings[f"features_{kind}"])
        right.step(np.arange(len(counts)), counts, where="mid", color=colour)
    left.axhline(ideal, color=GREY, linestyle="--", linewidth=1)
    left.annotate("naive", (1.45, ideal), color=GREY, fontsize=8, ha="right", xytext=(0, 3),
                  textcoords="offset points")  # fmt: skip
    left.set(xticks=(0, 1), xlim=(-0.5, 1.5), ylabel="loss by density, of a feature", title="trained models")
    left.set_xticklabels(("random\nembedding", "no\nembedding"))
    highest = max(ideal, *(float(findings[f"loss_{kind}"].max()) for kind in EMBEDDINGS))
    left.set_ylim(0, 1.15 * highest)
    exact = np.where(np.arange(settings.n_features) < settings.n_hidden, 1.0, 0.0)
    middle.step(np.arange(settings.n_features), exact, where="mid", color=GREY, linestyle="--", linewidth=1,
                label="naive")  # fmt: skip
    for panel in (middle, right):
        panel.xaxis.get_major_locator().set_params(integer=True)
    middle.set(
        xlabel="feature, in order", ylabel="of ReLU(1) computed", title="how far features are computed"
    )
    middle.set_ylim(-0.05, 1.4)
    middle.legend(fontsize=8, loc="upper right")
    right.set(xlabel="features of a neuron", ylabel="neurons", title="features by neuron")


EXPERIMENT = Experiment(
    name="residual-mlp",
    title="A residual network that computes more functions than it has neurons",
    source=(
        "Braun et al. 2025, Interpretability in Parameter Space (compressed computation); Bhagat et al. "
        "2025, Compressed Computation is (probably) not Computation in Superposition"
    ),
    summary=(
        "y = Pᵀ (e + D ReLU(E e)), e = P x, is trained towards x + ReLU(x) of 100 rare features with 50 "
        "neurons, P fixed and random. It does better than 50 exact ReLUs would, spreading every feature over "
        "several neurons; without the random embedding it does not."
    ),
    settings=Settings(),
    quick=Settings(
        n_features=40, n_embedding=250, n_hidden=20, density=0.025, models=2, steps=700, samples=65_536
    ),
    stages=stages,
    look=look,
    draw=draw,
    figsize=(11.0, 4.2),
)
