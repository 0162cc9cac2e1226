"""The local learning coefficient of every model of a stack, by Langevin dynamics beside its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import (
    Values,
    broadcast_importance,
    broadcast_l1,
    broadcast_per_model,
    broadcast_seed,
)
from toykern.arguments.errors import check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures
from toykern.data.philox import MAX_STEP
from toykern.fitting.fitting import fit
from toykern.llc.chains import bytes_of_models, chain_seeds, repeated_dataset, repeated_rows
from toykern.llc.result import LearningCoefficient, row_means, split_rhat
from toykern.network.losses import Objective
from toykern.nn.kinds import AnyModel
from toykern.training.evaluation import evaluate
from toykern.training.kernels import check_data, check_model
from toykern.training.optim import SGLD
from toykern.training.optim.rates import check_rate
from toykern.training.progress import BarMaker

_AT_ONCE = 256  # models whose traces are widened to float64 together


def local_learning_coefficient(
    model: AnyModel,
    data: Dataset,
    *,
    chains: int = 10,
    draws: int = 1000,
    burn_in: int = 1000,
    steps_between_draws: int = 1,
    lr: Any = 1e-3,
    nbeta: Any = None,
    localization: Any = 1.0,
    weight_decay: Any = 0.0,
    batch_size: int | None = None,
    seed: Values | None = None,
    importance: Values = 1.0,
    target: str = "identity",
    loss_reduction: str = "mean",
    loss: str = Objective.loss,
    l1: Values = 0.0,
    progress: bool | None | BarMaker = None,
) -> LearningCoefficient:
    """λ̂ of every model at its weights w*, by localised stochastic gradient Langevin dynamics (Lau et al.
    2023).

    λ̂(w*) = nβ (E[L_n(w)] − L_n(w*)): how much larger than at w* the loss L_n of the n samples is under the
    tempered posterior exp(−nβ L_n(w) − γ/2 |w − w*|²) around it. All models × `chains` are trained as one
    stack by `tk.SGLD`, from w*: w ← w − ε/2 (nβ ∇L + γ (w − w*)) + √ε η. The given model stays as it is.

    L_n should be the loss that w* was trained for, by `fit`'s own arguments, and w* a minimum of it:
    elsewhere λ̂ may be negative. For the theorems it is a negative log-likelihood: a sum of squared errors
    (`loss_reduction="sum"`) is that of normal noise of variance σ² = 1/2, up to a constant, and their mean
    over outputs that of σ² = n_outputs/2. Scaling L_n by c is the same as scaling nβ by c, which λ̂ does not
    depend on as nβ grows; at finite nβ it does, for there are corrections. docs/learning_coefficient.md says
    how to choose.

    Args:
        model: a `TiedAutoencoder`, an `Autoencoder` or an `MLP`, float32, at w*. Parameters without
            `requires_grad` stay at w*, and λ̂ is of the others alone.
        data: a `Dataset`: its samples are the n of L_n. Of a distribution, `data.dataset(samples=…)`.
        chains: of each model, with noise and minibatches of their own.
        draws: of each chain, after the burn-in.
        burn_in: steps before the first draw, a multiple of `steps_between_draws`. About 1 / (ε γ) steps pass
            until the directions in which the loss is flat have spread.
        steps_between_draws: steps to a draw, which is the mean of their losses: the same expectation as the
            loss of one of them, and less noise.
        lr: ε ≥ 0, a number or `[models]`. The variance of a direction of curvature h is too large by the
            factor 1 / (1 − ε (nβ h + γ)/4), and beyond ε (nβ h + γ) = 4 chains diverge.
        nbeta: nβ ≥ 0, a number or `[models]`; None is n / log n, of each model's own n (Watanabe 2013).
        localization: γ ≥ 0, a number or `[models]`.
        weight_decay: ≥ 0, a number or `[models]`: the precision of a normal prior about 0.
        batch_size: samples to a step; None is all of them. A number is for minibatches, whose losses are the
            traces then.
        seed: int, or `[models]`; None means 0 … models−1. What a model's chains are depends on its own seed,
            whatever stands beside it (docs/data_stream.md §12).
        importance, target, loss_reduction, loss, l1, progress: as in `toykern.fit`.

    Returns:
        A `LearningCoefficient`. A UserWarning names the models whose chains diverged or disagree (split-R̂
        above 1.1) and those with a negative estimate.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
        MemoryError: models × chains do not fit into what is free, before anything is computed.
        KeyboardInterrupt: Ctrl-C; half of the draws are no estimate.

    Bits are as of `fit`: those of a model do not depend on the others, the threads or `chains` (by chain).
    float32 losses have an error of about 10⁻⁷, which nβ multiplies.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=2, n_hidden=2, output_activation="none", bias=False)
        >>> model.weight.data[0] = torch.eye(2)
        >>> data = tk.Dataset(2**0.5 * torch.eye(2))  # L = |WᵀW − 1|²
        >>> found = local_learning_coefficient(model, data, lr=1e-4, nbeta=100.0, loss_reduction="sum")
        >>> found.llc.shape, found.traces.shape
        (torch.Size([1]), torch.Size([1, 10, 2000]))
        >>> abs(found.llc.item() - 1.5) < 0.15  # all directions but the rotation: 3/2
        True
    """
    model = check_model(model, "fit")
    if model.network.sparse:
        raise TypeError(
            "model must have all its connections (a TiedAutoencoder, an Autoencoder or an MLP), not be a "
            f"{type(model).__name__}: noise has no place where no connection is"
        )
    if isinstance(data, SparseFeatures):
        raise TypeError(
            "data must be a Dataset, the n samples of the loss, not a SparseFeatures, which has no end: take "
            "data.dataset(samples=…)"
        )
    check_data(data, model)
    models = model.n_models
    chains = check_size("chains", chains)
    every = check_size("steps_between_draws", steps_between_draws)
    draws = check_size("draws", draws)
    burn_in = check_int("burn_in", burn_in, minimum=0)
    steps = burn_in + draws * every
    if burn_in % every:
        raise ValueError(
            f"burn_in must be a multiple of steps_between_draws={every}, not {describe(burn_in)}"
        )
    if steps > MAX_STEP:
        raise ValueError(
            f"burn_in + draws · steps_between_draws must be at most {MAX_STEP:,} steps, not {steps:,}"
        )
    samples = _samples(data, models)
    if nbeta is None:
        if bool((samples < 2).any()):
            raise ValueError("nbeta must be given where a model has one sample: n / log n has no value there")
        nbeta = samples.double() / samples.double().log()
    given = {"lr": lr, "nbeta": nbeta, "localization": localization, "weight_decay": weight_decay}
    checked = {name: check_rate(name, value) for name, value in given.items()}
    rates = {name: broadcast_per_model(name, value, models) for name, value in checked.items()}
    seeds = broadcast_seed("seed", seed, models)
    weights = broadcast_importance(importance, models, model.n_outputs, width=model.output_width)
    prices = broadcast_l1(l1, models)
    _check_memory(model, data, chains, draws, burn_in, every)

    objective: dict[str, Any] = {"target": target, "loss_reduction": loss_reduction, "loss": loss}
    initial = evaluate(model, data, importance=weights, l1=prices, **objective).cpu()
    of_chains: dict[str, Any] = {
        name: repeated_rows(rates[name], chains) if isinstance(value, torch.Tensor) else value
        for name, value in checked.items()
    }
    run = fit(
        model[torch.arange(models, dtype=torch.int64, device="cpu").repeat_interleave(chains)],
        repeated_dataset(data, chains),
        steps,
        batch_size,
        SGLD(**of_chains),
        importance=repeated_rows(weights, chains),
        seed=chain_seeds(seeds, chains),
        l1=prices if isinstance(prices, float) else prices.repeat_interleave(chains),
        record_every=every,
        progress=progress,
        **objective,
    )
    if not run.complete:
        raise KeyboardInterrupt("local_learning_coefficient: no estimate of a part of the draws")

    traces = run.loss.reshape(models, chains, -1)
    mean, rhat = _of_draws(traces.numpy()[:, :, burn_in // every :])
    by_chain = rates["nbeta"].numpy()[:, None] * (mean - initial.numpy()[:, None])
    llc = row_means(by_chain)
    deviations = row_means(np.square(by_chain - llc[:, None])) * chains
    spread = np.sqrt(deviations / (chains - 1)) if chains > 1 else np.full(models, np.nan)
    found = LearningCoefficient(
        llc=torch.from_numpy(llc),
        by_chain=torch.from_numpy(by_chain),
        spread=torch.from_numpy(spread),
        rhat=torch.from_numpy(rhat),
        traces=traces,
        initial_loss=initial,
        n_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad) // models,
        samples=samples,
        nbeta=rates["nbeta"],
        lr=rates["lr"],
        localization=rates["localization"],
        draws=draws,
        burn_in=burn_in,
        steps_between_draws=every,
    )
    found.warn()
    return found


def _samples(data: Dataset, models: int) -> torch.Tensor:
    """n of each model, int64 `[models]`."""
    if data.samples is None:
        return torch.full((models,), data.rows, dtype=torch.int64, device="cpu")
    return data.samples.expand(models).clone()


def _of_draws(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean of each chain, float64 `[models, chains]`, split-R̂, float64 `[models]`) of what was drawn."""
    blocks = [draws[first : first + _AT_ONCE] for first in range(0, len(draws), _AT_ONCE)]
    means, rhats = [row_means(block) for block in blocks], [split_rhat(block) for block in blocks]
    return np.concatenate(means), np.concatenate(rhats)


def _check_memory(model: AnyModel, data: Dataset, chains: int, draws: int, burn_in: int, every: int) -> None:
    """MemoryError if models × chains, with what each of them keeps, are more than is free."""
    stack = sum(p.nbytes for p in model.parameters())
    records = 4 * model.n_models * (burn_in // every + draws)
    # weights, where they began (in the run and in the optimiser's state); seeds, rates, marks
    needed = chains * (3 * stack + records + bytes_of_models(data) + 128 * model.n_models)
    check_free_memory(
        f"chains={chains:,} of n_models={model.n_models:,} with draws={draws:,} and burn_in={burn_in:,}",
        needed,
        "take fewer of them, or a larger steps_between_draws",
    )
