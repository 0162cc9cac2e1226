"""Results that must come out (EXPERIMENTS §1), on small budgets. The phase diagram's are in test_cli.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kit import LEVELS, isa_level

import toykern as tk
from toykern import metrics


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def best_of(model, data, lr: float = 1e-2, **options):
    """The model with the lowest loss on fresh data after training all of the stack."""
    tk.fit(model, data, 3000, 1024, tk.AdamW(lr=lr), schedule="cosine", progress=False, **options)
    return model[int(tk.evaluate(model, data, 500_000, seed=3, **options).argmin())]


def directions(model) -> torch.Tensor:
    """Cosines between the features' columns, `[n, n]`."""
    weight = model.weight[0].detach()
    unit = weight / weight.norm(dim=0)
    return unit.mT @ unit


# Polygons


def test_five_features_in_two_dimensions_form_a_pentagon():
    """At p ≤ .05, in nearly every run; dimensionality 2/5, neighbours 72° apart, negative biases."""
    points = tk.grid(density=[0.05, 0.03, 0.01], seed=range(8))
    model = tk.TiedAutoencoder(5, 2, points.n_models, seed=points.seed)
    data = tk.SparseFeatures(5, points.density[:, None])
    run = tk.fit(
        model,
        data,
        steps=3000,
        batch_size=1024,
        optimizer=tk.AdamW(lr=1e-2),
        schedule="cosine",
        grid=points,
        progress=False,
    )
    chosen = run.best(over="seed", by=tk.evaluate(model, data, 500_000, seed=3))
    weight = model.weight[torch.from_numpy(chosen)].detach()
    dimensionality = metrics.feature_dimensionality(weight)
    assert (dimensionality - 0.4).abs().max() < 0.01, dimensionality
    angles = torch.atan2(weight[:, 1], weight[:, 0]).sort(dim=1).values
    gaps = torch.diff(angles, append=angles[:, :1] + 2 * math.pi)
    assert (torch.rad2deg(gaps) - 72).abs().max() < 2, gaps
    assert (model.bias[torch.from_numpy(chosen)] < -0.2).all()
    pentagons = (metrics.feature_dimensionality(model.weight) - 0.4).abs().amax(1) < 0.03
    assert (pentagons.reshape(points.shape).sum(1) >= 6).all()


def test_one_sparse_training_finds_the_exact_pentagon():
    """From another size and bias back to radius 1.17046 and bias −0.28230 (Chen et al. 2023)."""
    point = metrics.polygon(5)
    model = tk.TiedAutoencoder.from_published(0.9 * point.weight.mT, 0.5 * point.bias)
    data = tk.SparseFeatures.one_sparse(5)
    tk.fit(model, data, 2000, 4096, tk.SGD(lr=0.05), loss_reduction="sum", progress=False)
    assert (model.weight.norm(dim=1) - 1.17046).abs().max() < 3e-3
    assert (model.bias + 0.28230).abs().max() < 3e-3
    assert (metrics.feature_dimensionality(model.weight) - 0.4).abs().max() < 1e-3


# Critical points

COPIES = 400


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("vertices", "features"), [(2, 5), (4, 4), (5, 5), (5, 8), (7, 7), (9, 9)])
def test_the_gradient_vanishes_at_polygons_and_not_beside_them(vertices, features, level):
    """Mean gradient over independent batches, in standard errors; float32 rounding where it is exactly 0."""
    point = metrics.polygon(vertices, features)
    for scale, vanishes in ((1.0, True), (1.02, False)):
        weight = (scale * point.weight.mT).expand(COPIES, features, 2)
        model = tk.TiedAutoencoder.from_published(weight, point.bias)
        with isa_level(level):
            run = tk.fit(
                model,
                tk.SparseFeatures.one_sparse(features),
                steps=1,
                batch_size=4096,
                optimizer=tk.SGD(lr=0.0, momentum=0.9),
                loss_reduction="sum",
                progress=False,
            )
        for name in ("weight", "bias"):
            gradients = run.optimizer_state[f"{name}/momentum_buffer"].double()
            mean, error = gradients.mean(0).abs(), gradients.std(0) / math.sqrt(COPIES)
            assert error.max() < 1e-3
            if vanishes:
                assert (mean <= 5 * error + 1e-7).all(), (name, mean / error)
            else:
                assert (mean > 20 * error + 1e-3).any(), (name, mean / error)


def test_training_hardly_leaves_a_critical_point():
    for vertices, features in ((4, 4), (5, 5), (5, 8)):
        point = metrics.polygon(vertices, features)
        model = tk.TiedAutoencoder.from_published(point.weight.mT, point.bias)
        start = model.weight.detach().clone()
        data = tk.SparseFeatures.one_sparse(features)
        tk.fit(model, data, 1000, 4096, tk.SGD(lr=0.05), loss_reduction="sum", progress=False)
        assert (model.weight - start).norm(dim=1).max() < 2e-3
        assert (model.bias - point.bias).abs().max() < 2e-3


# Groups


@pytest.mark.parametrize("p", [0.05, 0.2])
def test_correlated_features_are_orthogonal_and_face_those_of_the_other_pair(p):
    groups = [tk.Correlated((0, 1)), tk.Correlated((2, 3))]
    cosines = directions(best_of(tk.TiedAutoencoder(4, 2, 12), tk.SparseFeatures(4, p, groups=groups)))
    assert max(abs(cosines[0, 1]), abs(cosines[2, 3])) < 0.15, cosines
    assert cosines[0, 2:].min() < -0.98 and cosines[1, 2:].min() < -0.98, cosines


@pytest.mark.parametrize("p", [0.05, 0.2])
def test_anticorrelated_features_are_antipodal(p):
    """Without loss: only one of a pair is ever active, and the pairs have a dimension each."""
    groups = [tk.Anticorrelated((0, 3)), tk.Anticorrelated((1, 2))]
    data = tk.SparseFeatures(4, p, groups=groups)
    best = best_of(tk.TiedAutoencoder(4, 2, 12), data)
    cosines = directions(best)
    assert max(cosines[0, 3], cosines[1, 2]) < -0.99, cosines
    assert cosines[0, 1:3].abs().max() < 0.05, cosines
    assert tk.evaluate(best, data, 100_000).item() < 1e-7


# Other members of the family


def test_only_the_relu_model_uses_superposition():
    """The linear model represents the most important features and no others; the ReLU model many more."""
    importance = 0.7 ** np.arange(20)
    data = tk.SparseFeatures(20, 0.01)
    linear = best_of(tk.TiedAutoencoder(20, 5, 4, output_activation="none"), data, importance=importance)
    norms = linear.weight[0].norm(dim=0)
    assert (norms[:5] > 0.98).all() and (norms[5:] < 0.05).all(), norms
    relu = best_of(tk.TiedAutoencoder(20, 5, 4), data, importance=importance)
    assert metrics.features_per_dimension(linear.weight).item() == pytest.approx(1, abs=0.02)
    assert metrics.features_per_dimension(relu.weight).item() > 2


def test_the_absolute_value_is_learned_exactly_by_two_units_a_feature():
    data = tk.SparseFeatures(3, 0.1, magnitude="symmetric")
    model = best_of(tk.Autoencoder(3, 6, 12, hidden_activation="relu"), data, target="abs")
    assert tk.evaluate(model, data, 100_000, target="abs").item() < 1e-6
    x = torch.linspace(-1, 1, 41)[:, None] * torch.eye(3)[:, None, :].reshape(3, 1, 3)
    assert (model(x.reshape(-1, 3))[0] - x.reshape(-1, 3).abs()).abs().max() < 1e-2
