"""The ensemble in torch.compile: forward, loss, backward and Adam of a step in one compiled graph.

The batch is drawn outside the graph: inside, the compiler's scalar generator is 2 to 3 times slower. The
ReLU that removes inactive features is inside, where it costs no pass of its own. Tried and left out because
they do not
help: several steps in one graph, the C++ wrapper, a whole step compiled with an optimiser object.
    max-autotune has no effect on this graph's loops on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.peers.problem import BETA1, BETA2, EPSILON, LEARNING_RATE, Problem
from bench.peers.torch_draw import DRAWS

State = tuple[torch.Tensor, ...]  # weight, bias, their first moments, their second moments, step, summed loss


class CompiledTrainer:
    """torch.compile with batches `[models, features, batch]`.

    `product="matmul"` leaves the products to MKL; `"elementwise"` writes them as a multiplication and a
    sum, which the compiler fuses with everything around them: faster while n·m is small.
    """

    chunk = 1

    def __init__(self, problem: Problem, product: str, draw: str) -> None:
        torch.set_num_threads(problem.threads)
        torch.manual_seed(problem.seed)
        workload = problem.workload
        n, batch = workload.n_features, workload.batch_size
        self._draw = DRAWS[draw]((problem.n_models, n, batch), workload.probability)
        weight, bias = torch.tensor(problem.weight), torch.zeros(problem.n_models, n)
        moments = [torch.zeros_like(p) for p in (weight, bias, weight, bias)]
        self._state: State = (weight, bias, *moments, torch.zeros(()), torch.zeros(problem.n_models))
        step = step_function(torch.tensor(problem.importance) / (n * batch), product)
        self._step = torch.compile(step, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._state = self._step(self._state, self._draw())

    def mean_loss(self) -> np.ndarray:
        *others, loss = self._state
        steps = others[-1] - getattr(self, "_reported", 0.0)
        self._reported = others[-1]
        self._state = (*others, torch.zeros_like(loss))
        return (loss / steps).numpy()

    def draw(self) -> np.ndarray:
        return torch.relu(self._draw()).transpose(1, 2).numpy().copy()

    @torch.no_grad()
    def update(self, x: np.ndarray) -> None:
        self._state = self._step(self._state, torch.tensor(x).transpose(1, 2).contiguous())

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self._state[0].numpy().copy(), self._state[1].numpy().copy()


def step_function(importance: torch.Tensor, product: str):
    def loss(parameters: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor):
        weight, bias = parameters
        if product == "matmul":
            hidden = torch.bmm(weight, x)
            out = torch.relu(torch.baddbmm(bias[:, :, None], weight.transpose(1, 2), hidden))
        else:
            hidden = (weight[:, :, :, None] * x[:, None]).sum(2)
            out = torch.relu((weight[:, :, :, None] * hidden[:, :, None]).sum(1) + bias[:, :, None])
        per_model = ((x - out).square().sum(2) * importance).sum(1)
        return per_model.sum(), per_model

    gradient = torch.func.grad(loss, has_aux=True)

    def step(state: State, x: torch.Tensor) -> State:
        weight, bias, weight_m, bias_m, weight_v, bias_v, t, total = state
        (weight_g, bias_g), batch_loss = gradient((weight, bias), torch.relu(x))
        t = t + 1.0
        weight, weight_m, weight_v = _adam(weight, weight_m, weight_v, weight_g, t)
        bias, bias_m, bias_v = _adam(bias, bias_m, bias_v, bias_g, t)
        return weight, bias, weight_m, bias_m, weight_v, bias_v, t, total + batch_loss

    return step


def _adam(p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, g: torch.Tensor, t: torch.Tensor):
    m = BETA1 * m + (1.0 - BETA1) * g
    v = BETA2 * v + (1.0 - BETA2) * g * g
    denominator = (v / (1.0 - BETA2**t)).sqrt() + EPSILON
    return p - LEARNING_RATE * (m / (1.0 - BETA1**t)) / denominator, m, v
