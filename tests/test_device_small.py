"""The small regime's CUDA source (csrc/cuda/train_small.cuh), run on the host: it computes what the reference
does, and nothing but the model itself decides a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from device_kit import device_regime, device_source
from kit import (
    assert_same_bits,
    batches_of,
    data_of,
    fit_case,
    model_of,
    reference_of,
    relative_error,
    tensors_of,
)

import toykern as tk
from toykern import reference
from toykern.optim import SGD, AdamW

FLOOR = 1e-6  # of a float32 evaluation, relative
TRAJECTORY = 1e-4


def ids(case: FitCase) -> str:
    return case.name


def _cases(cases: list[FitCase]) -> list[FitCase]:
    """Those that this regime can train: the tiny ones too, which a device would give to another loop."""
    return [case for case in cases if device_regime(model_of(case), case.batch_size) != "large"]


CASES = _cases([*FIT_CASES, *FIT_LARGE])
SMALL = [case for case in CASES if device_regime(model_of(case), case.batch_size) == "small"]
# A case of every kind for the checks that compare bits.
KINDS = [
    FitCase("one warp, columns", 7, 3, 0.05, 300, n_models=5),
    FitCase("two warps, columns", 20, 5, 0.02, 1024, n_models=5),
    FitCase("two warps, rows", 20, 5, [[0.05], [0.3], [0.9], [0.01], [0.125]], 100, n_models=5),
    FitCase("four warps, columns", 33, 17, 0.06, 150, n_models=5),
    FitCase("four warps, groups", 60, 9, 0.02, 100, n_models=5, correlated=((0, 5), (7, 9, 3))),
    FitCase("eight warps, columns", 100, 24, 0.02, 130, n_models=5),
    FitCase("eight warps, noise", 100, 24, 0.02, 70, n_models=5, features={"noise": 0.1}, tied=False),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def fit_small(case: FitCase, *, descending: bool = False, **options):
    with device_source("small", descending=descending):
        return fit_case(case, **options)


def _error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    difference = (actual.detach().double() - expected).reshape(len(expected), -1).norm(dim=1)
    return torch.where(difference > 0, difference / expected.reshape(len(expected), -1).norm(dim=1), 0.0)


def test_the_cases_reach_every_block_size():
    assert len(SMALL) > 40
    assert {device_regime(model_of(case), case.batch_size) for case in KINDS} == {"small"}


@pytest.mark.parametrize("case", [*CASES, *_cases(FIT_LONG[3:])], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case):
    model = model_of(case)
    x, clean = batches_of(data_of(case), case.batch_size, None, case.n_models)(0)
    loss, gradients = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), clean=clean, **case.loss
    )
    options = dict(case.loss)
    if options.pop("target", "identity") == "abs":
        clean = clean.abs()
    torch_loss = model.loss(x, target=clean, **options)
    torch_loss.sum().backward()
    # With momentum and no decay, the buffer after the first step is the gradient.
    run = fit_small(case, steps=1, optimizer=SGD(lr=1.0, momentum=0.9), schedule="constant")
    allowed = 2 * _error(torch_loss, loss) + FLOOR
    assert (_error(run.loss[:, 0], loss) <= allowed).all(), (_error(run.loss[:, 0], loss), allowed)
    for name, expected in gradients.items():
        allowed = 2 * _error(model.get_parameter(name).grad, expected) + FLOOR
        error = _error(run.optimizer_state[f"{name}/momentum_buffer"], expected)
        assert (error <= allowed).all(), (name, error, allowed)


@pytest.mark.parametrize("case", [case for case in SMALL if case.batch_size < 1000], ids=ids)
def test_steps_stay_near_the_reference(case):
    expected = reference_of(case)
    run = fit_small(case, record_every=7)
    for name, value in run.model.named_parameters():
        assert relative_error(value, expected.parameters[name]).max() <= TRAJECTORY, name
    assert (run.diverged_at == -1).all()
    means = reference.record_means(expected.losses, 7)
    assert ((run.loss - means).abs() <= TRAJECTORY * means + 1e-6 * means[:, :1]).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_the_order_of_lanes_threads_and_blocks_changes_nothing(case):
    assert_same_bits(fit_small(case, steps=3), fit_small(case, steps=3, descending=True))


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_model_alone_is_the_same_as_among_others(case):
    seeds = torch.arange(5) * 7 + 3
    among = fit_small(case, steps=3, seed=seeds)
    for i in (0, 3):
        p = case.probability[i] if isinstance(case.probability, list) else case.probability
        alone = tk.fit
        model = model_of(case)
        one = (tk.TiedAutoencoder if case.tied else tk.Autoencoder)(case.n_features, case.n_hidden, 1)
        with torch.no_grad():
            for name, value in one.named_parameters():
                value.copy_(model.get_parameter(name)[i : i + 1])
        with device_source("small"):
            run = alone(
                one,
                data_of(replace(case, probability=p, n_models=1)),
                3,
                case.batch_size,
                optimizer=case.optimizer,
                seed=seeds[i : i + 1],
                progress=False,
            )
        for name, value in tensors_of(run).items():
            assert torch.equal(value[0], tensors_of(among)[name][i]), (i, name)
