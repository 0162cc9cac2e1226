"""The smallest models are trained side by side, a model to a lane: each with the bits that it has alone.

A model by itself goes by the columns' loop, as do groups that are too small; so every comparison here is one
of the two loops.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from kit import LEVELS, assert_same_bits, isa_level

import toykern as tk

loop_module = importlib.import_module("toykern.training.loop")

LANES = {"v4": 16, "v3": 8, "neon": 8, "base": 4}


@pytest.fixture(autouse=True)
def one_thread():
    """By default all models are one thread's share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def population(
    chosen: Any,
    n: int = 5,
    m: int = 2,
    *,
    p: Any = (0.004, 0.03),
    steps: int = 12,
    batch_size: int = 300,
    network: dict[str, Any] | None = None,
    features: dict[str, Any] | None = None,
    optimizer: tk.Adam | tk.AdamW | tk.SGD | None = None,
    frozen: str = "",
    lr: Any = (1e-3, 1e-1),
    **options: Any,
) -> tk.Run:
    """Models `chosen` of a population of 64 that differ in everything a model may differ in."""
    chosen = np.atleast_1d(chosen)
    random = torch.Generator().manual_seed(n)
    weight = torch.randn(64, m, n, generator=random) / 2
    bias = torch.rand(64, n, generator=random) / 8 - 0.05
    model = tk.TiedAutoencoder(n, m, len(chosen), **(network or {}))
    with torch.no_grad():
        model.weight.copy_(weight[chosen])
        if model.bias is not None:
            model.bias.copy_(bias[chosen])
    if frozen:
        getattr(model, frozen).requires_grad_(False)
    rates = {"lr": np.geomspace(*lr, 64)[chosen], "weight_decay": np.linspace(0, 0.1, 64)[chosen]}
    kind, settings = optimizer or (tk.Adam, {})
    probability = np.random.default_rng(3).permutation(np.geomspace(*p, 64))[chosen][:, None]
    return tk.fit(
        model,
        tk.SparseFeatures(n, np.broadcast_to(probability, (len(chosen), n)), **(features or {})),
        steps=steps,
        batch_size=batch_size,
        optimizer=kind(**rates, **settings),
        importance=np.linspace(0, 2, 64 * n).reshape(64, n)[chosen],
        seed=(10**12 + 7 * np.arange(64))[chosen],
        record_every=5,
        progress=False,
        **options,
    )


def assert_each_is_itself(models: Any, **options: Any) -> tk.Run:
    """The models together, and each alone."""
    together = population(models, **options)
    for i, model in enumerate(models):
        assert_same_bits(together, population(model, **options), slice(i, i + 1))
    return together


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 15, 16, 17, 33])
def test_any_number_of_models(level, count):
    with isa_level(level):
        run = assert_each_is_itself(range(count))
    assert run.loss.isfinite().all() and len(run.loss.unique(dim=0)) == count


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("n", "m"),
    [(2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (6, 2), (1, 1), (5, 1), (7, 2), (14, 1), (2, 2), (8, 2)],
    ids=str,
)
def test_shapes(level, n, m):
    with isa_level(level):
        assert_each_is_itself(range(LANES[level]), n=n, m=m, steps=7)


OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": (tk.AdamW, {"betas": (0.8, 0.99)})},
    "SGD": {"optimizer": (tk.SGD, {})},
    "momentum": {"optimizer": (tk.SGD, {"momentum": 0.9, "dampening": 0.1})},
    "Nesterov": {"optimizer": (tk.SGD, {"momentum": 0.9, "nesterov": True})},
    "abs": {"target": "abs", "features": {"magnitude": "symmetric"}},
    "half normal": {"features": {"magnitude": "half_normal"}},
    "constant": {"features": {"magnitude": "constant"}},
    "exponential": {"features": {"magnitude": "exponential"}},
    "lognormal": {"features": {"magnitude": "lognormal"}},
    "no bias": {"network": {"bias": False}},
    "linear": {"network": {"output_activation": "none"}},
    "hidden ReLU": {"network": {"hidden_activation": "relu"}},
    "a sum": {"loss_reduction": "sum"},
    "schedule": {"schedule": "cosine"},
    "frozen bias": {"frozen": "bias"},
    "frozen weight": {"frozen": "weight"},
    "batch of one": {"batch_size": 1},
    "very rare": {"p": (1e-6, 1e-4)},
    "never": {"p": (1e-12, 1e-11)},
    "up to an eighth": {"p": (0.05, 0.125), "batch_size": 64},
    "slices": {"p": (0.1, 0.125), "batch_size": 1100},
    "noise": {"features": {"noise": 0.1}},
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(level, options):
    with isa_level(level):
        assert_each_is_itself(range(LANES[level] + 1), **options)


@pytest.mark.parametrize("level", LEVELS)
def test_models_of_other_kinds_among_them(level):
    """A group with a model of frequent features is not for the lanes; the groups beside it are."""
    lanes = LANES[level]
    with isa_level(level):
        assert_each_is_itself(range(2 * lanes), p=(0.01, 0.6))


@pytest.mark.parametrize("level", LEVELS)
def test_more_arrivals_than_there_is_room_for(level):
    """Batches of more than 512 entries, in a few of the steps of a few models."""
    lanes, p, batch_size, steps = LANES[level], 0.1, 900, 60
    models = np.arange(lanes)
    options = {"p": (p, p), "batch_size": batch_size, "steps": steps}
    seeds = 10**12 + 7 * models
    entries = [
        (tk.SparseFeatures(5, p).sample(step, batch_size, seeds) != 0).sum(dim=(1, 2))
        for step in range(steps)
    ]
    over = torch.stack(entries) > 512
    assert over.any() and not over.all()
    with isa_level(level):
        assert_each_is_itself(models, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_any_number_of_threads(level, threads):
    with isa_level(level):
        expected = population(range(37))
        torch.set_num_threads(threads)
        assert_same_bits(expected, population(range(37)))


@pytest.mark.parametrize("level", LEVELS)
def test_any_order(level):
    order = np.random.default_rng(0).permutation(33)
    with isa_level(level):
        assert_same_bits(population(range(33)), population(order), order)


@pytest.mark.parametrize("level", LEVELS)
def test_some_models_diverge(level):
    """A model that diverges stops where it does alone, with the weights that it had, and the others go on."""
    lanes = LANES[level]
    with isa_level(level):
        options = {"lr": (1e-4, 1e36), "optimizer": (tk.SGD, {}), "steps": 30, "batch_size": 64}
        models = np.linspace(0, 63, lanes).astype(int)
        run = assert_each_is_itself(models, **options)
        assert 0 < (run.diverged_at >= 0).sum() < lanes and len(run.diverged_at.unique()) > 2
        stopped = population(models, **options, stop_at=4)
        tk.fit(resume=stopped, progress=False)
        assert_same_bits(run, stopped)


@pytest.mark.parametrize("level", LEVELS)
def test_any_chunking(level, monkeypatch):
    with isa_level(level):
        whole = population(range(17), steps=40)
        lengths = itertools.cycle([1, 2, 3, 5, 7, 11])
        monkeypatch.setattr(loop_module, "_next_length", lambda *_: next(lengths))
        assert_same_bits(whole, population(range(17), steps=40))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cuts", [(1, 2, 11), (5, 10), (7,)], ids=str)
def test_stopped_and_resumed(level, cuts):
    with isa_level(level):
        whole = population(range(17))
        run = population(range(17), stop_at=cuts[0])
        for cut in (*cuts[1:], None):
            tk.fit(resume=run, stop_at=cut, progress=False)
    assert run.complete
    assert_same_bits(whole, run)


@pytest.mark.parametrize("level", LEVELS)
def test_a_callback_ends_the_run(level):
    with isa_level(level):
        together = population(range(17), callback=lambda run: run.step >= 5)
        alone = population(3, callback=lambda run: run.step >= 5)
    assert together.step == alone.step == 5
    assert_same_bits(together, alone, slice(3, 4))


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
def test_a_few_of_all_kinds(level):
    """What the sanitizers see."""
    with isa_level(level):
        for options in ({"n": 2, "m": 1}, {"n": 7, "m": 2}, {"optimizer": (tk.SGD, {"momentum": 0.5})}):
            assert population(range(17), steps=3, **options).loss.isfinite().all()
