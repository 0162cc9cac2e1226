"""The experiments with sparse autoencoders: what `look` computes, where the answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toykern import experiments
from toykern.experiments import activations_saes, hierarchy_absorption, toy_saes
from toykern.experiments.dictionary_learning import (
    at_l0,
    decaying_probabilities,
    dictionary_of,
    principal_directions,
    random_directions,
    recovery,
    score_codes,
)
from toykern.experiments.small_transformer import Task, accuracy, random_weights, residual, train
from toykern.metrics import mean_max_cosine_similarity
from toykern.nn import MLP


def cpu_mlp(*args, **options):
    return MLP(*args, dtype=torch.float32, device="cpu", **options)


def test_directions_are_of_length_1_and_their_own_for_each_seed():
    drawn = random_directions(6, 10, seed=3)
    assert drawn.shape == (6, 10) and drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(10))
    assert torch.equal(drawn, random_directions(6, 10, seed=3))
    assert not torch.equal(drawn, random_directions(6, 10, seed=4))


def test_probabilities_decay_and_add_up():
    p = decaying_probabilities(512, 0.99, 5.0)
    assert float(p.sum()) == pytest.approx(5.0)
    torch.testing.assert_close(p[1:] / p[:-1], torch.full((511,), 0.99, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"mean_active=2\.0 of 3 .*probability 1\.14"):
        decaying_probabilities(3, 0.5, 2.0)


@pytest.mark.parametrize("tied", [False, True])
def test_an_autoencoder_that_holds_the_truth_recovers_it_and_one_that_lacks_a_direction_does_not(tied):
    truth = torch.eye(4, dtype=torch.float32)
    model = cpu_mlp(4, 4, n_models=2, tied=tied, bias=False)
    with torch.no_grad():
        for name, weight in model.stacked_parameters().items():
            if name != "hidden_bias":
                weight.copy_(truth)
        (model.weight if tied else model.decoder)[1, 3] = 0.0  # the second model never writes the last
    found = recovery(model, truth)
    assert found[0].item() == pytest.approx(1.0) and found[1].item() == pytest.approx(0.75)
    assert dictionary_of(model).shape == (2, 4, 4) and not dictionary_of(model).requires_grad


def test_scores_of_codes_that_are_known(monkeypatch):
    """Two units: one codes the first input, the other is dead; the second input is left out."""
    model = cpu_mlp(2, 2, bias=False)
    with torch.no_grad():
        model.encoder[0] = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        model.decoder[0] = torch.eye(2)
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    for at_once in (1 << 24, 1):  # all samples together, and one by one
        monkeypatch.setattr("toykern.experiments.dictionary_learning._CODES_AT_ONCE", at_once)
        scores = score_codes(model, x, x)
        assert scores["l0"].tolist() == [0.5]
        assert scores["dead"].tolist() == [0.5]
        assert scores["explained"].item() == pytest.approx(0.6)  # an error of 2, and 4 + 1 around the mean


def test_principal_directions_hold_an_orthogonal_truth_and_no_more_than_the_rank():
    scales = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    samples = torch.cat([torch.diag(scales), -torch.diag(scales)])
    found = principal_directions(samples)
    assert found.shape == (3, 6)
    eye = torch.eye(3, dtype=torch.float64)
    assert mean_max_cosine_similarity(found, eye).item() == pytest.approx(1.0)
    four = torch.cat([eye, torch.full((3, 1), 3**-0.5, dtype=torch.float64)], dim=1)
    assert mean_max_cosine_similarity(found, four).item() == pytest.approx((3 + 3**-0.5) / 4)


def test_values_at_an_l0_are_between_those_of_the_neighbours_or_unknown():
    l0s, values = np.array([8.0, 0.0, 2.0, 32.0]), np.array([3.0, 9.0, 1.0, np.nan])
    assert at_l0(l0s, values, 4.0) == pytest.approx(2.0)
    assert math.isnan(at_l0(l0s, values, 16.0)) and math.isnan(at_l0(l0s, values, 1.0))
    assert math.isnan(at_l0(np.zeros(2), np.ones(2), 1.0))


def test_the_l1_weight_is_the_published_one_times_the_dimensions():
    """d (‖x − x̂‖²/d + α/n ‖c‖₁), so that α = 1 is d/n beside a sum of squares."""
    settings = replace(toy_saes.EXPERIMENT.quick, alpha_exponents=(0, 4))
    for stage in toy_saes.stages(settings):
        planned = stage.plan(stage.grid, torch.arange(stage.grid.n_models, device="cpu"))
        units = planned["model"].n_hidden
        if stage.name.startswith("top-"):
            assert "l1" not in planned
        else:
            torch.testing.assert_close(
                torch.as_tensor(planned["l1"], dtype=torch.float64, device="cpu"),
                torch.tensor([32 / units, 320 / units], dtype=torch.float64),
            )
        assert stage.fit["loss_reduction"] == "sum" and stage.fit["target"] == "embedding"


def test_the_published_grid_is_136_models():
    settings = replace(toy_saes.EXPERIMENT.settings, ratio_exponents=tuple(range(-2, 6)))
    sizes = toy_saes.sizes(settings)
    assert sizes == [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    assert len(sizes) * len(toy_saes.alphas(settings)) == 136
    assert toy_saes.alphas(settings)[0] == pytest.approx(0.01) and toy_saes.alphas(settings)[-1] == 100


def test_features_are_correlated_and_as_frequent_as_without():
    settings = replace(toy_saes.EXPERIMENT.quick, loading=0.9, factors=1)
    data = toy_saes.stream(settings)
    torch.testing.assert_close(data.marginals()[0], decaying_probabilities(64, 0.99, 1.5))
    together = data.sample(0, 4096, 0, n_models=1)[0] > 0
    apart = toy_saes.stream(replace(settings, loading=0.0)).sample(0, 4096, 0, n_models=1)[0] > 0
    # The factor of a feature is ±0.9: those of the same sign are active together.
    assert together.sum(1).double().var() > 2 * apart.sum(1).double().var()


class Made:
    """Trained models that are written down instead."""

    def __init__(self, model, **results):
        self.stage = SimpleNamespace(grid=SimpleNamespace(n_models=model.n_models))
        self.held, self.results = model, results

    def model(self):
        return self.held

    def read(self, name):
        return self.results[name]


def test_similarity_with_the_next_larger_dictionary():
    small, large = cpu_mlp(3, 2, n_models=1), cpu_mlp(3, 3, n_models=1)
    with torch.no_grad():
        small.decoder[0] = torch.eye(3)[:, :2]
        large.decoder[0] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    found = toy_saes._within_larger([Made(small), Made(large)])
    assert found[0, 0] == pytest.approx((1 + 0.5**0.5) / 2) and np.isnan(found[1, 0])


def test_a_unit_that_is_the_label_is_explained_by_it_and_a_token_by_its_class():
    token = torch.arange(6).repeat(50)
    classes = token % 2
    codes = torch.stack([(token == 3).double(), classes.double(), torch.ones(300).double()], dim=-1)[None]
    by_token = activations_saes.explained_by(codes, token)[0]
    by_class = activations_saes.explained_by(codes, classes)[0]
    torch.testing.assert_close(by_token[:2], torch.ones(2, dtype=torch.float64))
    # A single token of the three of its class: p = 1/6, and 1/3 within its class.
    assert by_class[0].item() == pytest.approx((0.5 * (1 / 3) ** 2 - (1 / 6) ** 2) / (1 / 6 * 5 / 6))
    assert by_class[1].item() == pytest.approx(1.0)
    assert by_token[2].isnan() and by_class[2].isnan()


def test_dictionaries_agree_with_themselves_and_an_empty_one_with_none():
    one = random_directions(5, 7, seed=0).double()
    assert activations_saes.agreement(one, one[:, [3, 1, 0, 2, 6, 5, 4]]) == pytest.approx(1.0)
    half = activations_saes.agreement(one, one[:, :1])
    assert half == pytest.approx((1 + float((one.mT @ one[:, 0]).mean())) / 2)
    assert math.isnan(activations_saes.agreement(one, one[:, :0]))


def test_the_transformer_looks_back_and_never_ahead():
    task = Task(6, 3, 5)
    weights = random_weights(task, 8, seed=0)
    x, _ = task.draw(3, torch.Generator("cpu").manual_seed(0))
    before = residual(weights, x)
    changed = x.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 6
    after = residual(weights, changed)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=0)
    assert bool(((after - before)[:, 3:].abs().amax(-1) > 1e-6).all())


def test_training_learns_and_leaves_the_weights_it_was_given():
    task = Task(4, 2, 3)
    start = random_weights(task, 8, seed=0)
    kept = {name: weight.clone() for name, weight in start.items()}
    trained = train(task, start, steps=100, batch=32, lr=2e-2, decay=0.1, seed=0)
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert accuracy(task, trained, 500, seed=1) > 0.95 > 0.75 > accuracy(task, start, 500, seed=1)
    assert not any(weight.requires_grad for weight in trained.values())


def test_activations_are_centred_and_of_length_1():
    tiny = replace(activations_saes.EXPERIMENT.quick, transformer_steps=2, sequences=100, samples=50, d=4)
    for found in activations_saes.activations(tiny).values():
        assert found.training.shape == (300, 4) and found.fresh.shape == (50, 4)
        torch.testing.assert_close(found.training.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
        assert found.training.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-4)
        assert all(label.shape == (50,) for label in found.labels.values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("toy-saes", {"steps": 3, "samples": 64, "d": 8, "directions": 16, "ratio_exponents": (0,)}),
        ("activations-saes", {"steps": 3, "samples": 64, "transformer_steps": 2, "sequences": 64}),
        ("hierarchy-absorption", {"steps": 3, "seeds": 2, "samples": 256}),
    ],
)
def test_untrained_models_do_not_agree_and_say_so(name, settings):
    result = experiments.run(name, quick=True, progress=False, **settings)
    assert not all(outcome.agrees for outcome in result.findings.outcomes)
    assert all(outcome.note for outcome in result.findings.outcomes if outcome.agrees is None)
    result.figure()


def absorbing():
    """An autoencoder without a hole, and one whose child's unit writes both and whose parent's is silent."""
    model = cpu_mlp(4, 4, 4, n_models=2, bias=False, embedding=torch.eye(4))
    with torch.no_grad():
        model.encoder.copy_(torch.eye(4))
        model.decoder.copy_(torch.eye(4))
        model.encoder[1, 0, 1] = -1.0  # the parent's unit is switched off by the child
        model.decoder[1, 0, 1] = 1.0  # the child's unit writes the parent, too
    return model


def test_a_hole_is_seen_where_there_is_one():
    x = torch.zeros(2, 6, 4)
    x[:, :4, 0] = 1.0  # the parent in four samples, with the child in two of them
    x[:, 2:4, 1] = 1.0
    x[:, 5, 2] = 1.0
    found = hierarchy_absorption.absorption(absorbing(), x, torch.eye(4)[0])
    assert found["recall"].tolist() == [1.0, 0.0] and found["strength"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(found["mixed"], torch.tensor([0.0, 0.5**0.5], dtype=torch.float64))


def test_a_parent_that_is_weak_with_its_child_is_no_hole_of_its_recall():
    x = torch.zeros(2, 4, 4)
    x[:, :, 0] = 1.0
    x[:, 2:, 1] = 0.75
    found = hierarchy_absorption.absorption(absorbing(), x, torch.eye(4)[0])
    assert found["recall"].tolist() == [1.0, 1.0] and found["strength"].tolist() == [1.0, 0.25]
    x[:, :, 1] = 0.0
    assert bool(hierarchy_absorption.absorption(absorbing(), x, torch.eye(4)[0])["recall"].isnan().all())


@pytest.mark.parametrize("kind", hierarchy_absorption.KINDS)
def test_all_kinds_have_the_same_frequencies(kind):
    settings = hierarchy_absorption.EXPERIMENT.settings
    data = hierarchy_absorption.stream(settings, kind, torch.tensor([0.2, 0.4]))
    wanted = [[0.25, 0.05, 0.05, 0.05], [0.25, 0.1, 0.05, 0.05]]
    torch.testing.assert_close(data.marginals(), torch.tensor(wanted, dtype=torch.float64))
    x = data.sample(0, 2000, 0, n_models=2)
    without_parent = int(((x[..., 1] > 0) & (x[..., 0] == 0)).sum())
    assert (without_parent > 0) == (kind == "independent")
