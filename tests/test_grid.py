"""Grids: flat arrays, folding back, lookup, and what they refuse."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern.arguments.grids import Grid, grid


def test_last_axis_varies_fastest_in_keyword_order():
    g = grid(importance=[0.1, 1.0, 10.0], probability=[0.5, 0.25], seed=range(2))
    assert g.dims == ("importance", "probability", "seed")
    assert (g.shape, g.n_models) == ((3, 2, 2), 12)
    assert g.importance.tolist() == [0.1] * 4 + [1.0] * 4 + [10.0] * 4
    assert g.probability.tolist() == [0.5, 0.5, 0.25, 0.25] * 3
    assert g.seed.tolist() == [0, 1] * 6
    assert (g.importance.dtype, g.seed.dtype) == (torch.float64, torch.int64)


def test_flat_arrays_are_fresh_and_the_grid_cannot_be_changed_through_them():
    values = np.array([1.0, 2.0])
    g = grid(a=values, b=[1, 2])
    g.a[:] = 7.0
    g.coords["a"][:] = 7.0
    values[:] = 7.0
    assert g.a.tolist() == [1.0, 1.0, 2.0, 2.0]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_unflatten_agrees_with_the_coordinates(lengths):
    g = grid(**{f"axis{k}": np.arange(n) * 10 + k for k, n in enumerate(lengths)})
    for k, name in enumerate(g.dims):
        folded = g.unflatten(getattr(g, name))
        assert folded.shape == tuple(lengths)
        expected = g.coords[name].reshape([-1 if j == k else 1 for j in range(len(lengths))])
        assert (folded.numpy() == expected).all()


def test_unflatten_is_a_view_and_keeps_trailing_dimensions():
    g = grid(a=[1, 2], b=[1, 2, 3])
    flat = torch.zeros(6, 5)
    folded = g.unflatten(flat)
    assert folded.shape == (2, 3, 5)
    folded[1, 2] = 1.0
    assert flat[5].tolist() == [1.0] * 5
    assert g.unflatten(np.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"flat must have 6 models .* not a float32 tensor of shape \[5\]"):
        g.unflatten(torch.zeros(5))


def test_numbers_that_do_not_fit_into_memory_are_refused_before_there_are_any(monkeypatch):
    monkeypatch.setattr("toykern.arguments.memory.free_memory", lambda device: 2**28)
    with pytest.raises(MemoryError, match="axis 'seed' of the axes, with 1,000,000,000 points, would take"):
        grid(seed=range(10**9))
    g = grid(density=range(100_000), seed=range(100_000))
    with pytest.raises(MemoryError, match="seed of 10,000,000,000 models would take 74.5 GiB"):
        g.seed  # noqa: B018


def test_axis_of_vectors():
    rows = torch.tensor([[1.0, 0.5], [1.0, 0.25], [1.0, 0.125]])
    g = grid(importance=rows, seed=[4, 5])
    assert g.importance.shape == (6, 2)
    assert g.importance[2:4].tolist() == [[1.0, 0.25]] * 2
    assert g.coords["importance"].tolist() == [0, 1, 2]
    assert g.axes["importance"].tolist() == rows.tolist()
    assert g.index(importance=1).tolist() == [2, 3]


def test_index_finds_points_ranges_and_slices():
    g = grid(importance=np.logspace(-1, 1, 5), probability=[0.5, 0.25], seed=range(3))
    flat = np.arange(30).reshape(5, 2, 3)
    assert g.index(seed=2).tolist() == flat[:, :, 2].tolist()
    assert g.index(importance=1.0, probability=0.25).tolist() == flat[2, 1].tolist()
    assert g.index(seed=[2, 0], importance=10.0).tolist() == flat[4][:, [2, 0]].tolist()
    assert int(g.index(importance=10 ** (-0.5), probability=0.5, seed=1)) == flat[1, 0, 1]
    assert g.index().tolist() == flat.tolist()


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"sead": 1}, "no axis 'sead'; the axes are importance, seed"),
        ({"importance": 0.9}, "no point 0.9; the nearest is 1.0"),
        ({"seed": 2**40}, f"no point {2**40}; the nearest is {2**40 + 1}"),
        ({"seed": []}, "non-empty"),
        ({"seed": "first"}, "must be a number"),
    ],
)
def test_index_refuses(selectors, message):
    g = grid(importance=[0.1, 1.0], seed=[0, 2**40 + 1])
    with pytest.raises(ValueError, match=message):
        g.index(**selectors)


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({}, ValueError, "at least one axis"),
        ({"seed": []}, ValueError, "'seed' of the axes is empty"),
        ({"seed": range(0)}, ValueError, "'seed' of the axes is empty"),
        ({"importance": [1.0, float("nan")]}, ValueError, "must be finite, got nan at position 1"),
        ({"importance": [1.0, float("inf")]}, ValueError, "must be finite, got inf"),
        ({"importance": [[1.0, 2.0], [1.0, float("nan")]]}, ValueError, "at position 1"),
        ({"importance": [2.0, 1.0, 2.0]}, ValueError, "holds 2.0 more than once"),
        ({"importance": 1.0}, ValueError, r"one-dimensional.*got shape \(\)"),
        ({"importance": np.zeros((1, 1, 1))}, ValueError, "got shape"),
        ({"importance": [[1.0], [1.0, 2.0]]}, ValueError, "different lengths"),
        ({"name": ["a", "b"]}, TypeError, "'name' of the axes must hold integers or floats"),
        ({"flag": [True, False]}, TypeError, "'flag' of the axes must hold integers or floats"),
        ({"seed": (i for i in range(3))}, TypeError, "'seed' of the axes must hold integers"),
        ({"seed": [2**64]}, TypeError, "'seed' of the axes must hold integers"),
        ({"seed": np.array([2**63], dtype=np.uint64)}, ValueError, "larger than int64"),
        ({"seed": range(2**40)}, ValueError, "'seed' of the axes must have at most 2147483647 points"),
        ({"seed": range(2**80)}, ValueError, "'seed' of the axes must have at most 2147483647 points"),
        ({"shape": [1, 2]}, ValueError, "cannot be called 'shape'"),
        ({"unflatten": [1, 2]}, ValueError, "cannot be called 'unflatten'"),
        ({"record": [1, 2]}, ValueError, "cannot be called 'record'"),
        ({"_axes": [1, 2]}, ValueError, "cannot be called '_axes'"),
        ({"two words": [1, 2]}, ValueError, "identifiers"),
    ],
)
def test_grid_refuses(axes, error, message):
    with pytest.raises(error, match=message):
        grid(**axes)


def test_unknown_axis_is_an_attribute_error_that_lists_the_axes():
    with pytest.raises(AttributeError, match="no axis 'importnace'; its axes are importance"):
        _ = grid(importance=[1.0]).importnace


def test_config_survives_json_exactly():
    g = grid(importance=np.logspace(-1, 1, 7), vectors=[[0.1, 1 / 3], [1.0, 2.0]], seed=[2**62 + 1, -5])
    again = Grid.from_config(json.loads(json.dumps(g.config())))
    assert again == g
    assert torch.equal(again.importance, g.importance)
    assert torch.equal(again.vectors, g.vectors)
    assert torch.equal(again.seed, g.seed)
    assert again != grid(seed=[1])
    assert pickle.loads(pickle.dumps(g)) == g


def test_repr_tells_the_size_and_the_axes():
    text = repr(grid(importance=np.logspace(-1, 1, 64), vectors=np.eye(3), seed=range(4)))
    assert (
        text == "<toykern.Grid 64 × 3 × 4 = 768 models: importance=0.1…10, vectors=3 vectors of 3, seed=0…3>"
    )


def test_a_grid_of_four_million_models_stores_only_its_axes():
    tracemalloc.start()
    g = grid(importance=np.logspace(-1, 1, 512), probability=np.logspace(0, -2, 512), seed=range(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert g.n_models == 4_194_304
    assert peak < 1 << 20
    assert g.probability[:32].tolist() == [1.0] * 16 + [g.coords["probability"][1]] * 16
