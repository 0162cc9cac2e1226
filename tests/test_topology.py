"""Topologies: what may be in one, how one is made, and that changes keep count, order and survivors."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern.data.philox import philox
from toykern.sparse import Topology
from toykern.sparse.draws import distinct, scaled, words64
from toykern.sparse.selection import largest


def by_loops(topology: Topology) -> list[list[list[int]]]:
    """The columns of every row of every model, read slot by slot."""
    column = topology.column.tolist()
    rows = []
    for k, start in enumerate(topology.row_start.tolist()):
        base = k * topology.capacity
        rows.append([column[base + a : base + b] for a, b in zip(start, start[1:], strict=False)])
    return rows


def assert_sound(topology: Topology) -> None:
    """It passes its own checks, and agrees with a dense mask built slot by slot."""
    Topology(topology.in_features, topology.out_features, topology.row_start, topology.column)
    mask = torch.zeros(topology.n_models, topology.out_features, topology.in_features, dtype=torch.bool)
    for k, rows in enumerate(by_loops(topology)):
        for r, columns in enumerate(rows):
            assert columns == sorted(set(columns))
            mask[k, r, columns] = True
    assert torch.equal(topology.to_mask(), mask)
    assert torch.equal(topology.n_connections, mask.sum(dim=(1, 2)))
    assert torch.equal(topology.fan_in, mask.sum(dim=2))
    assert torch.equal(topology.fan_out, mask.sum(dim=1))
    assert torch.equal(topology.keys(), mask.reshape(-1).nonzero()[:, 0])


@st.composite
def masks(draw):
    shape = [draw(st.integers(1, most)) for most in (3, 7, 9)]
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.rand(shape, generator=generator) < density


@st.composite
def changes(draw):
    """A mask, some slots to drop, and some places to grow that are free or dropped."""
    mask = draw(masks())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    drop_mask = mask & (torch.rand(mask.shape, generator=generator) < draw(st.sampled_from([0, 0.3, 1])))
    free = ~mask | drop_mask
    grow_mask = free & (torch.rand(mask.shape, generator=generator) < draw(st.sampled_from([0, 0.2, 0.7])))
    return mask, drop_mask, grow_mask


@given(masks(), st.integers(0, 3))
def test_mask_and_back(mask, slack):
    topology = Topology.from_mask(mask)
    assert_sound(topology)
    assert torch.equal(topology.to_mask(), mask)
    assert topology.capacity == int(mask.sum(dim=(1, 2)).max())
    roomy = Topology.from_mask(mask, capacity=topology.capacity + slack)
    assert_sound(roomy)
    assert torch.equal(roomy.to_mask(), mask) and roomy.capacity == topology.capacity + slack
    assert (roomy == topology) == (slack == 0)


@given(changes())
def test_changes_keep_what_survives(change):
    mask, drop_mask, grow_mask = change
    expected = (mask & ~drop_mask) | grow_mask
    capacity = int(torch.stack([mask.sum(dim=(1, 2)), expected.sum(dim=(1, 2))]).max())
    topology = Topology.from_mask(mask, capacity=capacity)
    values = torch.zeros(len(topology.column))
    values[topology.occupied_slots()] = 1.0 + topology.keys().float()  # a name for every connection
    drop = torch.zeros_like(topology.occupied())
    drop[topology.occupied_slots()] = drop_mask.reshape(-1)[topology.keys()]
    grow = grow_mask.nonzero()
    grow = grow[torch.randperm(len(grow), generator=torch.Generator().manual_seed(0))]  # in any order
    before = copy.deepcopy(topology)
    changed, old_slot = topology.with_changes(drop, tuple(grow.T))
    assert topology == before
    assert_sound(changed)
    assert changed.capacity == capacity
    assert torch.equal(changed.to_mask(), expected)
    moved = torch.where(old_slot < 0, 0.0, values[old_slot])
    survivors = mask & ~drop_mask
    dense = torch.arange(mask.numel()).reshape(mask.shape) + 1.0
    assert torch.equal(changed.to_dense(moved), torch.where(survivors, dense, 0.0))
    assert torch.equal(old_slot >= 0, changed.occupied() & (moved != 0))
    taken = old_slot[old_slot >= 0]
    assert len(taken.unique()) == len(taken) == int(survivors.sum())


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.02, 1), st.integers(1, 3), st.integers(0, 99))
def test_random_has_the_density(in_features, out_features, density, n_models, seed):
    count = int(np.floor(density * in_features * out_features + 0.5))
    if count == 0:
        with pytest.raises(ValueError, match="leaves no connection"):
            Topology.random(in_features, out_features, density)
        return
    topology = Topology.random(in_features, out_features, density, n_models=n_models, seed=seed)
    assert_sound(topology)
    assert topology.n_connections.tolist() == [count] * n_models
    fan_in = count // out_features
    if fan_in:
        enough = Topology.random(in_features, out_features, density, seed=seed, minimum_fan_in=fan_in)
        assert_sound(enough)
        assert enough.n_connections.tolist() == [count] and int(enough.fan_in.min()) == fan_in
        constant = Topology.random_fan_in(in_features, out_features, fan_in, n_models=n_models, seed=seed)
        assert_sound(constant)
        assert (constant.fan_in == fan_in).all()


def test_every_position_is_equally_likely():
    """Each of 4000 draws takes 4 (or 20) of 24 positions: counts are binomial, all within 5 deviations."""
    for density in (4 / 24, 20 / 24):
        counts = Topology.random(6, 4, density, n_models=4000).to_mask().sum(dim=0)
        deviation = (4000 * density * (1 - density)) ** 0.5
        assert (counts - 4000 * density).abs().max() < 5 * deviation
        assert (counts - 4000 * density).abs().float().mean() > 0.3 * deviation  # and they do vary
    counts = Topology.random_fan_in(6, 4, 2, n_models=4000).to_mask().sum(dim=0)
    assert (counts - 4000 / 3).abs().max() < 5 * (4000 * 2 / 9) ** 0.5
    counts = Topology.random(6, 4, 9 / 24, n_models=4000, minimum_fan_in=1).to_mask().sum(dim=0)
    assert (counts - 1500).abs().max() < 5 * (4000 * 15 / 64) ** 0.5


def test_a_model_alone_has_the_connections_it_has_among_others():
    for make in (
        lambda **k: Topology.random(9, 7, 0.3, **k),
        lambda **k: Topology.random(9, 7, 0.8, minimum_fan_in=2, **k),
        lambda **k: Topology.random_fan_in(9, 7, 3, **k),
    ):
        stack = make(n_models=5, seed=[3, 1, 4, 1, 2**40])
        assert torch.equal(stack.to_mask()[1], stack.to_mask()[3])
        assert not torch.equal(stack.to_mask()[0], stack.to_mask()[2])
        for k, seed in enumerate([3, 1, 4, 1, 2**40]):
            assert torch.equal(make(seed=seed).to_mask()[0], stack.to_mask()[k])
        assert not torch.equal(make(layer=1).to_mask(), make(layer=0).to_mask())


def test_per_model_densities():
    topology = Topology.random(10, 10, [0.05, 0.5, 1.0], n_models=3)
    assert_sound(topology)
    assert topology.n_connections.tolist() == [5, 50, 100] and topology.capacity == 100
    assert topology.density.tolist() == [0.05, 0.5, 1.0]
    assert "density=0.05 to 1" in repr(topology)


def test_largest_weights():
    weight = torch.tensor([[1.0, -3.0, 0.0], [2.0, -2.0, 0.5]])
    assert Topology.from_largest(weight, 2 / 6).to_mask()[0].int().tolist() == [[0, 1, 0], [1, 0, 0]]
    stack = Topology.from_largest(torch.stack([weight, weight.flip(1)]), [3 / 6, 1 / 6])
    assert stack.to_mask().int().tolist() == [[[0, 1, 0], [1, 1, 0]], [[0, 1, 0], [0, 0, 0]]]


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 999), st.booleans())
def test_largest_is_a_stable_sort(groups, size, seed, same):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 5, (groups, size)).astype(np.float64)
    score[generator.random((groups, size)) < 0.1] = -np.inf
    counts = generator.integers(0, size + 1, groups)
    if same:
        counts[:] = counts[0]
    expected = np.zeros((groups, size), bool)
    for g in range(groups):
        expected[g, np.argsort(-score[g], kind="stable")[: counts[g]]] = True
    assert np.array_equal(largest(torch.from_numpy(score), torch.from_numpy(counts)).numpy(), expected)


def test_largest_takes_nan_first():
    score = torch.tensor([[1.0, float("nan"), 3.0, float("nan")]])
    chosen = [largest(score, torch.tensor([c])).int()[0].tolist() for c in (1, 2, 3)]
    assert chosen == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1]]


def test_words_are_those_of_the_page():
    """docs/data_stream.md §9, one word at a time."""
    words = words64(np.array([5, 2**40 + 3]), np.array([0, 9]), 70, purpose="candidates", layer=6, step=11)
    for pair, (seed, group) in enumerate([(5, 0), (2**40 + 3, 9)]):
        for i in (0, 1, 15, 16, 31, 32, 69):
            block = philox(
                (16 * (i >> 5) + (i & 15), group, 11, 9 + 16 * 3 + 256 * 6), (seed % 2**32, seed >> 32)
            )
            half = (i >> 4) & 1
            assert int(words[pair, i]) == (int(block[2 * half]) << 32) + int(block[2 * half + 1])


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**62))
def test_scaled_is_exact(word, size):
    assert int(scaled(np.array([word], dtype=np.uint64), size)[0]) == word * size >> 64


def test_distinct_does_not_depend_on_who_stands_beside():
    sizes, counts = np.array([100, 7, 50, 3]), np.array([10, 6, 0, 3])
    pair, number = distinct(sizes, counts, np.arange(4), np.arange(4), purpose="grow", step=2)
    assert np.bincount(pair, minlength=4).tolist() == counts.tolist()
    for g in range(4):
        _, alone = distinct(sizes[[g]], counts[[g]], np.array([g]), np.array([g]), purpose="grow", step=2)
        assert alone.tolist() == number[pair == g].tolist() == sorted(set(alone.tolist()))
    with pytest.raises(ValueError, match="more different numbers"):
        distinct(np.array([2]), np.array([3]), np.array([0]), np.array([0]), purpose="grow")


def test_copies():
    topology = Topology.random(5, 4, 0.4, n_models=2)
    assert topology.row is topology.row  # kept once made
    file = io.BytesIO()
    torch.save(topology, file)
    file.seek(0)
    copies = [
        copy.deepcopy(topology),
        pickle.loads(pickle.dumps(topology)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert other == topology and other.column.data_ptr() != topology.column.data_ptr()
    assert topology.to("cpu") is topology
    assert topology != Topology.random(5, 4, 0.4, n_models=2, seed=9) and topology != 3


def test_nothing_connected():
    topology = Topology.from_mask(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert topology.capacity == 0 and topology.to_mask().sum() == 0
    assert_sound(topology)
    changed, old_slot = topology.with_changes(torch.zeros(0, dtype=torch.bool), (torch.zeros(0).long(),) * 3)
    assert changed == topology and len(old_slot) == 0


START, COLUMN = torch.tensor([[0, 2, 3]]), torch.tensor([0, 2, 1, 0], dtype=torch.int32)


@pytest.mark.parametrize(
    ("row_start", "column", "error", "match"),
    [
        (START.int(), COLUMN, TypeError, "row_start must be a 2-d int64 tensor"),
        (START, COLUMN.long(), TypeError, "column must be a 1-d int32 tensor"),
        (START[:, :2], COLUMN, ValueError, "row_start must have the shape"),
        (torch.tensor([[0, 2, 1]]), COLUMN, ValueError, "never descend"),
        (torch.tensor([[1, 2, 3]]), COLUMN, ValueError, "begin with 0"),
        (torch.tensor([[0, 2, 5]]), COLUMN, ValueError, "end at or below .*not at 5"),
        (START, torch.tensor([0, 3, 1, 0], dtype=torch.int32), ValueError, r"from 0 to .* \(2\), not 3"),
        (START, torch.tensor([0, -1, 1, 0], dtype=torch.int32), ValueError, "not -1"),
        (START, torch.tensor([2, 0, 1, 0], dtype=torch.int32), ValueError, "ascend .* row 0, column 0"),
        (START, torch.tensor([1, 1, 1, 0], dtype=torch.int32), ValueError, "without repeats"),
        (
            START,
            torch.tensor([0, 2, 1, 1], dtype=torch.int32),
            ValueError,
            "0 in the slots that belong to no",
        ),
        (START.repeat(3, 1), COLUMN, ValueError, "same number of slots for each of 3"),
    ],
)
def test_bad_arrays(row_start, column, error, match):
    Topology(3, 2, START, COLUMN)
    with pytest.raises(error, match=match):
        Topology(3, 2, row_start, column)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Topology.random(4, 4, 0.0), ValueError, "density must be above 0"),
        (lambda: Topology.random(4, 4, 1.01), ValueError, "density must be above 0"),
        (lambda: Topology.random(4, 4, 0.01), ValueError, "leaves no connection .* 4 × 4"),
        (lambda: Topology.random(0, 4, 0.5), ValueError, "in_features"),
        (lambda: Topology.random(4, 4, [0.5, 0.5]), ValueError, "density"),
        (lambda: Topology.random(4, 4, 0.4, minimum_fan_in=2), ValueError, "least density is 0.5"),
        (lambda: Topology.random(4, 4, 0.5, minimum_fan_in=5), ValueError, "minimum_fan_in"),
        (lambda: Topology.random(4, 4, 0.5, capacity=7), ValueError, "capacity must be at least"),
        (lambda: Topology.random(4, 4, 0.5, seed=-1), ValueError, "seed"),
        (lambda: Topology.random_fan_in(4, 4, 5), ValueError, "fan_in must be from 1 to"),
        (lambda: Topology.random_fan_in(4, 4, 1.5), TypeError, "fan_in must hold integers"),
        (lambda: Topology.from_mask(torch.ones(2, 2)), TypeError, "mask must be a bool tensor"),
        (lambda: Topology.from_mask(torch.ones(2, 0).bool()), ValueError, "none of them 0"),
        (lambda: Topology.from_largest(torch.ones(2), 0.5), ValueError, "weight must have the shape"),
        (lambda: Topology.from_largest(torch.ones(2, 2).int(), 0.5), TypeError, "floating-point"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def places(*triples: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).T)


@pytest.mark.parametrize(
    ("drop", "grow", "error", "match"),
    [
        ([False] * 3, places(), ValueError, "drop must be a bool tensor with one entry for each slot"),
        ([False] * 4, places((0, 0, 2)), ValueError, "row 0, column 2.* connected already"),
        ([True] + [False] * 3, places((0, 0, 1), (0, 0, 1)), ValueError, "column 1.* more than once"),
        ([False] * 4, places((0, 0, 1), (0, 1, 0)), ValueError, "5 connections, .* capacity of 4"),
        ([False] * 4, places((1, 0, 1)), ValueError, "model must be from 0 to 0, not 1"),
        ([False] * 4, places((0, -1, 1)), ValueError, "row must be from 0 to 1, not -1"),
        ([False] * 4, places((0, 0, 3)), ValueError, "column must be from 0 to 2, not 3"),
        ([False] * 4, (torch.zeros(1), *places((0, 0, 1))[1:]), TypeError, "model must be an int64"),
        ([False] * 4, places((0, 0, 1))[:2], ValueError, r"tuple \(model, row, column\)"),
    ],
)
def test_bad_changes(drop, grow, error, match):
    topology = Topology(3, 2, START, COLUMN)
    before = copy.deepcopy(topology)
    with pytest.raises(error, match=match):
        topology.with_changes(torch.tensor(drop), grow)
    assert topology == before


def test_rows_that_do_not_fit_into_memory_are_refused_before_there_are_any(monkeypatch):
    monkeypatch.setattr("toykern.arguments.memory.free_memory", lambda device: 2**28)
    for arguments in ({"n_models": 10**9}, {"out_features": 10**9}):
        with pytest.raises(MemoryError, match=f"{next(iter(arguments))}=1,000,000,000"):
            Topology.random(**({"in_features": 3, "out_features": 3, "density": 0.5} | arguments))
