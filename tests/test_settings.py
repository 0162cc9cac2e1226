"""The one frozen object of a run's settings: to and from what a run keeps, one model's row, what differs."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

import toykern as tk
from toykern.training.settings import Settings

K = 3


def begun(**options) -> tk.Run:
    """A run at step 0 in which everything that can differ between models does."""
    given = {
        "steps": 20, "batch_size": 8, "importance": torch.tensor([[1.0], [2.0], [3.0]]),
        "seed": torch.tensor([5, 6, 7]), "optimizer": tk.Adam(lr=[0.1, 0.2, 0.3], weight_decay=0.5),
        "snapshots": [3], "record": ("loss", "features_per_dimension"), "stop_at": 0, "progress": False,
    }  # fmt: skip
    data = tk.SparseFeatures(4, torch.tensor([[0.2], [0.3], [0.4]]))
    return tk.fit(tk.TiedAutoencoder(4, 2, K), data, **(given | options))


def test_the_way_there_and_back():
    run = begun(schedule=tk.WarmupCosine(4))
    settings = run.settings
    assert run.config == {"model": run.model.config(), **settings.config()}
    again = settings.arrays(K)
    assert again.keys() == {"seed", "importance", "lr", "weight_decay", "probability"}
    assert all(torch.equal(values, run.arrays[name]) for name, values in again.items())


def test_a_loss_is_told_where_it_is_not_the_square():
    """Stores from before there was a choice do not name it, and are read as they were meant."""
    settings = begun().settings
    assert "loss" not in settings.config() and settings.loss == "squared_error"
    other = dataclasses.replace(settings, loss="another")
    assert other.config() == settings.config() | {"loss": "another"}
    assert Settings.from_config(other.config(), other.arrays(K)).objective.loss == "another"
    assert other.row(1).objective.loss == "another"


@pytest.mark.parametrize(
    "kind", [tk.TiedAutoencoder, tk.Autoencoder, partial(tk.SparseTiedAutoencoder, density=0.5)]
)
def test_a_loss_that_is_not_there_is_refused_by_name(kind):
    model, data = kind(4, 2), tk.SparseFeatures(4, 0.2)
    refused = partial(pytest.raises, ValueError, match="loss must be one of 'squared_error'.*, not 'another'")
    with refused():
        tk.fit(model, data, steps=3, batch_size=8, loss="another")
    for method in ("samples", "stratified"):
        with refused():
            tk.evaluate(model, data, samples=100, method=method, loss="another")
    with refused():
        model.loss(torch.ones(3, 4), loss="another")


def test_one_row():
    row = begun().settings.row(1)
    arrays = row.arrays(1)
    assert arrays["seed"].tolist() == [6] and arrays["lr"].tolist() == [0.2]
    assert arrays["weight_decay"].tolist() == [0.5]
    assert arrays["importance"].tolist() == [[2.0] * 4]
    assert arrays["probability"][0].tolist() == pytest.approx([0.3] * 4)
    assert (row.steps, row.snapshots, row.grid) == (20, (3,), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 21),
        ("batch_size", 9),
        ("optimizer", tk.Adam(lr=[0.1, 0.2, 0.4], weight_decay=0.5)),
        ("optimizer", tk.AdamW(lr=[0.1, 0.2, 0.3], weight_decay=0.5)),
        ("data", tk.SparseFeatures(4, torch.tensor([[0.2], [0.3], [0.5]]))),
        ("data", tk.SparseFeatures(4, torch.tensor([[0.2], [0.3], [0.4]]), noise=0.1)),
        ("seed", torch.tensor([5, 6, 8])),
        ("importance", torch.ones(1, 4)),
        ("schedule", "linear"),
        ("target", "abs"),
        ("loss_reduction", "sum"),
        ("loss", "another"),
        ("record_every", 7),
        ("record", ("loss",)),
        ("snapshots", (4,)),
        ("grid", tk.grid(seed=range(K))),
    ],
)
def test_what_differs_is_named_and_nothing_else(name, value):
    settings = begun().settings
    assert settings.differences(begun().settings) == []
    assert settings.differences(dataclasses.replace(settings, **{name: value})) == [name]


def test_equal_numbers_given_otherwise_do_not_differ():
    settings = begun(importance=2.0, optimizer=tk.Adam(lr=0.1)).settings
    other = begun(importance=torch.full((K, 4), 2.0), optimizer=tk.Adam(lr=[0.1] * K)).settings
    assert settings.differences(other) == []


def test_no_schedule_is_refused_by_name():
    with pytest.raises((TypeError, ValueError), match="schedule"):
        begun(schedule=None)
