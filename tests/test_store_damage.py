"""Damaged stores: what is read is what was written, or a StoreError; never anything else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_run_store import assert_same, made_run

import toykern as tk

xarray = pytest.importorskip("xarray")

GRID = tk.grid(density=[0.1, 0.4, 1.0], importance=[1.0, 2.0])
OLD = Path(__file__).parent / "data" / "stores_of_version_1.tar.xz"
SETTINGS = {"steps": 5, "batch_size": 8, "record_every": 3, "snapshots": [0, 4], "progress": False}


def plan(points, index):
    return {
        "model": tk.TiedAutoencoder(3, 2, points.n_models, seed=index + 7),
        "data": tk.SparseFeatures(3, points.density[:, None]),
        "importance": torch.ones(points.n_models, 3) * points.importance[:, None],
    }


def swept(path: Path, **options) -> tk.Sweep:
    return tk.sweep(GRID, plan, path, chunk=2, **SETTINGS, **options)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tk.Sweep:
    return swept(tmp_path_factory.mktemp("damage") / "sweep.zarr")


def contents_of_sweep(path: Path) -> dict[str, object]:
    """All that can be read of a sweep in every way there is."""
    done = tk.open_sweep(path)
    found: dict[str, object] = {"grid": done.grid, "attributes": done.attributes, "repr": repr(done)}
    found |= {name: done.read(name).tobytes() for name in done.names}
    shown = done.to_xarray().load()
    found |= {f"shown {name}": (v.dims, v.values.tobytes()) for name, v in shown.variables.items()}
    return found


def check_run(path: Path, expected: tk.Run) -> None:
    assert_same(expected, tk.Run.load(path))


def files_of(store: Path) -> list[Path]:
    return sorted(file for file in store.rglob("*") if file.is_file())


def one_byte(store: Path, chosen: random.Random) -> tuple[Path, Callable[[], None]]:
    """Change one byte, of any file or of the bytes of all: the file, and what undoes it."""
    files = files_of(store)
    sizes = [file.stat().st_size if chosen.random() < 0.5 else 1 for file in files]
    file = chosen.choices(files, sizes)[0]
    before = file.read_bytes()
    at = chosen.randrange(len(before))
    other = (before[at] ^ (1 << chosen.randrange(8))) if chosen.random() < 0.5 else chosen.randrange(256)
    file.write_bytes(before[:at] + bytes([other]) + before[at + 1 :])
    return file, lambda: file.write_bytes(before)


def lost_or_cut(store: Path, chosen: random.Random) -> tuple[Path, Callable[[], None]]:
    """Remove a file or a folder, or cut a file short."""
    path = chosen.choice(sorted(store.rglob("*")))
    aside = store.with_name("aside")
    if path.is_file() and chosen.random() < 0.3:
        before = path.read_bytes()
        path.write_bytes(before[: chosen.randrange(len(before))])
        return path, lambda: path.write_bytes(before)
    shutil.move(path, aside)
    return path, lambda: shutil.move(aside, path)


def damaged_often(store: Path, read: Callable[[Path], object], harm, cases: int, seed: int) -> int:
    """How many of so many damages are seen; whatever is read nevertheless must pass `read`."""
    chosen, seen = random.Random(seed), 0
    for _ in range(cases):
        file, undo = harm(store, chosen)
        try:
            read(store)
        except tk.StoreError as error:
            assert str(store) in str(error)
            seen += 1
        except BaseException as error:
            raise AssertionError(f"{harm.__name__} of {file.relative_to(store)}: {error!r}") from error
        finally:
            undo()
    read(store)
    return seen


CASES = int(os.environ.get("TOYKERN_DAMAGES", 15))


@pytest.mark.parametrize("harm", [one_byte, lost_or_cut])
def test_a_damaged_run_is_what_was_saved_or_an_error(harm, tmp_path):
    run = made_run()
    run.save(tmp_path / "run.zarr")
    seen = damaged_often(tmp_path / "run.zarr", lambda path: check_run(path, run), harm, CASES, seed=1)
    assert seen > CASES / 4


@pytest.mark.parametrize("harm", [one_byte, lost_or_cut])
def test_a_damaged_sweep_is_what_was_stored_or_an_error(harm, sweep, tmp_path):
    path = tmp_path / "sweep.zarr"
    shutil.copytree(sweep.path, path)
    expected = contents_of_sweep(path)

    def read(path):
        assert contents_of_sweep(path) == expected

    assert damaged_often(path, read, harm, CASES, seed=2) > CASES / 4


# Sweeps shown: what is lost is no fill value


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("loss/c/1", "chunk 1 of array loss is missing"),
        ("weight/c/2/0/0/0", "chunk 2 of array weight is missing"),
        ("weight_snapshots", "array weight_snapshots is missing"),
        ("inputs/seed/c/0", "chunk 0 of array inputs/seed is missing"),
        ("density/c/0", "array density is missing a piece"),
        ("record", "array record is missing"),
        ("snapshot/c/0", "array snapshot is missing a piece"),
        ("chunk_seconds", "array chunk_seconds is missing"),
        ("chunk_seconds/c/1", "whether chunk 1 is finished cannot be read"),
    ],
)
def test_what_is_lost_is_an_error_before_anything_is_shown(lost, message, sweep, tmp_path):
    path = tmp_path / "sweep.zarr"
    shutil.copytree(sweep.path, path)
    remove(path / lost)
    with pytest.raises(tk.StoreError, match=message):
        tk.open_sweep(path).to_xarray()


@pytest.mark.parametrize("how", ["flipped", "lost"])
def test_what_is_lost_later_is_an_error_when_it_is_read(how, sweep, tmp_path):
    path = tmp_path / "sweep.zarr"
    shutil.copytree(sweep.path, path)
    shown = tk.open_sweep(path).to_xarray()
    piece = path / "weight" / "c" / "1" / "0" / "0" / "0"
    if how == "lost":
        piece.unlink()
    else:
        piece.write_bytes(piece.read_bytes()[:-2] + b"??")
    whole = sweep.read("weight")
    np.testing.assert_array_equal(shown["weight"].isel(density=0), whole[0])
    np.testing.assert_array_equal(shown["weight"][::2, ::-1, 1, [2, 0]], whole[::2, ::-1, 1][..., [2, 0]])
    with pytest.raises(tk.StoreError, match="damaged: chunk 1 of array weight"):
        shown["weight"].isel(density=1).load()


def test_a_chunk_that_is_not_finished_shows_fill_values_whatever_lies_there(sweep, tmp_path):
    path = tmp_path / "sweep.zarr"
    shutil.copytree(sweep.path, path)
    part = tk.open_sweep(path)
    (path / "chunk_seconds" / "c" / "1").unlink()  # as a writer that was killed in this chunk leaves it
    (path / "chunk_seconds" / "work" / "1.begun").touch()
    (path / "bias" / "c" / "1" / "0" / "0").write_bytes(b"torn")
    shown, whole = part.to_xarray(), sweep.to_xarray()
    assert part.finished.tolist() == [True, False, True]
    for name in ("weight", "bias", "loss"):
        assert np.isnan(shown[name][1]).all()
        np.testing.assert_array_equal(shown[name][::2], whole[name][::2])
    assert (shown["diverged_at"][1] == np.iinfo(np.int64).min).all()
    again = swept(path, resume=True)
    assert contents_of_sweep(path) == contents_of_sweep(sweep.path) | {"repr": repr(again)}


def test_chunks_of_nothing_but_fill_values_are_there(tmp_path):
    def measure(run, points, index):
        nothing = torch.full((len(index),), torch.nan)
        return {"nan": nothing, "no": torch.zeros(len(index), dtype=torch.bool)}

    done = swept(tmp_path / "s.zarr", measure=measure)
    assert np.isnan(done.read("nan")).all() and not done.read("no").any()
    assert done.to_xarray().load()["no"].dtype == bool
    before = {file: file.stat().st_mtime_ns for file in files_of(done.path)}
    assert swept(done.path, measure=measure, resume=True).complete  # and trains nothing again
    assert before == {file: file.stat().st_mtime_ns for file in files_of(done.path)}


# Other readers


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_other_readers_open_stores_by_themselves(kind, sweep, tmp_path):
    path = sweep.path
    if kind == "run":
        path = tmp_path / "run.zarr"
        run = made_run()
        run.save(path)
    tree = xarray.open_datatree(path, engine="zarr", consolidated=False)
    for group in tree.groups:
        alone = xarray.open_zarr(path, group=group, consolidated=False)
        for name, array in alone.variables.items():
            assert array.dims == tree[group][name].dims
            assert array.values.tobytes() == tree[group][name].values.tobytes()
    if kind == "run":
        assert tree["model"]["weight"].dims == ("model", "hidden", "feature")
        assert tree["optimizer_state/bias"]["exp_avg"].dims == ("model", "feature")
        assert tree["snapshots/5"]["weight"].dims == ("model", "hidden", "feature")
        assert tree["arrays"]["probability"].dims == ("model", "feature")
        assert tree["records"]["features_per_dimension"].dims == ("model", "record")
        np.testing.assert_array_equal(tree["model"]["weight"], run.model.weight.detach())
        assert tree["records"]["record"].values.tolist() == [3, 6, 9, 10]
    else:
        assert tree["inputs"]["seed"].dims == ("density", "importance")
        assert tree["inputs"]["density"].values.tolist() == [0.1, 0.4, 1.0]


def test_sparse_runs_open_too(tmp_path):
    model = tk.SparseTiedAutoencoder(6, 4, 0.5, n_models=2, seed=1)
    tk.fit(model, tk.SparseFeatures(6, 0.3), 6, 8, snapshots=[3], progress=False).save(tmp_path / "s.zarr")
    tree = xarray.open_datatree(tmp_path / "s.zarr", engine="zarr", consolidated=False)
    assert {"values", "column", "row_start"} <= set(tree["model"].data_vars)


# Stores of version 1


@pytest.fixture
def old(tmp_path) -> Path:
    """A run and a sweep that were written before there were digests."""
    with tarfile.open(OLD) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def bits(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_stores_of_version_1_are_read(old):
    run = tk.Run.load(old / "run.zarr")
    assert (run.step, run.config["steps"], run.grid.dims) == (5, 6, ("density", "seed"))
    assert bits(run.model.weight.detach().numpy()).startswith("704ec281ceb4afc5824746f65901ed84")
    assert bits(run.loss.numpy()).startswith("4b8066fb57b85daff1bc28d845cb7d2086e7a7b0ad244c4b")
    assert tk.fit(resume=run, progress=False).complete
    done = tk.open_sweep(old / "sweep.zarr")
    assert done.complete
    assert bits(done.read("weight")).startswith("db43c712ff93771fbb2d9b57ff0356b385248cc04ad0d618b")
    shown = done.to_xarray()
    assert bits(shown["weight"].values) == bits(done.read("weight"))
    assert shown["snapshot"].values.tolist() == [0, 4] and shown["record"].values.tolist() == [4, 6]


def test_stores_of_version_1_are_replaced_when_asked_to(old):
    run = made_run()
    for name in ("run.zarr", "sweep.zarr"):
        run.save(old / name, overwrite=True)
        check_run(old / name, run)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_damaged_store_of_version_1_gives_no_raw_error(kind, old):
    def read(path):
        if kind == "run":
            tk.Run.load(path)
        else:
            contents_of_sweep(path)

    damaged_often(old / f"{kind}.zarr", read, one_byte, CASES, seed=3)


NONSENSE = [None, True, -1, 2**70, 0.5, "", "x", [], [[]], {}, {"name": 1}, "[" * 9]


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_nonsense_in_the_description_of_version_1_gives_no_raw_error(kind, old):
    path = old / f"{kind}.zarr"
    whole = json.loads((path / "zarr.json").read_text())
    read = tk.Run.load if kind == "run" else contents_of_sweep
    chosen = random.Random(4)
    for _ in range(CASES):
        damaged = json.loads(json.dumps(whole))
        where = damaged["attributes"]
        key = chosen.choice(list(where))
        while isinstance(where[key], dict | list) and where[key] and chosen.random() < 0.7:
            where = where[key]
            key = chosen.choice(list(where)) if isinstance(where, dict) else chosen.randrange(len(where))
        where[key] = chosen.choice(NONSENSE)
        (path / "zarr.json").write_text(json.dumps(damaged))
        try:
            read(path)
        except tk.StoreError:
            pass
        except BaseException as error:
            raise AssertionError(f"{key} = {where[key]!r}: {error!r}") from error


def test_a_description_that_is_nested_too_deeply_is_a_store_error(tmp_path):
    (tmp_path / "run.zarr").mkdir()
    (tmp_path / "run.zarr" / "zarr.json").write_text('{"attributes": ' + "[" * 100_000)
    with pytest.raises(tk.StoreError, match="zarr.json is damaged"):
        tk.Run.load(tmp_path / "run.zarr")


def test_paths_out_of_the_store_are_refused(tmp_path):
    from toykern.results.store_format import sealed

    made_run().save(tmp_path / "run.zarr")
    path = tmp_path / "run.zarr" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["manifest"][0]["path"] = "../elsewhere/loss"
    del metadata["attributes"]["digest"]
    metadata["attributes"] = sealed(metadata["attributes"])
    path.write_text(json.dumps(metadata))
    with pytest.raises(tk.StoreError, match="no manifest of its arrays"):
        tk.Run.load(tmp_path / "run.zarr")


def test_settings_that_json_cannot_hold_are_refused_when_saving(tmp_path):
    run = made_run()
    run.provenance = {"versions": {1, 2}}
    with pytest.raises(tk.StoreError, match="settings cannot be stored.*set"):
        run.save(tmp_path / "run.zarr")
    assert os.listdir(tmp_path) == []
