"""What an estimate of learning coefficients returns: the estimates, the chains they come from, their
doubts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

RHAT_LIMIT = 1.1
"""The largest split-R̂ of chains that are said to agree."""

_NAMED = 8  # models that a warning lists before it counts the others


@dataclass(frozen=True, eq=False)
class LearningCoefficient:
    """Estimates of the local learning coefficients of a stack's models; all tensors lie on the CPU.

    Attributes:
        llc: λ̂, float64 `[models]`: the mean over chains. NaN where one of them diverged.
        by_chain: that of each chain, nβ (mean loss of its draws − initial_loss), float64 `[models, chains]`.
        spread: standard deviation between chains, float64 `[models]`; NaN for a single chain.
        rhat: split-R̂ of the loss, float64 `[models]`: 1 where halves of chains cannot be told apart. NaN
            where a chain diverged or has fewer than four draws.
        traces: float32 `[models, chains, records]`, the burn-in's records and then the draws': the mean loss
            of `steps_between_draws` steps each.
        initial_loss: L_n(w*) of all samples, float64 `[models]`.
        n_parameters: how many numbers of a model were sampled, d: λ ≤ d/2.
        samples: n, int64 `[models]`.
        nbeta, lr, localization: what was used, float64 `[models]`.
        draws, burn_in, steps_between_draws: what was used; `burn_in` in steps.
    """

    llc: torch.Tensor
    by_chain: torch.Tensor
    spread: torch.Tensor
    rhat: torch.Tensor
    traces: torch.Tensor
    initial_loss: torch.Tensor
    n_parameters: int
    samples: torch.Tensor
    nbeta: torch.Tensor
    lr: torch.Tensor
    localization: torch.Tensor
    draws: int
    burn_in: int
    steps_between_draws: int

    @property
    def n_models(self) -> int:
        """Number of models."""
        return int(self.traces.shape[0])

    @property
    def chains(self) -> int:
        """Chains of each model."""
        return int(self.traces.shape[1])

    @property
    def standard_error(self) -> torch.Tensor:
        """Of `llc`, from how much chains differ: `spread` / √chains, float64 `[models]`. What all chains
        share (the step size, the localisation, too short a burn-in) is not in it."""
        return self.spread / self.chains**0.5

    @property
    def diverged(self) -> torch.Tensor:
        """Which models have a chain whose loss is not finite, bool `[models]`."""
        return ~torch.isfinite(self.by_chain).all(dim=1)

    @property
    def converged(self) -> torch.Tensor:
        """Which models' chains agree, bool `[models]`: none diverged, and `rhat` is at most 1.1."""
        return ~self.diverged & (self.rhat <= RHAT_LIMIT)

    def doubts(self) -> list[str]:
        """What is wrong with which models, a sentence each; the warning is made of them."""
        found = []
        for which, says in (
            (self.diverged, "chains diverged (a smaller lr helps)"),
            (
                ~self.diverged & ~(self.rhat <= RHAT_LIMIT),
                f"chains disagree, split R-hat is not at most {RHAT_LIMIT} (more draws or burn_in)",
            ),
            (self.llc < 0, "the estimate is negative: these weights are no minimum of this loss"),
        ):
            if bool(which.any()):
                found.append(f"{_models(which)}: {says}")
        return found

    def warn(self, stacklevel: int = 2) -> None:
        """A UserWarning of all `doubts`, if there are some."""
        if doubts := self.doubts():
            text = "local_learning_coefficient: " + "; ".join(doubts)
            warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)

    def __repr__(self) -> str:
        low, high = float(self.llc.min()), float(self.llc.max())
        agree = int(self.converged.sum())
        return (
            f"LearningCoefficient({self.n_models:,} models × {self.chains:,} chains × {self.draws:,} draws, "
            f"llc from {low:.4g} to {high:.4g}, {agree:,} converged)"
        )


def row_means(values: np.ndarray) -> np.ndarray:
    """Means over the last dimension, in float64, the same bits for a row whatever stands beside it."""
    rows = np.ascontiguousarray(values, dtype=np.float64)
    flat = rows.reshape(-1, rows.shape[-1])
    # One call for each row: how NumPy orders a sum depends on the shape of the whole array.
    sums = np.fromiter((np.add.reduce(row) for row in flat), dtype=np.float64, count=len(flat))
    return (sums / rows.shape[-1]).reshape(rows.shape[:-1])


def split_rhat(draws: np.ndarray) -> np.ndarray:
    """Split-R̂ (Gelman et al. 2013, Bayesian Data Analysis, §11.4) of float `[models, chains, draws]`: float64
    `[models]`.

    Each chain counts as two, its halves (of an odd number the last draw is left out). 1 where nothing moves,
    ∞ where chains stand still at different places, NaN for fewer than four draws or values that are not
    finite.

    >>> split_rhat(np.array([[[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]])).round(3)
    array([0.707])
    """
    models, chains, count = draws.shape
    half = count // 2
    if half < 2:
        return np.full(models, np.nan)
    parts = draws[:, :, : 2 * half].astype(np.float64).reshape(models, 2 * chains, half)
    means = row_means(parts)
    within = row_means(row_means(np.square(parts - means[..., None])) * half / (half - 1))
    centre = row_means(means)[:, None]
    between = row_means(np.square(means - centre)) * (2 * chains) / (2 * chains - 1)
    still = within == 0
    ratio = (half - 1) / half + between / np.where(still, 1.0, within)
    return np.where(still, np.where(between == 0, 1.0, np.inf), np.sqrt(ratio))


def _models(which: torch.Tensor) -> str:
    """The numbers of some models, in words."""
    numbers = which.nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, numbers[:_NAMED]))
    more = f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else ""
    return f"model{'s' if len(numbers) > 1 else ''} {shown}{more} of {len(which):,}"
