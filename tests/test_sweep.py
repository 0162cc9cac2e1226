"""Sweeps: the same bits in any chunks, through kills, damage and Ctrl-C; stores that say what they hold."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk
from toykern.experiments.phase_diagram import diagram_of, train_phase_diagram
from toykern.sweeps.boxes import box_shape, boxes_of
from toykern.sweeps.memory import default_chunk

BEGINNING, RUN, JOB, MEMORY = (
    importlib.import_module(f"toykern.{name}")
    for name in ("training.beginning", "sweeps.run", "sweeps.job", "sweeps.memory")
)

GRID = tk.grid(density=[0.05, 0.3, 1.0], importance=[0.5, 2.0], seed=range(5))
SETTINGS = {"steps": 7, "batch_size": 16, "record_every": 3, "progress": False}


def plan(points, index):
    importance = torch.ones(points.n_models, 3)
    importance[:, -1] = points.importance
    return {
        "model": tk.TiedAutoencoder(3, 2, points.n_models, seed=index + 100),
        "data": tk.SparseFeatures(3, points.density[:, None]),
        "importance": importance,
        "optimizer": tk.Adam(lr=1e-3 * (1 + points.seed)),
    }


def measure(run, points, index):
    return {"fresh": tk.evaluate(run.model, run.data, samples=50, seed=index), "number": index}


def swept(path, chunk=None, **options):
    return tk.sweep(GRID, plan, path, measure=measure, chunk=chunk, **{**SETTINGS, **options})


def contents(done: tk.Sweep) -> dict[str, bytes]:
    return {name: done.read(name).tobytes() for name in done.names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tk.Sweep:
    return swept(tmp_path_factory.mktemp("sweep") / "whole.zarr", chunk=1000)


# Chunks


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 400))
def test_boxes_cover_the_grid_in_its_flat_order(shape, chunk):
    box = box_shape(tuple(shape), chunk)
    boxes = boxes_of(tuple(shape), box)
    assert np.prod(box) <= chunk
    assert torch.cat([b.index for b in boxes]).tolist() == list(range(np.prod(shape)))
    flat = np.arange(np.prod(shape)).reshape(shape)
    for number, b in enumerate(boxes):
        assert b.number == number
        assert flat[b.region].ravel().tolist() == b.index.tolist()


def test_a_box_knows_its_points():
    for box in boxes_of(GRID.shape, (1, 1, 3)):
        points = box.points(GRID)
        for name in GRID.dims:
            assert torch.equal(getattr(points, name), getattr(GRID, name)[box.index])


def test_the_million_has_sixteen_chunks_that_fit(monkeypatch):
    model = tk.TiedAutoencoder(2, 1)
    probe = tk.fit(model, tk.SparseFeatures(2, [[0.1]]), 10_000, stop_at=0)
    monkeypatch.setattr(MEMORY, "free_memory", lambda device: 8 << 30)
    assert default_chunk(probe, 256 * 256 * 16) == 65_536
    assert default_chunk(probe, 1000) == 1000
    monkeypatch.setattr(MEMORY, "free_memory", lambda device: 8 << 20)
    assert 100 < default_chunk(probe, 256 * 256 * 16) < 4096  # some kilobytes a model


# Bits


@pytest.mark.parametrize("chunk", [1, 4, 5, 11, 29])
def test_chunks_change_no_bit(chunk, whole, tmp_path):
    done = swept(tmp_path / "s.zarr", chunk=chunk)
    assert len(done.boxes) == {1: 30, 4: 12, 5: 6, 11: 3, 29: 2}[chunk] and len(whole.boxes) == 1
    assert done.complete and not done.interrupted
    assert contents(done) == contents(whole)


def test_a_sweep_is_what_fit_makes_of_the_whole_grid(whole):
    index = torch.arange(GRID.n_models)
    run = tk.fit(**plan(GRID, index), **SETTINGS, seed=index, grid=GRID)
    expected = run.to_xarray()
    found = whole.to_xarray()
    assert found["loss"].dims == ("density", "importance", "seed", "record")
    for name in ("loss", "diverged_at", "weight", "bias"):
        assert found[name].dims == expected[name].dims
        assert found[name].values.tobytes() == expected[name].values.tobytes()
        for dim in expected[name].coords:
            assert np.array_equal(found[dim], expected[dim]), dim
    assert whole.read("number").ravel().tolist() == index.tolist()
    assert whole.read("fresh").tobytes() == tk.evaluate(run.model, run.data, 50, index).numpy().tobytes()
    for name in ("seed", "importance", "lr", "weight_decay", "probability", "init_seed"):
        rows = run.arrays[name].expand(30, *run.arrays[name].shape[1:])
        assert whole.read(f"inputs/{name}").tobytes() == rows.numpy().tobytes(), name


def test_records_and_snapshots_are_kept(tmp_path):
    options = {"record": ("loss", "feature_dimensionality"), "snapshots": [0, 4]}
    done = swept(tmp_path / "s.zarr", chunk=7, **options)
    index = torch.arange(GRID.n_models)
    run = tk.fit(**plan(GRID, index), **SETTINGS, **options, seed=index, grid=GRID)
    found, expected = done.to_xarray(), run.to_xarray()
    for name in ("feature_dimensionality", "weight_snapshots", "bias_snapshots"):
        assert found[name].dims == expected[name].dims
        assert np.array_equal(found[name], expected[name])
    assert found["snapshot"].values.tolist() == [0, 4]


def test_pieces_are_those_that_zarr_writes(tmp_path):
    options = {"record": ("loss", "feature_dimensionality"), "snapshots": [0, 4]}
    done = swept(tmp_path / "s.zarr", chunk=7, **options)  # the last chunk along an axis is smaller
    shapes = set()
    for entry in (*done.attributes["manifest"], done.mark_entry):
        name = entry["path"]
        ours = zarr.open_array(done.path / name, mode="r")
        theirs = zarr.create_array(
            tmp_path / "theirs.zarr", name=name, shape=ours.shape, dtype=ours.dtype, chunks=ours.chunks,
            compressors=ours.compressors, fill_value=ours.fill_value, config={"write_empty_chunks": True},
        )  # fmt: skip
        theirs[...] = ours[...]
        files = [file for file in (tmp_path / "theirs.zarr" / name / "c").rglob("*") if file.is_file()]
        shapes.add(ours.shape)
        for file in files:
            written = done.path / file.relative_to(tmp_path / "theirs.zarr")
            assert written.read_bytes() == file.read_bytes(), written
        assert len(files) == sum(file.is_file() for file in (done.path / name / "c").rglob("*"))
    assert len(shapes) > 4


# Going on


def kill_in_the_middle(path: Path, when: str) -> None:
    """A sweep of six chunks in a process that dies at once, during the third: no `finally` is run."""
    script = f"""
import importlib, os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(tk.__file__).parents[1])]!r}
import test_sweep
writing, job = (importlib.import_module("toykern.sweeps." + name) for name in ("writing", "job"))
count = 0
def dies(original):
    def wrapper(*arguments, **options):
        global count
        count += options.get("stop_at") != 0
        if count == 4:  # the first is the one model that shows the layout
            {"original(*arguments, **options)" if when == "after" else "pass"}
            os._exit(9)
        return original(*arguments, **options)
    return wrapper
if {when!r} == "writing":
    real = writing._place
    def torn(partial, store, name, piece):
        global count
        count += name == "weight"
        if count == 3 and name == "weight":
            real(partial, store, name, piece)
            os.truncate(store / name / piece, 20)  # as a full disk leaves it
            os._exit(9)
        real(partial, store, name, piece)
    writing._place = torn
else:
    job.fit = dies(job.fit)
test_sweep.swept({str(path)!r}, chunk=5)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after", "writing"])
def test_a_killed_sweep_goes_on(when, whole, tmp_path):
    path = tmp_path / "s.zarr"
    kill_in_the_middle(path, when)
    begun = tk.open_sweep(path)
    assert begun.finished.tolist() == [True, True, False, False, False, False]
    with pytest.raises(tk.StoreError, match=r"2 of its 6 chunks.*resume=True"):
        begun.read("weight")
    assert begun.to_xarray()["weight"].isnull().values[2].all()
    before = {file: file.stat().st_mtime_ns for file in path.glob("weight/c/0/**/*") if file.is_file()}
    done = swept(path, resume=True)
    assert done.complete and contents(done) == contents(whole)
    assert before == {file: file.stat().st_mtime_ns for file in before}  # finished chunks were left alone
    assert sorted(os.listdir(tmp_path)) == ["s.zarr"]


def test_resume_begins_where_there_is_nothing(tmp_path):
    assert swept(tmp_path / "s.zarr", chunk=15, resume=True).complete


def test_resume_of_a_finished_sweep_trains_nothing(tmp_path, monkeypatch):
    done = swept(tmp_path / "s.zarr", chunk=15)
    monkeypatch.setattr(JOB.Job, "train", None)
    assert contents(swept(tmp_path / "s.zarr", resume=True)) == contents(done)


def first_file(path: Path, name: str) -> Path:
    return next(file for file in sorted((path / name / "c").rglob("*")) if file.is_file())


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *((how, "weight") for how in ("removed", "cut", "flipped", "empty")),
        ("flipped", "loss"),
        ("removed", "inputs/seed"),
        ("cut", "fresh"),
    ],
)
def test_a_damaged_chunk_is_seen_and_trained_again(how, name, whole, tmp_path):
    path = tmp_path / "s.zarr"
    done = swept(path, chunk=5)
    file = first_file(path, name)
    data = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    elif how == "flipped":
        data[-2] ^= 16
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2 if how == "cut" else 0])
    with pytest.raises(tk.StoreError, match=f"damaged: chunk 0 of array {name}"):
        done.read(name)
    with pytest.warns(UserWarning, match="this chunk is trained again"):
        again = swept(path, resume=True, check=True)
    assert contents(again) == contents(whole)


def test_a_chunk_with_a_torn_mark_is_trained_again(whole, tmp_path):
    path = tmp_path / "s.zarr"
    swept(path, chunk=5)
    first_file(path, "chunk_seconds").write_bytes(b"")
    with pytest.raises(tk.StoreError, match="whether chunk 0 is finished cannot be read"):
        tk.open_sweep(path).to_xarray()
    with pytest.warns(UserWarning, match="mark of chunk 0 cannot be read; this chunk is trained again"):
        assert contents(swept(path, resume=True)) == contents(whole)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 8}, "steps"),
        ({"batch_size": 17}, "batch_size"),
        ({"record_every": 2}, "record_every"),
        ({"chunk": 10}, "chunk"),
        ({"target": "abs"}, "target"),
    ],
)
def test_resume_refuses_what_is_another_sweep(options, what, tmp_path):
    swept(tmp_path / "s.zarr", chunk=5)
    with pytest.raises(tk.StoreError, match=rf"{what}.* differs from that of the sweep"):
        swept(tmp_path / "s.zarr", resume=True, **options)


def test_resume_refuses_another_grid_and_other_inputs(tmp_path):
    path = tmp_path / "s.zarr"
    swept(path, chunk=15)
    other = tk.grid(density=[0.05, 0.3, 0.9], importance=[0.5, 2.0], seed=range(5))
    with pytest.raises(tk.StoreError, match="the grid differs"):
        tk.sweep(other, plan, path, measure=measure, resume=True, **SETTINGS)
    with pytest.raises(tk.StoreError, match="seed of the models.* is not what plan gives"):
        swept(path, resume=True, seed=3)


def test_another_commit_is_warned_of(tmp_path, monkeypatch):
    swept(tmp_path / "s.zarr", chunk=15)
    monkeypatch.setattr(RUN, "_ORIGIN", ("commit", "date"))
    given = BEGINNING._provenance
    monkeypatch.setattr(BEGINNING, "_provenance", lambda *where: {**given(*where), "date": "then"})
    with pytest.warns(UserWarning, match="begun with another date"):
        swept(tmp_path / "s.zarr", resume=True)


# Ctrl-C, memory, mistakes


def test_ctrl_c_keeps_what_is_finished(whole, tmp_path, ctrl_c):
    path = tmp_path / "s.zarr"

    def pressed(run, points, index):
        if int(index[0]) == 15:
            ctrl_c()
        return measure(run, points, index)

    part = tk.sweep(GRID, plan, path, measure=pressed, chunk=5, **SETTINGS)
    assert part.interrupted and part.finished.tolist() == [True] * 3 + [False] * 3
    assert contents(swept(path, resume=True)) == contents(whole)


def test_ctrl_c_before_the_first_chunk_leaves_what_was_there(tmp_path):
    path = tmp_path / "s.zarr"
    before = contents(swept(path))

    def pressed(run, points, index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="before the first of 6 chunks"):
        tk.sweep(GRID, plan, path, measure=pressed, chunk=5, overwrite=True, **SETTINGS)
    assert contents(tk.open_sweep(path)) == before
    assert os.listdir(tmp_path) == ["s.zarr"]


def test_a_chunk_that_does_not_fit_says_what_to_do(tmp_path, monkeypatch):
    def full(**options):
        if options.get("stop_at") != 0 and options["model"].n_models > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return tk.fit(**options)

    monkeypatch.setattr(JOB, "fit", full)
    with pytest.raises(MemoryError, match=r"chunk of 10 models does not fit.*9.00 GiB.*try chunk=5"):
        swept(tmp_path / "s.zarr", chunk=10)
    begun = tk.open_sweep(tmp_path / "s.zarr")  # nothing is claimed any more
    assert not begun.finished.any() and not begun.claimed.any()


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk must be an integer at least 1"),
        ({"stop_at": 3}, TypeError, "sweep takes no stop_at"),
        ({"optimizer": tk.SGD(lr=1.0)}, TypeError, "plan must not give optimizer"),
        ({"steps": 0}, ValueError, "steps"),
        ({"resume": 1}, TypeError, "resume must be True or False"),
        ({"overwrite": "no"}, TypeError, "overwrite must be True or False, not 'no'"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        swept(tmp_path / "s.zarr", **mistake)
    assert os.listdir(tmp_path) == []


def test_functions_that_return_nonsense_are_named(tmp_path):
    path = tmp_path / "s.zarr"
    for result, error in (
        (None, "measure must return a dictionary"),
        ({"loss": torch.zeros(30)}, "'loss' is no name"),
        ({"seed": torch.zeros(30)}, "'seed' is no name"),
        ({"x": torch.zeros(29)}, "x must have one row for each of the 1 models"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            tk.sweep(GRID, plan, path, measure=lambda *_, r=result: r, **SETTINGS)
    with pytest.raises(TypeError, match="plan must return a dictionary"):
        tk.sweep(GRID, lambda *_: None, path, **SETTINGS)
    with pytest.raises(TypeError, match="grid must be a Grid"):
        tk.sweep([1], plan, path, **SETTINGS)
    with pytest.raises(ValueError, match="axis 'weight' has the name of a result"):
        tk.sweep(
            tk.grid(weight=[1.0]),
            lambda p, i: {"model": tk.TiedAutoencoder(2, 1), "data": tk.SparseFeatures(2, 0.1)},
            path,
            steps=1,
        )
    assert os.listdir(tmp_path) == []


def test_stores_of_another_kind_are_refused(tmp_path):
    with pytest.raises(tk.StoreError, match="does not exist"):
        tk.open_sweep(tmp_path / "nothing.zarr")
    run = tk.fit(tk.TiedAutoencoder(2, 1), tk.SparseFeatures(2, 0.1), 2, 8, progress=False)
    run.save(tmp_path / "run.zarr")
    with pytest.raises(tk.StoreError, match=r"store of a toykern run, not of a toykern sweep; toykern.Run"):
        tk.open_sweep(tmp_path / "run.zarr")
    with pytest.raises(tk.StoreError, match="already holds a toykern store"):
        swept(tmp_path / "run.zarr")
    assert swept(tmp_path / "run.zarr", overwrite=True).complete
    with pytest.raises(tk.StoreError, match="has no array 'wieght'; it has loss, "):
        tk.open_sweep(tmp_path / "run.zarr").read("wieght")


# Looking


def test_a_sweep_says_what_it_is(whole):
    shown = repr(whole)
    assert "30 models" in shown and "3 density × 2 importance × 5 seed" in shown
    assert "1 of 1 finished" in shown and "7, batch 16" in shown


@pytest.mark.parametrize("chunk", [2, 3, 12, 100])
def test_the_phase_diagram_is_drawn_from_its_chunks(chunk, tmp_path):
    tiny = {"shape": (3, 4), "seeds": 3, "steps": 6, "batch_size": 8, "progress": False}
    memory = train_phase_diagram(**tiny)
    stored = train_phase_diagram(**tiny, store=tmp_path / "s.zarr", chunk=chunk)
    assert np.array_equal(stored.best, memory.best)
    assert torch.equal(stored.weight, memory.weight)
    assert torch.equal(stored.loss, memory.loss)
    again = diagram_of(tk.open_sweep(tmp_path / "s.zarr"))
    assert np.array_equal(again.phase, memory.phase) and again.agreement == memory.agreement
    assert stored.run is None and memory.sweep is None


def test_a_phase_diagram_takes_store_options_with_a_store_alone():
    with pytest.raises(ValueError, match="are for a store"):
        train_phase_diagram(chunk=5)
    for name in ("resume", "overwrite"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, not 'no'"):
            train_phase_diagram(**{name: "no"})
