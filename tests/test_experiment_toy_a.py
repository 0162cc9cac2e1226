"""What the experiments of Toy Models of Superposition see, on models made by hand and against other ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from toykern import experiments, metrics
from toykern.data.features import SparseFeatures
from toykern.experiments import (
    demonstration,
    exact_critical_points,
    geometry,
    one_feature_perturbed,
    phase_outcomes,
)
from toykern.nn import TiedAutoencoder
from toykern.training.evaluation import evaluate


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def agreed(outcomes) -> dict[str, bool | None]:
    return {outcome.what.split(",")[0]: outcome.agrees for outcome in outcomes}


# Demonstration


def with_columns(columns, n: int, m: int) -> np.ndarray:
    """Weights `[m, n]` whose features are unit vectors: position → (dimension, sign); the others are 0."""
    weight = np.zeros((m, n))
    for feature, (dimension, sign) in columns.items():
        weight[dimension, feature] = sign
    return weight


def judged(linear, relu, densities=(1.0, 0.1, 0.01)):
    weight = np.stack([np.stack(linear), np.stack(relu)])
    shape = weight.shape
    superposition = metrics.superposition(torch.from_numpy(weight.reshape(-1, *shape[2:])))
    return agreed(
        demonstration.judge(
            weight,
            np.linalg.norm(weight, axis=2),
            superposition.numpy().reshape(*shape[:2], -1),
            np.array(densities),
        )
    )


PRINCIPAL = with_columns({0: (0, 1), 1: (1, 1)}, 6, 2)
PAIR = with_columns({0: (0, 1), 1: (1, 1), 2: (1, -1)}, 6, 2)
PAIRS = with_columns({0: (0, 1), 1: (1, 1), 2: (1, -1), 3: (0, -1)}, 6, 2)


def test_what_the_paper_shows_agrees():
    outcomes = judged([PRINCIPAL] * 3, [PRINCIPAL, PAIR, PAIRS])
    assert len(outcomes) == 4 and all(outcomes.values()), outcomes


def test_what_it_does_not_show_differs():
    other = with_columns({0: (0, 1), 2: (1, 1)}, 6, 2)  # not the most important ones
    assert judged([PRINCIPAL, other, PRINCIPAL], [PRINCIPAL, PAIR, PAIRS])["Linear models"] is False
    assert judged([PRINCIPAL, PAIR, PRINCIPAL], [PRINCIPAL, PAIR, PAIRS])["Linear models"] is False
    assert judged([PRINCIPAL] * 3, [PAIR, PAIR, PAIRS])["ReLU models of dense features"] is False
    assert judged([PRINCIPAL] * 3, [PRINCIPAL, PAIR, PAIR])["ReLU models of rare features"] is False
    important = with_columns({0: (0, 1), 1: (0, -1), 2: (1, 1)}, 6, 2)
    assert judged([PRINCIPAL] * 3, [PRINCIPAL, important, PAIRS])["Where superposition begins"] is False
    near = with_columns({0: (0, 1), 1: (1, 1), 2: (1, 1)}, 6, 2)  # shared, but no antipodal pair
    assert judged([PRINCIPAL] * 3, [PRINCIPAL, near, PAIRS])["Where superposition begins"] is False


def test_what_was_not_trained_is_not_judged():
    outcomes = judged([PRINCIPAL] * 2, [PAIRS, PAIRS], densities=(0.5, 0.1))
    assert outcomes["ReLU models of dense features"] is None
    assert outcomes["ReLU models of rare features"] is None
    assert outcomes["Where superposition begins"] is None


def test_sizes_must_fit_together():
    with pytest.raises(ValueError, match="as many, and n_features all different"):
        experiments.run("demonstration", quick=True, n_hidden=(5,))
    with pytest.raises(ValueError, match="n_features must be different values"):
        experiments.run("demonstration", quick=True, n_features=(20, 20))


# Phase diagrams


def test_theory_agrees_with_itself_and_not_with_one_phase():
    density = np.geomspace(0.01, 1.0, 20)
    for features in (2, 3):
        theory = metrics.best_solution(density[None, :], np.geomspace(0.1, 10, 20)[:, None], features)
        norm = (theory > 0).astype(float)
        assert all(agreed(phase_outcomes.judge(density, theory, theory, norm)).values())
        outcomes = agreed(phase_outcomes.judge(density, np.full_like(theory, 2), theory, 0.5 + 0 * norm))
        assert not any(outcomes.values()), outcomes


@pytest.mark.parametrize(("name", "shape"), [("phase-diagram", (1, 2)), ("phase-diagram-3", (2, 3))])
def test_the_best_model_of_each_point_is_shown(name, shape):
    result = experiments.run(name, quick=True, importances=3, densities=2, seeds=2, steps=30)
    assert result.findings["weight"].shape == (3, 2, *shape)
    trained = result.trained["points"]
    best = trained.read("fresh_loss").argmin(axis=2)
    expected = np.take_along_axis(trained.read("weight"), best[..., None, None, None], axis=2)[:, :, 0]
    np.testing.assert_array_equal(result.findings["weight"], expected)


# Geometry


def pairs_and_more(pairs: int, single: int) -> torch.Tensor:
    """Antipodal pairs and single features, a dimension each, `[dimensions, features]`."""
    columns = torch.eye(pairs + single, dtype=torch.float64)
    return torch.cat([columns, -columns[:, :pairs]], dim=1)


def geometry_of(weights) -> dict[str, bool | None]:
    own = [metrics.feature_dimensionality(weight) for weight in weights]
    width = max(len(values) for values in own)
    padded = np.stack([np.pad(values.numpy(), (0, width - len(values))) for values in own])
    dimensions = np.array([1 / float(metrics.features_per_dimension(weight)) for weight in weights])
    rarity = np.geomspace(1.0, 10.0, len(weights))
    return agreed(geometry.judge(rarity, dimensions, padded, padded > 0))


def test_a_plateau_of_pairs_is_seen():
    packed = torch.cat([metrics.polygon(7).weight / metrics.polygon(7).radius] * 2, dim=1)
    outcomes = geometry_of([pairs_and_more(0, 4), pairs_and_more(4, 0), pairs_and_more(4, 0), packed])
    assert outcomes.pop("Other polytopes") is None
    assert len(outcomes) == 4 and all(outcomes.values()), outcomes


def test_no_plateau_is_seen_where_there_is_none():
    outcomes = geometry_of([pairs_and_more(1, 1)] * 4)
    assert not outcomes["Dense features"] and not outcomes["A plateau at 1/2"]
    assert not outcomes["What the plateau is made of"] and not outcomes["Rarer features"]


# One feature perturbed


def test_solutions_are_told_apart():
    pentagon, square = metrics.polygon(5).weight.numpy(), metrics.polygon(4, 5).weight.numpy()
    weight = np.stack([pentagon, np.roll(square, 1, axis=1), square, 0 * square])
    kinds = one_feature_perturbed.kind_of(weight)
    assert kinds.tolist() == [
        one_feature_perturbed.PENTAGON,
        one_feature_perturbed.DIGONS,
        one_feature_perturbed.DIGONS_WITH_VARIED,
        one_feature_perturbed.OTHER,
    ]


def test_the_angle_to_the_neighbours_whatever_the_turn_and_the_order():
    degrees = np.array([0.0, 140.0, -60.0, 80.0, -140.0])
    for turn in (0.0, 100.0, 200.0):
        for mirrored in (1.0, -1.0):
            angle = np.radians(turn + mirrored * degrees)
            weight = np.stack([np.cos(angle), np.sin(angle)])
            assert one_feature_perturbed.neighbour_angle(weight) == pytest.approx(70.0)
    pentagon = metrics.polygon(5).weight.numpy()
    np.testing.assert_allclose(one_feature_perturbed.neighbour_angle(pentagon[None]), [72.0])


def test_losses_cross_where_two_power_laws_do():
    ratio = np.geomspace(0.1, 10, 7)
    pentagon, digons = ratio**0.5, 1.7 * ratio**1.5
    missing = np.where(ratio < 0.2, np.nan, pentagon)
    assert one_feature_perturbed.crossing(ratio, pentagon, digons) == pytest.approx(1 / 1.7)
    assert one_feature_perturbed.crossing(ratio, missing, digons) == pytest.approx(1 / 1.7)
    assert math.isnan(one_feature_perturbed.crossing(ratio, digons, pentagon))
    assert math.isnan(one_feature_perturbed.crossing(ratio, pentagon, np.full(7, np.nan)))


def test_models_begin_where_they_should():
    start = torch.tensor([0, 1, 2])
    model = TiedAutoencoder(5, 2, 3, seed=torch.arange(3))
    before = model.weight.detach().clone()
    one_feature_perturbed.begin(model, start)
    assert torch.equal(model.weight[0], before[0])
    kinds = one_feature_perturbed.kind_of(model.weight.detach().numpy())
    assert kinds[1:].tolist() == [one_feature_perturbed.PENTAGON, one_feature_perturbed.DIGONS]
    torch.testing.assert_close(
        model.weight[1].detach() - 0.1 * before[1], metrics.polygon(5).weight.to(torch.float32)
    )


@pytest.mark.parametrize(
    ("change", "points", "agrees"), [(0.4, 41, True), (0.27, 41, False), (0.27, 5, None)]
)
def test_the_place_of_the_change_is_judged_where_the_grid_is_fine_enough(change, points, agrees):
    ratio = np.geomspace(0.1, 10, points)
    lowest = np.stack([ratio**0.5, ratio / change**0.5, np.full(points, np.nan)])
    angle = 72.0 + 10 * np.log10(ratio)
    kind = np.where(ratio < change, one_feature_perturbed.DIGONS, one_feature_perturbed.PENTAGON)
    outcomes = agreed(one_feature_perturbed.judge(ratio, lowest, angle, kind))
    assert outcomes.pop("Where it is") is agrees
    assert len(outcomes) == 4 and all(outcomes.values()), outcomes


# Exact critical points


@pytest.mark.parametrize(("vertices", "features"), [(2, 3), (4, 4), (5, 5), (4, 5), (5, 8), (7, 7)])
def test_the_exact_loss_is_that_of_the_polygons_and_flat_there(vertices, features):
    point = metrics.polygon(vertices, features)
    loss = exact_critical_points.one_sparse_loss(point.weight[None], point.bias[None])
    assert loss.item() == pytest.approx(point.loss, abs=1e-12)
    assert exact_critical_points.gradient_norms(point.weight[None], point.bias[None]).item() < 1e-7
    beside = exact_critical_points.gradient_norms(1.02 * point.weight[None], point.bias[None])
    assert beside.item() > 1e-3


def test_the_exact_loss_is_the_integral_over_samples():
    """By the midpoint rule over μ, at random models with biases of either sign and a column of 0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, 4, dtype=torch.float64, generator=generator)
    bias = 0.5 * torch.randn(6, 4, dtype=torch.float64, generator=generator)
    weight[0, :, 1] = 0
    count = 20_000
    magnitudes = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    outputs = torch.relu(
        magnitudes[:, None, None, None] * (weight.mT @ weight) + bias[:, None, :]
    )  # [magnitude, model, active, output]
    errors = magnitudes[:, None, None, None] * torch.eye(4, dtype=torch.float64) - outputs
    expected = errors.square().sum(dim=-1).mean(dim=(0, 2))
    torch.testing.assert_close(
        exact_critical_points.one_sparse_loss(weight, bias), expected, rtol=1e-7, atol=1e-9
    )


def test_the_exact_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    bias = (0.5 * torch.randn(3, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(exact_critical_points.one_sparse_loss, (weight, bias))


def test_the_exact_loss_is_what_evaluate_estimates():
    model = TiedAutoencoder(5, 2, 3, seed=torch.arange(3))
    estimated = evaluate(model, SparseFeatures.one_sparse(5), 400_000, seed=0, loss_reduction="sum")
    exact = exact_critical_points.one_sparse_loss(
        model.weight.detach().double(), model.bias.detach().double()
    )
    torch.testing.assert_close(estimated, exact, rtol=1e-2, atol=0)


def test_polygons_are_recognised_turned_and_shuffled():
    rows, biases = [], []
    for k in (2, 4, 5):
        point = metrics.polygon(k, 5)
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        shuffle = torch.tensor([3, 0, 4, 1, 2])
        rows.append((turn @ point.weight)[:, shuffle].numpy())
        biases.append(point.bias[shuffle].numpy())
    rows += [1.1 * rows[-1], rows[-1] @ np.diag([1, 1, 1, 1, 0.0])]
    biases += [biases[-1], biases[-1]]
    found = exact_critical_points.vertices(np.stack(rows), np.stack(biases), 0.02, 2.0)
    assert found.tolist() == [2, 4, 5, 0, 0]


def test_ends_elsewhere_differ():
    point = metrics.polygon(5)
    weight = np.repeat(1.1 * point.weight.numpy()[None], 3, axis=0)
    bias = np.repeat(point.bias.numpy()[None], 3, axis=0)
    tensors = torch.from_numpy(weight), torch.from_numpy(bias)
    loss = exact_critical_points.one_sparse_loss(*tensors).numpy()
    gradient = exact_critical_points.gradient_norms(*tensors).numpy()
    outcomes = agreed(
        exact_critical_points.judge(5, weight, bias, loss, gradient, np.zeros(3, dtype=np.int64))
    )
    assert list(outcomes.values()) == [True, False, False]
