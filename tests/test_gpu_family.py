"""On a GPU: what no kernel takes is trained and evaluated by batched products, as reference and CPU do.

With TOYKERN_GPU_TESTS_ON=cpu the same loop runs on the CPU's tensors.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from family_kit import FAMILY, Family, assert_close, batched
from gpu_kit import DEVICE, TINY, assert_same_runs, fit_on_gpu, ids, on_cuda
from kit import EVALUATION_FLOOR, assert_as_exact_as_pytorch, assert_follows_the_reference
from mlp_cases import MLP_CASES

import toykern as tk

pytestmark = pytest.mark.gpu
BY_NAME = {case.name: case for case in FAMILY}
OPTIONS = {"snapshots": [0, 6, 12], "record": ["feature_dimensionality"]}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the reference is quickest so


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_a_run_is_that_of_the_cpu(case: Family):
    """Weights, states, records, snapshots, the sum of an unfinished record; cut in the middle, too."""
    with batched():
        run = case.run(DEVICE, **OPTIONS)
        cut = tk.fit(resume=case.run(DEVICE, stop_at=7, **OPTIONS), progress=False)
    assert next(run.model.parameters()).device.type == torch.device(DEVICE).type
    expected = case.run(**OPTIONS)
    assert_close(run, expected)
    assert_close(cut, expected)


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_evaluation_is_that_of_the_cpu(case: Family):
    with batched():
        found = case.evaluated(DEVICE)
    assert found.dtype == torch.float64 and found.device.type == torch.device(DEVICE).type
    torch.testing.assert_close(found.cpu(), case.evaluated(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["a network", "embedded", "top-k, l1", "hidden bias"])
def test_the_stratified_loss_is_that_of_the_cpu(name):
    case = BY_NAME[name]
    options = {name: value for name, value in case.fit.items() if name in ("l1", "target", "importance")}
    losses = [
        tk.evaluate(case.start().to(device), case.data(), 2000, method="stratified", **options)
        for device in (DEVICE, "cpu")
    ]
    assert losses[0].device.type == torch.device(DEVICE).type
    torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=EVALUATION_FLOOR, atol=0)


@pytest.mark.parametrize("case", MLP_CASES[::4], ids=ids)
def test_networks_follow_the_reference(case):
    with batched():
        assert_follows_the_reference(case, fit_on_gpu(case, record_every=7))


@pytest.mark.parametrize("case", MLP_CASES[1::4], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorchs(case):
    with batched():
        assert_as_exact_as_pytorch(case, partial(fit_on_gpu, case))


@on_cuda
@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_it_goes_that_way_by_itself_and_says_so(case: Family):
    run = case.run(DEVICE, stop_at=1)
    assert run.provenance["trainer"] == "batched products"
    assert run.provenance["trainer_because"] == case.asked
    assert run.step == 1 and bool((run.diverged_at == -1).all())


@on_cuda
def test_kernels_keep_what_they_take():
    run = fit_on_gpu(TINY[0], steps=3)
    assert run.provenance["trainer"] == "kernels" and "trainer_because" not in run.provenance


@pytest.mark.parametrize("name", ["a network", "rows of each, minibatches", "sparse, clipped"])
def test_models_that_diverge_are_marked_and_harm_no_other(name):
    case = BY_NAME[name]

    def run(scale: float) -> tk.Run:
        rates = tk.SGD(lr=[1e-3, scale, 2e-3], momentum=0.9, clip_norm=1e30)
        return case.run(DEVICE, optimizer=rates, record_every=1, topology=None)

    with batched():
        calm, wild = run(1e-3), run(1e30)
    marked = wild.diverged_at.cpu()
    assert marked[0] == marked[2] == -1 and 0 < marked[1] < 12
    assert_same_runs(wild, calm, models=[0, 2], other_models=[0, 2])
    assert bool(wild.loss[1, int(marked[1]) :].isnan().all())


@pytest.mark.parametrize("name", ["embedded", "fewer samples, labels", "LAMB of the paper"])
def test_a_stored_run_goes_on(name, tmp_path):
    pytest.importorskip("zarr")
    case = BY_NAME[name]
    with batched():
        whole, run = case.run(DEVICE), case.run(DEVICE, stop_at=5)
        run.save(tmp_path / "run")
        loaded = tk.Run.load(tmp_path / "run")
        loaded.model.to(DEVICE)
        run = tk.fit(resume=loaded, progress=False)
    assert_close(run, whole)
    assert run.provenance["trainer"] == whole.provenance["trainer"]
