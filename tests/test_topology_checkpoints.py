"""A run that was stored and resumed, copied or compiled equals one that was not; states that do not fit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from masked_dense import network, train
from topology_kit import (
    REAL_MODELS,
    REAL_RECIPES,
    RECIPES,
    TIMING,
    assert_same,
    everything,
    start,
    start_real,
    train_real,
)

from toykern import sparse


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stop", [3, 10, 13, 23])
def test_a_resumed_run_equals_one_that_was_not_interrupted(recipe, stop):
    whole = start(RECIPES[recipe])
    train(*whole, range(40))
    first = start(RECIPES[recipe])
    train(*first, range(stop))
    file = io.BytesIO()
    connections = [layer.topology for layer in first[0].layers]
    torch.save(
        {
            "model": first[0].state_dict(),
            "optimizer": first[1].state_dict(),
            "topology": first[2].state_dict(),
        },
        file,
    )
    train(*first, range(stop, 40))  # the saved state is a copy: going on does not change it
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, optimizer, topology = start(RECIPES[recipe], seed=5)
    for layer, there in zip(model.layers, connections, strict=True):
        layer.topology = there  # a real layer's state_dict carries it
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    topology.load_state_dict(saved["topology"])
    assert topology.steps == stop
    train(model, optimizer, topology, range(stop, 40))
    assert_same(everything(model, optimizer, topology), everything(*whole))
    assert_same(everything(*first), everything(*whole))
    assert [repr(update) for update in topology.history] == [repr(update) for update in whole[2].history]
    if recipe != "gradual":
        assert len(topology.history) >= 2


@pytest.mark.parametrize("kind", REAL_MODELS)
@pytest.mark.parametrize("recipe", REAL_RECIPES)
def test_a_resumed_run_of_real_layers_equals_one_that_was_not_interrupted(kind, recipe):
    """Into a model of other seeds, other connections and another number of slots, loaded in another order."""
    stop = (9, 23)[(list(REAL_MODELS).index(kind) + list(REAL_RECIPES).index(recipe)) % 2]
    recipe = REAL_RECIPES[recipe]
    whole = start_real(kind, recipe)
    train_real(*whole, range(40))
    first = start_real(kind, recipe)
    train_real(*first, range(stop))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = start_real(kind, recipe, seed=5, room=3)
    order = [0, 1, 2] if stop == 9 else [2, 1, 0]
    for i in order:
        again[i].load_state_dict(saved[i])
    train_real(*again, range(stop, 40))
    assert_same(everything(*again), everything(*whole))
    assert [repr(update) for update in again[2].history] == [repr(update) for update in whole[2].history]


@pytest.mark.slow
@pytest.mark.parametrize("kind", REAL_MODELS)
def test_training_a_compiled_model_equals_training_it_as_it_is(kind):
    """In one graph that is compiled once, whatever the topology does between steps."""
    plain, compiled = (start_real(kind, sparse.RigL(interval=3, end=50)) for _ in range(2))
    torch.compiler.reset()
    step = torch.compile(compiled[0], fullgraph=True)
    train_real(*plain, range(4))
    train_real(*compiled, range(4), step)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train_real(*plain, range(4, 14))
        train_real(*compiled, range(4, 14), step)
    assert compiled[2].updates == 4
    for ours, theirs in zip(everything(*compiled).values(), everything(*plain).values(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", REAL_MODELS)
def test_copies_of_a_model_at_work_go_their_own_ways(kind):
    """A deep copy of model, optimiser and recipe together is a second run; the first does not feel it."""
    model, optimizer, topology = start_real(kind, sparse.RigL(interval=3, end=50))
    train_real(model, optimizer, topology, range(7))
    twin = copy.deepcopy((model, optimizer, topology))
    before = {name: value.clone() for name, value in everything(model, optimizer, topology).items()}
    train_real(*twin, range(7, 20))
    assert_same(everything(model, optimizer, topology), before)
    train_real(model, optimizer, topology, range(7, 20))
    assert_same(everything(*twin), everything(model, optimizer, topology))


def test_a_state_without_its_model_is_noticed():
    model, optimizer, topology = start(RECIPES["rigl"])
    train(model, optimizer, topology, range(10))
    state = topology.state_dict()
    model, optimizer, topology = start(RECIPES["rigl"])
    topology.load_state_dict(state)
    with pytest.raises(RuntimeError, match="load the model's state_dict"):
        train(model, optimizer, topology, range(10, 11))


def test_states_that_do_not_fit_are_refused():
    _, _, topology = start(RECIPES["rigl"])
    state = topology.state_dict()
    before = copy.deepcopy(state)
    model = network(9, 12, density=0.4)
    other = RECIPES["rigl"].attach(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="the model has"):
        other.load_state_dict(state)
    _, _, other = start(sparse.SET())
    with pytest.raises(ValueError, match="state is of RigL, and this recipe is SET"):
        other.load_state_dict(state)
    _, _, other = start(sparse.RigL(**TIMING, track_explored=False))
    with pytest.raises(ValueError, match="track_explored"):
        other.load_state_dict(state)
    model = network(9, 12, 7, density=0.4, n_models=3)
    other = RECIPES["rigl"].attach(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="2 models, not 3"):
        other.load_state_dict(state)
    model = network(9, 13, 7, density=0.4, n_models=2)
    other = RECIPES["rigl"].attach(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="216 positions, not 234"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="state must come from"):
        topology.load_state_dict({})
    assert repr(topology.state_dict()) == repr(before)
