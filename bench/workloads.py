"""What the resident trainer is timed on, on a CPU and on a GPU, and the speed-up asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Trains tied autoencoders n → m → n, each on fresh batches of its own, with Adam(lr 1e-3).

    Attributes:
        n_models: models that `tk.fit` trains at once; on a GPU a peer takes the number that suits it best.
        n_features: n, features of a sample.
        n_hidden: m, hidden units.
        sparsity: S; a feature is active with probability 1 − S, and its magnitude is then uniform on [0, 1].
            None: a phase diagram, with densities from 0.01 to 1 and importances of the last feature from 0.1
            to 10.
        batch_size: samples of a batch.
        label: a short name, where there is one.
        required_ratio: how many times faster than the fastest of all peers `tk.fit` is asked to be, or None.
        required_rate: model-steps per second asked for, or None.
    """

    n_models: int
    n_features: int
    n_hidden: int
    sparsity: float | None
    batch_size: int = 1024
    label: str | None = None
    required_ratio: float | None = None
    required_rate: float | None = None

    @property
    def name(self) -> str:
        """For people: `64 models, 5 → 2, S = 0.99`, and the batch where it is not the usual 1024."""
        batch = "" if self.batch_size == 1024 else f", batch {self.batch_size}"
        density = "phase diagram" if self.sparsity is None else f"S = {self.sparsity:g}"
        return f"{self.n_models:,} models, {self.n_features} → {self.n_hidden}, {density}{batch}"

    @property
    def key(self) -> str:
        """For files, options and test ids: the label, or `64-5-2-1024-0.99`."""
        if self.label is not None:
            return self.label
        sizes = (self.n_models, self.n_features, self.n_hidden, self.batch_size)
        return "-".join(map(str, sizes)) + ("" if self.sparsity is None else f"-{self.sparsity:g}")

    def probability(self, n_models: int) -> np.ndarray:
        """float64 `[models or 1, 1]`: of a feature being active; the phase diagram's, however many models."""
        if self.sparsity is not None:
            return np.full((1, 1), round(1.0 - self.sparsity, 12))  # 1 - 0.9 is to be 0.1 exactly
        return _shuffled(np.geomspace(0.01, 1.0, n_models), 1)[:, None]

    def importance(self, n_models: int) -> np.ndarray:
        """float32 `[models, n_features]`: 0.9^i of feature i, the same for every model, or the diagram's."""
        if self.sparsity is not None:
            return np.tile((0.9 ** np.arange(self.n_features)).astype(np.float32), (n_models, 1))
        importance = np.ones((n_models, self.n_features), dtype=np.float32)
        importance[:, -1] = _shuffled(np.geomspace(0.1, 10.0, n_models), 2)
        return importance

    def initial_weight(self, n_models: int, seed: int = 0) -> np.ndarray:
        """True per-model Xavier-normal initial weights: float32 `[models, hidden, features]`."""
        deviation = np.sqrt(2.0 / (self.n_features + self.n_hidden))
        shape = (n_models, self.n_hidden, self.n_features)
        return (np.random.default_rng(seed).standard_normal(shape) * deviation).astype(np.float32)


def _shuffled(values: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(values)


def _workload(n_models: int, n_features: int, n_hidden: int, sparsity: float | None, **more: Any) -> Workload:
    return Workload(n_models=n_models, n_features=n_features, n_hidden=n_hidden, sparsity=sparsity, **more)


WORKLOADS = (  # on two AVX-512 cores
    _workload(64, 5, 2, 0.99, required_ratio=9),
    _workload(8, 5, 2, 0.9, required_ratio=10),
    _workload(8, 5, 2, 0.0, required_ratio=6),
    _workload(1024, 2, 1, 0.9, required_ratio=6.5),
    _workload(8, 20, 5, 0.99, required_ratio=13),
    _workload(8, 80, 20, 0.99, required_ratio=18),
    _workload(8, 200, 20, 0.999, required_ratio=6.5),
    _workload(8, 400, 30, 0.9, batch_size=128, required_ratio=3),
)

HARD_STEPS = 10_000  # of the phase diagram in full

GPU_WORKLOADS = (  # on an H200
    _workload(
        1_048_576, 2, 1, None, label="hard", required_ratio=10, required_rate=1_048_576 * HARD_STEPS / 60
    ),
    _workload(100_000, 5, 2, 0.99, label="pentagon", required_ratio=60, required_rate=8e8),
    _workload(20_000, 20, 5, 0.99, label="twenty", required_ratio=40, required_rate=1e8),
    _workload(2_000, 200, 20, 0.999, label="published", required_ratio=15),
    _workload(2_000, 80, 20, 0.99, label="eighty"),
    _workload(16, 1024, 64, 0.99, label="large"),
)
