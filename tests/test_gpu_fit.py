"""On a GPU: `fit` and `evaluate` compute what the float64 reference does (the tolerance rule of the CPU)."""

from __future__ import annotations

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from device_kit import device_regime
from gpu_kit import DEVICE, LARGE, SMALL, TINY, VARIED, fit_on_gpu, ids
from kit import batches_of, data_of, model_of, plain_pytorch_loss, reference_of, worst_errors

import toykern as tk
from toykern import reference
from toykern.optim import SGD
from toykern.reference import record_means

pytestmark = pytest.mark.gpu

FLOOR = 1e-6  # of a float32 evaluation, relative
TRAJECTORY = 1e-4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the reference is quickest so


def test_the_cases_reach_every_regime():
    for cases, regime in ((TINY, "tiny"), (SMALL, "small"), (LARGE, "large")):
        for case in cases:
            assert device_regime(model_of(case), case.batch_size) == regime, case.name


def _error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Length of the difference over that of what is expected, for each model."""
    difference = (actual.detach().cpu().double() - expected).reshape(len(expected), -1).norm(dim=1)
    return torch.where(difference > 0, difference / expected.reshape(len(expected), -1).norm(dim=1), 0.0)


@pytest.mark.parametrize("case", [*FIT_CASES, *FIT_LARGE, *FIT_LONG], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case: FitCase):
    """Loss and gradients: with momentum and no decay, the buffer after the first step is the gradient."""
    model = model_of(case)
    x, clean = batches_of(data_of(case), case.batch_size, None, case.n_models)(0)
    loss, gradients = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), clean=clean, **case.loss
    )
    torch_loss = plain_pytorch_loss(case, model, x, clean)
    torch_loss.sum().backward()
    allowed = {name: 2 * _error(model.get_parameter(name).grad, g) + FLOOR for name, g in gradients.items()}
    run = fit_on_gpu(case, steps=1, optimizer=SGD(lr=1.0, momentum=0.9), schedule="constant")
    assert (_error(run.loss[:, 0], loss) <= 2 * _error(torch_loss, loss) + FLOOR).all()
    for name, expected in gradients.items():
        error = _error(run.optimizer_state[f"{name}/momentum_buffer"], expected)
        assert (error <= allowed[name]).all(), (name, error, allowed[name])


@pytest.mark.parametrize("case", FIT_CASES, ids=ids)
def test_training_follows_the_reference(case: FitCase):
    expected = reference_of.__wrapped__(case)
    run = fit_on_gpu(case, record_every=7)
    run.model.cpu()
    errors = worst_errors(run.model, expected.parameters)
    assert max(errors.values()) <= TRAJECTORY, errors
    assert (run.diverged_at.cpu() == -1).all()
    means = record_means(expected.losses, 7)
    # Where a loss falls to nothing its own rounding is all that is left of it.
    assert ((run.loss.cpu() - means).abs() <= TRAJECTORY * means + 1e-6 * means[:, :1]).all()
    assert run.optimizer_state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        scale = value.flatten(1).abs().amax(1)
        if name.endswith("/exp_avg"):  # averages gradients of either sign: their size is in the other moment
            scale = expected.state[f"{name}_sq"].flatten(1).amax(1).sqrt()
        difference = (run.optimizer_state[name].cpu().double() - value).flatten(1).abs().amax(1)
        assert (difference <= TRAJECTORY * scale).all(), (name, difference / scale)


@pytest.mark.parametrize("case", FIT_LARGE[:5], ids=ids)
def test_twenty_steps_of_large_models_follow_the_reference(case: FitCase):
    expected = reference_of.__wrapped__(case, steps=20)
    run = fit_on_gpu(case, steps=20)
    run.model.cpu()
    errors = worst_errors(run.model, expected.parameters)
    assert max(errors.values()) <= TRAJECTORY, errors


@pytest.mark.parametrize("case", VARIED, ids=ids)
def test_evaluation_is_that_of_the_reference(case: FitCase):
    losses = []
    data = data_of(case)
    for step in range(2):
        draw = {"n_models": case.n_models, "purpose": "evaluation"}
        losses.append(
            reference.loss_and_gradients(
                reference.parameters_of(model_of(case)), data.sample(step, 4096, **draw),
                reference.network_of(model_of(case)),
                clean=data.sample(step, 4096, clean=True, **draw), **case.loss,
            )[0]
        )  # fmt: skip
    loss = tk.evaluate(model_of(case).to(DEVICE), data, 8192, **case.loss)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.cpu(), torch.stack(losses).mean(0), rtol=1e-5, atol=1e-12)
    on_cpu = tk.evaluate(model_of(case), data, 8192, **case.loss)
    torch.testing.assert_close(loss.cpu(), on_cpu, rtol=1e-5, atol=1e-12)
