"""What may happen to a sweep's store: a clear error or a clean finish, and never a wrong or half store."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_sweep_shares import GRID, SETTINGS, begun, claim, contents, plan, swept

import toykern as tk
from toykern.explorer import Atlas
from toykern.results.placing import Owner
from toykern.results.store_place import foreign_entries

NOBODY = 65534


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    return contents(swept(tmp_path_factory.mktemp("accidents") / "whole.zarr", chunk=1000))


@pytest.fixture
def folder():
    """A folder that everybody can look into; those of pytest are for its user alone."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for where, _, _ in os.walk(path):
        os.chmod(where, 0o755)
    shutil.rmtree(path)


@contextlib.contextmanager
def read_only(folder: Path):
    """While nobody here may write below a folder: the superuser, whom nothing stops, becomes another user."""
    directories = [where for where, _, _ in os.walk(folder)]
    for where in directories:
        os.chmod(where, 0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        with pytest.raises(PermissionError):
            (folder / "probe").touch()
        yield
    finally:
        if root:
            os.seteuid(0)
        for where in directories:
            os.chmod(where, 0o755)


@contextlib.contextmanager
def full_disk(room: int):
    """While no file may be larger than so many bytes: what the system says is as of a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_that_is_read_only_is_said_before_anything_is_trained(folder):
    with read_only(folder), pytest.raises(tk.StoreError, match=r"cannot write .*s.zarr: Permission denied"):
        swept(folder / "s.zarr")
    assert os.listdir(folder) == []


def test_a_store_that_is_read_only_is_said_and_left_as_it_is(whole, folder):
    path = begun(folder / "s.zarr")
    before = everything(path)
    more = tk.grid(density=GRID.coords["density"], seed=range(9))
    with read_only(folder):
        with pytest.raises(tk.StoreError, match=r"cannot write .*s.zarr: Permission denied"):
            swept(path, resume=True)
        with pytest.raises(tk.StoreError, match=r"cannot write .*s.zarr: Permission denied"):
            tk.sweep(more, plan, path, extend=True, **SETTINGS)
        with ThreadPoolExecutor(2) as pool, pytest.raises(RuntimeError, match="Permission denied"):
            swept(path, resume=True, executor=pool)
        part = tk.open_sweep(path)
        assert part.read("loss", part.boxes[0]).shape == (1, 4, 2)
    assert everything(path) == before
    assert contents(swept(path, resume=True)) == whole


def test_a_finished_store_that_is_read_only_is_read(whole, folder):
    path = swept(folder / "s.zarr").path
    with read_only(folder):
        assert contents(swept(path, resume=True)) == whole  # nothing to do
        atlas = Atlas(tk.open_sweep(path))
        while atlas.advance("loss") or atlas.waiting("loss"):
            pass
        assert atlas.details(3).number == 3 and atlas.problem is None


@pytest.mark.parametrize("pooled", [False, True])
def test_a_store_that_is_removed_under_a_worker_is_said_and_not_made_again(pooled, tmp_path):
    path = tmp_path / "s.zarr"

    def removing(run, points, index):
        if int(index[0]) == 8:
            shutil.rmtree(path)
        return {}

    with contextlib.ExitStack() as stack:
        options = {"executor": stack.enter_context(ThreadPoolExecutor(1))} if pooled else {}
        with pytest.raises(tk.StoreError, match="s.zarr is gone"):
            tk.sweep(GRID, plan, path, measure=removing, chunk=4, **SETTINGS, **options)
    assert os.listdir(tmp_path) == []


def plan_wide(points, index):
    """Models of two kilobytes each."""
    return {**plan(points, index), "model": tk.TiedAutoencoder(64, 8, points.n_models, seed=index),
            "data": tk.SparseFeatures(64, points.density[:, None])}  # fmt: skip


def test_a_full_disk_is_said_and_the_sweep_goes_on_when_there_is_room(tmp_path):
    path = tmp_path / "s.zarr"
    options = {**SETTINGS, "chunk": 12, "steps": 2}
    with full_disk(12_288), pytest.raises(tk.StoreError, match=r"cannot write .*s.zarr: File too large"):
        tk.sweep(GRID, plan_wide, path, **options)
    part = tk.open_sweep(path)
    assert not part.finished.any() and not part.claimed.any() and foreign_entries(path) == []
    assert not part.to_xarray()["loss"].notnull().any()
    done = tk.sweep(GRID, plan_wide, path, resume=True, **options)
    before, more = everything(path), tk.grid(density=[*GRID.coords["density"], 0.5], seed=range(8))
    with full_disk(12_288), pytest.raises(tk.StoreError, match=r"cannot write .*s.zarr: File too large"):
        tk.sweep(more, plan_wide, path, extend=True, **options)
    with full_disk(12_288), pytest.raises(tk.StoreError, match=r"cannot write .*m.zarr: File too large"):
        tk.merge_sweeps([path, path], tmp_path / "m.zarr")
    assert everything(path) == before and os.listdir(tmp_path) == ["s.zarr"]
    index = torch.arange(24)
    run = tk.fit(**plan_wide(GRID, index), **{**SETTINGS, "steps": 2}, seed=index)
    assert done.read("weight").tobytes() == run.model.weight.detach().numpy().tobytes()


def test_claims_of_clocks_that_are_wrong_only_cost_time(whole, tmp_path):
    path, far = begun(tmp_path / "s.zarr"), Owner("m00000000", "00000000", 7, 1)
    claim(path, 1, far, age=86_400)
    claim(path, 2, far, age=-86_400)
    for number in (1, 2):
        assert os.stat(path / "chunk_seconds" / "work" / f"{number}.claim").st_mtime != pytest.approx(
            time.time()
        )
    assert contents(swept(path, resume=True)) == whole
