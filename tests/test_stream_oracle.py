"""The oracle of the data stream against published vectors, exact mathematics and its own promises.

What is tested here does not depend on chance: known answers, the accuracy of the tables and of what is made
from them, and the invariances that docs/data_stream.md promises. Distributions: test_stream_statistics.py.
"""

from __future__ import annotations

import importlib.util
import math
import re
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import stream_oracle as oracle
from stream_oracle import Distribution, Words, dense, entries

UNIT = 2.0**-32


def _stream_tables():
    path = Path(__file__).resolve().parent.parent / "tools" / "stream_tables.py"
    spec = importlib.util.spec_from_file_location("stream_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- random words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    """The known-answer vectors of Salmon et al. (2011) for philox4x32-10."""
    words = oracle.philox([int(c, 16) for c in counter.split()], [int(k, 16) for k in key.split()])
    assert [f"{int(w):08x}" for w in words] == expected.split()


def test_counter_and_key_hold_what_the_page_says():
    seed, step, purpose, member, c1 = 5 + 3 * 2**32, 11, 1, 2, 9
    words = Words(seed, step, purpose)
    i = 64 * 7 + 16 * 3 + 5  # block 16·7 + 5, word 3
    block = oracle.philox((16 * 7 + 5, c1, step, oracle.GAP + 16 * purpose + 256 * member), (5, 3))
    assert words.sequence(oracle.GAP, i, c1, member) == block[3]

    i = 64 * 2**40 + 16 * 2 + 1  # block index 16·2⁴⁰ + 1 = 2⁴⁴ + 1, word 2
    block = oracle.philox((1, 2**12, step, oracle.NOISE + 16 * purpose), (5, 3))
    assert words.sequence64(oracle.NOISE, i) == block[2]


# ---- tables ------------------------------------------------------------------------------------------------


def test_the_committed_tables_are_those_of_the_generator():
    """The integers exactly. The floats within one unit in the last place: one of them is so near a tie
    (1.4·10⁻⁴ of a unit) that NumPy may round it the other way elsewhere. The header is the definition."""
    generator = _stream_tables()
    assert np.array_equal(oracle.LOG2_TABLE, np.array(generator.log2_table(), dtype=np.uint64))
    generated = generator.half_normal_table()
    assert generated.dtype == np.float32 and generated.shape == oracle.HALF_NORMAL_TABLE.shape == (128, 5)
    assert np.array_equal(np.sign(generated), np.sign(oracle.HALF_NORMAL_TABLE))
    last_place = np.abs(generated.view(np.int32).astype(np.int64) - oracle.HALF_NORMAL_TABLE.view(np.int32))
    assert last_place.max() <= 1
    assert (last_place > 0).sum() <= 2


def test_log2_is_within_two_units():
    """A part of the arguments. All 2³² were checked once: error in [−1.78, 0.69], and never falling."""
    starts = np.arange(0, 2**32, 2**26)  # 64 places, the segment borders among them
    near = (starts[:, None] + np.arange(-2000, 2000)[None, :]) % 2**32
    spread = np.arange(17, 2**32, 9973)
    x = np.unique(np.concatenate([near.ravel(), spread])).astype(np.uint64)
    g = oracle.log2_units(x)
    error = g.astype(np.float64) - np.log1p(x / 2.0**32) / (math.log(2) * UNIT)
    assert np.abs(error).max() < 2
    assert np.all(np.diff(g.astype(np.int64)) >= 0)
    assert g.max() <= 2**32 - 1


def test_half_normal_is_the_quantile_of_the_upper_tail():
    """Absolute error at most 5.1·10⁻⁷ (above 4, neighbours in single precision are 4.8·10⁻⁷ apart), relative
    error at most 3·10⁻⁵ from 10⁻³ up."""
    rng = np.random.default_rng(0)
    octaves = np.concatenate([2**b + rng.integers(0, 2**b, 400) for b in range(32)])
    borders = np.concatenate([[2**b - 1, 2**b + 1, 5 * 2**b // 4, 6 * 2**b // 4] for b in range(2, 32)])
    v = np.concatenate([octaves, borders, rng.integers(0, 2**32, 20_000), [1, 3, 2**32 - 3, 2**32 - 1]])
    v = v.astype(np.uint64) | np.uint64(1)
    value = oracle.half_normal(v)
    exact = np.array([-NormalDist().inv_cdf(int(tail) / 2**33) for tail in v])
    error = np.abs(value - exact)
    assert value.dtype == np.float32
    assert error.max() < 5.1e-7
    assert (error / exact)[exact > 1e-3].max() < 3e-5
    assert value.min() >= 2.0**-32


def _every_octave() -> np.ndarray:
    """Odd words from all octaves, their borders among them."""
    rng = np.random.default_rng(0)
    octaves = np.concatenate([2**b + rng.integers(0, 2**b, 400) for b in range(32)])
    edges = np.concatenate([2 ** np.arange(32) - 1, 2 ** np.arange(32) + 1, 2**32 - 1 - 2 * np.arange(2000)])
    return np.concatenate([octaves, edges, rng.integers(0, 2**32, 20_000)]).astype(np.uint64) | np.uint64(1)


def test_exponential_is_minus_the_logarithm_of_the_uniform_variate():
    """Within a unit of 2⁻³² and 2·10⁻⁷ of the value: neighbours are 1.2·10⁻⁷ apart."""
    v = _every_octave()
    exact = -np.log(v / 2.0**32)
    assert np.all(np.abs(oracle.exponential(v) - exact) < UNIT + 2e-7 * exact)


@pytest.mark.parametrize("sign", [-1, 1])
def test_lognormal_is_the_exponential_of_the_normal(sign):
    """Relative error at most 8·10⁻⁷, against the quantile in double precision."""
    v = _every_octave()
    word = v - np.uint64(sign > 0)  # odd ones are negative; both have the same tail
    exact = np.exp([-sign * NormalDist().inv_cdf(int(tail) / 2**33) for tail in v])
    assert np.max(np.abs(oracle.lognormal(word) / exact - 1)) < 8e-7


def test_the_moments_are_those_in_closed_form():
    """By the midpoint rule over evenly spaced words; what it leaves out of the tail is the tolerance."""
    count = 2**20
    word = (np.arange(count, dtype=np.uint64) * np.uint64(2**12)) + np.uint64(2**11)
    x = oracle.exponential(word).astype(np.float64)
    assert [np.mean(x), np.mean(x**2), np.mean(x**3)] == pytest.approx([1, 2, 6], rel=5e-4)
    y = np.concatenate([oracle.lognormal(word), oracle.lognormal(word + np.uint64(1))]).astype(np.float64)
    assert [np.mean(y), np.mean(y**2)] == pytest.approx([math.exp(0.5), math.exp(2)], rel=2e-3)


def test_magnitudes_are_never_zero_and_stay_in_range():
    w = np.array([0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1], dtype=np.uint64)
    uniform, symmetric = (oracle.magnitude_of(name, w) for name in ("uniform", "symmetric"))
    assert uniform.dtype == symmetric.dtype == np.float32
    assert uniform.tolist() == [UNIT, UNIT, 0.5, 0.5, 0.5, 1.0, 1.0]
    assert symmetric.tolist() == [2 * UNIT, 2 * UNIT, 1.0, -1.0, -1.0, -2 * UNIT, -2 * UNIT]
    assert np.all(oracle.half_normal(w) > 0)
    assert oracle.exponential(w).dtype == oracle.lognormal(w).dtype == np.float32
    assert np.all(oracle.exponential(w) > 0) and oracle.exponential(w).max() < 22.2
    assert oracle.lognormal(w).min() > 1.7e-3 and oracle.lognormal(w).max() < 566
    assert oracle.magnitude_of("constant", w).tolist() == [1.0] * 7


# ---- rare units --------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_minus_log1p():
    q = np.concatenate([np.logspace(-300, np.log10(0.125), 500), [0.125, 1e-9]])
    rates = np.array([oracle.rate(float(x)) for x in q])
    assert np.max(np.abs(rates / -np.log1p(-q) - 1)) < 4e-16


def _process(*probabilities: float) -> oracle.PoissonProcess:
    units = [oracle.Unit("single", (j,), (p,), p) for j, p in enumerate(probabilities)]
    return oracle.PoissonProcess.of(units)


@pytest.mark.parametrize("p", [1e-9, 1e-3, 0.0625, 0.1174, 0.1176, 0.125])
def test_gaps_have_the_distribution_function_of_an_exponential(p):
    """The gap of word v is the quantile at 1 − v/2³²: the distribution function is off by less than 2 units
    there, and by one more in between, since v is odd."""
    process = _process(p)
    rng = np.random.default_rng(1)
    v = np.concatenate([rng.integers(0, 2**32, 100_000), 2 ** np.arange(32) + 1, 2 ** np.arange(32) - 1])
    v = v.astype(np.uint64) | np.uint64(1)
    gap = process.gaps(v).astype(np.float64) * UNIT  # cells
    tail = np.exp(-process.f * gap)
    assert np.max(np.abs(tail - v / 2.0**32)) < 2 * UNIT
    ordered = process.gaps(np.arange(2**32 - 40_001, 2**32, 2, dtype=np.uint64)).astype(np.int64)
    assert np.all(np.diff(ordered) <= 0)


@pytest.mark.parametrize(
    "probabilities",
    [[0.01, 0.01, 0.01], [0.125, 1e-6, 0.03, 1e-20, 0.09], [1e-5, 3e-5], (0.1 / np.arange(1, 600)).tolist()],
)
def test_slots_are_shares_of_the_sample(probabilities):
    """P(active) follows from the rate and the share of a slot: right to 2⁻³² cells, the clock's grain."""
    process = _process(*probabilities)
    n, bits = len(probabilities), 32 + max(process.rho, 0)
    if process.equal:
        starts = [-(-u * 2**bits // n) for u in range(n)]
    else:
        starts = [int(x) for x in np.floor(process.starts / process.total * 2.0**bits)]
    grain = 2 ** max(0, -process.rho)  # only these places occur
    shares = np.diff([-(-s // grain) * grain for s in (*starts, 2**bits)]) / 2.0**bits
    rates = np.array([oracle.rate(p) for p in probabilities])
    cells = 2.0**process.rho
    assert process.f * cells == process.total
    assert np.max(np.abs(shares - rates / process.total) * cells) < 1.01 * UNIT

    # and arrivals are given to the slot that they fall into
    place = np.array([s + d for s in starts for d in (-1, 0, 1) if 0 <= s + d < 2**bits], dtype=np.uint64)
    if process.rho >= 0:
        sample, unit = process.positions(place)
        assert np.all(sample == 0)
        assert unit.tolist() == [max(u for u in range(n) if starts[u] <= int(x)) for x in place]


def test_no_arrivals_below_two_units():
    assert _process(4e-10) is None
    assert _process(2.4e-10, 2.4e-10) is not None


# ---- units -------------------------------------------------------------------------------------------------


def test_units_are_ordered_by_their_smallest_feature_and_split_at_an_eighth():
    above = float(np.nextafter(0.125, 1))
    p = np.array([0.1, 0.05, 0.125, above, 0.05, 0.1, 0.0, 1.0, 0.2])
    dist = Distribution(9, p, correlated=[(4, 1)], anticorrelated=[(8, 0)])
    assert [(u.kind, u.members) for u in dist.rare_units()] == [
        ("correlated", (1, 4)),
        ("single", (2,)),
        ("single", (5,)),
    ]
    assert [(u.kind, u.members) for u in dist.frequent_units()] == [
        ("exclusive", (0, 8)),
        ("single", (3,)),
        ("single", (7,)),
    ]


def test_a_member_of_probability_zero_is_never_chosen():
    words = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.uint64)
    for p in ((0.0, 0.2, 0.3), (0.2, 0.0, 0.3), (0.2, 0.3, 0.0), (0.3, 0.0, 0.0)):
        unit = oracle.Unit("exclusive", (0, 1, 2), p, sum(p))
        assert all(p[member] > 0 for member in oracle.choose(unit, words))


@pytest.mark.parametrize(
    "arguments",
    [
        {"probability": np.array([0.1, 1.5])},
        {"probability": np.array([0.1, np.nan])},
        {"probability": np.array([0.1, 0.2]), "correlated": [(0, 1)]},
        {"probability": np.array([0.1, 0.1]), "correlated": [(0, 1)], "anticorrelated": [(1,)]},
        {"probability": np.array([0.1, 0.2]), "magnitude": "gaussian"},
    ],
)
def test_impossible_distributions_are_refused(arguments):
    with pytest.raises(ValueError):
        Distribution(2, **arguments)


def test_anticorrelated_probabilities_may_not_exceed_one():
    with pytest.raises(ValueError):
        Distribution(2, np.array([0.6, 0.5]), anticorrelated=[(0, 1)]).units()
    (unit,) = Distribution(2, np.array([0.5, 0.5 + 5e-7]), anticorrelated=[(0, 1)]).units()
    assert unit.q == 1.0


# ---- batches -----------------------------------------------------------------------------------------------

MIXED = Distribution(
    12,
    np.array([0.002, 0.1, 0.1, 0.3, 1.0, 0.0, 0.05, 0.06, 0.4, 0.4, 0.2, 0.5]),
    correlated=[(1, 2), (8, 9)],
    anticorrelated=[(6, 7), (10, 3, 11)],
    noise=0.1,
)


@pytest.mark.parametrize("short", [1, 15, 16, 17, 33, 640, 1023])
def test_a_sample_does_not_depend_on_the_batch_size(short):
    """Also where the batch ends within a block of 16 samples, whose later samples count in the ranks."""
    long = dense(MIXED, 3, 5000, 7)
    assert np.array_equal(dense(MIXED, 3, short, 7).view(np.int32), long[:short].view(np.int32))


def test_entries_are_the_dense_batch():
    sample, feature, value = entries(MIXED, 3, 700, 7)
    assert (sample.dtype, feature.dtype, value.dtype) == (np.int64, np.int64, np.float32)
    assert np.all(value != 0)
    key = sample * MIXED.n_features + feature
    assert np.all(np.diff(key) > 0)
    clean = dense(MIXED, 3, 700, 7, clean=True)
    assert np.array_equal(np.argwhere(clean), np.stack([sample, feature], axis=1))
    assert np.array_equal(clean[sample, feature], value)
    assert np.array_equal(dense(MIXED, 3, 700, 7), clean + oracle.noise(MIXED, 3, 700, 7))


def test_rare_gates_do_not_depend_on_how_many_arrivals_are_drawn_at_once():
    """Against the page read word for word: one arrival after another, in Python's integers."""
    units = MIXED.rare_units()
    process = oracle.PoissonProcess.of(units)
    words = Words(7, 3)
    found = []
    for s in range(3):
        time, before, i = 0, None, 0
        while True:
            time += int(process.gaps(words.sequence(oracle.GAP, [i], s))[0])
            sample, unit = (int(a[0]) for a in process.positions(np.array([time], dtype=np.uint64)))
            if sample >= 2**process.k:
                break
            if (sample, unit) != before:
                found.append((s * 2**process.k + sample, unit, s, i))
            before, i = (sample, unit), i + 1
    gates = oracle.rare_gates(units, 3 * 2**process.k, words)
    assert found == list(zip(gates.sample, gates.unit, gates.slice, gates.number, strict=True))


def test_everything_that_names_a_batch_changes_it():
    x = dense(MIXED, 3, 64, 7)
    others = [
        dense(MIXED, 4, 64, 7),
        dense(MIXED, 3, 64, 8),
        dense(MIXED, 3, 64, 7 + 2**32),
        dense(MIXED, 3, 64, 7, 1),
    ]
    assert all((x != other).mean() > 0.9 for other in others)
    with pytest.raises(ValueError):
        dense(MIXED, 3, 0, 7)


def test_initial_weights_are_a_prefix_and_differ_by_parameter():
    draws = oracle.initial_normal(5, 300)
    assert draws.dtype == np.float32
    assert np.array_equal(oracle.initial_normal(5, 77), draws[:77])
    assert not np.any(oracle.initial_normal(5, 300, member=1) == draws)
    assert not np.any(oracle.initial_normal(5 + 2**32, 300) == draws)


PINNED = {
    "uniform": 506069313,
    "symmetric": 2924580672,
    "half_normal": 689081935,
    "constant": 3952562368,
    "exponential": 3140217833,
    "lognormal": 2737473398,
}
PINNED_INIT = 2994666379


def test_the_bits_of_stream_version_1():
    """Pinned: a change of any of these is a new version of the stream."""
    magnitudes = {
        name: Distribution(12, MIXED.probability, name, MIXED.correlated, MIXED.anticorrelated, noise=0.25)
        for name in oracle.MAGNITUDES
    }
    assert {
        name: zlib.crc32(dense(d, 3, 1000, 7 + 2**33).tobytes()) for name, d in magnitudes.items()
    } == PINNED
    assert zlib.crc32(oracle.initial_normal(7, 1000).tobytes()) == PINNED_INIT


def test_the_pages_vectors_of_langevin_noise():
    page = (Path(oracle.__file__).resolve().parent.parent / "docs" / "data_stream.md").read_text(
        encoding="utf-8"
    )
    rows = re.findall(
        r"^\| (.+) \| (.+) \| (encoder|decoder|bias) \| (.+) \|$", page.split("## 12.")[1], re.MULTILINE
    )
    assert len(rows) == 3
    numbers = {"2⁴⁰ + 5": 2**40 + 5, "2³² − 2": 2**32 - 2}
    for seed, step, role, values in rows:
        seed, step = (numbers[n] if n in numbers else int(n) for n in (seed, step))
        expected = [float(value.replace("−", "-")) for value in values.split(", ")]
        assert oracle.langevin_noise(seed, step, role, [0, 1, 2, 64, 1000]).tolist() == expected
