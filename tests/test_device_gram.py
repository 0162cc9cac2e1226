"""The Gram form's CUDA source (csrc/cuda/gram/train_gram.cuh), run on the host: it computes what the
reference does, and nothing but the model itself decides a bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FitCase
from device_fit_checks import (
    assert_alone_as_among_others,
    assert_divergence_harms_no_other,
    assert_follows_in_any_order,
    fit_by_source,
)
from device_kit import device_regime, device_source
from gpu_kit import GRAM
from kit import (
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    fit_case,
    model_of,
    tensors_of,
)


def ids(case: FitCase) -> str:
    return case.name


def _fits(case: FitCase) -> bool:
    network = model_of(case).network
    activations = (network.hidden_activation, network.output_activation)
    return network.tied and activations in (("none", "none"), ("none", "relu")) and case.n_features <= 96


# Of the networks that it can train, whatever their data are: models that it leaves are the small loop's.
CASES = [
    case
    for case in (*FIT_CASES, *FIT_LARGE)
    if device_regime(model_of(case), case.batch_size) != "large" and _fits(case)
]
# One to 32 samples at a time, features that are no multiple of four, models that are left.
KINDS = [
    FitCase("a lane to a sample", 3, 2, 0.1, 300, n_models=5),
    FitCase("six samples at a time", 20, 5, 0.02, 1024, n_models=5),
    FitCase("six samples, some left", 20, 5, [[0.05], [0.3], [0.9], [0.01], [0.125]], 100, n_models=5),
    FitCase("four samples", 29, 11, 0.06, 150, n_models=5),
    FitCase("two samples", 43, 4, 0.1, 100, n_models=5),
    FitCase("one sample", 90, 21, 0.02, 130, n_models=5),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


fit_gram = partial(fit_by_source, "gram")


fit_small = partial(fit_by_source, "small")


def differs(a, b) -> bool:
    return any(not torch.equal(value, tensors_of(b)[name]) for name, value in tensors_of(a).items())


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_the_cases_are_trained_by_it(case):
    """Its sums come in another order than the small loop's."""
    assert differs(fit_gram(case, steps=3), fit_small(case, steps=3))


def test_a_device_takes_it_where_it_pays():
    for n, m, p, taken in (
        (20, 5, 0.01, True),
        (80, 20, 0.01, True),
        (80, 20, 1e-5, False),
        (20, 1, 0.12, False),
    ):
        case = FitCase("choice", n, m, p, 1024, n_models=2)
        with device_source():
            chosen = fit_case(case, steps=2)
        assert_same_bits(chosen, fit_gram(case, steps=2) if taken else fit_small(case, steps=2))


@pytest.mark.parametrize("case", GRAM, ids=ids)
def test_a_device_takes_it_for_the_cases_of_the_gpu_tests(case):
    with device_source():
        chosen = fit_case(case)
    assert differs(chosen, fit_small(case))


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_one_step_is_as_exact_as_pytorch(case):
    assert_as_exact_as_pytorch(case, lambda **options: fit_gram(case, **options))


@pytest.mark.parametrize("case", [case for case in CASES if case.batch_size < 1000] + KINDS, ids=ids)
def test_training_follows_the_reference(case):
    case = replace(case, steps=min(case.steps, 60))
    assert_follows_the_reference(case, fit_gram(case, record_every=7))


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_the_order_of_lanes_threads_and_blocks_changes_nothing(case):
    assert_same_bits(fit_gram(case, steps=3), fit_gram(case, steps=3, descending=True))


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_model_alone_is_the_same_as_among_others(case):
    assert_alone_as_among_others("gram", case)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_diverged_model_is_left_as_it_was_and_harms_no_other(case):
    assert_divergence_harms_no_other("gram", case)


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 1), (1, 9), (2, 1), (4, 4), (31, 8), (32, 9), (40, 3), (41, 40), (64, 12), (88, 8), (93, 2)],
)
@pytest.mark.parametrize("p", [0.0, 0.03, 0.12])
def test_sizes_at_the_borders_of_blocks(n, m, p):
    assert_follows_in_any_order("gram", n, m, p)
