"""`evaluate(method="stratified")`: exact losses, sums over patterns, random samples; bits; the best."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import metrics, reference
from toykern.experiments import phase_diagram
from toykern.training.stratified import plan

DENSITIES = [0.01, 0.05, 0.3, 1.0]

SOLUTIONS = {  # name in metrics.solution_losses -> columns of the weight, features ignored
    (2, "last_ignored"): ([[1], [0]], [1]),
    (2, "other_ignored"): ([[0], [1]], [0]),
    (2, "antipodal_with_last"): ([[1], [-1]], []),
    (3, "last_ignored"): ([[1, 0], [0, 1], [0, 0]], [2]),
    (3, "antipodal_with_last"): ([[1, 0], [0, 1], [0, -1]], []),
    (3, "antipodal_others"): ([[1, 0], [-1, 0], [0, 1]], []),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def stratified(model, data, samples=4096, **options):
    return tk.evaluate(model, data, samples, method="stratified", **options)


def hand_made(names, densities):
    """A stack of solutions, one for each name and density, in this order."""
    weights, biases = [], []
    for name, p in itertools.product(names, densities):
        columns, ignored = SOLUTIONS[name]
        weights.append(torch.tensor(columns, dtype=torch.float32))
        biases.append(torch.zeros(len(columns)))
        biases[-1][ignored] = p / 2
    return tk.TiedAutoencoder.from_published(torch.stack(weights), torch.stack(biases))


@pytest.mark.parametrize(("n", "name"), SOLUTIONS)
def test_hand_made_solutions_have_their_exact_losses(n, name):
    """To 10⁻⁵ of the loss with two features, 10⁻³ with three, whatever the density."""
    importance = [1.0] * (n - 1) + [0.4]
    data = tk.SparseFeatures(n, np.array(DENSITIES)[:, None])
    found = stratified(
        hand_made([(n, name)], DENSITIES), data, 65_536, seed=3, importance=importance, loss_reduction="sum"
    )
    exact = metrics.solution_losses(DENSITIES, 0.4, n)[name]
    np.testing.assert_allclose(found, exact, rtol=1e-5 if n == 2 else 1e-3)


# The best of several: what the phase diagram is made of


@pytest.mark.parametrize(
    ("names", "r"),
    [
        ([(3, "antipodal_with_last"), (3, "antipodal_others")], 1.11),
        ([(3, "antipodal_with_last"), (3, "antipodal_others")], 1 / 1.11),
        ([(2, "antipodal_with_last"), (2, "last_ignored")], 0.0053),
    ],
)
def test_the_better_solution_wins_for_every_seed(names, r):
    """At p = 0.01 the two are 5.5% apart or less; random samples take the worse now and then."""
    n, p = names[0][0], 0.01
    exact = np.array([metrics.solution_losses(p, r, n)[name] for _, name in names])
    assert 0.03 < exact.max() / exact.min() - 1 < 0.06
    model, data = hand_made(names, [p]), tk.SparseFeatures(n, p)
    importance = torch.tensor([1.0] * (n - 1) + [r])
    for seed in range(24):
        loss = stratified(model, data, seed=seed, importance=importance)
        assert loss.argmin() == exact.argmin(), seed
    wrong = [
        tk.evaluate(model, data, 32_768 * 10, seed=seed, importance=importance).argmin() != exact.argmin()
        for seed in range(24)
    ]
    assert any(wrong)  # so that this tells the two methods apart


def test_phase_diagrams_choose_the_better_solution():
    """Of two solutions that are 5.5% apart, whatever the seed of the diagram."""
    names = [(3, "antipodal_with_last"), (3, "antipodal_others")]
    points = tk.grid(importance=[1 / 1.11, 1.11], density=[0.01, 0.02], seed=range(2))
    parts = [hand_made([names[k]], [0.01]) for k in points.seed.tolist()]
    model = tk.TiedAutoencoder.from_published(torch.cat([part.weight.detach().mT for part in parts]))
    run = tk.fit(
        model,
        tk.SparseFeatures(3, points.density[:, None]),
        1,
        8,
        tk.SGD(lr=0.0),
        grid=points,
        progress=False,
    )
    for seed in range(12):
        best = run.best(over="seed", by=phase_diagram.fresh_loss(run, points, seed))
        assert points.seed[best].tolist() == [[0, 0], [1, 1]]


# Against other ways to the same number


def distributions():
    return {
        "features": tk.SparseFeatures(5, [0.02, 0.1, 0.3, 0.05, 1.0]),
        "symmetric": tk.SparseFeatures(4, 0.2, magnitude="symmetric"),
        "half normal": tk.SparseFeatures(4, 0.1, magnitude="half_normal"),
        "exponential": tk.SparseFeatures(4, 0.2, magnitude="exponential"),
        "noise": tk.SparseFeatures(3, 0.2, noise=0.3),
        "groups": tk.SparseFeatures(
            6, [0.1, 0.2, 0.1, 0.3, 0.4, 0.25], groups=[tk.Correlated((0, 2)), tk.Anticorrelated((1, 3, 4))]
        ),
        "one active": tk.SparseFeatures.one_sparse(6),
        "rest": tk.SparseFeatures(14, 0.3),
        "rest of groups": tk.SparseFeatures(
            18,
            [0.05] * 9 + [0.02] * 4 + [0.3] * 5,
            groups=[tk.Correlated((0, 8)), tk.Anticorrelated((9, 13, 14, 15))],
        ),
        "rest, noise": tk.SparseFeatures(14, [0.0, 1.0] * 2 + [0.15] * 10, noise=0.1),
    }


@pytest.mark.parametrize("name", distributions())
def test_agrees_with_random_samples(name):
    """Within five standard errors of eight seeds, with importance, both targets, both reductions."""
    data = distributions()[name]
    model = tk.TiedAutoencoder(data.n_features, 2, 3, hidden_activation="relu")
    with torch.no_grad():
        model.bias.copy_(torch.linspace(-0.2, 0.3, model.bias.numel()).view_as(model.bias))
    importance = np.linspace(0.2, 2, data.n_features)
    for options in ({"target": "abs", "loss_reduction": "sum"}, {"importance": importance}):
        found = torch.stack([stratified(model, data, 2048, seed=s, **options) for s in range(8)])
        random = torch.stack([tk.evaluate(model, data, 65_536, seed=s, **options) for s in range(8)])
        error = ((found.var(0) + random.var(0)) / 8).sqrt()
        assert ((found.mean(0) - random.mean(0)).abs() < 5 * error).all(), (found.mean(0), random.mean(0))
        assert (error < 0.02 * random.mean(0)).all()


@pytest.mark.parametrize(
    ("magnitude", "second_moment", "error"), [("exponential", 2.0, 5e-3), ("lognormal", np.exp(2), 0.04)]
)
def test_magnitudes_without_bound_have_their_second_moment(magnitude, second_moment, error):
    """A network that gives 0 has the loss p·E[x²]. Random samples see it poorly, since the tails are heavy:
    a log-normal's square has a standard deviation of seven times its mean."""
    model, data = tk.TiedAutoencoder(3, 2, 2), tk.SparseFeatures(3, [0.1, 0.3, 0.9], magnitude=magnitude)
    with torch.no_grad():
        model.weight.zero_()
    found = stratified(model, data, 65_536)
    expected = second_moment * data.probability.mean()
    torch.testing.assert_close(found, expected.expand(2), rtol=error, atol=0)


@pytest.mark.parametrize("hidden", ["none", "relu"])
def test_constant_magnitudes_are_exact(hidden):
    """A sum over all patterns, in float64; untied weights, unequal probabilities, groups."""
    groups = [tk.Correlated((1, 4)), tk.Anticorrelated((0, 3, 5))]
    p = [0.1, 0.2, 0.3, 0.4, 0.2, 0.15, 0.9]
    data = tk.SparseFeatures(7, p, magnitude="constant", groups=groups)
    model = tk.Autoencoder(7, 3, 2, hidden_activation=hidden, seed=5)
    patterns, shares = [], []
    for correlated, exclusive, second, last in itertools.product((0, 1), (None, 0, 3, 5), (0, 1), (0, 1)):
        x = torch.zeros(7)
        x[[1, 4]], x[2], x[6] = float(correlated), float(second), float(last)
        share = (0.2 if correlated else 0.8) * (0.3 if second else 0.7) * (0.9 if last else 0.1)
        if exclusive is not None:
            x[exclusive] = 1.0
        patterns.append(x)
        shares.append(share * (0.35 if exclusive is None else p[exclusive]))
    y = reference.forward(
        reference.parameters_of(model), torch.stack(patterns), reference.network_of(model)
    ).output
    exact = ((y - torch.stack(patterns)).square().mean(2) * torch.tensor(shares, dtype=torch.float64)).sum(1)
    assert sum(shares) == pytest.approx(1.0)
    torch.testing.assert_close(stratified(model, data), exact, rtol=1e-6, atol=0)


def test_sparse_models_are_dense_ones_with_zeros():
    sparse = tk.SparseTiedAutoencoder(6, 3, density=0.5, n_models=2)
    dense = tk.TiedAutoencoder.from_published(sparse.weight.detach().mT, sparse.bias.detach())
    data = tk.SparseFeatures(6, 0.1)
    assert torch.equal(stratified(sparse, data), stratified(dense, data))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_what_is_always_or_never_active(p):
    """p = 0: the empty sample alone; p = 1: all features alone. Patterns that never occur may be infinite."""
    model = tk.TiedAutoencoder(3, 2, 2)
    with torch.no_grad():
        model.bias.fill_(0.5)
    loss = stratified(model, tk.SparseFeatures(3, p), 65_536)
    if p == 0.0:
        assert loss.tolist() == [0.25, 0.25]
    else:
        torch.testing.assert_close(
            loss, tk.evaluate(model, tk.SparseFeatures(3, p), 2**20), rtol=3e-3, atol=0
        )


# Bits


@pytest.mark.parametrize(("n", "m"), [(2, 1), (5, 2), (14, 3), (40, 9)])
@pytest.mark.parametrize("seed", [0, None, "own"])
def test_a_models_bits_are_its_own(n, m, seed, monkeypatch):
    """Alone and among others, with one row of probabilities or many, on one thread and two, in chunks."""
    models = 19
    p = torch.rand(models, n, generator=torch.Generator().manual_seed(1)).double() * 0.3
    model = tk.TiedAutoencoder(n, m, models, seed=torch.arange(models) + 3)
    importance = torch.rand(models, n)
    seeds = torch.arange(models) % 3 if seed == "own" else seed
    options = {"importance": importance, "seed": seeds}
    whole = stratified(model, tk.SparseFeatures(n, p), 512, **options)
    monkeypatch.setattr("toykern.training.stratified._ENTRIES", 5 * 512 * n)
    torch.set_num_threads(2)
    assert torch.equal(stratified(model, tk.SparseFeatures(n, p), 512, **options), whole)
    torch.set_num_threads(1)
    for k in (0, 7, models - 1):
        own = {"importance": importance[k], "seed": int(seeds[k]) if seed == "own" else seed}
        assert torch.equal(stratified(model[k], tk.SparseFeatures(n, p[k]), 512, **own), whole[k : k + 1])


def test_default_dtype_default_device_and_autocast_do_not_matter():
    model, data = tk.TiedAutoencoder(5, 2, 2), tk.SparseFeatures(5, 0.1, magnitude="half_normal")
    options = {"seed": torch.tensor([0, 0]), "importance": torch.ones(5)}
    expected = stratified(model, data, 256, **options)
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert torch.equal(stratified(model, data, 256, **options), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert torch.equal(stratified(model, data, 256, **options), expected)


def test_one_seed_is_one_set_of_samples():
    model = tk.TiedAutoencoder(5, 2, 4, seed=3)
    data = tk.SparseFeatures(5, 0.3)
    assert len(stratified(model, data, 100).unique()) == 1
    assert len(stratified(model, data, 100, seed=[0, 1, 2, 3]).unique()) == 4
    assert not torch.equal(stratified(model, data, 100, seed=1), stratified(model, data, 100, seed=2))


def test_what_diverged_is_not_finite():
    model = tk.TiedAutoencoder(5, 2, 2)
    with torch.no_grad():
        model.weight[1] = torch.nan
    assert stratified(model, tk.SparseFeatures(5, 0.5)).isfinite().tolist() == [True, False]


# Plans and errors


@pytest.mark.parametrize("samples", [1, 7, 100, 4096, 65_536])
@pytest.mark.parametrize("options", [[1], [1] * 5, [3, 1, 1, 7], [1] * 13, [1] * 300, [50]])
@pytest.mark.parametrize("noisy", [False, True])
def test_plans_keep_to_the_samples(options, samples, noisy):
    found = plan(options, samples, noisy=noisy)
    polynomial = np.array([1.0])
    for number in options[:300]:
        polynomial = np.convolve(polynomial, [1, number])[:20]
    drawn = sum(int(polynomial[k]) * rows for k, rows in found.rows.items()) + found.rest
    assert drawn <= samples
    assert found.rest > 0 or found.listed == len(options)
    assert all(rows >= 8 and math.log2(rows).is_integer() for rows in found.rows.values())
    assert set(found.rows) == set(range(0 if noisy else 1, found.listed + 1))


def test_errors_name_the_argument():
    model, data = tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.1)
    for bad, kind in (("exact", ValueError), (None, TypeError), (3, TypeError)):
        with pytest.raises(kind, match="method must be one of 'samples', 'stratified'"):
            tk.evaluate(model, data, method=bad)
    with pytest.raises(ValueError, match=r"method='stratified' takes at most 4096 .* use method='samples'"):
        stratified(tk.TiedAutoencoder(5000, 1), tk.SparseFeatures(5000, 0.001))
    with pytest.raises(ValueError, match="target must be one of"):
        stratified(model, data, target="x")
