"""The ensemble in batched PyTorch, eager, on a CPU or a GPU: stacked parameters, autograd, fused Adam.

On a GPU batches are drawn densely, which costs it about one pass over the batch; jumping over inactive
entries, which pays on a CPU, would leave all the other passes.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.peers.problem import LEARNING_RATE, Problem
from bench.peers.torch_draw import DRAWS


def batched_loss(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, importance: torch.Tensor, features_first: bool
) -> torch.Tensor:
    """The losses of a stack of models by batched products, `[models]`; `importance` holds the mean's divisor.

    x is `[models, features, batch]` with `features_first`, else `[models, batch, features]`.
    """
    if features_first:
        out = torch.baddbmm(bias[:, :, None], weight.transpose(1, 2), torch.bmm(weight, x)).relu_()
    else:
        out = torch.baddbmm(bias[:, None], torch.bmm(x, weight.transpose(1, 2)), weight).relu_()
    squared_error = (x - out).square().sum(2 if features_first else 1)
    return (squared_error * importance).sum(1)


class EagerTrainer:
    """Batched PyTorch, as fast as it goes without a compiler.

    With `layout="features_first"` the batch is `[models, features, batch]`: the long axis last, so that
    elementwise passes, the reduction over the batch and the small matrix products all run along it. It is
    1.5 to 4 times faster than `"samples_first"`, `[models, batch, features]`, for the small shapes.
    """

    chunk = 1

    def __init__(self, problem: Problem, layout: str, draw: str = "uniform") -> None:
        torch.set_num_threads(problem.threads)
        torch.manual_seed(problem.seed)
        workload = problem.workload
        n, batch = workload.n_features, workload.batch_size
        self._features_first = layout == "features_first"
        shape = (n, batch) if self._features_first else (batch, n)
        self._device, p = torch.device(problem.device), problem.probability
        self._draw = DRAWS[draw]((problem.n_models, *shape), p, problem.device)
        self._gated = draw == "gaps" or bool((p == 1.0).all())  # no negative entries to remove
        self._weight = torch.tensor(problem.weight, device=self._device, requires_grad=True)
        self._bias = torch.zeros(problem.n_models, n, device=self._device, requires_grad=True)
        self._importance = torch.tensor(problem.importance, device=self._device) / (n * batch)
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=LEARNING_RATE, fused=True)
        self._loss = torch.zeros(problem.n_models, device=self._device)
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._update(self._batch())
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def mean_loss(self) -> np.ndarray:
        mean = (self._loss / self._steps).cpu().numpy()
        self._loss.zero_()
        self._steps = 0
        return mean

    def draw(self) -> np.ndarray:
        x = self._batch()
        return (x.transpose(1, 2) if self._features_first else x).cpu().numpy().copy()

    def update(self, x: np.ndarray) -> None:
        samples_first = torch.tensor(x, device=self._device)
        self._update(samples_first.transpose(1, 2).contiguous() if self._features_first else samples_first)

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self._weight.detach().cpu().numpy().copy(), self._bias.detach().cpu().numpy().copy()

    def _batch(self) -> torch.Tensor:
        x = self._draw()
        return x if self._gated else x.relu_()

    def _update(self, x: torch.Tensor) -> None:
        loss = batched_loss(x, self._weight, self._bias, self._importance, self._features_first)
        self._optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self._optimizer.step()
        self._loss += loss.detach()
        self._steps += 1


class NotebookTrainer(EagerTrainer):
    """The same training the way the published notebooks write it; shown, but not counted as a peer.

    Einsums over `[batch, models, features]`, a gate and a magnitude from two random tensors, the default
    optimiser. On a CPU, for one probability of all models.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, layout="samples_first", draw="uniform")
        self._probability = problem.probability.item()
        self._shape = (problem.workload.batch_size, problem.n_models, problem.workload.n_features)
        self._importance = torch.tensor(problem.importance)
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=LEARNING_RATE)

    def draw(self) -> np.ndarray:
        return self._batch().transpose(0, 1).numpy().copy()

    def update(self, x: np.ndarray) -> None:
        self._update(torch.tensor(x).transpose(0, 1).contiguous())

    def _batch(self) -> torch.Tensor:
        return torch.where(torch.rand(self._shape) < self._probability, torch.rand(self._shape), 0.0)

    def _update(self, x: torch.Tensor) -> None:
        hidden = torch.einsum("bif,ihf->bih", x, self._weight)
        out = torch.relu(torch.einsum("bih,ihf->bif", hidden, self._weight) + self._bias)
        loss = (self._importance * (x - out) ** 2).mean((0, 2))
        self._optimizer.zero_grad()
        loss.sum().backward()
        self._optimizer.step()
        self._loss += loss.detach()
        self._steps += 1
