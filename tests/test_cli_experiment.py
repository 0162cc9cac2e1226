"""`toykern experiment`: what it says, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import cli_kit
import pytest

from toykern import cli, experiments
from toykern.sweeps import open_sweep

SMALL = ["experiment", "intro-polygons", "--quick", "--set", "steps=20", "--set", "densities=1,0.1"]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


refused = partial(cli_kit.refused, silent=False)
"""Some are refused by what is trained, when it has been said what that is."""


def test_the_list_names_all_of_them(capsys):
    assert cli.main(["experiment", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == experiments.names()


@pytest.mark.parametrize("name", experiments.names())
def test_each_describes_itself(name, capsys):
    assert cli.main(["experiment", name, "--describe"]) == 0
    shown = capsys.readouterr().out
    assert experiments.get(name).title in shown and "  seed = 0" in shown


def test_a_run_draws_and_says_what_came_out_beside_what_was_published(tmp_path, capsys):
    assert cli.main([*SMALL, "--summary", "s.json"]) == 0
    shown = capsys.readouterr().out
    assert "published  " in shown and "seen       " in shown
    assert f"picture  {tmp_path / 'intro-polygons.png'}" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["intro-polygons.png", "s.json"]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["experiment"] == "intro-polygons" and summary["quick"] is True
    assert summary["settings"]["steps"] == 20 and summary["settings"]["densities"] == [1.0, 0.1]
    assert len(summary["outcomes"]) == 2


def test_a_store_is_gone_on_with_and_its_picture_drawn_anew(tmp_path, capsys):
    stored = [*SMALL, "--store", "kept"]
    assert cli.main(stored) == 0
    assert open_sweep(tmp_path / "kept" / "polygons.zarr").complete
    first = (tmp_path / "intro-polygons.png").read_bytes()
    (tmp_path / "intro-polygons.png").unlink()
    assert cli.main([*stored, "--resume"]) == 0
    assert (tmp_path / "intro-polygons.png").read_bytes() == first
    assert cli.main([*stored, "--resume"]) == 0
    capsys.readouterr()
    assert "already holds a toykern store" in refused([*stored, "--out", "other.png"], capsys)
    assert cli.main([*stored, "--overwrite"]) == 0


def test_resume_replaces_no_picture_of_other_settings(tmp_path, capsys):
    assert cli.main(SMALL) == 0
    line = refused([*SMALL, "--set", "steps=21", "--store", "kept", "--resume"], capsys)
    assert "does not say that it is of this experiment with these settings" in line
    assert not (tmp_path / "kept").exists()


def test_a_plan_writes_nothing(tmp_path, capsys):
    assert cli.main([*SMALL, "--plan"]) == 0
    assert "16 to train" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment"], "NAME is missing"),
        (["experiment", "no-such"], "there is no experiment 'no-such'"),
        ([*SMALL, "--set", "stepps=1"], "--set must be SETTING=VALUE of densities, seeds, steps"),
        ([*SMALL, "--set", "steps"], "--set must be SETTING=VALUE"),
        ([*SMALL, "--set", "steps=x"], "--set steps must be as 10000, not 'x'"),
        ([*SMALL, "--set", "densities=1,x"], "--set densities must be as 1,"),
        ([*SMALL, "--resume"], "--resume needs a --store"),
        ([*SMALL, "--store", "a", "--resume", "--overwrite"], "give one of them"),
        ([*SMALL, "--out", "a.txt"], "--out must end in .png, .pdf or .svg"),
        ([*SMALL, "--out", "no/a.png"], "there is no directory"),
        ([*SMALL, "--summary", "no/a.json"], "--summary must be a file in a directory that exists"),
        ([*SMALL, "--threads", "0"], "--threads"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, capsys, tmp_path):
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())


def test_a_setting_out_of_range_is_one_line(capsys, tmp_path):
    assert "steps" in refused(["experiment", "intro-polygons", "--set", "steps=0"], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--set", "seed=99999999999"], "seed must be"),
        (["--set", "seeds=0"], "seeds must be"),
        (["--set", "lr=nan"], "lr must be"),
        (["--set", "densities=0.1,0.1"], "densities must be different values"),
        (["--summary", "/proc/s.json"], "cannot write --summary"),
        (["--store", "/proc/kept"], "cannot make the folder"),
        (["--store", "file"], "cannot make the folder"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(tmp_path, more, named, capsys):
    (tmp_path / "file").touch()
    assert named in refused([*SMALL, *more], capsys)


def test_what_an_experiment_refuses_after_its_stages_is_one_line(capsys):
    odd = ["experiment", "packings", "--quick", "--set", "steps=1", "--set", "n_dimensions=3"]
    assert "n_dimensions must be" in refused(odd, capsys)
    odd = ["experiment", "learning-coefficients", "--quick", "--set", "burn_in=3", "--set", "draws=4"]
    assert "burn_in must be a multiple" in refused(odd, capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "toykern", "experiment", "--list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "No space left" in done.stderr
