"""The tiny regime of the CUDA trainer, its source run on the host: what the reference does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import FIT_CASES, FIT_LONG, FitCase
from device_kit import device_regime, device_source
from drawn_cases import small_cases
from hypothesis import HealthCheck, given, settings
from kit import (
    TRAJECTORY,
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

SHAPES = [(2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (6, 2)]


def _tiny(case: FitCase) -> bool:
    return device_regime(model_of(case), case.batch_size) == "tiny"


# Every option of the shared list, at a shape that is compiled in.
_SHARED = [case for case in FIT_CASES if _tiny(case)]
_RESHAPED = [
    replace(case, name=f"5,2 as {case.name}", n_features=5, n_hidden=2)
    for case in FIT_CASES
    if case.tied and case.n_features > 6 and isinstance(case.probability, float) and not (
        case.correlated or case.anticorrelated or isinstance(case.loss.get("importance", 1.0), list)
        or hasattr(case.loss.get("importance", 1.0), "shape")
    )
]  # fmt: skip
CASES = [*_SHARED, *_RESHAPED[::4]]

GROUPED = [
    FitCase("rare pair", 5, 2, 0.05, correlated=((1, 3),)),
    FitCase("frequent pair", 4, 2, 0.3, 64, anticorrelated=((0, 2),)),
    FitCase("both kinds", 6, 2, [0.05, 0.4, 0.05, 1.0, 0.0, 0.01], 100),
    FitCase("noise", 3, 2, 0.1, 50, features={"noise": 0.1, "magnitude": "half_normal"}),
    FitCase("noise, frequent", 2, 1, 0.7, 1024, features={"noise": 0.05}),
    FitCase("rates differ", 5, 2, [0.1, 0.02, 0.003, 0.0, 0.12], 500),
    FitCase("frequent, some always", 6, 2, [1.0, 0.5, 0.2, 0.0, 0.9, 1.0], 700),
    FitCase("many rounds", 6, 2, 0.12, 1024, steps=60),
    FitCase("long slices", 2, 1, 1e-4, 1024),
    FitCase(
        "chunks and slices of two lengths",
        3,
        2,
        [[0.6, 0.3, 0.9], [0.0, 0.6, 0.0], [0.2, 1.0, 0.0]],
        4300,
        steps=3,
    ),
    FitCase("a path each", 4, 2, [[0.05] * 4, [0.5] * 4, [0.05, 0.5, 0.05, 0.5]], 300),
]


def ids(case: FitCase) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_the_shapes_that_are_compiled_in_are_taken():
    for n, m in SHAPES:
        assert device_regime(tk.TiedAutoencoder(n, m), 1024) == "tiny"
        assert device_regime(tk.TiedAutoencoder(n, m), 100_000) != "tiny"
        assert device_regime(tk.Autoencoder(n, m), 1024) != "tiny"
    assert device_regime(tk.TiedAutoencoder(7, 2), 1024) != "tiny"
    assert {(case.n_features, case.n_hidden) for case in CASES} >= set(SHAPES)


@pytest.mark.parametrize("case", [*CASES, *GROUPED], ids=ids)
def test_training_follows_the_reference(case):
    case = replace(case, steps=min(case.steps, 60))
    with device_source():
        run = fit_case(case, record_every=7)
    assert_follows_the_reference(case, run)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", [*CASES, *GROUPED], ids=ids)
def test_a_few_steps(case):
    with device_source():
        run = fit_case(case, steps=3, record_every=2, schedule="constant")
    assert run.loss.isfinite().all() and (run.diverged_at == -1).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=small_cases(shapes=SHAPES, tied=True))
def test_any_options_take_the_steps_of_the_reference(case):
    expected = reference_of.__wrapped__(case)
    with device_source():
        run = fit_case(case, record_every=1)
    for name, value in run.model.named_parameters():
        assert (relative_error(value, expected.parameters[name]) <= TRAJECTORY).all(), name
    assert (run.loss - expected.losses).abs().max() <= 1e-5 * max(1e-3, expected.losses.max())


@pytest.mark.parametrize("case", [*CASES[::3], *GROUPED], ids=ids)
def test_neither_lanes_nor_cuts_change_a_bit(case):
    with device_source():
        run = fit_case(case, steps=9, record_every=4, snapshots=[3], schedule="constant")
        cut = fit_case(case, steps=9, record_every=4, snapshots=[3], stop_at=5, schedule="constant")
        cut = tk.fit(resume=cut, progress=False)
    with device_source(descending=True):
        assert_same_bits(run, fit_case(case, steps=9, record_every=4, snapshots=[3], schedule="constant"))
    assert_same_bits(run, cut)


def test_a_model_alone_is_the_same_bits_as_among_others():
    """Neighbours of every kind of draw, at either place of the pair."""
    p = torch.tensor(
        [[0.05] * 5, [0.4] * 5, [0.1, 0.9, 0.1, 0.0, 0.5], [0.01] * 5, [1.0] * 5], dtype=torch.float64
    )
    kinds = [0, 1, 2, 3, 4, 3, 0, 2, 1]
    settings = {"steps": 12, "batch_size": 200, "record_every": 5, "progress": False}
    seeds = torch.arange(9) * 7
    model = tk.TiedAutoencoder(5, 2, n_models=9, seed=seeds)
    with device_source():
        together = tk.fit(model, tk.SparseFeatures(5, p[kinds]), seed=seeds, **settings)
        for i, kind in enumerate(kinds):
            own = seeds[i : i + 1]
            alone = tk.fit(
                tk.TiedAutoencoder(5, 2, seed=own), tk.SparseFeatures(5, p[kind]), seed=own, **settings
            )
            assert_same_bits(together, alone, slice(i, i + 1))


def test_a_diverged_model_is_marked_and_left_alone():
    settings = {"steps": 30, "batch_size": 50, "record_every": 3, "progress": False}
    lr = torch.tensor([0.1, 1e30, 0.1])
    data = tk.SparseFeatures(3, 0.3)
    with device_source():
        run = tk.fit(tk.TiedAutoencoder(3, 2, n_models=3), data, optimizer=SGD(lr=lr), **settings)
        good = tk.fit(tk.TiedAutoencoder(3, 2, n_models=3), data, optimizer=SGD(lr=0.1), **settings)
    cpu = tk.fit(tk.TiedAutoencoder(3, 2, n_models=3), data, optimizer=SGD(lr=lr), **settings)
    assert run.diverged_at.tolist() == cpu.diverged_at.tolist() and run.diverged_at[1] >= 0
    assert_same_bits(run, good, slice(0, 1), slice(0, 1))
    assert_same_bits(run, good, slice(2, 3), slice(2, 3))


@pytest.mark.parametrize("case", [*CASES[::4], *GROUPED], ids=ids)
def test_evaluation_agrees_with_the_cpu(case):
    model, data = model_of(case), data_of(case)
    options = {"samples": 1000, "seed": 3, **case.loss}
    expected = tk.evaluate(model, data, **options)
    with device_source():
        assert torch.allclose(tk.evaluate(model, data, **options), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 63, 65, 130, 511, 515, 4099])
@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (5, 2), (6, 2)], ids=str)
def test_a_batch_of_frequent_features_ends_anywhere(shape, batch_size):
    """Within a lane's four samples, a block, a chunk, a slice; the ring of magnitudes goes round."""
    case = FitCase("frequent", *shape, 0.6, batch_size, steps=4)
    with device_source():
        run = fit_case(case, record_every=1)
    expected = reference_of(case)
    for name, value in run.model.named_parameters():
        assert (relative_error(value, expected.parameters[name]) <= TRAJECTORY).all(), name
    assert ((run.loss - expected.losses).abs() <= 1e-5 * expected.losses).all()


def test_long_batches():
    for case in FIT_LONG:
        if case.batch_size <= 65536 and _tiny(case):
            with device_source():
                run = fit_case(case, steps=2, record_every=1)
            loss = reference_of(case, steps=2).losses
            assert ((run.loss - loss).abs() <= 1e-5 * loss).all()


def test_an_order_of_models_changes_nothing():
    """The costliest come first where there are few (`costliest_first`)."""
    p = torch.logspace(-2, -0.01, 7, dtype=torch.float64)[:, None].expand(7, 2).contiguous()
    settings = {"steps": 6, "batch_size": 128, "progress": False}
    with device_source():
        rising = tk.fit(
            tk.TiedAutoencoder(2, 1, n_models=7, seed=1), tk.SparseFeatures(2, p), seed=1, **settings
        )
        falling = tk.fit(
            tk.TiedAutoencoder(2, 1, n_models=7, seed=1), tk.SparseFeatures(2, p.flip(0)), seed=1, **settings
        )
    assert torch.equal(rising.model.weight, falling.model.weight.flip(0))
