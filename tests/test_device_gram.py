"""The Gram form's CUDA source (csrc/cuda/gram/train_gram.cuh), run on the host: it computes what the
reference does, and nothing but the model itself decides a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FitCase
from device_kit import device_regime, device_source
from gpu_kit import GRAM
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
    tensors_of,
)

import toykern as tk
from toykern.training.optim import SGD


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


def fit_gram(case: FitCase, *, descending: bool = False, **options):
    with device_source("gram", descending=descending):
        return fit_case(case, **options)


def fit_small(case: FitCase, **options):
    with device_source("small"):
        return fit_case(case, **options)


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
    seeds = torch.arange(case.n_models) * 7 + 3
    among = tensors_of(fit_gram(case, steps=3, seed=seeds))
    stack = model_of(case)
    for i in (0, 3):
        p = case.probability[i] if isinstance(case.probability, list) else case.probability
        model = type(stack)(case.n_features, case.n_hidden, 1)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(stack.get_parameter(name)[i : i + 1])
        options = {"optimizer": case.optimizer, "seed": seeds[i : i + 1], "progress": False}
        with device_source("gram"):
            run = tk.fit(model, data_of(replace(case, probability=p)), 3, case.batch_size, **options)
        for name, value in tensors_of(run).items():
            assert torch.equal(value[0], among[name][i]), (i, name)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_diverged_model_is_left_as_it_was_and_harms_no_other(case):
    seeds = torch.arange(case.n_models)
    whole = fit_gram(case, steps=4, seed=seeds)
    poisoned = model_of(case)
    with torch.no_grad():
        next(iter(poisoned.parameters()))[2] = torch.inf
    before = next(iter(poisoned.parameters()))[2].clone()
    with device_source("gram"):
        run = tk.fit(
            poisoned, data_of(case), 4, case.batch_size, optimizer=case.optimizer, seed=seeds, progress=False
        )
    assert run.diverged_at.tolist() == [-1, -1, 0, -1, -1]
    assert torch.equal(next(iter(run.model.parameters()))[2], before)
    others = torch.tensor([0, 1, 3, 4])
    assert_same_bits(run, whole, others, others)


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 1), (1, 9), (2, 1), (4, 4), (31, 8), (32, 9), (40, 3), (41, 40), (64, 12), (88, 8), (93, 2)],
)
@pytest.mark.parametrize("p", [0.0, 0.03, 0.12])
def test_sizes_at_the_borders_of_blocks(n, m, p):
    case = FitCase("border", n, m, p, 67, n_models=2, optimizer=SGD(lr=0.01, momentum=0.5))
    assert_same_bits(fit_gram(case, steps=2), fit_gram(case, steps=2, descending=True))
    expected = reference_of(case, 2)
    for name, value in fit_gram(case, steps=2).model.named_parameters():
        assert relative_error(value, expected.parameters[name]).max() <= TRAJECTORY, name
