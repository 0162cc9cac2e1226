"""`Run.sel` and `Run.isel`: the run of some models of a grid, with all that is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_train_longer import assert_same

import toykern as tk

GRID = tk.grid(density=[0.3, 0.1, 0.03], lr=[1e-3, 1e-2], seed=range(2))


def tied() -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(6, 2, GRID.n_models, init=GRID.density)


def mlp() -> tk.MLP:
    model = tk.MLP(
        6, 5, n_models=GRID.n_models, n_outputs=3, hidden_activation="relu", embedding=torch.rand(12, 4, 6)
    )
    model.decoder.requires_grad_(False)
    return model


def entries(*shape: int) -> tk.SparseBatch:
    made = torch.Generator(device="cpu").manual_seed(3)
    return tk.SparseBatch.from_dense(
        torch.rand(shape, generator=made) * (torch.rand(shape, generator=made) < 0.4)
    )


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "streams": (tied, {"data": tk.SparseFeatures(6, GRID.density[:, None]), "optimizer": tk.AdamW(lr=GRID.lr),
                       "importance": torch.linspace(0.1, 1, 12)[:, None], "l1": torch.linspace(0, 0.1, 12)}),
    "datasets": (mlp, {"data": tk.Dataset(entries(12, 9, 6), labels=torch.arange(9) % 3,
                                          samples=[9, 3, 4, 5, 6, 7, 8, 9, 2, 1, 9, 9]),
                       "test": tk.Dataset(entries(12, 5, 6), labels=torch.arange(5) % 3), "batch_size": None,
                       "record": ["test_accuracy", "norms"], "loss": "cross_entropy",
                       "optimizer": tk.SGD(lr=0.1, momentum=0.9, lr_scale={"bias": GRID.lr})}),
    "shared": (tied, {"data": tk.SparseFeatures(6, 0.2).dataset(20), "batch_size": 4, "optimizer": tk.LAMB(),
                      "schedule": lambda step, steps: 1.0 / (1 + step)}),
    "sparse": (lambda: tk.SparseTiedAutoencoder(6, 4, GRID.density + 0.3, n_models=12),
               {"data": tk.SparseFeatures(6, 0.3), "record": ["density", "superposition"]}),
}  # fmt: skip
SELECTED: dict[str, tuple[dict[str, Any], dict[str, Any], list[int], Any]] = {
    "one axis": ({"density": 0.1}, {"density": 1}, [4, 5, 6, 7], tk.grid(lr=[1e-3, 1e-2], seed=[0, 1])),
    "two": ({"density": 0.1, "seed": 1}, {"density": -2, "seed": 1}, [5, 7], tk.grid(lr=[1e-3, 1e-2])),
    "several, in this order": (
        {"density": [0.03, 0.3], "lr": 1e-2}, {"density": [2, 0], "lr": 1}, [10, 11, 2, 3],
        tk.grid(density=[0.03, 0.3], seed=[0, 1]),
    ),
    "a slice": (
        {"density": slice(0.05, 0.3), "seed": np.int64(0)},
        {"density": slice(None, 2), "seed": [True, False]},
        [0, 2, 4, 6], None,
    ),
    "a point": ({"density": 0.3, "lr": 1e-3, "seed": 0}, {"density": 0, "lr": 0, "seed": 0}, [0], None),
    "all": ({}, {}, list(range(12)), GRID),
}  # fmt: skip


def trained(case: str, **options: Any) -> tk.Run:
    make, settings = CASES[case]
    torch.manual_seed(0)
    settings = (
        {"batch_size": 8, "record_every": 3, "snapshots": [0, 5], "progress": False} | settings | options
    )
    return tk.fit(make(), steps=11, grid=GRID, **settings)


@pytest.mark.parametrize("chosen", SELECTED)
@pytest.mark.parametrize("case", CASES)
def test_all_that_is_there_is_of_the_models_that_were_chosen(case, chosen):
    run = trained(case)
    labels, places, numbers, grid = SELECTED[chosen]
    part = run.sel(**labels)
    if grid is not None or chosen == "a point":
        assert part.grid == grid
    assert part.n_models == len(numbers) and part.step == run.step
    for name in ("loss", "diverged_at"):
        assert torch.equal(getattr(part, name), getattr(run, name)[numbers])
    for kind in ("records", "optimizer_state", "carry"):
        held = getattr(run, kind)
        assert getattr(part, kind).keys() == held.keys()
        assert all(torch.equal(values, held[name][numbers]) for name, values in getattr(part, kind).items())
    for step, snapshot in run.snapshots.items():
        assert all(
            torch.equal(part.snapshots[step][name], values[numbers]) for name, values in snapshot.items()
        )
    own = part.model.stacked_parameters()
    assert all(
        torch.equal(own[name], values[numbers]) for name, values in run.model.stacked_parameters().items()
    )
    for name in ("seed", "init_seed", "lr"):
        assert torch.equal(part.arrays[name], run.arrays[name][numbers])
    assert part.loss.data_ptr() != run.loss.data_ptr()
    by_place = run.isel(**places)
    if chosen != "a slice":
        assert by_place.grid == part.grid
    assert torch.equal(by_place.loss, part.loss) and by_place.n_models == part.n_models


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_to_the_same_bits_and_can_be_saved(case, tmp_path):
    whole, half = trained(case), trained(case, stop_at=4)
    callable_schedule = {"schedule": CASES[case][1]["schedule"]} if "schedule" in CASES[case][1] else {}
    part = half.sel(density=[0.03, 0.3], seed=1)
    part.save(tmp_path / "part.zarr")
    wanted = whole.sel(density=[0.03, 0.3], seed=1)
    assert_same(
        tk.fit(resume=tk.Run.load(tmp_path / "part.zarr"), progress=False, **callable_schedule), wanted
    )
    assert_same(tk.fit(resume=part, progress=False), wanted)
    assert torch.equal(part.rerun(1).loss[0], wanted.loss[1])
    assert half.step == 4  # the half that it was taken from has stayed there
    assert part.sel(density=0.3).to_xarray()["loss"].dims == ("lr", "record")
    if whole.grid is not None and case == "datasets":
        assert not part.model.decoder.requires_grad


def test_xarray_selects_the_same():
    run = trained("streams")
    results = run.to_xarray()
    for points in ({"density": 0.1}, {"density": [0.03, 0.3], "seed": 1}):
        assert np.array_equal(run.sel(**points).to_xarray()["weight"], results["weight"].sel(**points))
    near = run.sel(density=0.12, method="nearest")
    assert np.array_equal(near.to_xarray()["loss"], results["loss"].sel(density=0.12, method="nearest"))
    assert torch.equal(run.sel({"density": 0.3 * (1 + 1e-12)}).loss, run.sel(density=0.3).loss)


def test_axes_of_vectors_are_chosen_by_number():
    g = tk.grid(importance=[[1.0, 0.5], [1.0, 0.1], [1.0, 0.9]], seed=range(2))
    run = tk.fit(tk.TiedAutoencoder(2, 1, 6), tk.SparseFeatures(2, 0.5), 2, importance=g.importance, grid=g,
                 progress=False)  # fmt: skip
    assert run.sel(importance=[2, 0]).grid == tk.grid(importance=[[1.0, 0.9], [1.0, 0.5]], seed=range(2))
    assert torch.equal(run.sel(importance=1).loss, run.loss[2:4])


def test_without_a_grid_models_have_numbers():
    run = tk.fit(tk.TiedAutoencoder(2, 1, 6), tk.SparseFeatures(2, 0.5), 2, progress=False)
    assert torch.equal(run.sel(model=[4, 1]).loss, run.loss[[4, 1]]) and run.sel(model=3).n_models == 1
    assert torch.equal(run.isel(model=slice(None, None, 2)).loss, run.loss[::2])


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("sel", {"density": 0.2}, r"density has no point 0.2; it has 0.3, 0.1, 0.03"),
        ("sel", {"densty": 0.1}, r"'densty' is no axis of the run; its axes are density, lr, seed"),
        ("sel", {"seed": 2}, r"seed has no point 2; it has 0, 1"),
        ("sel", {"density": float("nan"), "method": "nearest"}, "density has no point nan"),
        ("sel", {"density": 0.1, "method": "pad"}, "method must be"),
        ("sel", {"density": [0.1, 0.1]}, "density names a point more than once"),
        ("sel", {"density": slice(0.4, 0.5)}, "density has no point in slice"),
        ("sel", {"density": slice(0.1, 0.3, 1)}, "density must be a slice without a step"),
        ("sel", {"density": []}, "density must be a number"),
        ("sel", {"density": "0.1"}, "density must be a number"),
        ("isel", {"density": 3}, "density must be from -3 to 2, not 3"),
        ("isel", {"density": 1.0}, "density must be a number"),
        ("isel", {"density": [True]}, "density must have 3 entries where it is a mask"),
        ("isel", {"density": slice(3, None)}, "density has no place in slice"),
        ("isel", {"density": [0, -3]}, "density names a point more than once"),
    ],
)
def test_what_is_not_there_is_refused_by_name(method, given, message):
    run = trained("streams", stop_at=0)
    with pytest.raises(ValueError, match=message):
        getattr(run, method)(**given)


def test_a_topology_recipe_cannot_be_divided():
    run = tk.fit(tk.SparseTiedAutoencoder(6, 4, 0.5, n_models=2), tk.SparseFeatures(6, 0.3), 4,
                 topology=tk.SET(interval=2), progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="topology recipe.*cannot be divided"):
        run.isel(model=0)
