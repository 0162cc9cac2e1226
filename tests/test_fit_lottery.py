"""Lottery tickets in `fit`: bit by bit the rounds that one makes by hand of plain runs, stored and changed.

By hand: train to the step to go back to, copy the run; train on from there, drop the smallest weights, take
what was copied again without them, and so on. The whole is also held against the recipe in a torch loop.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from kit import LEVELS, TRAJECTORY, batches_of, isa_level, relative_error

import toykern as tk

loop_module = importlib.import_module("toykern.training.loop")

STEPS, ROUNDS, FRACTION = 30, 3, 0.3
MOMENTUM = tk.SGD(lr=0.3, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    n_features: int = 20
    n_hidden: int = 10
    rewind_to: int = 9
    round_steps: int = STEPS
    optimizer: Any = tk.AdamW(lr=1e-2)
    schedule: Any = "constant"
    bias: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def recipe(self) -> tk.LotteryTicket:
        return tk.LotteryTicket(
            rounds=ROUNDS, round_steps=self.round_steps, rewind_to=self.rewind_to, drop_fraction=FRACTION
        )


CASES = [
    Case("from the start", rewind_to=0),
    Case("from the first step", rewind_to=1, schedule="cosine"),
    Case("from within a record", schedule="linear"),
    Case("from a record's end", rewind_to=14, optimizer=MOMENTUM),
    Case("from the last but one", rewind_to=STEPS - 1, optimizer=tk.Adam(lr=1e-2)),
    Case("with steps after the rounds", round_steps=22, rewind_to=6, schedule="cosine"),
    Case("columns", n_features=6, n_hidden=2, rewind_to=4, bias=False),
    Case("columns from the start", n_features=12, n_hidden=5, rewind_to=0, optimizer=MOMENTUM),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
OPTIONS = {"record_every": 7, "record": ("loss", "density"), "snapshots": (0, 5, 12, 22, STEPS)}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def model_of(case: Case) -> tk.SparseTiedAutoencoder:
    density = np.array([1.0, 0.6, 0.9])
    return tk.SparseTiedAutoencoder(
        case.n_features, case.n_hidden, density, n_models=3, bias=case.bias, dtype=torch.float32
    )


def fit_case(case: Case, **options: Any) -> tk.Run:
    settings = {
        "steps": STEPS,
        "batch_size": 24,
        "optimizer": case.optimizer,
        "schedule": case.schedule,
        "topology": case.recipe,
        "progress": False,
    }
    data = tk.SparseFeatures(case.n_features, 0.2)
    return tk.fit(model_of(case), data, **(settings | OPTIONS | options))


def without_smallest(run: tk.Run) -> torch.Tensor:
    """The connections of each model but the smallest, by sorting."""
    mask = run.model.topology.to_mask()
    for weight, exists in zip(run.model.weight.detach().abs().numpy(), mask, strict=True):
        places = np.flatnonzero(exists.numpy())
        order = np.argsort(weight.reshape(-1)[places], kind="stable")
        exists.view(-1)[torch.from_numpy(places[order[: int(FRACTION * len(places))]])] = False
    return mask


def masked(run: tk.Run, mask: torch.Tensor) -> tk.Run:
    """A run with only those connections."""
    topology = run.model.topology
    _, row, column = topology.places()
    model = topology.places()[0]
    drop = torch.zeros_like(topology.occupied())
    drop[topology.occupied_slots()] = ~mask[model, row, column]
    run.model.set_topology(*topology.with_changes(drop, (torch.empty(0, dtype=torch.int64),) * 3))
    for name, state in run.optimizer_state.items():
        if name.startswith("weight/"):
            state *= mask
    return run


def by_hand(case: Case) -> tk.Run:
    kept = fit_case(case, topology=None, stop_at=case.rewind_to)
    ended = tk.fit(resume=copy.deepcopy(kept), stop_at=case.round_steps, progress=False)
    for number in range(ROUNDS):
        again = masked(copy.deepcopy(kept), without_smallest(ended))
        stop = None if number == ROUNDS - 1 else case.round_steps
        ended = tk.fit(resume=again, stop_at=stop, progress=False)
    return ended


def tensors_of(run: tk.Run, rows: slice) -> dict[str, torch.Tensor]:
    found = {"loss": run.loss, "diverged_at": run.diverged_at, "density": run.records["density"]}
    found |= {"connections": run.model.topology.to_mask()} | run.model.stacked_parameters()
    found |= run.optimizer_state
    for step, snapshot in run.snapshots.items():
        found |= {f"{name} at {step}": value for name, value in snapshot.items()}
    return {name: value[rows].detach() for name, value in found.items()}


def assert_same(a: tk.Run, b: tk.Run, rows: slice = slice(None), others: slice = slice(None)) -> None:
    """Bit by bit, of those rows of each."""
    ours, theirs = tensors_of(a, rows), tensors_of(b, others)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        assert value.numpy().tobytes() == theirs[name].numpy().tobytes(), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounds_are_those_made_by_hand(case, level):
    with isa_level(level):
        expected = by_hand(case)
        run = fit_case(case)
    assert_same(run, expected)
    assert run.complete and run.step == STEPS and not run.interrupted
    length = case.round_steps - case.rewind_to
    assert run.steps_made == run.steps_to_make == STEPS + ROUNDS * length == run.topology.steps
    assert [update.rewound_to for update in run.topology.history] == [case.rewind_to] * ROUNDS
    assert [update.step for update in run.topology.history] == [
        case.round_steps + i * length for i in range(ROUNDS)
    ]


@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case.optimizer, tk.SGD)], ids=str)
def test_it_is_the_recipe_in_an_ordinary_loop(case):
    case = dataclasses.replace(case, schedule="constant")
    run = fit_case(case)
    model = model_of(case)
    kind = torch.optim.AdamW if isinstance(case.optimizer, tk.AdamW) else torch.optim.Adam
    options = {"lr": case.optimizer.lr, "weight_decay": case.optimizer.weight_decay}
    optimizer = kind(model.parameters(), **options)
    attached = case.recipe.attach(model, optimizer)
    batch = batches_of(tk.SparseFeatures(case.n_features, 0.2), 24, None, 3)
    step = 0
    while step < STEPS:
        optimizer.zero_grad()
        model.loss(batch(step)[0]).sum().backward()
        optimizer.step()
        update = attached.step()
        step = step + 1 if update is None else update.rewound_to
    assert model.topology == run.model.topology
    assert (relative_error(run.model.weight, model.weight.detach().double()) <= TRAJECTORY).all()
    for ours, theirs in zip(run.topology.history, attached.history, strict=True):
        assert (ours.step, ours.rewound_to) == (theirs.step, theirs.rewound_to)
        for name, value in vars(ours.layers["weight"]).items():
            assert torch.equal(value, getattr(theirs.layers[""], name)), (ours.step, name)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_stopped_and_resumed(case, stored, tmp_path):
    """Anywhere in any round, at its end, before and after there is something to go back to."""
    whole = fit_case(case)
    run = fit_case(case, stop_at=0)
    stops = sorted({3, case.rewind_to, 12, case.round_steps, 33, 47, whole.steps_to_make - 1})
    for number, stop in enumerate([t for t in stops if t < whole.steps_to_make]):
        run = tk.fit(resume=run, stop_at=stop, progress=False)
        assert run.steps_made == stop and not run.complete
        if stored and (number + CASES.index(case)) % 2:  # stops of all kinds, over the cases
            run.save(tmp_path / f"{number}")
            run = tk.Run.load(tmp_path / f"{number}")
        if number == 3:
            again = run.rerun(1)
            assert again.steps_made == stop
            assert_same(run, again, slice(1, 2))
    run = tk.fit(resume=run, progress=False)
    assert run.complete
    assert_same(whole, run)
    assert [repr(u) for u in run.topology.history] == [repr(u) for u in whole.topology.history]
    assert_same(whole, whole.rerun(2), slice(2, 3))


def test_any_chunking_and_threads(monkeypatch):
    case = BY_NAME["from within a record"]
    whole = fit_case(case)
    for length in (1, 4, 11):
        monkeypatch.setattr(loop_module, "_next_length", lambda *_, length=length: length)
        torch.set_num_threads(1 + length % 3)
        assert_same(whole, fit_case(case))


def test_a_model_that_diverged_stays_as_it_is():
    case = BY_NAME["from within a record"]
    rates = tk.SGD(lr=np.array([1e-2, 1e30, 1e-2]))
    run = fit_case(case, optimizer=rates)
    assert (run.diverged_at >= 0).tolist() == [False, True, False]
    assert run.model.topology.n_connections[1] == model_of(case).topology.n_connections[1]
    well = fit_case(case, optimizer=tk.SGD(lr=1e-2))
    for rows in (slice(0, 1), slice(2, 3)):
        assert_same(run, well, rows, rows)
    assert_same(run, run.rerun(1), slice(1, 2))


def test_what_a_run_says_between_rounds():
    case = BY_NAME["from within a record"]
    run = fit_case(case, stop_at=STEPS + 10)
    assert run.step == 19 and run.steps_made == 40
    assert "19 of 30 in this round, 40 of 93 in all, batch 24  (can be resumed)" in repr(run)
    assert torch.isfinite(run.loss[:, :2]).all() and run.loss[:, 2:].isnan().all()
    assert sorted(run.snapshots) == [0, 5, 12]
    assert (run.final_loss == run.loss[:, 1]).all()


def test_the_bar_counts_all_rounds(capsys):
    fit_case(BY_NAME["from the start"], progress=True)
    assert "120 of 120 steps" in capsys.readouterr().err


def test_a_sweep_of_tickets(tmp_path):
    grid = tk.grid(probability=[0.05, 0.3], seed=range(3))

    def plan(points, index):
        model = tk.SparseTiedAutoencoder(9, 5, 1.0, n_models=points.n_models, seed=index)
        return {"model": model, "data": tk.SparseFeatures(9, points.probability[:, None]), "seed": index}

    recipe = tk.LotteryTicket(rounds=2, round_steps=20, rewind_to=5, drop_fraction=0.5)
    settings = {"steps": 20, "batch_size": 16, "topology": recipe, "progress": False}
    done = tk.sweep(grid, plan, tmp_path / "s.zarr", chunk=4, **settings)
    run = tk.fit(**plan(grid, torch.arange(6)), **settings)
    for name, value in run.model.stacked_parameters().items():
        assert done.read(name).tobytes() == value.numpy().tobytes()
    assert done.to_xarray()["connections"].values.mean((2, 3)).tolist() == [[12 / 45] * 3] * 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"round_steps": STEPS + 1}, r"round_steps must be at most the steps of the run \(30\), not 31"),
        ({"rewind_optimizer": False}, r"LotteryTicket\(rewind_optimizer=False\) is for loops of your own"),
    ],
)
def test_what_is_refused(changes, match):
    model = model_of(CASES[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        recipe = dataclasses.replace(CASES[0].recipe, **changes)
        tk.fit(model, tk.SparseFeatures(20, 0.2), STEPS, topology=recipe)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
