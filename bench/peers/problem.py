"""What a contender is given (models of a workload, and a device) and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from bench.workloads import Workload

LEARNING_RATE = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam, with PyTorch's and optax's defaults


@dataclass(frozen=True)
class Problem:
    """Some models of a workload: shapes, initial weights, densities, importance, a seed for the batches.

    Attributes:
        workload: the shape of a model and of a batch; its `n_models` is that of the whole ensemble.
        weight: initial weights, float32 `[models, hidden, features]`. Biases start at 0.
        importance: float32 `[models, features]`.
        probability: float64 `[models or 1, 1]`: of a feature being active.
        seed: of the generator of the batches.
        threads: cores that may be used.
        device: `cpu`, or `cuda`.
    """

    workload: Workload
    weight: np.ndarray
    importance: np.ndarray
    probability: np.ndarray
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    @property
    def n_models(self) -> int:
        return self.weight.shape[0]

    def shards(self, count: int) -> list[Problem]:
        """Cuts the models into `count` shards of one core each, as even as can be."""
        cuts = np.array_split(np.arange(self.n_models), count)
        return [
            replace(
                self, weight=self.weight[cut], importance=self.importance[cut], seed=self.seed + i, threads=1,
                probability=self.probability if len(self.probability) == 1 else self.probability[cut],
            )
            for i, cut in enumerate(cuts)
        ]  # fmt: skip


def problem_of(
    workload: Workload, n_models: int | None = None, *, device: str = "cpu", threads: int = 1, seed: int = 0
) -> Problem:
    """The problem of a workload, or of as many of its models."""
    models = workload.n_models if n_models is None else n_models
    return Problem(
        workload, workload.initial_weight(models, seed), workload.importance(models),
        workload.probability(models), seed, threads, device,
    )  # fmt: skip


class Trainer(Protocol):
    """A contender at work. `run` is what is timed; the rest lets the tests see that the work is the same."""

    chunk: int  # `run` takes a multiple of this many steps

    def run(self, steps: int) -> float | None:
        """Trains for `steps` steps, on a fresh batch each; returns when they are done, on the device too.

        The seconds it took where it can tell them apart from setting up, else None.
        """

    def mean_loss(self) -> np.ndarray:
        """The mean of the batch losses over all steps trained since the last call, `[models]`."""

    def draw(self) -> np.ndarray:
        """One batch from the trainer's own generator, `[models, batch, features]`."""

    def update(self, x: np.ndarray) -> None:
        """One optimiser step on the batch `x`, `[models, batch, features]`, by the code that `run` uses."""

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights `[models, hidden, features]` and biases `[models, features]`."""
