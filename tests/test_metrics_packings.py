"""Packings: interference beside a root found numerically, slopes beside differences, the best k by a scan."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from toykern import metrics


def _root(n, d, k):
    demand = 4 * k * math.log(n / k) / d
    return brentq(lambda e: e**2 / 2 - e**3 / 3 - demand, 0, 1, xtol=1e-300, rtol=1e-15)


@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(1000, 400, 1), (1000, 400, 2), (1000, 170, 1), (50, 10_000, 3), (10**6, 10**7, 5.5), (10, 1e6, 9.99)],
)
def test_interference_is_the_root(n, d, k):
    got = float(metrics.packing_interference(n, d, k))
    assert got == pytest.approx(_root(n, d, k), rel=1e-13)
    assert d / k == pytest.approx(4 * math.log(n / k) / (got**2 / 2 - got**3 / 3), rel=1e-12)


def test_small_interference_has_all_its_digits():
    """ε = √(2c) (1 + √(2c)/3 + …) for a small demand c."""
    demand = 4 * math.log(1e6) / 1e20
    small = math.sqrt(2 * demand)
    assert float(metrics.packing_interference(1e6, 1e20)) == pytest.approx(small * (1 + small / 3), rel=1e-15)


def test_where_there_is_no_root_and_where_it_is_1():
    n = math.e**2
    assert float(metrics.packing_interference(n, 48 * (1 + 1e-12))) == pytest.approx(1, abs=1e-5)
    assert np.isnan(metrics.packing_interference(n, 48 * (1 - 1e-12)))
    assert np.isnan(metrics.packing_loss(n, 40)) and np.isnan(metrics.packing_slope(n, 40))
    assert np.isnan(metrics.packing_loss(n, 40, moment=0)) and np.isnan(
        metrics.packing_slope(n, 40, moment=0)
    )
    assert np.isnan(metrics.best_packing(10**6, 10))


def test_one_feature_a_subspace_does_not_interfere():
    assert float(metrics.packing_interference(7, 9, 7)) == 0
    assert float(metrics.packing_loss(7, 9, 7)) == 0
    assert float(metrics.packing_loss(7, 9, 7, moment=0)) == 7
    assert float(metrics.packing_slope(7, 9, 7, moment=1)) == -np.inf
    assert float(metrics.packing_slope(7, 9, 7, moment=2)) == pytest.approx(-2 * 4 * 7 / 9)
    assert float(metrics.packing_slope(7, 9, 7, moment=3)) == 0


def test_loss_by_its_definition():
    k, p = np.array([1.0, 2.0])[:, None], np.array([0.0, 1.0, 2.5])
    got = metrics.packing_loss(1000, 400, k, p)
    expected = 1000**2 / k * metrics.packing_interference(1000, 400, k) ** p
    np.testing.assert_allclose(got, expected)
    assert got.shape == (2, 3) and metrics.best_packing(1000, 400, p).shape == (3,)


@pytest.mark.parametrize("moment", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize(("n", "d", "k"), [(1000, 400, 1.5), (10**5, 10**4, 20.0), (20, 10_000, 15.0)])
def test_the_slope_beside_differences(n, d, k, moment):
    h = 1e-4 * k
    at = metrics.packing_loss(n, d, k + h * np.array([-2.0, -1.0, 1.0, 2.0]), moment)
    difference = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    assert float(metrics.packing_slope(n, d, k, moment)) == pytest.approx(difference, rel=1e-8)


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.5, 1.0, 1.5, 1.9, 2.0, 2.1, 2.5, 3.0, 4.0])
@pytest.mark.parametrize(
    ("n", "d"), [(1000, 400), (10**5, 10**4), (30, 100), (20, 1000), (10, 9.9), (2, 3), (1, 5), (300, 299)]
)
def test_the_best_packing_beside_a_scan(n, d, moment):
    scan = np.unique(np.concatenate([np.geomspace(1, min(n, d), 20_001), np.linspace(1, min(n, d), 20_001)]))
    scan = scan[(scan >= 1) & (scan <= min(n, d))]
    losses = metrics.packing_loss(n, d, scan, moment)
    best = float(metrics.best_packing(n, d, moment))
    if np.isnan(losses).all():
        assert math.isnan(best)
        return
    assert 1 <= best <= min(n, d)
    loss = float(metrics.packing_loss(n, d, best, moment))
    assert loss <= np.nanmin(losses) * (1 + 1e-12)
    slope = float(metrics.packing_slope(n, d, best, moment))
    inside = 1 < best < min(n, d) and float(metrics.packing_interference(n, d, best)) < 1 - 1e-6
    if inside:
        beside = metrics.packing_slope(n, d, best * np.array([1 - 1e-6, 1 + 1e-6]), moment)
        assert beside[0] < 0 < beside[1] and abs(slope) <= np.abs(beside).max()


def test_many_subspaces_for_low_moments_and_one_for_high_ones():
    best = metrics.best_packing(10**5, 10**4, [1.0, 2.0, 3.0, 4.0])
    assert (np.diff(best) <= 0).all() and best[0] > 10 and best[-1] == 1


def test_the_loss_itself_may_be_too_small_for_a_double():
    assert float(metrics.packing_loss(1000, 400, 1, moment=5000)) == 0
    assert float(metrics.best_packing(1000, 400, moment=5000)) == 1
    assert float(metrics.best_packing(30, 1e6, moment=5000)) == 30  # where nothing interferes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0.5, "d": 5}, "n must be finite and at least 1"),
        ({"n": 5, "d": math.inf}, "d must be finite and at least 1"),
        ({"n": 50, "d": 5, "k": 6}, "k must be from 1 to the smaller of n and d"),
        ({"n": 5, "d": 50, "k": [1, 6]}, "k must be from 1 to the smaller of n and d"),
        ({"n": 5, "d": 50, "k": 0.5}, "k must be finite and at least 1"),
        ({"n": [5, 6], "d": [5, 6, 7]}, "n, d, k must broadcast with each other"),
    ],
)
def test_bad_packings(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.packing_interference(**arguments)


def test_bad_moments():
    for function in (metrics.packing_loss, metrics.packing_slope, metrics.best_packing):
        with pytest.raises(ValueError, match="moment must be finite and at least 0"):
            function(100, 50, moment=-1)
