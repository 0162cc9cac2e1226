"""Experiments with wide layers: what is made of trained models, against answers that are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toykern import experiments
from toykern.arguments.grids import grid
from toykern.experiments import engineering_monosemanticity as engineering
from toykern.experiments import feature_decoding as decoding
from toykern.experiments import hidden_size, solu_neurons, wide_tickets
from toykern.nn import MLP
from toykern.sparse import Topology

TINY = {"n_features": 6, "n_embedding": 4, "steps": 3, "batch_size": 8, "evaluated": 64}


class Trained:
    """Models as a stage would give them."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def read(self, name):
        return self.arrays[name]


def setup(**settings):
    return decoding.FeatureDecoding(**(TINY | settings))


def test_power_law_probabilities_have_the_mean_that_was_asked_for_until_they_are_cut():
    rare = decoding.probabilities(setup(n_features=100, probability=0.01, frequencies="power-law")).numpy()
    assert rare.mean() == pytest.approx(0.01, rel=1e-12)
    np.testing.assert_allclose(rare[0] / rare[9], 10**1.1, rtol=1e-12)
    dense = decoding.probabilities(setup(n_features=100, probability=0.3, frequencies="power-law"))
    assert dense.max() == 1 and dense[0] == 1 and dense[-1] < 0.3


def test_the_loss_of_nothing_is_that_of_zeros():
    """Σ p/3 is the energy of uniform features, of one sign and of two."""
    for task in ("decode", "abs"):
        chosen = setup(task=task, probability=0.2)
        data = decoding.features(chosen, torch.tensor([0]))
        x = data.sample(0, 100_000, seed=0, n_models=1)
        assert float(x.square().sum(dim=2).mean()) == pytest.approx(decoding.nothing(chosen), rel=0.02)


def test_a_second_projection_has_unit_columns_and_is_not_the_first():
    chosen, seeds = setup(task="re-project"), torch.tensor([5])
    matrix = torch.as_tensor(decoding.features(chosen, seeds).projection.matrix)
    model = MLP(6, 3, 4, embedding=4, seed=seeds, dtype=torch.float32, device="cpu")
    assert matrix.shape == (1, 4, 6)
    torch.testing.assert_close(matrix.norm(dim=1).float(), torch.ones(1, 6))
    assert (matrix.float() - model.embedding).abs().max() > 0.1


def test_answers_have_both_signs_where_features_do():
    """Two neurons for |x₀| see one feature of one sign each; one that sees x₁ of either sign does not count
    twice, since only one of them activates it."""
    model = MLP(2, 3, bias=False, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model.encoder.copy_(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.5, 1.0]]]))
    both = decoding.answers(setup(n_features=2, n_embedding=2, task="abs"), model)
    expected = [[1, 0, 0.5], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(both.detach(), torch.tensor([expected]))
    assert decoding.answers(setup(n_features=2, n_embedding=2), model).shape == (1, 2, 3)


@pytest.mark.parametrize("task", decoding.TASKS)
def test_every_task_is_trained_and_measured(task):
    chosen = engineering.Settings(**TINY, task=task, n_hidden=5, lrs=(0.01, 0.02), seeds=2)
    result = experiments.run("engineering-monosemanticity", progress=False, **dataclasses.asdict(chosen))
    assert result.findings["purity"].shape == (2, 2, 2, 5)
    assert np.isfinite(result.findings["loss"]).all()
    models = result.trained["bias-0"].model()
    assert models.decoder.shape == (4, 4 if task == "re-project" else 6, 5)
    assert torch.equal(models.embedding[0], models.embedding[2]), "one seed, one projection, at both rates"
    assert (result.trained["bias-1"].model().hidden_bias < -0.9).all()


def test_noise_and_l1_reach_the_training():
    def weights(**settings):
        stage = decoding.decoding_stage(setup(**settings), "a", grid(lr=[0.01], seed=[0]), 5)
        return stage.fit["l1"], stage.plan(stage.grid, torch.tensor([0]))["data"].noise

    assert weights() == (0.0, 0.0)
    assert weights(noise=0.1, l1=0.01) == (0.01, 0.1)


def judged(loss, share, bias=None):
    loss, share = np.array(loss)[..., None], np.array(share)[..., None]
    bias = -share if bias is None else np.array(bias)[..., None]
    return engineering.judge(np.array([0.0, -1.0]), np.array([0.001, 0.01]), loss, share, bias)


def test_minima_are_compared_only_where_losses_are_nearly_equal():
    near = judged([[1.0, 1.1], [1.0, 1.0]], [[0.0, 0.3], [0.3, 0.6]])
    assert [outcome.agrees for outcome in near] == [True, True, True, True]
    far = judged([[1.0, 2.0], [1.0, 1.0]], [[0.0, 0.3], [0.0, 0.4]])
    assert [outcome.agrees for outcome in far] == [False, False, True, None]
    diverged = judged([[1.0, np.nan], [1.0, 1.0]], [[0.0, 0.3], [0.2, 0.4]])
    assert diverged[0].agrees is False
    positive = judged([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.3], [0.3, 0.6]], [[0.0, 0.1], [0.1, 0.2]])
    assert positive[2].agrees is False


def test_shares_are_of_all_neurons_and_biases_of_the_living():
    purity = np.array([[[1.0, 0.9995, 0.99, 0.0]]])
    bias = np.array([[[-0.2, -0.4, 0.3, -9.0]]], dtype=np.float32)
    trained = Trained(purity=purity, fresh_loss=np.array([[0.5]]), hidden_bias=bias)
    chosen = engineering.Settings(lrs=(0.01,), initial_biases=(0.0,))
    found = engineering.look(chosen, {"bias-0": trained})
    assert found["share"].item() == 0.5
    assert found["alive"].item() == 0.75
    assert found["mean_bias"].item() == pytest.approx(-0.1)


def test_sizes_are_compared_on_both_sides_of_the_number_of_features():
    sizes = np.array([8, 32, 128])
    grows = hidden_size.judge(sizes, 32, np.array([0.7, 0.1, 0.05]), np.array([0.0, 0.0, 20.0]))
    assert [outcome.agrees for outcome in grows] == [True, True, True]
    stays = hidden_size.judge(sizes, 32, np.array([0.7, 0.1, 0.1]), np.array([1.0, 4.0, 8.0]))
    assert [outcome.agrees for outcome in stays] == [False, False, False]
    narrow = hidden_size.judge(sizes[:2], 32, np.array([0.7, 0.1]), np.array([0.0, 1.0]))
    assert [outcome.agrees for outcome in narrow] == [True, None, None]
    assert "both sides" in narrow[1].note


def test_neurons_are_counted_by_size():
    trained = {
        "k-2": Trained(purity=np.array([[[1.0, 0.0]]]), fresh_loss=np.array([[0.5]])),
        "k-4": Trained(purity=np.array([[[1.0, 0.9995, 0.5, 0.9]]]), fresh_loss=np.array([[0.25]])),
    }
    found = hidden_size.look(hidden_size.Settings(n_features=3, n_hidden=(2, 4)), trained)
    assert found["monosemantic"].tolist() == [[1], [2]]
    assert found["dead"].tolist() == [[1], [0]]
    assert found["loss"].tolist() == [[0.5], [0.25]]


def test_participation_is_the_number_of_equal_codes():
    codes = torch.zeros(3, 5, 8)
    codes[0, :, :2] = -3.0  # two of eight code every sample
    codes[1] = 1.0
    codes[2, 0, 0] = 4.0  # and of the samples without codes nothing is said
    torch.testing.assert_close(
        solu_neurons.participation(codes), torch.tensor([1 / 4, 1.0, 1 / 8], dtype=torch.float64)
    )


def test_the_best_learning_rate_of_each_activation_is_looked_at():
    chosen = solu_neurons.Settings(**TINY, n_hidden=5, lrs=(1e-9, 0.05), seeds=2)
    trained = experiments.run("solu-neurons", progress=False, **dataclasses.asdict(chosen))
    found = trained.findings
    assert found["purity"].shape == (4, 2, 5)
    least = found["losses"].mean(axis=2).min(axis=1)
    np.testing.assert_allclose(found["loss"].mean(axis=1), least)
    codes = trained.trained["gelu"].model()
    assert codes.hidden_activation == "gelu" and codes.n_models == 4


def test_activations_are_judged_by_loss_and_coding():
    order = np.array([1.0, 2.0, 3.0, 4.0])
    as_published = solu_neurons.judge(order, order, order, order[::-1])
    assert [outcome.agrees for outcome in as_published] == [True, True, None, None]
    other = solu_neurons.judge(order[::-1], order, order, order)
    assert [outcome.agrees for outcome in other] == [False, False, None, None]


SPARSE = {
    "n_features": 8,
    "n_hidden": 12,
    "densities": (0.5, 0.25),
    "seeds": 2,
    "steps": 12,
    "batch_size": 4,
    "updates": 3,
    "rounds": 2,
    "evaluated": 64,
}


@pytest.fixture(scope="module")
def sparse():
    return experiments.run("wide-tickets", progress=False, **SPARSE)


def test_all_methods_end_with_as_many_connections(sparse):
    """Of 96: those of a fixed mask exactly, others but for what rounding down and signs leave or take."""
    found = sparse.findings["connections"] * 96
    assert found.shape == (6, 2, 2)
    assert (found[wide_tickets.METHODS.index("static")] == np.array([[48], [24]])).all()
    assert (np.abs(found - np.array([[48], [24]])) <= 3).all(), found


def test_tickets_train_again_from_other_weights_with_their_own_connections(sparse):
    ticket = sparse.trained["ticket-1"].read("connections")
    seeds = torch.arange(2) + (1 << 31)
    again = wide_tickets._autoencoders(
        wide_tickets.Settings(**SPARSE), seeds, topology=Topology.from_mask(torch.from_numpy(ticket))
    )
    np.testing.assert_array_equal(again.topology.to_mask().numpy(), ticket)
    losses = sparse.findings["loss"][:, 1]
    assert (losses[wide_tickets.METHODS.index("ticket")] != losses[-1]).all()


def test_a_store_gives_the_same_tickets(tmp_path):
    settings = SPARSE | {"densities": (0.25,), "seeds": 1}
    plain = experiments.run("wide-tickets", progress=False, **settings)
    stored = experiments.run("wide-tickets", progress=False, store=tmp_path / "tickets", **settings)
    for name in plain.findings.arrays:
        np.testing.assert_array_equal(stored.findings[name], plain.findings[name])


def test_purity_is_that_of_positive_codes():
    """Neuron 0 has features 0 and 1, of which 1 would make its code negative; neuron 1 has both."""
    settings = wide_tickets.Settings(n_features=2, n_hidden=2, evaluated=64)
    topology = Topology.from_mask(torch.ones(1, 2, 2, dtype=torch.bool))
    model = wide_tickets._autoencoders(settings, torch.tensor([0]), topology=topology)
    with torch.no_grad():
        model.values.copy_(torch.tensor([1.0, -5.0, 3.0, 1.0]))
    measured = wide_tickets._measured(settings, SimpleNamespace(model=model))
    assert measured["purity"].tolist() == [[1.0, 0.75]]


def test_methods_are_judged_at_every_density():
    methods, densities = len(wide_tickets.METHODS), np.array([0.1, 0.05])
    loss = np.tile([0.1, 0.2], (methods, 1))
    share = np.zeros_like(loss)
    assert [o.agrees for o in wide_tickets.judge(loss, share, 0.0, densities)] == [False] * 3 + [None]
    loss[wide_tickets.METHODS.index("static")] = [0.3, 0.4]
    loss[-1] = [0.1, 0.3]
    assert [o.agrees for o in wide_tickets.judge(loss, share, 0.0, densities)] == [True] * 3 + [None]
    loss[wide_tickets.METHODS.index("set"), 0] = 0.35
    assert wide_tickets.judge(loss, share, 0.0, densities)[0].agrees is False
