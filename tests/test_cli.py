"""The command line: results where they were asked for, and one-line refusals before any training."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_kit import refused

from toykern import cli, metrics
from toykern.experiments import phase_diagram, phase_models
from toykern.experiments.phase_diagram import train_phase_diagram
from toykern.fitting.fitting import fit
from toykern.results.run import Run
from toykern.results.store import StoreError
from toykern.sweeps import open_sweep

JOB = importlib.import_module("toykern.sweeps.job")
TINY = ["phase-diagram", "--grid", "3x4", "--seeds", "2", "--steps", "6", "--batch", "8"]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_training(monkeypatch):
    def train(*_, **__):
        raise AssertionError("trained although the command line cannot be used")

    monkeypatch.setattr(phase_diagram, "train_phase_diagram", train)


def test_phase_diagram_writes_picture_and_store_and_says_where(tmp_path, capsys):
    assert cli.main(TINY) == 0
    shown = capsys.readouterr().out
    picture, store = tmp_path / "phase_diagram.png", tmp_path / "phase_diagram.zarr"
    assert f"picture  {picture}" in shown and f"store    {store}" in shown
    assert "3 × 4 points × 2 seeds = 24 networks, 6 steps of batch 8" in shown
    assert "trained  144 model-steps" in shown and "model-steps/s on cpu" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = open_sweep(store)
    assert kept.complete and kept.grid.shape == (3, 4, 2) and kept.attributes["settings"]["steps"] == 6
    with pytest.raises(StoreError, match="the store of a toykern sweep.*open_sweep reads it"):
        Run.load(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phase_diagram.png", "phase_diagram.zarr"]


def test_the_picture_is_drawn_also_where_nobody_reads_what_is_said(tmp_path, monkeypatch):
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert cli.main([*TINY, "--no-store"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["phase_diagram.png"]


def test_three_features_other_names_and_no_store(tmp_path):
    assert cli.main([*TINY, "--features", "3", "--grid", "2", "3", "--no-store", "--out", "three.svg"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["three.svg"]
    assert "<svg" in (tmp_path / "three.svg").read_text()


def test_options_reach_the_training(monkeypatch, tmp_path):
    seen = {}

    def train(*sizes, **options):
        seen.update(options, sizes=sizes)
        raise KeyboardInterrupt

    monkeypatch.setattr(phase_diagram, "train_phase_diagram", train)
    threads = torch.get_num_threads()
    try:
        options = ["--features", "3", "--lr", "0.02", "--seed", "7", "--threads", "1"]
        options += ["--chunk", "5", "--resume"]
        assert cli.main([*TINY, *options]) == 130
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    expected = {"shape": (3, 4), "seeds": 2, "steps": 6, "batch_size": 8, "lr": 0.02, "seed": 7}
    expected |= {"chunk": 5, "resume": True, "overwrite": False, "store": tmp_path / "phase_diagram.zarr"}
    whole = {
        "share": None,
        "executor": None,
        "dry_run": False,
        "extend": False,
        "check": False,
        "mixed": False,
    }
    assert seen == {**expected, "device": "cpu", "sizes": (3, 2), "options": whole}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "4"], "--features: invalid choice: 4"),
        (["--grid", "8"], "--grid must be two numbers of at least 2, as 48x48 or 48 48, not '8'"),
        (["--grid", "1x8"], "not '1x8'"),
        (["--grid", "8", "-8"], ""),
        (["--grid", "8x8x8"], "not '8x8x8'"),
        (["--seeds", "0"], "--seeds: must be a whole number at least 1, not '0'"),
        (["--steps", "1e3"], "--steps: must be a whole number at least 1, not '1e3'"),
        (["--batch", "-1"], "--batch"),
        (["--lr", "nan"], "--lr: must be a positive number, not 'nan'"),
        (["--lr", "0"], "--lr: must be a positive number"),
        (["--seed", str(2**31)], f"--seed: must be a whole number from 0 to {2**31 - 1}"),
        (["--threads", "0"], "--threads: must be a whole number at least 1"),
        (["--threads", "4097"], "--threads: must be a whole number at most 4096, not '4097'"),
        (["--seeds", str(2**31)], f"--seeds: must be a whole number at most {2**31 - 1}, not '{2**31}'"),
        (["--steps", "9" * 5000], "--steps: must be a whole number at least 1, not '9999"),
        (["--lr", "1e400"], "--lr: must be a positive number, not '1e400'"),
        (["--grid", "65537x2"], "--grid must have at most 65536 points a side, not '65537x2'"),
        (["--grid", "9" * 5000, "2"], "--grid must have at most 65536 points a side, not '9999"),
        (
            ["--no-store", "--grid", "60000x60000", "--seeds", "1"],
            f"--grid and --seeds make 3,600,000,000 networks, of which at most {2**31 - 1:,} can",
        ),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--out", "a.xyz"], "--out must end in .png, .pdf or .svg, not 'a.xyz'"),
        (["--out", "picture"], "--out must end in"),
        (["--out", "nowhere/a.png"], "there is no directory"),
        (["--store", "nowhere/a.zarr"], "there is no directory"),
        (["--store", "same.png", "--out", "same.png"], "are both"),
        (["--chunk", "0"], "--chunk: must be a whole number at least 1"),
        (["--chunk", "8", "--no-store"], "--chunk needs a store"),
        (["--resume", "--no-store"], "--resume needs a store"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--speed", "9"], "unrecognized arguments: --speed 9"),
    ],
)
def test_bad_values_are_refused_in_one_line(tmp_path, capsys, no_training, options, message):
    assert message in refused([*TINY, *options], capsys)
    assert list(tmp_path.iterdir()) == []


def test_no_command_is_refused_in_one_line(capsys):
    assert "required: command" in refused([], capsys)


def test_cuda_is_refused_with_the_reason(monkeypatch, capsys, no_training):
    def refuse(device):
        raise RuntimeError(f"device is {device!r}, but there is no NVIDIA driver on this machine")

    monkeypatch.setattr("toykern.native.devices.check_kernels", refuse)
    assert "--device cuda is not available: device is 'cuda', but there is no NVIDIA driver" in refused(
        [*TINY, "--device", "cuda"], capsys
    )


def test_existing_results_are_refused_before_training_unless_they_may_be_replaced(
    tmp_path, capsys, monkeypatch
):
    assert cli.main(TINY) == 0
    first = open_sweep("phase_diagram.zarr").read("weight")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(phase_diagram, "train_phase_diagram", None)
        assert "phase_diagram.png exists already; --overwrite" in refused(TINY, capsys)
        assert "already holds a toykern store" in refused([*TINY, "--out", "b.png"], capsys)
    assert cli.main([*TINY, "--overwrite", "--seed", "1"]) == 0
    assert not np.array_equal(open_sweep("phase_diagram.zarr").read("weight"), first)
    assert len(list(tmp_path.iterdir())) == 2


def test_things_that_are_not_ours_are_never_replaced(tmp_path, capsys, no_training):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    (tmp_path / "folder.png").mkdir()
    assert "is not a toykern store" in refused([*TINY, "--overwrite", "--store", "thesis"], capsys)
    assert "is a directory" in refused([*TINY, "--overwrite", "--out", "folder.png"], capsys)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_a_picture_that_cannot_be_written_is_refused_before_training(capsys, monkeypatch, no_training):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    assert "phase_diagram.png: Permission denied" in refused(TINY, capsys)


def stop_after(chunks: int):
    """`fit` as it ends when Ctrl-C is pressed while it trains the chunk after so many."""
    done = 0

    def interrupted(**options):
        nonlocal done
        if options.get("stop_at") == 0:
            return fit(**options)
        done += 1
        if done <= chunks:
            return fit(**options)
        run = fit(**options, stop_at=4)
        run.interrupted = True
        return run

    return interrupted


def test_ctrl_c_keeps_finished_chunks_and_resume_goes_on(tmp_path, capsys, monkeypatch):
    tiny = [*TINY, "--chunk", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(JOB, "fit", stop_after(3))  # the first is the one model that shows the layout
        assert cli.main(tiny) == 130
    shown = capsys.readouterr().out
    assert "stopped by Ctrl-C with 2 of 3 chunks finished; the same command with --resume goes on" in shown
    assert open_sweep("phase_diagram.zarr").finished.tolist() == [True, True, False]
    assert not (tmp_path / "phase_diagram.png").exists()
    assert cli.main([*TINY, "--resume"]) == 0  # the chunks are those of the store
    assert "trained  144 model-steps" in capsys.readouterr().out
    assert cli.main([*TINY, "--store", "whole.zarr", "--out", "whole.png"]) == 0
    kept, whole = open_sweep("phase_diagram.zarr"), open_sweep("whole.zarr")
    assert (len(kept.boxes), len(whole.boxes)) == (3, 1)
    for name in whole.names:
        assert kept.read(name).tobytes() == whole.read(name).tobytes(), name
    assert (tmp_path / "phase_diagram.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    capsys.readouterr()
    assert cli.main([*TINY, "--resume", "--lr", "0.03"]) == 2
    assert "optimizer differs from that of the sweep" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_resume_draws_its_own_picture_anew_and_replaces_no_other(tmp_path, capsys, monkeypatch, ending):
    picture = tmp_path / f"p.{ending}"
    command = [*TINY, "--out", picture.name, "--resume"]
    picture.write_bytes(b"of someone else")  # there is no store yet
    assert "replaces no other picture" in refused(command, capsys)
    picture.unlink()
    assert cli.main(command) == 0
    drawn = picture.read_bytes()
    assert cli.main(command) == 0  # what it drew before
    assert ending != "png" or picture.read_bytes() == drawn
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(phase_diagram, "train_phase_diagram", None)
        picture.write_bytes(b"of someone else")
        assert "does not say that it is of the sweep in --store" in refused(command, capsys)
    assert picture.read_bytes() == b"of someone else"


def test_resume_does_not_take_the_picture_of_another_sweep_for_its_own(capsys):
    assert cli.main([*TINY, "--out", "a.png", "--store", "a.zarr"]) == 0
    assert cli.main([*TINY, "--out", "b.png", "--store", "b.zarr", "--seed", "1"]) == 0
    before = Path("a.png").read_bytes()
    capsys.readouterr()
    command = [*TINY, "--out", "a.png", "--store", "b.zarr", "--seed", "1", "--resume"]
    assert "a.png exists already, and does not say" in refused(command, capsys)
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--no-store"]])
def test_a_picture_that_appears_during_the_training_is_left_alone(options, capsys, monkeypatch):
    train = train_phase_diagram

    def appears(*sizes, **settings):
        Path("phase_diagram.png").write_bytes(b"precious")
        return train(*sizes, **settings)

    monkeypatch.setattr(phase_diagram, "train_phase_diagram", appears)
    assert cli.main([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert "phase_diagram.png was made by something else meanwhile" in error
    assert ("--resume draws" in error) == (not options)
    assert Path("phase_diagram.png").read_bytes() == b"precious"
    assert len(list(Path().glob(".*"))) == 0


@pytest.mark.slow
def test_shares_and_workers_make_one_store(tmp_path, capsys, monkeypatch):
    assert cli.main([*TINY, "--store", "whole.zarr", "--out", "whole.png"]) == 0
    tiny = [*TINY, "--chunk", "8"]
    assert cli.main([*tiny, "--plan"]) == 0
    assert "models   24 to train, in 3 chunks of at most 8" in capsys.readouterr().out
    assert not (tmp_path / "phase_diagram.zarr").exists()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert cli.main([*tiny, "--workers", "1"]) == 0
    assert "this is share 1 of 2, counted from 0" in capsys.readouterr().out
    assert cli.main([*tiny, "--share", "0/2"]) == 0  # which finds it finished, and draws it again
    kept, whole = open_sweep("phase_diagram.zarr"), open_sweep("whole.zarr")
    assert all(kept.read(name).tobytes() == whole.read(name).tobytes() for name in whole.names)
    assert (tmp_path / "phase_diagram.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    capsys.readouterr()
    for wrong in ("3", "2/2", "1/0", "-1/2"):
        assert "--share" in refused([*tiny, f"--share={wrong}"], capsys)
    assert "--share needs a store" in refused([*tiny[:-2], "--no-store", "--share", "0/2"], capsys)


def test_ctrl_c_before_the_first_chunk_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(JOB, "fit", stop_after(0))
    assert cli.main(TINY) == 130
    assert "stopped before the first of 1 chunks was finished" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_without_a_store_draws_what_was_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(phase_diagram, "fit", lambda **options: stop_after(0)(**options))
    assert cli.main([*TINY, "--no-store"]) == 130
    assert "stopped by Ctrl-C after 4 of 6 steps; keeping what was trained" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["phase_diagram.png"]


def test_help_names_every_option_and_gives_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["phase-diagram", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in ("features", "grid", "seeds", "steps", "batch", "lr", "seed", "out", "store", "no-store"):
        assert f"--{name}" in shown
    for name in (
        "overwrite",
        "device",
        "threads",
        "chunk",
        "resume",
        "share",
        "workers",
        "plan",
        "check",
        "mixed",
    ):
        assert f"--{name}" in shown
    assert "examples:" in shown and "toykern phase-diagram --features 3" in shown


def test_info_and_the_module_run_as_a_program():
    root = Path(cli.__file__).parents[2]
    command = [sys.executable, "-m", "toykern", "info"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert finished.returncode == 0, finished.stderr
    assert "versions" in finished.stdout and "isa_level" in finished.stdout


# The experiment behind the command


def test_every_model_has_its_own_seed_and_the_best_of_each_point_is_kept():
    diagram = train_phase_diagram(shape=(3, 4), seeds=2, steps=6, batch_size=8, seed=3, progress=False)
    seeds = diagram.run.arrays["seed"]
    assert seeds.reshape(12, 2).T.flatten().tolist() == [(3 << 32) + i for i in range(24)]
    assert torch.equal(diagram.run.model.seed, seeds)
    losses = diagram.loss.reshape(3, 4, 2)
    assert np.array_equal(diagram.best % 2, losses.argmin(dim=2).numpy())
    assert torch.equal(diagram.weight[1, 2], diagram.run.model.weight[diagram.best[1, 2]])
    assert torch.equal(diagram.run.arrays["importance"][:, 0], torch.ones(24))
    expected = diagram.run.grid.importance.to(torch.float32)
    assert torch.equal(diagram.run.arrays["importance"][:, 1], expected)


def test_points_where_all_models_diverged_are_shown_as_such(monkeypatch):
    def diverging(**options):
        run = fit(**options)
        run.diverged_at[2:4] = 1  # both models of the point (0, 1)
        return run

    with monkeypatch.context() as patch:
        patch.setattr(phase_diagram, "fit", diverging)
        diagram = train_phase_diagram(shape=(2, 2), seeds=2, steps=2, batch_size=8, progress=False)
    assert diagram.best[0, 1] == -1
    assert diagram.weight[0, 1].isnan().all()
    assert not diagram.weight[1].isnan().any()
    assert diagram.phase[0, 1] == -1 and (diagram.phase[1] >= 0).all()


def test_train_phase_diagram_refuses():
    with pytest.raises(ValueError, match="shape must be two numbers"):
        train_phase_diagram(shape=(2, 2, 2))
    with pytest.raises(ValueError, match=r"shape\[1\] must be an integer from 2 to 65536, not 1"):
        train_phase_diagram(shape=(2, 1))
    with pytest.raises(ValueError, match="seeds must be"):
        train_phase_diagram(seeds=0)


def test_ctrl_c_during_the_evaluation_keeps_what_was_trained(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(phase_models, "evaluate", stopped)
    diagram = train_phase_diagram(shape=(2, 2), seeds=2, steps=6, batch_size=8, progress=False)
    assert diagram.interrupted and diagram.run.complete
    assert torch.equal(diagram.loss, diagram.run.final_loss.double())


@pytest.mark.slow
@pytest.mark.parametrize(("features", "seeds"), [(2, 8), (3, 12)])
def test_the_trained_phases_are_those_of_the_exact_solutions(features, seeds):
    diagram = train_phase_diagram(features, features - 1, shape=(9, 9), seeds=seeds, progress=False)
    # Near a boundary the phases change gradually, and the best model is a compromise that no hand made.
    clear = np.ones((9, 9), dtype=bool)
    for scale in (0.6, 1.0, 1.6):
        for factor in (0.75, 1.3):
            density = np.minimum(diagram.density[None, :] * scale, 1.0)
            moved = metrics.best_solution(density, diagram.importance[:, None] * factor, features)
            clear &= moved == diagram.theory
    assert clear.sum() >= 50
    assert [int((diagram.theory[clear] == phase).sum() > 0) for phase in range(3)] == [1, 1, 1]
    assert (diagram.phase == diagram.theory)[clear].mean() >= 0.97
