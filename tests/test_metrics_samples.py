"""Dimensionality and leverage of samples, against closed forms and the hat matrix in NumPy."""

import math

import numpy as np
import pytest
import torch

from toykern import metrics


def _matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [3, 5, 12])
def test_a_gon_of_samples_shares_the_plane(samples):
    angles = 2 * math.pi * torch.arange(samples, dtype=torch.float64) / samples
    codes = 3 * torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)
    got = metrics.sample_dimensionality(codes)
    torch.testing.assert_close(got, torch.full((samples,), 2 / samples, dtype=torch.float64))


def test_sample_dimensionality_one_term_at_a_time():
    codes = _matrix(3, 6, 4)
    got = metrics.sample_dimensionality(codes)
    for k, h in enumerate(codes.numpy()):
        for i in range(6):
            unit = h[i] / np.linalg.norm(h[i])
            assert got[k, i].item() == pytest.approx(h[i] @ h[i] / sum((unit @ h[j]) ** 2 for j in range(6)))
        assert torch.equal(metrics.sample_dimensionality(codes[k]), got[k])
    assert torch.equal(got, metrics.feature_dimensionality(codes.mT))


@pytest.mark.parametrize("samples", [2, 4, 9])
def test_leverage_is_the_diagonal_of_the_hat_matrix(samples):
    matrix = _matrix(3, samples, 4)
    got = metrics.leverage(matrix)
    for k, x in enumerate(matrix.numpy()):
        np.testing.assert_allclose(got[k], np.diag(x @ np.linalg.pinv(x)), atol=1e-13)
    torch.testing.assert_close(metrics.leverage(matrix[1]), got[1])
    torch.testing.assert_close(got.sum(-1), torch.full((3,), min(samples, 4), dtype=torch.float64))


def test_leverage_of_a_simple_regression():
    """With an intercept: 1/T + (x_i − x̄)² / Σ (x_j − x̄)²."""
    x = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    moved = (x - x.mean()).square()
    got = metrics.leverage(torch.stack([torch.ones_like(x), x], dim=1))
    torch.testing.assert_close(got, 1 / 4 + moved / moved.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leverage_sums_up_to_the_rank(dtype):
    low = (_matrix(2, 30, 3) @ _matrix(2, 3, 8, seed=1)).to(dtype)
    got = metrics.leverage(low)
    assert got.dtype == dtype and bool(((got >= 0) & (got <= 1)).all())
    assert got.sum(-1).tolist() == pytest.approx([3, 3], abs=1e-5)
    assert metrics.leverage(torch.zeros(4, 2)).tolist() == [0.0] * 4


def test_leverage_of_a_matrix_in_bad_condition():
    """Scaled columns span the same space."""
    matrix = _matrix(10, 3)
    scaled = matrix * torch.tensor([1e10, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(metrics.leverage(scaled), metrics.leverage(matrix), atol=1e-5, rtol=0)
    coarse = metrics.leverage(scaled, rtol=1e-6)
    torch.testing.assert_close(coarse, metrics.leverage(matrix[:, :1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (3, 5)])
def test_leverage_can_be_differentiated(shape):
    assert torch.autograd.gradcheck(metrics.leverage, (_matrix(*shape).requires_grad_(),))


def test_the_slope_of_leverage_where_singular_values_are_equal():
    """Rows of the identity and one more: h of the last is |x|² / (1 + |x|²), its slope 2x / (1 + |x|²)²."""
    x = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    last = metrics.leverage(torch.cat([torch.eye(2, dtype=torch.float64), x[None]]))[-1]
    square = x.detach().square().sum()
    assert last.item() == pytest.approx((square / (1 + square)).item())
    last.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() / (1 + square) ** 2)
    equal = torch.eye(3, 2, dtype=torch.float64, requires_grad=True)
    metrics.leverage(equal).sum().backward()
    assert equal.grad.abs().max() < 1e-14  # the sum is the rank


def test_a_diverged_model_has_no_leverage_and_harms_no_other():
    matrix = _matrix(3, 5, 2)
    whole = metrics.leverage(matrix)
    matrix[1, 2, 0] = math.nan
    matrix.requires_grad_()
    got = metrics.leverage(matrix)
    torch.testing.assert_close(got[::2], whole[::2])
    assert bool(got[1].isnan().all())
    got[::2, 0].sum().backward()
    assert bool(torch.isfinite(matrix.grad).all())
