"""Layers whose outputs share their inputs in groups: built, computed and moved on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk
from toykern.sparse import Topology
from toykern.sparse.groups import expanded, reduced, slots_of_units

RECIPES = [
    tk.SET(interval=2),
    tk.RigL(interval=2, end=100),
    tk.SRigL(interval=2, end=100),
    tk.SRigL(interval=2, end=100, ablation=0.9, ablate_last=True),
    tk.SNFS(interval=2, end=100, redistribution=None),
    tk.GSE(interval=2, end=100),
    tk.GradualMagnitude(final_density=0.05, interval=2, end=8),
    tk.LotteryTicket(rounds=2, round_steps=3),
    tk.sparse.PruneAndGrow(prune=tk.sparse.Sensitivity(), interval=2, end=100, minimum_fan_in=1),
    tk.sparse.PruneAndGrow(prune=tk.sparse.Magnitude(by_sign=True), interval=2, end=100),
    tk.sparse.PruneAndGrow(prune=tk.sparse.RandomPrune(), interval=2, end=100, grown_std=0.1),
]


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(0, 4),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)  # fmt: skip
def test_expanded_and_reduced_are_inverses(n_models, groups, group, in_features, slack, density):
    units = torch.rand(n_models, groups, in_features) < density
    small = Topology.from_mask(units)
    full = expanded(small, group, small.capacity * group + slack)
    Topology(in_features, groups * group, full.row_start, full.column)  # passes its own checks
    assert torch.equal(full.to_mask(), units.repeat_interleave(group, dim=1))
    back = reduced(full, group)
    Topology(in_features, groups, back.row_start, back.column)
    assert torch.equal(back.to_mask(), units)
    slot = slots_of_units(small, group, full.capacity)
    named = torch.arange(len(full.column))
    for unit in small.occupied_slots().tolist():
        mine = named[slot[unit]]
        assert (full.column[mine] == small.column[unit]).all()
        row = small.row[unit] * group + torch.arange(group)
        assert torch.equal(full.row[mine], row)
    assert (slot[~small.occupied()] == -1).all()


def test_rows_that_differ_are_refused():
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()
    for wrong in (mask, torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()):
        with pytest.raises(ValueError, match="same columns in every 2 neighbours"):
            reduced(Topology.from_mask(wrong), 2)
        with pytest.raises(ValueError, match="same columns"):
            tk.SparseLinear(3, 2, topology=Topology.from_mask(wrong), group=2)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match=r"group must divide out_features \(6\), not 4"):
        tk.SparseLinear(8, 6, fan_in=2, group=4)
    with pytest.raises(ValueError, match="group needs fan_in"):
        tk.SparseLinear(8, 6, density=0.5, group=2)
    with pytest.raises(ValueError, match="group"):
        tk.SparseLinear(8, 6, fan_in=2, group=0)


def test_a_layer_with_groups():
    layer = tk.SparseLinear(50, 24, fan_in=[7, 3], n_models=2, group=8, seed=[1, 2])
    mask = layer.topology.to_mask().reshape(2, 3, 8, 50)
    assert (mask == mask[:, :, :1]).all() and (mask[:, 0, 0] != mask[:, 1, 0]).any()
    assert layer.topology.fan_in.unique(dim=1).tolist() == [[7], [3]]
    alone = tk.SparseLinear(50, 24, fan_in=3, group=8, seed=2)
    assert torch.equal(alone.topology.to_mask()[0], layer.topology.to_mask()[1])
    x = torch.randn(5, 50)
    expected = torch.einsum("bi,koi->kbo", x, layer.to_dense()) + layer.bias[:, None]
    torch.testing.assert_close(layer(x), expected)
    assert "group=8" in repr(layer)
    roomy = tk.SparseLinear(50, 24, fan_in=3, group=8, seed=2, capacity=100)
    assert roomy.topology.capacity == 100 and torch.equal(roomy.topology.to_mask(), alone.topology.to_mask())


def trained(recipe, layer, optimizer, steps=8):
    """Steps of a recipe; what the layer and its optimiser were before and after each."""
    topology = recipe.attach(layer, optimizer)
    generator = torch.Generator().manual_seed(4)
    before = []
    for _ in range(steps):
        x = torch.randn(30, layer.in_features, generator=generator)
        loss = (layer(x) - x[:, : layer.out_features].square()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before.append((layer.to_dense().detach().clone(), moments(layer, optimizer), layer.topology))
        topology.step()
        yield topology, before[-1]


def moments(layer, optimizer):
    return layer.topology.to_dense(optimizer.state[layer.values]["exp_avg"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{type(r).__name__}")
def test_recipes_keep_groups_and_what_belongs_to_connections(recipe):
    torch.manual_seed(0)
    layer = tk.SparseLinear(20, 12, fan_in=6, group=4, n_models=2, seed=[1, 2])
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for topology, (weight, exp_avg, old) in trained(recipe, layer, optimizer):
        new = layer.topology
        reduced(new, 4)
        stayed = new.to_mask() & old.to_mask()
        if topology.updates and topology.history[-1].step == topology.steps:
            report = topology.history[-1].layers[""]
            assert torch.equal(report.dropped, (old.to_mask() & ~stayed).sum(dim=(1, 2)))
            assert torch.equal(report.grown, (new.to_mask() & ~stayed).sum(dim=(1, 2)))
            assert torch.equal(report.connections, new.n_connections)
        if isinstance(recipe, tk.LotteryTicket):
            continue  # goes back to the first weights
        assert torch.equal(layer.to_dense()[stayed], weight[stayed])
        assert torch.equal(moments(layer, optimizer)[stayed], exp_avg[stayed])
        assert not moments(layer, optimizer)[~stayed].any()
    assert topology.updates >= 2 and sum(update.dropped for update in topology.history) > 0


def test_rigl_moves_the_units_of_least_weight_and_greatest_gradient():
    layer = tk.SparseLinear(30, 12, fan_in=8, group=3, seed=5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    topology = tk.RigL(interval=1, end=100, drop_fraction=0.5, schedule="constant").attach(layer, optimizer)
    x = torch.randn(40, 30)
    layer(x).square().sum().backward()
    gradient = layer.dense_gradient()[0].abs().reshape(4, 3, 30).mean(dim=1)
    optimizer.step()
    weight = layer.to_dense()[0].detach().abs().reshape(4, 3, 30).mean(dim=1)
    there = layer.topology.to_mask()[0, ::3]
    drop = weight.masked_fill(~there, torch.inf).reshape(-1).argsort()[: int(there.sum()) // 2]
    kept = there.clone().reshape(-1)
    kept[drop] = False
    grow = gradient.reshape(-1).masked_fill(kept, -1).argsort(descending=True)[: len(drop)]
    kept[grow] = True
    topology.step()
    assert torch.equal(layer.topology.to_mask()[0, ::3], kept.reshape(4, 30))


def test_constant_fan_in_stays_constant():
    layer = tk.SparseLinear(40, 32, fan_in=6, group=8, seed=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in trained(tk.SRigL(interval=2, end=100), layer, optimizer, steps=6):
        assert (layer.topology.fan_in == 6).all() and layer._width == 8


def test_scopes_over_several_layers_are_refused():
    model = torch.nn.Sequential(tk.SparseLinear(8, 6, fan_in=2, group=2), tk.SparseLinear(6, 4, density=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for recipe in (
        tk.sparse.PruneAndGrow(scope="global", end=100),
        tk.LotteryTicket(rounds=1, round_steps=2, scope="global"),
        tk.GradualMagnitude(final_density=0.05, end=100, scope="global"),
    ):
        with pytest.raises(ValueError, match=r"\['0'\] have groups"):
            recipe.attach(model, optimizer)


def test_state_dicts_pickles_and_topologies_that_do_not_fit():
    layer = tk.SparseLinear(20, 12, fan_in=6, group=4, seed=1)
    other = tk.SparseLinear(20, 12, fan_in=9, group=4, seed=2)
    other.load_state_dict(layer.state_dict())
    assert other.topology == layer.topology and other._width == 8
    assert copy.deepcopy(layer).group == 4
    loose = tk.SparseLinear(20, 12, fan_in=6, seed=3)
    before = layer.topology
    with pytest.raises(RuntimeError, match="same columns"):
        layer.load_state_dict(loose.state_dict())
    with pytest.raises(ValueError, match="same columns"):
        layer.set_topology(loose.topology, torch.full_like(loose.column, -1, dtype=torch.int64))
    assert layer.topology == before


def test_a_run_goes_on_from_a_checkpoint():
    def start():
        layer = tk.SparseLinear(20, 12, fan_in=6, group=4, seed=1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        return layer, optimizer, tk.GSE(interval=2, end=100).attach(layer, optimizer)

    def step(layer, optimizer, topology, seed):
        x = torch.randn(30, 20, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (layer(x) - 1).square().mean().backward()
        optimizer.step()
        topology.step()

    whole = start()
    for seed in range(9):
        step(*whole, seed)
    first = start()
    for seed in range(5):
        step(*first, seed)
    second = start()
    for part, saved in zip(second, first, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    for seed in range(5, 9):
        step(*second, seed)
    assert second[0].topology == whole[0].topology and torch.equal(second[0].values, whole[0].values)
