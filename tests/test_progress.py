"""What is said while a training runs: a bar where somebody looks, a line a minute in logs, or nothing."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import sys
import termios
import types

import pytest

import toykern as tk
from toykern import experiments
from toykern.training import progress as module
from toykern.training.progress import Progress, SweepProgress, labelled


class Stream(io.StringIO):
    """Keeps what is written, as a terminal or as a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Clock:
    """Goes as it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(written: Stream) -> list[str]:
    """What a line of a terminal showed, one after the other."""
    lines = [line.strip() for line in written.getvalue().split("\r") if line.strip()]
    return [line for before, line in zip(["", *lines], lines, strict=False) if line != before]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bar_counts_model_steps(clock):
    written = Stream(terminal=True)
    bar = Progress(200, 100, n_models=1000, stream=written, clock=clock)
    clock.now += 2
    bar.update(150)
    clock.now += 0.01
    bar.update(160)  # too soon to be drawn
    clock.now += 1.99
    bar.update(200)
    bar.close()
    first, last = drawn(written)
    assert first.startswith("75%|") and "| 150 of 200 steps, 25 k model-steps/s, 2 s left" in first
    assert (
        last.startswith("100%|") and "| 200 of 200 steps, 25 k model-steps/s" in last and "left" not in last
    )
    assert written.getvalue().endswith("\n") and "160" not in written.getvalue()


def test_what_came_last_is_drawn_at_the_end(clock):
    written = Stream(terminal=True)
    bar = Progress(200, 0, n_models=1, stream=written, clock=clock)
    for done in (10, 20, 30):
        bar.update(done)
    bar.close()
    assert "10 of 200" in written.getvalue() and "20 of 200" not in written.getvalue()
    assert "30 of 200 steps" in written.getvalue().split("\r")[-1]


def test_a_log_gets_a_line_a_minute(clock):
    written = Stream(terminal=False)
    bar = Progress(10_000, 0, n_models=100, stream=written, clock=clock)
    for seconds in range(1, 151):
        clock.now += 1
        bar.update(40 * seconds)
    bar.close()
    assert written.getvalue().splitlines() == [
        "toykern:  24% 2,400 of 10,000 steps, 4 k model-steps/s, 3 min 10 s left",
        "toykern:  48% 4,800 of 10,000 steps, 4 k model-steps/s, 2 min 10 s left",
        "toykern:  60% 6,000 of 10,000 steps, 4 k model-steps/s, 1 min 40 s left",
    ]


@pytest.mark.parametrize(("asked", "lines"), [(None, 0), (True, 1), (False, 0)])
def test_a_run_of_less_than_a_minute_is_silent_in_a_log_unless_asked_for(clock, asked, lines):
    written = Stream(terminal=False)
    bar = Progress(100, 0, 1, asked, written, clock)
    bar.update(50)
    clock.now += 59
    bar.update(100)
    bar.close()
    assert written.getvalue().count("\n") == lines
    assert ("100 of 100 steps" in written.getvalue()) == bool(lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_said_where_it_is_not_wanted_or_there_is_nothing_to_do(clock, terminal):
    for shown, total in ((False, 100), (True, 0)):
        written = Stream(terminal)
        bar = Progress(total, 0, 1, shown, written, clock)
        clock.now += 1000
        bar.update(total)
        bar.close()
        assert written.getvalue() == ""


def test_without_any_standard_error_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    bar = Progress(10, 0, 1, True)
    bar.update(10)
    bar.close()


def test_a_notebook_is_where_somebody_looks(monkeypatch, clock):
    drawn = []

    class Widget:
        def __init__(self, **told):
            drawn.append((told["initial"], told["desc"]))

        def set_description_str(self, text):
            drawn.append((self.n, text))

        def close(self):
            drawn.append("closed")

    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(module, "_tqdm", lambda: Widget)
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    assert module.in_notebook()
    bar = Progress(10, 0, 1, clock=clock)
    for done in (5, 10):
        clock.now += 1
        bar.update(done)
    bar.close()
    assert [entry[0] for entry in drawn[:2]] == [5, 10] and drawn[2] == "closed"
    shell.config = {}  # IPython in a terminal
    assert not module.in_notebook()


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (24, 60), (0, 60)])
def test_a_terminal_of_no_size_has_a_bar_too(rows, columns, clock):
    main, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(end, "w") as terminal, os.fdopen(main, "rb", buffering=0) as screen:
        bar = Progress(10, 0, 1, stream=terminal, clock=clock)
        clock.now += 1
        bar.update(5)
        shown = screen.read(500).decode()
        bar.close()
    assert len(shown.strip()) <= (columns or 80)
    assert "50%|" in shown and "5 of 10 steps" in shown


def test_no_thread_watches_the_bars():
    assert module._tqdm().monitor_interval == 0


def test_one_bar_over_all_chunks(clock):
    written = Stream(terminal=True)
    bar = SweepProgress(steps=10, n_models=30, chunks=3, done=10, stream=written, clock=clock)
    for number in (1, 2):
        part = bar.of_chunk(number)(10, 0, 10)
        for done in (5, 10):
            clock.now += 1
            part.update(done)
        part.close()
    bar.close()
    lines = drawn(written)
    assert [(line[:4].strip(), line.split("| ")[1].split(" of ")[0]) for line in lines] == [
        ("50%|", "chunk 2"), ("67%|", "chunk 2"), ("83%|", "chunk 3"), ("100%", "chunk 3"),
    ]  # fmt: skip
    assert written.getvalue().endswith("\n")


def test_a_sweep_that_others_train_still_says_how_far_it_is(clock):
    """Workers of an executor are heard of chunk by chunk; a log has its lines all the same."""
    written = Stream(terminal=False)
    bar = SweepProgress(10, 30, 3, stream=written, clock=clock, label="share 0 of 2, ")
    for minute in range(3):
        clock.now += 61
        if minute == 1:
            bar.finished(1, 10)
        bar.waiting()
    bar.close()
    said = [line.split(", ")[:2] for line in written.getvalue().splitlines()]
    assert said == [
        ["toykern:   0% share 0 of 2", "3 chunks"],
        ["toykern:  33% share 0 of 2", "1 of 3 chunks"],
        ["toykern:  33% share 0 of 2", "1 of 3 chunks"],
    ]


@pytest.mark.parametrize(
    ("terminal", "asked", "shown"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_fit_shows_it(capsys, monkeypatch, terminal, asked, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    tk.fit(tk.TiedAutoencoder(2, 1), tk.SparseFeatures(2, 0.1), 20, 8, progress=asked)
    captured = capsys.readouterr()
    assert ("20 of 20 steps" in captured.err) == shown
    assert (captured.err == "") == (not shown) and captured.out == ""


@pytest.mark.parametrize("asked", [True, False])
def test_sweeps_and_experiments_show_it(capsys, tmp_path, asked):
    def plan(points, index):
        return {"model": tk.TiedAutoencoder(2, 1, points.n_models, seed=index),
                "data": tk.SparseFeatures(2, 0.1), "seed": index}  # fmt: skip

    tk.sweep(tk.grid(seed=range(4)), plan, tmp_path / "s.zarr", chunk=2, steps=5, progress=asked)
    assert ("chunk 2 of 2" in capsys.readouterr().err) == asked
    small = {"steps": 5, "densities": (1.0, 0.1), "quick": True}
    for store in ({}, {"store": tmp_path / "store"}):
        result = experiments.run("intro-polygons", progress=asked, **store, **small)
        said = capsys.readouterr().err
        assert (" model-steps/s" in said) == asked and bool(said) == asked
        if asked and not store:
            assert f"{next(iter(result.trained))}, 5 of 5 steps" in said


def test_a_label_stands_before(capsys):
    bar = labelled(True, "stage, ")(10, 0, 3)
    bar.update(10)
    bar.close()
    assert capsys.readouterr().err.startswith("toykern: 100% stage, 10 of 10 steps")
