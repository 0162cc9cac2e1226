"""Local learning coefficients: the chains against float64, closed forms, invariances, what is refused."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import stream_oracle
import torch

import toykern as tk
from toykern.llc import estimation, reduced_rank_learning_coefficient
from toykern.llc.chains import chain_seeds, repeated_dataset
from toykern.llc.result import row_means, split_rhat
from toykern.training import evaluation
from toykern.training.step import langevin_noise

QUICK: dict[str, Any] = {"chains": 3, "draws": 6, "burn_in": 4, "progress": False}


@pytest.fixture(autouse=True)
def _doubts_are_not_the_matter():
    """Chains of a few steps disagree, and say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="local_learning_coefficient")
        yield


def data_of(n_features: int, samples: int = 40, **options: Any) -> tk.Dataset:
    return tk.SparseFeatures(n_features, 0.4).dataset(samples, seed=3, n_models=1, **options)


# The chain itself


def reference_chain(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, seed: int, steps: int, **told: float
) -> list[float]:
    """Losses of one chain of a tied autoencoder with ReLU outputs, in float64 NumPy: the gradient by hand."""
    start_w, start_b = w.copy(), b.copy()
    losses = []
    for step in range(steps):
        codes = x @ w.T
        before = codes @ w + b
        error = np.maximum(before, 0.0) - x
        losses.append(told["scale"] * np.square(error).sum() / len(x))
        slope = 2 * told["scale"] / len(x) * error * (before > 0)
        gradient_w = codes.T @ slope + (slope @ w.T).T @ x
        gradient_b = slope.sum(axis=0)
        for value, gradient, start, name in (
            (w, gradient_w, start_w, "weight"),
            (b, gradient_b, start_b, "bias"),
        ):
            noise = langevin_noise(name, torch.zeros(1, *value.shape), step, [seed])[0].numpy()
            drift = told["nbeta"] * gradient + told["localization"] * (value - start)
            value += -told["lr"] / 2 * drift + math.sqrt(told["lr"]) * noise
    return losses


@pytest.mark.parametrize(("reduction", "scale"), [("sum", 1.0), ("mean", 1 / 5)])
def test_traces_and_estimates_are_those_of_the_chain_in_numpy(reduction, scale):
    model, data = tk.TiedAutoencoder(5, 2, 2, seed=[1, 2]), data_of(5)
    told = {"lr": [1e-3, 2e-3], "nbeta": [30.0, 50.0], "localization": [2.0, 7.0]}
    found = tk.local_learning_coefficient(
        model,
        data,
        chains=2,
        draws=20,
        burn_in=10,
        seed=[5, 6],
        loss_reduction=reduction,
        progress=False,
        **told,
    )
    x = data.batch(0)[0][0].double().numpy()
    seeds = chain_seeds(torch.tensor([5, 6]), 2).reshape(2, 2)
    for i in range(2):
        w, b = (p[i].detach().double().numpy() for p in (model.weight, model.bias))
        own = {name: values[i] for name, values in told.items()}
        for c in range(2):
            losses = reference_chain(x, w.copy(), b.copy(), int(seeds[i, c]), 30, scale=scale, **own)
            np.testing.assert_allclose(found.traces[i, c].numpy(), losses, rtol=2e-5)
            expected = own["nbeta"] * (np.mean(losses[10:]) - losses[0])
            np.testing.assert_allclose(found.by_chain[i, c].item(), expected, rtol=2e-4)
        np.testing.assert_allclose(found.initial_loss[i].item(), losses[0], rtol=1e-6)
    torch.testing.assert_close(found.llc, found.by_chain.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.spread, found.by_chain.std(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.standard_error, found.spread / 2**0.5, rtol=1e-13, atol=0)


def test_a_draw_is_the_mean_of_its_steps_and_the_burn_in_is_left_out():
    model, data = tk.TiedAutoencoder(4, 2, 2), data_of(4)
    told = {"chains": 2, "lr": 1e-3, "nbeta": 20.0, "progress": False}
    each = tk.local_learning_coefficient(model, data, draws=30, burn_in=6, **told)
    threes = tk.local_learning_coefficient(model, data, draws=10, burn_in=6, steps_between_draws=3, **told)
    assert threes.traces.shape == (2, 2, 12) and each.traces.shape == (2, 2, 36)
    whole = each.traces.reshape(2, 2, 12, 3).double().mean(3)
    torch.testing.assert_close(threes.traces.double(), whole, rtol=1e-6, atol=0)
    expected = 20.0 * (each.traces[:, :, 6:].double().mean(2) - each.initial_loss[:, None])
    torch.testing.assert_close(each.by_chain, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(each.traces[:, 0, 0], each.traces[:, 1, 0])  # all begin at w*


def test_nbeta_is_n_over_log_n_of_each_models_own_n():
    data = tk.SparseFeatures(4, 0.4).dataset([10, 40], seed=0)
    found = tk.local_learning_coefficient(tk.TiedAutoencoder(4, 2, 2), data, **QUICK)
    assert found.samples.tolist() == [10, 40]
    expected = torch.tensor([10 / math.log(10), 40 / math.log(40)], dtype=torch.float64)
    torch.testing.assert_close(found.nbeta, expected, rtol=1e-14, atol=0)
    assert found.n_parameters == 4 * 2 + 4


def test_the_loss_is_the_one_that_was_trained():
    """At lr=0 every chain stands at w*, so each trace is the loss there by every option of `fit`."""
    model = tk.MLP(4, 3, n_models=2, n_outputs=3, seed=[1, 2])
    inputs = data_of(4).batch(0)[0][0]
    data = tk.Dataset(inputs, labels=torch.arange(40) % 3)
    told = {"loss": "cross_entropy", "importance": [[1.0], [0.5]], "l1": [0.1, 0.2]}
    found = tk.local_learning_coefficient(model, data, lr=0.0, **told, **QUICK)
    wanted = tk.evaluate(model, data, **told)
    assert torch.equal(found.initial_loss, wanted)
    torch.testing.assert_close(
        found.traces.double(), wanted[:, None, None].expand(2, 3, 10), rtol=1e-6, atol=0
    )
    assert found.llc.abs().max() < 1e-4 and found.converged.all()


# Closed forms


def linear_regression(n_features: int, n_models: int = 1) -> tuple[tk.MLP, tk.Dataset, torch.Tensor]:
    """y = D x at D = 0 with targets 0, on inputs of uneven size; and the curvatures of the loss along D."""
    model = tk.MLP(
        n_features, n_features, 2, n_models, hidden_activation="none", bias=False, hidden_bias=False
    )
    with torch.no_grad():
        model.encoder.copy_(torch.eye(n_features))
        model.decoder.zero_()
    model.encoder.requires_grad_(False)
    sizes = torch.linspace(0.5, 2.0, n_features)
    data = tk.Dataset(sizes.diag(), torch.zeros(n_features, 2))
    curvature = (2 * sizes.double().square() / n_features).repeat(2)
    return model, data, curvature


def test_linear_regression_has_d_over_two():
    """A regular model: λ̂ = Σ nβ h / (2 a (1 − ε a/4)) with a = nβ h + γ, exactly, which is d/2 as nβ → ∞ and
    ε → 0.

    Within four standard errors, which are about 1% here.
    """
    model, data, h = linear_regression(4)
    nbeta, gamma, lr = 1000.0, 1.0, 2e-4
    found = tk.local_learning_coefficient(
        model, data, chains=200, draws=1000, burn_in=400, lr=lr, nbeta=nbeta, localization=gamma,
        loss_reduction="sum", progress=False,
    )  # fmt: skip
    a = nbeta * h + gamma
    # what the start at w* leaves: the variance is (1 − ρ^2t) of the stationary one, ρ = 1 − ε a/2
    steps = torch.arange(400, 1400, dtype=torch.float64)[:, None]
    left = (1 - (1 - lr * a / 2) ** (2 * steps)).mean(0)
    exact = float((nbeta * h / (2 * a * (1 - lr * a / 4)) * left).sum())
    error = float(found.standard_error[0])
    assert found.n_parameters == 8 and error < 0.06
    assert abs(float(found.llc[0]) - exact) < 4 * error
    assert abs(float(found.llc[0]) - 4.0) < 4 * error + 0.05 * 4
    assert 0.95 < float(found.rhat[0]) <= 1.1


def rank_model(n_in: int, n_out: int, n_hidden: int, rank: int) -> tuple[tk.MLP, tk.Dataset]:
    """Reduced rank regression at its most singular true parameter, with L = |D E − D₀ E₀|²."""
    model = tk.MLP(n_in, n_hidden, n_out, hidden_activation="none", bias=False, hidden_bias=False, init=0.0)
    with torch.no_grad():
        for i in range(rank):
            model.encoder[0, i, i] = model.decoder[0, i, i] = 1.0
    x = math.sqrt(n_in) * torch.eye(n_in)
    truth = (model.decoder @ model.encoder)[0].detach()
    return model, tk.Dataset(x, x @ truth.mT)


RANKS = [
    # n_in, n_out, n_hidden, rank, nβ, γ, ε
    (4, 3, 2, 2, 1000.0, 10.0, 2.5e-5),
    (3, 3, 3, 3, 1000.0, 10.0, 2.5e-5),
    (2, 2, 2, 0, 300.0, 1.0, 5e-5),
    (3, 1, 1, 0, 300.0, 1.0, 5e-5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("n_in", "n_out", "n_hidden", "rank", "nbeta", "gamma", "lr"), RANKS)
def test_reduced_rank_regression_has_its_exact_coefficient(n_in, n_out, n_hidden, rank, nbeta, gamma, lr):
    """Within four standard errors and 8% (finite nβ and step size); d/2 is 40% or more above each."""
    model, data = rank_model(n_in, n_out, n_hidden, rank)
    found = tk.local_learning_coefficient(
        model, data, chains=32, draws=1500, burn_in=20_000, steps_between_draws=40, lr=lr, nbeta=nbeta,
        localization=gamma, loss_reduction="sum", seed=1, progress=False,
    )  # fmt: skip
    exact, _ = reduced_rank_learning_coefficient(n_in, n_out, n_hidden, rank)
    assert found.n_parameters / 2 > 1.35 * exact
    assert float(found.initial_loss[0]) < 1e-12 and bool(found.converged[0])
    assert abs(float(found.llc[0]) - exact) < 4 * float(found.standard_error[0]) + 0.08 * exact


def product_expectation(n_in: int, n_out: int, nbeta: float, gamma: float) -> float:
    """E[nβ a² b²] of exp(−nβ a² b² − γ/2 (a² + b²)) a^(n_in − 1) b^(n_out − 1), by quadrature: one hidden
    unit and the truth 0, where L = |D|² |E|²."""
    u = torch.linspace(-9.0, 3.0, 2001, dtype=torch.float64)
    a, b = u.exp()[:, None], u.exp()[None, :]
    loss = nbeta * a.square() * b.square()
    density = (-loss - gamma / 2 * (a.square() + b.square()) + n_in * a.log() + n_out * b.log()).exp()
    return float((loss * density).sum() / density.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("n_in", "n_out"), [(2, 2), (3, 1)])
def test_singular_posteriors_are_those_of_quadrature(n_in, n_out):
    """At a finite nβ, where the coefficient itself is not reached: within four standard errors and 4% (ε)."""
    model, data = rank_model(n_in, n_out, 1, 0)
    found = tk.local_learning_coefficient(
        model, data, chains=64, draws=1000, burn_in=20_000, steps_between_draws=40, lr=1e-4, nbeta=100.0,
        localization=1.0, loss_reduction="sum", seed=2, progress=False,
    )  # fmt: skip
    exact = product_expectation(n_in, n_out, 100.0, 1.0)
    assert abs(float(found.llc[0]) - exact) < 4 * float(found.standard_error[0]) + 0.04 * exact


COEFFICIENTS = [
    # by hand: one hidden unit and the truth 0 is |D|²|E|², min(M, N)/2, twice where M = N
    (1, 1, 1, 0, 0.5, 2), (2, 2, 1, 0, 1.0, 2), (3, 1, 1, 0, 0.5, 1), (1, 3, 1, 0, 0.5, 1),
    (5, 2, 1, 0, 1.0, 1),
    # full rank: the codimension of the matrices of rank r, r(M + N − r)/2
    (4, 3, 2, 2, 5.0, 1), (3, 4, 2, 2, 5.0, 1), (4, 4, 4, 4, 8.0, 1), (6, 2, 2, 2, 6.0, 1),
    (1, 1, 1, 1, 0.5, 1),
    # so many hidden units that D E is any matrix: M N/2, and a row or a column of them
    (2, 2, 9, 0, 2.0, 1), (1, 1, 2, 0, 0.5, 1), (1, 1, 3, 0, 0.5, 1), (3, 1, 5, 0, 1.5, 1),
    # by the first case
    (2, 2, 2, 0, 1.5, 1), (4, 4, 4, 0, 6.0, 1), (4, 4, 4, 2, 7.5, 1),
]  # fmt: skip


@pytest.mark.parametrize(("n_in", "n_out", "n_hidden", "rank", "coefficient", "multiplicity"), COEFFICIENTS)
def test_coefficients_of_reduced_rank_regression(n_in, n_out, n_hidden, rank, coefficient, multiplicity):
    found = reduced_rank_learning_coefficient(n_in, n_out, n_hidden, rank)
    assert found == (coefficient, multiplicity)


def test_coefficients_of_reduced_rank_regression_keep_their_bounds():
    for m in range(1, 7):
        for n in range(1, 7):
            for h in range(1, 8):
                for r in range(min(m, n, h) + 1):
                    found, multiplicity = reduced_rank_learning_coefficient(m, n, h, r)
                    assert reduced_rank_learning_coefficient(n, m, h, r) == (found, multiplicity)
                    assert r * (m + n - r) / 2 <= found <= min(h * (m + n), m * n) / 2
                    assert multiplicity in (1, 2)
                    if r == h:
                        assert found == r * (m + n - r) / 2


def test_bad_ranks_are_refused():
    for given, message in (((2, 2, 2, 3), "rank"), ((0, 2, 2, 0), "n_in"), ((2, 2, 1, 2), "rank")):
        with pytest.raises(ValueError, match=message):
            reduced_rank_learning_coefficient(*given)


# Invariances


def told_for_two() -> dict[str, Any]:
    return {
        "lr": [1e-3, 2e-3], "nbeta": [20.0, 30.0], "localization": [1.0, 5.0], "seed": [3, 9],
        "importance": [[1.0], [0.5]], "l1": [0.0, 0.01],
    }  # fmt: skip


def same(one: tk.llc.LearningCoefficient, other: tk.llc.LearningCoefficient, i: int) -> None:
    """Model `i` of one estimate and the only model of another, bit for bit."""
    for name in ("llc", "by_chain", "spread", "rhat", "traces", "initial_loss", "nbeta", "lr", "samples"):
        assert torch.equal(getattr(one, name)[i], getattr(other, name)[0]), name


@pytest.mark.parametrize("kind", ["tied", "untied", "mlp"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_model_is_the_same_alone_and_by_two_threads(kind, batch_size):
    model: Any = {
        "tied": tk.TiedAutoencoder(5, 2, 2, seed=[1, 2]),
        "untied": tk.Autoencoder(5, 2, 2, seed=[1, 2]),
        "mlp": tk.MLP(5, 3, n_models=2, seed=[1, 2]),
    }[kind]
    data, told = data_of(5), told_for_two()
    together = tk.local_learning_coefficient(model, data, batch_size=batch_size, **told, **QUICK)
    before = torch.get_num_threads()
    for i in range(2):
        torch.set_num_threads(3 - before if before < 3 else 1)
        try:
            own = {name: value[i : i + 1] for name, value in told.items()}
            alone = tk.local_learning_coefficient(model[i], data, batch_size=batch_size, **own, **QUICK)
        finally:
            torch.set_num_threads(before)
        same(together, alone, i)


def test_more_chains_leave_those_that_were_there():
    model, data = tk.TiedAutoencoder(5, 2, 2), data_of(5)
    few, more = (
        tk.local_learning_coefficient(model, data, chains=chains, draws=5, burn_in=5, progress=False)
        for chains in (2, 4)
    )
    assert torch.equal(few.traces, more.traces[:, :2]) and torch.equal(few.by_chain, more.by_chain[:, :2])
    assert not torch.equal(more.traces[:, 2], more.traces[:, 3])


def test_the_model_stays_as_it_is():
    model, data = tk.MLP(5, 3, n_models=2, embedding=4, unembedding=True), data_of(5)
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    model.bias.grad = torch.ones_like(model.bias)
    found = tk.local_learning_coefficient(model, data, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.encoder.requires_grad and model.decoder.requires_grad
    assert torch.equal(model.bias.grad, torch.ones_like(model.bias))
    assert found.n_parameters == 4 * 3 + 5 + 3  # the encoder is held


@pytest.mark.parametrize("entries", [False, True])
def test_datasets_of_each_model_are_repeated_for_its_chains(entries):
    """As if each model were alone with its own samples."""
    x = tk.SparseFeatures(5, 0.4).sample(0, 30, n_models=2)
    data = tk.Dataset(
        tk.SparseBatch.from_dense(x) if entries else x,
        labels=torch.arange(60).reshape(2, 30) % 5,
        samples=[20, 30],
    )
    repeated = repeated_dataset(data, 3)
    assert repeated.n_models == 6
    for k in range(6):
        for ours, theirs in zip(
            repeated.row(k).batch(0, n_outputs=5), data.row(k // 3).batch(0, n_outputs=5), strict=True
        ):
            assert torch.equal(ours, theirs)
    model = tk.MLP(5, 3, n_models=2, seed=[1, 2])
    together = tk.local_learning_coefficient(model, data, seed=[3, 4], loss="cross_entropy", **QUICK)
    for i in range(2):
        alone = tk.local_learning_coefficient(
            model[i], data.row(i), seed=3 + i, loss="cross_entropy", **QUICK
        )
        same(together, alone, i)


def test_what_is_shared_is_not_repeated():
    data = data_of(5)
    assert repeated_dataset(data, 7) is data


def test_seeds_of_chains_are_apart():
    seeds = chain_seeds(torch.arange(1000), 100)
    assert len(seeds.unique()) == 100_000 and bool((seeds >= 0).all())
    assert torch.equal(chain_seeds(torch.tensor([17]), 5), seeds.reshape(1000, 100)[17, :5])


def test_seeds_of_chains_are_the_streams():
    """Words of the oracle, put together by Python's own integers (docs/data_stream.md §12)."""
    for seed in (0, 2**40 + 5):
        words = [
            int(w)
            for w in stream_oracle.Words(seed, purpose=1).sequence(stream_oracle.LANGEVIN, np.arange(200), 0)
        ]
        expected = [((words[2 * c] << 32) + words[2 * c + 1]) >> 1 for c in range(100)]
        assert chain_seeds(torch.tensor([seed]), 100).tolist() == expected


# What is said of chains


def test_split_rhat_is_its_formula():
    draws = np.random.default_rng(0).normal(size=(3, 4, 11)) + np.arange(4)[:, None]
    for i, found in enumerate(split_rhat(draws)):
        halves = [part for chain in draws[i] for part in (chain[:5], chain[5:10])]
        within = np.mean([np.var(part, ddof=1) for part in halves])
        between = 5 * np.var([part.mean() for part in halves], ddof=1)
        assert found == pytest.approx(math.sqrt((4 / 5 * within + between / 5) / within), rel=1e-12)


def test_split_rhat_of_chains_that_stand_still():
    still = np.ones((1, 2, 8))
    apart = still * np.array([1.0, 2.0])[:, None]
    lost = still.copy()
    lost[0, 1, 3] = np.nan
    assert split_rhat(still).tolist() == [1.0] and split_rhat(apart).tolist() == [np.inf]
    assert np.isnan(split_rhat(lost)).all() and np.isnan(split_rhat(still[:, :, :3])).all()


def test_means_of_rows_do_not_depend_on_the_others():
    values = np.random.default_rng(1).random((7, 5, 1003), dtype=np.float32)
    found = row_means(values)
    for i in range(7):
        assert np.array_equal(row_means(values[i : i + 1]), found[i : i + 1])
        assert np.array_equal(row_means(values[i : i + 1, 2:3, :]), found[i : i + 1, 2:3])
    np.testing.assert_allclose(found, values.astype(np.float64).mean(2), rtol=1e-14)


def test_a_warning_names_the_models_that_are_in_doubt():
    model, data = tk.TiedAutoencoder(5, 2, 3, seed=[1, 2, 3]), data_of(5)
    told = {"nbeta": 30.0, "localization": 1.0, "chains": 3, "draws": 8, "burn_in": 200, "progress": False}
    with pytest.warns(
        UserWarning, match="local_learning_coefficient: model 1 of 3: chains diverged"
    ) as caught:
        found = tk.local_learning_coefficient(model, data, lr=[1e-3, 100.0, 1e-3], **told)
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "negative" in text  # untrained weights
    assert found.diverged.tolist() == [False, True, False] and not found.converged[1]
    assert torch.isnan(found.llc[1]) and bool(torch.isfinite(found.llc[[0, 2]]).all())
    assert all((found.llc[i] < 0) == (str(i) in text.split("; ")[-1].split(" of ")[0]) for i in (0, 2))


def test_nothing_is_said_where_nothing_is_in_doubt():
    model, data, _ = linear_regression(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tk.local_learning_coefficient(
            model, data, draws=2000, burn_in=500, lr=1e-3, nbeta=200.0, progress=False, loss_reduction="sum"
        )
    assert found.doubts() == [] and bool(found.converged[0])
    assert "1 models × 10 chains × 2,000 draws" in repr(found) and "1 converged" in repr(found)


def test_many_models_in_doubt_are_counted():
    model = tk.TiedAutoencoder(5, 2, 12)
    told = {"chains": 2, "draws": 2, "burn_in": 0, "progress": False}  # too few for split-R̂
    with pytest.warns(UserWarning, match="models 0, 1, 2, 3, 4, 5, 6, 7 and 4 more of 12: chains disagree"):
        found = tk.local_learning_coefficient(model, data_of(5), **told)
    assert torch.isnan(found.rhat).all() and not found.converged.any() and not found.diverged.any()


def test_half_of_the_draws_are_no_estimate(monkeypatch):
    def interrupted(*given: Any, **told: Any) -> tk.Run:
        return tk.fit(*given, **told, stop_at=3)

    monkeypatch.setattr(estimation, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt, match="local_learning_coefficient"):
        tk.local_learning_coefficient(tk.TiedAutoencoder(5, 2), data_of(5), **QUICK)


def test_one_chain_has_no_spread():
    found = tk.local_learning_coefficient(
        tk.TiedAutoencoder(5, 2), data_of(5), chains=1, draws=8, burn_in=0, progress=False
    )
    assert torch.isnan(found.spread).all() and bool(torch.isfinite(found.llc).all())
    assert bool(torch.isfinite(found.rhat).all())  # by its halves


# What is refused


def test_a_stream_is_refused_by_name():
    with pytest.raises(TypeError, match=r"data must be a Dataset.*data\.dataset\(samples=…\)"):
        tk.local_learning_coefficient(tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.1))


def test_sparse_models_are_refused_by_name():
    with pytest.raises(TypeError, match="model must have all its connections"):
        tk.local_learning_coefficient(tk.SparseTiedAutoencoder(5, 4, 0.5), data_of(5))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"chains": 0}, "chains"),
    ({"draws": 0}, "draws"),
    ({"burn_in": -1}, "burn_in"),
    ({"burn_in": 5, "steps_between_draws": 2}, "burn_in must be a multiple of steps_between_draws=2"),
    ({"steps_between_draws": 2**31 - 1, "draws": 10, "burn_in": 0}, "at most 4,294,967,295 steps"),
    ({"nbeta": -1.0}, "nbeta"),
    ({"nbeta": [1.0, 2.0, 3.0]}, "nbeta"),
    ({"localization": [-1.0, 1.0]}, "localization"),
    ({"lr": math.inf}, "lr"),
    ({"seed": [1, 2, 3]}, "seed"),
    ({"importance": [1.0, 2.0]}, "importance"),
    ({"loss": "hinge"}, "loss"),
    ({"l1": -1.0}, "l1"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        tk.local_learning_coefficient(tk.TiedAutoencoder(5, 2, 2), data_of(5), **(QUICK | options))


def test_one_sample_has_no_temperature():
    model, data = tk.TiedAutoencoder(3, 2), tk.Dataset(torch.ones(1, 3))
    with pytest.raises(ValueError, match="nbeta must be given"):
        tk.local_learning_coefficient(model, data)
    assert tk.local_learning_coefficient(model, data, nbeta=1.0, **QUICK).samples.tolist() == [1]


def test_chains_that_do_not_fit_are_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(evaluation, "evaluated", None)
    with pytest.raises(MemoryError, match="chains=1,000,000,000 of n_models=1 with draws=1,000"):
        tk.local_learning_coefficient(tk.TiedAutoencoder(5, 2), data_of(5), chains=10**9)


# Polygons


def test_polygons_have_the_losses_and_the_coefficients_that_were_counted():
    found = tk.llc.polygon_learning_coefficients(
        6, chains=2, draws=4, burn_in=4, steps_between_draws=2, samples=200, progress=False
    )
    assert found.vertices == (2, 3, 4, 5, 6)
    assert found.counted.isnan().tolist() == [True, True, False, False, False]
    assert found.counted[2:].tolist() == [8.5, 8.5, 8.5]
    off = tk.llc.polygon_learning_coefficients(
        6,
        unrepresented_bias=-1.0,
        chains=2,
        draws=4,
        burn_in=4,
        steps_between_draws=2,
        samples=200,
        progress=False,
    )
    assert off.counted.tolist() == [2.0, 6.0, 7.5, 7.0, 8.5]
    fresh = tk.SparseFeatures.one_sparse(6)
    for one in (found, off):
        sampled = tk.evaluate(one.model, fresh, samples=400_000, seed=0, loss_reduction="sum")
        torch.testing.assert_close(one.loss, sampled, rtol=0.01, atol=0)
    assert found.table().count("\n") == 6 and "| 6 | 0.04819 | 8.5 |" in found.table()


@pytest.mark.parametrize("vertices", [5, 6])
def test_of_the_pentagon_and_the_hexagon_only_the_rotation_is_flat(vertices):
    """Eigenvalues of the Hessian, in float64 on 600 exact quantiles of each feature: one is 0, the others
    above."""
    point = tk.metrics.polygon(vertices)
    levels = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    x = torch.cat([level * torch.eye(vertices, dtype=torch.float64) for level in levels])

    def loss(flat: torch.Tensor) -> torch.Tensor:
        weight, bias = flat[: 2 * vertices].reshape(2, vertices), flat[2 * vertices :]
        return (torch.relu(x @ weight.mT @ weight + bias) - x).square().sum(1).mean()

    at = torch.cat([point.weight.reshape(-1), point.bias])
    curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))
    assert abs(float(curvature[0])) < 2e-3 and float(curvature[1]) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("vertices", "coefficient"), [(2, 2.0), (3, 3.0), (4, 5.5), (5, 7.0), (6, 8.5)])
def test_polygons_of_all_features_have_the_coefficient_that_was_counted(vertices, coefficient):
    """Within four standard errors and a tenth: finite nβ and step size."""
    found = tk.llc.polygon_learning_coefficients(vertices, [vertices], progress=False).estimate
    assert bool(found.converged[0])
    assert abs(float(found.llc[0]) - coefficient) < 4 * float(found.standard_error[0]) + 0.1 * coefficient


def test_bad_polygons_are_refused_by_name():
    for options, message in (
        ({"vertices": [7]}, "vertices"), ({"vertices": []}, "vertices"), ({"n_features": 1}, "n_features"),
        ({"unrepresented_bias": 0.1}, "unrepresented_bias"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tk.llc.polygon_learning_coefficients(**options)
