"""What the experiments of this family compute from trained models, against answers that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import experiments
from toykern.experiments import (
    absolute_value,
    adversarial,
    correlated_features,
    energy_levels,
    packings,
    relu_hidden,
    residual_mlp,
)
from toykern.experiments.neurons import draw_neurons, features_of_neurons, scaled_to_one


class Held:
    """Trained models with the arrays that are given."""

    def __init__(self, **arrays):
        self.arrays = {name: np.asarray(values) for name, values in arrays.items()}

    def read(self, name):
        return self.arrays[name]


def agreed(findings, what):
    return next(outcome.agrees for outcome in findings.outcomes if outcome.what == what)


def square(*columns):
    """One model `[hidden, features]` of these columns."""
    return np.array(columns, dtype=np.float64).T


# Correlated features


def held_pairs(correlated, anticorrelated, six, bases):
    one = [[0.5]]
    return {
        "correlated": Held(weight=[[correlated]], fresh_loss=one),
        "anticorrelated": Held(weight=[[anticorrelated]], fresh_loss=one),
        "three-pairs": Held(weight=[[part] for part in six], fresh_loss=[[0.5]] * len(six)),
        "bases": Held(weight=[[bases]], fresh_loss=one),
    }


def hexagon():
    angle = np.arange(6) * np.pi / 3
    return np.stack([np.cos(angle), np.sin(angle)])


def collapsed():
    angle = np.repeat(np.arange(3) * 2 * np.pi / 3, 2)
    return np.stack([np.cos(angle), np.sin(angle)]) * 0.5**0.5


def test_pairs_are_seen_as_they_lie():
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    settings = correlated_features.Settings(densities=(0.5, 0.01), seeds=1)
    found = correlated_features.look(
        settings,
        held_pairs(
            square(east, north, -east, -north),
            square(east, -east, north, -north),
            [collapsed(), hexagon()],
            np.concatenate([np.eye(10), turned], axis=1),
        ),
    )
    assert [outcome.agrees for outcome in found.outcomes] == [True] * 5
    np.testing.assert_allclose(found["cosines"][1], 0.5)
    np.testing.assert_allclose(found["cosines"][0], 1.0)
    np.testing.assert_allclose(found["principal"], [[1.0] * 3, [1.5] * 3])
    np.testing.assert_allclose(found["second"], [[0.0] * 3, [0.5] * 3], atol=1e-15)
    assert found["collapsed"].tolist() == [3, 0]

    other = correlated_features.look(
        settings,
        held_pairs(
            square(east, -east, north, -north),
            square(east, north, -east, -north),
            [hexagon(), collapsed()],
            np.concatenate([np.eye(10), np.zeros((10, 10))], axis=1),
        ),
    )
    assert [outcome.agrees for outcome in other.outcomes] == [False] * 5


def test_the_density_is_that_of_a_set():
    settings = correlated_features.Settings(density=0.4, densities=(0.4,), bases_density=0.4)
    for stage in correlated_features.stages(settings):
        data = stage.plan(stage.grid, torch.arange(stage.grid.n_models))["data"]
        x = data.sample(0, 20_000, seed=0)[0]
        first = x[:, : x.shape[1] // (3 if stage.name == "three-pairs" else 2)] > 0
        assert first.any(dim=1).float().mean().item() == pytest.approx(0.4, abs=0.02), stage.name
        members = first.sum(dim=1)[first.any(dim=1)]
        assert (members == (1 if stage.name == "anticorrelated" else first.shape[1])).all()


# Energy levels


def test_jumps_are_of_represented_features_and_counted_once_all_are_there():
    dimensionality = np.array([[0.1, 0.1, 0.4], [0.4, 0.1, 0.4], [0.5, 0.1, 0.4], [0.5, 0.5, 0.2]])
    norm = np.array([[0.1, 0.1, 1.0], [0.9, 0.1, 1.0], [1.0, 0.1, 1.0], [1.0, 0.2, 0.8]])
    found = energy_levels.between(dimensionality, norm, np.exp([0.0, -1.0, -1.5, -1.5]))
    assert found.jumps.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.moved, [0.3, 0.1, 0.2])
    np.testing.assert_allclose(found.drop, [1.0, 0.5, 0.0])
    assert found.learned.tolist() == [False, True, True]


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 30))
    n = len(x)
    ranks = [np.array([(values < value).sum() for value in values]) for values in (x, y)]
    expected = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (n * (n * n - 1))
    assert energy_levels.rank_correlation(x, y) == pytest.approx(expected, abs=1e-11)
    assert np.isnan(energy_levels.rank_correlation(x[:1], y[:1]))


def test_snapshots_are_evaluated_as_the_models_that_they_are():
    small = {"n_features": 8, "n_hidden": 3, "models": 2, "steps": 30, "snapshots": 5, "samples": 1000}
    result = experiments.run("energy-levels", quick=True, progress=False, **small)
    loss, models = result.findings["loss"], result.trained["learning"]
    data = tk.SparseFeatures(8, result.settings.density)
    np.testing.assert_allclose(loss[:, -1], tk.evaluate(models.model(), data, 1000, seed=0), rtol=1e-12)
    assert models.model().weight.detach().abs().max() < 1
    assert result.findings["step"].tolist()[-1] == 30
    assert [outcome.agrees for outcome in result.findings.outcomes[1:]] == [None, None]
    result.figure()


# Neurons


def test_scaled_neurons_compute_the_same():
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 5, 4, 3, generator=generator).double()
    decoder = decoder.mT.contiguous()
    x = torch.randn(7, 3, generator=generator).double()
    scaled = [torch.from_numpy(part) for part in scaled_to_one(encoder.numpy(), decoder.numpy())]
    of = lambda e, d: torch.relu(x @ e.mT) @ d.mT  # noqa: E731
    torch.testing.assert_close(of(*scaled), of(encoder, decoder))
    torch.testing.assert_close(scaled[0].abs().amax(dim=2), torch.ones(5, 4).double())


def test_neurons_are_drawn_as_stacks():
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    draw_neurons(panel, np.array([[1.0, -2.0, 0.5]]), np.array(["red", "green", "blue"]))
    heights = [patch.get_y() + patch.get_height() for patch in panel.patches]
    assert max(heights) == 1.5 and min(heights) == -2.0


def test_neurons_of_one_feature_and_of_several():
    alone, shared = np.eye(5, 10), np.ones((5, 10))
    mixed = np.concatenate([alone[:3], shared[:2]])
    settings = relu_hidden.Settings(densities=(0.5, 0.3, 0.01), seeds=2)
    weights = np.stack([np.stack([part, 0 * part]) for part in (alone, mixed, shared)])
    found = relu_hidden.look(settings, {"neurons": Held(weight=weights, fresh_loss=[[1.0, np.nan]] * 3)})
    assert (found["features"] == 1).sum(axis=1).tolist() == [5, 3, 0]
    assert found["features"][2].tolist() == [10] * 5
    assert [outcome.agrees for outcome in found.outcomes] == [True] * 3
    other = relu_hidden.look(
        settings, {"neurons": Held(weight=weights[::-1], fresh_loss=[[1.0, np.nan]] * 3)}
    )
    assert [outcome.agrees for outcome in other.outcomes] == [False, True, False]
    assert features_of_neurons(np.zeros((2, 3)), 0.2).sum() == 0


# Absolute values


def exact_absolute(features):
    """One neuron for each feature and sign."""
    eye = np.eye(features)
    return np.concatenate([eye, -eye]), np.concatenate([eye, eye], axis=1)


def test_a_neuron_for_each_feature_and_sign():
    encoder, decoder = exact_absolute(3)
    assert absolute_value.one_for_each_sign(encoder, 0.2)
    assert not absolute_value.one_for_each_sign(np.abs(encoder), 0.2)
    assert not absolute_value.one_for_each_sign(encoder + 0.3, 0.2)
    assert not absolute_value.asymmetric_neurons(encoder, decoder, 0.2).any()


def test_asymmetric_superposition_is_unequal_in_and_reciprocal_out():
    encoder = np.array([[1.0, 0.25, 0.0], [1.0, -1.0, 0.0], [1.0, 0.25, 0.0]])
    decoder = np.array([[1.0, 4.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.5, 0.0]]).T
    assert absolute_value.asymmetric_neurons(encoder, decoder, 0.2).tolist() == [True, False, False]


def test_what_is_said_of_networks_made_by_hand():
    encoder, decoder = exact_absolute(6)
    several = np.roll(encoder, 1, axis=1) * 0.5 + encoder
    half = np.where(np.isin(np.abs(encoder).argmax(axis=1), (0, 1, 2))[:, None], encoder, several)
    settings = absolute_value.Settings(
        small_densities=(1.0,), small_seeds=1, n_features=6, n_hidden=12, densities=(1.0, 0.1, 0.01), seeds=1
    )
    small = [part[None, None] for part in exact_absolute(3)]
    unequal = decoder + 2.0 * np.roll(decoder, 1, axis=0)
    found = absolute_value.look(
        settings,
        {
            "small": Held(encoder=small[0], decoder=small[1], fresh_loss=[[0.0]]),
            "large": Held(
                encoder=np.stack([encoder, half, several])[:, None],
                decoder=np.stack([decoder, decoder, unequal])[:, None],
                fresh_loss=[[0.0]] * 3,
            ),
        },
    )
    assert [outcome.agrees for outcome in found.outcomes] == [True] * 4
    assert (found["features"] == 1).sum(axis=1).tolist() == [12, 6, 0]
    assert found["asymmetric"].sum(axis=1).tolist() == [0, 0, 12]


# Adversarial examples


def test_an_attack_on_a_model_without_superposition_is_its_length():
    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    radius = torch.full((50,), 0.1, dtype=torch.float64)
    one, each = adversarial.harm(torch.eye(4), torch.zeros(4), x, radius)
    assert one == pytest.approx(0.01, rel=1e-6) and each == pytest.approx(0.01, rel=1e-6)


def test_an_attack_on_a_digon_is_the_best_along_its_line():
    """Two opposite features, one active at 1: outputs are ReLU(±(1 ± √2 r)), and the loss rises by 2r²."""
    weight, x = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    radius = torch.tensor([0.1], dtype=torch.float64)
    one, each = adversarial.harm(weight, torch.zeros(2), x, radius)
    assert one == pytest.approx(0.02) and each == pytest.approx(0.02)
    # An empty input: the output that rises is one of the two.
    assert adversarial.harm(weight, torch.zeros(2), 0 * x, radius)[0] == pytest.approx(0.02)
    # A bias below what the attack brings holds it off.
    assert adversarial.harm(weight, torch.full((2,), -0.5), 0 * x, radius) == (0.0, 0.0)


def test_one_attack_for_all_harms_no_more_than_one_for_each():
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(3, 8, generator=generator), -0.1 * torch.rand(8, generator=generator)
    x = tk.SparseFeatures(8, 0.3).sample(0, 200)[0]
    radius = 0.1 * x.double().norm(dim=1)
    one, each = adversarial.harm(weight, bias, x, radius)
    assert 0 < one < each
    gram = (weight.T @ weight).double()
    loss = lambda z: (torch.relu(z @ gram + bias) - x).square().sum(dim=1)  # noqa: E731
    directions = torch.nn.functional.normalize(gram, dim=1)
    rises = torch.stack([
        loss(x + sign * radius[:, None] * direction) - loss(x.double())
        for direction in directions for sign in (1, -1)
    ])  # fmt: skip
    assert one == pytest.approx(rises.mean(dim=1).max().item())
    assert each == pytest.approx(rises.amax(dim=0).clamp(min=0).mean().item())


def test_radii_and_choices_are_refused_by_name():
    for name in ("radius", "choice"):
        with pytest.raises(ValueError, match=name):
            experiments.run("adversarial", quick=True, progress=False, **{name: "none"})


# Packings


def test_the_range_of_subspaces_ends_where_the_interference_is_one():
    last = packings.largest_k(1e5, 1e4)
    assert tk.metrics.packing_interference(1e5, 1e4, last * (1 - 1e-12)) == pytest.approx(1, abs=1e-4)
    assert np.isnan(tk.metrics.packing_interference(1e5, 1e4, last * 1.001))
    assert np.isnan(packings.largest_k(100, 20))


def test_angles_are_of_represented_features():
    weight = np.array([[1.0, -2.0, 0.0, 0.1], [0.0, 0.0, 1.0, 0.1]])
    np.testing.assert_allclose(np.sort(packings.cosines(weight)), [0, 0, 1])


def test_too_few_dimensions_are_refused():
    settings = dataclasses.replace(packings.Settings(), n_dimensions=200)
    with pytest.raises(ValueError, match="n_dimensions must be at least 24 ln n_features = 276, not 200"):
        packings.look(settings, {})


# The residual network

TINY = residual_mlp.Settings(n_features=6, n_embedding=40, n_hidden=3, density=0.3, models=1)


def test_signed_features_are_symmetric_and_their_target_is_theirs():
    data = residual_mlp.signed_features(5, 0.4)
    u, v = data.sample(0, 40_000, seed=3)[0].double().chunk(2, dim=1)
    x = u - v
    assert not ((u > 0) & (v > 0)).any()
    assert (x != 0).double().mean().item() == pytest.approx(0.4, abs=0.01)
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x[x != 0].square().mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert x.abs().max() <= 1


@pytest.mark.parametrize("kind", residual_mlp.EMBEDDINGS)
def test_the_network_is_the_residual_one(kind):
    model, p = residual_mlp.network(TINY, kind, 1), residual_mlp.embedding(TINY, kind)
    torch.testing.assert_close(p.norm(dim=0), torch.ones(6))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    e = x @ p.T
    hidden = torch.relu(e @ model.encoder[0].T)
    expected = (e + hidden @ model.decoder[0].T) @ p
    torch.testing.assert_close(model(torch.cat([x.relu(), (-x).relu()], dim=1))[0], expected)
    assert {name for name, _ in model.named_parameters()} == {"encoder", "decoder"}


def test_the_naive_solution_computes_as_many_as_there_are_neurons():
    model = residual_mlp.naive(TINY, "identity")
    x = torch.linspace(-1, 1, 6)[None]
    expected = x + torch.where(torch.arange(6) < 3, x.relu(), 0)
    torch.testing.assert_close(model(torch.cat([x.relu(), (-x).relu()], dim=1))[0], expected)
    data = residual_mlp.signed_features(6, 0.3)
    assert tk.evaluate(model, data, 200_000, seed=0).item() == pytest.approx(0.3 / 12, rel=0.02)
    given = residual_mlp.contributions(
        model.encoder[0].detach().numpy(), model.decoder[0].detach().numpy(), np.eye(6)
    )
    np.testing.assert_array_equal(given.sum(axis=1), [1, 1, 1, 0, 0, 0])
