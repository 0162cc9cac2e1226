"""The large regime of the CUDA trainer, its source run on the host: what the reference does, at any shape."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from device_kit import device_regime, device_source
from drawn_cases import small_cases
from hypothesis import HealthCheck, given, settings
from kit import (
    TRAJECTORY,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    data_of,
    fit_case,
    model_of,
    reference_of,
    relative_error,
)

import toykern as tk
from toykern.training.optim import SGD

BY_NAME = {case.name: case for case in (*FIT_CASES, *FIT_LARGE, *FIT_LONG)}

# What decides a path: rows or entries, splits of features, tiles on every side of their borders, chains of
# samples, pieces of a batch, untied, groups, noise.
PATHS = [
    FitCase("entries, several splits", 1100, 5, 0.004, 40),
    FitCase("rows, several splits", 1030, 6, 0.2, 33),
    FitCase("narrow tiles and one more", 129, 33, 0.03, 130),
    FitCase("middle tiles", 65, 64, 0.3, 65, tied=False),
    FitCase("hidden units of two gathers", 70, 257, 0.02, 40),
    FitCase("gathers of two words' words", 1200, 9, 0.01, 20, tied=False),
    FitCase("more samples than a chain, entries", 24, 6, 0.02, 2500),
    FitCase("more samples than a chain, rows", 9, 3, 0.5, 2100, tied=False),
    FitCase("a path each", 20, 9, [[0.01] * 20, [0.5] * 20, [0.0] * 20], 100),
    FitCase("hidden ReLU, entries", 50, 20, 0.02, 60, network={"hidden_activation": "relu"}),
    FitCase("noise over several splits", 600, 4, 0.01, 17, features={"noise": 0.1}),
    FitCase("pairs, entries", 60, 9, 0.02, 100, correlated=((0, 7), (40, 3, 9)), anticorrelated=((5, 6),)),
]
# With blocks enough for the largest tiles: of the output, of weights, of sums over features.
LARGE_TILES = [
    FitCase("large tiles of outputs", 3, 1, 0.01, 33_000),
    FitCase("large tiles of weights", 1100, 65, 0.004, 5, n_models=29),
    FitCase("large tiles of features", 100, 65, 1e-4, 12_000),
]
CASES = [*FIT_CASES[::4], *PATHS]


def ids(case: FitCase) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_what_fits_no_block_is_large():
    assert device_regime(tk.TiedAutoencoder(4096, 256), 1024) == "large"
    assert device_regime(tk.Autoencoder(1025, 17), 64) == "large"


@pytest.mark.parametrize("case", [*FIT_CASES, *PATHS, *LARGE_TILES, *FIT_LARGE, *FIT_LONG[2:]], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case):
    with device_source("large"):
        assert_as_exact_as_pytorch(case, partial(fit_case, case))


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_training_follows_the_reference(case):
    case = replace(case, steps=min(case.steps, 25 if case in FIT_CASES else 15))
    with device_source("large"):
        run = fit_case(case, record_every=7)
    assert_follows_the_reference(case, run)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", [*FIT_CASES[::7], *PATHS], ids=ids)
def test_a_few_steps(case):
    with device_source("large"):
        run = fit_case(case, steps=3, record_every=2, schedule="constant")
    assert run.loss.isfinite().all() and (run.diverged_at == -1).all()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=small_cases())
def test_any_options_take_the_steps_of_the_reference(case):
    expected = reference_of.__wrapped__(case)
    with device_source("large"):
        run = fit_case(case, record_every=1)
    for name, value in run.model.named_parameters():
        assert (relative_error(value, expected.parameters[name]) <= TRAJECTORY).all(), name
    assert (run.loss - expected.losses).abs().max() <= 1e-5 * max(1e-3, expected.losses.max())


@pytest.mark.parametrize("case", [*FIT_CASES[::11], *PATHS], ids=ids)
def test_neither_lanes_nor_cuts_change_a_bit(case):
    options = {"steps": 5, "record_every": 2, "snapshots": [3], "schedule": "constant"}
    with device_source("large"):
        run = fit_case(case, **options)
        cut = tk.fit(resume=fit_case(case, stop_at=2, **options), progress=False)
    with device_source("large", descending=True):
        assert_same_bits(run, fit_case(case, **options))
    assert_same_bits(run, cut)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch_size", [60, 1500])
def test_a_model_alone_is_the_same_bits_as_among_others(tied, batch_size):
    """Sparse and dense neighbours; many of them make products take other tiles."""
    n, m, kind = 130, 40, tk.TiedAutoencoder if tied else tk.Autoencoder
    p = torch.tensor([0.01, 0.4, 0.0, 0.03], dtype=torch.float64)[:, None].expand(4, n).contiguous()
    lr = torch.tensor([1e-3, 1e-2, 1e-2, 3e-3])
    options = {"steps": 4, "batch_size": batch_size, "record_every": 3, "progress": False}
    seeds = torch.tensor([5, 6, 7, 2**40])
    with device_source("large"):
        together = tk.fit(
            kind(n, m, n_models=4, seed=seeds),
            tk.SparseFeatures(n, p),
            seed=seeds,
            optimizer=tk.Adam(lr=lr),
            **options,
        )
        for i in range(4):
            own = seeds[i : i + 1]
            alone = tk.fit(
                kind(n, m, seed=own),
                tk.SparseFeatures(n, p[i]),
                seed=own,
                optimizer=tk.Adam(lr=lr[i].item()),
                **options,
            )
            assert_same_bits(together, alone, slice(i, i + 1))


@pytest.mark.parametrize("case", [BY_NAME["200,20 few active"], BY_NAME["20,9 noise, groups"]], ids=ids)
def test_groups_of_models_change_no_bit(case):
    """In a workspace for one model at a time."""
    with device_source("large"):
        run = fit_case(case, steps=3, record_every=2)
    with device_source("large", room_for=1):
        assert_same_bits(run, fit_case(case, steps=3, record_every=2))


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE_TILES, ids=ids)
def test_neither_does_the_tile_that_many_models_make_worth_while(case):
    with device_source("large"):
        run = fit_case(case, steps=2, record_every=1)
    with device_source("large", room_for=1):
        assert_same_bits(run, fit_case(case, steps=2, record_every=1))


def test_a_diverged_model_is_marked_and_left_alone():
    options = {"steps": 12, "batch_size": 50, "record_every": 3, "progress": False}
    lr, data = torch.tensor([0.1, 1e30, 0.1]), tk.SparseFeatures(40, 0.3)
    with device_source("large"):
        run = tk.fit(tk.TiedAutoencoder(40, 20, n_models=3), data, optimizer=SGD(lr=lr), **options)
        good = tk.fit(tk.TiedAutoencoder(40, 20, n_models=3), data, optimizer=SGD(lr=0.1), **options)
        stopped = int(run.diverged_at[1])
        short = options | {"steps": stopped}
        before = tk.fit(tk.TiedAutoencoder(40, 20, n_models=3), data, optimizer=SGD(lr=lr), **short)
    assert run.diverged_at.tolist() == [-1, stopped, -1] and stopped >= 1
    for i in (0, 2):
        assert_same_bits(run, good, slice(i, i + 1), slice(i, i + 1))
    assert run.model.weight[1].equal(before.model.weight[1])  # as at that step
    cpu = tk.fit(tk.TiedAutoencoder(40, 20, n_models=3), data, optimizer=SGD(lr=lr), **options)
    assert cpu.diverged_at.tolist() == run.diverged_at.tolist()


def test_a_value_that_is_no_number_is_not_hidden_by_relu():
    model = tk.TiedAutoencoder(6, 3, n_models=2)
    with torch.no_grad():
        model.bias[1, 4] = math.nan
    with device_source("large"):
        run = tk.fit(model, tk.SparseFeatures(6, 0.0), 3, 20, progress=False)
    assert run.diverged_at.tolist() == [-1, 0]


@pytest.mark.parametrize("case", [*FIT_CASES[::6], *PATHS], ids=ids)
def test_evaluation_agrees_with_the_cpu(case):
    model, data = model_of(case), data_of(case)
    options = {"samples": 500, "seed": 3, **case.loss}
    expected = tk.evaluate(model, data, **options)
    with device_source("large"):
        assert torch.allclose(tk.evaluate(model, data, **options), expected, rtol=1e-5, atol=0)


def test_evaluation_over_several_batches():
    case = BY_NAME["20,9 each model its own"]
    model, data = model_of(case), data_of(case)
    expected = tk.evaluate(model, data, samples=8193, seed=1)
    with device_source("large"):
        assert torch.allclose(tk.evaluate(model, data, samples=8193, seed=1), expected, rtol=1e-5, atol=0)
