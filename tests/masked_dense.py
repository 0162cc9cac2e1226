"""Sparse training by dense means: a layer that multiplies densely, and an oracle that masks dense weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import toykern as tk
from toykern.sparse import Topology, Update


class MaskedLayer(nn.Module):
    """The smallest thing with the interface of a sparse layer: x `[n_models, batch, in]` -> Wx + b."""

    def __init__(self, topology: Topology, seed: int = 0, bias: bool = True, dtype=torch.float64) -> None:
        super().__init__()
        self.topology = topology
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(len(topology.column), generator=generator, dtype=dtype)
        values *= topology.occupied() / topology.in_features**0.5
        self.values = nn.Parameter(values)
        shape = (topology.n_models, 1, topology.out_features)
        self.bias = nn.Parameter(torch.zeros(shape, dtype=dtype)) if bias else None
        self.capturing = False
        self._input: torch.Tensor | None = None
        self._output_gradient: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.topology.to_dense(self.values).mT
        if self.capturing:
            self._input = x.detach()
            y.register_hook(self._keep)
        return y if self.bias is None else y + self.bias

    def _keep(self, gradient: torch.Tensor) -> None:
        self._output_gradient = gradient.detach()

    def set_topology(self, topology: Topology, old_slot: torch.Tensor, grown: Any = 0.0) -> None:
        new, source = old_slot < 0, old_slot.clamp(min=0)
        with torch.no_grad():
            start = torch.as_tensor(grown, dtype=self.values.dtype) * topology.occupied()
            self.values.copy_(torch.where(new, start, self.values[source]))
            if self.values.grad is not None:
                self.values.grad.copy_(torch.where(new, 0, self.values.grad[source]))
        self.topology = topology

    def capture_gradient(self, enabled: bool) -> None:
        self.capturing = enabled
        if not enabled:
            self._input = self._output_gradient = None

    def dense_gradient(self) -> torch.Tensor:
        if self._input is None or self._output_gradient is None:
            raise RuntimeError("no backward pass with captured gradients")
        return self._output_gradient.mT @ self._input

    def gradient_at(self, model: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return self.dense_gradient()[model, row, column]


def sparse_layer(topology: Topology, seed: int = 0, dtype=torch.float64) -> tk.SparseLinear:
    """The real one."""
    return tk.SparseLinear(
        topology.in_features,
        topology.out_features,
        topology=topology,
        n_models=topology.n_models,
        seed=seed,
        dtype=dtype,
    )


class Network(nn.Module):
    """Sparse layers with tanh between them."""

    def __init__(
        self, topologies: Sequence[Topology], seed: int = 0, dtype=torch.float64, make: Any = MaskedLayer
    ) -> None:
        super().__init__()
        layers = [make(topology, seed + i, dtype=dtype) for i, topology in enumerate(topologies)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


def network(
    *widths: int, density: Any = 0.4, n_models: int = 1, capacity: float = 1.0, seed: int = 0, **options: Any
) -> Network:
    """Random layers of the given widths; `capacity` as a multiple of the connections."""
    topologies = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        topology = Topology.random(a, b, density, n_models=n_models, layer=i, seed=seed)
        room = min(a * b, int(capacity * topology.capacity))
        topologies.append(Topology.from_mask(topology.to_mask(), capacity=room))
    return Network(topologies, seed, **options)


def batch(step: int, width: int, n_models: int = 1, size: int = 16, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(n_models, size, width, generator=generator, dtype=dtype)


def loss_of(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A target that the network can go towards: the inputs in reverse, cut or repeated to the width."""
    width = output.shape[-1]
    target = x.flip(-1).repeat(1, 1, -(-width // x.shape[-1]))[..., :width].sin()
    return (output - target).square().mean(dim=(1, 2)).sum()


class MaskedDense:
    """The oracle: dense weights and masks, a torch optimiser on the dense weights, gradients masked.

    It takes over which connections exist from `masks`; where one is new, its weight and all of its optimiser
    state are 0.
    """

    def __init__(self, model: Network, make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.weights = [
            nn.Parameter(layer.topology.to_dense(layer.values.detach())) for layer in model.layers
        ]
        self.biases = [
            nn.Parameter(layer.bias.detach().reshape(weight.shape[0], 1, -1).clone())
            for layer, weight in zip(model.layers, self.weights, strict=True)
        ]
        self.masks = [layer.topology.to_mask() for layer in model.layers]
        self.optimizer = make_optimizer([*self.weights, *self.biases])
        self.dense_gradients: list[torch.Tensor] = []

    def step(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = h @ weight.mT + bias
            h = torch.tanh(h) if i < len(self.weights) - 1 else h
        loss = loss_of(h, x)
        self.optimizer.zero_grad()
        loss.backward()
        self.dense_gradients = [weight.grad.clone() for weight in self.weights]
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.grad *= mask
        self.optimizer.step()
        return loss.detach()

    def set_masks(self, masks: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, old, new in zip(self.weights, self.masks, masks, strict=True):
                stays = old & new
                weight *= stays
                for state in self.optimizer.state[weight].values():
                    if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                        state *= stays
        self.masks = list(masks)


def train(
    model: Network, optimizer: torch.optim.Optimizer, topology: Any, steps: range, size: int = 16
) -> list[Update]:
    """Steps of `model` on the batches of those numbers; the updates that happened."""
    first = model.layers[0].topology
    updates = []
    for step in steps:
        x = batch(step, first.in_features, first.n_models, size, model.layers[0].values.dtype)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        update = topology.step()
        if update is not None:
            updates.append(update)
    return updates
