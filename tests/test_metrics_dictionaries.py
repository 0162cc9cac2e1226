"""Dictionaries against the truth: recovery, matching, explained variance, activity, one term at a time."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from toykern import metrics


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_mmcs_one_cosine_at_a_time():
    dictionary, truth = _random(3, 4, 6), _random(4, 5, seed=1)
    got = metrics.mean_max_cosine_similarity(dictionary, truth)
    back = metrics.mean_max_cosine_similarity(truth, dictionary)
    assert got.shape == back.shape == (3,)
    for k, d in enumerate(dictionary.numpy()):
        table = np.array([[_cosine(t, a) for a in d.T] for t in truth.numpy().T])
        assert got[k].item() == pytest.approx(table.max(1).mean())
        assert back[k].item() == pytest.approx(table.max(0).mean())
        assert metrics.mean_max_cosine_similarity(dictionary[k], truth).item() == pytest.approx(got[k].item())


def test_mmcs_of_the_truth_in_another_order_and_length_and_more():
    truth = _random(8, 5)
    scale = torch.tensor([1e-200, 1.0, 3.0, 1e200, 7.0], dtype=torch.float64)
    dictionary = torch.cat([truth.flip(1) * scale, _random(8, 9, seed=2), torch.zeros(8, 1)], dim=1)
    assert metrics.mean_max_cosine_similarity(dictionary, truth).item() == pytest.approx(1, abs=1e-12)
    assert metrics.mean_max_cosine_similarity(truth, dictionary).item() < 0.9
    assert metrics.mean_max_cosine_similarity(-torch.eye(2), torch.eye(2)).item() == 0
    assert metrics.mean_max_cosine_similarity(torch.zeros(2, 3), torch.eye(2)).item() == 0


def test_many_models_are_worked_on_in_parts(monkeypatch):
    dictionary, truth = _random(7, 4, 6), _random(7, 4, 5, seed=1)
    whole = metrics.mean_max_cosine_similarity(dictionary, truth)
    matched = metrics.match_directions(dictionary, truth)
    monkeypatch.setattr("toykern.metrics.dictionaries._AT_ONCE", 70)
    torch.testing.assert_close(metrics.mean_max_cosine_similarity(dictionary, truth), whole)
    again = metrics.match_directions(dictionary, truth)
    assert torch.equal(again.index, matched.index)
    torch.testing.assert_close(again.cosine, matched.cosine)


@pytest.mark.parametrize(("n_dictionary", "n_truth"), [(4, 4), (5, 3), (3, 5)])
def test_matching_is_the_best_of_all(n_dictionary, n_truth):
    dictionary, truth = _random(6, 3, n_dictionary), _random(6, 3, n_truth, seed=1)
    got = metrics.match_directions(dictionary, truth)
    assert got.index.shape == got.cosine.shape == (6, n_truth) and got.index.dtype == torch.int64
    for k in range(6):
        table = np.array([[_cosine(t, a) for a in dictionary[k].numpy().T] for t in truth[k].numpy().T])
        if n_truth <= n_dictionary:
            every = itertools.permutations(range(n_dictionary), n_truth)
            best = max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in every)
        else:
            every = itertools.permutations(range(n_truth), n_dictionary)
            best = max(sum(table[i, j] for j, i in enumerate(chosen)) for chosen in every)
        index, cosine = got.index[k].tolist(), got.cosine[k].tolist()
        taken = [j for j in index if j >= 0]
        assert sum(cosine) == pytest.approx(best)
        assert len(set(taken)) == len(taken) == min(n_dictionary, n_truth)
        for i, j in enumerate(index):
            assert cosine[i] == (pytest.approx(table[i, j]) if j >= 0 else 0)
        one = metrics.match_directions(dictionary[k], truth[k])
        assert torch.equal(one.index, got.index[k]) and one.cosine.shape == (n_truth,)


def test_a_diverged_dictionary_matches_nothing_and_harms_no_other():
    dictionary, truth = _random(3, 4, 5), _random(4, 5, seed=1)
    dictionary[1, 0, 0] = math.inf
    got = metrics.match_directions(dictionary, truth)
    assert got.index[1].tolist() == [-1] * 5 and bool(got.cosine[1].isnan().all())
    assert (got.index[::2] >= 0).all() and bool(torch.isfinite(got.cosine[::2]).all())
    assert metrics.mean_max_cosine_similarity(dictionary, truth).isnan().tolist() == [False, True, False]


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"toykern\[analysis\]"):
        metrics.match_directions(torch.eye(2), torch.eye(2))


def test_explained_variance_one_sample_at_a_time():
    x, y = _random(3, 20, 4) + 5, _random(3, 20, 4, seed=1) + 5
    got = metrics.explained_variance(x, y)
    for k in range(3):
        a, b = x[k].numpy(), y[k].numpy()
        expected = 1 - ((a - b) ** 2).sum() / (len(a) * a.var(axis=0)).sum()
        assert got[k].item() == pytest.approx(expected)
        assert torch.equal(metrics.explained_variance(x[k], y[k]), got[k])
    torch.testing.assert_close(
        metrics.explained_variance(x[0], y), torch.stack([metrics.explained_variance(x[0], z) for z in y])
    )


def test_explained_variance_of_the_target_and_of_its_mean():
    x = _random(2, 9, 4)
    assert metrics.explained_variance(x, x).tolist() == [1, 1]
    by_mean = metrics.explained_variance(x, x.mean(1, keepdim=True).expand_as(x))
    assert by_mean.tolist() == pytest.approx([0, 0], abs=1e-14)
    assert metrics.explained_variance(torch.full((7, 2), 0.1), torch.zeros(7, 2)).isnan()


def test_activity_is_counted():
    codes = torch.tensor([[[0.0, -2.0, 0.5], [0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 1e-9]]])
    assert metrics.l0(codes).tolist() == [1.5, 0.5]
    assert metrics.l0(codes, threshold=0.5).tolist() == [1.0, 0.0]
    assert metrics.dead_units(codes).tolist() == [[True, False, False], [True, True, False]]
    assert metrics.dead_units(codes, threshold=0.5).tolist() == [[True, False, True], [True] * 3]
    assert metrics.l0(codes[0]).item() == 1.5 and metrics.dead_units(codes[1]).tolist() == [True, True, False]
    codes[1, 0, 0] = math.nan
    assert metrics.l0(codes).isnan().tolist() == [False, True]
    assert metrics.dead_units(codes)[1].tolist() == [False, True, False]


@pytest.mark.parametrize(
    "function",
    [
        metrics.mean_max_cosine_similarity,
        lambda d, t: metrics.match_directions(d, t).cosine,
        metrics.explained_variance,
    ],
    ids=["mmcs", "matching", "explained variance"],
)
def test_they_can_be_differentiated(function):
    arguments = _random(2, 3, 4).requires_grad_(), _random(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("function", [metrics.mean_max_cosine_similarity, metrics.match_directions])
def test_what_does_not_go_together(function):
    with pytest.raises(ValueError, match="truth does not go with dictionary"):
        function(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="truth does not go with dictionary"):
        function(torch.ones(2, 3, 4), torch.ones(3, 3, 4))
    with pytest.raises(ValueError, match=r"dictionary must have the shape \[models, n, n_dictionary\]"):
        function(torch.ones(3), torch.ones(3, 4))
    with pytest.raises(TypeError, match="truth must hold floating-point numbers"):
        function(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64))


def test_reconstructions_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="reconstruction does not go with target"):
        metrics.explained_variance(torch.ones(3, 4), torch.ones(2, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: metrics.explained_variance(x, x.square()),
        metrics.l0,
        metrics.dead_units,
        metrics.sample_dimensionality,
        metrics.monosemanticity,
        metrics.monosemantic_share,
    ],
    ids=["explained variance", "l0", "dead", "samples", "monosemanticity", "share"],
)
def test_a_models_bits_are_its_own(function):
    stack = torch.randn(41, 37, 5, generator=torch.Generator().manual_seed(0)).clamp(min=-0.5)
    whole = function(stack)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(function(stack[7:30]), whole[7:30])
            assert torch.equal(function(stack.flip(0)), whole.flip(0))
            assert torch.equal(function(stack.mT.contiguous().mT), whole)
            assert torch.equal(function(stack[3]), whole[3])
    finally:
        torch.set_num_threads(before)
