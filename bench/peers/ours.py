"""`tk.fit` through its public API, as a contender like the others."""

from __future__ import annotations

import numpy as np

from bench.peers.problem import LEARNING_RATE, Problem


class ToykernTrainer:
    """Every `run` is one call of `tk.fit`, with everything that a user pays for in it."""

    chunk = 1

    def __init__(self, problem: Problem) -> None:
        import torch

        import toykern as tk

        torch.set_num_threads(problem.threads)
        workload = problem.workload
        n, m = workload.n_features, workload.n_hidden
        self._fit, self._optimizer = tk.fit, tk.Adam(lr=LEARNING_RATE)
        self._model = tk.TiedAutoencoder(n_features=n, n_hidden=m, n_models=problem.n_models)
        with torch.no_grad():
            self._model.weight.copy_(torch.tensor(problem.weight))
        self._data = tk.SparseFeatures(n, probability=workload.probability)
        self._importance = torch.tensor(problem.importance)
        self._batch_size, self._seed, self._runs = workload.batch_size, problem.seed, 0
        self._n_models = problem.n_models

    def run(self, steps: int) -> None:
        first = (self._seed + self._runs) * self._n_models
        self._runs += 1
        self._result = self._fit(
            self._model,
            self._data,
            steps=steps,
            batch_size=self._batch_size,
            optimizer=self._optimizer,
            importance=self._importance,
            seed=list(range(first, first + self._n_models)),  # fresh batches in every run
            progress=False,
        )

    def mean_loss(self) -> np.ndarray:
        """The mean of the batch losses of the last run, `[models]`."""
        result = self._result
        ends = np.asarray(result.record_steps)
        steps = np.diff(ends, prepend=0)
        return (result.loss.numpy() * steps).sum(1) / ends[-1]

    def draw(self) -> np.ndarray:
        x = self._data.sample(step=0, batch_size=self._batch_size, seed=self._seed, n_models=self._n_models)
        return x.numpy()

    def update(self, x: np.ndarray) -> None:
        raise NotImplementedError("tk.fit draws its own batches; its parity tests compare single updates")

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self._model.weight.detach().numpy().copy(), self._model.bias.detach().numpy().copy()
