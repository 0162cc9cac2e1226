"""The gallery is what its tool makes of the records, and every experiment has one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from toykern import experiments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import gallery

each_record = pytest.mark.parametrize("name", gallery.recorded())
each_run = pytest.mark.parametrize(
    "name", [run for name in gallery.recorded() for run in (name, *gallery.second_runs(name))]
)


def test_every_experiment_has_a_record_and_a_picture():
    assert gallery.recorded() == experiments.names()
    for name in experiments.names():
        assert (gallery.FOLDER / f"{name}.png").stat().st_size > 5000
    known = {f"{name}{ending}" for name in experiments.names() for ending in (".json", ".png", ".md")}
    known |= {
        f"{file}{ending}"
        for name in experiments.names() for file in gallery.second_runs(name) for ending in (".json", ".png")
    }  # fmt: skip
    assert {path.name for path in gallery.FOLDER.iterdir()} == known


@each_record
def test_a_page_is_what_the_tool_writes_of_its_record(name):
    page = (gallery.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert page == gallery.page_of(name, gallery.record_of(name), gallery.second_runs(name))


def test_the_index_is_what_the_tool_writes():
    assert gallery.INDEX.read_text(encoding="utf-8") == gallery.index_of(gallery.recorded())


@each_run
def test_the_command_on_a_page_makes_the_settings_of_its_record(name):
    record = gallery.record_of(name)
    experiment = name.partition("--")[0]
    command = gallery.command_of(experiment, record)
    given = dict(re.findall(r"--set (\w+)=(\S+)", command))
    settings = experiments.get(experiment).configure(record["quick"])
    for setting, value in record["settings"].items():
        before = getattr(settings, setting)
        before = list(before) if isinstance(before, tuple) else before
        assert setting in given or before == value
    assert command.startswith(f"toykern experiment {experiment}")


@each_run
def test_a_record_says_what_differs_and_why(name):
    """Nothing that was not judged, or that differs, stands there without a word."""
    record = json.loads((Path(gallery.FOLDER) / f"{name}.json").read_text(encoding="utf-8"))
    assert record["outcomes"]
    for outcome in record["outcomes"]:
        assert outcome["agrees"] is True or outcome["note"], outcome["what"]
