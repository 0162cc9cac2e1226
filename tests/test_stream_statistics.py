"""The data stream against the distribution it states: rates, independence, magnitudes, groups, noise.

Seeds are fixed, so a test passes or fails for good. The false alarm level is that of the choice of seeds: a
right generator fails anything in this file with probability at most FAMILY_LEVEL, shared equally (Bonferroni)
among at most MOST_CHECKS p-values. What the tests can see is shown by the wrong generators at the end, all of
them caught.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pytest
import stream_checks as checks
import stream_oracle as oracle
from stream_oracle import Distribution

FAMILY_LEVEL = 1e-3
MOST_CHECKS = 250
LEVEL = FAMILY_LEVEL / MOST_CHECKS
_asked: list[float] = []


@pytest.fixture(scope="module", autouse=True)
def _keep_within_the_family():
    """The level holds only while no more p-values are asked for than it was shared among."""
    yield
    assert len(_asked) <= MOST_CHECKS


def accept(p_value: float) -> None:
    _asked.append(p_value)
    assert p_value >= LEVEL


# ---- what is tested ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A generator: entries(dist, step, batch, seed) -> sample, feature, value; dense(...) with the noise."""

    name: str
    entries: Callable
    dense: Callable
    scale: int  # how many times the sample sizes of this file


ORACLE = Source("oracle", oracle.entries, oracle.dense, scale=1)


@pytest.fixture(params=[ORACLE], ids=lambda source: source.name)
def source(request) -> Source:
    return request.param


def clean_batch(source: Source, dist: Distribution, step: int, batch: int, seed: int) -> np.ndarray:
    x = np.zeros((batch, dist.n_features), np.float32)
    sample, feature, value = source.entries(dist, step, batch, seed)
    x[sample, feature] = value
    return x


def draw(source: Source, dist: Distribution, samples: int, seed: int, batch: int = 4096) -> np.ndarray:
    """Clean float32 [about samples·scale, n_features] from consecutive steps."""
    steps = max(1, round(samples * source.scale / batch))
    return np.concatenate([clean_batch(source, dist, step, batch, seed) for step in range(steps)])


# ---- rates -------------------------------------------------------------------------------------------------

JUST_ABOVE = float(np.nextafter(0.125, 1))
RATES = {  # probabilities, samples
    "1e-4": (np.full(1000, 1e-4), 400_000),
    "1e-3": (np.full(200, 1e-3), 200_000),
    "0.01": (np.full(20, 0.01), 500_000),
    "0.05": (np.full(20, 0.05), 250_000),
    "0.1": (np.full(1, 0.1), 2_000_000),
    "about 1/8": (np.repeat([0.12, 0.1249, 0.125, JUST_ABOVE, 0.1251, 0.13], 4), 100_000),
    "0.3": (np.full(5, 0.3), 100_000),
    "near 1": (np.array([0.9, 0.99, 0.999, 0.9999, 1 - 1e-6, 1.0]), 100_000),
    "from 1e-4 to 1": (np.logspace(-4, 0, 40)[np.random.default_rng(0).permutation(40)], 25_000),
    "power law": (0.12 / np.arange(1, 513), 200_000),
    "power law clamped at 1": (np.minimum(1.0, 5 / np.arange(1, 513)), 10_000),
}


def rates(source: Source, case: str, seed: int = 11) -> float:
    p, samples = RATES[case]
    batch, dist = 10_000, Distribution(len(p), p)
    steps = samples * source.scale // batch
    count = sum(
        np.bincount(source.entries(dist, step, batch, seed)[1], minlength=len(p)) for step in range(steps)
    )
    return checks.count_rates(count, steps * batch, p)


@pytest.mark.parametrize("case", RATES)
def test_rate_of_every_feature(source, case):
    accept(rates(source, case))


def test_impossible_and_certain_features(source):
    x = draw(source, Distribution(4, np.array([0.0, 1.0, 0.05, 1.0])), 20_000, seed=2)
    assert not x[:, 0].any()
    assert x[:, [1, 3]].all()


# ---- independence ------------------------------------------------------------------------------------------

RARE = np.array([0.02, 0.05, 0.08, 0.1, 0.12, 0.125])
EQUAL = np.full(6, 0.1)
FREQUENT = np.array([0.13, 0.2, 0.5, 0.7, 0.5, 0.9])
BOTH = np.array([0.1, 0.6, 0.05, 0.2, 0.125, 0.13])
GATES = {"rare": RARE, "equal and rare": EQUAL, "frequent": FREQUENT, "both": BOTH}
MANY = np.concatenate([np.full(10, 0.05), np.full(10, 0.3), np.linspace(0.01, 0.12, 10)])


def joint_patterns(source: Source, p: np.ndarray) -> float:
    return checks.patterns(draw(source, Distribution(len(p), p), 100_000, seed=3) > 0, p)


def pairs_in_a_sample(source: Source) -> float:
    active = draw(source, Distribution(len(MANY), MANY), 50_000, seed=4) > 0
    return checks.together(active, active, MANY, same=True)


def active_numbers(source: Source, p: np.ndarray) -> float:
    return checks.active_numbers(draw(source, Distribution(len(p), p), 50_000, seed=5) > 0, p)


def samples_apart(source: Source, p: np.ndarray, lag: int) -> float:
    active = draw(source, Distribution(len(p), p), 60_000, seed=6, batch=60_000 * source.scale) > 0
    return checks.at_lag(active, lag, p)


@pytest.mark.parametrize("gates", GATES)
def test_features_of_a_sample_are_independent(source, gates):
    """Every joint pattern of six gates at its own probability: independence of every order."""
    accept(joint_patterns(source, GATES[gates]))


def test_every_pair_of_many_features_is_independent(source):
    accept(pairs_in_a_sample(source))


@pytest.mark.parametrize("p", [MANY, np.full(40, 0.05), np.full(9, 0.5)], ids=["mixed", "rare", "frequent"])
def test_number_of_active_features_is_poisson_binomial(source, p):
    accept(active_numbers(source, p))


@pytest.mark.parametrize("gates", ["equal and rare", "both"])
@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 32, 48, 512, 1024, 4096])
def test_samples_are_independent(source, gates, lag):
    """Lags about the blocks of 16 and 32 samples and about the slices."""
    accept(samples_apart(source, GATES[gates], lag))


def two_batches(source: Source, first: tuple[int, int], second: tuple[int, int]) -> tuple[float, int]:
    """The same features in the batches of two (step, seed): p-value, and how many magnitudes are repeated."""
    dist = Distribution(len(BOTH), BOTH)
    a, b = (clean_batch(source, dist, step, 40_000 * source.scale, seed) for step, seed in (first, second))
    return checks.together(a > 0, b > 0, BOTH), checks.repeated_values(a, b)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 5), (1, 5)),
        ((7, 5), (2**31 + 7, 5)),
        ((0, 5), (0, 6)),
        ((0, 5), (0, 5 + 2**32)),
        ((0, 2**32), (0, 1)),
        ((1, 0), (0, 1)),
        ((0, 2**62), (0, 0)),
    ],
)
def test_steps_and_seeds_are_independent(source, first, second):
    p_value, repeated = two_batches(source, first, second)
    accept(p_value)
    assert repeated <= 2  # expected 0.0007·scale: 4·10⁻⁸ for each of 18,000·scale common entries


# ---- magnitudes --------------------------------------------------------------------------------------------

MAGNITUDES = ["uniform", "symmetric", "half_normal", "exponential", "lognormal"]


def active_values(source: Source, p: np.ndarray, magnitude: str) -> tuple[np.ndarray, ...]:
    """(sample, feature, value) of one large batch."""
    return source.entries(Distribution(len(p), p, magnitude), 0, 100_000 * source.scale, 8)


def magnitude_distribution(source: Source, gates: str, magnitude: str) -> float:
    value = active_values(source, GATES[gates], magnitude)[2]
    return checks.distribution(value, checks.MAGNITUDE_CDF[magnitude])


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("gates", ["rare", "frequent"])
def test_magnitudes_have_their_distribution(source, gates, magnitude):
    accept(magnitude_distribution(source, gates, magnitude))


def test_constant_magnitudes_are_one(source):
    assert np.all(active_values(source, BOTH, "constant")[2] == 1)


@pytest.mark.parametrize("gates", ["rare", "frequent"])
def test_neighbouring_magnitudes_are_independent(source, gates):
    value = active_values(source, GATES[gates], "uniform")[2]
    for offset in (0, 1):
        even = value[offset : offset + (len(value) - offset) // 2 * 2]
        accept(checks.independent_values(even[::2], even[1::2], "uniform"))


def values_by_feature(source: Source, gates: str) -> float:
    _, feature, value = active_values(source, GATES[gates], "uniform")
    return checks.values_by_label(feature, value, "uniform")


@pytest.mark.parametrize("gates", ["rare", "frequent", "both"])
def test_magnitudes_do_not_depend_on_the_feature(source, gates):
    accept(values_by_feature(source, gates))


@pytest.mark.parametrize("gates", ["rare", "frequent"])
def test_magnitudes_do_not_depend_on_how_many_are_active(source, gates):
    sample, _, value = active_values(source, GATES[gates], "uniform")
    accept(checks.values_by_label(np.bincount(sample)[sample], value, "uniform"))


# ---- groups ------------------------------------------------------------------------------------------------


def correlated(p: float, other: float) -> Distribution:
    """Features 1, 3 and 4 share a gate; 0 and 2 stand alone."""
    return Distribution(5, np.array([other, p, other, p, p]), correlated=[(1, 3, 4)])


def correlated_values(source: Source, p: float) -> float:
    x = draw(source, correlated(p, 0.2), round(10_000 / p), seed=9)
    x = x[x[:, 1] > 0]
    return checks.bonferroni(
        *(checks.independent_values(x[:, i], x[:, j], "uniform") for i, j in ((1, 3), (1, 4), (3, 4)))
    )


@pytest.mark.parametrize("p", [0.03, 0.125, 0.4, 1.0])
def test_correlated_features_share_one_gate(source, p):
    """All or none; the gate at its rate and independent of other features; magnitudes independent."""
    x = draw(source, correlated(p, 0.1), 100_000, seed=9)
    active = x > 0
    assert np.all(active[:, 1] == active[:, 3]) and np.all(active[:, 1] == active[:, 4])
    accept(checks.patterns(active[:, :3], np.array([0.1, p, 0.1])))
    accept(correlated_values(source, p))


EXCLUSIVE = {
    "rare, equal": [0.02, 0.02, 0.02],
    "rare, unequal": [0.01, 0.07, 0.02],
    "frequent, equal": [0.25, 0.25, 0.25],
    "frequent, unequal": [0.05, 0.5, 0.3],
    "frequent, of rare members": [0.1, 0.12, 0.04],
    "one always, equal": [1 / 3, 1 / 3, 1 / 3],
    "one always, unequal": [0.7, 0.2, 0.1],
}


def exclusive(members: list[float]) -> Distribution:
    """Features 0, 2 and 3 exclude each other; 1 and 4 stand alone."""
    a, b, c = members
    return Distribution(5, np.array([a, 0.1, b, c, 0.6]), anticorrelated=[(0, 2, 3)])


def exclusive_shares(source: Source, members: list[float]) -> float:
    """The member and the two features beside the group: every combination at its probability."""
    active = draw(source, exclusive(members), 80_000, seed=10) > 0
    group = active[:, [0, 2, 3]]
    which = group @ np.array([1, 2, 3]) + 4 * active[:, 1] + 8 * active[:, 4]
    alone = np.outer([0.4, 0.6], [0.9, 0.1]).ravel()
    expected = np.outer(alone, [max(0.0, 1 - math.fsum(members)), *members]).ravel()
    return checks.chi_square(np.bincount(which, minlength=16), len(active) * expected)


@pytest.mark.parametrize("members", EXCLUSIVE)
def test_anticorrelated_features_exclude_each_other(source, members):
    p = EXCLUSIVE[members]
    number = np.count_nonzero(draw(source, exclusive(p), 20_000, seed=12)[:, [0, 2, 3]], axis=1)
    assert number.max() == 1
    if members.startswith("one always"):
        assert number.min() == 1
    accept(exclusive_shares(source, p))


@pytest.mark.parametrize("members", ["rare, unequal", "frequent, unequal"])
def test_magnitudes_do_not_depend_on_the_member(source, members):
    _, feature, value = source.entries(exclusive(EXCLUSIVE[members]), 0, 100_000 * source.scale, 13)
    accept(checks.values_by_label(feature, value, "uniform"))


@pytest.mark.parametrize("n", [2, 7, 100])
def test_one_sparse_samples_have_exactly_one_feature(source, n):
    """Every feature equally often, and consecutive choices independent."""
    dist = Distribution(n, np.full(n, 1 / n), anticorrelated=[tuple(range(n))])
    x = draw(source, dist, 50_000, seed=14)
    assert np.all(np.count_nonzero(x, axis=1) == 1)
    which = x.argmax(axis=1)
    accept(checks.chi_square(np.bincount(which, minlength=n), np.full(n, len(x) / n)))
    even = which[: len(which) // 2 * 2]
    if n <= 7:
        accept(
            checks.chi_square(
                np.bincount(n * even[::2] + even[1::2], minlength=n * n),
                np.full(n * n, len(even) / (2 * n * n)),
            )
        )


# ---- features that depend on each other --------------------------------------------------------------------

TREE = Distribution(6, np.array([0.4, 0.5, 0.3, 0.6, 0.05, 0.8]), parents=[3, 0, 0, -1, -1, 2])
FACTOR = Distribution(4, np.array([0.1, 0.3, 0.02, 0.6]), loadings=np.array([[0.9], [-0.7], [0.8], [0.3]]))


def _full() -> Distribution:
    """Correlations of both signs, strong and weak; the last feature is nearly a sum of others."""
    x = np.array([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [-0.5, 0.3, 0.8, 0], [0, 0, 0, 1], [1, 1, 1, 0.05]], float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    c = x @ x.T
    np.fill_diagonal(c, 1.0)
    return Distribution(5, np.array([0.05, 0.2, 0.1, 0.4, 0.02]), correlation=(c + c.T) / 2)


def subset(n: int, k: int) -> Distribution:
    return Distribution(n, np.full(n, k / n), active=k)


def subsets(source: Source) -> float:
    """Every one of the 20 subsets of 3 of 6 features equally often."""
    active = draw(source, subset(6, 3), 40_000, seed=20) > 0
    assert np.all(active.sum(axis=1) == 3)
    observed = np.bincount(active @ (1 << np.arange(6)), minlength=64)
    expected = np.array([len(active) / 20 * (bin(pattern).count("1") == 3) for pattern in range(64)])
    return checks.chi_square(observed, expected)


def subset_pairs(source: Source) -> float:
    """Each of 40 features at 5/40, and each pair at 5·4/(40·39)."""
    active = (draw(source, subset(40, 5), 40_000, seed=21) > 0).astype(np.float32)
    assert np.all(active.sum(axis=1) == 5)
    count = active.T @ active
    pairs = checks.count_p_values(count, len(active), 20 / (40 * 39))[np.triu_indices(40, 1)]
    return checks.bonferroni(pairs, checks.count_p_values(np.diag(count), len(active), 5 / 40))


def test_every_subset_is_as_likely_as_the_others(source):
    accept(subsets(source))
    accept(subset_pairs(source))


def hierarchy(source: Source) -> float:
    """The joint table of a tree: a product of conditional probabilities, 0 where a parent is missing."""
    active = draw(source, TREE, 200_000, seed=22) > 0
    expected = np.zeros(64)
    for pattern in range(64):
        on = [pattern >> j & 1 for j in range(6)]
        terms = []
        for j, parent in enumerate(TREE.parents):
            p = TREE.probability[j] if parent < 0 or on[parent] else 0.0
            terms.append(p if on[j] else 1 - p)
        expected[pattern] = len(active) * math.prod(terms)
    return checks.chi_square(np.bincount(active @ (1 << np.arange(6)), minlength=64), expected)


def test_a_hierarchy_has_its_joint_table(source):
    accept(hierarchy(source))


def _density(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(160)


def _nodes(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    x, weight = GAUSS_LEGENDRE
    return (high - low) / 2 * x + (high + low) / 2, (high - low) / 2 * weight


def both_exceed(a: float, b: float, rho: float) -> float:
    """P(x > a, y > b) of bivariate normal variates: an orthant."""
    x, weight = _nodes(a, 10.0)
    return float(np.sum(weight * _density(x) * checks.normal_cdf((rho * x - b) / math.sqrt(1 - rho**2))))


def test_orthants_are_those_in_closed_form():
    """1/4 + arcsin(ρ)/2π where both thresholds are 0."""
    for rho in (-0.9, -0.3, 0.0, 0.5, 0.95):
        assert both_exceed(0, 0, rho) == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-12)


def copula_pairs(source: Source, dist: Distribution) -> float:
    """Each feature at its probability, each pair at that of an orthant."""
    c = dist.correlation
    if c is None:
        c = dist.loadings @ dist.loadings.T
    active = (draw(source, dist, 200_000, seed=23) > 0).astype(np.float32)
    count = active.T @ active
    t = [-NormalDist().inv_cdf(p) for p in dist.probability]
    found = [checks.count_p_values(np.diag(count), len(active), dist.probability)]
    for i, j in itertools.combinations(range(dist.n_features), 2):
        found.append(checks.count_p_values(count[i, j], len(active), both_exceed(t[i], t[j], c[i, j])))
    return checks.bonferroni(*found)


@pytest.mark.parametrize("dist", [FACTOR, _full()], ids=["one factor", "matrix"])
def test_a_copula_has_its_marginals_and_orthants(source, dist):
    accept(copula_pairs(source, dist))


def test_a_copula_of_one_factor_has_its_joint_table(source):
    """Given the factor its features are independent: all 16 patterns, by an integral over it."""
    active = draw(source, FACTOR, 200_000, seed=24) > 0
    f, weight = _nodes(-9.0, 9.0)
    expected = (weight * _density(f))[:, None]
    for p, a in zip(FACTOR.probability[::-1], FACTOR.loadings[::-1, 0], strict=True):
        given = checks.normal_cdf((NormalDist().inv_cdf(p) + a * f) / math.sqrt(1 - a * a))[:, None]
        expected = (expected[:, :, None] * np.hstack([1 - given, given])[:, None]).reshape(len(f), -1)
    observed = np.bincount(active @ (1 << np.arange(4)), minlength=16)
    accept(checks.chi_square(observed, len(active) * expected.sum(axis=0)))


def marginals(dist: Distribution) -> np.ndarray:
    """How often each feature is active."""
    p = dist.probability.copy()
    for j in range(dist.n_features if dist.parents is not None else 0):
        above = dist.parents[j]
        while above >= 0:
            p[j] *= dist.probability[above]
            above = dist.parents[above]
    return p


JOINT = {"subset": subset(9, 3), "hierarchy": TREE, "copula": FACTOR}


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("lag", [1, 16, 32])
def test_samples_of_features_that_depend_on_each_other_are_independent(source, name, lag):
    dist = JOINT[name]
    active = draw(source, dist, 60_000, seed=25, batch=60_000 * source.scale) > 0
    accept(checks.at_lag(active, lag, marginals(dist)))


@pytest.mark.parametrize("name", JOINT)
def test_magnitudes_of_features_that_depend_on_each_other_are_independent(source, name):
    """Whatever the feature and the number of active ones, and of each other."""
    sample, feature, value = source.entries(JOINT[name], 0, 60_000 * source.scale, 26)
    accept(checks.values_by_label(feature, value, "uniform"))
    accept(checks.values_by_label(np.bincount(sample)[sample], value, "uniform"))
    even = value[: len(value) // 2 * 2]
    accept(checks.independent_values(even[::2], even[1::2], "uniform"))
    accept(checks.distribution(value, checks.MAGNITUDE_CDF["uniform"]))


# ---- noise -------------------------------------------------------------------------------------------------

SIGMA = 0.3


def noise(source: Source, step: int = 0, seed: int = 15) -> np.ndarray:
    """Noise alone, float32 [samples, 5]: the input less the clean input, but where a feature is active."""
    dist = Distribution(5, np.array([0.0, 0.05, 0.0, 0.3, 0.0]), noise=SIGMA)
    return source.dense(dist, step, 30_000 * source.scale, seed) - clean_batch(
        source, dist, step, 30_000 * source.scale, seed
    )


def noise_distribution(source: Source) -> float:
    return checks.distribution(noise(source) / SIGMA, checks.normal_cdf)


def noise_independence(source: Source) -> float:
    x = noise(source)
    even = x[: len(x) // 64 * 64].reshape(-1, 2, 32, 5)
    alternate = x[: len(x) // 32 * 32].reshape(-1, 2, 16, 5)
    return checks.bonferroni(
        checks.uncorrelated(x[:, :4], x[:, 1:]),
        checks.uncorrelated(np.abs(x[:, :4]) - np.abs(x).mean(), np.abs(x[:, 1:]) - np.abs(x).mean()),
        checks.uncorrelated(x[:-1:2], x[1::2]),
        checks.uncorrelated(alternate[:, 0], alternate[:, 1]),
        checks.uncorrelated(even[:, 0], even[:, 1]),
        checks.uncorrelated(x, noise(source, step=1)),
        checks.uncorrelated(x, noise(source, seed=16)),
    )


def test_noise_is_normal(source):
    accept(noise_distribution(source))


def test_noise_is_independent_between_entries(source):
    accept(noise_independence(source))


def test_noise_does_not_depend_on_what_is_active(source):
    dist = Distribution(1, np.array([0.4]), noise=SIGMA)
    x = clean_batch(source, dist, 0, 50_000, 17)
    added = source.dense(dist, 0, 50_000, 17) - x
    for part in (added[x > 0], added[x == 0]):
        accept(checks.distribution(part / SIGMA, checks.normal_cdf))


@pytest.mark.parametrize("member", [0, 1])
def test_initial_weights_are_normal(member):
    draws = [oracle.initial_normal(seed, 50_000, member) for seed in (3, 4)]
    accept(checks.distribution(np.concatenate(draws), checks.normal_cdf))
    accept(checks.uncorrelated(*draws))
    accept(checks.uncorrelated(draws[0][:-1:2], draws[0][1::2]))


# ---- wrong generators, which must be caught ----------------------------------------------------------------


def of_entries(change: Callable) -> Source:
    """The oracle with `change(dist, step, batch, seed)` instead of its entries."""
    return replace(ORACLE, name="wrong", entries=change)


def asked(change: Callable[[Distribution], Distribution]) -> Source:
    """The oracle asked for another distribution than the one that is tested."""
    return of_entries(lambda dist, step, batch, seed: oracle.entries(change(dist), step, batch, seed))


def with_probability(change: Callable[[np.ndarray], np.ndarray]) -> Source:
    return asked(lambda dist: replace(dist, probability=np.clip(change(dist.probability), 0, 1)))


def with_values(change: Callable) -> Source:
    def entries(dist, step, batch, seed):
        sample, feature, value = oracle.entries(dist, step, batch, seed)
        return sample, feature, change(feature, value)

    return of_entries(entries)


def with_dense(change: Callable[[np.ndarray], np.ndarray]) -> Source:
    """The clean batch passed through `change`."""

    def entries(dist, step, batch, seed):
        x = change(oracle.dense(dist, step, batch, seed, clean=True))
        sample, feature = np.nonzero(x)
        return sample, feature, x[sample, feature]

    return of_entries(entries)


def _repeat_some_samples(x: np.ndarray) -> np.ndarray:
    """Every tenth block of 16 samples is that before it again."""
    blocks = x[: len(x) // 16 * 16].reshape(-1, 16, x.shape[1]).copy()
    blocks[1::10] = blocks[:-1:10][: len(blocks[1::10])]
    return blocks.reshape(-1, x.shape[1])


def _two_kinds_of_samples(dist, step, batch, seed):
    """Right rates, but every other sample is busier: 1.3·p and 0.7·p in turns."""
    busy, idle = (
        oracle.dense(replace(dist, probability=np.minimum(1, factor * dist.probability)), step, batch, seed)
        for factor in (1.3, 0.7)
    )
    x = np.where(np.arange(batch)[:, None] % 2, busy, idle)
    return (*np.nonzero(x), x[x != 0])


def _share_a_gate(x: np.ndarray) -> np.ndarray:
    """In one sample of ten, feature 1 is what feature 0 is (for two features of one probability)."""
    x = x.copy()
    x[::10, 1] = x[::10, 0]
    return x


WRONG = {
    "every p 2% too large": lambda: rates(with_probability(lambda p: 1.02 * p), "0.05"),
    "p 2% too small at 0.1": lambda: rates(with_probability(lambda p: 0.98 * p), "0.1"),
    "p 5% too large at 1e-4": lambda: rates(with_probability(lambda p: 1.05 * p), "1e-4"),
    "Poisson rate q, not −ln(1 − q)": lambda: rates(with_probability(lambda p: -np.expm1(-p)), "about 1/8"),
    "gates of 8 bits": lambda: rates(with_probability(lambda p: np.floor(256 * p) / 256), "near 1"),
    "one feature 20% too rare in a power law": lambda: rates(
        with_probability(lambda p: np.where(np.arange(512) == 9, 0.8 * p, p)), "power law"
    ),
    "two features share a gate in a tenth of the samples": lambda: joint_patterns(
        with_dense(_share_a_gate), EQUAL
    ),
    "a pair is exclusive": lambda: pairs_in_a_sample(asked(lambda d: replace(d, anticorrelated=[(3, 17)]))),
    "overdispersed": lambda: active_numbers(of_entries(_two_kinds_of_samples), np.full(40, 0.05)),
    "blocks repeated": lambda: samples_apart(with_dense(_repeat_some_samples), EQUAL, 16),
    "half of the steps": lambda: two_batches(
        of_entries(lambda dist, step, batch, seed: oracle.entries(dist, step // 2, batch, seed)),
        (0, 5),
        (1, 5),
    )[0],
    "32 bits of the seed": lambda: two_batches(
        of_entries(lambda dist, step, batch, seed: oracle.entries(dist, step, batch, seed % 2**32)),
        (0, 5),
        (0, 5 + 2**32),
    )[0],
    "magnitudes to the power 1.05": lambda: magnitude_distribution(
        with_values(lambda _, value: value**1.05), "rare", "uniform"
    ),
    "half-normal 2% too wide": lambda: magnitude_distribution(
        with_values(lambda _, value: 1.02 * value), "frequent", "half_normal"
    ),
    "exponential of rate 1.02": lambda: magnitude_distribution(
        with_values(lambda _, value: value / 1.02), "frequent", "exponential"
    ),
    "log-normal of the half-normal's tail": lambda: magnitude_distribution(
        with_values(lambda _, value: np.maximum(value, 1 / value)), "rare", "lognormal"
    ),
    "magnitudes that lean to the feature": lambda: values_by_feature(
        with_values(lambda feature, value: value ** (1 + 0.1 * (feature == 2))), "frequent"
    ),
    "members of a correlated group with one magnitude in ten": lambda: correlated_values(
        with_dense(lambda x: np.where((np.arange(len(x)) % 10 == 0)[:, None], x[:, 1:2] * (x > 0), x)), 0.4
    ),
    "shares of an exclusive group in turns": lambda: exclusive_shares(
        with_probability(lambda p: p[[2, 1, 3, 0, 4]]), EXCLUSIVE["rare, unequal"]
    ),
    "an exclusive group of shares 10% off": lambda: exclusive_shares(
        with_probability(lambda p: p + [-0.005, 0, 0.005, 0, 0]), EXCLUSIVE["frequent, unequal"]
    ),
    "subsets that let in the first ones more easily": lambda: subset_pairs(
        with_dense(lambda x: np.where((np.arange(len(x)) % 20 == 0)[:, None], np.sort(x)[:, ::-1], x))
    ),
    "independent features in the place of a subset": lambda: checks.active_numbers(
        draw(ORACLE, subset(6, 3), 40_000, seed=20) > 0, np.full(6, 0.5)
    ),
    "a child at 0.52 in the place of 0.5": lambda: hierarchy(
        with_probability(lambda p: p + [0, 0.02, 0, 0, 0, 0])
    ),
    "a child of the root in the place of its parent": lambda: hierarchy(
        asked(lambda dist: replace(dist, parents=[3, 0, 0, -1, -1, 0]))
    ),
    "loadings 5% too small": lambda: copula_pairs(
        asked(lambda dist: replace(dist, loadings=0.95 * dist.loadings)), FACTOR
    ),
    "one loading of the other sign": lambda: copula_pairs(
        asked(lambda dist: replace(dist, loadings=dist.loadings * [[1], [1], [-1], [1]])), FACTOR
    ),
    "noise 3% too large": lambda: noise_distribution(
        replace(
            ORACLE, dense=lambda dist, *batch: oracle.dense(replace(dist, noise=1.03 * dist.noise), *batch)
        )
    ),
    "noise of a step used twice": lambda: noise_independence(
        replace(ORACLE, dense=lambda dist, step, *batch: oracle.dense(dist, 0, *batch))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_generators_are_caught(name):
    """The negative control: the same checks refuse each of these."""
    assert WRONG[name]() < LEVEL
