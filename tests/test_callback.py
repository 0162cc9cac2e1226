"""`fit(callback=…)`: when it is called, what it sees, how it ends a run, and that no bit depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_train_longer import CASES, assert_same, trained

import toykern as tk


@pytest.mark.parametrize("case", CASES)
def test_it_sees_after_every_record_what_a_run_stopped_there_has(case):
    """Stops at every record are the reference: weights, records, optimiser's state, marks."""
    seen: list[tuple[int, tk.Run]] = []

    def look(run: tk.Run) -> None:
        stopped = trained(case, 22, stop_at=run.steps_made)
        seen.append((run.steps_made, stopped))
        for name, parameter in stopped.model.named_parameters():
            assert torch.equal(
                parameter.nan_to_num(7.0), dict(run.model.named_parameters())[name].nan_to_num(7.0)
            )
        assert torch.equal(run.loss.nan_to_num(7.0), stopped.loss.nan_to_num(7.0))
        assert torch.equal(run.diverged_at, stopped.diverged_at)
        for name, state in stopped.optimizer_state.items():
            assert torch.equal(state.nan_to_num(7.0), run.optimizer_state[name].nan_to_num(7.0))
        assert not run.interrupted and run.step == stopped.step

    run = trained(case, 22, callback=look)
    ends = [step for step, _ in seen]
    assert ends[-1] == run.steps_made == run.steps_to_make
    if case != "a ticket":
        assert ends == [4, 8, 12, 16, 20, 22]
    assert_same(run, trained(case, 22))


@pytest.mark.parametrize("case", CASES)
def test_true_ends_the_run_as_stop_at_does(case):
    run = trained(case, 22, callback=lambda run: run.steps_made >= 12)
    assert run.steps_made == (13 if case == "a ticket" else 12)  # whose steps 5 … 9 come twice
    assert not run.complete and not run.interrupted
    assert_same(run, trained(case, 22, stop_at=run.steps_made))
    assert_same(tk.fit(resume=run, progress=False), trained(case, 22))


@pytest.mark.parametrize("case", CASES)
def test_what_it_raises_comes_out_and_the_run_can_be_resumed(case, tmp_path):
    kept: list[tk.Run] = []

    def fail(run: tk.Run) -> None:
        if run.steps_made == 8:
            kept.append(run)
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trained(case, 22, callback=fail)
    (run,) = kept
    assert run.interrupted and run.steps_made == 8
    run.save(tmp_path / "run.zarr")
    assert_same(tk.fit(resume=tk.Run.load(tmp_path / "run.zarr"), progress=False), trained(case, 22))
    assert_same(tk.fit(resume=run, progress=False), trained(case, 22))


def test_it_may_save_evaluate_and_train_others(tmp_path):
    lows = []

    def look(run: tk.Run) -> np.bool_:
        run.save(tmp_path / "run.zarr", overwrite=True)
        lows.append(tk.evaluate(run.model, run.data, samples=64).min())
        run.rerun(0)
        return np.bool_(False)

    run = trained("RigL", 22, callback=look)
    assert_same(run, trained("RigL", 22)) and len(lows) == 6
    assert tk.Run.load(tmp_path / "run.zarr").complete


def test_of_a_model_whose_parameters_are_copied():
    """Those of the module are brought up to date before each call."""
    model = tk.TiedAutoencoder(5, 2, 3)
    model.weight = torch.nn.Parameter(model.weight.detach().mT.contiguous().mT)
    before = model.weight.detach().clone()
    moved = []
    tk.fit(model, tk.SparseFeatures(5, 0.2), 8, record_every=4, progress=False,
           callback=lambda run: moved.append(not torch.equal(run.model.weight, before)))  # fmt: skip
    assert moved == [True, True]


@pytest.mark.parametrize("given", [1, "yes", torch.tensor(True)])
def test_what_it_returns_is_checked(given: Any):
    with pytest.raises(TypeError, match="callback must return True, False or None"):
        trained("columns", 22, callback=lambda run: given)


def test_it_cannot_train_the_run_further():
    with pytest.raises(RuntimeError, match="being trained just now"):
        trained("columns", 22, callback=lambda run: tk.fit(resume=run))


def test_models_that_the_last_update_broke_are_marked():
    marks = []
    model = tk.TiedAutoencoder(5, 2, 2)
    tk.fit(model, tk.SparseFeatures(5, 0.5), 1, optimizer=tk.SGD(lr=[0.1, 3e38]), importance=1e6,
           progress=False, callback=lambda run: marks.append(run.diverged_at.tolist()))  # fmt: skip
    assert marks == [[-1, 1]]
