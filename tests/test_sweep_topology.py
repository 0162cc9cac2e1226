"""Sweeps over sparse models with moving connections: the bits of one `fit`, in any chunks, resumed or not."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest
import torch

import toykern as tk

MEMORY = importlib.import_module("toykern.sweeps.memory")
RUN = importlib.import_module("toykern.sweeps.run")

GRID = tk.grid(density=[0.2, 0.5, 1.0], probability=[0.05, 0.3], seed=range(3))
SETTINGS = {
    "steps": 40,
    "batch_size": 16,
    "record_every": 10,
    "record": ("loss", "explored"),
    "snapshots": [0, 25],
    "progress": False,
}
RECIPES = {
    "rigl": tk.RigL(interval=10, end=30, drop_fraction=0.5),
    "set": tk.SET(interval=10, seed=7),
    "snfs": tk.SNFS(interval=10, end=30),
    "none": None,
}
ARRAYS = ("loss", "diverged_at", "weight", "bias", "connections", "weight_snapshots", "connections_snapshots")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def plan(points, index):
    return {
        "model": tk.SparseTiedAutoencoder(9, 5, points.density, n_models=points.n_models, seed=index),
        "data": tk.SparseFeatures(9, points.probability[:, None]),
        "seed": 100 + index,
    }


def settings_of(recipe):
    wanted = dict(SETTINGS)
    if RECIPES[recipe] is None:
        wanted["record"] = ("loss",)
    return wanted | {"topology": RECIPES[recipe]}


def updates(run, points, index):
    """Connections that each model dropped in all, as a result of one's own."""
    if run.topology is None:
        return {}
    return {"dropped": torch.stack([u.layers["weight"].dropped for u in run.topology.history]).sum(dim=0)}


def swept(path, recipe="rigl", chunk=None, **options):
    return tk.sweep(GRID, plan, path, measure=updates, chunk=chunk, **(settings_of(recipe) | options))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_a_sweep_is_what_fit_makes_of_the_whole_grid(recipe, chunk, tmp_path):
    done = swept(tmp_path / "s.zarr", recipe, chunk)
    assert len(done.boxes) == {1: 18, 4: 6, 7: 3, 100: 1}[chunk]
    run = tk.fit(**plan(GRID, torch.arange(18)), **settings_of(recipe), grid=GRID)
    expected, found = run.to_xarray(), done.to_xarray()
    names = ARRAYS if recipe == "none" else (*ARRAYS, "explored")
    for name in names:
        assert found[name].dims == expected[name].dims
        assert found[name].dtype == expected[name].dtype
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name
    assert found["connections"].dims == ("density", "probability", "seed", "hidden", "feature")
    assert (found["weight"].values[~found["connections"].values] == 0).all()
    share = found["connections"].mean(("hidden", "feature"))
    assert np.allclose(share, [[[d] * 3] * 2 for d in (9 / 45, 23 / 45, 1.0)])
    if recipe == "none":
        assert "inputs/topology_seed" not in done.names
        return
    assert done.read("inputs/topology_seed").ravel().tolist() == (
        [7] * 18 if recipe == "set" else list(range(100, 118))
    )
    whole = updates(run, GRID, None)["dropped"].reshape(GRID.shape)
    assert np.array_equal(done.read("dropped"), whole) and (whole[0] > 0).all()


def test_a_sweep_that_lost_a_chunk_goes_on(tmp_path):
    whole = swept(tmp_path / "whole.zarr", chunk=5)
    torn = tmp_path / "torn.zarr"
    shutil.copytree(whole.path, torn)
    for piece in (torn / "connections" / "c").rglob("*"):
        if piece.is_file() and piece.relative_to(torn).parts[2] == "1":
            piece.write_bytes(piece.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="connections cannot be read .* this chunk is trained again"):
        again = swept(torn, chunk=5, resume=True, check=True)
    assert all(again.read(name).tobytes() == whole.read(name).tobytes() for name in whole.names)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"topology": tk.RigL(interval=10, end=20)}, "topology differs"),
        ({"topology": tk.SET(interval=10)}, "topology differs"),
        ({"topology": tk.RigL(interval=10, end=30, drop_fraction=0.5, seed=0)}, "topology differs"),
    ],
)
def test_another_recipe_is_another_sweep(changed, what, tmp_path):
    swept(tmp_path / "s.zarr", chunk=9)
    with pytest.raises(tk.StoreError, match=what):
        swept(tmp_path / "s.zarr", chunk=9, resume=True, **changed)


def test_seeds_of_another_plan_are_noticed(tmp_path):
    def with_seeds(first):
        def planned(points, index):
            recipe = tk.RigL(interval=10, end=30, seed=first + index)
            return plan(points, index) | {"topology": recipe}

        return planned

    tk.sweep(GRID, with_seeds(3), tmp_path / "s.zarr", chunk=9, **SETTINGS)
    found = tk.open_sweep(tmp_path / "s.zarr").read("inputs/topology_seed")
    assert found.ravel().tolist() == list(range(3, 21))
    with pytest.raises(tk.StoreError, match="topology_seed of the models .* is not what plan gives them"):
        tk.sweep(GRID, with_seeds(4), tmp_path / "s.zarr", chunk=9, resume=True, **SETTINGS)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"topology": "rigl"}, TypeError, "topology must be a recipe"),
        (
            {"topology": tk.SET(seed=range(18))},
            ValueError,
            "the recipe's seed must be one number or have one",
        ),
        (
            {"topology": tk.GradualMagnitude(final_density=0.3, end=40, interval=10)},
            ValueError,
            "final_density must be",
        ),
        ({"record": ("loss", "density")}, ValueError, "axis 'density' has the name of a result"),
        ({"topology": None}, ValueError, "record: 'explored' needs topology="),
    ],
)
def test_mistakes_are_named_before_anything_is_written(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        swept(tmp_path / "s.zarr", **options)
    assert list(tmp_path.iterdir()) == []


def test_memory_counts_the_places_where_connections_might_be():
    def probe(n_hidden, **options):
        model = tk.SparseTiedAutoencoder(100, n_hidden, 0.1)
        data = tk.SparseFeatures(100, 0.1)
        return MEMORY.bytes_per_model(tk.fit(model, data, 10, stop_at=0, progress=False, **options))

    # Weight, moments and masks of 1,000 more places; with a recipe what its updates take.
    plain = probe(20) - probe(10)
    assert plain >= 1000 * (3 * 4 + 1)
    assert probe(20, topology=tk.SET()) - probe(10, topology=tk.SET()) >= plain + 32_000
    assert probe(10, snapshots=[0, 1, 2]) - probe(10) >= 3 * 1000 * 5
