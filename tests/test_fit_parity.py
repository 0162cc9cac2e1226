"""`fit` computes what the float64 reference does on the very same batches, at every instruction-set level.

Single evaluations are as exact as float32 PyTorch's (DESIGN §8), trajectories of hundreds of steps stay
within 1e-4 of the reference's weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import FIT_CASES, FIT_FORMS, FIT_GRAM, FIT_JOINT, FIT_LARGE, FIT_LONG, FitCase
from drawn_cases import small_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import (
    LEVELS,
    TRAJECTORY,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    fit_case,
    forms_of,
    isa_level,
    reference_of,
    regime_of,
    relative_error,
)

import toykern as tk
from toykern import _native


def ids(case: FitCase) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(
        1
    )  # the reference is quickest so; what more threads do is test_fit_invariances.py's


def test_the_cases_reach_both_loops_and_their_names_differ():
    assert {regime_of(case) for case in FIT_CASES} == {"columns", "tiles"}


def test_the_form_follows_from_the_model_s_own_distribution():
    for case in FIT_GRAM:
        assert forms_of(case) == ["gram"] * case.n_models, case.name
    # What it does not do, and where it does not pay: frequent features, noise, codes that are not linear,
    # many features, few samples; one model's own density among others.
    for probability, expected in ((0.5, "tiles"), (0.03, "gram"), (0.0005, "tiles")):
        assert forms_of(replace(FIT_GRAM[0], probability=probability)) == [expected] * 3
    densities = [[0.5] * 40, [0.03] * 40, [0.03] * 39 + [0.2]]
    assert forms_of(replace(FIT_GRAM[0], probability=densities)) == ["tiles", "gram", "tiles"]
    for other in (
        {"features": {"noise": 0.1}},
        {"network": {"hidden_activation": "relu"}},
        {"batch_size": 8},
        {"n_features": 520, "n_hidden": 200, "probability": 0.01, "batch_size": 2000},
    ):
        assert forms_of(replace(FIT_GRAM[0], **other)) == ["tiles"] * 3, other


@pytest.mark.parametrize("case", FIT_FORMS[:2], ids=ids)
def test_models_of_a_small_network_take_different_forms(case):
    assert forms_of(case) == ["tiles", "gram", "columns"]


@pytest.mark.parametrize("form", ["columns", "tiles", "gram"])
def test_a_form_may_be_forced(form):
    case = replace(FIT_FORMS[0], probability=0.02, name=f"forced {form}")
    try:
        _native.force_form(form)
        assert forms_of(case) == [form] * 3
        assert_follows_the_reference(case, fit_case(case, record_every=7))
        # Where it cannot be taken, the cheapest of the others is.
        assert forms_of(replace(case, n_hidden=9, network={"hidden_activation": "relu"})) == ["tiles"] * 3
    finally:
        _native.force_form("any")
    assert forms_of(case) == ["gram"] * 3
    with pytest.raises(ValueError, match="not cheap"):
        _native.force_form("cheap")


def test_every_level_takes_the_same_form():
    case = replace(FIT_GRAM[0], probability=[[p] * 40 for p in (0.001, 0.002, 0.005, 0.01, 0.1)], n_models=5)
    found = []
    for level in LEVELS:
        with isa_level(level):
            found.append(forms_of(case))
    assert found == [found[0]] * len(LEVELS)
    assert set(found[0]) == {"tiles", "gram"}
    names = [case.name for case in (*FIT_CASES, *FIT_GRAM, *FIT_JOINT, *FIT_LARGE, *FIT_LONG)]
    assert len(set(names)) == len(names)


# One evaluation


def _fit_at(level: str, case: FitCase, **options) -> tk.Run:
    with isa_level(level):
        return fit_case(case, **options)


@pytest.mark.parametrize("case", [*FIT_CASES, *FIT_GRAM, *FIT_JOINT, *FIT_LARGE, *FIT_LONG], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case):
    assert_as_exact_as_pytorch(case, *(partial(_fit_at, level, case) for level in LEVELS))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m"), [(5, 2), (17, 9)])
def test_the_slope_of_relu_at_zero_is_zero(n, m, level):
    """All activations are exactly 0: nothing moves through a ReLU, everything through none."""
    for options, moving in (
        ({"output_activation": "none"}, {"decoder": False, "encoder": True, "bias": True}),
        ({"output_activation": "relu"}, {"decoder": False, "encoder": False, "bias": False}),
        (
            {"output_activation": "none", "hidden_activation": "relu"},
            {"decoder": False, "encoder": False, "bias": True},
        ),
    ):
        model = tk.Autoencoder(n, m, **options)
        with torch.no_grad():
            model.encoder.zero_()
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        with isa_level(level):
            tk.fit(model, tk.SparseFeatures(n, 1.0), 1, 40, tk.SGD(lr=1.0), progress=False)
        for name, moves in moving.items():
            assert torch.equal(model.get_parameter(name), start[name]) != moves, (options, name)


# Hundreds of steps


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*FIT_CASES, *FIT_GRAM, *FIT_JOINT], ids=ids)
def test_training_follows_the_reference(case, level):
    with isa_level(level):
        assert_follows_the_reference(case, fit_case(case, record_every=7))


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*FIT_CASES, *FIT_GRAM, *FIT_JOINT, *FIT_LARGE], ids=ids)
def test_a_few_steps_of_many_cases(case, level):
    """What the sanitizers see: short, and without the reference."""
    with isa_level(level):
        run = fit_case(case, steps=3, record_every=2, schedule="constant")
    assert run.loss.isfinite().all() and (run.diverged_at == -1).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["columns", "tiles", "gram"])
def test_a_few_steps_in_every_form(form, level):
    """What the sanitizers see, of forms that a model's costs would not pick too; 70 samples fill no lanes."""
    case = replace(FIT_FORMS[1], probability=0.03, name=f"forced {form}")
    try:
        _native.force_form(form)
        assert forms_of(case) == [form] * case.n_models
        with isa_level(level):
            for batch_size in (1, 70):
                run = fit_case(replace(case, batch_size=batch_size), steps=3, record_every=2)
                assert run.loss.isfinite().all() and (run.diverged_at == -1).all()
    finally:
        _native.force_form("any")


# Any shape, any option


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(case=small_cases(), level=st.sampled_from(LEVELS))
def test_any_shape_and_options_take_the_steps_of_the_reference(case, level):
    expected = reference_of.__wrapped__(case)
    with isa_level(level):
        run = fit_case(case, record_every=1)
    for name, value in run.model.named_parameters():
        assert (relative_error(value, expected.parameters[name]) <= TRAJECTORY).all(), name
    assert (run.loss - expected.losses).abs().max() <= 1e-5 * max(1e-3, expected.losses.max())
    assert math.isfinite(run.loss.sum())
