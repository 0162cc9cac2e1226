"""A model's bits depend on the model alone: not on neighbours, threads, chunks or interruptions."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from cases import FIT_CASES, FIT_GRAM, FIT_JOINT, FIT_LARGE, FitCase
from kit import LEVELS, assert_same_bits, data_of, fit_case, isa_level, model_of

import toykern as tk
from toykern import _native
from toykern.training.kernels import Resident

loop_module = importlib.import_module("toykern.training.loop")

BY_NAME = {case.name: case for case in (*FIT_CASES, *FIT_GRAM, *FIT_JOINT, *FIT_LARGE)}
# One of every kind of path: both loops, rare and frequent units, groups, noise, untied, momentum.
VARIED = [
    BY_NAME[name]
    for name in (
        "2,1 batch 1024",
        "5,2 rare and frequent",
        "5,2 each model its own",
        "5,2 momentum",
        "8,3 groups of all kinds",
        "7,3 untied relu none",
        "16,8",
        "128,1 rare",
        "129,1 frequent",
        "17,9 Nesterov",
        "20,9 each model its own",
        "20,9 noise, groups",
        "33,17 batch 33",
        "80,20",
        "40,20 gram",
        "40,20 gram, untied",
        "20,5 each form",
        "24,8 each form, untied",
        "64,4 runs of columns",
        "8,3 3 active",
        "20,9 hierarchy",
        "20,9 3 active",
        "8,3 rare trees",
        "20,9 rare copula",
        "20,9 copula of a matrix, noise",
    )
]
UNGROUPED = [
    case for case in VARIED if not (case.correlated or case.anticorrelated or case.probability is None)
]


def ids(case: FitCase) -> str:
    return case.name


# Among others


def stack(order: list[int], case: FitCase, steps: int = 30) -> tk.Run:
    """Models `order` of a population of seven that differ in everything a model may differ in."""
    n, chosen = case.n_features, np.array(order)
    p = np.array([0.01, 0.3, 0.05, 0.9, 0.0, 1.0, 0.1])[:, None] * np.linspace(0.5, 1, n)
    model = model_of(dataclasses.replace(case, n_models=7))[order]
    rates = {"lr": np.geomspace(1e-4, 1e-1, 7)[chosen], "weight_decay": np.linspace(0, 0.5, 7)[chosen]}
    return tk.fit(
        model,
        tk.SparseFeatures(n, p[chosen], **case.features),
        steps=steps,
        batch_size=case.batch_size,
        optimizer=dataclasses.replace(case.optimizer, **rates),
        importance=np.linspace(0, 2, 7 * n).reshape(7, n)[chosen],
        seed=(10**12 + 7 * np.arange(7))[chosen],
        record_every=7,
        record=("loss", "feature_dimensionality"),
        snapshots=(0, 13),
        progress=False,
    )


@pytest.mark.parametrize("case", UNGROUPED, ids=ids)
def test_alone_or_among_others(case):
    together = stack(list(range(7)), case)
    for i in range(7):
        assert_same_bits(together, stack([i], case), slice(i, i + 1))
    order = [5, 0, 3, 6]
    assert_same_bits(together, stack(order, case), order)


@pytest.mark.parametrize("case", VARIED, ids=ids)
def test_a_rerun_is_the_same_model(case):
    run = fit_case(case, steps=25, record_every=4, snapshots=(0, 7, 25))
    for i in range(case.n_models):
        assert_same_bits(run, run.rerun(i), slice(i, i + 1))


def test_a_crowd():
    """More models than one run of the queue hands out, on two threads."""
    model = tk.TiedAutoencoder(3, 2, 700)
    p = np.geomspace(1e-3, 1, 700)[:, None]
    torch.set_num_threads(2)
    run = tk.fit(model, tk.SparseFeatures(3, p), steps=5, batch_size=40, progress=False)
    for i in (0, 1, 350, 699):
        assert_same_bits(run, run.rerun(i), slice(i, i + 1))
    assert len(run.model.weight.flatten(1).unique(dim=0)) == 700


# Threads

TREE = tk.Hierarchy([-1, *range(15)])
FACTOR = tk.Copula(loadings=np.full((120, 1), 0.7))
SHARED = [  # so much work per step that a team of threads shares a model
    FitCase("one model", 200, 40, 0.05, 256, steps=6, n_models=1),
    FitCase("two models", 200, 40, 0.05, 256, steps=6, n_models=2),
    FitCase("frequent", 100, 70, 0.4, 133, steps=4, n_models=1),
    FitCase(
        "untied", 150, 50, 0.1, 200, steps=4, n_models=1, tied=False, network={"hidden_activation": "relu"}
    ),
    FitCase("noise", 120, 40, 0.05, 256, steps=4, n_models=2, features={"noise": 0.1}),
    FitCase("groups", 120, 40, 0.05, 256, steps=4, n_models=1, anticorrelated=(tuple(range(20)),)),
    FitCase("columns", 16, 8, 0.1, 6000, steps=4, n_models=1),
    FitCase("columns, frequent", 16, 8, 0.4, 6001, steps=4, n_models=2),
    FitCase("many parts", 260, 130, 0.02, 700, steps=3, n_models=1),
    *(dataclasses.replace(case, steps=4) for case in FIT_GRAM[2:4]),
    FitCase("8 active", 200, 40, None, 256, steps=4, n_models=1, features={"active": 8}),
    FitCase("2 active, columns", 16, 8, None, 6001, steps=4, n_models=1, features={"active": 2}),
    FitCase("hierarchy, columns", 16, 8, 0.5, 6001, steps=4, n_models=1, features={"dependence": TREE}),
    FitCase("rare copula", 120, 40, 0.03, 200, steps=4, n_models=1, features={"dependence": FACTOR}),
    FitCase("rare tree, columns", 16, 8, 0.1, 6001, steps=4, n_models=1, features={"dependence": TREE}),
    FitCase("copula", 120, 40, 0.1, 200, steps=4, n_models=2, features={"dependence": FACTOR}),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", SHARED, ids=ids)
def test_any_number_of_threads_that_share_a_model(case, level):
    runs = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        with isa_level(level):
            # stopped within a record, so that its partial sum is compared in double precision
            runs.append(fit_case(case, steps=case.steps + 1, record_every=case.steps - 1, stop_at=case.steps))
    for run in runs[1:]:
        assert_same_bits(runs[0], run)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", SHARED, ids=ids)
def test_a_team_of_three(case):
    torch.set_num_threads(3)
    assert fit_case(case, steps=2).loss.isfinite().all()


@pytest.mark.parametrize("case", UNGROUPED, ids=ids)
def test_any_number_of_threads_with_a_model_each(case):
    torch.set_num_threads(1)
    expected = stack(list(range(7)), case, steps=15)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert_same_bits(expected, stack(list(range(7)), case, steps=15))


def test_torch_is_asked_for_the_threads_at_each_call(monkeypatch):
    seen = []

    class Native:
        def __getattr__(self, name):
            return getattr(_native, name)

        def train(self, params):
            seen.append(params.threads)
            torch.set_num_threads(len(seen) % 3 + 1)
            _native.train(params)

    monkeypatch.setattr("toykern.training.kernels._native", Native())
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: 2)
    torch.set_num_threads(1)
    tk.fit(tk.TiedAutoencoder(2, 1, 4096), tk.SparseFeatures(2, 0.1), 9, 4, progress=False)
    assert seen == [1, 2, 3, 1, 2]


def test_python_threads_train_side_by_side():
    case = BY_NAME["20,9 noise, groups"]
    expected, runs = fit_case(case, steps=40), [None, None]

    def work(at: int) -> None:
        runs[at] = fit_case(case, steps=40)

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for run in runs:
        assert_same_bits(expected, run)


def test_python_runs_while_kernels_do():
    """The interpreter's lock is released: this thread works while another is inside one native call."""
    inside, counted = threading.Event(), 0

    def schedule(step, steps):
        if step == steps - 1:  # multipliers are made just before the call
            inside.set()
        return 1.0

    model, data = tk.TiedAutoencoder(40, 9, 4), tk.SparseFeatures(40, 0.5)
    thread = threading.Thread(
        target=tk.fit, args=(model, data, 400, 512), kwargs={"schedule": schedule, "progress": False}
    )
    thread.start()
    assert inside.wait(60)
    while thread.is_alive():
        counted += 1
        time.sleep(0)
    assert counted > 10


# Chunks


@pytest.mark.parametrize("case", VARIED, ids=ids)
def test_any_chunking(case, monkeypatch):
    options = {"steps": 40, "record_every": 7, "record": ("loss", "superposition"), "snapshots": (0, 9, 40)}
    whole = fit_case(case, **options)
    lengths = itertools.cycle([1, 2, 3, 5, 7, 11])
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: next(lengths))
    assert_same_bits(whole, fit_case(case, **options))
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: 1)
    assert_same_bits(whole, fit_case(dataclasses.replace(case), **options))


def test_stretches_follow_the_clock(monkeypatch):
    """Long stretches for quick steps, single steps for very slow ones."""
    lengths = []
    advance = Resident.advance
    monkeypatch.setattr(
        Resident,
        "advance",
        lambda self, first, factors, *more: (
            lengths.append(len(factors)),
            advance(self, first, factors, *more),
        ),
    )
    monkeypatch.setattr(loop_module, "_STRETCH_SECONDS", 1e-9)
    fit_case(BY_NAME["2,1 batch 1024"], steps=5000, batch_size=4)
    assert set(lengths[1:-1]) == {1}
    lengths.clear()
    monkeypatch.setattr(loop_module, "_STRETCH_SECONDS", 1e9)
    fit_case(BY_NAME["2,1 batch 1024"], steps=5000, batch_size=4)
    assert lengths == [1365, 3635]


@pytest.mark.parametrize(("m", "n"), [(2, 5), (3, 7)])
def test_recorded_metrics_are_a_models_own(m, n):
    """Where superposition is a small difference of large sums: alone, among others, cut and resumed."""
    random, models = torch.Generator().manual_seed(0), 23
    weight = torch.eye(m, n) + 1e-6 * torch.randn(models, m, n, generator=random)
    names = ("superposition", "feature_dimensionality", "features_per_dimension")

    def begun(chosen, **options):
        model = tk.TiedAutoencoder.from_published(weight[chosen].mT, torch.zeros(len(chosen), n))
        return tk.fit(
            model, tk.SparseFeatures(n, 0.1), 6, 8, tk.SGD(lr=1e-7), seed=chosen, record_every=2,
            record=names, progress=False, **options,
        )  # fmt: skip

    whole = begun(torch.arange(models))
    resumed = begun(torch.arange(models), stop_at=3)
    tk.fit(resume=resumed, progress=False)
    alone = [begun(torch.tensor([k])) for k in range(models)]
    for name in names:
        assert torch.equal(resumed.records[name], whole.records[name])
        assert torch.equal(torch.cat([run.records[name] for run in alone]), whole.records[name])


# Interruptions

OPTIONS = {
    "steps": 33,
    "record_every": 7,
    "record": ("loss", "features_per_dimension"),
    "snapshots": (0, 10, 20, 33),
    "schedule": "cosine",
}


@pytest.mark.parametrize("case", VARIED, ids=ids)
@pytest.mark.parametrize("cuts", [(1, 2, 32), (7, 14), (10,), (0, 33)], ids=str)
def test_stopped_and_resumed(case, cuts):
    whole = fit_case(case, **OPTIONS)
    run = fit_case(case, **OPTIONS, stop_at=cuts[0])
    for cut in (*cuts[1:], None):
        assert tk.fit(resume=run, stop_at=cut, progress=False) is run
        assert run.step == (33 if cut is None else cut)
    assert run.complete
    assert_same_bits(whole, run)


@pytest.mark.parametrize("case", VARIED[::3], ids=ids)
def test_stopped_stored_and_resumed(case, tmp_path):
    whole = fit_case(case, **OPTIONS)
    fit_case(case, **OPTIONS, stop_at=17).save(tmp_path / "run.zarr")
    run = tk.Run.load(tmp_path / "run.zarr")
    assert run.step == 17
    tk.fit(resume=run, progress=False)
    assert_same_bits(whole, run)


def test_ctrl_c_between_calls_and_resumed(ctrl_c, monkeypatch):
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: 2)
    pressed = []

    def schedule(step, steps):
        if step == 5000 and not pressed:
            pressed.append(step)
            ctrl_c()
        return 1 - step / steps

    case = BY_NAME["5,2 each model its own"]
    options = {"steps": 5100, "record_every": 700, "schedule": schedule}
    run = fit_case(case, **options)
    assert run.interrupted and not run.complete and 5000 <= run.step < 5010
    assert run.loss[:, 7].isnan().all() and not run.loss[:, :7].isnan().any()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pressed.append(-1)
    tk.fit(resume=run, progress=False)
    assert run.complete and not run.interrupted
    assert_same_bits(fit_case(case, **options), run)


def test_ctrl_c_inside_a_call(ctrl_c, monkeypatch):
    monkeypatch.setattr(loop_module, "_STRETCH_SECONDS", 0.05)
    timer = threading.Timer(0.3, ctrl_c)

    def schedule(step, steps):
        if step == 0 and not timer.is_alive():
            timer.start()
        return 1.0

    case = BY_NAME["20,5 batch 1024"]
    run = fit_case(case, steps=10**8, schedule=schedule)
    assert run.interrupted and 0 < run.step < 10**8
    again = fit_case(case, steps=10**8, schedule="constant", stop_at=run.step)
    for name, value in run.model.named_parameters():
        assert torch.equal(value, again.model.get_parameter(name)), name


def test_a_second_ctrl_c_raises_and_leaves_the_model_trained_so_far(ctrl_c, monkeypatch):
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: 1)

    def schedule(step, steps):
        if step == 4100:
            for _ in range(2):
                ctrl_c()
                time.sleep(0.01)
        return 1.0

    base = tk.TiedAutoencoder(3, 2, 4)
    data = tk.SparseFeatures(3, 0.1)
    with pytest.raises(KeyboardInterrupt):
        tk.fit(base[::2], data, 5000, 8, schedule=schedule, seed=[0, 2], progress=False)
    expected = tk.fit(tk.TiedAutoencoder(3, 2, 4), data, 5000, 8, stop_at=4100, progress=False).model
    assert torch.equal(base.weight[::2], expected.weight[::2])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def schedule(step, steps):
            os.kill(os.getpid(), signal.SIGINT)
            return 1.0

        run = tk.fit(
            tk.TiedAutoencoder(2, 1), tk.SparseFeatures(2, 0.1), 5, 8, schedule=schedule, progress=False
        )
        assert run.complete and not run.interrupted
    finally:
        signal.signal(signal.SIGINT, before)


# Surroundings


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_autograd_modes_change_nothing(context):
    case = BY_NAME["5,2 momentum"]
    expected = fit_case(case, steps=9)
    model, data = model_of(case), data_of(case)
    with context():
        run = tk.fit(
            model, data, steps=9, batch_size=case.batch_size, optimizer=case.optimizer, progress=False
        )
    assert_same_bits(expected, run)
    model.loss(torch.zeros(2, 5)).sum().backward()


def test_autograd_sees_that_the_weights_changed():
    model = tk.TiedAutoencoder(3, 2)
    loss = model.loss(torch.ones(4, 3)).sum()
    tk.fit(model, tk.SparseFeatures(3, 0.5), 3, 8, progress=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_denormals_are_as_before():
    small = torch.tensor(1e-40)
    tk.fit(tk.TiedAutoencoder(3, 2), tk.SparseFeatures(3, 0.5), 3, 8, progress=False)
    assert (small * 0.5).item() > 0
