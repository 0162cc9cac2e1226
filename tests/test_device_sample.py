"""The CUDA kernels' source draws the bits of docs/data_stream.md: run on the host, lanes in lock step."""

from __future__ import annotations

import pytest
import torch
from cases import STREAM_CASES, features_of
from device_kit import sample_on_host
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import MAGNITUDES

import toykern as tk


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.sanitize
@pytest.mark.parametrize("case", STREAM_CASES, ids=lambda case: case.name)
def test_device_source_draws_what_the_cpu_draws(case):
    data, batch = features_of(case.distribution), (case.step, case.batch_size, case.seed)
    assert same_bits(sample_on_host(data, *batch), data.sample(*batch, n_models=1))
    if data.noise:
        assert same_bits(
            sample_on_host(data, *batch, clean=True), data.sample(*batch, n_models=1, clean=True)
        )


@pytest.mark.parametrize("case", STREAM_CASES[::3], ids=lambda case: case.name)
def test_the_order_of_lanes_changes_nothing(case):
    data, batch = features_of(case.distribution), (case.step, case.batch_size, case.seed)
    assert same_bits(sample_on_host(data, *batch, descending=True), sample_on_host(data, *batch))


def test_models_with_probabilities_of_their_own():
    p = torch.logspace(-3, 0, 35, dtype=torch.float64).reshape(5, 7)
    data, seeds = tk.SparseFeatures(7, p), [3, 2**40, 5, 2**63 - 1, 0]
    x = sample_on_host(data, 9, 300, seeds, n_models=5)
    assert same_bits(x, data.sample(9, 300, seeds))
    assert same_bits(x[2:3], sample_on_host(tk.SparseFeatures(7, p[2]), 9, 300, 5))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.integers(1, 700),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(MAGNITUDES),
)
def test_any_distribution(p, batch_size, seed, step, magnitude):
    data = tk.SparseFeatures(len(p), p, magnitude=magnitude)
    x = sample_on_host(data, step, batch_size, seed)
    assert same_bits(x, data.sample(step, batch_size, seed, n_models=1))
