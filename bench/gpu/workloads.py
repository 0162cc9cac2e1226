"""The workloads of the bench on a GPU, and what is asked of them on an H200."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """Tied autoencoders n → m → n, each on fresh batches of its own, with Adam(lr 1e-3).

    Attributes:
        key: for files and options.
        n_models: models that `tk.fit` trains at once. A peer takes the number that suits it best.
        n_features, n_hidden, batch_size: the shape.
        sparsity: S; a feature is active with probability 1 − S. None: the phase diagram, with densities from
            0.01 to 1 and importances of the last feature from 0.1 to 10.
        required_ratio: how many times faster than the best peer is asked for; None: nothing is.
        required_rate: model-steps per second asked for, or None.
    """

    key: str
    n_models: int
    n_features: int
    n_hidden: int
    sparsity: float | None
    required_ratio: float | None = None
    required_rate: float | None = None
    batch_size: int = 1024

    @property
    def name(self) -> str:
        """For people."""
        shape = f"{self.n_models:,} models, {self.n_features} → {self.n_hidden}"
        return f"{shape}, {'phase diagram' if self.sparsity is None else f'S = {self.sparsity:g}'}"

    def probability(self, n_models: int) -> np.ndarray:
        """float64 `[models or 1, 1]`: of a feature being active; the phase diagram's, however many models."""
        if self.sparsity is not None:
            return np.full((1, 1), round(1.0 - self.sparsity, 12))
        return _shuffled(np.geomspace(0.01, 1.0, n_models), 1)[:, None]

    def importance(self, n_models: int) -> np.ndarray:
        """float32 `[models, n_features]`."""
        if self.sparsity is not None:
            return np.tile((0.9 ** np.arange(self.n_features)).astype(np.float32), (n_models, 1))
        importance = np.ones((n_models, self.n_features), dtype=np.float32)
        importance[:, -1] = _shuffled(np.geomspace(0.1, 10.0, n_models), 2)
        return importance

    def initial_weight(self, n_models: int, seed: int = 0) -> np.ndarray:
        """float32 `[models, hidden, features]`, Xavier-normal of each model by itself."""
        deviation = np.sqrt(2.0 / (self.n_features + self.n_hidden))
        shape = (n_models, self.n_hidden, self.n_features)
        return (np.random.default_rng(seed).standard_normal(shape) * deviation).astype(np.float32)


def _shuffled(values: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(values)


HARD_STEPS = 10_000  # of the phase diagram in full

WORKLOADS = (
    Workload("hard", 1_048_576, 2, 1, None, required_ratio=10, required_rate=1_048_576 * HARD_STEPS / 60),
    Workload("pentagon", 100_000, 5, 2, 0.99, required_ratio=60, required_rate=8e8),
    Workload("twenty", 20_000, 20, 5, 0.99, required_ratio=40, required_rate=1e8),
    Workload("published", 2_000, 200, 20, 0.999, required_ratio=15),
    Workload("eighty", 2_000, 80, 20, 0.99),
    Workload("large", 16, 1024, 64, 0.99),
)
