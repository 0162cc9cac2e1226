"""`SparseFeatures.sample` draws the bits of docs/data_stream.md, those of the oracle.

Compared bit for bit on every instruction-set level that this CPU can run and with one thread and two.
"""

from __future__ import annotations

import numpy as np
import pytest
import stream_oracle as oracle
import torch
from cases import COUNTERS, GROUPS, JOINT, NOISE, SHAPES, STREAM_CASES, StreamCase, features_of
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import MAGNITUDES, Distribution

import toykern as tk
from toykern import _native

LEVELS = list(_native.isa_levels())


@pytest.fixture(params=LEVELS)
def level(request):
    """Each instruction-set level in turn; what was in use before comes back."""
    before = _native.isa_level()
    _native.set_isa_level(request.param)
    yield request.param
    _native.set_isa_level(before)


def assert_same_bits(actual: torch.Tensor, expected: np.ndarray) -> None:
    """float32 arrays of one shape, bit by bit; the first difference is shown with its place."""
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    a = np.ascontiguousarray(actual.numpy())
    different = np.argwhere(a.view(np.int32) != np.ascontiguousarray(expected).view(np.int32))
    if len(different):
        at = tuple(different[0])
        raise AssertionError(
            f"{len(different)} of {a.size} differ, first {at}: {a[at]!r}, not {expected[at]!r}"
        )


def assert_same_batch(case: StreamCase) -> None:
    """Dense with noise, dense without, and sparse, against the oracle."""
    d, batch = case.distribution, (case.step, case.batch_size, case.seed)
    features = features_of(d)
    sample, feature, value = oracle.entries(d, *batch)
    clean = np.zeros((case.batch_size, d.n_features), np.float32)
    clean[sample, feature] = value
    noisy = clean + oracle.noise(d, *batch) if d.noise else clean
    assert_same_bits(features.sample(*batch, n_models=1, clean=True)[0], clean)
    assert_same_bits(features.sample(*batch, n_models=1)[0], noisy)
    if not d.noise:
        indices, values = features.sample(*batch, n_models=1, layout="coo")
        assert np.array_equal(indices.numpy(), np.stack([np.zeros_like(sample), sample, feature]))
        assert_same_bits(values, value)


@pytest.mark.parametrize("case", [*STREAM_CASES, *JOINT], ids=lambda case: case.name)
def test_every_level_draws_the_bits_of_the_page(case, level):
    assert_same_batch(case)


THREADED = [*SHAPES[1:-1:3], *GROUPS[-4:], *JOINT[1::4], *NOISE, *COUNTERS[:2]]


@pytest.mark.parametrize("case", THREADED, ids=lambda case: case.name)
def test_the_number_of_threads_changes_no_bit(case):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_batch(case)


def test_slices_are_never_longer_than_2_24_samples():
    """At 1e-5 a slice would otherwise have 2²⁶. The batch reaches into the second slice."""
    case = StreamCase("", Distribution(1, np.array([1e-5])), 2**24 + 500_000)
    sample, _, value = oracle.entries(case.distribution, case.step, case.batch_size, case.seed)
    assert np.count_nonzero(sample >= 2**24) > 0
    x = features_of(case.distribution).sample(case.step, case.batch_size, case.seed, n_models=1)[0, :, 0]
    active = x.nonzero()[:, 0]
    assert np.array_equal(active.numpy(), sample)
    assert_same_bits(x[active], value)


# ---- many models -------------------------------------------------------------------------------------------


def test_every_model_draws_as_if_it_were_alone(level):
    """Each with its own probabilities (so its own rare and frequent features) and its own seed."""
    rng = np.random.default_rng(1)
    p = 10 ** rng.uniform(-3, 0, (9, 21))
    p[:, 5] = p[:, 2]
    p[:, [7, 8, 9]] *= 0.3
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**40, 7, 7, 2**63 - 1]
    features = tk.SparseFeatures(
        21, p, groups=(tk.Correlated((2, 5)), tk.Anticorrelated((9, 7, 8))), noise=0.1, magnitude="symmetric"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x = features.sample(4, 77, torch.tensor(seeds))
        clean = features.sample(4, 77, torch.tensor(seeds), clean=True)
        for model, seed in enumerate(seeds):
            alone = Distribution(
                21, p[model], "symmetric", correlated=[(2, 5)], anticorrelated=[(9, 7, 8)], noise=0.1
            )
            assert_same_bits(x[model], oracle.dense(alone, 4, 77, seed))
            assert_same_bits(clean[model], oracle.dense(alone, 4, 77, seed, clean=True))


def test_models_share_one_row_of_probabilities():
    """Without seeds, model i has seed i."""
    dist = Distribution(6, np.array([0.05, 0.2, 0.1, 0.9, 0.01, 0.125]))
    x = features_of(dist).sample(2, 50, n_models=5)
    for model in range(5):
        assert_same_bits(x[model], oracle.dense(dist, 2, 50, model))


def test_sparse_entries_of_many_models_are_those_of_the_dense_batch():
    features = tk.SparseFeatures(8, torch.linspace(0.01, 0.9, 32).reshape(4, 8).double())
    dense = features.sample(0, 33)
    indices, values = features.sample(0, 33, layout="coo")
    assert torch.equal(indices, dense.nonzero().T)
    assert torch.equal(values, dense[tuple(indices)])


# ---- any distribution --------------------------------------------------------------------------------------

PROBABILITIES = st.one_of(
    st.floats(0, 1),
    st.floats(0, 1 / 8),
    st.sampled_from([0.0, 1.0, 0.125, float(np.nextafter(0.125, 1)), 1e-9, 0.5, 1 - 2.0**-33]),
    st.floats(-12, 0).map(lambda exponent: 10.0**exponent),
)


@st.composite
def batches(draw) -> StreamCase:
    """Any distribution, with disjoint groups of both kinds, and any batch of it."""
    n = draw(st.integers(1, 40))
    p = np.array(draw(st.lists(PROBABILITIES, min_size=n, max_size=n)))
    if draw(st.booleans()):
        p[:] = p[0]
    free = draw(st.permutations(range(n)))
    correlated, anticorrelated = [], []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(2, 6))
        group, free = tuple(free[:size]), free[size:]
        if len(group) < 2:
            break
        members = list(group)
        if draw(st.booleans()):
            correlated.append(group)
            p[members] = p[members[0]]
        else:
            anticorrelated.append(group)
            p[members] /= max(1.0, p[members].sum() * draw(st.sampled_from([1.0, 1.5])))
    return StreamCase(
        "drawn",
        Distribution(
            n,
            p,
            draw(st.sampled_from(MAGNITUDES)),
            correlated,
            anticorrelated,
            noise=draw(st.sampled_from([0.0, 0.0, 0.1, 3.7])),
        ),
        batch_size=draw(st.integers(1, 200)),
        step=draw(st.integers(0, 2**32 - 1)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=100)
@given(case=batches())
def test_any_distribution_has_the_bits_of_the_page(case):
    before = _native.isa_level()
    try:
        for name in LEVELS:
            _native.set_isa_level(name)
            assert_same_batch(case)
    finally:
        _native.set_isa_level(before)


@settings(max_examples=50)
@given(case=batches(), short=st.integers(1, 200))
def test_a_sample_does_not_depend_on_the_batch_size(case, short):
    features = features_of(case.distribution)
    x = features.sample(case.step, 200, case.seed, n_models=1)
    start = features.sample(case.step, short, case.seed, n_models=1)
    assert_same_bits(start[0], x[0, :short].numpy())


@pytest.mark.parametrize("case", JOINT, ids=lambda case: case.name)
@pytest.mark.parametrize("short", [1, 17, 32, 47])
def test_a_sample_of_features_that_depend_on_each_other_does_not_depend_on_the_batch_size(case, short):
    features = features_of(case.distribution)
    x = features.sample(case.step, 96, case.seed, n_models=1)
    assert_same_bits(features.sample(case.step, short, case.seed, n_models=1)[0], x[0, :short].numpy())


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("step", -1),
        ("step", 2**32),
        ("step", 1.5),
        ("batch_size", 0),
        ("batch_size", -3),
        ("n_models", 0),
        ("layout", "csr"),
        ("seed", [1, 2, 3]),
    ],
)
def test_a_batch_that_cannot_be_drawn_is_refused_by_name(argument, value):
    features = tk.SparseFeatures(3, 0.1)
    arguments = {"step": 0, "batch_size": 4, "seed": 0, "n_models": 2, argument: value}
    with pytest.raises((ValueError, TypeError), match=argument):
        features.sample(**arguments)
