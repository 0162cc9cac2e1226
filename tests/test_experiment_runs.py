"""Every experiment by one call: its form, its stores, and at its quick size what was published."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from toykern import experiments
from toykern.experiments.experiment import Findings, Outcome, labelled
from toykern.experiments.registry import MODULES

each_experiment = pytest.mark.parametrize("name", experiments.names())
SMALL = {"steps": 20, "densities": (1.0, 0.1), "seeds": 2}
LENGTHS = ("steps", "pull_steps", "release_steps", "transformer_steps", "updates")
# What these judge is computed: packings that are built, and sampling from solutions that are known exactly.
UNTRAINED = ("packings", "learning-coefficients")


@each_experiment
def test_an_experiment_says_what_it_is(name):
    experiment = experiments.get(name)
    assert experiment.name == name
    assert experiment.title and experiment.source and len(experiment.summary) > 80
    assert type(experiment.quick) is type(experiment.settings)
    assert dataclasses.fields(experiment.settings), "it has no settings"
    assert experiment.settings.__dataclass_params__.frozen
    assert experiment.quick != experiment.settings
    assert "seed" in {field.name for field in dataclasses.fields(experiment.settings)}
    for entry in dataclasses.fields(experiment.settings):
        value = getattr(experiment.settings, entry.name)
        parts = value if isinstance(value, tuple) else (value,)
        assert parts and all(type(part) in (int, float, str, bool) for part in parts), entry.name
    stages = experiment.stages(experiment.quick)
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(stage.name.replace("-", "_").isidentifier() for stage in stages)


@pytest.mark.slow
@each_experiment
def test_the_quick_version_shows_what_was_published(name, tmp_path):
    torch.set_num_threads(2)
    result = experiments.run(name, quick=True, progress=False)
    assert result.findings.outcomes
    differ = [outcome for outcome in result.findings.outcomes if outcome.agrees is False]
    assert not differ, str(result)
    assert any(outcome.agrees for outcome in result.findings.outcomes), "the quick version can tell nothing"
    assert all(outcome.note for outcome in result.findings.outcomes if outcome.agrees is None)
    picture = tmp_path / "picture.png"
    result.figure().savefig(picture)
    assert picture.stat().st_size > 5000
    assert set(result.findings.arrays) == set(result.findings.to_xarray().data_vars)
    json.dumps(result.summary())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in experiments.names() if n not in UNTRAINED])
def test_models_that_were_hardly_trained_do_not_show_it(name):
    """Two updates in place of hundreds: an outcome that agrees all the same is one that tells nothing."""
    names = {field.name for field in dataclasses.fields(experiments.get(name).settings)}
    few = {length: 2 for length in LENGTHS if length in names}
    assert few
    if "snapshots" in names and isinstance(experiments.get(name).quick.snapshots, int):
        few["snapshots"] = 2
    result = experiments.run(name, quick=True, progress=False, **few)
    assert any(outcome.agrees is False for outcome in result.findings.outcomes), str(result)


def test_the_modules_that_are_registered_are_those_that_hold_an_experiment():
    from pathlib import Path

    room = Path(experiments.__file__).parent
    holding = {
        path.stem for path in room.glob("*.py") if "\nEXPERIMENT = " in path.read_text(encoding="utf-8")
    }
    assert holding == set(MODULES)


def test_a_store_gives_what_memory_gives_and_is_gone_on_with(tmp_path):
    store = tmp_path / "polygons"
    plain = experiments.run("intro-polygons", quick=True, **SMALL)
    stored = experiments.run("intro-polygons", quick=True, store=store, **SMALL)
    again = experiments.run("intro-polygons", quick=True, store=store, resume=True, **SMALL)
    for other in (stored, again):
        for name in plain.findings.arrays:
            np.testing.assert_array_equal(other.findings[name], plain.findings[name])
        models = [result.trained["polygons"].model() for result in (other, plain)]
        assert torch.equal(models[0].weight, models[1].weight)
    assert [path.name for path in store.iterdir()] == ["polygons.zarr"]


@pytest.mark.slow
def test_sparse_models_come_back_from_a_store_with_their_connections(tmp_path):
    small = {"steps": 20, "seeds": 1, "densities": (0.2,), "rounds": 2, "updates": 4}
    plain = experiments.run("wide-tickets", quick=True, **small)
    stored = experiments.run("wide-tickets", quick=True, store=tmp_path / "tickets", **small)
    for name, trained in plain.trained.items():
        models = [trained.model(), stored.trained[name].model()]
        for tensor, value in models[0].trained_arrays().items():
            assert torch.equal(models[1].trained_arrays()[tensor], value), (name, tensor)


def test_a_notebook_shows_a_result_as_its_figure():
    result = experiments.run("intro-polygons", quick=True, **SMALL)
    assert result._repr_png_().startswith(b"\x89PNG")
    assert repr(result).startswith("<toykern.experiments.Result of intro-polygons: ")


def test_a_plan_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = experiments.plan("intro-polygons", quick=True, **SMALL)
    assert plans["polygons"].models == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"stepps": 3}, TypeError, "no setting 'stepps'; it has batch_size, densities"),
        ({"steps": 2.5}, TypeError, "steps must be int as"),
        ({"steps": True}, TypeError, "steps must be int as"),
        ({"densities": 0.5}, TypeError, "densities must be some values"),
        ({"densities": ("a",)}, TypeError, "densities must be float"),
        ({"lr": "a"}, TypeError, "lr must be float"),
        ({"resume": True}, ValueError, "resume and overwrite are for a store"),
    ],
)
def test_bad_arguments_are_refused_by_name(given, error, message):
    with pytest.raises(error, match=message):
        experiments.run("intro-polygons", **given)


def test_an_unknown_experiment_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="name must be one of intro-polygons.*not 'no-such'"):
        experiments.run("no-such")


def test_findings_are_labelled_as_they_are_shaped():
    with pytest.raises(ValueError, match="weight has 1 names for 2"):
        Findings({"weight": labelled("density", np.zeros((2, 3)))})
    with pytest.raises(ValueError, match="loss has 3 along 'density', others 2"):
        Findings({"loss": labelled("density", np.zeros(3))}, {"density": np.zeros(2)})


ODD = {
    "seed": (-1, 2**31),
    "seeds": (0, -1, 10**12),
    "snapshots": (1,),
    "length": (1,),
    "rarest": (1.0,),
    "steps": (0, 2**32),
    "samples": (0,),
    "evaluated": (0,),
    "updates": (0,),
    "rounds": (0,),
    "tokens": (0,),
    "classes": (-1,),
    "factors": (-1,),
    "compare_l0": (float("nan"),),
    "tolerance": (float("inf"),),
    "size": (float("nan"),),
    "lr": (-1.0, float("nan")),
    "density": (0.0, -1.0, 1.5, float("nan")),
    "probability": (0.0,),
    "share": (1.5,),
    "importance_decay": (-1.0,),
    "densities": ((0.1, 0.1), (0.1, 0.0), (float("inf"),)),
    "alpha_exponents": ((10**6,),),
    "ratio_exponents": ((-2,),),
}


@each_experiment
def test_a_setting_out_of_its_range_is_named_before_anything_is_trained(name):
    experiment = experiments.get(name)
    for entry in dataclasses.fields(experiment.quick):
        before = getattr(experiment.quick, entry.name)
        for value in ODD.get(entry.name, ()):
            if isinstance(before, tuple) and not isinstance(value, tuple):
                value = (value,)
            if isinstance(before, int) and isinstance(value, tuple):
                continue  # of the same name, a number of them
            with pytest.raises((ValueError, TypeError), match=rf"\b{entry.name}\b"):
                experiments.check(experiment, experiment.configure(True, **{entry.name: value}))


def test_a_feature_ten_times_as_dense_is_refused_by_the_density():
    experiment = experiments.get("one-feature-perturbed")
    with pytest.raises(ValueError, match="density must be at most"):
        experiments.check(experiment, experiment.configure(True, density=0.2))


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize("seen", ["a median of nan", "-inf times", "inf, nan"])
def test_nothing_is_judged_by_a_number_that_is_missing(seen, agrees):
    outcome = Outcome("what", "published", seen, agrees, "why")
    assert outcome.agrees is None and outcome.note.startswith("why; ")
    assert Outcome("what", "published", "information of 3 nanometres", agrees).agrees is agrees
    assert Outcome("what", "published", seen, None, "why").note == "why"


def test_parents_without_a_unit_are_no_evidence_of_holes_or_of_none():
    from toykern.experiments import hierarchy_absorption

    coords = {"kind": np.array(hierarchy_absorption.KINDS)}
    shape = (len(hierarchy_absorption.KINDS), 1, 2)
    values = {name: np.full(shape, np.nan) for name in ("strength", "recall")} | {"mixed": np.zeros(shape)}
    values["strength"][0] = (0.1, np.nan)
    arrays = {name: labelled("kind child l1", value) for name, value in values.items()}
    outcomes = hierarchy_absorption._outcomes(Findings(arrays, coords))
    assert (
        "less than half of its strength in 100%"
        in outcomes[hierarchy_absorption.KINDS.index("hierarchy")].seen
    )
    assert [outcome.agrees for outcome in outcomes[1:]] == [None, None, None]


@pytest.mark.parametrize("name", ["double-descent", "wide-tickets"])
def test_a_few_steps_are_enough_to_begin(name):
    """What is a part of the steps (a warm-up, the updates of a recipe) is at least one of them."""
    experiment = experiments.get(name)
    assert experiments.check(experiment, experiment.configure(True, steps=1)) > 0
