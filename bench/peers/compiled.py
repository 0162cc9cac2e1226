"""The ensemble in torch.compile: forward, loss, backward and Adam of a step in one compiled graph.

`CompiledTrainer` on a CPU, where the batch is drawn outside the graph: inside, the compiler's scalar
generator is 2 to 3 times slower. The ReLU that removes inactive features is inside, where it costs no pass
of its own. Tried and left out because they do not help: several steps in one graph, the C++ wrapper, a
whole step compiled with an optimiser object; max-autotune has no effect on this graph's loops on a CPU.

`CudaGraphTrainer` on a GPU: the draw is inside too, and CUDA graphs are replayed.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.peers.problem import BETA1, BETA2, EPSILON, LEARNING_RATE, Problem
from bench.peers.torch_draw import DRAWS, lowest_of

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
        self._draw = DRAWS[draw]((problem.n_models, n, batch), problem.probability)
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


class CudaGraphTrainer:
    """torch.compile: draw, forward, loss, backward and Adam of a step together, replayed as a CUDA graph.

    `graphs="reduce-overhead"` leaves the CUDA graph to torch.compile; `"captured"` captures `chunk` steps of
    the compiled function in one graph by hand, which saves its guards and copies. `product` as above.
    """

    chunk = 1

    def __init__(self, problem: Problem, product: str, graphs: str) -> None:
        torch.manual_seed(problem.seed)
        self._device = torch.device(problem.device)
        n, batch = problem.workload.n_features, problem.workload.batch_size
        self._shape = (problem.n_models, n, batch)
        self._lowest = lowest_of(problem.probability, problem.device)
        self._weight = torch.tensor(problem.weight, device=self._device)
        self._bias = torch.zeros(problem.n_models, n, device=self._device)
        importance = torch.tensor(problem.importance, device=self._device) / (n * batch)
        moments = [torch.zeros_like(p) for p in (self._weight, self._bias, self._weight, self._bias)]
        counters = [torch.zeros((), device=self._device), torch.zeros(problem.n_models, device=self._device)]
        self._state: State = (self._weight, self._bias, *moments, *counters)
        self._reported = 0.0
        step, draw = step_function(importance, product), self._draw

        def drawn_step(state: State) -> State:
            return step(state, draw())

        by_torch = graphs == "reduce-overhead" and self._device.type == "cuda"
        mode = "reduce-overhead" if by_torch else "default"
        self._by_torch = by_torch
        self._step = torch.compile(step, dynamic=False, fullgraph=True)
        self._drawn_step = torch.compile(drawn_step, dynamic=False, fullgraph=True, mode=mode)
        self._graph: torch.cuda.CUDAGraph | None = None
        if graphs == "captured":
            self.chunk = 10
            if self._device.type == "cuda":
                self._capture()

    @torch.no_grad()
    def run(self, steps: int) -> None:
        if self._graph is not None:
            for _ in range(steps // self.chunk):
                self._graph.replay()
        else:
            for _ in range(steps):
                if self._by_torch:
                    torch.compiler.cudagraph_mark_step_begin()
                    self._state = tuple(t.clone() for t in self._drawn_step(self._state))
                else:
                    self._state = self._drawn_step(self._state)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def update(self, x: np.ndarray) -> None:
        new = self._step(self._state, torch.tensor(x, device=self._device).transpose(1, 2).contiguous())
        for old, value in zip(self._state, new, strict=True):
            old.copy_(value)

    def mean_loss(self) -> np.ndarray:
        steps = float(self._state[-2]) - self._reported
        self._reported = float(self._state[-2])
        mean = (self._state[-1] / steps).cpu().numpy()
        self._state[-1].zero_()
        return mean

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self._state[0].cpu().numpy().copy(), self._state[1].cpu().numpy().copy()

    def draw(self) -> np.ndarray:
        return torch.relu(self._draw()).transpose(1, 2).cpu().numpy().copy()

    def _draw(self) -> torch.Tensor:
        """Negative entries stand for inactive features; a ReLU in the step removes them."""
        return torch.addcmul(self._lowest, torch.rand(self._shape, device=self._device), 1.0 - self._lowest)

    @torch.no_grad()
    def _capture(self) -> None:
        """`chunk` steps that end in the state's own memory."""

        def advance() -> None:
            state = self._state
            for _ in range(self.chunk):
                state = self._drawn_step(state)
            for old, value in zip(self._state, state, strict=True):
                old.copy_(value)

        kept = tuple(t.clone() for t in self._state)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                advance()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            advance()
        for old, value in zip(self._state, kept, strict=True):
            old.copy_(value)


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
