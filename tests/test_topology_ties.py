"""Equal scores: chosen at random by the recipe's seed, the same whoever chooses and however scores arrive."""

import numpy as np
import pytest
import torch
from masked_dense import network

import toykern as tk
from toykern import sparse
from toykern.ops import sparse_topology as native
from toykern.ops.sparse_ties import Ties
from toykern.sparse import Topology
from toykern.sparse.draws import tag_of, words64
from toykern.sparse.selection import largest, largest_of_groups


def _ties(n_models=1, size=1000, step=1):
    return Ties(torch.arange(n_models) + 3, size, tag_of("grow_ties", 2), step)


def _by_words(score, counts, ties, absolute=False):
    """The choice by a plain sort: score, then word, both from the first principles of the page."""
    chosen = []
    flat = (score.abs() if absolute else score).double().numpy().reshape(len(counts), -1)
    words = words64(
        ties.seeds.numpy(),
        np.zeros(len(ties.seeds), np.int64),
        ties.size,
        purpose="grow_ties",
        layer=2,
        step=1,
    ).reshape(flat.shape)
    for row, (values, word, count) in enumerate(zip(flat, words, counts.tolist(), strict=True)):
        rank = np.where(np.isnan(values), np.inf, values + 0.0), np.isnan(values)
        order = np.lexsort((word, -rank[0], ~rank[1]))[:count]
        chosen += sorted((row * flat.shape[1] + order).tolist())
    return chosen


def test_words_are_those_of_the_page():
    ties = _ties(3, 4000)
    words = words64(np.array([3, 4, 5]), np.zeros(3, np.int64), 4000, purpose="grow_ties", layer=2, step=1)
    assert np.array_equal(ties.words(torch.arange(12000)).numpy(), (words >> np.uint64(1)).reshape(-1))
    negative = Ties(torch.tensor([-7]), 40, 121, 3)
    assert len(negative.words(torch.arange(40)).unique()) == 40
    far = Ties(torch.tensor([3]), 2**35, tag_of("grow_ties", 2), 1)  # the place's upper half is the group
    group = words64(np.array([3]), np.array([5]), 70, purpose="grow_ties", layer=2, step=1)[0] >> np.uint64(1)
    assert far.words(torch.arange(70) + 5 * 2**32).tolist() == group.tolist()


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 40), (3, 5000), (1, 70000)])
def test_equal_scores_are_chosen_by_words(shape, dtype):
    """float16 goes the way of other devices. Coarse scores: ties everywhere, NaN and zeros of both signs."""
    generator = torch.Generator().manual_seed(1)
    score = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    score[torch.rand(shape, generator=generator) < 0.01] = float("nan")
    score[torch.rand(shape, generator=generator) < 0.1] = -0.0
    ties = _ties(*shape)
    for share in (0.001, 0.3, 0.5, 0.8, 1.0):
        counts = torch.randint(0, int(share * shape[1]) + 1, (shape[0],), generator=generator)
        expected = _by_words(score, counts, ties)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert largest(score, counts, ties).reshape(-1).nonzero()[:, 0].tolist() == expected
        group = torch.arange(shape[0]).repeat_interleave(shape[1])
        same = largest_of_groups(score.reshape(-1), group, counts, ties.words)
        assert same.nonzero()[:, 0].tolist() == expected


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pieces_make_the_choice_of_the_whole(dtype):
    generator = torch.Generator().manual_seed(2)
    score = torch.randint(-2, 3, (300_000,), generator=generator).to(dtype)
    score[:200_000] = 0.0  # more equals than can be held, and better ones later
    taken = torch.randperm(300_000, generator=generator)[:5000].sort().values
    ties = _ties(2, 300_000).from_entry(300_000)  # the second model of two
    for count in (7, 20_000, 150_000):
        whole = native.largest_indices(score[None], torch.tensor([count]), taken, absolute=True, ties=ties)
        for piece in (17_000, 130_001):
            pieces = native.LargestOfPieces(count, _ties(2, 300_000), 300_000)
            for first in range(0, 300_000, piece):
                part = score[first : first + piece]
                gone = taken[(taken >= first) & (taken < first + len(part))]
                pieces.add(part, 300_000 + first, 300_000 + gone)
            assert torch.equal(pieces.finish()[0] - 300_000, whole), (count, piece)
    free = torch.ones(300_000, dtype=torch.bool)
    free[taken] = False
    equals = (free & (score.abs() == 1)).nonzero()[:, 0]
    best = int((free & (score.abs() == 2)).sum())
    count = best + 1000  # 1000 of the equals, and those of the smallest words
    chosen = native.largest_indices(score[None], torch.tensor([count]), taken, absolute=True, ties=ties)
    expected = equals[ties.words(equals).argsort()[:1000]]
    assert torch.equal(chosen[score[chosen].abs() == 1], expected.sort().values)


def test_without_equal_scores_nothing_is_decided_by_words():
    score = torch.randn(4, 3000, generator=torch.Generator().manual_seed(3))
    counts = torch.tensor([0, 7, 1500, 3000])
    assert torch.equal(largest(score, counts, _ties(4, 3000)), largest(score, counts))


def _after_update_on_nothing(recipe, n_models=1, seed=0, **options):
    layer = tk.SparseLinear(400, 60, 0.05, seed=0, bias=False, n_models=n_models, **options)
    topology = recipe.attach(layer, torch.optim.SGD(layer.parameters(), 0.0))
    layer(torch.zeros(32, 400)).sum().backward()
    topology.step()
    return layer.topology


def test_growth_where_no_gradient_says_anything_is_spread_evenly():
    """All gradients are 0. 30% of 1200 connections move to 60 rows: 6 ± 2.4 for each."""
    for recipe in (
        sparse.RigL(interval=1, end=9),
        sparse.RigL(interval=1, end=9, accumulate=1, scope="global"),
    ):
        before = Topology.random(400, 60, 0.05, seed=0)
        after = _after_update_on_nothing(recipe)
        came = (after.to_mask() & ~before.to_mask())[0].sum(dim=1)
        assert int(came.sum()) > 300
        assert int(came.max()) < 20 and int((came == 0).sum()) < 5
    other = _after_update_on_nothing(sparse.RigL(interval=1, end=9, seed=5))
    assert other != _after_update_on_nothing(sparse.RigL(interval=1, end=9, seed=0))


def test_connections_of_equal_size_go_from_everywhere():
    layer = tk.SparseLinear(100, 100, 0.1, seed=0, bias=False)
    torch.nn.init.constant_(layer.values, 0.5)
    before = layer.topology
    sparse.SET(interval=1, seed=3).attach(layer, torch.optim.SGD(layer.parameters(), 0.1)).step()
    gone = (before.to_mask() & ~layer.topology.to_mask())[0].sum(dim=1)
    assert int(gone.sum()) > 250 and int(gone.max()) < 12 and int((gone[:50]).sum()) < 200


@pytest.mark.parametrize(
    "recipe",
    [
        sparse.RigL(interval=1, end=9),
        sparse.RigL(interval=1, end=9, minimum_fan_in=3, minimum_fan_out=2),
        sparse.SNFS(interval=1, end=9),
        sparse.GSE(interval=1, end=9),
        sparse.SRigL(interval=1, end=9, ablation=0.9, ablate_last=True),
        sparse.GradualMagnitude(final_density=0.02, interval=1, end=3),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_alone_stacked_streamed_and_on_any_number_of_threads(recipe, monkeypatch):
    """Weights and gradients of few values, so that ties decide."""

    def run(models, threads, tile=1 << 23):
        monkeypatch.setattr("toykern.nn.sparse_weights.GRADIENT_TILE_BYTES", tile)
        torch.set_num_threads(threads)
        full = Topology.random(60, 40, 0.1, n_models=3, seed=[4, 9, 2])
        topology = Topology.from_mask(full.to_mask()[models])
        layer = tk.SparseLinear(60, 40, topology=topology, n_models=len(models), seed=0, bias=False)
        torch.nn.init.constant_(layer.values, 0.5)
        seeds = [[4, 9, 2][k] for k in models]
        attached = tk.sparse.PruneAndGrow.attach(
            type(recipe)(**{**vars_of(recipe), "seed": seeds}),
            layer,
            torch.optim.SGD(layer.parameters(), 0.0),
        )
        for step in range(2):
            x = torch.randint(0, 2, (8, 60), generator=torch.Generator().manual_seed(step)).float()
            x[:, :50] = 0
            layer(x).sum().backward()
            attached.step()
        return layer.topology.to_mask()

    together = run([0, 1, 2], 2)
    assert torch.equal(run([0, 1, 2], 1), together)
    assert torch.equal(run([0, 1, 2], 2, tile=960), together)  # four rows at a time
    assert torch.equal(run([1], 1), together[1:2])


def vars_of(recipe):
    return {name: getattr(recipe, name) for name in type(recipe).__dataclass_fields__}


def test_rare_features_do_not_fill_the_first_row():
    """100 → 20 at p ≤ 1e-3 with a mean fan-in of 10: most gradients are exactly 0 most of the time."""
    model = tk.SparseTiedAutoencoder(100, 20, 0.1, n_models=4)
    data = tk.SparseFeatures(100, np.geomspace(1e-3, 1e-5, 100))
    tk.fit(model, data, steps=200, batch_size=64, topology=tk.RigL(interval=10, end=150))
    fan_in = model.topology.fan_in.double()
    assert bool((fan_in[:, 0] < 3 * fan_in[:, 1:].mean(dim=1)).all()), fan_in[:, 0]


def test_the_minimum_fan_out_holds():
    model = network(30, 40, 20, density=0.2, seed=3)
    layers = list(model.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    attached = sparse.RigL(interval=1, end=40, drop_fraction=0.8, minimum_fan_out=3).attach(model, optimizer)
    for step in range(20):
        before = [layer.topology for layer in layers]
        x = torch.randn(1, 16, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        x[..., :10] *= 1e-3  # inputs that a criterion by magnitude starves
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        attached.step()
        for old, layer in zip(before, layers, strict=True):
            assert bool((layer.topology.fan_out >= old.fan_out.clamp(max=3)).all())
    assert attached.updates == 20
