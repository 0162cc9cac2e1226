"""The ensemble in JAX: vmap over models, scan over steps, optax's Adam, models split over a device per core.

XLA's CPU backend hardly uses a second core inside a scan of small operations, so `shard_map` over as many
host devices as cores is about twice as fast as one device. Threefry, the default generator, is vectorised;
`rbg` and `unsafe_rbg` run a scalar loop on a CPU and were 1.5 to 3 times slower in all. Options are given
before JAX is imported, which is why a contender has a process of its own.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.problem import LEARNING_RATE, Problem


class JaxTrainer:
    """jit(shard_map(scan(vmap(step)))), with donated state.

    `product="matmul"` leaves the products to XLA's dots, on batches `[features, batch]`, or `[batch,
    features]` with `"matmul_samples_first"`; `"unrolled"` writes them out term by term, which XLA fuses
    into few loops (only for very small n·m).
    """

    chunk = 20

    def __init__(self, problem: Problem, product: str, draw: str) -> None:
        jax = _import_jax(problem.threads)
        import jax.numpy as jnp
        import optax
        from jax.sharding import NamedSharding, PartitionSpec

        workload = problem.workload
        self._jax, self._samples_first = jax, product == "matmul_samples_first"
        n, batch = workload.n_features, workload.batch_size
        shape = (batch, n) if self._samples_first else (n, batch)
        devices = math.gcd(problem.n_models, len(jax.devices()))
        mesh = jax.make_mesh((devices,), ("models",), devices=jax.devices()[:devices])
        split, optimizer = PartitionSpec("models"), optax.adam(LEARNING_RATE)
        loss = partial(LOSSES[product], jax, 1.0 / (n * batch))
        draw_batch = partial(_DRAWS[draw], jax, shape=shape, probability=workload.probability)

        def update(parameters, moments, x, importance):
            """One step of one model."""
            value, gradient = jax.value_and_grad(loss)(parameters, x, importance)
            change, moments = optimizer.update(gradient, moments, parameters)
            return optax.apply_updates(parameters, change), moments, value

        def one_step(carry, importance):
            parameters, moments, keys, total = carry
            key, batch_key = jax.random.split(keys[0])
            x = draw_batch(batch_key, n_models=importance.shape[0])
            parameters, moments, value = jax.vmap(update)(parameters, moments, x, importance)
            return parameters, moments, key[None], total + value

        def run_chunk(carry, importance):
            return jax.lax.scan(lambda c, _: (one_step(c, importance), None), carry, None, length=self.chunk)[
                0
            ]

        sharded = jax.shard_map(
            run_chunk, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False
        )
        self._run_chunk = jax.jit(sharded, donate_argnums=0)
        self._update = jax.jit(jax.vmap(update))
        self._draw_batch = jax.jit(partial(draw_batch, n_models=problem.n_models))
        self._draw_key = jax.random.key(problem.seed + 1)
        parameters = (jnp.asarray(problem.weight), jnp.zeros((problem.n_models, n)))
        carry = (
            parameters,
            jax.vmap(optimizer.init)(parameters),
            jax.random.split(jax.random.key(problem.seed), devices),
            jnp.zeros(problem.n_models),
        )
        sharding = NamedSharding(mesh, split)
        self._carry: Any = jax.device_put(carry, sharding)
        self._importance = jax.device_put(jnp.asarray(problem.importance), sharding)
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps // self.chunk):
            self._carry = self._run_chunk(self._carry, self._importance)
        self._jax.block_until_ready(self._carry)
        self._steps += steps

    def mean_loss(self) -> np.ndarray:
        *others, total = self._carry
        mean = np.asarray(total) / self._steps
        self._carry, self._steps = (*others, self._jax.device_put(np.zeros_like(mean), total.sharding)), 0
        return mean

    def draw(self) -> np.ndarray:
        self._draw_key, key = self._jax.random.split(self._draw_key)
        x = np.asarray(self._draw_batch(key))
        return x if self._samples_first else x.transpose(0, 2, 1)

    def update(self, x: np.ndarray) -> None:
        parameters, moments, keys, total = self._carry
        x = self._jax.device_put(x if self._samples_first else x.transpose(0, 2, 1), total.sharding)
        parameters, moments, value = self._update(parameters, moments, x, self._importance)
        self._carry, self._steps = (parameters, moments, keys, total + value), self._steps + 1

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._carry[0]
        return np.asarray(weight), np.asarray(bias)


def _import_jax(devices: int) -> Any:
    if "avx512f" in _processor_flags():
        # XLA's own default is 256 bits; the full width is up to a third faster here.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")
    import jax

    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # in use already, which is well if it has as many
        if len(jax.devices("cpu")) < devices:
            raise
    return jax


def _processor_flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


def _uniform_draw(jax, key, shape, probability, n_models):
    """One uniform number gives gate and magnitude, as in `torch_draw.uniform_draw`."""
    lowest = -(1.0 - probability) / probability
    return jax.nn.relu(jax.random.uniform(key, (n_models, *shape), minval=lowest, maxval=1.0))


def _gap_draw(jax, key, shape, probability, n_models):
    """Jumps from one active entry to the next, as in `torch_draw.gap_draw`."""
    size = n_models * math.prod(shape)
    if size >= 2**24:
        raise ValueError(f"shape must have less than 2**24 entries (positions are float32), got {shape}")
    mean = size * probability
    count = int(mean + 8.0 * math.sqrt(mean) + 16.0)
    gap_key, magnitude_key = jax.random.split(key)
    gaps = jax.numpy.floor(jax.random.exponential(gap_key, (count,)) / -math.log1p(-probability)) + 1.0
    positions = jax.numpy.cumsum(gaps).astype("int32") - 1
    batch = jax.numpy.zeros(size).at[positions]
    magnitudes = jax.random.uniform(magnitude_key, (count,))
    filled = batch.set(magnitudes, mode="drop", unique_indices=True, indices_are_sorted=True)
    return filled.reshape(n_models, *shape)


def _matmul_loss(jax, scale, parameters, x, importance):
    weight, bias = parameters
    out = jax.nn.relu(weight.T @ (weight @ x) + bias[:, None])
    return (((x - out) ** 2).sum(1) * importance).sum() * scale


def _matmul_samples_first_loss(jax, scale, parameters, x, importance):
    weight, bias = parameters
    out = jax.nn.relu((x @ weight.T) @ weight + bias)
    return (((x - out) ** 2).sum(0) * importance).sum() * scale


def _unrolled_loss(jax, scale, parameters, x, importance):
    weight, bias = parameters
    m, n = weight.shape
    hidden = [sum(weight[k, j] * x[j] for j in range(n)) for k in range(m)]
    out = [jax.nn.relu(sum(weight[k, j] * hidden[k] for k in range(m)) + bias[j]) for j in range(n)]
    return sum(importance[j] * ((x[j] - out[j]) ** 2).sum() for j in range(n)) * scale


_DRAWS = {"uniform": _uniform_draw, "gaps": _gap_draw}
LOSSES = {
    "matmul": _matmul_loss,
    "matmul_samples_first": _matmul_samples_first_loss,
    "unrolled": _unrolled_loss,
}
