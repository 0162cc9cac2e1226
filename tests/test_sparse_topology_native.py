"""Native updates of a topology give what PyTorch and NumPy give, bit by bit, on any number of threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toykern.ops import sparse_topology as native
from toykern.ops.sparse_index import SparseIndex
from toykern.ops.sparse_ties import Ties
from toykern.sparse.change import Change, changed, changed_anywhere
from toykern.sparse.draws import distinct, free_numbers
from toykern.sparse.prune import lowest_anywhere, lowest_of_layer
from toykern.sparse.topology import Topology

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-42, -1e-42, 1.0, -1.0, 3.4e38]


def _oracle_largest(score, counts, taken, absolute):
    """By a stable sort of every row: NaN first, ties by index."""
    score = score.abs() if absolute else score.clone()
    allowed = torch.ones(score.numel(), dtype=torch.bool)
    allowed[taken] = False
    chosen = []
    for row, count in enumerate(counts.tolist()):
        order = torch.sort(score[row], descending=True, stable=True).indices + row * score.shape[1]
        chosen.append(order[allowed[order]][:count])
    return torch.cat(chosen).sort().values


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 10), (40, 4096), (1, 5000), (2, 70_000), (5, 4095)])
def test_largest(groups, size, absolute, dtype):
    generator = torch.Generator().manual_seed(size)
    score = torch.randn(groups, size, generator=generator, dtype=dtype)
    score[torch.rand(score.shape, generator=generator) < 0.3] = 0.5  # many ties
    special = torch.rand(score.shape, generator=generator) < 0.05
    some = torch.randint(0, len(SPECIAL), score.shape, generator=generator)
    score = torch.where(special, torch.tensor(SPECIAL, dtype=dtype)[some], score)
    taken = (torch.rand(score.numel(), generator=generator) < 0.2).nonzero()[:, 0]
    for fraction in (0.0, 0.1, 0.45, 0.9, 1.0):
        counts = torch.randint(0, int(fraction * size) + 1, (groups,), generator=generator)
        for given_taken in (taken, taken[:0]):
            expected = _oracle_largest(score, counts, given_taken, absolute)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                ours = native.largest_indices(score, counts, given_taken, absolute=absolute)
                assert torch.equal(ours, expected)


@pytest.mark.sanitize
@pytest.mark.parametrize("value", SPECIAL)
def test_largest_of_equal_scores_are_the_first(value):
    score = torch.full((2, 6000), value)
    assert native.largest_indices(score, torch.tensor([3, 2])).tolist() == [0, 1, 2, 6000, 6001]
    score[0, 5000] = float("nan")
    assert 5000 in native.largest_indices(score, torch.tensor([1 if value == value else 6000, 0])).tolist()


@pytest.mark.sanitize
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["normal", "rising", "equal", "ties", "zero"]), min_size=6, max_size=6),
    wanted=st.floats(0, 1.1),
    taken=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_largest_of_pieces(lengths, kinds, wanted, taken, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    makers = {
        "normal": lambda n: torch.randn(n, generator=generator),
        "rising": lambda n: torch.arange(n) * 1e-3,
        "equal": lambda n: torch.full((n,), -2.0),
        "ties": lambda n: torch.randint(-3, 4, (n,), generator=generator) * 1.0,
        "zero": lambda n: torch.zeros(n) * -1,
    }
    pieces = [makers[kind](length).to(dtype) for length, kind in zip(lengths, kinds, strict=False)]
    for piece in pieces:
        special = torch.rand(piece.shape, generator=generator) < 0.01
        some = torch.randint(0, len(SPECIAL), piece.shape, generator=generator)
        piece[special] = torch.tensor(SPECIAL, dtype=dtype)[some[special]]
    whole, first = torch.cat(pieces), 5_000_000_000  # beyond 32 bits
    gone = (torch.rand(whole.shape, generator=generator) < taken * taken).nonzero()[:, 0]
    count = int(wanted * len(whole))
    expected = _oracle_largest(whole[None], torch.tensor([count]), gone, True)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        stream, start = native.LargestOfPieces(count), 0
        for piece in pieces:
            end = start + len(piece)
            here = gone[(gone >= start) & (gone < end)] + first
            stream.add(piece, first + start, here)
            start = end
        place, score = stream.finish()
        assert torch.equal(place - first, expected)
        assert torch.equal(score.nan_to_num(nan=-1.0), whole[expected].abs().nan_to_num(nan=-1.0))


@pytest.mark.sanitize
@pytest.mark.parametrize("count", [1, 1000, 30_000])
def test_pieces_that_fall_and_rise_by_much(count):
    """Thresholds guessed from a sample are wrong here, and keys equal to the last one chosen go on coming."""
    generator = torch.Generator().manual_seed(count)
    scale = [1.0, 1e-3, 1e3, 1e3, 1e-3, 1.0, 1e6]
    pieces = [torch.rand(70_000, generator=generator) * by for by in scale]
    pieces[2][::2] = 77.0
    pieces[3] = torch.full_like(pieces[3], 77.0)
    pieces[4][5] = 1e30
    pieces[5] = torch.cat([torch.zeros(69_000), torch.full((1000,), 500.0)])
    bits = torch.tensor([0x42A7FFFF], dtype=torch.int32).view(torch.float32)  # the last key of its bin
    pieces.append(torch.cat([bits.repeat(100_000), bits.repeat(10) * 2]))
    whole = torch.cat(pieces)
    for threads in (1, 4):
        torch.set_num_threads(threads)
        for some in (pieces, pieces[::-1], [pieces[7], pieces[7] * 1.0, pieces[7]]):
            whole = torch.cat(some)
            stream, start = native.LargestOfPieces(count), 0
            for piece in some:
                stream.add(piece, start, torch.empty(0, dtype=torch.int64))
                start += len(piece)
            expected = _oracle_largest(
                whole[None], torch.tensor([count]), torch.empty(0, dtype=torch.int64), True
            )
            assert torch.equal(stream.finish()[0], expected)


def test_largest_of_all_that_is_free_where_less_is_free_than_asked():
    score = torch.randn(2, 5000)
    taken = torch.arange(9990)
    assert native.largest_indices(score, torch.tensor([7, 20]), taken).tolist() == list(range(9990, 10000))


@settings(max_examples=60)
@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 300),
    fraction=st.floats(0, 1),
    wanted=st.integers(0, 320),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**32 - 1),
    layer=st.integers(0, 2**24 - 1),
)
def test_random_places_are_those_of_the_draws(groups, size, fraction, wanted, seed, step, layer):
    generator = torch.Generator().manual_seed(size + groups)
    taken = (torch.rand(groups * size, generator=generator) < fraction).nonzero()[:, 0]
    counts = torch.randint(0, wanted + 1, (groups,), generator=generator)
    seeds = (seed - np.arange(groups)).clip(0)
    ids = np.arange(groups) * 7
    ours = native.random_places(taken, counts, seeds, ids, size, tag=9 + 16 + 256 * layer, step=step)
    used = taken.numpy()
    group = used // size
    free = size - np.bincount(group, minlength=groups)
    pair, rank = distinct(
        free, np.minimum(counts.numpy(), free), seeds, ids, purpose="grow", layer=layer, step=step
    )
    place = free_numbers(pair, rank, group, used - group * size, groups)
    assert ours.tolist() == (pair * size + place).tolist()


def test_many_random_places_on_any_number_of_threads():
    taken = (torch.rand(300_000, generator=torch.Generator().manual_seed(0)) < 0.1).nonzero()[:, 0]
    for groups in (1, 100):
        size = 300_000 // groups
        counts = torch.full((groups,), 30_000 // groups)
        seeds, ids = np.full(groups, 3), np.arange(groups)
        results = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(native.random_places(taken, counts, seeds, ids, size, tag=9, step=1))
        assert torch.equal(*results) and len(results[0]) == 30_000
        assert not np.isin(results[0].numpy(), taken.numpy()).any()
        assert bool((results[0].diff() > 0).all())


@pytest.mark.sanitize
@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 30)),
    density=st.floats(0, 1),
    dropped=st.floats(0, 1),
    slack=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_merge(shape, density, dropped, slack, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    capacity = int(mask.sum(dim=(1, 2)).max()) + slack
    topology = Topology.from_mask(mask, capacity=capacity)
    drop = torch.rand(len(topology.column), generator=generator) < dropped
    kept = topology.keys()[~drop[topology.occupied_slots()]]
    free = torch.ones(mask.numel(), dtype=torch.bool)
    free[kept] = False
    grown = (free & (torch.rand(len(free), generator=generator) < 0.2)).nonzero()[:, 0]
    room = capacity - torch.bincount(kept // (shape[1] * shape[2]), minlength=shape[0])
    model = grown // (shape[1] * shape[2])
    grown = torch.cat([grown[model == k][: int(room[k])] for k in range(shape[0])])
    row_start, column, old_slot, *_ = native.merge(topology.row_start, topology.column, drop, grown, shape[2])
    new = Topology(shape[2], shape[1], row_start, column)  # checks the order, the slack, everything
    expected = torch.zeros(mask.numel(), dtype=torch.bool)
    expected[kept] = expected[grown] = True
    assert torch.equal(new.to_mask().reshape(-1), expected)
    place = torch.full((len(column),), -1)
    place[topology.occupied_slots()] = topology.keys()
    came = torch.full((len(column),), -1)
    came[new.occupied_slots()] = torch.where(torch.isin(new.keys(), grown), -1, new.keys())
    assert torch.equal(torch.where(old_slot < 0, -1, place[old_slot.clamp(min=0)]), came)


@pytest.mark.sanitize
def test_keys():
    mask = torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[1] = False
    topology = Topology.from_mask(mask, capacity=40)
    expected = mask.reshape(-1).nonzero()[:, 0]
    assert torch.equal(native.keys(topology.row_start, topology.column, 11), expected)
    drop = torch.rand(len(topology.column), generator=torch.Generator().manual_seed(1)) < 0.4
    stays = ~drop[topology.occupied_slots()]
    assert torch.equal(native.keys(topology.row_start, topology.column, 11, drop), expected[stays])


def test_merge_refuses():
    topology = Topology.from_mask(torch.tensor([[True, False, True]]))
    arguments = (topology.row_start, topology.column)
    with pytest.raises(ValueError, match="clash 2"):
        native.merge(*arguments, torch.tensor([True, False]), torch.tensor([2]), 3)
    with pytest.raises(ValueError, match="crowded 3"):
        native.merge(*arguments, torch.tensor([False, False]), torch.tensor([1]), 3)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("count", [0, 3, 100_000])
def test_move(count, dtype):
    generator = torch.Generator().manual_seed(1)
    tensor = (torch.randn(count, generator=generator) * 3).to(dtype)
    old_slot = torch.randint(-count // 2 - 1, max(count, 1), (count,), generator=generator).clamp(min=-1)
    expected = torch.where(old_slot < 0, torch.zeros_like(tensor), tensor[old_slot.clamp(min=0)])
    one, other = tensor.clone(), tensor.clone()
    spread = torch.stack([tensor, tensor], dim=1)[:, 0]
    version = one._version
    native.move([one, spread, other], old_slot)
    assert torch.equal(one, expected) and torch.equal(spread, expected) and torch.equal(other, expected)
    assert one._version > version  # autograd sees that it changed
    for wrong in (old_slot + count, old_slot - 2):
        if count:
            kept = one.clone()
            with pytest.raises(ValueError, match="old_slot must be from −1 to"):
                native.move([one, spread], wrong)
            assert torch.equal(one, kept) and torch.equal(spread, kept)


class _Layer:
    """What choosing what goes asks of an attached layer."""

    def __init__(self, topology, values):
        self.topology, self.values = topology, values

    def of_units(self, score):
        return score

    def ties_of_slots(self, number):
        return Ties(torch.arange(self.topology.n_models) + 5, self.topology.capacity, 137, number)

    def per_model(self, slots):
        return slots.reshape(self.topology.n_models, self.topology.capacity)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("by_sign", [False, True])
@pytest.mark.parametrize(
    ("n_models", "shape"), [(1, (3, 5)), (4, (20, 30)), (1, (100, 120)), (3, (300, 400))]
)
def test_what_goes_is_what_pytorch_chooses(n_models, shape, by_sign, dtype):
    generator = torch.Generator().manual_seed(shape[0])
    mask = torch.rand(n_models, *shape, generator=generator) < torch.rand(n_models, 1, 1, generator=generator)
    topology = Topology.from_mask(mask, capacity=int(mask.sum(dim=(1, 2)).max()) + 7)
    values = torch.randn(len(topology.column), generator=generator, dtype=dtype)
    values[torch.rand(values.shape, generator=generator) < 0.3] = 0.5  # many ties
    values[torch.rand(values.shape, generator=generator) < 0.02] = float("nan")
    values[torch.rand(values.shape, generator=generator) < 0.02] = -0.0
    layer = _Layer(topology, values)
    may_go = torch.rand(values.shape, generator=generator) < 0.6
    for fraction in (0.0, 0.1, 0.29, 0.7, 1.0):
        counts = torch.randint(0, int(fraction * mask[0].numel()) + 1, (n_models,), generator=generator)
        for allowed in (None, may_go & topology.occupied()):
            for options in ({"fraction": fraction}, {"counts": counts}):
                given = (layer, values.abs(), allowed, 3)
                expected = lowest_anywhere(*given, by_sign=by_sign, **options)
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    ours = lowest_of_layer(*given, by_sign=by_sign, **options)
                    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


def test_infinite_weights_may_go_like_any_other():
    topology = Topology.from_mask(torch.ones(1, 2, dtype=torch.bool), capacity=3)
    score = torch.tensor([float("inf"), float("inf"), 0.0])
    drop, dropped = native.lowest_slots(
        score, topology.row_start, counts=torch.tensor([2]), allowed=torch.tensor([False, True, True])
    )
    assert drop.tolist() == [False, True, False] and dropped.tolist() == [1]  # slack never goes


def _assert_same_change(ours, expected):
    assert ours.topology == expected.topology
    for name in ("old_slot", "fresh", "dropped", "grown", "active_neurons", "active_inputs"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name


@pytest.mark.sanitize
@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 30)),
    density=st.floats(0, 1),
    dropped=st.floats(0, 1),
    wanted=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_change_is_what_pytorch_makes_of_it(shape, density, dropped, wanted, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    topology = Topology.from_mask(mask, capacity=shape[1] * shape[2])
    drop = torch.rand(len(topology.column), generator=generator) < dropped
    free = torch.ones(mask.numel(), dtype=torch.bool)
    free[topology.keys(drop)] = False
    grow = (free & (torch.rand(len(free), generator=generator) < wanted)).nonzero()[:, 0]
    grow = grow[torch.randperm(len(grow), generator=generator)]  # a criterion may give them in any order
    _assert_same_change(changed(topology, Change(drop, grow)), changed_anywhere(topology, Change(drop, grow)))


def test_a_large_change_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 700, 900, generator=generator) < 0.2
    topology = Topology.from_mask(mask, capacity=int(mask.sum()) + 500)
    drop = torch.rand(len(topology.column), generator=generator) < 0.3
    free = torch.ones(mask.numel(), dtype=torch.bool)
    free[topology.keys(drop)] = False
    grow = (free & (torch.rand(len(free), generator=generator) < 0.05)).nonzero()[:, 0]
    expected = changed_anywhere(topology, Change(drop, grow))
    index = None
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        ours = changed(topology, Change(drop, grow))
        _assert_same_change(ours, expected)
        made = SparseIndex.of(900, ours.topology.row_start, ours.topology.column)
        index = index or made
        assert all(torch.equal(a, b) for a, b in zip(made[1:], index[1:], strict=True))
        into = tuple(torch.full_like(t, -1) for t in made[3:])
        SparseIndex.of(900, ours.topology.row_start, ours.topology.column, into)
        assert all(torch.equal(a, b) for a, b in zip(into, made[3:], strict=True))
    count = int(made.row_start[0, -1])
    order = torch.argsort(made.column[:count], stable=True)
    assert torch.equal(made.slot[:count].long(), order)  # a stable sort by column


@pytest.mark.parametrize(
    ("grow", "message"),
    [([0, 0], "ascend without repeats"), ([-1], "ascend without repeats"), ([6], "ascend without repeats")],
)
def test_changes_that_cannot_be(grow, message):
    topology = Topology.from_mask(torch.tensor([[False, False, True], [False, False, False]]), capacity=4)
    with pytest.raises(ValueError, match=message):
        changed(topology, Change(torch.zeros(4, dtype=torch.bool), torch.tensor(grow)))


@pytest.mark.sanitize
@pytest.mark.parametrize("n_models", [1, 3, 50])
def test_explore(n_models):
    generator = torch.Generator().manual_seed(n_models)
    explored = torch.rand(n_models * 3001, generator=generator) < 0.4
    fresh = (torch.rand(len(explored), generator=generator) < 0.1).nonzero()[:, 0]
    expected = explored.clone()
    expected[fresh] = True
    for threads in (1, 3):
        torch.set_num_threads(threads)
        marks = explored.clone()
        counts = native.explore(marks, fresh, n_models)
        assert torch.equal(marks, expected)
        assert counts.tolist() == expected.reshape(n_models, -1).sum(dim=1).tolist()
    with pytest.raises(ValueError, match="keys must ascend"):
        native.explore(marks, torch.tensor([5, 4]), n_models)
