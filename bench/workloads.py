"""The workloads of the bench, and the speed-up each of them is asked to reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """Trains `n_models` tied autoencoders n → m → n, each on fresh batches of its own, with Adam(lr 1e-3).

    Attributes:
        n_models: models trained at once.
        n_features: n, features of a sample.
        n_hidden: m, hidden units.
        batch_size: samples of a batch.
        sparsity: S; a feature is active with probability 1 - S, and its magnitude is then uniform on [0, 1].
        required_ratio: how many times faster than the best peer `tk.fit` is asked to be on two AVX-512 cores.
    """

    n_models: int
    n_features: int
    n_hidden: int
    batch_size: int
    sparsity: float
    required_ratio: float

    @property
    def probability(self) -> float:
        """The probability that a feature is active, 1 - S (rounded: 1 - 0.9 is to be 0.1 exactly)."""
        return round(1.0 - self.sparsity, 12)

    @property
    def name(self) -> str:
        """For people: `64 models, 5 → 2, S = 0.99`, and the batch where it is not the usual 1024."""
        batch = "" if self.batch_size == 1024 else f", batch {self.batch_size}"
        models = f"{self.n_models} models, {self.n_features} → {self.n_hidden}"
        return f"{models}, S = {self.sparsity:g}{batch}"

    @property
    def key(self) -> str:
        """For files and test ids: `64-5-2-1024-0.99`."""
        sizes = (self.n_models, self.n_features, self.n_hidden, self.batch_size)
        return "-".join(map(str, sizes)) + f"-{self.sparsity:g}"

    def importance(self) -> np.ndarray:
        """The importance of each feature, 0.9^i: float32 `[n_features]`, the same for every model."""
        return (0.9 ** np.arange(self.n_features)).astype(np.float32)

    def initial_weight(self, seed: int = 0) -> np.ndarray:
        """True per-model Xavier-normal initial weights: float32 `[models, hidden, features]`."""
        deviation = np.sqrt(2.0 / (self.n_features + self.n_hidden))
        shape = (self.n_models, self.n_hidden, self.n_features)
        return (np.random.default_rng(seed).standard_normal(shape) * deviation).astype(np.float32)


WORKLOADS = (
    Workload(64, 5, 2, 1024, 0.99, required_ratio=400),
    Workload(8, 5, 2, 1024, 0.9, required_ratio=120),
    Workload(8, 5, 2, 1024, 0.0, required_ratio=60),
    Workload(1024, 2, 1, 1024, 0.9, required_ratio=100),
    Workload(8, 20, 5, 1024, 0.99, required_ratio=100),
    Workload(8, 80, 20, 1024, 0.99, required_ratio=10),
    Workload(8, 200, 20, 1024, 0.999, required_ratio=35),
    Workload(8, 400, 30, 128, 0.9, required_ratio=5),
)
