"""The ensemble in JAX: vmap over models, scan over steps, Adam written out, models split over all devices.

On a CPU every core is a device: XLA's CPU backend hardly uses a second core inside a scan of small
operations, so `shard_map` over as many host devices as cores is about twice as fast as one device.
Threefry, the default generator, is vectorised; `rbg` and `unsafe_rbg` run a scalar loop on a CPU and were
1.5 to 3 times slower in all. On a GPU, one device; rbg is an option there. Options are given before JAX is
imported, which is why a contender has a process of its own.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.problem import BETA1, BETA2, EPSILON, LEARNING_RATE, Problem


class JaxTrainer:
    """jit(shard_map(scan(vmap(step)))), with donated state.

    `product="matmul"` leaves the products to XLA's dots, on batches `[features, batch]`, or `[batch,
    features]` with `"matmul_samples_first"`; `"unrolled"` writes them out term by term, which XLA fuses
    into few loops (only for very small n·m). `draw` "gaps" is for one probability of all models.
    """

    chunk = 20

    def __init__(
        self, problem: Problem, product: str, draw: str = "uniform", generator: str = "threefry2x32"
    ) -> None:
        jax = _import_jax(problem.device, problem.threads)
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        workload = problem.workload
        self._jax, self._samples_first = jax, product == "matmul_samples_first"
        n, batch = workload.n_features, workload.batch_size
        shape = (batch, n) if self._samples_first else (n, batch)
        there = jax.devices("gpu")[:1] if problem.device == "cuda" else jax.devices("cpu")
        devices = math.gcd(problem.n_models, len(there))
        mesh = jax.make_mesh((devices,), ("models",), devices=there[:devices])
        split = PartitionSpec("models")
        loss = partial(LOSSES[product], jax, 1.0 / (n * batch))
        same = problem.probability.size == 1
        draw_batch = partial(_DRAWS[draw], jax, shape=shape)
        if same:  # a constant of the program, as an expert would have it
            draw_batch = partial(draw_batch, probability=problem.probability.item())

        def adam(parameter, m, v, g, t):
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
            denominator = jnp.sqrt(v / (1 - BETA2**t)) + EPSILON
            return parameter - LEARNING_RATE * (m / (1 - BETA1**t)) / denominator, m, v

        def update(parameters, moments, x, importance):
            """One step of one model."""
            *moments, t = moments
            t = t + 1.0
            value, gradient = jax.value_and_grad(loss)(parameters, x, importance)
            moved = [adam(p, *mv, g, t) for p, mv, g in zip(parameters, moments, gradient, strict=True)]
            return tuple(a for a, _, _ in moved), (*((m, v) for _, m, v in moved), t), value

        def draw(key, n_models, probability):
            given = {} if same else {"probability": probability[:, None, None]}
            return draw_batch(key, n_models=n_models, **given)

        def one_step(carry, importance, probability):
            parameters, moments, keys, total = carry
            key, batch_key = jax.random.split(keys[0])
            x = draw(batch_key, importance.shape[0], probability)
            parameters, moments, value = jax.vmap(update)(parameters, moments, x, importance)
            return parameters, moments, key[None], total + value

        def run_chunk(carry, importance, probability):
            def body(c, _):
                return one_step(c, importance, probability), None

            return jax.lax.scan(body, carry, None, length=self.chunk)[0]

        sharded = jax.shard_map(
            run_chunk, mesh=mesh, in_specs=(split, split, split), out_specs=split, check_vma=False
        )
        self._run_chunk = jax.jit(sharded, donate_argnums=0)
        self._update = jax.jit(jax.vmap(update))
        self._draw_batch = jax.jit(partial(draw, n_models=problem.n_models))
        self._draw_key = jax.random.key(problem.seed + 1, impl=generator)
        models = problem.n_models
        parameters = (jnp.asarray(problem.weight), jnp.zeros((models, n)))
        carry = (
            parameters,
            (*((jnp.zeros_like(p), jnp.zeros_like(p)) for p in parameters), jnp.zeros(models)),
            jax.random.split(jax.random.key(problem.seed, impl=generator), devices),
            jnp.zeros(models),
        )
        sharding = NamedSharding(mesh, split)
        self._carry: Any = jax.device_put(carry, sharding)
        self._importance = jax.device_put(jnp.asarray(problem.importance), sharding)
        probability = np.broadcast_to(problem.probability[:, 0], models).astype(np.float32)
        self._probability = jax.device_put(jnp.asarray(probability), sharding)
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps // self.chunk):
            self._carry = self._run_chunk(self._carry, self._importance, self._probability)
        self._jax.block_until_ready(self._carry)
        self._steps += steps

    def mean_loss(self) -> np.ndarray:
        *others, total = self._carry
        mean = np.asarray(total) / self._steps
        self._carry, self._steps = (*others, self._jax.device_put(np.zeros_like(mean), total.sharding)), 0
        return mean

    def draw(self) -> np.ndarray:
        self._draw_key, key = self._jax.random.split(self._draw_key)
        x = np.asarray(self._draw_batch(key, probability=self._probability))
        return x if self._samples_first else x.transpose(0, 2, 1)

    def update(self, x: np.ndarray) -> None:
        parameters, moments, keys, total = self._carry
        x = self._jax.device_put(x if self._samples_first else x.transpose(0, 2, 1), total.sharding)
        parameters, moments, value = self._update(parameters, moments, x, self._importance)
        self._carry, self._steps = (parameters, moments, keys, total + value), self._steps + 1

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._carry[0]
        return np.asarray(weight), np.asarray(bias)


def _import_jax(device: str, devices: int) -> Any:
    if device == "cuda":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        return jax
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
