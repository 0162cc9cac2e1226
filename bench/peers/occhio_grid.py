"""`occhio`'s grid of models, as its examples call it: a package of toy models of superposition in PyTorch."""

from __future__ import annotations

import os

import numpy as np

from bench.peers.problem import LEARNING_RATE, Problem


class OcchioTrainer:
    """`ModelGrid.fit`: every `run` is one call, which begins Adam anew.

    Of the package's choices only those are changed that make the work the same: its AdamW without weight
    decay, its loss (a sum over features) as a mean, a generator and initial weights for each model. On a CPU.
    """

    chunk = 1

    def __init__(self, problem: Problem) -> None:
        os.environ["TQDM_DISABLE"] = "1"  # its progress bar
        import torch
        from occhio import ModelGrid, ToyModel
        from occhio.autoencoder import TiedLinearRelu
        from occhio.distributions import SparseUniform
        from occhio.model_grid import Axis

        torch.set_num_threads(problem.threads)
        n, self._batch_size = problem.workload.n_features, problem.workload.batch_size
        m, p = problem.workload.n_hidden, problem.probability.item()

        def create_model(params: dict) -> ToyModel:
            i = int(params["model"])
            generator = torch.Generator().manual_seed(problem.seed + i)
            encoder = TiedLinearRelu(n, m)
            with torch.no_grad():
                encoder.W.copy_(torch.tensor(problem.weight[i]))
            importance = torch.tensor(problem.importance[i]) / n
            return ToyModel(SparseUniform(n, p, generator=generator), encoder, importances=importance)

        self._grid = ModelGrid(create_model, [Axis("model", range(problem.n_models))])

    def run(self, steps: int) -> None:
        self._grid.fit(steps, self._batch_size, learning_rate=LEARNING_RATE, weight_decay=0.0)

    def mean_loss(self) -> np.ndarray:
        raise NotImplementedError("occhio's fit keeps no losses")

    def draw(self) -> np.ndarray:
        return np.stack([model.distribution.sample(self._batch_size).numpy() for model in self._grid.models])

    def update(self, x: np.ndarray) -> None:
        raise NotImplementedError("occhio's fit draws its own batches")

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        encoders = [model.ae for model in self._grid.models]
        weight = np.stack([encoder.W.detach().numpy() for encoder in encoders])
        return weight, np.stack([encoder.b.detach().numpy() for encoder in encoders])
