"""Sweeps by many: shares and claims divide the work, and whoever trains a chunk leaves the same bits."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import slurm_kit
import torch
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk
from toykern.cli import main
from toykern.experiments.phase_diagram import train_phase_diagram
from toykern.results.placing import Owner
from toykern.results.store_place import foreign_entries
from toykern.sweeps import writing
from toykern.sweeps.claims import WORK, Claims
from toykern.sweeps.job import Job
from toykern.sweeps.shares import Share, share_of, unfinished

GRID = tk.grid(density=[0.05, 0.3, 1.0], seed=range(8))
SETTINGS = {"steps": 6, "batch_size": 16, "record_every": 3, "progress": False}


def plan(points, index):
    return {
        "model": tk.TiedAutoencoder(3, 2, points.n_models, seed=index),
        "data": tk.SparseFeatures(3, points.density[:, None]),
    }


def plan_that_fails_once(points, index):
    if len(index) > 1 and int(index[0]) == 8 and multiprocessing.parent_process() is not None:
        os._exit(5)
    return plan(points, index)


def swept(path, chunk=4, **options):
    return tk.sweep(GRID, plan, path, chunk=chunk, **{**SETTINGS, **options})


def contents(done: tk.Sweep) -> dict[str, bytes]:
    return {name: done.read(name).tobytes() for name in done.names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    return contents(swept(tmp_path_factory.mktemp("shares") / "whole.zarr", chunk=1000))


def spawned(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


# Who has what


@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_shares_partition_the_chunks_and_each_gets_to_all(chunks, n, data):
    own = [Share(i, n).own(chunks) for i in range(n)]
    assert sorted(number for share in own for number in share) == list(range(chunks))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    i = data.draw(st.integers(0, n - 1))
    order = Share(i, n).order(chunks)
    assert sorted(order) == list(range(chunks)) and order[: len(own[i])] == own[i]
    finished = torch.tensor(data.draw(st.lists(st.booleans(), min_size=chunks, max_size=chunks))).numpy()
    assert unfinished(Share(i, n), finished) == [number for number in order if not finished[number]]


@pytest.mark.parametrize(
    ("found", "share"),
    [
        ({}, (0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "32", "SLURM_ARRAY_TASK_MIN": "1"}, (4, 32)),
        (
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3",
             "SLURM_ARRAY_TASK_STEP": "2"},
            (3, 4),
        ),
        ({"RANK": "2", "WORLD_SIZE": "8"}, (2, 8)),
        ({"RANK": "2"}, (0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "RANK": "2", "WORLD_SIZE": "4"}, (6, 8)),
    ],
)  # fmt: skip
def test_the_share_of_the_environment(found, share):
    made = share_of(None, found)
    assert (made.i, made.n) == share
    assert (str(made) == "the whole") == (share == (0, 1))


@pytest.mark.parametrize(
    ("given_share", "error"),
    [((3, 3), ValueError), ((-1, 3), ValueError), ((0, 0), ValueError), (1, TypeError)],
)
def test_what_is_no_share(given_share, error, tmp_path):
    with pytest.raises(error, match="share"):
        swept(tmp_path / "s.zarr", share=given_share)
    with pytest.raises(ValueError, match="RANK='x'"):
        share_of(None, {"RANK": "x", "WORLD_SIZE": "2"})
    assert os.listdir(tmp_path) == []


def test_a_share_takes_its_own_chunks_first_and_then_helps(whole, tmp_path, monkeypatch):
    trained, real = [], Job.train

    def train(job, box, progress=False):
        trained.append((box.number, box.n_models))
        return real(job, box, progress)

    monkeypatch.setattr(Job, "train", train)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = swept(tmp_path / "s.zarr")
    assert trained == [(0, 1), (1, 4), (4, 4), (5, 4), (2, 4), (3, 4), (0, 4)]  # the first shows the layout
    assert contents(done) == whole
    assert done.origin(4)["host"] == socket.gethostname() and done.origin(4)["pid"] == os.getpid()
    trained.clear()
    assert swept(tmp_path / "s.zarr", share=(2, 3)).complete and trained == []
    with pytest.raises(ValueError, match="every share replace the store"):
        swept(tmp_path / "s.zarr", overwrite=True)


# Claims


def claim(store: Path, number: int, owner: Owner, age: float = 0.0) -> None:
    fields = [owner.machine, owner.boot, owner.pid, owner.start]
    path = store / WORK / f"{number}.claim"
    path.write_text(json.dumps({"host": "far", "pid": owner.pid, "owner": fields, "time": 9e9}))
    os.utime(path, (time.time() - age,) * 2)


def begun(path: Path) -> Path:
    """A sweep of six chunks of which the first is finished."""
    with pytest.raises(RuntimeError, match="stop here"):
        tk.sweep(GRID, plan, path, chunk=4, measure=_second_fails, **SETTINGS)
    assert tk.open_sweep(path).finished.tolist() == [True] + [False] * 5
    return path


def _second_fails(run, points, index):
    if int(index[0]) == 4:
        raise RuntimeError("stop here")
    return {}


def test_what_others_have_claimed_is_left_to_them_and_said(whole, tmp_path):
    path = begun(tmp_path / "s.zarr")
    far = Owner("m00000000", "00000000", 7, 1)
    claim(path, 2, far)
    with pytest.warns(UserWarning, match=r"1 of 6 chunks .* trained by others: process 7 on far"):
        part = swept(path, resume=True)
    assert part.finished.tolist() == [True, True, False, True, True, True] and not part.interrupted
    assert part.claimed.tolist() == [False, False, True, False, False, False]
    assert "5 of 6 finished, 1 being trained" in repr(part)
    claim(path, 2, far, age=3600)  # whatever the other's clock says, nothing was heard of it for an hour
    assert contents(swept(path, resume=True)) == whole


def test_a_claim_is_void_when_its_process_has_ended(tmp_path):
    (tmp_path / WORK).mkdir(parents=True)
    claims, here = Claims(tmp_path), Owner.here()
    assert claims.take(3, None) and not claims.take(3, None)
    assert claims.look(3, None).pid == os.getpid() and claims.numbers() == {3}
    claim(tmp_path, 3, Owner(here.machine, here.boot, here.pid, here.start + 1))
    assert claims.look(3, None).void and claims.take(3, None)
    claims.release(3)
    assert claims.numbers() == set() and claims.look(3, None) is None
    assert os.listdir(tmp_path / WORK) == []


@given(age=st.floats(-1e4, 1e4), longest=st.none() | st.floats(0.0, 1e3))
def test_a_claim_is_void_after_a_multiple_of_the_longest_chunk(tmp_path_factory, age, longest):
    store = tmp_path_factory.mktemp("claims")
    (store / WORK).mkdir(parents=True)
    claim(store, 0, Owner("m00000000", "00000000", 7, 1), age)
    limit = 900 if longest is None else max(60, 4 * longest)
    if abs(abs(age) - limit) > 1:  # one from so far in the future is of a clock that was set back
        assert Claims(store).look(0, longest).void == (abs(age) > limit)


def test_two_that_train_one_chunk_leave_its_bits(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Claims, "take", lambda *_: True)  # as if every claim were void
    swept(tmp_path / "s.zarr", chunk=1000)
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(swept, tmp_path / "t.zarr", share=(0, 2)) for _ in range(2)]
        assert [contents(each.result()) == whole for each in made] == [True, True]
    assert os.listdir(tmp_path / "t.zarr" / WORK).count("0.origin") == 1
    assert foreign_entries(tmp_path / "t.zarr") == []


# Executors


def test_threads_and_their_devices_leave_the_same_bits(whole, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        assert contents(swept(tmp_path / "a.zarr", executor=pool)) == whole
    assert contents(swept(tmp_path / "b.zarr", devices=["cpu", "cpu"])) == whole


@pytest.mark.slow
def test_processes_leave_the_same_bits_and_one_that_dies_its_chunk_unfinished(whole, tmp_path):
    path = tmp_path / "s.zarr"
    with spawned(2) as pool, pytest.raises(RuntimeError, match=r"chunk.*2.* of 6 could not be trained"):
        tk.sweep(GRID, plan_that_fails_once, path, chunk=4, executor=pool, **SETTINGS)
    assert not tk.open_sweep(path).finished[2]
    with spawned(2) as pool:
        assert contents(swept(path, resume=True, executor=pool)) == whole


def test_executors_that_cannot_be_are_refused_before_anything_starts(tmp_path):
    with spawned(1) as pool:
        with pytest.raises(TypeError, match="plan cannot be sent to the executor's processes"):
            tk.sweep(GRID, lambda p, i: plan(p, i), tmp_path / "s.zarr", executor=pool, **SETTINGS)
        with pytest.raises(TypeError, match="schedule cannot be sent"):
            swept(tmp_path / "s.zarr", executor=pool, schedule=lambda step, steps: 1.0)
    forking = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with forking as pool, pytest.raises(ValueError, match="forked.*spawn"):
        swept(tmp_path / "s.zarr", executor=pool)
    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor.*get_executor"):
        swept(tmp_path / "s.zarr", executor=3)
    for wrong, error in (("cuda", TypeError), ([], TypeError), (["gpu7"], ValueError)):
        with pytest.raises(error, match="devices"):
            swept(tmp_path / "s.zarr", devices=wrong)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_dask_leaves_the_same_bits(whole, tmp_path, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask distributed is not installed")
    monkeypatch.setattr("toykern.cli.workers.PATIENCE", "1s")
    tiny = {"shape": (3, 2), "seeds": 2, "steps": 6, "batch_size": 8, "progress": False}
    command = [
        "phase-diagram",
        "--grid",
        "3x2",
        "--seeds",
        "2",
        "--steps",
        "6",
        "--batch",
        "8",
        "--chunk",
        "4",
    ]
    command += ["--store", str(tmp_path / "d.zarr"), "--out", str(tmp_path / "d.png")]
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        done = swept(tmp_path / "s.zarr", executor=client.get_executor())
        assert contents(done) == whole
        assert os.getpid() not in {done.origin(number)["pid"] for number in range(6)}
        assert main([*command, "--scheduler", cluster.scheduler_address]) == 0
    loss = tk.open_sweep(tmp_path / "d.zarr").read("fresh_loss")
    assert loss.tobytes() == train_phase_diagram(**tiny).loss.numpy().tobytes()
    for address, message in (
        (cluster.scheduler_address, "does not answer"),
        ("nonsense://x", "does not answer"),
    ):
        assert main([*command, "--overwrite", "--scheduler", address]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "--overwrite", "--scheduler", "tcp://x", "--workers", "2"]) == 2
    assert "give one of them" in capsys.readouterr().err


# The end of one's time, and other accidents


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_told_to_end_keeps_its_chunks(number, whole, tmp_path, monkeypatch):
    real = Job.train

    def told(job, box, progress=False):
        if box.n_models > 1 and box.number == 2:
            os.kill(os.getpid(), number)
        return real(job, box, progress)

    monkeypatch.setattr(Job, "train", told)
    part = swept(tmp_path / "s.zarr")
    assert part.interrupted and part.finished.tolist() == [True, True] + [False] * 4
    assert not part.claimed.any()
    assert signal.getsignal(number) is signal.SIG_DFL
    monkeypatch.undo()
    assert contents(swept(tmp_path / "s.zarr", resume=True)) == whole


def test_a_job_that_is_told_to_end_before_there_is_a_store_makes_none(tmp_path, monkeypatch):
    real = Job.train

    def told(job, box, progress=False):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(job, box, progress)

    monkeypatch.setattr(Job, "train", told)
    with pytest.raises(KeyboardInterrupt, match="before the first of 6 chunks"):
        swept(tmp_path / "s.zarr")
    assert os.listdir(tmp_path) == []


def test_a_store_that_is_removed_under_a_worker_is_said_and_not_made_again(tmp_path):
    path = tmp_path / "s.zarr"

    def moved(run, points, index):
        if int(index[0]) == 8:
            path.rename(tmp_path / "moved.zarr")
        return {}

    with pytest.raises(tk.StoreError, match="s.zarr is gone"):
        tk.sweep(GRID, plan, path, measure=moved, chunk=4, **SETTINGS)
    assert os.listdir(tmp_path) == ["moved.zarr"]
    assert tk.open_sweep(tmp_path / "moved.zarr").finished.tolist() == [True, True] + [False] * 4


def test_a_full_disk_is_an_error_and_leaves_the_chunk_unfinished(whole, tmp_path, monkeypatch):
    path, real = tmp_path / "s.zarr", writing._place

    def full(partial, store, name, piece):
        if (name, piece) == ("bias", "c/0/1/0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(partial, store, name, piece)

    monkeypatch.setattr(writing, "_place", full)
    with pytest.raises(tk.StoreError, match="cannot write .*s.zarr: No space left on device"):
        swept(path)
    begun = tk.open_sweep(path)
    assert begun.finished.tolist() == [True] + [False] * 5 and not begun.claimed.any()
    assert np.isnan(begun.to_xarray()["weight"][0, 4:]).all()  # although some pieces of it are there
    monkeypatch.undo()
    assert contents(swept(path, resume=True)) == whole
    assert sorted(name.split(".")[1] for name in os.listdir(path / WORK)) == ["origin"] * 6


@pytest.fixture
def script(tmp_path) -> dict[str, str]:
    """The script of the docs, with what it trains, in a folder; and the environment that it is run in."""
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")
    text = next(part for part in page.split("```") if "#SBATCH --array" in part)
    (tmp_path / "job.sh").write_text(text.strip() + "\n")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    paths = [str(Path(__file__).parent), str(Path(tk.__file__).parents[1])]
    (tmp_path / "train.py").write_text(
        f"import sys\nsys.path[:0] = {paths!r}\nimport test_sweep_shares as t\n"
        "print(t.swept('sweep.zarr', progress=True).finished.sum())\n"
    )
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(slurm_kit.missing() is None, reason="SLURM itself runs it")
def test_the_script_of_a_job_array_as_documented(whole, tmp_path, script):
    """Run by a stand-in for SLURM: its variables, and an srun that starts what it is given."""
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    known = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"}
    tasks = [
        subprocess.Popen(
            ["bash", "job.sh"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**script, **known, "SLURM_ARRAY_TASK_ID": str(i)},
        )
        for i in range(2)
    ]  # fmt: skip
    said = [task.communicate()[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    _check_what_tasks_said(said)
    assert contents(tk.open_sweep(tmp_path / "sweep.zarr")) == whole


@pytest.mark.slow
@pytest.mark.skipif(slurm_kit.missing() is not None, reason=str(slurm_kit.missing()))
def test_the_script_of_a_job_array_in_slurm(whole, tmp_path, script):
    with slurm_kit.slurm() as known:
        told = subprocess.run(
            ["sbatch", "--wait", "--array=0-1", "job.sh"], cwd=tmp_path, env={**script, **known},
            capture_output=True, text=True,
        )  # fmt: skip
    said = [path.read_text() for path in sorted(tmp_path.glob("slurm-*.out"))]
    assert told.returncode == 0, (told, said)
    _check_what_tasks_said(said)
    assert contents(tk.open_sweep(tmp_path / "sweep.zarr")) == whole


def _check_what_tasks_said(said: list[str]) -> None:
    assert len(said) == 2
    # One of them may have come too late to find anything to do.
    assert any(f"share {i} of 2 (SLURM_ARRAY_TASK_ID={i}), chunk" in said[i] for i in range(2)), said


def test_another_instruction_set_is_refused_unless_allowed(tmp_path, monkeypatch):
    path = begun(tmp_path / "s.zarr")
    fitting = sys.modules["toykern.training.beginning"]
    real = fitting._provenance
    monkeypatch.setattr(fitting, "_provenance", lambda *d: {**real(*d), "instruction_set": "other"})
    with pytest.raises(tk.StoreError, match=r"instruction set .*here it is other.*TOYKERN_ISA=.*mixed=True"):
        swept(path, resume=True)
    done = swept(path, resume=True, mixed=True)
    assert done.origin(0)["instruction_set"] != "other" == done.origin(1)["instruction_set"]


KILLED = """
import sys
sys.path[:0] = {paths!r}
import test_sweep_shares as t
t.torch.set_num_threads(1)
t.swept({path!r}, share=({i}, 3))
"""


@pytest.mark.slow
def test_three_shares_that_are_killed_go_on_as_two(whole, tmp_path):
    path = tmp_path / "s.zarr"
    paths = [str(Path(__file__).parent), str(Path(tk.__file__).parents[1])]
    script = [sys.executable, "-c"]
    shares = [subprocess.Popen([*script, KILLED.format(paths=paths, path=str(path), i=i)]) for i in range(3)]
    while not (path.exists() and tk.open_sweep(path).finished.any()) and shares[0].poll() is None:
        time.sleep(0.01)
    for share in shares:
        share.kill()
        share.wait()
    for i in (1, 0):
        done = swept(path, share=(i, 2))
    assert contents(done) == whole
    assert not list((path / WORK).glob("*.claim")) and not list((path / WORK).glob("write-*"))


# Before it is begun


def test_a_plan_says_what_there_is_to_do_and_writes_nothing(tmp_path):
    planned = swept(tmp_path / "s.zarr", dry_run=True, share=(0, 2))
    assert os.listdir(tmp_path) == []
    done = swept(tmp_path / "s.zarr")
    size = sum(done.read(name).nbytes for name in done.names)
    assert (planned.models, planned.chunks, planned.chunk_models, planned.store_bytes) == (24, 6, 4, size)
    assert planned.rate > 0 and planned.seconds > 0 and planned.workers == 1
    assert planned.seconds == pytest.approx(24 * 6 / planned.rate)
    shown = str(planned)
    assert "24 to train, in 6 chunks of at most 4" in shown and "share 0 of 2" in shown
    rest = swept(begun(tmp_path / "t.zarr"), resume=True, dry_run=True, devices=["cpu", "cpu"])
    assert (rest.models, rest.chunks, rest.workers) == (20, 5, 2)
    assert tk.open_sweep(tmp_path / "t.zarr").finished.sum() == 1
    with pytest.raises(tk.StoreError, match="steps differs"):
        swept(tmp_path / "t.zarr", resume=True, dry_run=True, steps=9)


# Reading


@pytest.mark.filterwarnings("ignore:the sweep in .* was begun with another")
def test_a_sweep_of_version_2_is_read_and_gone_on_with(whole, tmp_path):
    """Two of its six chunks were finished, the third begun, before there were shards, claims and origins."""
    with tarfile.open(Path(__file__).parent / "data" / "sweep_of_version_2.tar.xz") as kept:
        kept.extractall(tmp_path, filter="data")
    old = tk.open_sweep(tmp_path / "sweep_2.zarr")
    assert old.finished.tolist() == [True, True] + [False] * 4 and not old.claimed.any()
    before = old.read("weight", old.boxes[1])
    assert np.isnan(old.to_xarray()["weight"][1:]).all()
    done = swept(old.path, resume=True, mixed=True)  # whatever this machine is
    assert done.complete and done.read("weight", done.boxes[1]).tobytes() == before.tobytes()
    for name in done.names:
        new = np.frombuffer(whole[name], done.read(name).dtype).reshape(done.read(name).shape)
        assert done.read(name)[1:].tobytes() == new[1:].tobytes(), name
    assert done.origin(2)["pid"] == os.getpid()
    with pytest.raises(tk.StoreError, match="origin of chunk 1 cannot be read"):
        done.origin(1)
    assert foreign_entries(done.path) == []


def test_large_pieces_are_shards_of_at_most_a_thousand_models(tmp_path):
    grid = tk.grid(density=[0.1, 0.5], seed=range(3000))
    done = tk.sweep(grid, plan, tmp_path / "s.zarr", steps=2, batch_size=4, chunk=3000, progress=False)
    metadata = json.loads((done.path / "weight" / "zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 3000, 2, 3]
    assert metadata["codecs"][0]["name"] == "sharding_indexed"
    assert metadata["codecs"][0]["configuration"]["chunk_shape"] == [1, 1000, 2, 3]
    index = torch.arange(6000)
    run = tk.fit(**plan(grid, index), steps=2, batch_size=4, seed=index, progress=False)
    assert done.read("weight").tobytes() == run.model.weight.detach().numpy().tobytes()
    shown = done.to_xarray()["weight"][1, 333].values
    assert shown.tobytes() == run.model.weight[3333].detach().numpy().tobytes()
    piece = done.path / "weight" / "c" / "1" / "0" / "0" / "0"
    piece.write_bytes(piece.read_bytes()[:-3])
    with pytest.raises(tk.StoreError, match="chunk 1 of array weight cannot be read"):
        done.to_xarray()["weight"][1, 333].load()
    with pytest.warns(UserWarning, match="this chunk is trained again"):
        again = tk.sweep(
            grid, plan, done.path, steps=2, batch_size=4, progress=False, resume=True, check=True
        )
    assert again.read("weight").tobytes() == run.model.weight.detach().numpy().tobytes()
