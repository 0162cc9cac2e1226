"""What a contender is given (a workload, or one shard of its models) and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bench.workloads import Workload

LEARNING_RATE = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam, with PyTorch's and optax's defaults


@dataclass(frozen=True)
class Problem:
    """Some models of a workload: shapes and density, initial weights, importance, and a seed for the batches.

    Attributes:
        workload: the shape and the data; its `n_models` is that of the whole ensemble.
        weight: initial weights, float32 `[models, hidden, features]`, of the models of this shard. Biases
            start at 0.
        importance: float32 `[models, features]`.
        seed: of the generator of the batches.
        threads: cores that this shard may use.
    """

    workload: Workload
    weight: np.ndarray
    importance: np.ndarray
    seed: int
    threads: int

    @property
    def n_models(self) -> int:
        return self.weight.shape[0]

    def shards(self, count: int) -> list[Problem]:
        """Cuts the models into `count` shards of one core each, as even as can be."""
        cuts = np.array_split(np.arange(self.n_models), count)
        return [
            Problem(self.workload, self.weight[cut], self.importance[cut], self.seed + i, threads=1)
            for i, cut in enumerate(cuts)
        ]


def whole_problem(workload: Workload, threads: int, seed: int = 0) -> Problem:
    """The problem of a whole workload."""
    importance = np.tile(workload.importance(), (workload.n_models, 1))
    return Problem(workload, workload.initial_weight(seed), importance, seed, threads)


class Trainer(Protocol):
    """A contender at work. `run` is what is timed; the rest lets the tests see that the work is the same."""

    chunk: int  # `run` takes a multiple of this many steps

    def run(self, steps: int) -> None:
        """Trains for `steps` steps, on a fresh batch each, and returns when they are done."""

    def mean_loss(self) -> np.ndarray:
        """The mean of the batch losses over all steps trained since the last call, `[models]`."""

    def draw(self) -> np.ndarray:
        """One batch from the trainer's own generator, `[models, batch, features]`."""

    def update(self, x: np.ndarray) -> None:
        """One optimiser step on the batch `x`, `[models, batch, features]`, by the code that `run` uses."""

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights `[models, hidden, features]` and biases `[models, features]`."""
