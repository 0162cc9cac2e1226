"""The ensemble as people commonly write it: the notebook under torch.compile, and JAX's jit(vmap(scan)).

With `eager.NotebookTrainer` these are the plain peers: library defaults, a gate and a magnitude drawn for
every entry. The tuned set-ups beside them (batch-last layouts, one number for gate and magnitude, jumps over
inactive entries, a process or device per core) are what an expert could make of the same libraries.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from bench.peers.eager import NotebookTrainer
from bench.peers.problem import LEARNING_RATE, Problem


class PlainCompiledTrainer(NotebookTrainer):
    """The notebook's loop with its forward pass and loss under `torch.compile`, and the foreach Adam."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=LEARNING_RATE, foreach=True)
        self._compiled_loss = torch.compile(_loss, dynamic=False)

    def _update(self, x: torch.Tensor) -> None:
        loss = self._compiled_loss(self._weight, self._bias, self._importance, x)
        self._optimizer.zero_grad()
        loss.sum().backward()
        self._optimizer.step()
        self._loss += loss.detach()
        self._steps += 1


def _loss(
    weight: torch.Tensor, bias: torch.Tensor, importance: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    hidden = torch.einsum("bif,ihf->bih", x, weight)
    out = torch.relu(torch.einsum("bih,ihf->bif", hidden, weight) + bias)
    return (importance * (x - out) ** 2).mean((0, 2))


class PlainJaxTrainer:
    """jit(vmap(scan)): the training of one model, over a chunk of steps, mapped over the models."""

    chunk = 20

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        jax.config.update("jax_platforms", "cpu")
        workload = problem.workload
        shape, probability = (workload.batch_size, workload.n_features), problem.probability.item()
        optimizer = optax.adam(LEARNING_RATE)

        def draw(key: Any) -> Any:
            gate_key, magnitude_key = jax.random.split(key)
            gate = jax.random.bernoulli(gate_key, probability, shape)
            return jnp.where(gate, jax.random.uniform(magnitude_key, shape), 0.0)

        def loss(parameters: Any, x: Any, importance: Any) -> Any:
            weight, bias = parameters
            out = jax.nn.relu(x @ weight.T @ weight + bias)
            return (importance * (x - out) ** 2).mean()

        def update(parameters: Any, moments: Any, x: Any, importance: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(parameters, x, importance)
            change, moments = optimizer.update(gradient, moments, parameters)
            return optax.apply_updates(parameters, change), moments, value

        def one_step(importance: Any, carry: Any, _: Any) -> Any:
            parameters, moments, key, total = carry
            key, batch_key = jax.random.split(key)
            parameters, moments, value = update(parameters, moments, draw(batch_key), importance)
            return (parameters, moments, key, total + value), None

        def train(carry: Any, importance: Any) -> Any:
            return jax.lax.scan(partial(one_step, importance), carry, None, length=self.chunk)[0]

        models = problem.n_models
        parameters = (jnp.asarray(problem.weight), jnp.zeros((models, workload.n_features)))
        keys = jax.random.split(jax.random.key(problem.seed), models)
        self._jax = jax
        self._train = jax.jit(jax.vmap(train), donate_argnums=0)
        self._update = jax.jit(jax.vmap(update))
        self._draw = jax.jit(jax.vmap(draw))
        self._draw_key = jax.random.key(problem.seed + 1)
        self._importance = jnp.asarray(problem.importance)
        self._carry: Any = (parameters, jax.vmap(optimizer.init)(parameters), keys, jnp.zeros(models))
        self._steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps // self.chunk):
            self._carry = self._train(self._carry, self._importance)
        self._jax.block_until_ready(self._carry)
        self._steps += steps

    def mean_loss(self) -> np.ndarray:
        *others, total = self._carry
        mean = np.asarray(total) / self._steps
        self._carry, self._steps = (*others, self._jax.numpy.zeros_like(total)), 0
        return mean

    def draw(self) -> np.ndarray:
        self._draw_key, key = self._jax.random.split(self._draw_key)
        return np.asarray(self._draw(self._jax.random.split(key, self._importance.shape[0])))

    def update(self, x: np.ndarray) -> None:
        parameters, moments, keys, total = self._carry
        parameters, moments, value = self._update(parameters, moments, x, self._importance)
        self._carry, self._steps = (parameters, moments, keys, total + value), self._steps + 1

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._carry[0]
        return np.asarray(weight), np.asarray(bias)
