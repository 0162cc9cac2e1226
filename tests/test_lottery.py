"""Lottery tickets: whole runs of rounds equal iterative magnitude pruning with rewinding, written out.

The oracle follows Frankle et al. 2020, Algorithm 2 (with rewinding to step 0 Frankle & Carbin 2019, §2): it
trains dense weights under a mask to the end, drops the smallest that are left, puts the others back, and so
on. It makes its own choices.
"""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from masked_dense import MaskedTwin, Mixed, autoencoder, batch, loss_of, network, sparse_layer, sparse_layers

import toykern as tk
from toykern.sparse import Magnitude, RandomPrune

MODELS = {
    "linear": lambda: network(9, 12, 7, density=1.0, n_models=2, make=sparse_layer),
    "autoencoder": lambda: autoencoder(n_models=2, density=1.0, capacity=60),
    "mixed": lambda: Mixed(2),
}
OPTIMIZERS = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02, amsgrad=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
}
LENGTH = 11


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def train_ticket(model, optimizer, topology, steps=range(10**6)):
    """A loop of one's own, which draws the data from the step that weights went back to."""
    seen = []
    step = 0
    for _ in steps:
        x = batch(step, 9, 2)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        seen.append(step)
        update = topology.step()
        step = step + 1 if update is None else update.rewound_to
        if step == LENGTH:
            return seen
    return seen


def by_hand(model, make_optimizer, rounds, rewind_to, fraction, scope):
    """The algorithm with dense weights; the twin as it ends, and its masks after each round."""
    twin = MaskedTwin(model, make_optimizer)

    def run(first):
        for step in range(first, LENGTH):
            if step == rewind_to and "kept" not in found:
                found["kept"] = copy.deepcopy((twin.model.state_dict(), twin.optimizer.state_dict()))
            x = batch(step, 9, 2)
            twin.step(lambda module, x=x: loss_of(module(x), x))

    found = {}
    masks = []
    run(0)
    for _ in range(rounds):
        weights = {name: layer.values.detach().abs().numpy() for name, layer in twin.layers.items()}
        twin.masks = pruned(weights, twin.masks, fraction, scope)
        masks.append(twin.masks)
        twin.model.load_state_dict(found["kept"][0])
        twin.optimizer.load_state_dict(copy.deepcopy(found["kept"][1]))
        twin.mask_all()
        run(rewind_to)
    return twin, masks


def pruned(weights, masks, fraction, scope):
    """The masks without the smallest weights of each model, of each layer or over all of them."""
    new = {name: mask.clone() for name, mask in masks.items()}
    for model in range(2):
        groups = [list(masks)] if scope == "global" else [[name] for name in masks]
        for group in groups:
            left = [
                (weights[name][model][place], name, place)
                for name in group
                for place in zip(*np.nonzero(masks[name][model].numpy()), strict=True)
            ]
            left.sort(key=lambda entry: entry[0])
            for _, name, place in left[: int(fraction * len(left) + 1e-9)]:
                new[name][model][tuple(int(i) for i in place)] = False
    return new


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rewind_to", [0, 1, 6, LENGTH - 1])
def test_is_iterative_magnitude_pruning_with_rewinding(kind, optimizer, scope, rewind_to):
    model = MODELS[kind]()
    twin, masks = by_hand(model, OPTIMIZERS[optimizer], 3, rewind_to, 0.3, scope)
    made = OPTIMIZERS[optimizer](model)
    recipe = tk.LotteryTicket(
        rounds=3, round_steps=LENGTH, rewind_to=rewind_to, drop_fraction=0.3, scope=scope
    )
    topology = recipe.attach(model, made)
    found = []
    update = topology.step  # watched, to see the masks of every round

    def step():
        report = update()
        if report is not None:
            found.append({name: layer.topology.to_mask() for name, layer in sparse_layers(model).items()})
            assert report.rewound_to == rewind_to
        return report

    topology.step = step
    seen = train_ticket(model, made, topology)
    assert seen == [*range(LENGTH), *[*range(rewind_to, LENGTH)] * 3]
    assert len(found) == len(masks) == 3
    for ours, theirs in zip(found, masks, strict=True):
        assert all(torch.equal(mask, theirs[name]) for name, mask in ours.items())
    twin.assert_equal(model, made)


@pytest.mark.parametrize("stop", [3, 8, 12, 19])
@pytest.mark.parametrize("rewind_to", [0, 6])
def test_a_resumed_ticket_equals_one_that_was_not_interrupted(stop, rewind_to):
    """Stored within a round, before and after there is anything to go back to."""
    recipe = tk.LotteryTicket(rounds=2, round_steps=LENGTH, rewind_to=rewind_to, scope="global")

    def start():
        model = Mixed(2)
        optimizer = OPTIMIZERS["adam"](model)
        return model, optimizer, recipe.attach(model, optimizer)

    whole = start()
    train_ticket(*whole)
    first = start()
    seen = train_ticket(*first, range(stop))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    again = start()
    for part, saved in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
    step = recipe.rewind_to if again[2].history and seen[-1] == LENGTH - 1 else seen[-1] + 1
    while step < LENGTH:
        x = batch(step, 9, 2)
        again[1].zero_grad()
        loss_of(again[0](x), x).backward()
        again[1].step()
        update = again[2].step()
        step = step + 1 if update is None else update.rewound_to
    for ours, theirs in zip(again[0].state_dict().values(), whole[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [repr(update) for update in again[2].history] == [repr(update) for update in whole[2].history]


def test_the_optimizer_may_go_on():
    """With rewind_optimizer=False weights go back and moments stay, those of connections that stay."""
    model = Mixed(2)
    optimizer = OPTIMIZERS["adam"](model)
    recipe = tk.LotteryTicket(rounds=1, round_steps=5, rewind_to=2, rewind_optimizer=False)
    topology = recipe.attach(model, optimizer)
    for step in range(5):
        x = batch(step, 9, 2)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        if step == 1:
            kept = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
        moments = {
            name: layer.topology.to_dense(optimizer.state[layer.values]["exp_avg"])
            for name, layer in sparse_layers(model).items()
        }
        topology.step()
    for name, layer in sparse_layers(model).items():
        mask = layer.topology.to_mask()
        assert torch.equal(layer.to_dense(), kept[name] * mask)
        now = layer.topology.to_dense(optimizer.state[layer.values]["exp_avg"])
        assert torch.equal(now, moments[name] * mask)
        assert int(optimizer.state[layer.values]["step"]) == 5


def test_another_criterion_drops_others():
    masks = []
    for prune in (Magnitude(), RandomPrune()):
        model = MODELS["linear"]()
        optimizer = OPTIMIZERS["sgd"](model)
        recipe = tk.LotteryTicket(rounds=1, round_steps=LENGTH, drop_fraction=0.5, prune=prune)
        train_ticket(model, optimizer, recipe.attach(model, optimizer))
        masks.append(model.layers[0].topology.to_mask())
    assert masks[0].sum() == masks[1].sum() and not torch.equal(*masks)
