"""On a GPU: a model's bits are its own, whatever the neighbours, repeats, chunks, streams, interruptions."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from cases import FitCase
from gpu_kit import (
    DEVICE,
    LARGE,
    LARGE_TILES,
    SMALL,
    TINY,
    VARIED,
    assert_same_runs,
    fit_on_gpu,
    ids,
    on_cuda,
    same_bits,
)
from kit import data_of, model_of

import toykern as tk

pytestmark = pytest.mark.gpu

varied = pytest.mark.parametrize("case", VARIED, ids=ids)
each_regime = pytest.mark.parametrize("case", [TINY[1], SMALL[-1], LARGE[0]], ids=ids)
UNGROUPED = [case for case in VARIED if not (case.correlated or case.anticorrelated)]


@varied
def test_a_repeated_run_has_the_same_bits(case: FitCase):
    first = fit_on_gpu(case, steps=60, record_every=7)
    for _ in range(3):
        assert_same_runs(fit_on_gpu(case, steps=60, record_every=7), first)


def population(case: FitCase, order: torch.Tensor, total: int) -> tk.Run:
    """Models `order` of `total`, which differ in everything a model may differ in."""
    model = model_of(dataclasses.replace(case, n_models=total))
    p = torch.logspace(-3, 0, total, dtype=torch.float64)[:, None] * torch.linspace(0.5, 1, case.n_features)
    lr = torch.linspace(1e-3, 1e-2, total, dtype=torch.float64)
    importance = torch.linspace(0.1, 2, total)[:, None] * torch.ones(case.n_features)
    return fit_on_gpu(
        case,
        model[order],
        tk.SparseFeatures(case.n_features, p[order], **case.features),
        steps=30,
        record_every=4,
        optimizer=tk.AdamW(lr=lr[order], weight_decay=0.1 * lr[order]),
        importance=importance[order],
        seed=order + 2**33,
    )


@pytest.mark.parametrize("case", UNGROUPED, ids=ids)
def test_a_model_alone_is_the_model_among_many(case: FitCase):
    total = 40 if case in LARGE else 700
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1))
    whole = population(case, order, total)
    for at in (0, 1, total // 2, total - 1):
        alone = population(case, order[at : at + 1], total)
        assert_same_runs(alone, whole, other_models=slice(at, at + 1))
    part = population(case, order[3:29], total)
    assert_same_runs(part, whole, other_models=slice(3, 29))


def test_a_model_alone_is_the_model_among_a_hundred_thousand():
    seeds = torch.arange(100_000)
    data = tk.SparseFeatures(2, 0.1)
    whole = tk.TiedAutoencoder(2, 1, 100_000, seed=seeds, device=DEVICE)
    run = tk.fit(whole, data, 20, optimizer=tk.Adam(1e-2), seed=seeds, progress=False)
    for i in (0, 31, 65_535, 99_999):
        alone = tk.TiedAutoencoder(2, 1, seed=[i], device=DEVICE)
        again = tk.fit(alone, data, 20, optimizer=tk.Adam(1e-2), seed=[i], progress=False)
        assert_same_runs(again, run, other_models=slice(i, i + 1))


def test_the_tiles_that_many_models_make_worth_while_change_no_bit():
    """Sums over features and gradients of 29 models go by tiles of 128 × 64, those of one by smaller ones.
    Most have no active feature, so that their outputs cost nothing."""
    p = torch.zeros(29, 1, dtype=torch.float64)
    p[3], p[28] = 1e-5, 2e-5
    many = dataclasses.replace(LARGE_TILES, n_models=29)
    data, seeds = tk.SparseFeatures(many.n_features, p), torch.arange(29)
    whole = fit_on_gpu(many, model_of(many), data, seed=seeds)
    for i in (2, 3, 28):
        one = tk.SparseFeatures(many.n_features, p[i])
        alone = fit_on_gpu(LARGE_TILES, model_of(many)[[i]], one, seed=seeds[i : i + 1])
        assert_same_runs(alone, whole, other_models=slice(i, i + 1))


@pytest.mark.parametrize(
    "case",
    [
        FitCase("100,1", 100, 1, 0.02, 3, n_models=1030, steps=2),
        FitCase("64,4 gram", 64, 4, 0.01, 240, n_models=1030, steps=2),
    ],
    ids=ids,
)
def test_a_block_goes_from_one_model_to_the_next(case: FitCase):
    """Blocks with a workspace are at most 1,024 (csrc/cuda/small/shape.h); the first have two models each."""
    seeds = torch.arange(case.n_models)
    whole = fit_on_gpu(case, seed=seeds, record_every=1)
    loss = tk.evaluate(whole.model, data_of(case), 3, seed=seeds)
    for i in (1, 1025):
        alone = fit_on_gpu(case, model_of(case)[[i]], seed=seeds[i : i + 1], record_every=1)
        assert_same_runs(alone, whole, other_models=slice(i, i + 1))
        assert same_bits(tk.evaluate(alone.model, data_of(case), 3, seed=seeds[i : i + 1]), loss[i : i + 1])


@varied
def test_an_interrupted_run_goes_on(case: FitCase):
    whole = fit_on_gpu(case, steps=50, record_every=7, snapshots=[0, 20, 50])
    run = fit_on_gpu(case, steps=50, record_every=7, snapshots=[0, 20, 50], stop_at=1)
    for stop in (2, 17, 23, 50):
        run = tk.fit(resume=run, stop_at=stop, progress=False)
    assert_same_runs(run, whole)


@each_regime
def test_records_and_stretches_change_nothing(case: FitCase):
    plain = fit_on_gpu(case, steps=60)
    noted = fit_on_gpu(case, steps=60, record_every=1, record=("loss", "feature_dimensionality"))
    for name, value in plain.model.named_parameters():
        assert same_bits(value, noted.model.get_parameter(name))


@on_cuda
@each_regime
def test_another_stream_and_another_thread_change_nothing(case: FitCase):
    expected = fit_on_gpu(case, steps=40)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.randn(4000, 4000, device=DEVICE)
        for _ in range(5):
            busy = busy @ busy.clamp(-1e-3, 1e-3)
        run = fit_on_gpu(case, steps=40)
        x = run.model.bias.detach() * 2  # ordered behind the training without waiting
    stream.synchronize()
    assert_same_runs(run, expected)
    assert same_bits(x, expected.model.bias.detach() * 2)
    runs: list[tk.Run] = []
    threads = [threading.Thread(target=lambda: runs.append(fit_on_gpu(case, steps=40))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 3
    for other in runs:
        assert_same_runs(other, expected)


@on_cuda
@each_regime
def test_the_device_context_is_left_alone(case: FitCase):
    before = torch.cuda.current_device()
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    with torch.cuda.device(last):
        run = tk.fit(model_of(case).to(last), data_of(case), 5, 64, progress=False)
        assert torch.cuda.current_device() == last.index
    assert torch.cuda.current_device() == before
    elsewhere = tk.fit(model_of(case).to(last), data_of(case), 5, 64, progress=False)
    assert torch.cuda.current_device() == before
    assert_same_runs(run, elsewhere)
    assert all(p.device == last for p in run.model.parameters())


@each_regime
def test_parameters_that_are_not_contiguous_are_trained_in_place(case: FitCase):
    expected = fit_on_gpu(case, steps=20)
    model = model_of(case).to(DEVICE)
    for name, parameter in list(model.named_parameters()):
        wide = torch.zeros(*parameter.shape[:-1], 2 * parameter.shape[-1], device=DEVICE)
        view = wide[..., ::2]
        view.copy_(parameter.detach())
        setattr(model, name, torch.nn.Parameter(view))
    held = dict(model.named_parameters())
    run = fit_on_gpu(case, model, steps=20)
    assert_same_runs(run, expected)
    assert all(run.model.get_parameter(name) is value for name, value in held.items())


def test_evaluation_depends_on_the_model_alone():
    model = tk.TiedAutoencoder(5, 2, 500, device=DEVICE)
    p = torch.logspace(-3, 0, 500, dtype=torch.float64)[:, None]
    loss = tk.evaluate(model, tk.SparseFeatures(5, p), 10_000)
    assert same_bits(loss, tk.evaluate(model, tk.SparseFeatures(5, p), 10_000))
    alone = tk.evaluate(model[77], tk.SparseFeatures(5, p[77]), 10_000, seed=77)
    assert same_bits(alone, loss[77:78])


def test_ctrl_c_keeps_what_was_trained(ctrl_c):
    model = tk.TiedAutoencoder(2, 1, 50_000, device=DEVICE)
    timer = threading.Timer(1.0, ctrl_c)
    timer.start()
    run = tk.fit(model, tk.SparseFeatures(2, 0.5), 10**6, progress=False)
    timer.join()
    assert run.interrupted and 0 < run.step < 10**6
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    again = tk.TiedAutoencoder(2, 1, 50_000, device=DEVICE)
    other = tk.fit(again, tk.SparseFeatures(2, 0.5), 10**6, progress=False, stop_at=run.step)
    assert_same_runs(other, run)


def test_a_sweep_is_the_same_in_any_chunks(tmp_path):
    pytest.importorskip("zarr")
    grid = tk.grid(density=[0.01, 0.1, 1.0], seed=range(9))

    def plan(points, index):
        model = tk.TiedAutoencoder(3, 2, points.n_models, seed=index, device=DEVICE)
        return {"model": model, "data": tk.SparseFeatures(3, points.density[:, None]), "seed": index}

    options = {"steps": 20, "batch_size": 100, "progress": False}
    whole = tk.sweep(grid, plan, tmp_path / "whole.zarr", **options)
    parts = tk.sweep(grid, plan, tmp_path / "parts.zarr", chunk=4, **options)
    assert len(parts.boxes) > 5 > len(whole.boxes)
    for name in whole.names:
        assert whole.read(name).tobytes() == parts.read(name).tobytes(), name
    run = tk.fit(**plan(grid, torch.arange(27)), **options)
    assert whole.read("weight").tobytes() == run.model.weight.detach().cpu().numpy().tobytes()


def test_a_store_brings_a_run_back(tmp_path):
    pytest.importorskip("zarr")
    case = TINY[1]
    whole = fit_on_gpu(case, steps=40)
    part = fit_on_gpu(case, steps=40, stop_at=15)
    part.save(tmp_path / "part.zarr")
    kept = tk.Run.load(tmp_path / "part.zarr")
    assert_same_runs(kept, part)
    kept.model.to(DEVICE)
    assert_same_runs(tk.fit(resume=kept, progress=False), whole)
