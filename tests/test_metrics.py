"""Measures of superposition against definitions and known polytopes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from toykern import metrics

PER_MODEL = [metrics.features_per_dimension, metrics.classify_phase]
PER_FEATURE = [metrics.superposition, metrics.feature_dimensionality]


def _weights(models=4, m=3, n=6):
    return torch.randn(models, m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _ring(k, *, turn=0.0):
    angles = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k + turn
    return torch.stack([torch.cos(angles), torch.sin(angles)])


def _antiprism():
    """Eight corners on the unit sphere, as a tight frame."""
    radius, height = math.sqrt(2 / 3), math.sqrt(1 / 3)
    top, bottom = radius * _ring(4), radius * _ring(4, turn=math.pi / 4)
    return torch.cat([torch.cat([top, bottom], dim=1), height * torch.tensor([[1.0] * 4 + [-1.0] * 4])])


TETRAHEDRON = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64)


def test_definitions_one_term_at_a_time():
    weight = _weights()
    for k, w in enumerate(weight.numpy()):
        gram = w.T @ w
        norms = np.linalg.norm(w, axis=0)
        assert metrics.features_per_dimension(weight)[k].item() == pytest.approx((w**2).sum() / 3)
        np.testing.assert_allclose(metrics.interference(weight)[k], gram)
        for i in range(6):
            overlaps = [(w[:, i] / norms[i] @ w[:, j]) ** 2 for j in range(6)]
            dimensionality = norms[i] ** 2 / sum(overlaps)
            assert metrics.feature_dimensionality(weight)[k, i].item() == pytest.approx(dimensionality)
            assert metrics.superposition(weight)[k, i].item() == pytest.approx(sum(overlaps) - overlaps[i])


@pytest.mark.parametrize(
    ("weight", "dimensionality"),
    [
        (torch.eye(3).double(), 1),
        (torch.tensor([[1.0, -1.0]]), 1 / 2),
        (_ring(3), 2 / 3),
        (TETRAHEDRON, 3 / 4),
        (_ring(5), 2 / 5),
        (_antiprism(), 3 / 8),
    ],
    ids=["dedicated", "digon", "triangle", "tetrahedron", "pentagon", "square antiprism"],
)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_known_polytopes(weight, dimensionality, scale):
    got = metrics.feature_dimensionality(weight * scale)
    torch.testing.assert_close(got, torch.full_like(got, dimensionality))


def test_a_column_of_zeros_has_no_dimensionality():
    weight = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert metrics.feature_dimensionality(weight).tolist() == [[1.0, 0.0, 1.0]]
    assert metrics.superposition(weight).tolist() == [[0.0, 0.0, 0.0]]
    assert metrics.feature_dimensionality(torch.zeros(2, 1, 3)).tolist() == [[0.0] * 3] * 2


def test_a_diverged_model_is_not_a_number_and_harms_no_other():
    weight = torch.tensor([[[1.0, -1.0]], [[math.nan, 1.0]], [[math.inf, 1.0]]])
    assert metrics.feature_dimensionality(weight)[0].tolist() == [0.5, 0.5]
    assert metrics.feature_dimensionality(weight)[:, 0].isnan().tolist() == [False, True, True]
    assert metrics.superposition(weight)[:, 0].isnan().tolist() == [False, True, True]
    assert metrics.classify_phase(weight).tolist() == [2, metrics.UNDEFINED, metrics.UNDEFINED]


@pytest.mark.parametrize("function", [*PER_MODEL, *PER_FEATURE, metrics.interference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_model_or_many_of_either_dtype(function, dtype):
    weight = _weights().to(dtype)
    many = function(weight)
    assert many.dtype in (dtype, torch.int64)
    for k in range(len(weight)):
        torch.testing.assert_close(function(weight[k]), many[k])
    torch.testing.assert_close(function(weight.numpy()), many)
    torch.testing.assert_close(function(weight.mT.contiguous().mT), many)


@pytest.mark.parametrize("function", [metrics.features_per_dimension, *PER_FEATURE])
def test_measures_can_be_differentiated(function):
    assert torch.autograd.gradcheck(function, (_weights(2, 2, 3).requires_grad_(),))
    zeros = torch.zeros(1, 2, 3, requires_grad=True)
    function(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (torch.zeros(3), ValueError),
        (torch.zeros(1, 2, 3, 4), ValueError),
        (torch.zeros(0, 2, 3), ValueError),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError),
    ],
)
@pytest.mark.parametrize("function", [*PER_MODEL, *PER_FEATURE, metrics.interference])
def test_bad_weights(function, weight, error):
    with pytest.raises(error, match="weight must"):
        function(weight)


@pytest.mark.parametrize(
    ("weight", "phase"),
    [
        ([[1.0, 0.1]], metrics.NOT_REPRESENTED),
        ([[0.1, 1.0]], metrics.DEDICATED),
        ([[1.0, -1.0]], metrics.SUPERPOSITION),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], metrics.NOT_REPRESENTED),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], metrics.DEDICATED),
        ([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], metrics.DEDICATED),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]], metrics.SUPERPOSITION),
    ],
)
def test_phases(weight, phase):
    assert metrics.classify_phase(torch.tensor(weight)).item() == phase
    assert metrics.classify_phase(torch.tensor(weight).flip(-1), feature=0).item() == phase


def test_phase_of_a_feature_that_is_not_there():
    with pytest.raises(ValueError, match="feature must be an integer from -2 to 1, not 2"):
        metrics.classify_phase(torch.ones(1, 2), feature=2)


@pytest.mark.parametrize(("m", "n"), [(1, 2), (2, 5), (3, 7), (17, 130)])
@pytest.mark.parametrize("function", [*PER_MODEL, *PER_FEATURE, metrics.interference])
def test_a_models_bits_are_its_own(function, m, n):
    """Alone, among others, at another place, in another layout, on one thread and two: where sums cancel too.

    The first features have a dimension each, all others next to nothing: superposition is then the small
    difference of large sums, where another order of products shows.
    """
    models = 41
    random = torch.Generator().manual_seed(0)
    weight = torch.eye(m, n) + 1e-6 * torch.randn(models, m, n, generator=random)
    weight[1::2] += torch.randn(models // 2, m, n, generator=random)  # of every second model all are large
    whole = function(weight)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(function(weight), whole)
            assert torch.equal(function(weight[7:30]), whole[7:30])
            assert torch.equal(function(weight.flip(0)), whole.flip(0))
            assert torch.equal(function(weight.mT.contiguous().mT), whole)
            for k in (0, 5, models - 1):
                assert torch.equal(function(weight[k : k + 1]), whole[k : k + 1])
                assert torch.equal(function(weight[k]), whole[k])
    finally:
        torch.set_num_threads(before)


def test_small_superposition_is_right():
    """Within rounding of the float64 products, whatever cancels; beside exact sums of fractions."""
    weight = torch.tensor([[1.0, 1e-3, 0.5], [1e-3, 1.0, -0.25]])
    exact = [[Fraction(value) for value in row] for row in weight.tolist()]
    for i in range(3):
        dots = [sum(exact[k][i] * exact[k][j] for k in range(2)) for j in range(3)]
        expected = (sum(dot**2 for dot in dots) - dots[i] ** 2) / dots[i]
        found = metrics.superposition(weight.double())[i].item()
        assert found == pytest.approx(float(expected), rel=1e-13)
