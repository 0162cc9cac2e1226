"""Recipes at work on models: what the tests of attached recipes share."""

from __future__ import annotations

import torch
from masked_dense import Mixed, autoencoder, batch, loss_of, network, sparse_layer, sparse_layers

from toykern import sparse

TIMING = {"interval": 5, "end": 50}
RECIPES = {
    "set": sparse.SET(interval=5, seed=[4, 2], grown_std=0.1),
    "rigl": sparse.RigL(**TIMING, accumulate=4),
    "snfs": sparse.SNFS(**TIMING),
    "gse": sparse.GSE(**TIMING, accumulate=3, scope="global"),
    "srigl": sparse.SRigL(**TIMING),
    "gradual": sparse.GradualMagnitude(final_density=0.1, **TIMING),
    "ticket": sparse.LotteryTicket(rounds=3, round_steps=13, rewind_to=4),
    "ticket_from_start": sparse.LotteryTicket(rounds=3, round_steps=13, scope="global"),
}


def everything(model, optimizer, topology):
    """All tensors that training makes, by name."""
    found = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name}.{k}": torch.as_tensor(s) for k, s in optimizer.state[p].items()}
    for layer in topology.attached_layers:
        found |= {
            f"{layer.name}.start": layer.topology.row_start,
            f"{layer.name}.column": layer.topology.column,
        }
        found |= {f"{layer.name}.memory.{k}": v for k, v in layer.memory.items()}
        found[f"{layer.name}.explored"] = layer.explored
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def start(recipe, seed=0):
    model = network(9, 12, 7, density=0.4, n_models=2, capacity=1.5, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, recipe.attach(model, optimizer)


REAL_RECIPES = RECIPES | {
    "rigl_global": sparse.RigL(**TIMING, scope="global", minimum_fan_in=1),
    "random_global": sparse.PruneAndGrow(
        prune=sparse.RandomPrune(), grow=sparse.RandomGrowth(), **TIMING, scope="global"
    ),
    "sensitivity": sparse.PruneAndGrow(prune=sparse.Sensitivity(), grow=sparse.RandomGrowth(), **TIMING),
    "gradual_global": sparse.GradualMagnitude(final_density=0.1, **TIMING, scope="global"),
    "static": sparse.Static(),
}
REAL_MODELS = {
    "linear": lambda seed, room: network(
        9, 12, 7, n_models=2, capacity=1.5 + 0.01 * room, seed=seed, make=sparse_layer
    ),
    "autoencoder": lambda seed, room: autoencoder(seed=seed, capacity=30 + room),
    "mixed": lambda seed, room: Mixed(2, seed=seed, room=room),
}


def start_real(kind, recipe, seed=0, room=0):
    model = REAL_MODELS[kind](seed, room)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    return model, optimizer, recipe.attach(model, optimizer)


def train_real(model, optimizer, topology, steps, compiled=None):
    n_models = next(iter(sparse_layers(model).values())).n_models
    for step in steps:
        x = batch(step, 9, n_models)
        optimizer.zero_grad()
        loss_of((model if compiled is None else compiled)(x), x).backward()
        optimizer.step()
        topology.step()
