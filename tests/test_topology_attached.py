"""Attached recipes: reports, lottery tickets, and what is refused without a trace."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import matplotlib
import pytest
import torch
from masked_dense import (
    MaskedLayer,
    Network,
    batch,
    loss_of,
    network,
    train,
)
from topology_kit import RECIPES, TIMING, assert_same, everything, start
from torch import nn

import toykern as tk
from toykern import sparse
from toykern.sparse.optimizer_state import move
from toykern.sparse.schedules import Timing, drop_fraction
from toykern.sparse.selection import largest_of_groups, shared_out


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_runs_are_repeatable_and_seeds_matter():
    states = []
    for seed in (0, 0, 1):
        model, optimizer, topology = start(sparse.SET(interval=5, seed=seed))
        train(model, optimizer, topology, range(20))
        states.append(everything(model, optimizer, topology))
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["layers.0.column"], states[2]["layers.0.column"])


@pytest.mark.parametrize("recipe", ["set", "rigl", "snfs", "gse", "srigl", "gradual"])
def test_a_model_alone_trains_as_among_others(recipe):
    """Model 1 of a stack of two, by itself with its seed."""
    named = replace(RECIPES[recipe], seed=[4, 2])
    stack = start(named)
    topologies, values = [], []
    for layer in stack[0].layers:
        mask = layer.topology.to_mask()[1:]
        topologies.append(sparse.Topology.from_mask(mask, capacity=layer.topology.capacity))
        values.append(layer.values.detach()[layer.topology.capacity :].clone())
    alone = Network(topologies)
    for layer, value in zip(alone.layers, values, strict=True):
        layer.values.data.copy_(value)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01)
    topology = replace(named, seed=2).attach(alone, optimizer)
    for step in range(30):
        for model, opt, attached, part in ((*stack, slice(0, 2)), (alone, optimizer, topology, slice(1, 2))):
            x = batch(step, 9, 2)[part]
            opt.zero_grad()
            loss_of(model(x), x).backward()
            opt.step()
            attached.step()
    for ours, theirs in zip(alone.layers, stack[0].layers, strict=True):
        assert torch.equal(ours.topology.to_mask()[0], theirs.topology.to_mask()[1])
        assert torch.allclose(
            ours.topology.to_dense(ours.values)[0],
            theirs.topology.to_dense(theirs.values)[1],
            rtol=1e-9,
            atol=1e-12,
        )


# --- reports ------------------------------------------------------------------------------------------------


def test_reports_count_what_happened():
    model, optimizer, topology = start(sparse.SET(interval=2, drop_fraction=0.3))
    masks = [layer.topology.to_mask() for layer in model.layers]
    explored = [mask.clone() for mask in masks]
    for step in range(20):
        updates = train(model, optimizer, topology, range(step, step + 1))
        new = [layer.topology.to_mask() for layer in model.layers]
        if updates:
            (update,) = updates
            assert update is topology.history[-1] and update.step == step + 1 == topology.steps
            assert update.drop_fraction == 0.3 and update.number == topology.updates
            for i, report in enumerate(update.layers.values()):
                explored[i] |= new[i]
                assert torch.equal(report.dropped, (masks[i] & ~new[i]).sum(dim=(1, 2)))
                assert torch.equal(report.grown, (new[i] & ~masks[i]).sum(dim=(1, 2)))
                assert torch.equal(report.connections, new[i].sum(dim=(1, 2)))
                assert torch.equal(report.density, new[i].double().mean(dim=(1, 2)))
                assert torch.equal(report.explored, explored[i].double().mean(dim=(1, 2)))
                assert torch.equal(report.active_neurons, new[i].any(dim=2).sum(dim=1))
                assert torch.equal(report.active_inputs, new[i].any(dim=1).sum(dim=1))
        masks = new
    assert float(report.explored.mean()) > 0.7
    assert f"dropped={update.dropped}, grown={update.grown}, explored=" in repr(update)
    assert "steps=20, updates=10" in repr(topology)


def test_plots():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, optimizer, topology = start(sparse.SET(interval=2))
    train(model, optimizer, topology, range(6))
    ax = topology.plot()
    lines = ax.get_lines()
    assert [line.get_label() for line in lines] == ["layers.0", "layers.1"]
    assert lines[0].get_xdata().tolist() == [2, 4, 6]
    means = [float(update.layers["layers.0"].explored.mean()) for update in topology.history]
    assert lines[0].get_ydata().tolist() == means
    assert topology.plot("dropped", ax=ax) is ax and ax.get_ylabel() == "connections dropped"
    with pytest.raises(ValueError, match="quantity must be one of"):
        topology.plot("nothing")
    model, optimizer, topology = start(sparse.SET(interval=2, track_explored=False))
    train(model, optimizer, topology, range(2))
    assert topology.history[0].layers["layers.0"].explored is None
    with pytest.raises(ValueError, match="not tracked"):
        topology.plot()
    plt.close("all")


def test_static_changes_nothing():
    model, optimizer, topology = start(sparse.Static())
    before = [layer.topology for layer in model.layers]
    assert train(model, optimizer, topology, range(5)) == []
    assert all(a is layer.topology for a, layer in zip(before, model.layers, strict=True))
    assert topology.steps == 5 and not any(layer.capturing for layer in model.layers)


def test_gradients_are_captured_only_where_needed():
    model, optimizer, topology = start(sparse.RigL(interval=5, begin=5, end=16, accumulate=2))
    captured = []
    for step in range(1, 20):
        captured += [step] if model.layers[0].capturing else []
        train(model, optimizer, topology, range(step, step + 1))
    assert captured == [9, 10, 14, 15]


# --- lottery tickets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewind_to", [0, 4])
def test_tickets_go_back(rewind_to):
    """Rounds of 10 steps by hand: keep a dense copy of step `rewind_to`, mask it, begin again."""
    model, optimizer, _ = start(sparse.Static())
    model.register_buffer("running", torch.zeros(1))
    recipe = sparse.LotteryTicket(rounds=2, round_steps=10, rewind_to=rewind_to, drop_fraction=0.5)
    topology = recipe.attach(model, optimizer)

    def dense():
        found = [layer.topology.to_dense(layer.values.detach()) for layer in model.layers]
        for layer in model.layers:
            state = optimizer.state[layer.values]
            found += [layer.topology.to_dense(state[k]) for k in ("exp_avg", "exp_avg_sq") if k in state]
            found += [layer.bias.detach().clone()]
        return found

    kept = dense() if rewind_to == 0 else None
    rounds = []
    for step in range(1, 30):
        magnitude = [layer.topology.to_dense(layer.values.detach()).abs() for layer in model.layers]
        model.running += 1
        updates = train(model, optimizer, topology, range(step, step + 1))
        if step == rewind_to:
            kept = dense()
        if not updates:
            continue
        rounds.append(step)
        assert updates[0].rewound_to == rewind_to and updates[0].grown == 0
        masks = [layer.topology.to_mask() for layer in model.layers]
        if rewind_to == 0:
            assert not optimizer.state[model.layers[0].values]
        for now, then in zip(dense(), kept, strict=True):
            mask = next((m for m in masks if m.shape == then.shape), None) if then.shape[1] > 1 else None
            assert torch.equal(now, then if mask is None else then * mask)
        assert int(model.running) == rewind_to
        for mask, before in zip(masks, magnitude, strict=True):
            assert bool(mask.any()) and not bool((before[mask] == 0).any())
    assert rounds == [10, 20 - rewind_to]
    assert [float(layer.topology.density.mean()) for layer in model.layers] == pytest.approx(
        [0.1, 0.1], abs=0.01
    )


# --- what is a sparse layer ---------------------------------------------------------------------------------


def test_what_is_a_sparse_layer():
    own = MaskedLayer(sparse.Topology.random(4, 4, 0.5))
    for layer in (own, tk.SparseLinear(4, 4, 0.5), tk.SparseTiedAutoencoder(4, 2, 0.5)):
        assert sparse.is_sparse_layer(layer)
    for other in (nn.Linear(4, 4), nn.Sequential(own), tk.SparseLinear, own.topology, None):
        assert not sparse.is_sparse_layer(other)


def test_a_wrapper_that_passes_attributes_on_is_no_second_layer():
    model = nn.Sequential(torch.compile(tk.SparseLinear(9, 12, 0.4), backend="eager"))
    attached = sparse.SET(interval=1).attach(model, torch.optim.SGD(model.parameters()))
    assert list(attached.layers) == ["0._orig_mod"]


# --- what is refused ----------------------------------------------------------------------------------------


def test_an_optimizer_that_does_not_hold_the_values():
    model = network(9, 12, 7)
    with pytest.raises(ValueError, match="does not hold the values of the sparse layer 'layers.1'"):
        sparse.SET().attach(model, torch.optim.SGD(model.layers[0].parameters()))
    both = [torch.optim.SGD(model.layers[0].parameters()), torch.optim.Adam(model.layers[1].parameters())]
    train_both = sparse.SET(interval=1).attach(model, both)
    assert train_both.step().grown > 0
    for bad in (None, "adam", [], [both[0], 3]):
        with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer"):
            sparse.SET().attach(model, bad)


def test_an_optimizer_that_keeps_all_parameters_in_one_vector():
    """What LBFGS keeps stands under the first parameter alone, which may be another."""
    model = nn.Sequential(nn.Linear(9, 9), tk.SparseLinear(9, 12, density=0.4))
    with pytest.raises(ValueError, match="optimizer: LBFGS keeps steps and gradients of all parameters in"):
        sparse.SET().attach(model, torch.optim.LBFGS(model.parameters()))


def test_models_that_cannot_be_attached():
    dense = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="no sparse layer.*tk.sparsify"):
        sparse.SET().attach(dense, torch.optim.SGD(dense.parameters()))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        sparse.SET().attach([dense], torch.optim.SGD(dense.parameters()))
    mixed = Network([sparse.Topology.random(4, 4, 0.5), sparse.Topology.random(4, 4, 0.5, n_models=2)])
    optimizer = torch.optim.SGD(mixed.parameters())
    for recipe in (
        sparse.RigL(**TIMING, scope="global"),
        sparse.SNFS(**TIMING),
        sparse.GradualMagnitude(final_density=0.1, end=100, scope="global"),
        sparse.LotteryTicket(rounds=1, round_steps=1, scope="global"),
    ):
        with pytest.raises(ValueError, match="same number of models"):
            recipe.attach(mixed, optimizer)
    with pytest.raises(ValueError, match="final_density must be below that of every layer"):
        sparse.GradualMagnitude(final_density=0.6, end=100).attach(mixed, optimizer)


@pytest.mark.parametrize("recipe", [sparse.SNFS(end=200), sparse.RigL(end=200, scope="global")])
def test_connections_that_cannot_move_between_layers(recipe):
    model = network(9, 12, 7, capacity=1.0)
    with pytest.warns(UserWarning, match="no layer has room for more than it has.*capacity=") as warned:
        recipe.attach(model, torch.optim.SGD(model.parameters()))
    assert warned[0].filename == __file__
    model = network(9, 12, 7, capacity=1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe.attach(model, torch.optim.SGD(model.parameters()))
        alone = network(9, 12, capacity=1.0)
        recipe.attach(alone, torch.optim.SGD(alone.parameters()))


def with_snapshot(model, optimizer, topology, match, error=RuntimeError):
    before = {k: v.clone() for k, v in everything(model, optimizer, topology).items()}
    steps = topology.steps
    with pytest.raises(error, match=match):
        topology.step()
    assert topology.steps == steps and topology.history == []
    assert_same(everything(model, optimizer, topology), before)


@pytest.mark.parametrize("recipe", ["rigl", "snfs", "gse", "srigl"])
def test_growth_without_a_backward_pass(recipe):
    changes = {} if recipe == "snfs" else {"accumulate": 1}
    model, optimizer, topology = start(replace(RECIPES[recipe], **changes))
    while not topology.recipe.observes(topology.steps + 1):
        train(model, optimizer, topology, range(1))
    with_snapshot(model, optimizer, topology, "no backward pass with captured gradients")


def test_sensitivity_without_gradients():
    recipe = sparse.PruneAndGrow(prune=sparse.Sensitivity(), grow=sparse.RandomGrowth(), interval=1, end=9)
    model, optimizer, topology = start(recipe)
    with_snapshot(model, optimizer, topology, "'layers.0' have no gradient: call topology.step\\(\\) after")
    x = batch(0, 9, 2)
    loss_of(model(x), x).backward()
    assert topology.step().grown > 0


def test_an_optimizer_whose_state_cannot_follow():
    model, optimizer, topology = start(sparse.SET(interval=1))
    x = batch(0, 9, 2)
    loss_of(model(x), x).backward()
    optimizer.step()
    optimizer.state[model.layers[1].values]["factor"] = torch.ones(3)
    with_snapshot(model, optimizer, topology, "AdamW keeps 'factor' .*'layers.1'.* cannot follow", ValueError)
    optimizer.state[model.layers[1].values]["factor"] = [torch.ones(3)]
    with pytest.raises(ValueError, match="cannot follow"):
        topology.step()
    optimizer.state[model.layers[1].values]["factor"] = [1, torch.ones(())]
    assert topology.step().grown > 0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: sparse.RigL(), ValueError, "'cosine' goes to 0 at `end`, so it needs end"),
        (lambda: sparse.RigL(end=100, drop_fraction=1.1), ValueError, "drop_fraction"),
        (
            lambda: sparse.RigL(end=100, schedule="quadratic"),
            ValueError,
            "schedule must be one of 'constant'",
        ),
        (lambda: sparse.RigL(end=100, schedule=3), TypeError, "schedule must be one of"),
        (lambda: sparse.RigL(end=100, interval=0), ValueError, "interval"),
        (lambda: sparse.RigL(end=100, begin=100), ValueError, "end"),
        (lambda: sparse.RigL(end=100, interval=5, accumulate=6), ValueError, r"accumulate .* interval \(5\)"),
        (lambda: sparse.RigL(end=100, scope="row"), ValueError, "scope must be one of 'layer', 'global'"),
        (lambda: sparse.RigL(end=100, minimum_fan_in=-1), ValueError, "minimum_fan_in"),
        (lambda: sparse.RigL(end=100, grow=sparse.DenseGradient), TypeError, "grow must be a grow criterion"),
        (lambda: sparse.RigL(end=100, prune="magnitude"), TypeError, "prune must be a prune criterion"),
        (lambda: sparse.RigL(end=100, seed=0, track_explored=1), TypeError, "track_explored"),
        (lambda: sparse.SET(grown_std=-1), ValueError, "grown_std"),
        (lambda: sparse.SET(scope="global"), ValueError, "by_sign"),
        (lambda: sparse.SNFS(end=9, scope="global"), ValueError, "redistribution is for"),
        (lambda: sparse.SRigL(end=9, scope="global"), ValueError, "constant fan-in goes with"),
        (lambda: sparse.SRigL(end=9, ablation=2.0), ValueError, "ablation"),
        (lambda: sparse.SRigL(end=9, grow=sparse.SampledGradient()), ValueError, "fill any row"),
        (lambda: sparse.SampledGradient(ratio=0), ValueError, "ratio must be above 0"),
        (lambda: sparse.MomentumGrowth(decay=1.0), ValueError, "decay"),
        (lambda: sparse.GradualMagnitude(final_density=0.0, end=100), ValueError, "final_density"),
        (
            lambda: sparse.GradualMagnitude(final_density=0.1, end=99),
            ValueError,
            "at least begin \\+ interval",
        ),
        (lambda: sparse.LotteryTicket(rounds=0, round_steps=5), ValueError, "rounds"),
        (lambda: sparse.LotteryTicket(rounds=1, round_steps=5, rewind_to=5), ValueError, "rewind_to"),
        (lambda: sparse.LotteryTicket(rounds=1, round_steps=5, drop_fraction=0.0), ValueError, "above 0"),
    ],
)
def test_bad_recipes(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_schedules():
    timing = Timing(interval=10, begin=20, end=60)
    assert [t for t in range(100) if timing.is_update(t)] == [30, 40, 50, 60]
    assert [timing.next_update(t) for t in (0, 29, 30, 31, 60, 61)] == [30, 30, 30, 40, 60, None]
    for t in (20, 30, 60):
        past = (t - 20) / 40
        assert drop_fraction("cosine", 0.3, t, timing) == pytest.approx(0.15 * (1 + math.cos(math.pi * past)))
        assert drop_fraction("linear", 0.3, t, timing) == pytest.approx(0.3 * (1 - past))
        assert drop_fraction("constant", 0.3, t, timing) == 0.3
        assert drop_fraction(lambda step: 1 / step, 0.3, t, timing) == 1 / t
    with pytest.raises(ValueError, match=r"schedule\(30\) must be"):
        drop_fraction(lambda step: 2.0, 0.3, 30, timing)


@pytest.mark.parametrize(
    "recipe",
    [
        sparse.GradualMagnitude(final_density=0.02, interval=1, end=5, minimum_fan_in=1),
        sparse.LotteryTicket(rounds=5, round_steps=1, drop_fraction=0.9, minimum_fan_in=1),
        sparse.RigL(interval=1, end=9, drop_fraction=1.0, schedule="constant", minimum_fan_in=1),
        sparse.SNFS(interval=1, end=9, drop_fraction=1.0, schedule="constant", minimum_fan_in=1),
        sparse.RigL(interval=1, end=9, scope="global", drop_fraction=0.9, minimum_fan_in=1),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_minimum_fan_in_holds(recipe):
    """Of what an output has, one connection stays; without the argument many outputs lose all."""
    for minimum in (1, 0):
        model = network(9, 12, 7, density=0.2, n_models=20, capacity=1.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = [layer.topology.fan_in for layer in model.layers]
        topology = replace(recipe, minimum_fan_in=minimum).attach(model, optimizer)
        train(model, optimizer, topology, range(6))
        after = [layer.topology.fan_in for layer in model.layers]
        if minimum:
            for fan_in, had in zip(after, before, strict=True):
                assert bool((fan_in >= had.clamp(max=1)).all())
                if not any(update.grown for update in topology.history):
                    assert torch.equal(fan_in, had.clamp(max=1))
        else:
            lost = [((f == 0) & (had > 0)).sum() for f, had in zip(after, before, strict=True)]
            assert sum(lost) > 10


def test_shares():
    dealt = shared_out(
        torch.tensor([7, 10, 0, 4]),
        torch.tensor([[1.0, 1.0, 1.0], [5.0, 3.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).double(),
        torch.tensor([[9, 9, 9], [2, 3, 4], [9, 9, 9], [2, 6, 0]]),
    )
    assert dealt.tolist() == [[3, 2, 2], [2, 3, 4], [0, 0, 0], [1, 3, 0]]


def test_largest_of_groups():
    score = torch.tensor([3.0, 1.0, 3.0, 2.0, 9.0, float("nan")])
    group = torch.tensor([1, 0, 1, 0, 1, 3])
    chosen = largest_of_groups(score, group, torch.tensor([1, 2, 5, 1]))
    assert chosen.tolist() == [True, False, False, True, True, True]


def test_move_is_in_place():
    state = torch.tensor([1.0, 2.0, 3.0])
    pointer = state.data_ptr()
    move(state, torch.tensor([1, 2, -1]))
    assert state.tolist() == [2, 3, 0] and state.data_ptr() == pointer


class _Score:
    """A prune criterion of a user's own, with whatever score."""

    def __init__(self, score):
        self._score = score

    def score(self, layer, number):
        return self._score(layer)


@pytest.mark.parametrize(
    "score",
    [
        lambda layer: layer.per_model(layer.values.abs()),
        lambda layer: layer.values.abs()[:7],
        lambda layer: layer.values.abs().long(),
        lambda layer: None,
    ],
)
def test_a_score_of_another_shape_is_refused(score):
    layer = tk.SparseLinear(20, 30, density=0.1, n_models=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    recipe = sparse.PruneAndGrow(prune=_Score(score), grow=sparse.RandomGrowth(), interval=1, end=9)
    topology = recipe.attach(layer, optimizer)
    layer(torch.randn(3, 4, 20)).sum().backward()
    optimizer.step()
    values, column = layer.values.detach().clone(), layer.column.clone()
    with pytest.raises(ValueError, match="_Score.score must give the sparse layer"):
        topology.step()
    assert torch.equal(layer.values, values) and torch.equal(layer.column, column)


@pytest.mark.parametrize(
    ("drop", "grow", "name"),
    [
        (torch.ones(1, dtype=torch.bool), torch.empty(0, dtype=torch.int64), "drop"),
        (torch.ones(2), torch.empty(0, dtype=torch.int64), "drop"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([2], dtype=torch.int32), "grow"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([2.0]), "grow"),
    ],
)
def test_a_change_of_other_types_is_refused(drop, grow, name):
    from toykern.sparse.change import Change, changed

    old = sparse.Topology.from_mask(torch.tensor([[True, True, False]]))
    with pytest.raises(ValueError, match=f"{name} must be"):
        changed(old, Change(drop, grow))


@pytest.mark.parametrize("key", ["layers", "steps", "history", "memory", "fingerprint"])
def test_a_state_that_is_not_whole_is_refused_and_nothing_is_changed(key):
    layer = tk.SparseLinear(20, 30, density=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    topology = sparse.SET(**TIMING).attach(layer, optimizer)
    other = sparse.SET(**TIMING).attach(layer, optimizer)
    other.step()
    state = other.state_dict()
    before = str(topology.state_dict())
    del state[key]
    with pytest.raises(ValueError, match=f"state lacks {key}"):
        topology.load_state_dict(state)
    assert str(topology.state_dict()) == before
