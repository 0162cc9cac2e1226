"""The dense gradient in tiles of rows: together they are the whole, and growth chooses as from the whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import toykern as tk
from toykern import sparse
from toykern.nn import sparse_weights
from toykern.sparse.grow import best_of_dense, best_of_tiles


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def captured(n_models=1, dtype=torch.float64, passes=1, relu=False, shared=False, shape=(7, 11)):
    """A layer that has seen some passes, and the whole gradient of them in float64."""
    generator = torch.Generator().manual_seed(n_models)
    layer = tk.SparseLinear(
        *shape,
        0.4,
        n_models=n_models,
        seed=0,
        dtype=dtype,
        activation="relu" if relu else "none",
        capacity=50,
    )
    layer.capture_gradient(True)
    total = torch.zeros(n_models, shape[1], shape[0], dtype=torch.float64)
    for _ in range(passes):
        x = torch.randn(1 if shared else n_models, 5, shape[0], generator=generator).to(dtype)
        dy = torch.randn(n_models, 5, shape[1], generator=generator).to(dtype)
        given = x[0] if n_models == 1 or shared else x
        y = layer(given)
        y.backward(dy[0] if n_models == 1 else dy)
        masked = torch.where(y.reshape(dy.shape) == 0, 0, dy) if relu else dy
        total += masked.double().mT @ x.double()
    return layer, total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bytes_at_once", [1, 200, 7 * 8 * 11, 2000, 1 << 20])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_models": 3}, {"n_models": 5, "shared": True, "passes": 3}, {"passes": 2, "relu": True}],
    ids=str,
)
def test_tiles_are_the_gradient(monkeypatch, bytes_at_once, options, dtype):
    monkeypatch.setattr(sparse_weights, "GRADIENT_TILE_BYTES", bytes_at_once)
    layer, expected = captured(dtype=dtype, **options)
    rows, row = expected.shape[0] * expected.shape[1], 0
    whole = layer.dense_gradient()
    assert whole.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-5)
    for first, tile in layer.gradient_tiles():
        assert first == row and tile.shape[1] == layer.in_features
        one_row = layer.in_features * tile.element_size()
        assert tile.numel() * tile.element_size() <= max(bytes_at_once, one_row)
        assert torch.equal(tile, whole.reshape(rows, -1)[row : row + len(tile)])
        row += len(tile)
    assert row == rows


def test_an_autoencoder_in_tiles(monkeypatch):
    monkeypatch.setattr(sparse_weights, "GRADIENT_TILE_BYTES", 100)
    model = tk.SparseTiedAutoencoder(6, 4, density=0.5, n_models=3, seed=0)
    model.capture_gradient(True)
    x = torch.rand(3, 8, 6)
    model(x).square().sum().backward()
    dense = model.to_dense().detach().requires_grad_()
    torch.relu(x @ dense.mT @ dense + model.bias.detach().reshape(3, 1, 6)).square().sum().backward()
    tiles = torch.cat([tile.clone() for _, tile in model.gradient_tiles()])
    torch.testing.assert_close(tiles.reshape(dense.shape), dense.grad, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class WholeGradient(sparse.DenseGradient):
    """The gradient held as a whole, as before it was formed in tiles."""

    def observe(self, layer, first, number):
        super().observe(layer, first, number)


TIMING = {"interval": 2, "end": 40}
RECIPES = {
    "rigl": lambda grow: sparse.RigL(grow=grow, **TIMING),
    "global": lambda grow: sparse.RigL(grow=grow, scope="global", **TIMING),
    "fan_in": lambda grow: sparse.RigL(grow=grow, minimum_fan_in=1, drop_fraction=0.9, **TIMING),
    "everything": lambda grow: sparse.RigL(
        grow=grow, drop_fraction=1.0, schedule="constant", grown_std=0.1, **TIMING
    ),
    "constant_fan_in": lambda grow: sparse.SRigL(grow=grow, ablation=0.0, **TIMING),
    "ablation": lambda grow: sparse.SRigL(grow=grow, **TIMING),
    "accumulate": lambda grow: sparse.RigL(grow=grow, accumulate=2, **TIMING),
    "redistribution": lambda grow: sparse.RigL(grow=grow, redistribution="score", **TIMING),
}
STREAMED = {"rigl", "global", "fan_in", "everything", "constant_fan_in"}


def trained(make, grow, dtype, n_models):
    layers = [
        tk.SparseLinear(a, b, fan_in=5, n_models=n_models, seed=i, dtype=dtype, capacity=5 * b + 40)
        for i, (a, b) in enumerate([(13, 40), (40, 9)])
    ]
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    topology = make(grow).attach(network, optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        x = torch.randn(n_models, 16, 13, generator=generator).to(dtype)
        optimizer.zero_grad()
        network(x if n_models > 1 else x[0]).square().mean().backward()
        optimizer.step()
        topology.step()
    found = [(layer.row_start, layer.column, layer.values.detach()) for layer in layers]
    return found, topology


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_growth_from_tiles_is_growth_from_the_whole(monkeypatch, recipe, dtype, n_models):
    monkeypatch.setattr(sparse_weights, "GRADIENT_TILE_BYTES", 500)  # a few rows, in both layers
    ours, topology = trained(RECIPES[recipe], sparse.DenseGradient(), dtype, n_models)
    expected, whole = trained(RECIPES[recipe], WholeGradient(), dtype, n_models)
    for layer, other in zip(ours, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, other, strict=True))
    assert topology.updates == 6 and sum(update.grown for update in topology.history) > 0
    assert all("gradient" in layer.memory for layer in whole.attached_layers)
    for layer in topology.attached_layers:
        assert ("gradient" not in layer.memory) == (recipe in STREAMED)


def test_large_groups_over_many_tiles(monkeypatch):
    """Above the sizes at which samples and threads come in."""
    torch.set_num_threads(2)
    monkeypatch.setattr(sparse_weights, "GRADIENT_TILE_BYTES", 1 << 19)
    layer = tk.SparseLinear(300, 2000, 0.1, seed=0)
    attached = (
        sparse.RigL(end=9).attach(layer, torch.optim.SGD(layer.parameters(), lr=0.1)).attached_layers[0]
    )
    layer.capture_gradient(True)
    layer(torch.randn(8, 300)).square().sum().backward()
    taken = layer.topology.keys()
    for count in (0, 1, 5000, 60_000, 540_000, 600_000):
        counts = torch.tensor([count])
        whole = attached.dense_gradient().abs()
        expected = best_of_dense(attached, whole.clone(), taken, counts, False, 1)
        key, score = best_of_tiles(attached, taken, counts, False, 1)
        assert torch.equal(key, expected[0]) and torch.equal(score, whole[key])
        assert len(key) == min(count, 540_000)
    counts = torch.randint(0, 300, (2000,))
    expected = best_of_dense(attached, attached.dense_gradient().abs(), taken, counts, True, 1)
    key, score = best_of_tiles(attached, taken, counts, True, 1)
    assert torch.equal(key, expected[0]) and torch.equal(score, expected[1])


def test_the_whole_is_never_formed(monkeypatch):
    def refuse(*_):
        raise AssertionError("the dense gradient was asked for")

    monkeypatch.setattr(tk.SparseLinear, "dense_gradient", refuse)
    _, topology = trained(RECIPES["rigl"], sparse.DenseGradient(), torch.float32, 1)
    assert topology.updates == 6
    with pytest.raises(AssertionError, match="asked for"):
        trained(RECIPES["accumulate"], sparse.DenseGradient(), torch.float32, 1)


def test_a_gradient_of_an_older_state_is_not_looked_at():
    """Checkpoints may hold the dense gradient of their last update."""
    layer = tk.SparseLinear(10, 8, 0.3, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    topology = sparse.RigL(interval=1, end=10, drop_fraction=0.5).attach(layer, optimizer)
    stale = torch.zeros(80)
    stale[:40] = 1e6
    topology.attached_layers[0].memory["gradient"] = stale
    layer(torch.randn(4, 10)).square().sum().backward()
    expected = layer.dense_gradient().abs().reshape(-1)
    before = layer.topology
    optimizer.step()
    topology.step()
    grown = layer.topology.keys()[~torch.isin(layer.topology.keys(), before.keys())]
    free = ~before.to_mask().reshape(-1)
    assert len(grown) and expected[grown].min() >= expected[free].sort().values[-24:].min()
