"""`fit(resume=run, steps=…)` with more steps: the bits of a run that was so long from the start."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from device_kit import device_source

import toykern as tk

DATA = {"probability": [[0.05], [0.2], [0.6]]}


def dense(n: int = 5, m: int = 2, **options: Any) -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(n, m, 3, **options)


def untied() -> tk.Autoencoder:
    return tk.Autoencoder(6, 3, 3, hidden_activation="relu")


def sparse() -> tk.SparseTiedAutoencoder:
    return tk.SparseTiedAutoencoder(20, 10, n_models=3, density=[0.2, 0.5, 0.9])


RIGL = tk.RigL(interval=4, end=30, seed=7)
TICKET = tk.LotteryTicket(rounds=2, round_steps=9, rewind_to=4, drop_fraction=0.3)
MOST = {"record": ("features_per_dimension", "superposition")}
# The model, its loop, and how it is trained.
CASES = {
    "columns": (dense, MOST),
    "a periodic cosine": (dense, {"schedule": tk.PeriodicCosine(7)}),
    "columns, SGD": (dense, {"optimizer": tk.SGD(lr=0.1, momentum=0.9)}),
    "tiles": (lambda: dense(24, 12), {"importance": 0.5}),
    "untied": (untied, {"target": "abs"}),
    "breaking on the way": (dense, {"optimizer": tk.SGD(lr=[0.1, 1e3, 3e38])}),
    "sparse": (sparse, {"record": ("density",)}),
    "RigL": (sparse, {"topology": RIGL, "record": ("explored",)}),
    "a ticket": (sparse, {"topology": TICKET}),
}


def trained(case: str, steps: int, **options: Any) -> tk.Run:
    make, settings = CASES[case]
    model = make()
    data = tk.SparseFeatures(model.n_features, **DATA)
    settings = {"record_every": 4, "snapshots": [0, 5], "batch_size": 24, "progress": False} | settings
    return tk.fit(model, data, steps, **(settings | options))


def assert_same(a: tk.Run, b: tk.Run) -> None:
    """Bit for bit, in all that a run holds."""

    def same(x: torch.Tensor, y: torch.Tensor) -> bool:
        return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))

    assert a.config == b.config and a.step == b.step and a.complete == b.complete
    assert same(a.loss, b.loss) and same(a.diverged_at, b.diverged_at)
    for kind in ("records", "optimizer_state", "carry"):
        ours, theirs = getattr(a, kind), getattr(b, kind)
        assert ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours), kind
    assert list(a.snapshots) == list(b.snapshots)
    for step, kept in a.snapshots.items():
        assert all(same(kept[name], b.snapshots[step][name]) for name in kept)
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    assert all(same(ours[name], theirs[name]) for name in ours)
    assert (a.record_steps == b.record_steps).all() and same(a.final_loss, b.final_loss)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [12, 14])
def test_as_one_that_was_so_long_from_the_start(case, first):
    """12 steps are whole records, the last of 14 is half a one."""
    run = trained(case, first)
    again = tk.fit(resume=run, steps=23, progress=False)
    assert again is run and run.complete and run.config["steps"] == 23
    assert_same(run, trained(case, 23))


@pytest.mark.parametrize("regime", ["tiny", "small", "large"])
def test_by_the_loops_of_a_device(regime):
    with device_source(regime):
        run = tk.fit(resume=trained("columns", 14), steps=23, progress=False)
        assert_same(run, trained("columns", 23))


@pytest.mark.parametrize("case", ["columns", "RigL"])
def test_from_a_store_more_than_once_and_before_the_end(case, tmp_path):
    trained(case, 10, stop_at=7).save(tmp_path / "a")
    run = tk.fit(resume=tk.Run.load(tmp_path / "a"), steps=15, stop_at=15, progress=False)
    run.save(tmp_path / "b")
    run = tk.fit(resume=tk.Run.load(tmp_path / "b"), steps=23, stop_at=19, progress=False)
    assert not run.complete and run.steps_made == 19 and run.steps_to_make == 23
    assert_same(tk.fit(resume=run, progress=False), trained(case, 23))
    alone = run.rerun(1)
    assert torch.equal(alone.loss[0], run.loss[1]) and alone.config["steps"] == 23


def test_snapshots_of_the_new_steps_may_be_added():
    run = tk.fit(resume=trained("columns", 12), steps=23, snapshots=[15, 23], progress=False)
    assert_same(run, trained("columns", 23, snapshots=[0, 5, 15, 23]))
    with pytest.raises(ValueError, match="snapshots differs"):
        tk.fit(resume=run, steps=30, snapshots=[7, 25])
    assert run.config["steps"] == 23


def test_records_not_reached_are_nan_and_the_last_finished_one_counts():
    run = tk.fit(resume=trained("columns", 14), steps=23, stop_at=14, progress=False)
    assert not run.complete and run.loss.shape == (3, 6)
    assert run.loss[:, :3].isfinite().all() and run.loss[:, 3:].isnan().all()
    assert torch.equal(run.final_loss, run.loss[:, 2])


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        ("linear", "linear"),
        ("cosine", "cosine"),
        (tk.WarmupCosine(3), "warmup_cosine"),
        (lambda t, n: 1.0, "callable"),
    ],
    ids=["linear", "cosine", "warmup_cosine", "callable"],
)
def test_a_schedule_that_depends_on_the_number_of_steps_is_in_the_way(schedule, named):
    run = trained("columns", 12, schedule=schedule)
    before = run.model.weight.detach().clone()
    with pytest.raises(ValueError, match=rf"steps must be 12.*not 23.*schedule \({named}\)"):
        tk.fit(resume=run, steps=23)
    assert torch.equal(run.model.weight, before) and run.config["steps"] == 12 and run.loss.shape[1] == 3


@pytest.mark.parametrize(
    ("steps", "error", "text"),
    [
        (11, ValueError, "steps must be 12 or more, not 11: a run can be made longer, not shorter"),
        (2**32, ValueError, "steps must be an integer from 1 to 4294967295, not 4294967296"),
        (23.0, TypeError, "steps must be an integer, not 23.0"),
        ("more", TypeError, "steps must be an integer, not 'more'"),
    ],
)
def test_other_numbers_of_steps(steps, error, text):
    run = trained("columns", 12)
    with pytest.raises(error, match=re.escape(text)):
        tk.fit(resume=run, steps=steps)
    assert tk.fit(resume=run, steps=12, progress=False).complete


def test_what_stands_beside_it_must_still_agree_and_changes_nothing_where_it_does_not():
    run = trained("columns", 12)
    for name, value in {"batch_size": 25, "record_every": 3, "seed": 5, "optimizer": tk.SGD()}.items():
        with pytest.raises(ValueError, match=f"{name} differs"):
            tk.fit(resume=run, steps=23, **{name: value})
    with pytest.raises(ValueError, match="stop_at must be an integer from 12 to 23, not 24"):
        tk.fit(resume=run, steps=23, stop_at=24)
    assert run.config["steps"] == 12 and run.loss.shape[1] == 3 and run.complete


def test_a_last_record_whose_sum_was_not_kept_is_not_made_up():
    """As in stores that were written before sums of shorter records were kept."""
    run = trained("columns", 14)
    run.carry["loss"].zero_()
    with pytest.raises(ValueError, match="last record is shorter than record_every = 4"):
        tk.fit(resume=run, steps=23)
    assert tk.fit(resume=run, progress=False).complete
