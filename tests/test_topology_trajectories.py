"""Whole trajectories through many updates equal a masked-dense reference; the choices equal plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masked_dense import MaskedDense, MaskedLayer, Network, batch, loss_of, network, sparse_layer

from toykern import sparse

OPTIMIZERS = {
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.01),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are tiny; the suite restores the number of threads."""
    torch.set_num_threads(1)


STEPS = 60
TIMING = {"interval": 5, "end": 50}
RECIPES = {
    "set": sparse.SET(interval=5),
    "rigl": sparse.RigL(**TIMING),
    "rigl_accumulated": sparse.RigL(**TIMING, accumulate=3, schedule="linear", minimum_fan_in=1),
    "rigl_global": sparse.RigL(**TIMING, scope="global"),
    "srigl": sparse.SRigL(**TIMING, ablation=0.5, ablate_last=True),
    "snfs": sparse.SNFS(**TIMING),
    "gse": sparse.GSE(**TIMING),
    "gse_global": sparse.GSE(**TIMING, scope="global"),
    "sensitivity": sparse.PruneAndGrow(prune=sparse.Sensitivity(), grow=sparse.RandomGrowth(), **TIMING),
    "random": sparse.PruneAndGrow(
        prune=sparse.RandomPrune(), grow=sparse.RandomGrowth(), scope="global", **TIMING
    ),
    "gradual": sparse.GradualMagnitude(final_density=0.1, **TIMING),
    "gradual_global": sparse.GradualMagnitude(final_density=0.1, scope="global", **TIMING),
}


layers = pytest.mark.parametrize("make", [MaskedLayer, sparse_layer], ids=["stand_in", "layer"])


def follow(recipe, make_optimizer, n_models, steps=STEPS, **options):
    """Train with the recipe and the masked-dense reference beside it; checks them against each other."""
    model = network(9, 12, 7, density=0.4, n_models=n_models, capacity=1.5, **options)
    optimizer = make_optimizer(model.parameters())
    reference = MaskedDense(model, make_optimizer)
    topology = recipe.attach(model, optimizer)
    for step in range(steps):
        x = batch(step, 9, n_models)
        optimizer.zero_grad()
        loss = loss_of(model(x), x)
        loss.backward()
        optimizer.step()
        expected = reference.step(x)
        assert torch.allclose(loss, expected, rtol=1e-10, atol=0)
        before = [layer.topology for layer in model.layers]
        update = topology.step()
        if update is not None:
            reference.set_masks([layer.topology.to_mask() for layer in model.layers])
        else:
            assert all(a is b.topology for a, b in zip(before, model.layers, strict=True))
        for layer, weight, bias in zip(model.layers, reference.weights, reference.biases, strict=True):
            assert torch.allclose(layer.topology.to_dense(layer.values), weight, rtol=1e-9, atol=1e-12)
            assert torch.allclose(layer.bias.reshape(bias.shape), bias, rtol=1e-9, atol=1e-12)
            for key, state in optimizer.state[layer.values].items():
                if isinstance(state, torch.Tensor) and state.shape == layer.values.shape:
                    dense = layer.topology.to_dense(state)
                    assert torch.allclose(
                        dense, reference.optimizer.state[weight][key], rtol=1e-8, atol=1e-12
                    )
                    assert not (state[~layer.topology.occupied()] != 0).any()
    return topology


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@layers
def test_every_optimizer_follows(optimizer, make):
    topology = follow(RECIPES["rigl"], OPTIMIZERS[optimizer], n_models=2, make=make)
    assert topology.updates == 10 and sum(update.grown for update in topology.history) > 50


@pytest.mark.parametrize("recipe", RECIPES)
@layers
def test_every_recipe(recipe, make):
    topology = follow(RECIPES[recipe], OPTIMIZERS["adamw"], n_models=3, make=make)
    assert len(topology.history) == topology.updates >= 9
    assert sum(update.dropped for update in topology.history) > 30
    counts = [
        torch.stack([part.connections for part in update.layers.values()]) for update in topology.history
    ]
    if recipe.startswith("gradual"):
        assert all(bool((b <= a).all()) for a, b in zip(counts, counts[1:], strict=False))
    elif "global" in recipe or recipe in ("snfs", "random"):
        assert all(torch.equal(count.sum(dim=0), counts[0].sum(dim=0)) for count in counts)
        assert any(
            not torch.equal(count, counts[0]) for count in counts
        )  # connections do move between layers
    elif recipe != "srigl":
        assert all(torch.equal(count, counts[0]) for count in counts)


def test_grown_values_start_from_draws():
    recipe = sparse.SET(interval=5, grown_std=0.1)
    model = network(9, 12, 7, n_models=200)
    topology = recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.0))
    before = [layer.topology.to_mask() for layer in model.layers]
    for step in range(5):
        loss_of(model(batch(step, 9, 200)), batch(step, 9, 200)).backward()
        update = topology.step()
    drawn = []
    for layer, mask in zip(model.layers, before, strict=True):
        dense = layer.topology.to_dense(layer.values.detach())
        drawn.append(dense[layer.topology.to_mask() & ~mask])
        assert not (layer.values[~layer.topology.occupied()] != 0).any()
    values = torch.cat(drawn)
    assert len(values) == update.grown > 3000
    assert abs(float(values.std()) - 0.1) < 0.005 and abs(float(values.mean())) < 0.005


# --- the choices, by loops ----------------------------------------------------------------------------------


def flat(dense: torch.Tensor) -> np.ndarray:
    return dense.reshape(dense.shape[0], -1).numpy()


def by_loops(weight, mask, gradient, fraction):
    """RigL on one layer of one model, with stable sorts of flat arrays: the new mask."""
    count = int(fraction * mask.sum())
    active = np.flatnonzero(mask)
    dropped = active[np.argsort(np.abs(weight[active]), kind="stable")[:count]]
    kept = mask.copy()
    kept[dropped] = False
    free = np.flatnonzero(~kept)
    kept[free[np.argsort(-np.abs(gradient[free]), kind="stable")[:count]]] = True
    return kept


def dense_state(model):
    weights = [flat(layer.topology.to_dense(layer.values.detach())) for layer in model.layers]
    masks = [flat(layer.topology.to_mask()) for layer in model.layers]
    return weights, masks


def stepped(model, optimizer, step, n_models, reference=None):
    x = batch(step, 9, n_models)
    optimizer.zero_grad()
    loss_of(model(x), x).backward()
    optimizer.step()


def test_rigl_chooses_as_the_paper_says():
    model = network(9, 12, 7, n_models=3, density=[0.2, 0.5, 0.9])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    topology = sparse.RigL(interval=4, end=40).attach(model, optimizer)
    regrown = 0
    for step in range(1, 45):
        stepped(model, optimizer, step, 3)
        is_update = step % 4 == 0 and step <= 40
        if is_update:
            weights, masks = dense_state(model)
            gradients = [flat(layer.dense_gradient()) for layer in model.layers]
        assert (topology.step() is not None) == is_update
        if not is_update:
            continue
        fraction = 0.3 / 2 * (1 + np.cos(np.pi * step / 40))
        values, new_masks = dense_state(model)
        for layer in range(2):
            for k in range(3):
                expected = by_loops(weights[layer][k], masks[layer][k], gradients[layer][k], fraction)
                assert np.array_equal(new_masks[layer][k], expected)
                stays = expected & masks[layer][k]
                assert np.array_equal(values[layer][k][stays], weights[layer][k][stays])
                count = int(fraction * masks[layer][k].sum())
                regrown += count - int((masks[layer][k] & ~expected).sum())
    assert regrown > 0  # some were dropped and picked again, and kept their values


def test_set_drops_by_sign_and_grows_anywhere():
    model = network(9, 12, 7, n_models=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sparse.SET(interval=1, drop_fraction=0.2).attach(model, optimizer)
    stepped(model, optimizer, 0, 2)
    weights, masks = dense_state(model)
    update = topology.step()
    values, new_masks = dense_state(model)
    for layer in range(2):
        for k in range(2):
            w, mask = weights[layer][k], masks[layer][k]
            expected = mask.copy()
            for sign in (mask & (w >= 0), mask & (w < 0)):
                group = np.flatnonzero(sign)
                order = np.argsort(np.abs(w[group]), kind="stable")
                expected[group[order[: int(0.2 * len(group))]]] = False
            assert (expected & ~new_masks[layer][k]).sum() == 0  # what was to stay did stay
            assert new_masks[layer][k].sum() == mask.sum()
            report = list(update.layers.values())[layer]
            assert int(report.dropped[k]) == int((mask & ~new_masks[layer][k]).sum())
            assert (values[layer][k][new_masks[layer][k] & ~mask] == 0).all()


def test_gse_grows_the_best_of_its_candidates():
    model = network(20, 30, density=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sparse.GSE(interval=2, end=100, grow=sparse.SampledGradient(ratio=0.5)).attach(
        model, optimizer
    )
    x = batch(0, 20)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        layer = model.layers[0]
        gradient = layer.dense_gradient().abs().reshape(-1) if layer.capturing else None
        before = layer.topology
        update = topology.step()
    key = topology.attached_layers[0].memory["candidates"]
    assert len(key) == 60 and not np.isin(key, before.keys()).any()
    best = key[np.argsort(-gradient[key].numpy(), kind="stable")[: update.grown]]
    grown = layer.topology.keys()[~torch.isin(layer.topology.keys(), before.keys())]
    assert sorted(best.tolist()) == sorted(grown.tolist())
    assert update.grown == int(0.2 / 2 * (1 + np.cos(np.pi * 2 / 100)) * 120)


def test_snfs_deals_by_mean_momentum():
    model = network(9, 12, 7, n_models=2, capacity=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = sparse.SNFS(interval=4, end=40, grow=sparse.MomentumGrowth(decay=0.5))
    topology = recipe.attach(model, optimizer)
    momentum = None
    for step in range(4):
        stepped(model, optimizer, step, 2)
        gradients = [layer.dense_gradient() for layer in model.layers]
        weights, masks = dense_state(model)
        momentum = [
            0.5 * g + (0.5 * m if momentum else 0)
            for g, m in zip(gradients, momentum or gradients, strict=True)
        ]
        topology.step()
    _, new_masks = dense_state(model)
    fraction = 0.5 / 2 * (1 + np.cos(np.pi * 4 / 40))
    for k in range(2):
        counts = [int(fraction * masks[i][k].sum()) for i in range(2)]
        m = [np.abs(flat(momentum[i])[k]) for i in range(2)]
        share = np.array([m[i][masks[i][k]].mean() for i in range(2)])
        wanted = share / share.sum() * sum(counts)
        dealt = np.floor(wanted).astype(int)
        dealt[np.argmax(wanted - dealt)] += sum(counts) - dealt.sum()
        for i in range(2):
            active = np.flatnonzero(masks[i][k])
            kept = masks[i][k].copy()
            kept[active[np.argsort(np.abs(weights[i][k][active]), kind="stable")[: counts[i]]]] = False
            free = np.flatnonzero(~kept)
            kept[free[np.argsort(-m[i][free], kind="stable")[: dealt[i]]]] = True
            assert np.array_equal(kept, new_masks[i][k])


def test_gradual_follows_the_cubic():
    model = network(20, 30, density=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = sparse.GradualMagnitude(final_density=0.05, begin=10, interval=10, end=59)
    topology = recipe.attach(model, optimizer)
    for step in range(1, 71):
        stepped_x = batch(step, 20)
        optimizer.zero_grad()
        loss_of(model(stepped_x), stepped_x).backward()
        optimizer.step()
        magnitude = model.layers[0].values.detach().abs()[model.layers[0].topology.occupied()]
        update = topology.step()
        assert (update is not None) == (step in (20, 30, 40, 50))
        if update is not None:
            sparsity = 0.95 + (0 - 0.95) * (1 - (step - 10) / 40) ** 3  # Zhu & Gupta 2017, eq. 1
            count = int(np.floor((1 - sparsity) * 600 + 0.5))
            assert update.layers["layers.0"].connections.tolist() == [count]
            kept = model.layers[0].values.detach().abs()[model.layers[0].topology.occupied()]
            assert torch.equal(kept.sort().values, magnitude.sort().values[-count:])
    assert topology.history[-1].layers["layers.0"].density.tolist() == [0.05]


@pytest.mark.parametrize("ablation", [0.0, 0.6])
def test_srigl_keeps_the_fan_in_constant(ablation):
    topologies = [
        sparse.Topology.random_fan_in(12, 20, 3, n_models=3),
        sparse.Topology.random_fan_in(20, 7, 4, n_models=3),
    ]
    model = Network(topologies)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    topology = sparse.SRigL(interval=5, end=60, ablation=ablation).attach(model, optimizer)
    ablated = 0
    for step in range(60):
        x = batch(step, 12, 3)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        update = topology.step()
        if update is None:
            continue
        for layer, start in zip(model.layers, topologies, strict=True):
            fan_in = layer.topology.fan_in
            active = fan_in > 0
            for k in range(3):
                n_active = int(active[k].sum())
                assert (fan_in[k][active[k]] == int(start.n_connections[k]) // n_active).all()
        ablated += int((model.layers[0].topology.fan_in == 0).sum())
        assert (model.layers[1].topology.fan_in == 4).all()  # the last layer is spared
    assert (ablated > 0) == (ablation > 0)


def test_srigl_ablates_whom_the_paper_says():
    """One step, by loops."""
    start = sparse.Topology.random_fan_in(10, 16, 4)
    model = Network([start, sparse.Topology.random_fan_in(16, 3, 5)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    recipe = sparse.SRigL(interval=3, drop_fraction=0.5, schedule="constant", ablation=0.7)
    topology = recipe.attach(model, optimizer)
    for step in range(3):
        x = batch(step, 10)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        if step == 2:
            weights, masks = dense_state(model)
            gradient = np.abs(flat(model.layers[0].dense_gradient())[0])
            # Outputs that lead nowhere have a gradient of exactly 0: there random words decide.
            ties = topology.attached_layers[0].ties_of_positions(1)
            word = ties.words(torch.arange(160)).numpy()
        topology.step()
    w, mask = np.abs(weights[0][0]), masks[0][0]
    active = np.flatnonzero(mask)
    kept = mask.copy()
    kept[active[np.argsort(w[active], kind="stable")[:32]]] = False
    free = np.flatnonzero(~kept)
    best = free[np.lexsort((word[free], -gradient[free]))[:32]]
    salient = kept.reshape(16, 10).sum(1) + np.bincount(best // 10, minlength=16)
    alive = salient >= 0.7 * 4
    assert 0 < alive.sum() < 16
    fan_in = min(10, 64 // alive.sum())
    expected = np.zeros((16, 10), bool)
    for row in np.flatnonzero(alive):
        columns = np.flatnonzero(kept.reshape(16, 10)[row])
        columns = columns[np.argsort(-w.reshape(16, 10)[row, columns], kind="stable")[:fan_in]]
        expected[row, columns] = True
        others = np.flatnonzero(~expected[row])
        g = gradient.reshape(16, 10)[row, others]
        order = np.lexsort((word.reshape(16, 10)[row, others], -g))
        expected[row, others[order[: fan_in - len(columns)]]] = True
    assert np.array_equal(model.layers[0].topology.to_mask()[0].numpy(), expected)
