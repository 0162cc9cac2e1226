"""On a GPU: what cannot be done is said by name, and the process goes on working."""

from __future__ import annotations

import pytest
import torch
from gpu_kit import DEVICE, LARGE, SMALL, TINY, assert_same_runs, fit_on_gpu, ids, on_cuda

import toykern as tk

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _still_usable():
    """After every mistake the same training still gives the same bits."""
    before = fit_on_gpu(TINY[0], steps=10)
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert_same_runs(fit_on_gpu(TINY[0], steps=10), before)


DEPENDENT = [{"active": 2}, {"probability": 0.5, "dependence": tk.Hierarchy([-1, 0, 0])}]


@pytest.mark.parametrize("options", DEPENDENT)
def test_features_that_depend_on_each_other_are_drawn_and_moved(options):
    data = tk.SparseFeatures(3, **options)
    x = data.sample(2, 100, 7, n_models=2, device=DEVICE)
    assert x.device.type == torch.device(DEVICE).type and torch.equal(
        x.cpu(), data.sample(2, 100, 7, n_models=2)
    )


def test_projections_are_of_the_target_alone():
    data = tk.SparseFeatures(3, 0.5, projection=torch.eye(3))
    # What is drawn is not what is made of it.
    assert torch.equal(data.sample(0, 9, device=DEVICE).cpu(), tk.SparseFeatures(3, 0.5).sample(0, 9))


@on_cuda
def test_what_sparse_models_do_not_have_is_refused_on_a_device_too():
    sparse, data = tk.SparseTiedAutoencoder(3, 2, density=0.5).to(DEVICE), tk.SparseFeatures(3, 0.5)
    for options, name in (({"loss": "cross_entropy"}, "loss|output_activation"), ({"l1": 0.1}, "l1")):
        with pytest.raises(ValueError, match=name):
            tk.fit(sparse, data, 5, 8, progress=False, **options)
    with pytest.raises(ValueError, match="SGLD for sparse models"):
        tk.fit(sparse, data, 5, 8, tk.SGLD(), progress=False)


def model(**options) -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(3, 2, 4, device=DEVICE, **options)


@on_cuda
def test_a_gpu_that_is_not_there():
    with pytest.raises(RuntimeError, match="device is 'cuda:99'.*GPU"):
        tk.TiedAutoencoder(3, 2, device="cuda:99")
    with pytest.raises(RuntimeError, match="device is 'cuda:99'.*GPU"):
        tk.SparseFeatures(3, 0.1).sample(0, 8, device="cuda:99")


@on_cuda
def test_parameters_on_different_devices():
    mixed = model()
    mixed.bias = torch.nn.Parameter(mixed.bias.detach().cpu())
    with pytest.raises((ValueError, RuntimeError), match=r"bias.*(device|cpu)"):
        tk.fit(mixed, tk.SparseFeatures(3, 0.1), 3, progress=False)
    with pytest.raises((ValueError, RuntimeError), match=r"bias.*(device|cpu)"):
        tk.evaluate(mixed, tk.SparseFeatures(3, 0.1), 100)


def test_inputs_may_come_from_the_device_or_the_cpu():
    options = {"steps": 10, "batch_size": 32, "progress": False}
    importance, seed = torch.linspace(0.5, 1, 12).reshape(4, 3), torch.arange(4) + 9
    here = tk.fit(model(), tk.SparseFeatures(3, 0.1), importance=importance, seed=seed, **options)
    there = tk.fit(
        model(), tk.SparseFeatures(3, 0.1), importance=importance.to(DEVICE), seed=seed.to(DEVICE), **options
    )
    assert_same_runs(here, there)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    with pytest.raises(TypeError, match="model must have float32 parameters"):
        tk.fit(model().to(dtype), tk.SparseFeatures(3, 0.1), 3, progress=False)


def test_expanded_and_replaced_parameters():
    expanded = model()
    expanded.weight = torch.nn.Parameter(expanded.weight.detach()[:1].expand(4, -1, -1))
    with pytest.raises(ValueError, match="weight is an expanded tensor"):
        tk.fit(expanded, tk.SparseFeatures(3, 0.1), 3, progress=False)
    short = model()
    short.weight = torch.nn.Parameter(short.weight.detach()[:3])
    with pytest.raises(ValueError, match="weight must have the shape"):
        tk.fit(short, tk.SparseFeatures(3, 0.1), 3, progress=False)


@pytest.mark.parametrize("case", [TINY[0], SMALL[3], LARGE[0]], ids=ids)
def test_models_that_diverge_are_marked_and_harm_no_other(case):
    def run(scale: float) -> tk.Run:
        lr = torch.tensor([1e-3, scale, 2e-3], dtype=torch.float64)
        return fit_on_gpu(case, steps=60, record_every=1, optimizer=tk.SGD(lr=lr), schedule="constant")

    calm, wild = run(1e-3), run(1e30)
    marked = wild.diverged_at.cpu()
    assert marked[0] == marked[2] == -1 and 0 < marked[1] < 60
    assert_same_runs(wild, calm, models=[0, 2], other_models=[0, 2])
    assert wild.loss.cpu()[1].isfinite().sum() < 60


@on_cuda
def test_out_of_memory_says_how_much_and_what_to_do():
    """Fills the device with a plain allocation first; asks for no more than that fits nowhere."""
    small = tk.TiedAutoencoder(2, 1, 200_000, device=DEVICE)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(free - (48 << 20), 1), dtype=torch.uint8, device=DEVICE)
    try:
        with pytest.raises(MemoryError, match=r"200,000 models needs .*GiB.*free"):
            tk.fit(small, tk.SparseFeatures(2, 0.1), 1000, record_every=1, progress=False)
    finally:
        del hog
        torch.cuda.empty_cache()
    run = tk.fit(small, tk.SparseFeatures(2, 0.1), 10, progress=False)
    assert run.complete and bool(run.loss.isfinite().all())
