"""Sweeps that grow: extended and merged stores hold the bits of a sweep that was made so from the start."""

from __future__ import annotations

import importlib
import os
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import test_sweep_shares as shares
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import toykern as tk
from toykern.cli import main
from toykern.experiments.phase_diagram import train_phase_diagram
from toykern.results.store_place import foreign_entries
from toykern.sweeps.boxes import Part
from toykern.sweeps.claims import WORK, Claims
from toykern.sweeps.job import Job
from toykern.sweeps.kept import products

EXTENDING = importlib.import_module("toykern.sweeps.extending")

SETTINGS = {"steps": 4, "batch_size": 8, "record_every": 2, "progress": False}
DENSITIES = np.array([0.3, 0.05, 1.0, 0.6])
GRID = tk.grid(density=DENSITIES, seed=range(6))


def plan(points, index):
    seeds = points.seed.long() + (1000 * points.density).long() * 100
    return {
        "model": tk.TiedAutoencoder(3, 2, points.n_models, seed=seeds),
        "data": tk.SparseFeatures(3, points.density[:, None]),
        "seed": seeds,
    }


def plan_by_number(points, index):
    return {**plan(points, index), "seed": index}


def swept(grid, path, chunk=12, plan=plan, **options):
    return tk.sweep(grid, plan, path, chunk=chunk, **{**SETTINGS, **options})


def grid_of(densities, seeds):
    return tk.grid(density=DENSITIES[np.asarray(densities, dtype=np.int64)], seed=seeds)


def contents(done: tk.Sweep) -> dict[str, bytes]:
    assert done.complete and not done.kept.any() and foreign_entries(done.path) == []
    return {name: done.read(name).tobytes() for name in done.names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    return contents(swept(GRID, tmp_path_factory.mktemp("growing") / "whole.zarr", chunk=1000))


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """How many models each call of the training had, the first model that shows the layout aside."""
    counts, real = [], Job.train

    def train(job, box, progress=False):
        if box.n_models > 1 or box.number > 0:
            counts.append(box.n_models)
        return real(job, box, progress)

    monkeypatch.setattr(Job, "train", train)
    return counts


def begun(grid, path):
    """A sweep of which the first chunk, of four models at most, is finished."""
    part = swept(grid, path, 4, measure=stopping(3))  # the first call is for the layout
    assert part.interrupted and part.finished.sum() == 1
    return part


# Which models are missing


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_products_cover_what_is_missing_once(shape, data):
    size = int(np.prod(shape))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    numbers = [Part(0, places, tuple(shape)).index.tolist() for places in products(mask)]
    assert all(part == sorted(part) for part in numbers)
    assert sorted(number for part in numbers for number in part) == np.flatnonzero(mask).tolist()


def test_a_part_knows_its_points():
    part = Part(0, (np.array([0, 2]), np.array([1, 4, 5])), GRID.shape)
    points = part.points(GRID)
    assert part.n_models == points.n_models == 6
    for name in GRID.dims:
        assert torch.equal(getattr(points, name), getattr(GRID, name)[part.index])


# Extending


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("densities", "seeds", "chunk"),
    [([0, 1, 2, 3], [0, 1, 2], 6), ([0, 3], [1, 4], 10), ([2], [5, 0, 2], 24), ([0, 1], range(6), 6)],
    ids=["more seeds", "points between", "another order", "more points"],
)
def test_an_extended_sweep_has_the_bits_of_one_made_so(
    densities, seeds, chunk, in_place, whole, tmp_path, trained
):
    small = swept(grid_of(densities, seeds), tmp_path / "small.zarr")
    before = contents(small)
    trained.clear()
    if in_place:
        done = swept(GRID, small.path, chunk, extend=True)
        assert os.listdir(tmp_path) == ["small.zarr"]
    else:
        done = swept(GRID, tmp_path / "large.zarr", chunk, extend=small.path)
        assert contents(tk.open_sweep(small.path)) == before
    assert contents(done) == whole
    assert sum(trained) == 24 - small.grid.n_models
    trained.clear()
    assert (
        swept(GRID, done.path, extend=True, chunk=None).complete and trained == []
    )  # nothing to do any more


@settings(max_examples=2, phases=[Phase.generate])  # a store takes a while
@given(st.data())
def test_any_part_of_a_grid_grows_into_the_whole(tmp_path_factory, whole, data):
    folder = tmp_path_factory.mktemp("grows")
    some = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
    path, chunk = folder / "s.zarr", st.integers(3, 24)
    densities, seeds = data.draw(some), data.draw(some)
    swept(grid_of(densities, seeds), path, data.draw(chunk))
    if data.draw(st.booleans()):  # in two steps, the first of them not trained to its end
        swept(grid_of(densities, range(6)), path, data.draw(chunk), extend=True, measure=stopping(2))
    assert contents(swept(GRID, path, data.draw(chunk), extend=True)) == whole


def stopping(at):
    """A measure that ends the sweep when it is called so often."""
    calls = []

    def measure(run, points, index):
        calls.append(index)
        if len(calls) == at:
            raise KeyboardInterrupt
        return {}

    return measure


def test_models_of_an_extended_sweep_are_seen_before_their_chunk_is_finished(tmp_path):
    small = swept(grid_of([0, 2], [0, 1, 5]), tmp_path / "s.zarr")
    before = small.to_xarray()
    values = {name: small.read(name) for name in ("loss", "weight")}

    def fails(run, points, index):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        swept(GRID, small.path, 12, extend=True, measure=fails)
    grown = tk.open_sweep(small.path)
    assert not grown.finished.any() and grown.kept.tolist() == [True, True]
    shown = grown.to_xarray()
    for name in values:
        there = shown[name].sel(density=before["density"], seed=before["seed"])
        assert there.values.tobytes() == values[name].tobytes()
        assert int(np.isfinite(shown[name]).sum()) == np.isfinite(values[name]).sum()
    part = shown["loss"][0, 1:6:4, 0]
    assert part.values.tobytes() == values["loss"][0, 1:, 0].tobytes()
    assert foreign_entries(small.path) == []
    assert swept(GRID, small.path, resume=True, chunk=None, dry_run=True).models == 24


def test_a_lost_piece_of_an_extended_sweep_is_trained_again(whole, tmp_path, trained):
    small = swept(grid_of([0, 1], [0, 1, 5]), tmp_path / "s.zarr")

    def fails(run, points, index):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        swept(GRID, small.path, 6, extend=True, measure=fails)
    (small.path / WORK / "0.kept").write_bytes(b"PK")
    kept = small.path / WORK / "1.kept"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 16
    kept.write_bytes(data)
    trained.clear()
    with pytest.warns(UserWarning, match=r"\d.kept cannot be read .*are trained again"):
        done = swept(GRID, small.path, resume=True, chunk=None)
    assert contents(done) == whole and sum(trained) == 24


def test_an_extended_sweep_says_where_its_models_come_from(tmp_path):
    small = swept(grid_of([0, 1, 2, 3], [0, 1, 2]), tmp_path / "s.zarr", chunk=3)
    first, seconds = [small.origin(number) for number in range(4)], small.seconds
    done = swept(GRID, small.path, 3, extend=True)  # here the chunks of the first three seeds are whole
    assert done.origin(0)["taken"] == first[:1] and done.origin(0)["pid"] == os.getpid()
    assert done.seconds[[0, 2, 4, 6]].tolist() == seconds.tolist()
    assert "taken" not in done.origin(1)


def test_a_plan_of_a_larger_sweep_counts_what_is_new(tmp_path):
    small = swept(grid_of([0, 1, 2, 3], [0, 1, 2]), tmp_path / "s.zarr")
    before = sorted(os.listdir(small.path / WORK))
    planned = swept(GRID, small.path, extend=True, dry_run=True)
    assert planned.models == 12 and planned.store_bytes > 0
    assert tk.open_sweep(small.path).grid == small.grid and sorted(os.listdir(small.path / WORK)) == before


def test_seeds_that_are_made_of_numbers_are_refused(tmp_path):
    small = swept(grid_of([0, 1], [0, 1, 2]), tmp_path / "s.zarr", plan=plan_by_number)
    before = contents(small)
    with pytest.raises(tk.StoreError, match=r"seed of the model at density=0.05, seed=0 in .*points.seed"):
        swept(grid_of([0, 1], range(6)), small.path, plan=plan_by_number, extend=True)
    assert contents(tk.open_sweep(small.path)) == before and os.listdir(tmp_path) == ["s.zarr"]
    assert not tk.open_sweep(small.path).claimed.any() and not list((small.path / WORK).glob("*.claim"))
    # More points at the end of the first axis leave all numbers as they are.
    assert swept(grid_of([0, 1, 2], [0, 1, 2]), small.path, plan=plan_by_number, extend=True).complete


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        (tk.grid(density=DENSITIES, lr=[1.0], seed=[0, 1]), {}, r"axes of the grid are density, lr, seed"),
        (tk.grid(seed=[0, 1], density=DENSITIES), {}, r"axes of the grid are seed, density"),
        (tk.grid(density=DENSITIES[:1], seed=range(6)), {}, r"the grid lacks density=0.05"),
        (
            tk.grid(density=DENSITIES * (1 + 1e-15), seed=[0, 1]),
            {},
            r"the grid lacks density=0.3 .*bit for bit",
        ),
        (tk.grid(density=[1, 2], seed=[0, 1]), {}, r"axis density of the grid is of other values \(int64"),
        (GRID, {"steps": 5}, r"steps differs"),
        (GRID, {"extend": False}, r"the grid differs .* unless extend=True \(--extend\)"),
    ],
)
def test_what_is_no_larger_sweep_is_refused(grid, options, message, tmp_path):
    small = swept(grid_of([0, 1], [0, 1]), tmp_path / "s.zarr")
    before = contents(small)
    options = {"extend": True, "resume": True, **options}
    with pytest.raises(tk.StoreError, match=message):
        swept(grid, small.path, plan=plan, **options)
    assert contents(tk.open_sweep(small.path)) == before and os.listdir(tmp_path) == ["s.zarr"]


def test_extending_begins_where_there_is_nothing(whole, tmp_path):
    assert contents(swept(GRID, tmp_path / "s.zarr", extend=True)) == whole


def test_other_mistakes_of_extending(tmp_path):
    with pytest.raises(TypeError, match="extend must be True, False or the path of a store, not 3"):
        swept(GRID, tmp_path / "s.zarr", extend=3)
    with pytest.raises(tk.StoreError, match="nothing.zarr does not exist"):
        swept(GRID, tmp_path / "s.zarr", extend=tmp_path / "nothing.zarr")
    assert os.listdir(tmp_path) == []
    small = swept(grid_of([0, 1], [0, 1]), tmp_path / "s.zarr")
    swept(grid_of([0], [0]), tmp_path / "t.zarr")
    with pytest.raises(tk.StoreError, match="already holds a toykern store"):
        swept(GRID, tmp_path / "t.zarr", extend=small.path)
    with pytest.raises(tk.StoreError, match="the grid differs"):
        swept(GRID, tmp_path / "t.zarr", extend=small.path, resume=True)


def test_a_sweep_that_somebody_trains_is_not_replaced(tmp_path):
    small = begun(grid_of([0, 1], [0, 1, 2, 3]), tmp_path / "s.zarr")
    assert Claims(small.path).take(1, None)
    with pytest.raises(tk.StoreError, match=rf"chunk 1 of it is being trained by process {os.getpid()} on"):
        swept(GRID, small.path, extend=True)
    assert tk.open_sweep(small.path).grid == small.grid
    Claims(small.path).release(1)
    assert not tk.open_sweep(small.path).claimed.any()
    assert swept(GRID, small.path, extend=True).complete


def test_of_several_shares_one_extends_and_the_others_wait(whole, tmp_path, monkeypatch):
    small = swept(grid_of([0, 1, 2, 3], [0, 1, 2]), tmp_path / "s.zarr")
    real, at_it = EXTENDING._made_of, threading.Event()

    def slowly(*arguments):
        at_it.set()
        time.sleep(0.5)  # the other one has come by then; if not, it finds the larger store
        return real(*arguments)

    monkeypatch.setattr(EXTENDING, "_made_of", slowly)
    made = []
    first = threading.Thread(target=lambda: made.append(swept(GRID, small.path, extend=True, share=(0, 2))))
    first.start()
    assert at_it.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rest may be in the hands of the other
        second = swept(GRID, small.path, extend=True, share=(1, 2))
        first.join()
    assert second.path == made[0].path and contents(tk.open_sweep(small.path)) == whole


def test_a_phase_diagram_takes_more_seeds(tmp_path, capsys):
    tiny = {"shape": (3, 2), "steps": 6, "batch_size": 8, "progress": False}
    path, picture = tmp_path / "s.zarr", tmp_path / "p.png"
    command = ["phase-diagram", "--grid", "3x2", "--steps", "6", "--batch", "8", "--threads", "1"]
    command += ["--store", str(path), "--out", str(picture)]
    assert main([*command, "--seeds", "2"]) == 0
    capsys.readouterr()
    assert main([*command, "--seeds", "4", "--resume"]) == 2
    assert "the grid differs" in capsys.readouterr().err
    before = picture.read_bytes()
    assert main([*command, "--seeds", "4", "--extend"]) == 0
    assert picture.read_bytes() != before
    memory = train_phase_diagram(**tiny, seeds=4)
    done = tk.open_sweep(path)
    assert done.read("fresh_loss").tobytes() == memory.loss.numpy().tobytes()
    assert sorted(done.read("inputs/seed").ravel().tolist()) == list(range(24))


# Merging


@pytest.mark.parametrize(
    ("first", "second", "chunk"),
    [
        (([0, 1, 2, 3], [0, 1, 2]), ([0, 1, 2, 3], [3, 4, 5]), None),
        (([0, 1, 2, 3], [0, 1, 2, 4]), ([0, 1, 2, 3], [2, 3, 4, 5]), 5),
        (([0, 1, 2], range(6)), ([3], range(6)), None),
        (([0, 1, 2], range(6)), ([0, 3], range(6)), 6),
    ],
    ids=["other seeds", "some seeds in both", "other points", "some points in both"],
)
def test_a_merged_sweep_has_the_bits_of_one_made_so(first, second, chunk, whole, tmp_path, trained):
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for each, path in zip((first, second), paths, strict=True):
        swept(grid_of(*each), path)
    trained.clear()
    done = tk.merge_sweeps(paths, tmp_path / "c.zarr", chunk=chunk)
    assert trained == [] and done.grid == GRID and contents(done) == whole
    assert contents(swept(GRID, done.path, resume=True, chunk=None)) == whole and trained == []
    # In the place of one of them, from the command line.
    names = [str(path) for path in paths]
    assert main(["merge", *names, "--store", names[0]]) == 2
    assert main(["merge", *names, "--store", names[0], "--overwrite"]) == 0
    assert contents(tk.open_sweep(paths[0])) == whole


@settings(max_examples=2, phases=[Phase.generate])
@given(st.data())
def test_any_stores_along_one_axis_merge_whatever_is_finished(tmp_path_factory, whole, data):
    folder = tmp_path_factory.mktemp("merges")
    some = st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True)
    seeds = [sorted(data.draw(some)) for _ in range(data.draw(st.integers(2, 3)))]
    paths = [folder / f"{k}.zarr" for k in range(len(seeds))]
    for some, path in zip(seeds, paths, strict=True):
        grid = grid_of(range(4), some)
        if len(some) > 1 and data.draw(st.booleans()):
            begun(grid, path)
        else:
            swept(grid, path, data.draw(st.integers(3, 24)))
    done = tk.merge_sweeps(paths, folder / "m.zarr", chunk=data.draw(st.integers(3, 24)))
    assert done.grid == grid_of(range(4), sorted(set().union(*seeds)))
    assert contents(swept(GRID, done.path, extend=True, chunk=None)) == whole


def test_points_of_an_axis_stay_in_order(tmp_path):
    order = {"a": [5, 3], "b": [4, 3], "c": [1, 9], "d": [0, 2]}
    for name, seeds in order.items():
        swept(grid_of([0], seeds), tmp_path / f"{name}.zarr")

    def merged(*names):
        paths = [tmp_path / f"{name}.zarr" for name in names]
        done = tk.merge_sweeps(paths, tmp_path / "m.zarr", overwrite=True)
        for at, seed in enumerate(done.grid.coords["seed"].tolist()):
            assert (done.read("inputs/seed")[0, at] - 30000) == seed
        return done.grid.coords["seed"].tolist()

    assert merged("a", "b") == [5, 4, 3] and merged("c", "d") == [0, 1, 2, 9]
    assert merged("a", "c") == [5, 3, 1, 9] and merged("d", "c", "a", "b") == [0, 2, 1, 9, 5, 3, 4]


def other_start(points, index):
    return {**plan(points, index), "model": tk.TiedAutoencoder(3, 2, points.n_models, seed=7)}


def flipped(run, points, index):
    return {"noise": torch.full((len(index),), float(index[0]))}


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        (grid_of([0, 2], [2, 3]), {}, "differ along density and seed"),
        (grid_of([0, 1], [1, 2]), {"plan": other_start},
         r"init_seed of the model at density=0.3, seed=1 is another in .*b.zarr than in .*a.zarr"),
        (grid_of([0, 1], [2]), {"steps": 5}, "steps is 4 in .*a.zarr and 5 in .*b.zarr"),
        (grid_of([0, 1], [2]), {"record": ("loss", "features_per_dimension")}, "record is"),
        (grid_of([0, 1], [2]), {"measure": flipped}, "the result noise is nothing in .*a.zarr and"),
        (tk.grid(seed=[2], density=DENSITIES[:2]), {}, "axes is density, seed in .* and seed, density in"),
        (tk.grid(density=DENSITIES[:2], seed=[2.0]), {}, "axis seed is int64 in .* and float64 in"),
    ],
)  # fmt: skip
def test_sweeps_that_do_not_go_together_are_refused(grid, options, message, tmp_path):
    swept(grid_of([0, 1], [0, 1]), tmp_path / "a.zarr")
    swept(grid, tmp_path / "b.zarr", chunk=1000, **options)
    with pytest.raises(tk.StoreError, match=message):
        tk.merge_sweeps([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "c.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


def test_results_that_differ_are_a_conflict(tmp_path):
    """Such as those of two versions of a measure."""
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for chunk, path in zip((2, 3), paths, strict=True):
        swept(grid_of([0], [0, 1, 2]), path, chunk, measure=flipped)
    with pytest.raises(tk.StoreError, match=r"noise of the model at density=0.3, seed=2 is another"):
        tk.merge_sweeps(paths, tmp_path / "c.zarr")


def test_other_mistakes_of_merging(tmp_path, monkeypatch):
    a, b = tmp_path / "a.zarr", tmp_path / "b.zarr"
    swept(grid_of([0], [0, 1]), a)
    for wrong in (a, [a], str(a), 3):
        with pytest.raises(TypeError, match="paths must be a list of two stores or more"):
            tk.merge_sweeps(wrong, b)
    with pytest.raises(tk.StoreError, match=r"nothing.zarr does not exist"):
        tk.merge_sweeps([a, tmp_path / "nothing.zarr"], b)
    with pytest.raises(tk.StoreError, match="already holds a toykern store"):
        tk.merge_sweeps([a, a], a)
    with pytest.raises(ValueError, match="chunk must be an integer at least 1"):
        tk.merge_sweeps([a, a], b, chunk=0)
    fitting = sys.modules["toykern.training.beginning"]
    real = fitting._provenance
    monkeypatch.setattr(fitting, "_provenance", lambda *d: {**real(*d), "instruction_set": "other"})
    swept(grid_of([0], [2, 3]), b)
    with pytest.raises(tk.StoreError, match=r"instruction set is .* and other in .*mixed=True"):
        tk.merge_sweeps([a, b], tmp_path / "c.zarr")
    assert tk.merge_sweeps([a, b], tmp_path / "c.zarr", mixed=True).grid.shape == (1, 4)
    small = begun(grid_of([0, 1], [0, 1, 2, 3]), tmp_path / "d.zarr")
    assert Claims(small.path).take(1, None)
    with pytest.raises(tk.StoreError, match="d.zarr cannot be replaced now: chunk 1 of it is being trained"):
        tk.merge_sweeps([small.path, small.path], small.path, overwrite=True)


def test_a_damaged_store_is_not_merged(tmp_path):
    done = swept(grid_of([0], [0, 1]), tmp_path / "a.zarr")
    piece = next(p for p in sorted((done.path / "weight" / "c").rglob("*")) if p.is_file())
    piece.write_bytes(piece.read_bytes()[:-3])
    with pytest.raises(tk.StoreError, match="a.zarr is damaged: chunk 0 of array weight"):
        tk.merge_sweeps([done.path, done.path], tmp_path / "c.zarr")
    assert os.listdir(tmp_path) == ["a.zarr"]


@pytest.mark.filterwarnings("ignore:the sweep in .* was begun with another")
def test_old_sweeps_are_extended(tmp_path):
    with tarfile.open(Path(__file__).parent / "data" / "sweep_of_version_2.tar.xz") as kept:
        kept.extractall(tmp_path, filter="data")
    old = tk.open_sweep(tmp_path / "sweep_2.zarr")
    weight = old.read("weight", old.boxes[1])
    more = tk.grid(density=[0.05, 0.3, 1.0, 0.5], seed=range(8))
    done = tk.sweep(more, shares.plan, old.path, extend=True, mixed=True, chunk=8, **shares.SETTINGS)
    assert done.attributes["version"] == 3 and done.complete
    assert done.read("weight")[0, 4:].tobytes() == weight.tobytes()
