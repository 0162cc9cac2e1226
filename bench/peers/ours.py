"""`tk.fit` through its public API, as a contender like the others."""

from __future__ import annotations

import time

import numpy as np

from bench.peers.problem import LEARNING_RATE, Problem


class ToykernTrainer:
    """Every `run` is one call of `tk.fit`.

    What a call takes beside training (checking arguments, the stream's tables of every model, copies) does
    not grow with the steps; `run` returns the seconds of training alone, `call_seconds` has those of the
    call. The bench on a CPU counts the whole call.
    """

    chunk = 1

    def __init__(self, problem: Problem) -> None:
        import torch

        import toykern as tk

        torch.set_num_threads(problem.threads)
        workload = problem.workload
        n, m = workload.n_features, workload.n_hidden
        self._fit, self._optimizer = tk.fit, tk.Adam(lr=LEARNING_RATE)
        self._model = tk.TiedAutoencoder(n, m, problem.n_models, init=0.0, device=problem.device)
        with torch.no_grad():
            self._model.weight.copy_(torch.tensor(problem.weight))
        p = problem.probability
        self._data = tk.SparseFeatures(n, probability=p.item() if p.size == 1 else p)
        self._importance = torch.tensor(problem.importance)
        self._seeds = torch.arange(problem.n_models) + problem.seed * problem.n_models
        self._batch_size, self._runs = workload.batch_size, 0
        self.call_seconds = 0.0

    def run(self, steps: int) -> float:
        seeds = self._seeds + (self._runs << 40)  # fresh batches in every run
        self._runs += 1
        began = time.perf_counter()
        self._result = self._fit(
            self._model, self._data, steps, self._batch_size, self._optimizer, self._importance, seeds,
            progress=False,
        )  # fmt: skip
        self.call_seconds = time.perf_counter() - began
        return self._result.seconds

    def mean_loss(self) -> np.ndarray:
        """The mean of the batch losses of the last run, `[models]`."""
        ends = np.asarray(self._result.record_steps)
        steps = np.diff(ends, prepend=0)
        return (self._result.loss.cpu().numpy() * steps).sum(1) / ends[-1]

    def draw(self) -> np.ndarray:
        return self._data.sample(0, self._batch_size, self._seeds).numpy()

    def update(self, x: np.ndarray) -> None:
        raise NotImplementedError("tk.fit draws its own batches; its parity tests compare single updates")

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._model.weight, self._model.bias
        return weight.detach().cpu().numpy().copy(), bias.detach().cpu().numpy().copy()
