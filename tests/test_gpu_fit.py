"""On a GPU: `fit` and `evaluate` compute what the float64 reference does (the tolerance rule of the CPU)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from device_kit import device_regime
from gpu_kit import (
    ACTIVATIONS,
    DEVICE,
    EVERY_SMALL,
    EVERY_TINY,
    GRAM,
    LARGE,
    LARGE_DATA,
    LARGE_TILES,
    LARGE_TILES_CALLED,
    LONGEST,
    NOTHING_ACTIVE,
    OTHER_TINY,
    PIECES,
    SHARED_BY_WARPS,
    SMALL,
    TINY,
    VARIED,
    fit_on_gpu,
    ids,
)
from kit import (
    TRAJECTORY,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    data_of,
    model_of,
    reference_of,
    worst_errors,
)

import toykern as tk
from toykern import reference

pytestmark = pytest.mark.gpu
EVALUATED = [
    *FIT_CASES, *FIT_LARGE, *FIT_LONG, LARGE_TILES, LARGE_TILES_CALLED, *LONGEST, *LARGE_DATA, *ACTIVATIONS,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the reference is quickest so


def test_the_cases_reach_every_regime():
    assert [device_regime(model_of(c), c.batch_size) for c in ACTIVATIONS] == ["small"] * 3 + ["large"]
    others = (
        ([NOTHING_ACTIVE, *PIECES, *EVERY_SMALL, *SHARED_BY_WARPS, *GRAM], "small"),
        ([LARGE_TILES, LARGE_TILES_CALLED, *LONGEST, *LARGE_DATA], "large"),
    )
    tiny = [*TINY, *OTHER_TINY, *EVERY_TINY]
    for cases, regime in ((tiny, "tiny"), (SMALL, "small"), (LARGE, "large"), *others):
        for case in cases:
            assert device_regime(model_of(case), case.batch_size) == regime, case.name


@pytest.mark.parametrize("case", EVALUATED, ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case: FitCase):
    assert_as_exact_as_pytorch(case, partial(fit_on_gpu, case))


@pytest.mark.parametrize(
    "case", [*FIT_CASES, NOTHING_ACTIVE, *PIECES, *EVERY_TINY, *EVERY_SMALL, *GRAM], ids=ids
)
def test_training_follows_the_reference(case: FitCase):
    assert_follows_the_reference(case, fit_on_gpu(case, record_every=7))


@pytest.mark.parametrize("case", FIT_LARGE[:5], ids=ids)
def test_twenty_steps_of_large_models_follow_the_reference(case: FitCase):
    expected = reference_of.__wrapped__(case, steps=20)
    errors = worst_errors(fit_on_gpu(case, steps=20).model, expected.parameters)
    assert max(errors.values()) <= TRAJECTORY, errors


@pytest.mark.parametrize(
    "case",
    [*VARIED, *OTHER_TINY, *EVERY_TINY, NOTHING_ACTIVE, LARGE_TILES, *SHARED_BY_WARPS, *ACTIVATIONS],
    ids=ids,
)
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


@pytest.mark.parametrize("case", PIECES, ids=ids)
def test_evaluation_of_every_piece_is_that_of_the_reference(case: FitCase):
    """Decoders cut into every size of piece, for samples that fill no tile."""
    model, data = model_of(case), data_of(case)
    x = data.sample(0, 70, n_models=case.n_models, purpose="evaluation")
    expected, _ = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), **case.loss
    )
    found = tk.evaluate(model.to(DEVICE), data, 70, **case.loss)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-12)
