"""The bench of the family at tiny sizes: every peer does the work that `fit` does, and roofs count it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import toykern as tk
from bench import bench_family, family_rows
from bench.peers.family import (
    Variant,
    jax_contender,
    jax_is_here,
    loss_of,
    start_of,
    torch_contender,
    variants,
)
from bench.roof import Peaks

pytestmark = pytest.mark.slow

TINY: dict[str, Callable[[], family_rows.Row]] = {
    "s-curves": lambda: family_rows.s_curves(models=4, n=6),
    "grokking": lambda: family_rows.grokking(p=5, width=6, models=2, fraction=0.5),
    "double-descent": lambda: family_rows.double_descent(n=12, samples=20, p=0.3),
    "toy-saes": lambda: family_rows.toy_saes(models=4, batch_size=64),
    "saes": lambda: family_rows.saes(models=3, d=4, hidden=6, directions=8, batch_size=16),
    "monosemanticity": lambda: family_rows.monosemanticity(-0.1, n=16, d=4, hidden=8, batch_size=32),
    "lamb": lambda: family_rows.monosemanticity(0.0, "lamb", n=16, d=4, hidden=8, batch_size=32),
}
OF_DATASETS = ("s-curves", "grokking", "double-descent")


@pytest.mark.parametrize("key", OF_DATASETS)
def test_peers_train_the_models_that_fit_trains(key: str) -> None:
    row = TINY[key]()
    ours = bench_family.fit_contender(row)()(5)
    peers = [torch_contender(row, variant, False) for variant in variants(row)]
    if jax_is_here():
        peers += [jax_contender(row, variant, 2) for variant in variants(row)]
    for peer in peers:
        found = peer()(5)
        assert found.keys() == ours.keys()
        for name, value in ours.items():
            torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6)
    started = start_of(row)[1]
    assert not any(torch.allclose(ours[name], started[name], rtol=1e-4) for name in ours)


@pytest.mark.parametrize("key", [key for key in TINY if key not in OF_DATASETS])
def test_the_peers_loss_on_a_batch_is_that_of_the_models(key: str) -> None:
    row = TINY[key]()
    network, parameters, fixed = start_of(row)
    model = row.model()
    assert row.batch_size is not None
    x = row.data.sample(3, row.batch_size, n_models=model.n_models)
    prices = torch.as_tensor(row.l1(), dtype=torch.float32).expand(model.n_models)
    given = {name: value.requires_grad_() for name, value in parameters.items()}
    loss = loss_of(torch, row, network, gather=False)(given | fixed, x, None, prices)
    loss.backward()
    expected = model.loss(x, **row.settings).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(given[name].grad, parameter.grad)


@pytest.mark.parametrize("draw", ["uniform", "gaps"])
def test_streams_of_peers_train_as_well_as_ours(draw: str) -> None:
    row = family_rows.saes(models=2, d=8, hidden=16, directions=16, batch_size=64)
    model = row.model()
    x = row.data.sample(0, 2000, n_models=2, purpose="evaluation")

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameters[name])
            return model.loss(x, **row.settings)

    contenders = [bench_family.fit_contender(row), torch_contender(row, Variant(draw), False)]
    if jax_is_here():
        contenders.append(jax_contender(row, Variant(draw), 2))
    before, *after = loss(start_of(row)[1]), *(loss(contender()(150)) for contender in contenders)
    for found in after:
        assert bool((found < 0.6 * before).all())
        torch.testing.assert_close(found, after[0], rtol=0.15, atol=0.0)


def test_lamb_of_the_peers_is_that_of_fit() -> None:
    row = TINY["lamb"]()
    model = row.model()
    x = row.data.sample(0, row.batch_size, n_models=1)
    from bench.peers.family import Lamb

    lamb = Lamb(list(model.parameters()), row.lr)
    model.loss(x, **row.settings).sum().backward()
    lamb.step()
    fitted = bench_family.fit_contender(row)()(1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), fitted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", TINY)
def test_a_row_is_measured_beside_its_peers(key: str) -> None:
    row = TINY[key]()
    line = bench_family.measure(row, repeats=1, compiled=False, jax=False)
    assert 0 < line["active_codes"] <= 1
    bench_family.add_roof(line, row, Peaks(flops=1e12, random_words=1e10))
    assert line["roof"] > 0 and line["ratio"]["wall"] > 0 and line["best_peer"] == "eager"
    text = bench_family.row_text(line)
    assert text.count("|") == bench_family.header().split("\n")[0].count("|") and row.name in text


def test_the_roof_of_a_factorisation_is_two_products_with_the_targets() -> None:
    n, m, models = 100, 2, 4
    found = family_rows.s_curves(models=models, n=n, hidden=m).operations(1.0)
    # C with E and with D; the Gram matrices of both; what the n entries of the identity take in E.
    assert found.multiply_adds == models * (2 * n * n * m + 3 * n * m * m + 2 * n * m)
    assert found.random_words == found.elementwise == 0


def test_the_roof_follows_the_active_codes() -> None:
    row = family_rows.monosemanticity(0.0)
    half, few = (row.operations(share).multiply_adds for share in (0.5, 0.02))
    assert few < half / 5
    # Eight entries a sample, a gap and a magnitude each.
    assert row.operations(0.5).random_words == pytest.approx(2 * 8192 * 8)


def test_every_row_is_there() -> None:
    rows: dict[str, Any] = {key: make() for key, make in family_rows.ROWS.items() if "mono" not in key}
    assert all(row.key == key for key, row in rows.items())
    assert rows["toy-saes"].data.n_features == 5 and isinstance(rows["grokking"].data, tk.Dataset)
