"""Sparse training by dense means: a layer that multiplies densely, and an oracle that masks dense weights."""

from __future__ import annotations

import copy
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


# --- any model: its sparse layers replaced by dense ones ----------------------------------------------------


class TwinLinear(nn.Module):
    """What a `SparseLinear` computes, by dense weights under the same name."""

    def __init__(self, layer: tk.SparseLinear) -> None:
        super().__init__()
        self.values = nn.Parameter(layer.to_dense().detach())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.relu = layer.activation == "relu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.values, self.bias
        if len(weight) == 1:
            y = nn.functional.linear(x, weight[0], None if bias is None else bias)
        else:
            y = x @ weight.mT if bias is None else x @ weight.mT + bias[:, None]
        return y.relu() if self.relu else y


class TwinAutoencoder(nn.Module):
    """The same of a `SparseTiedAutoencoder`: g(Wᵀ f(W x) + b), for x `[n_models, batch, n_features]`."""

    def __init__(self, layer: tk.SparseTiedAutoencoder) -> None:
        super().__init__()
        self.values = nn.Parameter(layer.to_dense().detach())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.hidden_relu = layer.hidden_activation == "relu"
        self.output_relu = layer.output_activation == "relu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x @ self.values.mT
        y = (hidden.relu() if self.hidden_relu else hidden) @ self.values
        y = y if self.bias is None else y + self.bias[:, None]
        return y.relu() if self.output_relu else y


def sparse_layers(model: nn.Module) -> dict[str, Any]:
    """The real sparse layers of a model, by name."""
    kinds = (tk.SparseLinear, tk.SparseTiedAutoencoder)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of a model with dense layers in place of its sparse ones; parameters keep their names."""
    twin = copy.deepcopy(model)
    for name, layer in sparse_layers(model).items():
        made = TwinLinear(layer) if isinstance(layer, tk.SparseLinear) else TwinAutoencoder(layer)
        if not name:
            return made
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, made)
    return twin


def autoencoder(
    n_models: int = 2, density: float = 0.4, seed: int = 0, capacity: int = 30, **options: Any
) -> tk.SparseTiedAutoencoder:
    """A `SparseTiedAutoencoder` with slack, and a bias that is not 0."""
    topology = Topology.random(
        9, 6, density, n_models=n_models, capacity=capacity, seed=range(seed, seed + n_models)
    )
    options = {"topology": topology, "n_models": n_models, "dtype": torch.float64, "seed": seed} | options
    model = tk.SparseTiedAutoencoder(9, 6, **options)
    with torch.no_grad():
        if model.bias is not None:
            model.bias += 0.05
    return model


class Mixed(nn.Module):
    """Dense, sparse, normalised, sparse and dense again; then a sparse autoencoder. Three models stacked."""

    def __init__(self, n_models: int = 3, activation: str = "relu", seed: int = 0, room: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        seeds = range(seed, seed + n_models)
        options: dict[str, Any] = {"n_models": n_models, "dtype": torch.float64, "seed": seeds}
        self.first = nn.Linear(9, 11, dtype=torch.float64)
        self.second = tk.SparseLinear(
            11, 12, density=0.4, capacity=80 + room, activation=activation, **options
        )
        self.norm = nn.LayerNorm(12, dtype=torch.float64)
        self.third = tk.SparseLinear(12, 9, density=0.3, capacity=60 + room, bias=False, **options)
        self.last = autoencoder(n_models, 0.5, seed, 30 + room)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.second(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.third(h)))


class MaskedTwin:
    """The oracle for any model: its dense twin, trained with the same optimiser and masked gradients."""

    def __init__(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> None:
        self.model = dense_twin(model)
        self.optimizer = make_optimizer(self.model)
        self.layers = {name: self.model.get_submodule(name) for name in sparse_layers(model)}
        self.take_masks(model)

    def step(self, loss_of: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
        """One update, by the loss that the function makes of the twin."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model)
        loss.backward()
        for name, layer in self.layers.items():
            layer.values.grad *= self.masks[name]
        self.optimizer.step()
        self.mask_all()
        return loss.detach()

    def mask_all(self) -> None:
        """Weights and all of the optimiser's state are 0 where there is no connection."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.values *= self.masks[name]
                for state in self.optimizer.state[layer.values].values():
                    if isinstance(state, torch.Tensor) and state.shape == layer.values.shape:
                        state *= self.masks[name]

    def take_masks(self, model: nn.Module) -> None:
        """The connections of `model`; what has none, or did not have one before, is 0."""
        new = {name: layer.topology.to_mask() for name, layer in sparse_layers(model).items()}
        before = getattr(self, "masks", new)
        self.masks = {name: mask & before[name] for name, mask in new.items()}
        self.mask_all()
        self.masks = new

    def assert_equal(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """All parameters and all of the optimisers' states agree, in double precision; slack stays 0."""
        values = {id(layer.values): layer for layer in sparse_layers(model).values()}
        theirs = dict(self.model.named_parameters())
        for name, parameter in model.named_parameters():
            layer = values.get(id(parameter))

            def dense(tensor: torch.Tensor, layer: Any = layer, parameter: Any = parameter) -> torch.Tensor:
                whole = layer is not None and tensor.shape == parameter.shape
                return layer.topology.to_dense(tensor) if whole else tensor

            twin = theirs[name]
            if layer is not None:
                slack = ~layer.topology.occupied()
                assert not (parameter[slack] != 0).any() and not (parameter.grad[slack] != 0).any()
            assert torch.allclose(dense(parameter.detach()), twin, rtol=1e-9, atol=1e-12), name
            ours, other = optimizer.state[parameter], self.optimizer.state[twin]
            assert ours.keys() == other.keys()
            for key, state in ours.items():
                if isinstance(state, torch.Tensor):
                    assert torch.allclose(dense(state), other[key], rtol=1e-8, atol=1e-12), (name, key)


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
