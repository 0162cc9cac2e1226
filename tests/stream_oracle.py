"""The data stream a second time: docs/data_stream.md in NumPy, written from that page alone.

Nothing here is shared with the kernels except the two tables, whose committed form is their definition. Every
word is drawn where the page says it stands, one Philox block for each word asked for, so the code can be read
beside the page; it is meant to be right, not fast. The section numbers (§) are the page's.

    >>> d = Distribution(n_features=3, probability=np.array([0.02, 0.5, 1.0]))
    >>> dense(d, step=0, batch_size=4, seed=7).shape
    (4, 3)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

GAP, RARE_MAGNITUDE, RARE_CHOICE, GATE, FREQUENT_MAGNITUDE, FREQUENT_CHOICE, NOISE, INIT = range(1, 9)
JOINT, JOINT_MAGNITUDE, LANGEVIN = 10, 11, 12
MAGNITUDES = ("uniform", "symmetric", "half_normal", "constant", "exponential", "lognormal")
RARE_LIMIT = 1 / 8


def header_tables() -> tuple[np.ndarray, np.ndarray]:
    """The tables of csrc/common/stream/tables.h: uint64 [16, 6] and float32 [128, 5], coefficients last."""
    text = (Path(__file__).resolve().parent.parent / "csrc" / "common" / "stream" / "tables.h").read_text()

    def rows(name: str) -> list[list[str]]:
        body = re.search(name + r"\[\d+\]\[\d+\] = \{(.*?)\};", text, re.DOTALL).group(1)
        return [row.replace(" ", "").split(",") for row in re.findall(r"\{([^}]*)\}", body)]

    log2 = np.array([[int(c.rstrip("u")) for c in row] for row in rows("kLog2Table")], dtype=np.uint64)
    half_normal = np.array([[float.fromhex(c.rstrip("f")) for c in row] for row in rows("kHalfNormalTable")])
    return log2.T, half_normal.T.astype(np.float32)


LOG2_TABLE, HALF_NORMAL_TABLE = header_tables()


def _u64(x) -> np.ndarray:
    return np.asarray(x, dtype=np.uint64)


LOW = _u64(2**32 - 1)


# ---- §1 random words ---------------------------------------------------------------------------------------


def philox(counter: Sequence, key: Sequence) -> np.ndarray:
    """Philox 4×32-10 of four broadcastable arrays and two integers: words as uint64 [..., 4]."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(_u64(c) & LOW for c in counter))
    k0, k1 = (int(k) for k in key)
    for _ in range(10):
        first = c0 * _u64(0xD2511F53)
        second = c2 * _u64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> _u64(32)) ^ c1 ^ _u64(k0),
            second & LOW,
            (first >> _u64(32)) ^ c3 ^ _u64(k1),
            first & LOW,
        )
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], axis=-1)


@dataclass(frozen=True)
class Words:
    """The random words of one batch: everything in the counter and key that does not change within it."""

    seed: int
    step: int = 0
    purpose: int = 0

    def block(self, kind: int, c0, c1, member: int = 0) -> np.ndarray:
        """Philox blocks [..., 4] of a kind, for arrays of counter words."""
        seed = self.seed % 2**64
        key = (seed % 2**32, seed // 2**32)
        return philox((c0, c1, self.step, kind + 16 * self.purpose + 256 * member), key)

    def sequence(self, kind: int, i, c1, member: int = 0) -> np.ndarray:
        """Word i of the sequence with that c1 (arrays)."""
        i = _u64(i)
        blocks = self.block(kind, _u64(16) * (i >> _u64(6)) + (i & _u64(15)), c1, member)
        return _pick(blocks, (i >> _u64(4)) & _u64(3))

    def sequence64(self, kind: int, i, member: int = 0) -> np.ndarray:
        """Word i of a sequence whose block index is 64 bits wide: c0 its lower half, c1 its upper half."""
        i = _u64(i)
        index = _u64(16) * (i >> _u64(6)) + (i & _u64(15))
        return _pick(self.block(kind, index & LOW, index >> _u64(32), member), (i >> _u64(4)) & _u64(3))


def _pick(blocks: np.ndarray, which: np.ndarray) -> np.ndarray:
    which = np.broadcast_to(which, blocks.shape[:-1])
    return np.take_along_axis(blocks, which[..., None].astype(np.int64), axis=-1)[..., 0]


def mulhi(a, b) -> np.ndarray:
    return (_u64(a) * _u64(b)) >> _u64(32)


def leading_zeros(v: np.ndarray) -> np.ndarray:
    """Leading zeros of 32-bit words v > 0 (as a double v = m·2^e, m in [1/2, 1): e is its bit length)."""
    return _u64(32 - np.frexp(v.astype(np.float64))[1])


# ---- §2 units ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What is switched on or off: its members (features, ascending), their probabilities, and the gate's."""

    kind: str  # "single", "correlated" or "exclusive"
    members: tuple[int, ...]
    probability: tuple[float, ...]
    q: float


@dataclass(frozen=True)
class Distribution:
    """The feature distribution of one model.

    `probability`: float64 [n_features]; `correlated` and `anticorrelated`: disjoint tuples of features;
    `noise`: the standard deviation of Gaussian input noise. Instead of groups one of these: `active`, the
    number of active features; `parents`, each feature's parent or −1; `correlation` or `loadings` of a
    copula.
    """

    n_features: int
    probability: np.ndarray
    magnitude: str = "uniform"
    correlated: Sequence[tuple[int, ...]] = ()
    anticorrelated: Sequence[tuple[int, ...]] = ()
    noise: float = 0.0
    active: int | None = None
    parents: Sequence[int] | None = None
    correlation: np.ndarray | None = None
    loadings: np.ndarray | None = None

    def __post_init__(self):
        p = np.asarray(self.probability, dtype=np.float64)
        if p.shape != (self.n_features,) or not np.all((p >= 0) & (p <= 1)):
            raise ValueError(f"probability must be [n_features] in [0, 1], got {p}")
        if self.magnitude not in MAGNITUDES:
            raise ValueError(f"magnitude must be one of {MAGNITUDES}, got {self.magnitude!r}")
        grouped = [j for group in (*self.correlated, *self.anticorrelated) for j in group]
        if len(set(grouped)) != len(grouped) or any(not 0 <= j < self.n_features for j in grouped):
            raise ValueError(f"groups must be disjoint sets of features, got {grouped}")
        for group in self.correlated:
            if len(set(p[list(group)])) != 1:
                raise ValueError(
                    f"the members of a correlated group must have one probability, got {p[list(group)]}"
                )
        object.__setattr__(self, "probability", p)

    def units(self) -> list[Unit]:
        """The units with q > 0, in order of their smallest feature."""
        p = self.probability.tolist()
        units = []
        for group in self.correlated:
            members = tuple(sorted(group))
            units.append(Unit("correlated", members, tuple(p[j] for j in members), p[members[0]]))
        for group in self.anticorrelated:
            members = tuple(sorted(group))
            total = 0.0
            for j in members:
                total += p[j]
            if total > 1 + 1e-6:
                raise ValueError(f"the probabilities of an anticorrelated group exceed 1: {total}")
            units.append(Unit("exclusive", members, tuple(p[j] for j in members), min(total, 1.0)))
        grouped = {j for unit in units for j in unit.members}
        units += [Unit("single", (j,), (p[j],), p[j]) for j in range(self.n_features) if j not in grouped]
        return sorted((u for u in units if u.q > 0), key=lambda u: u.members[0])

    def rare_units(self) -> list[Unit]:
        return [u for u in self.units() if u.q <= RARE_LIMIT]

    def frequent_units(self) -> list[Unit]:
        return [u for u in self.units() if u.q > RARE_LIMIT]


@dataclass
class Gates:
    """Active gates: sample, the unit's number in its list, slice, and the number i that picks their words."""

    sample: np.ndarray
    unit: np.ndarray
    slice: np.ndarray
    number: np.ndarray

    def keep(self, mask: np.ndarray) -> Gates:
        return Gates(self.sample[mask], self.unit[mask], self.slice[mask], self.number[mask])


# ---- §3 rare units: a Poisson process ----------------------------------------------------------------------


def rate(q: float) -> float:
    """λ = −ln(1 − q) by 18 terms of its series."""
    h = 1 / 18
    for k in range(17, 0, -1):
        h = h * q + 1 / k
    return q * h


def log2_units(x: np.ndarray) -> np.ndarray:
    """g: log₂(1 + x/2³²) in units of 2⁻³², for 32-bit x."""
    x = _u64(x)
    c0, c1, c2, c3, c4, s = np.moveaxis(LOG2_TABLE[(x >> _u64(28)).astype(np.int64)], -1, 0)
    tau = (x << _u64(4)) & LOW
    for c in (c4, c3, c2, c1):
        s = c - mulhi(s, tau)
    return c0 + (mulhi(s, tau) >> _u64(3))


@dataclass(frozen=True)
class PoissonProcess:
    """The superposed process of all rare units, set up from their gate probabilities."""

    total: float  # Λ: arrivals per sample
    starts: np.ndarray  # Σ_{v<u} λ_v
    equal: bool
    f: float  # arrivals per cell
    rho: int  # a sample is 2^ρ cells
    C: int
    k: int  # a slice is 2^k samples

    @staticmethod
    def of(units: Sequence[Unit]) -> PoissonProcess | None:
        """None where there is nothing to draw."""
        rates = [rate(u.q) for u in units]
        starts, total = [], 0.0
        for x in rates:
            starts.append(total)
            total += x
        if total < 2.0**-31:
            return None
        f, rho = math.frexp(total)
        return PoissonProcess(
            total=total,
            starts=np.array(starts),
            equal=len(set(rates)) == 1,
            f=f,
            rho=rho,
            C=math.floor((0.6931471805599453 * 2**31) / f + 0.5),
            k=min(24, max(0, 10 - rho)),
        )

    def gaps(self, w: np.ndarray) -> np.ndarray:
        """Gaps in units of 2⁻³² cells from random words."""
        v = _u64(w) | _u64(1)
        z = leading_zeros(v)
        x = ((v << z) << _u64(1)) & LOW
        C = _u64(self.C)
        return ((z * C) << _u64(1)) + (((LOW - log2_units(x)) * C) >> _u64(31))

    def positions(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sample in the slice, number of the rare unit) of arrivals at these times (uint64)."""
        cell, frac = time >> _u64(32), time & LOW
        if self.rho >= 0:
            sample = cell >> _u64(self.rho)
            bits = 32 + self.rho
            place = ((cell & _u64(2**self.rho - 1)) << _u64(32)) + frac
        else:
            sample = (cell << _u64(-self.rho)) + (frac >> _u64(32 + self.rho))
            bits = 32
            place = (frac << _u64(-self.rho)) & LOW
        if self.equal:
            n = len(self.starts)
            if bits + n.bit_length() <= 64:
                unit = (place * _u64(n)) >> _u64(bits)
            else:  # the product needs more than 64 bits
                unit = (place.astype(object) * n) >> bits
        else:
            first = _u64(np.floor(self.starts / self.total * 2.0**bits))
            unit = np.searchsorted(first, place, side="right") - 1
        return sample.astype(np.int64), np.asarray(unit).astype(np.int64)


def rare_gates(units: Sequence[Unit], batch_size: int, words: Words) -> Gates:
    """The active gates of the rare units."""
    empty = np.zeros(0, np.int64)
    process = PoissonProcess.of(units)
    if process is None:
        return Gates(empty, empty, empty, empty)
    slices = np.arange(-(-batch_size >> process.k))[:, None]
    mean = process.total * 2**process.k
    count = int(mean + 12 * math.sqrt(mean) + 40)
    while True:  # draw `count` arrivals of each slice; more, if they do not reach its end
        number = np.arange(count)[None, :]
        time = np.cumsum(process.gaps(words.sequence(GAP, number, slices)), axis=1, dtype=np.uint64)
        sample, unit = process.positions(time)
        if np.all(sample[:, -1] >> process.k):
            break
        count *= 2
    inside = sample < 2**process.k
    repeated = np.zeros_like(inside)
    repeated[:, 1:] = (sample[:, 1:] == sample[:, :-1]) & (unit[:, 1:] == unit[:, :-1])
    sample = sample + (slices << process.k)
    slices, number = np.broadcast_to(slices, sample.shape), np.broadcast_to(number, sample.shape)
    return Gates(sample, unit, slices, number).keep(inside & ~repeated & (sample < batch_size))


# ---- §4 frequent units: bit-sliced gates -------------------------------------------------------------------


def gate_uniforms(D: int, n_samples: int, words: Words) -> np.ndarray:
    """U of every gate, uint64 [n_samples, D]; n_samples is a multiple of 32."""
    w = _u64(np.arange(n_samples // 32)[:, None] * D + np.arange(D))  # [blocks of 32 samples, D]
    uniform = np.zeros((n_samples // 32, 32, D), np.uint64)
    lane = np.arange(32).astype(np.uint64)[None, :, None]
    for level in range(32):
        index = _u64(16) * (_u64(8) * (w >> _u64(4)) + _u64(level >> 2)) + (w & _u64(15))
        word = words.block(GATE, index & LOW, index >> _u64(32))[..., level & 3]
        uniform |= ((word[:, None, :] >> lane) & _u64(1)) << _u64(31 - level)
    return uniform.reshape(n_samples, D)


def frequent_gates(units: Sequence[Unit], batch_size: int, words: Words) -> Gates:
    """The active gates of the frequent units. Whole slices are drawn: ranks count beyond the batch too."""
    empty = np.zeros(0, np.int64)
    D = len(units)
    if D == 0:
        return Gates(empty, empty, empty, empty)
    k = max(5, 12 - (D - 1).bit_length())
    n_slices = -(-batch_size >> k)
    threshold = _u64([math.floor(u.q * 2**32 + 0.5) for u in units])
    active = gate_uniforms(D, n_slices << k, words) < threshold

    # the order in which gates are counted: slice, block of 16 samples, unit, sample
    ordered = active.reshape(n_slices, 2**k // 16, 16, D).transpose(0, 1, 3, 2)
    flat = ordered.reshape(n_slices, -1)
    rank = (np.cumsum(flat, axis=1) - flat).reshape(ordered.shape)
    in_slice, block, unit, lane16 = np.nonzero(ordered)
    sample = (in_slice << k) + 16 * block + lane16
    gates = Gates(sample, unit, in_slice, rank[in_slice, block, unit, lane16])
    return gates.keep(gates.sample < batch_size)


# ---- §5 and §6: members and magnitudes ---------------------------------------------------------------------


def choose(unit: Unit, w: np.ndarray) -> np.ndarray:
    """Which member of an exclusive group a word picks."""
    if len(set(unit.probability)) == 1:
        return mulhi(w, len(unit.members)).astype(np.int64)
    starts, total = [], 0.0
    for p in unit.probability:
        starts.append(total)
        total += p
    first = _u64([math.floor(start / total * 2**32) for start in starts])
    return np.searchsorted(first, w, side="right") - 1


def half_normal(w: np.ndarray) -> np.ndarray:
    """|N(0, 1)| from a word, float32."""
    v = _u64(w) | _u64(1)
    z = leading_zeros(v)
    x = ((v << z) << _u64(1)) & LOW
    row = (_u64(4) * z + (x >> _u64(30))).astype(np.int64)
    tau = ((x >> _u64(6)) & _u64(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)
    a = HALF_NORMAL_TABLE[row]
    value = a[..., 4]
    for k in (3, 2, 1, 0):
        value = value * tau + a[..., k]
    return np.maximum(value, np.float32(2.0**-32))


def signed_normal(w: np.ndarray) -> np.ndarray:
    """N(0, 1) from a word, float32: negative iff the word is odd."""
    return np.where(_u64(w) & _u64(1), -half_normal(w), half_normal(w))


def exponential(w: np.ndarray) -> np.ndarray:
    """−ln of the uniform variate of a word, float32."""
    v = _u64(w) | _u64(1)
    z = leading_zeros(v)
    g = log2_units(((v << z) << _u64(1)) & LOW)
    fraction = ((LOW - g) | _u64(1)).astype(np.uint32).astype(np.float32) * np.float32(2.0**-32)
    return (z.astype(np.float32) + fraction) * np.float32(float.fromhex("0x1.62e43p-1"))


EXP2 = np.array(
    [float.fromhex(c) for c in ("1", "0x1.62e43p-1", "0x1.ebfbep-3", "0x1.c6aeccp-5", "0x1.3b2a1cp-7",
                                "0x1.5f48cp-10", "0x1.444p-13")],
    dtype=np.float32,
)  # fmt: skip


def lognormal(w: np.ndarray) -> np.ndarray:
    """e^N(0, 1) from a word, float32."""
    t = signed_normal(w).astype(np.float32) * np.float32(float.fromhex("0x1.715476p+0"))
    k = np.rint(t)
    f = t - k
    y = np.full(np.shape(t), EXP2[6])
    for a in EXP2[5::-1]:
        y = y * f + a
    return np.ldexp(y, k.astype(np.int32))


def magnitude_of(name: str, w: np.ndarray) -> np.ndarray:
    """The value of an active feature from its word, float32."""
    odd = (_u64(w) | _u64(1)).astype(np.uint32)
    if name == "uniform":
        return odd.astype(np.float32) * np.float32(2.0**-32)
    if name == "symmetric":
        return odd.view(np.int32).astype(np.float32) * np.float32(2.0**-31)
    if name == "half_normal":
        return half_normal(w)
    if name == "exponential":
        return exponential(w)
    if name == "lognormal":
        return lognormal(w)
    return np.ones(np.shape(w), np.float32)


def _members(gates: Gates, units: Sequence[Unit], magnitude: str, words: Words, kinds: tuple[int, int]):
    """(sample, feature, value) of every entry that these gates switch on."""
    magnitude_kind, choice_kind = kinds
    parts = []

    def add(g: Gates, feature: np.ndarray, member: int):
        w = words.sequence(magnitude_kind, g.number, g.slice, member)
        parts.append((g.sample, feature, magnitude_of(magnitude, w)))

    kind = np.array([u.kind for u in units] or [""])[gates.unit]
    single = gates.keep(kind == "single")
    first = np.array([u.members[0] for u in units] or [0])
    add(single, first[single.unit], 0)
    for number in np.unique(gates.unit[kind != "single"]):
        unit = units[number]
        g = gates.keep(gates.unit == number)
        if unit.kind == "exclusive":
            chosen = choose(unit, words.sequence(choice_kind, g.number, g.slice))
            add(g, np.array(unit.members)[chosen], 0)
        else:
            for r, feature in enumerate(unit.members):
                add(g, np.full(len(g.sample), feature), r)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


# ---- §10 features that depend on each other ----------------------------------------------------------------


def joint_gates(dist: Distribution, batch_size: int, words: Words) -> np.ndarray | None:
    """Which features are active, bool [samples, n_features], in whole blocks of 32; None for units."""
    samples = -(-batch_size // 32) * 32
    if dist.active is not None:
        return subset_gates(dist.n_features, dist.active, samples, words)
    if dist.parents is not None:
        return hierarchy_gates(dist, samples, words)
    if dist.correlation is not None or dist.loadings is not None:
        return copula_gates(dist, samples, words)
    return None


def joint_words(per_sample: int, samples: int, words: Words) -> np.ndarray:
    """So many words of kind 10 for every sample, uint64 [samples, per_sample]."""
    s, i = np.arange(samples)[:, None], np.arange(per_sample)[None, :]
    return words.sequence64(JOINT, ((s >> 4) * per_sample + i) * 16 + (s & 15))


def subset_gates(n: int, k: int, samples: int, words: Words) -> np.ndarray:
    """Exactly k of n: feature n − k + r, r = 0 … k − 1, lets in one up to itself, or itself."""
    drawn = joint_words(k, samples, words)
    active = np.zeros((samples, n), bool)
    s = np.arange(samples)
    for r in range(k):
        last = n - k + r
        j = mulhi(drawn[:, r], last + 1).astype(np.int64)
        active[s, np.where(active[s, j], last, j)] = True
    return active


def hierarchy_gates(dist: Distribution, samples: int, words: Words) -> np.ndarray:
    """A feature's own gate (§4, all features being units), and those of all its ancestors."""
    threshold = _u64([math.floor(p * 2**32 + 0.5) for p in dist.probability])
    own = gate_uniforms(dist.n_features, samples, words) < threshold
    active = own.copy()
    for j in range(dist.n_features):
        above = dist.parents[j]
        while above >= 0:
            active[:, j] &= own[:, above]
            above = dist.parents[above]
    return active


def cholesky(correlation: np.ndarray) -> np.ndarray:
    """Lower triangular, column by column in double precision; below a pivot of 1e-10 a column is 0."""
    rest = np.array(correlation, dtype=np.float64).tolist()
    n = len(rest)
    factor = [[0.0] * n for _ in range(n)]
    for k in range(n):
        if rest[k][k] <= 1e-10:
            continue
        factor[k][k] = math.sqrt(rest[k][k])
        for i in range(k + 1, n):
            factor[i][k] = rest[i][k] / factor[k][k]
        for i in range(k + 1, n):
            for j in range(k + 1, n):
                rest[i][j] -= factor[i][k] * factor[j][k]
    return np.array(factor)


def copula_gates(dist: Distribution, samples: int, words: Words) -> np.ndarray:
    """Where correlated normal variates exceed their thresholds."""
    n = dist.n_features
    if dist.correlation is not None:
        factor, unique = cholesky(dist.correlation), None
    else:
        factor = np.asarray(dist.loadings, dtype=np.float64)
        square = [0.0] * n
        for j in range(n):
            for a in factor[j].tolist():
                square[j] += a * a
        unique = np.array([math.sqrt(max(0.0, 1.0 - x)) for x in square]).astype(np.float32)
    factor = factor.astype(np.float32)
    r = factor.shape[1]
    normal = signed_normal(joint_words(r + (0 if unique is None else n), samples, words)).astype(np.float32)
    z = np.zeros((samples, n), np.float32)
    for i in range(r):
        z = z + factor[:, i] * normal[:, i : i + 1]
    if unique is not None:
        z = z + unique * normal[:, r:]
    quantile = NormalDist().inv_cdf
    threshold = [-math.inf if p >= 1 else math.inf if p <= 0 else -quantile(p) for p in dist.probability]
    return z > np.array(threshold, np.float32)


def joint_entries(dist: Distribution, gates: np.ndarray, batch_size: int, words: Words):
    """As `entries`: the rank of an active gate in its block of 32, by feature and sample, names its word."""
    blocks = gates.reshape(-1, 32, dist.n_features).transpose(0, 2, 1)
    flat = blocks.reshape(len(blocks), -1)
    rank = (np.cumsum(flat, axis=1) - flat).reshape(blocks.shape)
    block, feature, lane = np.nonzero(blocks)
    w = words.sequence(JOINT_MAGNITUDE, rank[block, feature, lane], block)
    sample, value = 32 * block + lane, magnitude_of(dist.magnitude, w)
    order = np.lexsort((feature, sample))
    order = order[sample[order] < batch_size]
    return sample[order].astype(np.int64), feature[order].astype(np.int64), value[order].astype(np.float32)


# ---- the batch ---------------------------------------------------------------------------------------------


def entries(dist: Distribution, step: int, batch_size: int, seed: int, purpose: int = 0):
    """The active entries of a batch, without noise, sorted by sample, then feature.

    Returns (sample int64 [entries], feature int64 [entries], value float32 [entries]).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    words = Words(seed, step, purpose)
    gates = joint_gates(dist, batch_size, words)
    if gates is not None:
        return joint_entries(dist, gates, batch_size, words)
    units = dist.units()
    rare, frequent = [u for u in units if u.q <= RARE_LIMIT], [u for u in units if u.q > RARE_LIMIT]
    parts = (
        _members(
            rare_gates(rare, batch_size, words),
            rare,
            dist.magnitude,
            words,
            (RARE_MAGNITUDE, RARE_CHOICE),
        ),
        _members(
            frequent_gates(frequent, batch_size, words),
            frequent,
            dist.magnitude,
            words,
            (FREQUENT_MAGNITUDE, FREQUENT_CHOICE),
        ),
    )
    sample, feature, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((feature, sample))
    return sample[order].astype(np.int64), feature[order].astype(np.int64), value[order].astype(np.float32)


def noise(dist: Distribution, step: int, batch_size: int, seed: int, purpose: int = 0) -> np.ndarray:
    """§7: the noise of every entry, float32 [batch, n_features] (zeros if the distribution has none)."""
    if dist.noise == 0:
        return np.zeros((batch_size, dist.n_features), np.float32)
    s = np.arange(batch_size)[:, None]
    j = np.arange(dist.n_features)[None, :]
    w = Words(seed, step, purpose).sequence64(NOISE, ((s >> 4) * dist.n_features + j) * 16 + (s & 15))
    return np.float32(dist.noise) * signed_normal(w)


def dense(
    dist: Distribution, step: int, batch_size: int, seed: int, purpose: int = 0, clean: bool = False
) -> np.ndarray:
    """A batch as the model sees it (`clean`: as the target is made from), float32 [batch, n_features]."""
    x = np.zeros((batch_size, dist.n_features), np.float32)
    sample, feature, value = entries(dist, step, batch_size, seed, purpose)
    x[sample, feature] = value
    if clean or dist.noise == 0:
        return x
    return x + noise(dist, step, batch_size, seed, purpose)


# ---- §8 initial weights ------------------------------------------------------------------------------------


def initial_normal(seed: int, count: int, member: int = 0) -> np.ndarray:
    """Standard normal draws for parameter number `member`, float32 [count]."""
    return signed_normal(Words(seed).sequence(INIT, np.arange(count), 0, member))


# ---- §12 noise of Langevin dynamics ------------------------------------------------------------------------

TENSOR_NUMBERS = {"encoder": 0, "decoder": 1, "bias": 2, "hidden_bias": 3}


def langevin_noise(seed: int, step: int, role: str, elements: Sequence[int] | np.ndarray) -> np.ndarray:
    """η of these elements of a tensor in one step, float32."""
    return signed_normal(Words(seed, step).sequence64(LANGEVIN, elements, TENSOR_NUMBERS[role]))
