"""Sparse models in `fit`: each follows a masked dense reference, by itself, whatever is done around it.

The batches are the same, so the reference takes over which connections exist and nothing else; which ones
should is proven against the same recipe on the same modules in an ordinary torch loop.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fit_topology_kit import (
    BY_NAME,
    CASES,
    KEPT,
    LARGE,
    RIGL,
    Case,
    assert_follows_masked_dense,
    assert_nothing_where_nothing_is,
    assert_same,
    data_of,
    fit_case,
    model_of,
    updates_of,
)
from kit import LEVELS, TRAJECTORY, assert_same_bits, batches_of, isa_level, relative_error

import toykern as tk
from toykern import _native, reference
from toykern.sparse import (
    AttachedLayer,
    DenseGradient,
    MomentumGrowth,
    RandomPrune,
    Recipe,
)
from toykern.sparse.config import recipe_config, recipe_from_config
from toykern.training.kernels import network_params

loop_module = importlib.import_module("toykern.training.loop")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


class Finishing(tk.Static):
    """Wants to do something to the weights after every step."""

    def finished(self, attached, step, update):
        return None


class KeptGradient(DenseGradient):
    """Keeps the gradient it looked at, which RigL itself lets go of."""

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        super().observe(layer, first, number)


def keeping(case: Case) -> Case:
    """The case with a recipe that keeps its gradient for us to see."""
    return dataclasses.replace(case, topology=dataclasses.replace(case.topology, grow=KeptGradient()))


# What it computes


def test_the_cases_reach_both_loops():
    for case in CASES:
        regime = _native.regime(network_params(model_of(case).network))
        assert case.name.startswith(regime), (case.name, regime)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_trajectory_is_that_of_masked_dense_models(case, level):
    with isa_level(level):
        run = fit_case(case, record_every=7, snapshots=(0, *updates_of(case)))
    assert_follows_masked_dense(case, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], BY_NAME["tiles, RigL"], LARGE], ids=str)
def test_growth_sees_the_gradient_at_all_positions(case, level):
    """The gradient of the step before an update, from the weights before that step."""
    step = updates_of(case)[-1]
    with isa_level(level):
        run = fit_case(keeping(case), snapshots=(step - 1,))
        assert_same(run, fit_case(case, snapshots=(step - 1,)))
    assert run.topology is not None
    found = run.topology.attached_layers[0].memory["gradient"].reshape(run.model.weight.shape)
    before = {name: run.snapshots[step - 1][name].double() for name in ("weight", "bias")}
    batch, _ = batches_of(data_of(case), case.batch_size, None, run.n_models)(step - 1)
    _, wanted = reference.loss_and_gradients(before, batch, **case.loss)
    assert (relative_error(found, wanted["weight"]) < 1e-5).all()
    missing = ~run.snapshots[step - 1]["connections"]
    assert (found[missing] != 0).any()


TORCH = {
    tk.AdamW: lambda parameters, o: torch.optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay),
    tk.Adam: lambda parameters, o: torch.optim.Adam(parameters, lr=o.lr, weight_decay=o.weight_decay),
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if type(case.optimizer) in TORCH and not case.loss], ids=str
)
def test_the_choices_are_those_of_the_recipe_in_an_ordinary_loop(case):
    run = fit_case(case)
    model = model_of(case)
    optimizer = TORCH[type(case.optimizer)](model.parameters(), case.optimizer)
    attached = None if case.topology is None else case.topology.attach(model, optimizer)
    batch = batches_of(data_of(case), case.batch_size, None, model.n_models)
    for step in range(case.steps):
        optimizer.zero_grad()
        model.loss(batch(step)[0]).sum().backward()
        optimizer.step()
        if attached is not None:
            attached.step()
    assert model.topology == run.model.topology
    assert (relative_error(run.model.weight, model.weight.detach().double()) <= TRAJECTORY).all()
    if attached is None:
        assert run.topology is None
        return
    assert run.topology is not None and run.topology.steps == case.steps
    assert len(run.topology.history) == len(attached.history) == len(updates_of(case))
    for ours, theirs in zip(run.topology.history, attached.history, strict=True):
        assert (ours.step, ours.number, ours.drop_fraction) == (
            theirs.step,
            theirs.number,
            theirs.drop_fraction,
        )
        for name, value in vars(ours.layers["weight"]).items():
            assert torch.equal(value, getattr(theirs.layers[""], name)), (ours.step, name)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m"), [(5, 2), (16, 7), (20, 10)])
def test_with_all_connections_it_is_the_dense_model_bit_by_bit(n, m, level):
    dense = tk.TiedAutoencoder(n, m, n_models=3)
    sparse = tk.SparseTiedAutoencoder(n, m, 1.0, n_models=3)
    with torch.no_grad():
        sparse.values.copy_(dense.weight.reshape(-1))
    with isa_level(level):
        runs = [
            tk.fit(model, tk.SparseFeatures(n, 0.1), steps=40, batch_size=50, progress=False)
            for model in (dense, sparse)
        ]
    assert torch.equal(dense.weight, sparse.weight)
    assert_same_bits(runs[0], dataclasses.replace(runs[1], model=dense))


def test_grown_connections_may_start_from_draws():
    case = BY_NAME["tiles, SET"]
    recipe = tk.SET(interval=60, grown_std=0.5)
    grown = fit_case(case, topology=recipe, steps=60, snapshots=(60,)).snapshots[60]
    zero = fit_case(case, topology=tk.SET(interval=60), steps=60, snapshots=(60,)).snapshots[60]
    assert torch.equal(grown["connections"], zero["connections"])
    new = grown["connections"] & (zero["weight"] == 0)
    assert new.any() and (grown["weight"][new] != 0).all()
    assert torch.equal(grown["weight"][~new], zero["weight"][~new])


def test_densities_follow_the_recipe_of_every_model():
    case = BY_NAME["tiles, gradual"]
    run = fit_case(case, record=("density", "explored"), record_every=20)
    density = run.records["density"]
    assert (density.diff(dim=1) <= 0).all()
    assert (density[:, 0] < torch.tensor(case.density)).all()
    assert torch.allclose(density[:, -1], torch.tensor(0.08), atol=0.005)
    assert torch.equal(run.records["explored"][:, -1], model_of(case).topology.density.float())


# By itself, whatever is around it


def stack(order: list[int], case: Case, **options: Any) -> tk.Run:
    """Models `order` of seven that differ in all they can."""
    chosen, n = np.array(order), case.n_features
    density = np.linspace(0.1, 0.9, 7)
    if isinstance(case.topology, tk.GradualMagnitude):
        density = density + 0.05
    models = tk.SparseTiedAutoencoder(n, case.n_hidden, density, n_models=7, seed=np.arange(7) * 5)[order]
    rates = {"lr": np.geomspace(1e-3, 3e-2, 7)[chosen], "weight_decay": np.linspace(0, 0.5, 7)[chosen]}
    p = np.array([0.01, 0.3, 0.05, 0.9, 0.0, 1.0, 0.1])[:, None] * np.linspace(0.5, 1, n)
    settings: dict[str, Any] = {
        "steps": case.steps,
        "batch_size": case.batch_size,
        "optimizer": dataclasses.replace(case.optimizer, **rates),
        "topology": case.topology,
        "seed": (10**12 + 7 * np.arange(7))[chosen],
        "record": ("density", "explored", "features_per_dimension"),
        "snapshots": (0, 13, 61),
        "progress": False,
    }
    return tk.fit(models, tk.SparseFeatures(n, p[chosen]), **(settings | options))


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_alone_or_among_others(case):
    case = dataclasses.replace(case, topology=dataclasses.replace(case.topology, seed=None))
    together = stack(list(range(7)), case)
    for i in range(7):
        assert_same(together, stack([i], case), slice(i, i + 1))
    order = [5, 0, 3, 6]
    assert_same(together, stack(order, case), order)


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_a_rerun_is_the_same_model(case):
    run = fit_case(case, snapshots=(0, 50), record=("density", "explored"))
    for i in range(run.n_models):
        assert_same(run, run.rerun(i), slice(i, i + 1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [LARGE, BY_NAME["tiles, RigL"], BY_NAME["columns, SET"]], ids=str)
def test_any_number_of_threads(case, level):
    with isa_level(level):
        one = fit_case(case)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same(one, fit_case(case))
            assert_same(one, one.rerun(1), slice(1, 2))  # a team shares it, where it has parts


@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], *KEPT[:4]], ids=str)
def test_any_chunking(case, monkeypatch):
    whole = fit_case(case, snapshots=(33,))
    lengths = itertools.cycle([1, 3, 2, 17])
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: next(lengths))
    assert_same(whole, fit_case(case, snapshots=(33,)))


@pytest.mark.parametrize(
    ("case", "stored"),
    [(case, False) for case in (BY_NAME["columns, RigL"], *KEPT)] + [(case, True) for case in KEPT[1:6]],
    ids=str,
)
def test_stopped_and_resumed(case, stored, tmp_path):
    options = {"record": ("density", "explored"), "record_every": 9, "snapshots": (0, 40, case.steps)}
    whole = fit_case(case, **options)
    run = fit_case(case, stop_at=7, **options)
    for number, stop in enumerate((20, 23, 39, 49, case.steps - 20, None)):  # at updates, between, in windows
        if stored and number % 2:
            run.save(tmp_path / f"{number}")
            run = tk.Run.load(tmp_path / f"{number}")
            assert run.topology.recipe == case.topology or case.topology.seed is not None
        run = tk.fit(resume=run, stop_at=stop, progress=False)
    assert run.complete
    assert_same(whole, run)
    assert_same(whole, run.rerun(2), slice(2, 3))


def test_a_diverged_model_keeps_its_connections_and_harms_no_other():
    case = keeping(BY_NAME["tiles, RigL"])
    rates = tk.SGD(lr=np.array([1e-2, 1e30, 1e-2, 1e-2]))
    run = fit_case(case, optimizer=rates, snapshots=(0, 1, 100))
    assert (run.diverged_at >= 0).tolist() == [False, True, False, False]
    masks = {step: snapshot["connections"] for step, snapshot in run.snapshots.items()}
    assert torch.equal(masks[100][1], masks[0][1])
    assert not torch.equal(masks[100][0], masks[0][0])
    well = fit_case(case, optimizer=tk.SGD(lr=1e-2), snapshots=(0, 1, 100))
    assert_same(run, well, [0, 2, 3], [0, 2, 3])
    assert_same(run, run.rerun(1), slice(1, 2))
    cut = tk.fit(resume=fit_case(case, optimizer=rates, stop_at=50, snapshots=(0, 1, 100)), progress=False)
    assert_same(run, cut)
    gradients = [one.topology.attached_layers[0].memory["gradient"].reshape(4, -1) for one in (run, cut)]
    assert torch.equal(*gradients) and (gradients[0][1] == 0).all()
    assert_nothing_where_nothing_is(run)


# Around it


def test_the_module_is_the_trained_one_afterwards():
    case = BY_NAME["columns, RigL"]
    model = model_of(case)
    values = model.values
    run = tk.fit(model, data_of(case), 40, 32, topology=case.topology, progress=False)
    assert run.model is model and model.values is values
    x = data_of(case).sample(step=0, batch_size=16, seed=1)
    dense = tk.TiedAutoencoder(case.n_features, case.n_hidden, model.n_models)
    with torch.no_grad():
        dense.weight.copy_(model.weight)
        dense.bias.copy_(model.bias)
    assert torch.allclose(model(x), dense(x), atol=1e-6)
    assert torch.equal(tk.evaluate(model, data_of(case)), tk.evaluate(dense, data_of(case)))
    part = model[[2, 0]]
    assert torch.equal(part.weight, model.weight[[2, 0]])
    assert torch.equal(part.topology.to_mask(), model.topology.to_mask()[[2, 0]])
    assert len(model) == 4 and torch.equal(model[-1].bias, model.bias[3:])
    model.loss(x).sum().backward()  # the ordinary way goes on from there
    assert model.values.grad.abs().sum() > 0


def test_what_a_run_says():
    run = fit_case(BY_NAME["tiles, RigL"], snapshots=(0, 100))
    assert "RigL, 5 updates" in repr(run)
    dataset = run.to_xarray()
    assert dataset["weight"].dims == ("model", "hidden", "feature")
    assert np.array_equal(dataset["connections"].values, run.model.topology.to_mask().numpy())
    assert dataset["connections_snapshots"].dims == ("model", "snapshot", "hidden", "feature")
    assert run.topology.history[-1].layers["weight"].explored.shape == (4,)
    assert torch.equal(run.topology.explored, run.topology.history[-1].layers["weight"].explored)
    pytest.importorskip("matplotlib")
    run.topology.plot("explored")


@dataclasses.dataclass(frozen=True)
class OwnPrune:
    def score(self, layer, number):
        return layer.values.square()


def test_a_recipe_of_ones_own_is_asked_for_after_loading(tmp_path):
    case = BY_NAME["tiles, RigL"]
    own = dataclasses.replace(RIGL, prune=OwnPrune())
    whole = fit_case(case, topology=own)
    cut = fit_case(case, topology=own, stop_at=50)
    cut.save(tmp_path / "cut")
    loaded = tk.Run.load(tmp_path / "cut")
    loaded.save(tmp_path / "again")
    loaded = tk.Run.load(tmp_path / "again")
    with pytest.raises(ValueError, match="topology must be given"):
        tk.fit(resume=loaded, progress=False)
    with pytest.raises(ValueError, match="rerun: the run's recipe"):
        loaded.rerun(0)
    assert_same(whole, tk.fit(resume=loaded, topology=own, progress=False))


@pytest.mark.parametrize(
    "recipe", [case.topology for case in CASES if case.topology is not None and case.topology.seed is None]
)
def test_recipes_are_described_for_stores(recipe):
    assert recipe_from_config(recipe_config(recipe)) == recipe


def test_descriptions_of_recipes_hold_all_their_parts():
    recipe = tk.PruneAndGrow(
        prune=RandomPrune(), grow=MomentumGrowth(decay=0.5), schedule="linear", end=9, interval=3, seed=4
    )
    assert recipe_from_config(recipe_config(recipe), seed=4) == recipe
    by_callable = tk.SET(schedule=lambda step: 0.1)
    assert recipe_config(by_callable) == {"name": "custom", "class": "SET"}
    assert recipe_from_config(recipe_config(by_callable)) is None


@pytest.mark.parametrize("case", [case for case in CASES if case.topology is not None], ids=str)
def test_the_next_stop_is_the_next_step_with_something_to_do(case):
    for step in range(case.steps):
        for limit in (step + 1, step + 5, 1000):
            ours = case.topology.next_stop(step, limit)
            assert ours == Recipe.next_stop(case.topology, step, limit), (step, limit)


# Errors


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        pytest.param({"topology": tk.RigL}, TypeError, "topology must be a recipe", id="a class"),
        pytest.param({"topology": "RigL"}, TypeError, "topology must be a recipe", id="a name"),
        pytest.param(
            {"topology": tk.Topology.random(20, 10, 0.3)},
            TypeError,
            "not a set of connections",
            id="connections",
        ),
        pytest.param(
            {"topology": Finishing()},
            ValueError,
            r"topology=Finishing\(…\) has a method finished of its own, for which there is no place in fit",
            id="a recipe that does something after every step",
        ),
        pytest.param(
            {"topology": RIGL, "model": tk.TiedAutoencoder(20, 10)},
            TypeError,
            "topology is for sparse models",
            id="a dense model",
        ),
        pytest.param(
            {"topology": tk.GradualMagnitude(final_density=0.5, end=100, interval=10)},
            ValueError,
            "final_density must be below",
            id="a density that is there already",
        ),
        pytest.param(
            {"topology": tk.RigL(end=100, seed=[1, 2])}, ValueError, "seed", id="seeds of other models"
        ),
        pytest.param(
            {"record": ("explored",)}, ValueError, "'explored' needs topology", id="explored, fixed"
        ),
        pytest.param(
            {"record": ("explored",), "topology": tk.SET(track_explored=False)},
            ValueError,
            "'explored' needs topology",
            id="explored, not tracked",
        ),
        pytest.param(
            {"record": ("density",), "model": tk.TiedAutoencoder(20, 10)},
            ValueError,
            "record: 'density' needs sparse models",
            id="density of a dense model",
        ),
        pytest.param(
            {"model": tk.SparseTiedAutoencoder(20, 10, 0.3, dtype=torch.float64)},
            TypeError,
            "float32 parameters to fit; values",
            id="float64",
        ),
        pytest.param(
            {"model": tk.SparseTiedAutoencoder(20, 10, 0.3).to("meta")},
            RuntimeError,
            "model is on the device 'meta', where fit cannot run",
            id="another device",
        ),
    ],
)
def test_bad_input_names_the_argument_and_trains_nothing(options, error, text):
    model = options.pop("model", None) if "model" in options else tk.SparseTiedAutoencoder(20, 10, 0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=text):
        tk.fit(model, tk.SparseFeatures(20, 0.1), steps=10, progress=False, **options)
    for name, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, before[name]), name


def test_activations_that_only_dense_layers_have_are_refused():
    for options in ({"hidden_activation": "topk"}, {"output_activation": "gelu"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            tk.SparseTiedAutoencoder(20, 10, 0.3, **options)


def test_parameters_replaced_by_others():
    model = tk.SparseTiedAutoencoder(20, 10, 0.3)
    model.values = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match=r"model.values must have the shape \[60\]"):
        tk.fit(model, tk.SparseFeatures(20, 0.1), steps=1)


def test_what_is_given_beside_resume_must_agree():
    case = BY_NAME["tiles, RigL"]
    run = fit_case(case, stop_at=10)
    for other in (tk.SET(), dataclasses.replace(RIGL, interval=21), dataclasses.replace(RIGL, seed=3)):
        with pytest.raises(ValueError, match="topology differs"):
            tk.fit(resume=run, topology=other)
    with pytest.raises(ValueError, match="topology differs"):
        tk.fit(resume=fit_case(case, topology=None, stop_at=10), topology=RIGL)
    tk.fit(resume=run, topology=RIGL, progress=False)
    assert run.complete


def test_a_model_changed_in_between_is_not_resumed():
    for case in (BY_NAME["tiles, RigL"], BY_NAME["tiles, fixed"]):
        run = fit_case(case, stop_at=30)
        other = tk.Topology.random(
            case.n_features, case.n_hidden, np.array(case.density), n_models=4, seed=99
        )
        run.model.set_topology(other, torch.full((len(other.column),), -1))
        with pytest.raises((ValueError, RuntimeError), match="topology|connections"):
            tk.fit(resume=run, progress=False)


def test_a_run_broken_off_inside_an_update_is_not_resumed():
    case = BY_NAME["tiles, RigL"]

    def schedule(step: int) -> float:
        if step == 40:
            raise ZeroDivisionError
        return 0.2

    run = fit_case(case, topology=tk.RigL(interval=20, schedule=schedule), stop_at=30)
    with pytest.raises(ZeroDivisionError):
        tk.fit(resume=run, progress=False)
    with pytest.raises(RuntimeError, match="broken off inside the topology's update after step 40"):
        tk.fit(resume=run, progress=False)
    assert run.step == 40 and torch.isfinite(run.model.weight).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*CASES, LARGE], ids=str)
def test_a_few_steps_of_all_cases(case, level):
    """What the sanitizers see: short, and without the reference."""
    early = case.topology
    if early is not None and not isinstance(early, tk.Static):
        early = dataclasses.replace(
            early, interval=2, end=6, **({"accumulate": 1} if hasattr(early, "accumulate") else {})
        )
    with isa_level(level):
        run = fit_case(case, steps=6, topology=early)
    assert run.loss.isfinite().all()
