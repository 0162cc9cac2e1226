"""Exact losses of hand-made solutions and critical points, against sampling and quadrature."""

import itertools
import math

import numpy as np
import pytest
import torch

from toykern import metrics, reference


def _solutions(p):
    """(name, n_features, weight, bias) of every hand-made solution."""
    mean = p / 2
    return [
        ("last_ignored", 2, [[1, 0]], [0, mean]),
        ("other_ignored", 2, [[0, 1]], [mean, 0]),
        ("antipodal_with_last", 2, [[1, -1]], [0, 0]),
        ("last_ignored", 3, [[1, 0, 0], [0, 1, 0]], [0, 0, mean]),
        ("other_ignored", 3, [[0, 0, 1], [0, 1, 0]], [mean, 0, 0]),
        ("antipodal_with_last", 3, [[1, 0, 0], [0, 1, -1]], [0, 0, 0]),
        ("antipodal_others", 3, [[1, -1, 0], [0, 0, 1]], [0, 0, 0]),
    ]


@pytest.mark.parametrize("p", [1.0, 0.4, 0.05])
@pytest.mark.parametrize("which", range(7))
def test_exact_losses_by_monte_carlo(p, which):
    """Within 5 standard errors over 100,000 samples."""
    name, n, weight, bias = _solutions(p)[which]
    samples, r = 100_000, 3.0
    generator = torch.Generator().manual_seed(which)
    x = torch.rand(samples, n, generator=generator, dtype=torch.float64)
    x = x * (torch.rand(samples, n, generator=generator) < p)
    parameters = {
        "weight": torch.tensor([weight], dtype=torch.float64),
        "bias": torch.tensor([bias], dtype=torch.float64),
    }
    importance = torch.tensor([1.0] * (n - 1) + [r], dtype=torch.float64)
    losses = (importance * (x - reference.forward(parameters, x).output[0]) ** 2).sum(dim=1)
    exact = float(metrics.solution_losses(p, r, n)[name])
    assert abs(losses.mean().item() - exact) < 5 * losses.std().item() / math.sqrt(samples)


def test_exact_losses_broadcast():
    losses = metrics.solution_losses(np.array([0.1, 0.2])[:, None], np.array([0.5, 1.0, 2.0]), 3)
    assert list(losses) == ["last_ignored", "other_ignored", "antipodal_with_last", "antipodal_others"]
    assert {value.shape for value in losses.values()} == {(2, 3)}
    assert losses["last_ignored"][1, 2] == pytest.approx(2 * (0.2 / 3 - 0.01))


def test_boundary_is_where_solutions_tie():
    r = np.geomspace(0.1, 10, 41)
    losses = metrics.solution_losses(metrics.phase_boundary(r), r)
    others = np.minimum(losses["last_ignored"], losses["other_ignored"])
    np.testing.assert_allclose(losses["antipodal_with_last"], others, rtol=1e-12)


def test_best_solution_for_two_features():
    r = np.geomspace(0.1, 10, 40)[:, None]  # r = 1 is not among them
    p = np.geomspace(0.01, 1, 50)
    expected = np.where(p < metrics.phase_boundary(r), 2, np.where(r < 1, 0, 1))
    np.testing.assert_array_equal(metrics.best_solution(p, r), expected)


def test_best_solution_for_three_features():
    """Above r = 1 the last feature has a dimension to itself, and the other two share one below p = 4/7."""
    r = np.geomspace(0.1, 10, 40)[:, None]
    p = np.geomspace(0.01, 1, 50)
    expected = np.where(r > 1, 1, np.where(p < metrics.phase_boundary(r), 2, 0))
    np.testing.assert_array_equal(metrics.best_solution(p, r, n_features=3), expected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, [0.5, 2.0]])
def test_bad_densities(bad):
    for function in (metrics.ignored_loss, metrics.antipodal_loss):
        with pytest.raises(ValueError, match="density must lie between 0 and 1"):
            function(bad)


def test_bad_importances():
    with pytest.raises(ValueError, match="relative_importance must be finite and at least 0"):
        metrics.phase_boundary([-1.0])
    with pytest.raises(ValueError, match="importance must be finite"):
        metrics.ignored_loss(0.5, math.inf)


# ---- critical points of one-sparse data --------------------------------------------------------------------


def _expectation(point):
    """Exact loss and gradient for x = μ e_i, by Gauss-Legendre between the kinks of the ReLUs."""
    n = len(point.bias)
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    gram = (point.weight.T @ point.weight).numpy()
    samples, shares = [], []
    for i in range(n):
        kinks = [-point.bias[j].item() / gram[i, j] for j in range(n) if abs(gram[i, j]) > 1e-12]
        cuts = sorted({0.0, 1.0, *(kink for kink in kinks if 0 < kink < 1)})
        for low, high in itertools.pairwise(cuts):
            for node, share in zip(nodes, node_weights, strict=True):
                samples.append(np.eye(n)[i] * (low + high + node * (high - low)) / 2)
                shares.append(share * (high - low) / 2 / n)
    x, shares = torch.tensor(np.array(samples)).unsqueeze(1), torch.tensor(shares, dtype=torch.float64)
    # a model for each sample, so that each has its own gradient
    parameters = {
        "weight": point.weight.expand(len(x), -1, -1),
        "bias": point.bias.expand(len(x), -1),
    }
    loss, gradients = reference.loss_and_gradients(parameters, x, loss_reduction="sum")
    return (shares @ loss).item(), {
        name: torch.tensordot(shares, value, dims=1) for name, value in gradients.items()
    }


@pytest.mark.parametrize(
    ("k", "n"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (8, 8), (12, 12), (2, 5), (4, 6), (5, 8)]
)
def test_the_gradient_vanishes_at_the_polygon(k, n):
    point = metrics.polygon(k, n)
    loss, gradients = _expectation(point)
    assert loss == pytest.approx(point.loss, abs=1e-14)
    for value in gradients.values():
        assert value.abs().max().item() < 1e-13


@pytest.mark.parametrize(("k", "n"), [(4, 4), (5, 5), (5, 8)])
def test_beside_the_polygon_it_does_not_vanish(k, n):
    point = metrics.polygon(k, n)
    for weight, bias in [(1.01 * point.weight, point.bias), (point.weight, point.bias + 0.01)]:
        moved = metrics.CriticalPoint(weight, bias, point.loss, point.radius)
        loss, gradients = _expectation(moved)
        assert loss > point.loss + 1e-6
        assert max(value.abs().max().item() for value in gradients.values()) > 1e-4


@pytest.mark.parametrize(("k", "radius", "bias", "loss"), [(4, 1, 0, 0), (5, 1.17046, -0.28230, 0.01583)])
def test_published_polygons(k, radius, bias, loss):
    """Chen et al. 2023."""
    point = metrics.polygon(k)
    assert point.radius == pytest.approx(radius, abs=5e-6)
    assert point.bias.tolist() == pytest.approx([bias] * k, abs=5e-6)
    assert point.loss == pytest.approx(loss, abs=5e-6)
    assert metrics.feature_dimensionality(point.weight).tolist() == pytest.approx([2 / k] * k)


@pytest.mark.parametrize("k", range(2, metrics.MAX_VERTICES + 1))
def test_no_polygon_of_the_kind_is_better(k):
    """A scan over radius² and bias, positive ones too; its own error is below 2e-4."""
    mu = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    square = torch.linspace(0.02, 4, 60, dtype=torch.float64)[:, None, None]
    bias = torch.linspace(-3, 0.5, 60, dtype=torch.float64)[:, None]
    loss = torch.zeros(60, 60, dtype=torch.float64)
    for d in range(k):
        output = (square * math.cos(2 * math.pi * d / k) * mu + bias).clamp(min=0)
        loss += ((mu if d == 0 else 0) - output).square().mean(dim=-1)
    assert metrics.polygon(k).loss <= loss.min().item() + 2e-4


def test_a_polygon_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("toykern.arguments.memory.free_memory", lambda device: 2**28)
    with pytest.raises(MemoryError, match="n_features=1,000,000,000 features would take"):
        metrics.polygon(5, 10**9)


def test_bad_polygons():
    for k in (1, 13):
        with pytest.raises(ValueError, match="n_vertices must be an integer from 2 to 12"):
            metrics.polygon(k)
    with pytest.raises(ValueError, match="n_features must be an integer at least 5, not 4"):
        metrics.polygon(5, 4)
