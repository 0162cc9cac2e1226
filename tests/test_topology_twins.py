"""Trajectories of real sparse layers through many updates equal those of dense twins with masked gradients.

The autoencoder, stacks, and networks in which sparse and dense layers are mixed, with every optimiser that
PyTorch has for them and their options, groups of parameters, and several optimisers' worth of state.
"""

from __future__ import annotations

import pytest
import torch
from masked_dense import MaskedTwin, Mixed, autoencoder, batch, loss_of, sparse_layers
from torch import nn

import toykern as tk
from toykern import sparse

STEPS = 40
TIMING = {"interval": 4, "end": 36}


def _all(make, **options):
    return lambda model: make(model.parameters(), **options)


OPTIMIZERS = {
    "sgd": _all(torch.optim.SGD, lr=0.3, momentum=0.9, weight_decay=0.01),
    "sgd_nesterov": _all(torch.optim.SGD, lr=0.3, momentum=0.9, nesterov=True, foreach=True),
    "sgd_fused": _all(torch.optim.SGD, lr=0.3, momentum=0.9, dampening=0.1, fused=True),
    "sgd_plain": _all(torch.optim.SGD, lr=0.3),
    "adam": _all(torch.optim.Adam, lr=0.01, foreach=False),
    "adam_amsgrad": _all(torch.optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.05),
    "adam_foreach": _all(torch.optim.Adam, lr=0.01, amsgrad=True, foreach=True),
    "adam_fused": _all(torch.optim.Adam, lr=0.01, amsgrad=True, fused=True),
    "adamw": _all(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamw_fused": _all(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True, fused=True),
    "rmsprop": _all(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rmsprop_foreach": _all(torch.optim.RMSprop, lr=0.01, foreach=True),
    "adagrad": _all(torch.optim.Adagrad, lr=0.1),
    "adagrad_foreach": _all(torch.optim.Adagrad, lr=0.1, foreach=True),
    "adagrad_fused": _all(torch.optim.Adagrad, lr=0.1, fused=True),
    "adadelta": _all(torch.optim.Adadelta, lr=1.0),
    "adamax": _all(torch.optim.Adamax, lr=0.01),
    "nadam": _all(torch.optim.NAdam, lr=0.01),
    "radam": _all(torch.optim.RAdam, lr=0.01),
    "asgd": _all(torch.optim.ASGD, lr=0.1, t0=1),
}
RECIPES = {
    "set": sparse.SET(interval=4),
    "rigl": sparse.RigL(**TIMING),
    "rigl_accumulated": sparse.RigL(**TIMING, accumulate=3, schedule="linear", minimum_fan_in=1),
    "srigl": sparse.SRigL(**TIMING, ablation=0.5, ablate_last=True),
    "snfs": sparse.SNFS(**TIMING),
    "gse": sparse.GSE(**TIMING),
    "gradual": sparse.GradualMagnitude(final_density=0.1, **TIMING),
    "rigl_global": sparse.RigL(**TIMING, scope="global"),
    "gse_global": sparse.GSE(**TIMING, scope="global"),
    "gradual_global": sparse.GradualMagnitude(final_density=0.1, **TIMING, scope="global"),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def in_groups(model: nn.Module) -> torch.optim.Optimizer:
    """Connections, norms, biases and dense weights with options of their own."""
    values = [p for name, p in model.named_parameters() if name.endswith("values")]
    plain = [p for name, p in model.named_parameters() if "norm" in name or name.endswith("bias")]
    rest = [p for name, p in model.named_parameters() if not any(p is q for q in (*values, *plain))]
    return torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": 0.0, "lr": 0.003},
            {"params": values[1:], "weight_decay": 0.2, "amsgrad": True, "foreach": True},
            {"params": rest, "betas": (0.8, 0.99)},
            {"params": values[:1], "fused": True, "lr": 0.02},
        ],
        lr=0.01,
    )


def follow(model, make_optimizer, recipe, steps=STEPS):
    """Train with the recipe and the twin beside it, which takes over which connections exist."""
    optimizer = make_optimizer(model)
    n_models = next(iter(sparse_layers(model).values())).n_models
    twin = MaskedTwin(model, make_optimizer)
    topology = recipe.attach(model, optimizer)
    identity = [(layer.values, layer.column) for layer in sparse_layers(model).values()]
    for step in range(steps):
        x = batch(step, 9, n_models)
        optimizer.zero_grad()
        loss = loss_of(model(x), x)
        loss.backward()
        optimizer.step()
        expected = twin.step(lambda module, x=x: loss_of(module(x), x))
        assert torch.allclose(loss, expected, rtol=1e-10, atol=0)
        if topology.step() is not None:
            twin.take_masks(model)
        twin.assert_equal(model, optimizer)
    for (values, column), layer in zip(identity, sparse_layers(model).values(), strict=True):
        assert layer.values is values and layer.column is column
    assert topology.updates >= steps // 4 - 1
    assert sum(update.dropped for update in topology.history) > 20
    return topology


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_autoencoder_with_every_optimizer(optimizer):
    topology = follow(autoencoder(), OPTIMIZERS[optimizer], RECIPES["rigl"])
    assert sum(update.grown for update in topology.history) > 20


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_autoencoder_with_every_recipe(recipe):
    follow(autoencoder(n_models=3), OPTIMIZERS["adam_amsgrad"], RECIPES[recipe])


@pytest.mark.parametrize("hidden", ["none", "relu"])
@pytest.mark.parametrize("output", ["none", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_autoencoder(hidden, output, bias):
    model = autoencoder(hidden_activation=hidden, output_activation=output, bias=bias)
    follow(model, OPTIMIZERS["rmsprop"], RECIPES["rigl"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam_fused", "rmsprop", "adagrad", "in_groups"])
def test_sparse_and_dense_mixed(optimizer):
    follow(Mixed(), OPTIMIZERS.get(optimizer, in_groups), RECIPES["rigl"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_sparse_and_dense_mixed_with_every_recipe(recipe):
    """Over three sparse layers of two kinds; what is global moves connections between them."""
    topology = follow(Mixed(), in_groups, RECIPES[recipe])
    counts = [
        torch.stack([part.connections for part in update.layers.values()]) for update in topology.history
    ]
    if "global" in recipe or recipe == "snfs":
        moved = counts[-1] - counts[0]
        assert bool((moved != 0).any())
        if recipe != "gradual_global":
            assert bool((moved.sum(dim=0) == 0).all())


@pytest.mark.parametrize("recipe", ["rigl", "rigl_accumulated", "gse", "snfs", "rigl_global"])
def test_gradients_of_several_backward_passes(recipe):
    """A batch in four parts makes the steps, and the choices, that it makes as a whole."""
    states = []
    for parts in (1, 4):
        model = Mixed(2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        topology = RECIPES[recipe].attach(model, optimizer)
        for step in range(20):
            x = batch(step, 9, 2)
            optimizer.zero_grad()
            for part in x.chunk(parts, dim=1):
                (loss_of(model(part), part) / parts).backward()
                with torch.no_grad():
                    model(part)  # looking at the model in between leaves no trace
            optimizer.step()
            topology.step()
        assert topology.updates == 5
        states.append([layer.topology for layer in topology.layers.values()])
        states[-1] += [p.detach() for p in model.parameters()]
    for whole, cut in zip(*states, strict=True):
        if isinstance(whole, sparse.Topology):
            assert whole == cut
        else:
            assert torch.allclose(whole, cut, rtol=1e-9, atol=1e-11)


def test_a_network_of_one_model():
    """Batches of any shape, a dense head, one model to a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        tk.SparseLinear(9, 14, fan_in=4, activation="relu", dtype=torch.float64),
        nn.Linear(14, 14, dtype=torch.float64),
        nn.Tanh(),
        tk.SparseLinear(14, 9, density=0.3, dtype=torch.float64),
    )
    follow(model, in_groups_of_one, sparse.RigL(**TIMING))


def in_groups_of_one(model):
    first = list(model[0].parameters())
    rest = [p for p in model.parameters() if not any(p is q for q in first)]
    return torch.optim.SGD([{"params": first, "momentum": 0.9, "lr": 0.2}, {"params": rest}], lr=0.1)
