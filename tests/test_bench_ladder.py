"""bench/ladder: every rung is the step of the problem, and what is made from its times."""

import math
import shutil

import pytest

from bench.ladder import energy
from bench.ladder.__main__ import entry, main, render
from bench.ladder.rungs import CHECKED_STEPS, FLAGS, RUNGS, SOURCES, build, faults, medians, run

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(build(tmp_path_factory.mktemp("ladder"), "g++"), "check", CHECKED_STEPS)


@needs_compiler
def test_every_rung_is_the_step_of_the_reference(found):
    assert list(found) == [rung.name for rung in RUNGS]
    assert faults(found, CHECKED_STEPS) == []


@needs_compiler
def test_rungs_that_draw_alike_end_alike(found):
    """The first two draw every entry, the others gaps: of the same numbers each."""
    drawn = [(found[rung.name]["drawn"], found[rung.name]["values"]) for rung in RUNGS]
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3] == drawn[4] == drawn[5]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"error": 1e-4}, "from the reference"),
        ({"error": math.nan}, "from the reference"),
        ({"unread": 3}, "out of order"),
        ({"same_among_others": False}, "other bits"),
        (
            {"drawn": [2600, 2048, 2048, 2048, 2048], "values": 5396.0, "squares": 3597.3},
            "feature 0 was active 2600 times",
        ),
        ({"values": 5800.0}, "the values have the mean"),
        ({"squares": 3700.0}, "the squares of values"),
    ],
)
def test_what_is_wrong_is_said(change, said):
    right = {
        "error": 1e-7, "unread": 0, "twice": 0, "drawn": [2048] * 5, "values": 5120.0, "squares": 3413.3,
        "same_among_others": True,
    }  # fmt: skip
    every = {rung.name: right for rung in RUNGS}
    assert faults(every, 200) == []
    (line,) = faults({**every, "naive": {**right, **change}}, 200)
    assert line.startswith("naive: ")
    assert said in line


def test_a_rung_that_is_not_there_is_said():
    assert faults({}, 10) == [f"{rung.name}: not checked" for rung in RUNGS]


def test_every_rung_has_a_file():
    for rung in RUNGS:
        assert f"namespace {rung.name} {{" in (SOURCES / f"{rung.name}.cpp").read_text(encoding="utf-8")


def test_the_table_by_hand():
    times = {rung.name: [100.0 / 2**i] for i, rung in enumerate(RUNGS)}
    times["toykern"] = [1.0]
    table = render({"watts": 5.0, "workloads": [entry(times)]}).splitlines()
    assert table[2].startswith("| number by number | 100 | 1.0× | 1× | 500.0 |")
    assert table[4].startswith("| zeros are not drawn | 25 | 2.0× | 4× | 125.0 |")
    assert table[-1].startswith("| `toykern.fit` | 1 | 3.1× | 100× | 5.0 |")


def test_landauers_bound_by_hand():
    """45 numbers of 32 bits; 5,120 entries of 0.0808 bits; 51.2 values of 24 bits; 2.87e-21 J a bit."""
    assert energy.erased_bits() == pytest.approx(1440 + 5120 * 0.080793 + 51.2 * 24, rel=1e-4)
    assert energy.landauer_joules() / energy.erased_bits() == pytest.approx(2.871e-21, rel=1e-3)
    assert energy.joules(1000.0, 5.0) == pytest.approx(5e-6)


def test_medians():
    assert medians({"naive": [3.0, 1.0, 2.0]}) == {"naive": 2.0}


def test_a_compiler_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="no-such-compiler"):
        build(tmp_path, "no-such-compiler")


@needs_compiler
def test_a_compiler_that_fails_is_quoted(tmp_path):
    with pytest.raises(RuntimeError, match="no-such-option"):
        build(tmp_path, "g++ -fno-such-option")
    assert "-O3" in FLAGS


@pytest.mark.parametrize("option", ["--models", "--steps", "--rounds", "--watts"])
def test_options_have_to_be_positive(option, capsys):
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"{option} must be positive, not 0" in capsys.readouterr().err
