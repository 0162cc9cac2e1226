"""Networks that decode features from a fixed random projection of them: what three experiments share.

Jermyn, Schiefer and Hubinger 2022, *Engineering Monosemanticity in Toy Models* (arXiv 2211.09169): n features
→ fixed P (d × n, unit columns) → W1 (k × d) and a bias → f → W2, without a bias and output activation.

Where this is not the published set-up: initial weights are Xavier-normal here and those of `torch.nn.Linear`
there, whose bias begins at that of the setting ± 1/√d, here at that alone; the input of "abs" is one draw
from U[−1, 1] with probability p for each feature, there the difference of two from U[0, 1] with p/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from toykern import metrics
from toykern.arguments.errors import check_choice
from toykern.arguments.grids import Grid
from toykern.data.features import SparseFeatures
from toykern.experiments.experiment import Stage
from toykern.experiments.seeds import own_seeds
from toykern.nn import MLP
from toykern.nn.embedding import drawn_embedding
from toykern.training.evaluation import evaluate
from toykern.training.optim import LAMB, BiasDecay
from toykern.training.schedule import PeriodicCosine

if TYPE_CHECKING:
    from toykern.results.run import Run

TASKS = ("decode", "abs", "re-project")
FREQUENCIES = ("uniform", "power-law")
MONOSEMANTIC = 0.999
"""A neuron is monosemantic whose largest activation by a single feature is more of their sum than this."""

_OTHER_SEED = 1 << 31  # added to a model's seed, it gives none that another model has


@dataclass(frozen=True, kw_only=True)
class FeatureDecoding:
    """What may be set in all of them. The defaults are the published task with a shorter training: 2¹³ steps
    of 1,024 samples instead of 2¹⁷ steps of 2^(23 − ⌈log₂ k⌉), which are 8,192 at k = 1024.

    Attributes:
        n_features, n_embedding: n and d.
        task: "decode", the features themselves; "abs", their absolute values, which are then of both signs;
            "re-project", another projection of them.
        frequencies: how the probabilities are spread, "uniform" or "power-law": p_i ∝ i^−1.1, of the mean
            `probability` before those above 1 are cut to 1.
        probability: of a feature to be active, the mean of all.
        steps, batch_size: of training.
        period: of the learning rate's cosine, steps.
        bias_decay: of a hidden bias that begins below 0: in the first half of training each step multiplies
            it by 1 − bias_decay · lr, lr being the learning rate that the cosine falls from. Published: 0.03,
            with 2¹⁷ steps; a shorter training needs more of it, or its neurons stay dead.
        noise: standard deviation of the input's noise.
        l1: weight of the sum of absolute codes in the loss.
        evaluated: samples of the loss at the end.
        seed: of everything.
    """

    n_features: int = 512
    n_embedding: int = 64
    task: str = "decode"
    frequencies: str = "uniform"
    probability: float = 1 / 64
    steps: int = 8192
    batch_size: int = 1024
    period: int = 1024
    bias_decay: float = 0.08
    noise: float = 0.0
    l1: float = 0.0
    evaluated: int = 16_384
    seed: int = 0


def small(**settings: Any) -> dict[str, Any]:
    """Settings of a task for seconds, `settings` among them: half as many features again as dimensions, whose
    directions can be as far from parallel (a coherence of 0.14, Welch 1974) as 512 in 64 dimensions (0.12),
    and four features active at a time."""
    sizes = {"n_features": 32, "n_embedding": 20, "probability": 1 / 8, "steps": 1536, "batch_size": 256}
    return sizes | {"bias_decay": 0.4} | settings


def probabilities(setup: FeatureDecoding) -> torch.Tensor:
    """Of each feature, float64 `[n_features]`.

    >>> probabilities(FeatureDecoding(n_features=3, probability=0.25)).tolist()
    [0.25, 0.25, 0.25]
    """
    n = setup.n_features
    if check_choice("frequencies", setup.frequencies, FREQUENCIES) == "uniform":
        return torch.full((n,), setup.probability, dtype=torch.float64, device="cpu")
    share = torch.arange(1, n + 1, dtype=torch.float64, device="cpu") ** -1.1
    return (share * (n * setup.probability / share.sum())).clamp(max=1.0)


def features(setup: FeatureDecoding, seeds: torch.Tensor) -> SparseFeatures:
    """The data of models with these seeds."""
    task = check_choice("task", setup.task, TASKS)
    projection = None
    if task == "re-project":
        projection = drawn_embedding(seeds + _OTHER_SEED, setup.n_embedding, setup.n_features)
    magnitude = "symmetric" if task == "abs" else "uniform"
    return SparseFeatures(
        setup.n_features, probabilities(setup), magnitude, noise=setup.noise, projection=projection
    )


def nothing(setup: FeatureDecoding) -> float:
    """The loss of a network that gives 0 for everything, if its targets have the features' energy: Σ p/3."""
    return float(probabilities(setup).sum()) / 3


def decoding_stage(
    setup: FeatureDecoding,
    name: str,
    points: Grid,
    n_hidden: int,
    initial_bias: float = 0.0,
    activation: str = "relu",
) -> Stage:
    """Networks of a grid with the axes "lr" and "seed"; those of one seed begin alike and see the same data.

    Measures `fresh_loss`, on samples of no training, as a share of `nothing`, and `purity` `[…, n_hidden]`,
    the monosemanticity of each neuron (0: it is dead).
    """
    wanted = {"target": "abs" if setup.task == "abs" else "identity", "loss_reduction": "sum"}

    def plan(points: Grid, index: torch.Tensor) -> dict[str, Any]:
        seeds = own_seeds(setup.seed, points.seed)
        # `BiasDecay` goes by the rate of the step, which is half of what the cosine falls from in the mean.
        decay = BiasDecay(2 * setup.bias_decay, until=setup.steps // 2) if initial_bias < 0 else None
        return {
            "model": MLP(setup.n_features, n_hidden, _outputs(setup), points.n_models, activation, bias=False,
                         embedding=setup.n_embedding, hidden_bias_init=initial_bias, seed=seeds,
                         dtype=torch.float32, device="cpu"),
            "data": features(setup, seeds),
            "seed": seeds,
            "optimizer": LAMB(lr=points.lr, bias_decay=decay),
        }  # fmt: skip

    def measure(run: Run, points: Grid, index: torch.Tensor) -> dict[str, torch.Tensor]:
        data = features(setup, own_seeds(setup.seed, points.seed))
        loss = evaluate(run.model, data, setup.evaluated, seed=setup.seed, l1=0.0, **wanted)
        purity = metrics.monosemanticity(answers(setup, run.model))
        return {"fresh_loss": loss / nothing(setup), "purity": purity.detach()}

    fit = {
        "steps": setup.steps,
        "batch_size": setup.batch_size,
        "schedule": PeriodicCosine(setup.period),
        "l1": setup.l1,
    }
    return Stage(name, points, plan, fit | wanted, measure)


def answers(setup: FeatureDecoding, model: Any) -> torch.Tensor:
    """The codes of single features, `[models, n_features, n_hidden]`; of both signs, one after the other,
    `[models, 2 · n_features, n_hidden]`, where features have both."""
    positive = metrics.single_feature_activations(model)
    if setup.task != "abs":
        return positive
    return torch.cat([positive, metrics.single_feature_activations(model, magnitude=-1.0)], dim=1)


def _outputs(setup: FeatureDecoding) -> int:
    return setup.n_embedding if setup.task == "re-project" else setup.n_features
