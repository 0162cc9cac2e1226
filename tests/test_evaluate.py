"""`evaluate`: the loss on a stream that training never draws from, against float64 and exact losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import FIT_CASES, FIT_JOINT, FitCase
from kit import LEVELS, data_of, isa_level, model_of

import toykern as tk
from toykern import metrics, reference

SAMPLES = 700


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def expected_loss(case: FitCase, samples: int, batch_size: int, seed=None) -> torch.Tensor:
    """Float64 mean over the batches of the evaluation stream."""
    model, data = model_of(case), data_of(case)
    losses = []
    for step in range(-(-samples // batch_size)):
        draw = {"seed": seed, "n_models": case.n_models, "purpose": "evaluation"}
        losses.append(
            reference.loss_and_gradients(
                reference.parameters_of(model),
                data.sample(step, batch_size, **draw),
                reference.network_of(model),
                clean=data.sample(step, batch_size, clean=True, **draw),
                **case.loss,
            )[0]
        )
    return torch.stack(losses).mean(0)


@pytest.mark.parametrize("case", [*FIT_CASES, *FIT_JOINT], ids=lambda case: case.name)
def test_the_loss_is_that_of_the_reference(case):
    expected = expected_loss(case, SAMPLES, SAMPLES)
    for level in LEVELS:
        with isa_level(level):
            loss = tk.evaluate(model_of(case), data_of(case), SAMPLES, **case.loss)
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-12)


BY_NAME = {case.name: case for case in FIT_CASES}
SOME = [BY_NAME[name] for name in ("5,2 each model its own", "20,9 noise, groups", "7,3 untied relu none")]
some = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)


@some
def test_many_samples_are_whole_batches_of_4096(case):
    expected = expected_loss(case, 8193, 4096)
    for samples in (8193, 12288):
        loss = tk.evaluate(model_of(case), data_of(case), samples, **case.loss)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-12)
    assert not torch.equal(loss, tk.evaluate(model_of(case), data_of(case), 8192, **case.loss))


@pytest.mark.sanitize
@some
def test_it_depends_on_the_model_alone(case):
    loss = tk.evaluate(model_of(case), data_of(case), SAMPLES, seed=[3, 1, 4], **case.loss)
    torch.set_num_threads(2)
    assert torch.equal(loss, tk.evaluate(model_of(case), data_of(case), SAMPLES, seed=[3, 1, 4], **case.loss))
    data = tk.SparseFeatures(case.n_features, data_of(case).probability[-1:], **case.features)
    if not data_of(case).groups:
        alone = tk.evaluate(model_of(case)[2], data, SAMPLES, seed=4, **case.loss)
        assert torch.equal(loss[2:], alone)


@some
def test_neither_the_model_nor_what_it_was_given_changes(case):
    model = model_of(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tk.evaluate(model, data_of(case), 100, **case.loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_never_draws_from_the_stream():
    """Neither of the streams repeats a batch of the other, whatever the step."""
    data = tk.SparseFeatures(3, 1.0)
    training = torch.cat([data.sample(step, 64, 5) for step in range(50)])
    evaluation = torch.cat([data.sample(step, 64, 5, purpose="evaluation") for step in range(50)])
    assert len(torch.cat([training, evaluation]).flatten(0, 1).unique(dim=0)) == 2 * 50 * 64
    model = tk.TiedAutoencoder(3, 1, seed=0)
    first = tk.fit(tk.TiedAutoencoder(3, 1, seed=0), data, 1, 64, seed=5, progress=False).loss[0, 0]
    assert abs(first - tk.evaluate(model, data, 64, seed=5)[0]) > 1e-4


def test_one_seed_shows_all_models_the_same_samples():
    model = tk.TiedAutoencoder(5, 2, 4, seed=3)
    assert len(tk.evaluate(model, tk.SparseFeatures(5, 0.3), 100, seed=7).unique()) == 1
    assert len(tk.evaluate(model, tk.SparseFeatures(5, 0.3), 100).unique()) == 4


def test_models_that_are_views_or_expanded():
    base = tk.TiedAutoencoder(5, 2, 6)
    data = tk.SparseFeatures(5, 0.3)
    whole = tk.evaluate(base, data, 100)
    assert torch.equal(tk.evaluate(base[::2], data, 100, seed=[0, 2, 4]), whole[::2])
    one = base[0]
    many = tk.TiedAutoencoder(5, 2, 3)
    many.weight = torch.nn.Parameter(one.weight.detach().expand(3, -1, -1))
    many.bias = torch.nn.Parameter(one.bias.detach().expand(3, -1))
    assert torch.equal(tk.evaluate(many, data, 100, seed=0), whole[:1].expand(3))


def test_what_diverged_is_not_finite():
    model = tk.TiedAutoencoder(5, 2, 2)
    with torch.no_grad():
        model.weight[1] = torch.nan
    assert tk.evaluate(model, tk.SparseFeatures(5, 0.5), 100).isfinite().tolist() == [True, False]


# Exact losses, by Monte Carlo

DENSITIES, IMPORTANCE = [0.05, 0.2, 0.7, 1.0], 0.4
BATCHES, BATCH = 40, 2**19

SOLUTIONS = {  # name in metrics.solution_losses -> columns of the weight, features ignored
    (2, "last_ignored"): ([[1], [0]], [1]),
    (2, "other_ignored"): ([[0], [1]], [0]),
    (2, "antipodal_with_last"): ([[1], [-1]], []),
    (3, "last_ignored"): ([[1, 0], [0, 1], [0, 0]], [2]),
    (3, "other_ignored"): ([[0, 0], [1, 0], [0, 1]], [0]),
    (3, "antipodal_with_last"): ([[1, 0], [0, 1], [0, -1]], []),
    (3, "antipodal_others"): ([[1, 0], [-1, 0], [0, 1]], []),
}


def mean_and_error(model, data, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Of independent batches of fresh samples: the mean loss and its standard error, `[models]`."""
    seeds = torch.arange(model.n_models)
    losses = torch.stack(
        [tk.evaluate(model, data, BATCH, seed=1000 * k + seeds, **options) for k in range(BATCHES)]
    )
    return losses.mean(0), losses.std(0) / math.sqrt(BATCHES)


@pytest.mark.parametrize(("n", "name"), SOLUTIONS)
def test_hand_made_solutions_have_their_exact_losses(n, name):
    """Within 5 standard errors, which are below 1 % of the loss."""
    columns, ignored = SOLUTIONS[n, name]
    exact = torch.tensor(
        metrics.solution_losses(DENSITIES, IMPORTANCE, n)[name].tolist(), dtype=torch.float64
    )
    model = tk.TiedAutoencoder(n, n - 1, len(DENSITIES))
    with torch.no_grad():
        model.weight.copy_(torch.tensor(columns).mT)
        model.bias.zero_()
        for j in ignored:
            model.bias[:, j] = torch.tensor(DENSITIES) / 2
    data = tk.SparseFeatures(n, np.array(DENSITIES)[:, None])
    importance = [1.0] * (n - 1) + [IMPORTANCE]
    mean, error = mean_and_error(model, data, importance=importance, loss_reduction="sum")
    assert ((mean - exact).abs() < 5 * error + 1e-6 * exact).all(), (mean, exact, error)
    assert (error < 0.01 * exact).all()


@pytest.mark.parametrize(("vertices", "features"), [(4, 4), (5, 5), (5, 8), (8, 8)])
def test_polygons_have_their_exact_loss_on_one_sparse_data(vertices, features):
    point = metrics.polygon(vertices, features)
    model = tk.TiedAutoencoder.from_published(point.weight.mT, point.bias)
    data = tk.SparseFeatures.one_sparse(features)
    mean, error = mean_and_error(model, data, loss_reduction="sum")
    assert abs(mean - point.loss) < 5 * error + 1e-10, (mean, point.loss, error)
    assert error < 0.01 * point.loss + 1e-10
