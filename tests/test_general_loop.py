"""The general loop against the float64 reference: any member of the family with any option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn_members import STEPS, assert_follows, fit_member, members
from hypothesis import given, settings
from kit import LEVELS, isa_level

import toykern as tk
from toykern import _native
from toykern.training.kernels import network_params

pytestmark = pytest.mark.sanitize


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(member=members())
def test_every_member_follows_the_reference(member, level):
    with isa_level(level):
        run = fit_member(member)
    assert_follows(member, run)


@settings(max_examples=40)
@given(member=members())
def test_a_model_is_the_same_alone_and_by_two_threads(member):
    together = fit_member(member)
    before = torch.get_num_threads()
    for i in range(2):
        torch.set_num_threads(3 - before if before < 3 else 1)
        try:
            alone = tk.fit(
                member.model()[i], member.data(), steps=STEPS, record_every=1, seed=5 + i, progress=False,
                **(member.fit | _row(member.fit, i)),
            )  # fmt: skip
        finally:
            torch.set_num_threads(before)
        assert torch.equal(alone.loss[0], together.loss[i])
        for name, value in alone.model.named_parameters():
            assert torch.equal(value[0], together.model.get_parameter(name)[i]), name


def _row(told: dict[str, Any], i: int) -> dict[str, Any]:
    importance = told["importance"]
    return {"importance": importance[i] if isinstance(importance, list) else importance}


@settings(max_examples=25)
@given(member=members())
def test_an_interrupted_run_goes_on_with_the_same_bits(member):
    whole = fit_member(member)
    begun = fit_member(member, stop_at=1)
    tk.fit(resume=begun, progress=False)
    assert torch.equal(begun.loss, whole.loss)
    for name, value in begun.model.named_parameters():
        assert torch.equal(value, whole.model.get_parameter(name)), name


def test_the_loops_of_autoencoders_take_what_they_took():
    plain = tk.MLP(5, 2, hidden_activation="none", output_activation="relu", hidden_bias=False, tied=True)
    assert _native.regime(network_params(plain.network)) == "columns"
    wide = tk.MLP(100, 40, hidden_activation="gelu", hidden_bias=False)
    assert _native.regime(network_params(wide.network)) == "tiles"
    for options in (
        {"hidden_bias": True},
        {"embedding": 3},
        {"residual": True},
        {"hidden_activation": "solu"},
    ):
        other = tk.MLP(5, 2, **({"hidden_bias": False} | options))
        assert _native.regime(network_params(other.network)) == "general", options
    assert _native.regime(network_params(plain.network), plain=False) == "general"


@pytest.mark.parametrize("level", LEVELS)
def test_lanes_without_a_sample_take_part_in_nothing(level):
    """Their code is f(c), which is infinite here; of the samples that are there none is."""
    data = tk.Dataset(torch.ones(3, 2), torch.zeros(3, 1))
    with isa_level(level):
        model = tk.MLP(2, 3, 1, hidden_activation="x_exp", init=0.1)
        with torch.no_grad():
            model.encoder.fill_(-60.0)
            model.hidden_bias.fill_(95.0)
        run = tk.fit(model, data, 3, optimizer=tk.SGD(lr=1e-3), l1=0.1, progress=False)
    assert torch.isfinite(run.loss).all() and (run.diverged_at == -1).all()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
