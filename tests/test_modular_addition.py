"""Modular addition: its pairs, how they are dealt out, and wrong labels, against docs/data_stream.md §13."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stream_oracle import Words, mulhi

import toykern as tk

PAIRS_KIND = 13


def expected(p: int, fraction: float, noise: float, seed: int) -> tuple[list[Any], list[Any]]:
    """docs/data_stream.md §13, pair by pair: (a, b, label) of training and of testing."""
    words = Words(seed, purpose=0, step=0)
    wrong = Words(seed, purpose=1, step=0)
    keys = [
        (int(words.sequence(PAIRS_KIND, 2 * i, 0)) << 32) + int(words.sequence(PAIRS_KIND, 2 * i + 1, 0))
        for i in range(p * p)
    ]
    order = sorted(range(p * p), key=lambda i: (keys[i], i))
    count = int(np.floor(fraction * p * p + 0.5))
    spoilt = int(np.floor(noise * count + 0.5))
    train = []
    for place, i in enumerate(order[:count]):
        a, b = divmod(i, p)
        more = 1 + int(mulhi(wrong.sequence(PAIRS_KIND, i, 0), p - 1)) if place < spoilt else 0
        train.append((a, b, (a + b + more) % p))
    return train, [(i // p, i % p, (i // p + i % p) % p) for i in reversed(order[count:])]


def pairs_of(data: tk.Dataset, p: int, model: int = 0, n_models: int = 1) -> list[Any]:
    """(a, b, label) of each sample of a model, read from what it is trained on."""
    x, target = (part[model] for part in data.batch(0, n_models=n_models, n_outputs=p))
    there = x.sum(1) > 0
    assert x.shape[1] == 2 * p and bool((x[there].sum(1) == 2).all()) and set(x.unique().tolist()) <= {0, 1}
    a, b, label = x[there, :p].argmax(1), x[there, p:].argmax(1), target[there].argmax(1)
    return list(zip(a.tolist(), b.tolist(), label.tolist(), strict=True))


@pytest.mark.parametrize(
    ("p", "fraction", "noise", "seed"), [(2, 0.5, 0.0, 0), (7, 0.3, 0.4, 3), (12, 0.9, 1.0, 2**40)]
)
def test_the_pairs_are_those_of_the_page(p: int, fraction: float, noise: float, seed: int) -> None:
    train, test = tk.modular_addition(p, fraction, noise=noise, seed=seed)
    assert train.n_models is None and test.n_models is None
    wanted = expected(p, fraction, noise, seed)
    assert (pairs_of(train, p), pairs_of(test, p)) == wanted
    assert {pair[:2] for part in wanted for pair in part} == {(a, b) for a in range(p) for b in range(p)}


@pytest.mark.parametrize("seed", [5, [5, 6, 7]])
def test_models_may_have_fractions_noise_and_seeds_of_their_own(seed: Any) -> None:
    fractions, noise, p = [0.2, 0.8, 0.5], [0.5, 0.0, 0.1], 11
    train, test = tk.modular_addition(p, fractions, noise=noise, seed=seed)
    assert train.n_models == test.n_models == 3
    for i in range(3):
        alone = expected(p, fractions[i], noise[i], seed if isinstance(seed, int) else seed[i])
        assert (pairs_of(train, p, i, 3), pairs_of(test, p, i, 3)) == alone
        row = train.row(i)
        assert pairs_of(row, p) == alone[0]


def test_shared_pairs_are_held_once() -> None:
    train, test = tk.modular_addition(13, [0.2, 0.3], noise=[0.0, 0.1], seed=1)
    assert train.entries.n_models == test.entries.n_models == 1
    assert len(test.label) == 1 and len(train.label) == 2


def test_wrong_labels_are_any_other_number_equally_often() -> None:
    # Chi-square of the differences from the sum: 8 degrees of freedom, 1 in 1,000 is above 26.1.
    train, _ = tk.modular_addition(10, 0.9, noise=1.0, seed=range(100))
    a, b, label = np.array([pairs_of(train, 10, i, 100) for i in range(100)]).T.reshape(3, -1)
    counts = np.bincount((label - a - b) % 10, minlength=10)
    assert counts[0] == 0
    mean = counts.sum() / 9
    assert ((counts[1:] - mean) ** 2 / mean).sum() < 26.1


def test_pairs_are_trained_on_equally_often() -> None:
    train, _ = tk.modular_addition(5, 0.4, seed=range(2_000))
    counts = np.zeros(25)
    feature = train.entries.feature.view(2_000, 10, 2)
    np.add.at(counts, (feature[..., 0] * 5 + feature[..., 1] - 5).flatten().numpy(), 1)
    # Each is there with probability 0.4, and all together ten times: chi-square of 24 degrees, times 25/24.
    assert (24 / 25) * ((counts - 800.0) ** 2 / (2_000 * 0.4 * 0.6)).sum() < 51.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, "p must be an integer from 2"),
        ({"p": 2**14 + 1}, "p must be an integer from 2"),
        ({"fraction": 0.0}, "fraction must leave at least one of the 49 pairs"),
        ({"fraction": [0.5, 1.0]}, "fraction must leave at least one of the 49 pairs"),
        ({"fraction": 1.5}, "fraction must be between 0 and 1, not 1.5"),
        ({"noise": -0.1}, "noise must be from 0 to 1, not -0.1"),
        ({"noise": float("nan")}, "noise must be from 0 to 1, not nan"),
        (
            {"fraction": [0.5, 0.4], "seed": [1, 2, 3]},
            "fraction, noise and seed must be for one number of models",
        ),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": [[1]]}, "seed must be one number or"),
        ({"seed": None}, "seed"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tk.modular_addition(**({"p": 7} | arguments))


@pytest.mark.parametrize("batch_size", [None, 10])
def test_a_sweep_over_fractions_and_noise(batch_size: int | None, tmp_path: Any) -> None:
    """A chunk's datasets are as long as its longest; a model's bits do not depend on that."""
    pytest.importorskip("zarr")
    p = 7

    def plan(points: Any, index: torch.Tensor) -> dict[str, Any]:
        data = tk.modular_addition(p, points.fraction, noise=points.noise, seed=3)[0]
        model = tk.MLP(2 * p, 9, p, points.n_models, hidden_activation="square", bias=False, seed=index)
        return {"model": model, "data": data}

    points = tk.grid(fraction=[0.2, 0.5, 0.8], noise=[0.0, 0.3])
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    made = tk.sweep(points, plan, tmp_path / "sweep", steps=30, chunk=2, **settings)
    whole = tk.fit(**plan(points, torch.arange(6)), steps=30, **settings)
    for name in ("encoder", "decoder", "hidden_bias"):
        found = torch.as_tensor(made.read(name))
        assert torch.equal(found.flatten(0, 1), getattr(whole.model, name).detach())
    for i in range(6):
        assert torch.equal(whole.rerun(i).model.encoder[0], whole.model.encoder[i])
    # Alone, a model has a dataset of its own length.
    alone = tk.modular_addition(p, 0.2, noise=0.3, seed=3)[0]
    model = tk.MLP(2 * p, 9, p, hidden_activation="square", bias=False, seed=1)
    tk.fit(model, alone, 30, seed=1, **settings)
    assert torch.equal(model.encoder[0], whole.model.encoder[1])
