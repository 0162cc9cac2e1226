"""What is computed in the experiments on data: double descent, grokking, S-curves, basins; against known
answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import experiments
from toykern.experiments import basins, double_descent, grokking, s_curves

P = 11


def test_codes_are_those_of_each_models_own_samples() -> None:
    settings = dataclasses.replace(double_descent.EXPERIMENT.quick, n_features=30, density=0.2)
    data = double_descent.dataset_of(settings, [4, 7, 2], torch.tensor([0, 0, 1]))
    weight = tk.TiedAutoencoder(30, 2, n_models=3).weight.detach()
    codes = double_descent.codes_of(weight, data)
    assert [c.shape for c in codes] == [(2, 4), (2, 7), (2, 2)]
    stream = tk.SparseFeatures(30, 0.2)
    for i, (samples, seed) in enumerate(((4, 0), (7, 0), (2, 1))):
        x = stream.sample(step=0, batch_size=samples, seed=seed)[0]
        x = torch.nn.functional.normalize(x, dim=1)
        torch.testing.assert_close(codes[i], weight[i] @ x.T)


def test_memorised_samples_are_told_from_learnt_features() -> None:
    settings = dataclasses.replace(double_descent.EXPERIMENT.quick, samples=(5, 50, 1000))
    features = np.zeros((3, 200))
    features[:, 0] = 0.1, 0.1, 0.4  # at T = 1000 one feature has a place of its own
    typical = np.array([2 / 5, 0.02, 0.0])
    train, represented = np.array([0.0, 0.5, 0.9]), np.array([9, 90, 5])

    def verdicts(test: list[float]) -> list[bool | None]:
        found = double_descent._of_first(settings, train, np.array(test), typical, features, represented)
        return [outcome.agrees for outcome in found]

    assert verdicts([1.0, 3.0, 0.95]) == [True, True, True, True]
    assert verdicts([1.0, 1.1, 0.95])[2] is False
    assert verdicts([1.0, 2.0, 3.0]) == [True, None, None, None]  # no dataset beyond the bump
    assert verdicts([1.0, 300.0, 200.0]) == [True, None, True, None]  # the largest is still in it
    assert double_descent._of_first(
        settings, train, np.array([1.0, 3.0, 0.95]), typical / 2, features, represented
    )[0].agrees is False  # fmt: skip


def test_a_tiny_double_descent_is_the_mean_of_the_best() -> None:
    small = {
        "n_features": 20,
        "density": 0.1,
        "samples": (3, 6),
        "steps": 30,
        "test_samples": 50,
        "snapshots": 3,
    }
    result = experiments.run("double-descent", quick=True, progress=False, **small)
    models = result.trained["hidden-2"]
    train, test = models.read("train_loss"), models.read("test_loss")
    assert train.shape == (2, 2, 3)
    wanted = [np.mean([test[i, j, train[i, j].argmin()] for j in range(2)]) for i in range(2)]
    np.testing.assert_allclose(result.findings["test_loss"][0], wanted)
    np.testing.assert_allclose(
        models.read("test_loss_at")[..., -1], test, rtol=1e-6
    )  # the last snapshot is the end
    held = np.isfinite(models.read("sample_dimensionality")).sum(axis=-1)
    assert (held == np.array([3, 6])[:, None, None]).all()


def waves(p: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The network of Gromov 2023: for every frequency, units cos(2πka/p + φ) with phases spread evenly."""
    number = torch.arange(p, dtype=torch.float64)
    left, right, out = [], [], []
    for k in range(1, (p + 1) // 2):
        for j in range(8):
            for i in range(8):
                a, b = 2 * np.pi * j / 8, 2 * np.pi * i / 8
                angle = 2 * np.pi * k * number / p
                left.append(torch.cos(angle + a))
                right.append(torch.cos(angle + b))
                out.append(torch.cos(angle + a + b))
    encoder = torch.cat([torch.stack(left), torch.stack(right)], dim=1)
    return encoder[None], torch.stack(out).T[None].contiguous()


def test_the_exact_network_answers_true_sums_and_no_wrong_label() -> None:
    encoder, decoder = waves(P)
    train, _ = tk.modular_addition(P, 0.5, noise=0.25)
    given = grokking.given_sums(train, P, 1)
    pairs = int(train.rows)
    assert int((given >= 0).sum()) == pairs
    shares = grokking.shares_right(encoder, decoder, given)[0].tolist()
    wrong = round(0.25 * pairs)
    assert shares == [pytest.approx(1 - wrong / pairs), 1.0, 0.0]
    values = torch.cat([encoder[..., :P], encoder[..., P:], decoder.mT], dim=1)
    torch.testing.assert_close(
        tk.metrics.inverse_participation_ratio(values), torch.ones(values.shape[:2], dtype=torch.float64)
    )


def test_labels_of_models_with_fractions_and_noise_of_their_own() -> None:
    train, test = tk.modular_addition(P, [0.2, 0.6], noise=[0.0, 0.5], seed=3)
    given = grokking.given_sums(train, P, 2)
    true = (torch.arange(P)[:, None] + torch.arange(P)) % P
    assert (given >= 0).sum(dim=(1, 2)).tolist() == train.samples.tolist()
    wrong = ((given >= 0) & (given != true)).sum(dim=(1, 2)).tolist()
    assert wrong == [0, int(0.5 * int(train.samples[1]) + 0.5)]
    seen = grokking.given_sums(test, P, 2)
    assert torch.equal(seen < 0, given >= 0)  # every pair is on one side
    shares = grokking.shares_right(torch.zeros(2, 3, 2 * P), torch.zeros(2, P, 3), given)
    assert shares[0, 2].isnan() and not shares[:, :2].isnan().any()
    # A network of zeros answers 0 to everything.
    assert shares[0, 0] == pytest.approx(float((given[0] == 0).sum() / (given[0] >= 0).sum()))


def test_grokking_in_a_store_is_grokking_in_memory(tmp_path) -> None:
    pytest.importorskip("zarr")
    small = {"p": 7, "width": 8, "steps": 20, "snapshots": 3}
    plain = experiments.run("grokking", quick=True, progress=False, **small)
    stored = experiments.run("grokking", quick=True, progress=False, store=tmp_path / "store", **small)
    for name in plain.findings.arrays:
        np.testing.assert_array_equal(stored.findings[name], plain.findings[name], err_msg=name)


def test_curves_reach_a_level_or_never_do() -> None:
    steps = np.array([1, 10, 100])
    share = np.array([[0.1, 0.95, 1.0], [0.1, 0.2, 0.3]])
    assert grokking.reached(steps, share, 0.9).tolist() == [10.0, np.inf]
    settings = dataclasses.replace(grokking.EXPERIMENT.quick, decays=(0.0, 1.0, 2.0))
    train = np.array([[0.9, 1.0, 1.0]] * 3)
    test = np.array([[0.0, 0.1, 0.1], [0.0, 0.2, 1.0], [0.0, 0.95, 1.0]])
    verdicts = [outcome.agrees for outcome in grokking._of_curves(settings, steps, train, test)]
    assert verdicts == [True, True, True]
    verdicts = [outcome.agrees for outcome in grokking._of_curves(settings, steps, train, test[::-1].copy())]
    assert verdicts == [True, False, False]


def test_factors_have_their_rank_and_keep_it() -> None:
    rank = torch.tensor([1, 3, 6])
    model = s_curves.factors(6, rank, torch.ones(3, dtype=torch.float64), torch.arange(3))
    data = tk.Dataset(torch.eye(6), torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    tk.fit(model, data, 30, optimizer=tk.Adam(lr=0.05), loss_reduction="sum", progress=False)
    product = (model.decoder @ model.encoder).detach()
    assert torch.linalg.matrix_rank(product.double(), rtol=1e-5).tolist() == [1, 3, 6]


@pytest.mark.parametrize("loss", list(s_curves.LOSSES))
def test_the_floors_are_the_losses_of_nothing_and_of_the_target(loss: str) -> None:
    model = s_curves.factors(5, torch.tensor([2, 5]), torch.tensor([1.0, 2.0]), torch.arange(2))
    target = (model.decoder @ model.encoder).detach()
    data = tk.Dataset(torch.eye(5), target.mT.contiguous())
    options = {"loss": s_curves.LOSSES[loss], "loss_reduction": "sum"}
    nothing, floor = s_curves._floors(target, loss)
    torch.testing.assert_close(tk.evaluate(model, data, **options), floor, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.decoder.zero_()
    torch.testing.assert_close(tk.evaluate(model, data, **options), nothing, rtol=1e-5, atol=1e-6)


def test_cosines_of_columns_and_singular_directions() -> None:
    target = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None].repeat(2, 1, 1)
    directions = torch.linalg.svd(target.double()).U
    decoder = torch.tensor([[5.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 7.0]])[None].repeat(2, 1, 1)
    angles = s_curves.cosines(decoder, directions, torch.tensor([3, 1]))
    wanted = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(angles[0], wanted)
    assert angles[1, 0, 0] == pytest.approx(1.0) and angles[1].isnan().sum() == 8


def test_bumps_rise_and_fall() -> None:
    traces = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.9, 0.85], [0.1, 0.9, 0.3], [0.5, 0.1, 0.45]])
    alone = [float(s_curves.bumps(trace.reshape(1, 3, 1, 1))[0]) for trace in traces]
    assert alone == [0.0, 0.0, 1.0, 0.0]  # falling only; too small a fall; a bump; a dip
    absent = torch.full((1, 3, 1, 1), torch.nan)
    both = torch.cat([traces[2].reshape(1, 3, 1, 1), absent], dim=2)
    assert s_curves.bumps(both).tolist() == [1.0]


def test_steepness_of_power_laws_exponentials_and_plateaus() -> None:
    t = np.arange(1, 2001)
    assert s_curves.flattest(1.2 * t**-0.3) == pytest.approx(0.3, abs=1e-6)
    decay = s_curves.flattest(2 * np.exp(-t / 300.0), pieces=400)
    assert decay == pytest.approx(np.log(2 / 1.3), rel=0.05)
    s_curve = 1 / (1 + np.exp((t - 1000) / 50.0))
    assert s_curves.flattest(s_curve) < 0.01
    assert s_curves.flattest(np.full(100, np.nan)) == np.inf


def test_a_network_with_a_unit_for_each_feature() -> None:
    model = tk.MLP(4, 8, n_models=2, embedding=torch.eye(4), bias=False)
    before = model.encoder[1].detach().clone()
    basins.begin_monosemantic(model, torch.tensor([True, False]), -0.25)
    torch.testing.assert_close(model(torch.eye(4))[0], torch.eye(4))
    activations = tk.metrics.single_feature_activations(model).detach()
    assert tk.metrics.monosemanticity(activations)[0].tolist() == [1.0] * 8
    assert torch.equal(model.encoder[1], before)


def test_a_pull_is_gradient_descent_on_loss_and_distance() -> None:
    settings = dataclasses.replace(
        basins.EXPERIMENT.quick, n_features=6, n_inputs=4, width=5, density=0.5, batch_size=16, pull_steps=12,
        pull_lr=0.2,
    )  # fmt: skip
    strength = torch.tensor([0.0, 0.3], dtype=torch.float64)
    start, end = (
        tk.MLP(6, 5, n_models=2, embedding=4, bias=False, seed=torch.tensor([s, s])) for s in (1, 2)
    )
    model = tk.MLP(6, 5, n_models=2, embedding=start.embedding, bias=False)
    basins.pull(settings, model, *(basins._weights(which) for which in (start, end)), strength)
    exact = tk.MLP(6, 5, n_models=2, embedding=start.embedding.double(), bias=False, dtype=torch.float64)
    basins._put(exact, basins._weights(start))
    target = {name: value.double() for name, value in basins._weights(end).items()}
    data = tk.SparseFeatures(6, 0.5)
    for step in range(settings.pull_steps):
        x = data.sample(step, 16, seed=torch.arange(2)).double()
        loss = exact.loss(x, loss_reduction="sum")
        weights = dict(exact.named_parameters())
        for name, value in weights.items():
            loss = loss + strength * (value - target[name]).square().flatten(1).sum(dim=1)
        slopes = torch.autograd.grad(loss.sum(), list(weights.values()))
        with torch.no_grad():
            for value, slope in zip(weights.values(), slopes, strict=True):
                value -= settings.pull_lr * slope
    for name, value in exact.stacked_parameters().items():
        # The cold noise is a millionth a step.
        torch.testing.assert_close(model.stacked_parameters()[name].double(), value, rtol=1e-4, atol=2e-5)


def test_positions_along_a_line() -> None:
    start = {"encoder": torch.zeros(3, 2, 2), "hidden_bias": torch.zeros(3, 2)}
    end = {"encoder": torch.ones(3, 2, 2), "hidden_bias": 2 * torch.ones(3, 2)}
    share = torch.tensor([0.0, 0.25, 1.0])
    at = {name: share.view(3, *[1] * (value.ndim - 1)) * value for name, value in end.items()}
    at["hidden_bias"] = at["hidden_bias"] + torch.tensor([1.0, -1.0])  # across the line
    np.testing.assert_allclose(basins.position(at, start, end), share.numpy(), atol=1e-7)
