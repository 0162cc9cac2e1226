"""What a peer is given, and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bench.gpu.workloads import Workload


@dataclass(frozen=True)
class Problem:
    """Some models of a workload on a device: `cuda` when it counts, `cpu` when the tests look."""

    workload: Workload
    n_models: int
    device: str = "cuda"
    seed: int = 0

    @property
    def weight(self) -> np.ndarray:
        """Initial weights, float32 `[models, hidden, features]`; biases start at 0."""
        return self.workload.initial_weight(self.n_models)

    @property
    def importance(self) -> np.ndarray:
        """float32 `[models, features]`."""
        return self.workload.importance(self.n_models)

    @property
    def probability(self) -> np.ndarray:
        """float64 `[models or 1, 1]`."""
        return self.workload.probability(self.n_models)


class Trainer(Protocol):
    """A contender at work. `run` is what is timed; the rest lets the tests see that the work is the same."""

    chunk: int  # `run` takes a multiple of this many steps

    def run(self, steps: int) -> float | None:
        """Trains for `steps` steps on a fresh batch each; returns when they are done on the device.

        The seconds it took where it can tell them apart from setting up, else None.
        """

    def mean_loss(self) -> np.ndarray:
        """The mean of the batch losses over all steps since the last call, `[models]`."""

    def draw(self) -> np.ndarray:
        """One batch from the trainer's own generator, `[models, batch, features]`."""

    def update(self, x: np.ndarray) -> None:
        """One optimiser step on the batch `x`, `[models, batch, features]`, by the code that `run` uses."""

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights `[models, hidden, features]` and biases `[models, features]`."""


@dataclass(frozen=True)
class Variant:
    """One set-up of a contender: its options, and how many models it trains at once."""

    contender: str
    options: dict[str, str] = field(hash=False)
    n_models: int

    @property
    def label(self) -> str:
        """`matmul, rbg, 4,096 models`."""
        return ", ".join([*map(str, self.options.values()), f"{self.n_models:,} models"])
