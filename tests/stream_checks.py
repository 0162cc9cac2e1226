"""How surprising a batch is: p-values for what docs/data_stream.md says of its distribution.

Every function takes what was drawn and what was asked for and returns one p-value: an upper bound on the
chance that a right generator gives something at least this extreme (chi-square and correlation: the usual
large-sample approximation, with no expected count below 25). The bounds hold for any sample size:

* counts: the Chernoff–Hoeffding bound, 2·exp(−N·KL(observed ‖ expected)), also for sums of unequal gates;
* distribution functions: Dvoretzky–Kiefer–Wolfowitz with Massart's constant, 2·exp(−2·N·D²);
* many at once: Bonferroni, the smallest p-value times their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

LEAST_EXPECTED = 25
LARGEST_EXPONENT = 700.0


def bonferroni(*p_values: np.ndarray | float) -> float:
    """One p-value for all of these."""
    p = np.concatenate([np.ravel(x) for x in p_values])
    return float(min(1.0, p.size * p.min()))


def count_p_values(count: np.ndarray, trials: int, probability: np.ndarray) -> np.ndarray:
    """For counts of independent events of (mean) `probability` among `trials`; arrays broadcast."""
    observed, expected = np.broadcast_arrays(np.asarray(count) / trials, np.asarray(probability, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        active = np.where(observed > 0, observed * np.log(observed / expected), 0.0)
        idle = np.where(observed < 1, (1 - observed) * np.log((1 - observed) / (1 - expected)), 0.0)
    exponent = np.clip(trials * (active + idle), 0.0, None)
    exponent = np.where(np.isfinite(exponent), exponent, np.inf)  # impossible: active at 0 or idle at 1
    return np.minimum(1.0, 2 * np.exp(-exponent))


def rates(active: np.ndarray, probability: np.ndarray) -> float:
    """bool [samples, n], independent, with these probabilities [n]: every feature's rate, and that of all."""
    return count_rates(active.sum(axis=0), len(active), probability)


def count_rates(count: np.ndarray, samples: int, probability: np.ndarray) -> float:
    """As `rates`, from the number of times that each feature was active."""
    together = count_p_values(count.sum(), samples * len(count), np.mean(probability))
    return bonferroni(count_p_values(count, samples, probability), together)


def together(first: np.ndarray, second: np.ndarray, probability: np.ndarray, same: bool = False) -> float:
    """Every pair (i of `first`, j of `second`), bool [samples, n] each, occurs together at p_i·p_j.

    `same`: both are the same samples, and only pairs i < j are asked about.
    """
    samples, n = first.shape
    count = first.astype(np.float32).T @ second.astype(np.float32)  # exact: below 2²⁴
    assert samples < 2**24
    p = count_p_values(count, samples, np.outer(probability, probability))
    return bonferroni(p[np.triu_indices(n, 1)] if same else p)


def at_lag(active: np.ndarray, lag: int, probability: np.ndarray) -> float:
    """Independence of samples `lag` apart, over disjoint pairs of samples."""
    blocks = active[: len(active) // (2 * lag) * 2 * lag].reshape(-1, 2, lag, active.shape[1])
    first, second = (blocks[:, side].reshape(-1, active.shape[1]) for side in (0, 1))
    return together(first, second, probability)


def chi_square(observed: np.ndarray, expected: np.ndarray, fixed_totals: int = 1) -> float:
    """Counts against expected counts with the same total; `fixed_totals` of them are given, not drawn.

    Cells that are expected less than 25 times are taken together.
    """
    observed, expected = np.ravel(observed).astype(np.float64), np.ravel(expected).astype(np.float64)
    if np.any(observed[expected == 0]):
        return 0.0
    small = expected < LEAST_EXPECTED
    if small.any():
        observed = np.append(observed[~small], observed[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
        if expected[-1] < LEAST_EXPECTED:  # still too few: one with the smallest of the others
            smallest = expected[:-1].argmin()
            observed[smallest] += observed[-1]
            expected[smallest] += expected[-1]
            observed, expected = observed[:-1], expected[:-1]
    freedom = len(expected) - fixed_totals
    assert freedom > 0, "too few samples for a chi-square"
    statistic = np.sum((observed - expected) ** 2 / expected)
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def patterns(active: np.ndarray, probability: np.ndarray) -> float:
    """All 2ⁿ joint patterns of a few independent gates, bool [samples, n]."""
    samples, n = active.shape
    observed = np.bincount(active @ (1 << np.arange(n)), minlength=2**n)
    expected = np.ones(1)
    for p in probability[::-1]:
        expected = np.outer(expected, [1 - p, p]).ravel()
    return chi_square(observed, samples * expected)


def active_numbers(active: np.ndarray, probability: np.ndarray) -> float:
    """The number of active features in a sample is Poisson-binomial."""
    expected = np.ones(1)
    for p in probability:
        expected = np.convolve(expected, [1 - p, p])
    expected = np.clip(expected, 0.0, None)
    observed = np.bincount(active.sum(axis=1), minlength=len(expected))
    return chi_square(observed, len(active) * expected)


def distribution(values: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov–Smirnov distance of values to a continuous distribution."""
    x = np.sort(np.asarray(values, np.float64), axis=None)
    n = len(x)
    exact = cdf(x)
    distance = max(np.max(np.arange(1, n + 1) / n - exact), np.max(exact - np.arange(n) / n))
    return min(1.0, 2 * math.exp(-min(LARGEST_EXPONENT, 2 * n * distance**2)))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(np.asarray(x, np.float64))).numpy()


MAGNITUDE_CDF = {
    "uniform": lambda x: np.clip(x, 0, 1),
    "symmetric": lambda x: np.clip((x + 1) / 2, 0, 1),
    "half_normal": lambda x: np.where(x > 0, 2 * normal_cdf(x) - 1, 0.0),
    "exponential": lambda x: -np.expm1(-np.maximum(x, 0)),
    "lognormal": lambda x: normal_cdf(np.log(np.maximum(x, 1e-30))),
}


def _eighths(values: np.ndarray, magnitude: str) -> np.ndarray:
    """Which eighth of its distribution a magnitude lies in."""
    return np.minimum(7, (8 * MAGNITUDE_CDF[magnitude](values.astype(np.float64))).astype(np.int64))


def independent_values(first: np.ndarray, second: np.ndarray, magnitude: str) -> float:
    """Pairs of magnitudes: uniform on an 8×8 table of eighths."""
    table = np.bincount(8 * _eighths(first, magnitude) + _eighths(second, magnitude), minlength=64)
    return chi_square(table, np.full(64, len(first) / 64))


def values_by_label(label: np.ndarray, values: np.ndarray, magnitude: str) -> float:
    """Magnitudes have the same distribution whatever the label (feature, number of active features, …)."""
    table = np.zeros((int(label.max()) + 1, 8))
    np.add.at(table, (label, _eighths(values, magnitude)), 1)
    table = table[table.sum(axis=1) >= 8 * LEAST_EXPECTED]
    expected = np.repeat(table.sum(axis=1, keepdims=True) / 8, 8, axis=1)
    return chi_square(table, expected, fixed_totals=len(table))


def uncorrelated(first: np.ndarray, second: np.ndarray) -> float:
    """Pairs of zero-mean values: their correlation, for large samples normal."""
    a, b = (np.ravel(x).astype(np.float64) for x in (first, second))
    z = np.sum(a * b) / math.sqrt(np.sum(a * a) * np.sum(b * b)) * math.sqrt(len(a))
    return math.erfc(abs(z) / math.sqrt(2))


def repeated_values(first: np.ndarray, second: np.ndarray) -> int:
    """How many entries are active in two batches with the very same magnitude: by chance, almost never."""
    return int(np.count_nonzero((first == second) & (first != 0)))
