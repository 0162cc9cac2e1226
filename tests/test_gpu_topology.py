"""On a GPU: sparse models in `fit` follow the masked dense reference; what is stored, resumed, put back."""

from __future__ import annotations

import pytest
import torch
from fit_topology_kit import (
    BY_NAME,
    CASES,
    KEPT,
    LARGE_ON_A_DEVICE,
    TICKET,
    assert_follows_masked_dense,
    data_of,
    model_of,
    updates_of,
)
from gpu_kit import DEVICE, same_bits

import toykern as tk

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the reference is quickest so


def fit_there(case, **options):
    settings = {
        "steps": case.steps, "batch_size": case.batch_size, "optimizer": case.optimizer,
        "topology": case.topology, "progress": False, **case.loss,
    }  # fmt: skip
    return tk.fit(model_of(case).to(DEVICE), data_of(case), **(settings | options))


def results(run):
    found = {"loss": run.loss, "connections": run.model.topology.to_mask(), **run.optimizer_state}
    found |= run.model.stacked_parameters()
    for step, snapshot in run.snapshots.items():
        found |= {f"{name} at {step}": value for name, value in snapshot.items()}
    return found


def assert_same(a, b):
    ours, theirs = results(a), results(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert same_bits(value, theirs[name]), name


@pytest.mark.parametrize("case", [*CASES, *LARGE_ON_A_DEVICE], ids=str)
def test_the_whole_trajectory_is_that_of_masked_dense_models(case):
    run = fit_there(case, record_every=7, snapshots=(0, *updates_of(case)))
    assert next(run.model.parameters()).device.type == DEVICE
    run.model.cpu()
    assert_follows_masked_dense(case, run)


@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], *KEPT, TICKET, LARGE_ON_A_DEVICE[1]], ids=str)
def test_again_resumed_and_alone(case):
    options = {"record": ("loss", "density"), "snapshots": (0, 5, case.steps)}
    whole = fit_there(case, **options)
    assert_same(whole, fit_there(case, **options))
    cut = fit_there(case, stop_at=case.steps // 3, **options)
    cut = tk.fit(resume=tk.fit(resume=cut, stop_at=case.steps // 2, progress=False), progress=False)
    assert_same(whole, cut)
    alone = whole.rerun(1)
    assert same_bits(alone.model.weight[0], whole.model.weight[1])
    assert same_bits(alone.loss[0], whole.loss[1])


@pytest.mark.parametrize("case", [BY_NAME["tiles, RigL"], BY_NAME["tiles, SNFS"], TICKET], ids=str)
def test_a_run_that_moves_to_the_cpu_and_back(case):
    """Other bits, the same course: as many connections as in one go, and nearly the same loss."""
    whole = fit_there(case)
    run = fit_there(case, stop_at=case.steps // 3)
    run.model.cpu()
    run = tk.fit(resume=run, stop_at=case.steps // 2, progress=False)
    run.model.to(DEVICE)
    run = tk.fit(resume=run, progress=False)
    assert run.complete and next(run.model.parameters()).device.type == DEVICE
    assert torch.equal(run.model.topology.n_connections.cpu(), whole.model.topology.n_connections.cpu())
    torch.testing.assert_close(run.final_loss, whole.final_loss, rtol=0.2, atol=1e-3)
