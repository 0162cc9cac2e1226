"""GSE's guided candidates (GraBo, GraEst) against plain NumPy, one draw after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import sparse
from toykern.sparse.draws import words64
from toykern.sparse.guided import guided_places, weights


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def attached(n_models=2, passes=2, group=1, dtype=torch.float64, distribution="grabo"):
    """A layer that has seen some passes under GSE, with those passes."""
    options = {"fan_in": 3} if group > 1 else {"density": 0.3}
    layer = tk.SparseLinear(10, 12, n_models=n_models, seed=1, dtype=dtype, group=group, **options)
    recipe = sparse.GSE(interval=1, end=9, grow=sparse.SampledGradient(distribution=distribution), seed=5)
    topology = recipe.attach(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for batch in range(4, 4 + passes):
        x = torch.randn(n_models, batch, 10, generator=generator).to(dtype) * torch.arange(10)
        dy = torch.randn(n_models, batch, 12, generator=generator).to(dtype) * torch.arange(12)
        given = (x, dy) if n_models > 1 else (x[0], dy[0])
        layer(given[0]).backward(given[1])
        seen.append((x.double().numpy(), dy.double().numpy()))
    return layer, topology, seen


def plain_weights(seen, model, distribution, group=1):
    f, g, sample = np.zeros(12), np.zeros(10), 0
    words = words64(np.array([5]), np.array([3]), 100, purpose="candidates", step=1)[0]
    for x, dy in seen:
        for b in range(x.shape[1]):
            if distribution == "grabo":
                f += np.abs(dy[model, b])
                g += np.abs(x[model, b])
            else:
                sign = -1 if int(words[sample]) >= 2**63 else 1
                f += sign * dy[model, b]
                g += sign * x[model, b]
            sample += 1
    return np.abs(f).reshape(-1, group).sum(axis=1), np.abs(g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distribution", ["grabo", "graest"])
@pytest.mark.parametrize(("n_models", "group"), [(1, 1), (3, 1), (2, 4)])
def test_candidates_are_those_of_plain_numpy(n_models, group, distribution, dtype):
    layer, topology, seen = attached(n_models, group=group, dtype=dtype, distribution=distribution)
    shown = topology.attached_layers[0]
    f, g = weights(shown, distribution, 1)
    expected, connected = [], set(shown.topology.keys().tolist())
    for model in range(n_models):
        of_outputs, of_inputs = plain_weights(seen, model, distribution, group)
        np.testing.assert_allclose(f[model], of_outputs, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(g[model], of_inputs, rtol=1e-12, atol=1e-12)
        streams = [words64(np.array([5]), np.array([s]), 40, purpose="candidates", step=1)[0] for s in (1, 2)]
        for words in zip(*streams, strict=True):
            place = []
            for word, weight in zip(words, (f[model], g[model]), strict=True):
                left, index = (int(word) >> 11) * 2.0**-53 * np.cumsum(weight)[-1], 0
                while np.cumsum(weight)[index] <= left:
                    index += 1
                place.append(index)
            rows = shown.topology.out_features
            expected.append((model * rows + place[0]) * 10 + place[1])
    found = guided_places(shown, distribution, torch.full((n_models,), 40), 1)
    assert found.tolist() == sorted(set(expected) - connected) and len(found) > 0


@pytest.mark.parametrize("distribution", ["grabo", "graest"])
def test_an_update_grows_the_best_of_them(distribution):
    layer, topology, _ = attached(1, passes=1, distribution=distribution)
    gradient, before = layer.dense_gradient().abs().reshape(-1), layer.topology
    update = topology.step()
    key = topology.attached_layers[0].memory["candidates"]
    grown = layer.topology.keys()[~torch.isin(layer.topology.keys(), before.keys())]
    best = key[torch.argsort(gradient[key], descending=True, stable=True)[: update.grown]]
    assert update.grown > 0 and sorted(grown.tolist()) == sorted(best.tolist())


def test_bounds_and_averages():
    """GraBo's product is at least the gradient; GraEst's signed product is the gradient on average."""
    layer, topology, seen = attached(1, passes=1)
    f, g = weights(topology.attached_layers[0], "grabo", 1)
    gradient = layer.dense_gradient()[0].numpy()
    assert (np.outer(f[0], g[0]) >= np.abs(gradient) - 1e-9).all()
    (x, dy), total, size = (seen[0][0][0], seen[0][1][0]), 0.0, 4000
    shares = np.zeros_like(gradient)
    for number in range(size):
        words = words64(np.array([5]), np.array([3]), len(x), purpose="candidates", step=number)[0]
        sign = np.where(words >> np.uint64(63), -1.0, 1.0)
        estimate = np.outer(sign @ dy, sign @ x)
        total = total + estimate / size
        shares += estimate**2 / size
    assert (np.abs(total - gradient) <= 5 * np.sqrt(shares / size) + 1e-12).all()


def test_dead_layers_and_what_cannot_be():
    layer = tk.SparseLinear(10, 12, 0.3, seed=1)
    grow = sparse.SampledGradient(distribution="graest")
    topology = sparse.GSE(interval=1, end=9, grow=grow).attach(
        layer, torch.optim.SGD(layer.parameters(), lr=0.1)
    )
    with pytest.raises(RuntimeError, match="saw no backward pass"):
        topology.step()
    (layer(torch.zeros(4, 10)) * 0).sum().backward()
    assert topology.step().grown > 0  # all places are equally likely then
    layer.zero_grad()
    (layer(torch.zeros(4, 10)) * torch.tensor(float("nan"))).sum().backward()
    with pytest.warns(RuntimeWarning, match="the gradient is not finite at step 2"):
        assert topology.step().grown == 0
    with pytest.raises(ValueError, match="distribution must be one of"):
        sparse.SampledGradient(distribution="gradient")
    model = tk.SparseTiedAutoencoder(6, 4, density=0.5, seed=0)
    with pytest.raises(ValueError, match="fit does not keep"):
        tk.fit(model, tk.SparseFeatures(6, 0.2), 10, 8, topology=sparse.GSE(end=9, grow=grow), progress=False)
