"""`tk.zipf`: probabilities by a power law, with the mean number of active features that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk


def test_without_a_clamp_it_is_the_power_law():
    p = tk.zipf(1000, exponent=1.1, mean_active=2.5)
    assert p.dtype == torch.float64 and p.shape == (1000,)
    weight = np.arange(1, 1001) ** -1.1
    np.testing.assert_allclose(p.numpy(), 2.5 * weight / weight.sum(), rtol=1e-12)


def test_what_would_exceed_one_is_always_active_and_the_others_make_up_for_it():
    """1 : 1/2 : 1/3 : 1/4 with 2.5 active: the first always, then 1.5 shared out as 6 : 4 : 3."""
    p = tk.zipf(4, exponent=1.0, mean_active=2.5)
    np.testing.assert_allclose(p.numpy(), [1, 9 / 13, 6 / 13, 4.5 / 13], rtol=1e-15)


@given(
    n=st.integers(1, 300),
    exponent=st.one_of(st.floats(0, 5), st.sampled_from([0.0, 1.0, 300.0])),
    share=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5])),
)
def test_the_mean_is_exact_and_the_shape_that_of_the_power_law(n, exponent, share):
    mean = share * n
    p = tk.zipf(n, exponent, mean).numpy()
    assert np.all((p >= 0) & (p <= 1)) and np.all(np.diff(p) <= 0)
    assert math.fsum(p) == pytest.approx(mean, rel=1e-12, abs=1e-300)
    free = np.flatnonzero((p < 1) & (p > 1e-200))
    if len(free) > 1:  # those that are not always active follow the law
        ratio = (p[free[1:]] / p[free[0]]) / ((free[1:] + 1) / (free[0] + 1)) ** -exponent
        np.testing.assert_allclose(ratio, 1, rtol=1e-9)


def test_a_row_for_each_model():
    p = tk.zipf(7, exponent=[0.0, 1.0, 2.0], mean_active=[1, 2, 3])
    assert p.shape == (3, 7)
    for row, exponent, mean in zip(p, (0.0, 1.0, 2.0), (1, 2, 3), strict=True):
        assert torch.equal(row, tk.zipf(7, exponent, mean))
    assert torch.equal(tk.zipf(7, [1.0], 2), tk.zipf(7, 1.0, 2)[None])
    assert tk.SparseFeatures(7, p).n_models == 3


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("n_features", 0, "n_features"),
        ("n_features", 2.5, "n_features"),
        ("exponent", -0.1, "exponent must be at least 0, not -0.1"),
        ("exponent", math.nan, "exponent must be at least 0, not nan"),
        ("exponent", math.inf, "exponent must be at least 0, not inf"),
        ("exponent", [[1.0]], "exponent must be one number or one for each model"),
        ("exponent", "steep", "exponent"),
        ("mean_active", -1, "mean_active must be from 0 to n_features = 4, not -1"),
        ("mean_active", 4.5, "mean_active must be from 0 to n_features = 4, not 4.5"),
        ("mean_active", [], "mean_active must be one number or one for each model"),
        (
            "mean_active",
            [1.0, 2.0, 3.0],
            "mean_active must be one number, or one for each of the 2 of exponent",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(argument, value, said):
    given = {"n_features": 4, "exponent": [1.0, 2.0], "mean_active": 1.0, argument: value}
    with pytest.raises((ValueError, TypeError), match=said):
        tk.zipf(**given)
