"""The ensemble in batched PyTorch on a device: eager, and compiled with CUDA graphs.

Batches are drawn there, afresh for every step: U[−(1−p)/p, 1] is positive with probability p and then
U[0, 1], so that one number gives gate and magnitude. A dense draw costs a GPU about one pass over the batch;
jumping over inactive entries, which pays on a CPU, would leave all the other passes.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.gpu.problem import Problem
from bench.peers.compiled import State, step_function
from bench.peers.eager import batched_loss
from bench.peers.problem import LEARNING_RATE


class _TorchPeer:
    """What both share: tensors on the device, draws, results for the tests."""

    chunk = 1

    def __init__(self, problem: Problem, features_first: bool) -> None:
        torch.manual_seed(problem.seed)
        self._device = torch.device(problem.device)
        n, batch = problem.workload.n_features, problem.workload.batch_size
        self._features_first = features_first
        self._shape = (problem.n_models, n, batch) if features_first else (problem.n_models, batch, n)
        p = torch.tensor(problem.probability, dtype=torch.float32, device=self._device)[:, :, None]
        self._lowest = -(1.0 - p) / p
        self._weight = torch.tensor(problem.weight, device=self._device)
        self._bias = torch.zeros(problem.n_models, n, device=self._device)
        self._importance = torch.tensor(problem.importance, device=self._device) / (n * batch)

    def _draw(self) -> torch.Tensor:
        """Negative entries stand for inactive features; a ReLU removes them."""
        u = torch.rand(self._shape, device=self._device)
        return torch.addcmul(self._lowest, u, 1.0 - self._lowest)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def draw(self) -> np.ndarray:
        x = torch.relu(self._draw())
        return (x.transpose(1, 2) if self._features_first else x).cpu().numpy().copy()

    def _given(self, x: np.ndarray) -> torch.Tensor:
        samples_first = torch.tensor(x, device=self._device)
        return samples_first.transpose(1, 2).contiguous() if self._features_first else samples_first


class EagerPeer(_TorchPeer):
    """Batched PyTorch without a compiler: stacked parameters, autograd, the library's fused Adam."""

    def __init__(self, problem: Problem, layout: str) -> None:
        super().__init__(problem, features_first=layout == "features_first")
        self._weight.requires_grad_()
        self._bias.requires_grad_()
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=LEARNING_RATE, fused=True)
        self._loss = torch.zeros(problem.n_models, device=self._device)
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._update(self._draw().relu_())
        self._wait()

    def update(self, x: np.ndarray) -> None:
        self._update(self._given(x))

    def mean_loss(self) -> np.ndarray:
        mean = (self._loss / self._steps).cpu().numpy()
        self._loss.zero_()
        self._steps = 0
        return mean

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self._weight.detach().cpu().numpy().copy(), self._bias.detach().cpu().numpy().copy()

    def _update(self, x: torch.Tensor) -> None:
        loss = batched_loss(x, self._weight, self._bias, self._importance, self._features_first)
        self._optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self._optimizer.step()
        self._loss += loss.detach()
        self._steps += 1


class CompiledPeer(_TorchPeer):
    """torch.compile: draw, forward, loss, backward and Adam of a step together, replayed as a CUDA graph.

    `graphs="reduce-overhead"` leaves the CUDA graph to torch.compile; `"captured"` captures `chunk` steps of
    the compiled function in one graph by hand, which saves its guards and copies. `product` as in
    `bench.peers.compiled`.
    """

    def __init__(self, problem: Problem, product: str, graphs: str) -> None:
        super().__init__(problem, features_first=True)
        moments = [torch.zeros_like(p) for p in (self._weight, self._bias, self._weight, self._bias)]
        counters = [torch.zeros((), device=self._device), torch.zeros(problem.n_models, device=self._device)]
        self._state: State = (self._weight, self._bias, *moments, *counters)
        self._reported = 0.0
        step, draw = step_function(self._importance, product), self._draw

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
        self._wait()

    @torch.no_grad()
    def update(self, x: np.ndarray) -> None:
        new = self._step(self._state, self._given(x))
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
