"""The ensemble in JAX on a device: jit of a scan over steps, each of them vmapped over the models.

The generator is an option: threefry is JAX's default, rbg is XLA's own and faster on a GPU. Adam is written
out, so that optax is not needed.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bench.gpu.problem import Problem
from bench.peers.problem import BETA1, BETA2, EPSILON, LEARNING_RATE


class JaxPeer:
    """jit(scan(vmap(step))), with donated state.

    `product="matmul"` leaves the products to XLA, on batches `[features, batch]`, or `[batch, features]` with
    `"matmul_samples_first"`; `"unrolled"` writes them out term by term, for very small n·m.
    """

    chunk = 20

    def __init__(self, problem: Problem, product: str, generator: str) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        import jax.numpy as jnp

        from bench.peers.jax_scan import LOSSES

        self._jax, self._samples_first = jax, product == "matmul_samples_first"
        self._device = jax.devices("gpu" if problem.device == "cuda" else "cpu")[0]
        n, batch, models = problem.workload.n_features, problem.workload.batch_size, problem.n_models
        shape = (models, batch, n) if self._samples_first else (models, n, batch)

        def loss(parameters: Any, x: Any, importance: Any) -> Any:
            return LOSSES[product](jax, 1.0 / (n * batch), parameters, x, importance)

        def adam(parameter: Any, m: Any, v: Any, g: Any, t: Any) -> Any:
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
            denominator = jnp.sqrt(v / (1 - BETA2**t)) + EPSILON
            return parameter - LEARNING_RATE * (m / (1 - BETA1**t)) / denominator, m, v

        def update(parameters: Any, moments: Any, t: Any, x: Any, importance: Any) -> Any:
            """One step of one model."""
            value, gradient = jax.value_and_grad(loss)(parameters, x, importance)
            moved = [adam(p, *mv, g, t) for p, mv, g in zip(parameters, moments, gradient, strict=True)]
            return tuple(a for a, _, _ in moved), tuple((m, v) for _, m, v in moved), value

        over_models = jax.vmap(update, in_axes=(0, 0, None, 0, 0))

        def draw(key: Any, lowest: Any) -> Any:
            """One uniform number gives gate and magnitude, as in `torch_peers`."""
            u = jax.random.uniform(key, shape)
            return jax.nn.relu(lowest + u * (1.0 - lowest))

        def one_step(carry: Any, importance: Any, lowest: Any) -> Any:
            parameters, moments, t, key, total = carry
            key, batch_key = jax.random.split(key)
            x = draw(batch_key, lowest)
            parameters, moments, value = over_models(parameters, moments, t + 1.0, x, importance)
            return parameters, moments, t + 1.0, key, total + value

        def run_chunk(carry: Any, importance: Any, lowest: Any) -> Any:
            def body(c: Any, _: Any) -> Any:
                return one_step(c, importance, lowest), None

            return jax.lax.scan(body, carry, None, length=self.chunk)[0]

        def put(value: Any) -> Any:
            return jax.device_put(jnp.asarray(value), self._device)

        with jax.default_device(self._device):
            p = put(problem.probability.astype(np.float32))[:, :, None]
            self._lowest = -(1.0 - p) / p
            self._importance = put(problem.importance)
            parameters = (put(problem.weight), jnp.zeros((models, n)))
            moments = tuple((jnp.zeros_like(q), jnp.zeros_like(q)) for q in parameters)
            key = jax.random.key(problem.seed, impl=generator)
            self._draw_key = jax.random.key(problem.seed + 1, impl=generator)
            self._carry: Any = (parameters, moments, jnp.zeros(()), key, jnp.zeros(models))
        self._run_chunk = jax.jit(run_chunk, donate_argnums=0)
        self._update, self._draw = jax.jit(over_models), jax.jit(draw)
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps // self.chunk):
            self._carry = self._run_chunk(self._carry, self._importance, self._lowest)
        self._jax.block_until_ready(self._carry)
        self._steps += steps

    def mean_loss(self) -> np.ndarray:
        *others, total = self._carry
        mean = np.asarray(total) / self._steps
        self._carry, self._steps = (*others, self._jax.numpy.zeros_like(total)), 0
        return mean

    def draw(self) -> np.ndarray:
        self._draw_key, key = self._jax.random.split(self._draw_key)
        x = np.asarray(self._draw(key, self._lowest))
        return x if self._samples_first else x.transpose(0, 2, 1)

    def update(self, x: np.ndarray) -> None:
        parameters, moments, t, key, total = self._carry
        given = x if self._samples_first else x.transpose(0, 2, 1)
        there = self._jax.device_put(np.ascontiguousarray(given), self._device)
        parameters, moments, value = self._update(parameters, moments, t + 1.0, there, self._importance)
        self._carry, self._steps = (parameters, moments, t + 1.0, key, total + value), self._steps + 1

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._carry[0]
        return np.asarray(weight), np.asarray(bias)
