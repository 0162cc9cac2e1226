"""plain_loop.cpp in numba: the same loops in the same order, compiled at the first call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bench.peers.plain_loop import PlainLoop
from bench.peers.problem import LEARNING_RATE, Problem

f4, u8 = np.float32, np.uint64


class NumbaTrainer(PlainLoop):
    """Kernels with n and m as constants, as the C++ has them."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._draw, self._step, self._train = kernels(*self.shape)
        self._rate = f4(LEARNING_RATE)

    def train_models(self, done: int, steps: int, loss: np.ndarray) -> None:
        self._train(
            self.parameters_of, self.first, self.second, self.importance, self.state, self.entries,
            self.probability, self.batch_size, self._rate, done, steps, loss,
        )  # fmt: skip

    def draw_batch(self, model: int) -> int:
        return self._draw(self.state, model, self.batch_size, self.probability, self.entries)

    def update_model(self, model: int, count: int, step: int) -> float:
        state = (self.parameters_of[model], self.first[model], self.second[model])
        gradient = np.zeros_like(state[0])
        return self._step(
            *state, gradient, self.importance[model], self.entries, count, self.batch_size, self._rate, step
        )


def kernels(n: int, m: int) -> tuple[Any, Any, Any]:
    """The draw of a batch, the step on one, and the training of all models."""

    @njit(fastmath=True)
    def uniform(state, i):  # splitmix64, in (0, 1]
        state[i] += u8(0x9E3779B97F4A7C15)
        z = state[i]
        z = (z ^ (z >> u8(30))) * u8(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> u8(27))) * u8(0x94D049BB133111EB)
        return f4((z ^ (z >> u8(31))) >> u8(40)) * f4(2.0**-24) + f4(2.0**-25)

    @njit(fastmath=True)
    def draw(state, i, batch, p, out):
        scale = f4(1.0 / np.log1p(-p)) if p < 1.0 else f4(0.0)
        count, at, places = 0, -1, batch * n
        while True:
            at += 1
            if p < 1.0:
                at += int(np.log(uniform(state, i)) * scale)
            if at >= places:
                return count
            out[count].sample = at // n
            out[count].feature = at % n
            out[count].value = uniform(state, i)
            count += 1

    @njit(fastmath=True)
    def sample(p, g, h, dh, d, target, importance, x, start, end, times):
        h[:] = f4(0.0)
        dh[:] = f4(0.0)
        loss = f4(0.0)
        for e in range(start, end):
            for k in range(m):
                h[k] += p[x[e].feature * m + k] * x[e].value
            target[x[e].feature] = x[e].value
        for j in range(n):
            y = p[n * m + j]
            for k in range(m):
                y += p[j * m + k] * h[k]
            out = max(y, f4(0.0))
            error = out - target[j]
            loss += importance[j] * error * error
            d[j] = f4(2.0) * importance[j] * error * times if y > f4(0.0) else f4(0.0)
            g[n * m + j] += d[j]
        if start == end:
            return loss * times
        for j in range(n):
            for k in range(m):
                dh[k] += p[j * m + k] * d[j]
                g[j * m + k] += h[k] * d[j]
        for e in range(start, end):
            for k in range(m):
                g[x[e].feature * m + k] += dh[k] * x[e].value
            target[x[e].feature] = f4(0.0)
        return loss

    @njit(fastmath=True)
    def step(p, p1, p2, g, importance, x, count, batch, lr, t):
        h, dh = np.zeros(m, np.float32), np.zeros(m, np.float32)
        d, target = np.zeros(n, np.float32), np.zeros(n, np.float32)
        g[:] = f4(0.0)
        loss, empty, start = f4(0.0), batch, 0
        while start < count:
            end = start + 1
            while end < count and x[end].sample == x[start].sample:
                end += 1
            loss += sample(p, g, h, dh, d, target, importance, x, start, end, f4(1.0))
            empty -= 1
            start = end
        if empty:
            loss += sample(p, g, h, dh, d, target, importance, x, 0, 0, f4(empty))
        scale = f4(1.0) / f4(batch * n)
        rate, correction = lr / f4(1.0 - 0.9**t), f4(1.0 / (1.0 - 0.999**t))
        for i in range(n * m + n):
            value = g[i] * scale
            p1[i] = f4(0.9) * p1[i] + f4(0.1) * value
            p2[i] = f4(0.999) * p2[i] + f4(0.001) * value * value
            p[i] -= rate * p1[i] / (np.sqrt(p2[i] * correction) + f4(1e-8))
        return loss * scale

    @njit(fastmath=True)
    def train(p, p1, p2, importance, state, x, probability, batch, lr, done, steps, loss):
        g = np.zeros(n * m + n, np.float32)
        for i in range(len(state)):
            for t in range(done + 1, done + steps + 1):
                count = draw(state, i, batch, probability, x)
                loss[i] += step(p[i], p1[i], p2[i], g, importance[i], x, count, batch, lr, t)

    return draw, step, train
