"""`fit` and `evaluate` on the family: the float64 reference's numbers, and bits of a model's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import FitCase
from kit import (
    LEVELS,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    batches_of,
    data_of,
    fit_case,
    isa_level,
    model_of,
    regime_of,
)
from mlp_cases import CHOICES, MLP_CASES, chosen, fits

import toykern as tk
from toykern import reference


def ids(case: FitCase) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


VARIED = MLP_CASES[::6]


def test_every_two_options_meet_that_go_together():
    found = chosen()
    assert all(map(fits, found))
    for name, values in CHOICES.items():
        for value in values:
            assert any(choice[name] == value for choice in found), (name, value)
    for hidden in CHOICES["hidden"]:
        for loss in CHOICES["loss"]:
            assert any((c["hidden"], c["loss"]) == (hidden, loss) for c in found), (hidden, loss)
    assert {regime_of(case) for case in MLP_CASES} >= {"general"}


@pytest.mark.parametrize("case", MLP_CASES, ids=ids)
def test_one_evaluation_is_as_exact_as_pytorchs(case):
    assert_as_exact_as_pytorch(case, lambda **options: fit_case(case, **options))


@pytest.mark.parametrize("case", MLP_CASES, ids=ids)
def test_training_follows_the_reference(case):
    assert_follows_the_reference(case, fit_case(case, record_every=7))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", MLP_CASES[::9], ids=ids)
def test_at_every_level(case, level):
    with isa_level(level):
        assert_follows_the_reference(case, fit_case(case, record_every=7))


@pytest.mark.parametrize("case", MLP_CASES, ids=ids)
def test_a_model_has_its_bits_alone_on_any_threads_and_in_any_chunks(case):
    together = fit_case(case, snapshots=[3, 30], record=["feature_dimensionality"])
    for k in range(case.n_models):
        assert_same_bits(together.rerun(k), together, None, [k])
    torch.set_num_threads(3)
    assert_same_bits(fit_case(case, snapshots=[3, 30], record=["feature_dimensionality"]), together)
    run = fit_case(case, snapshots=[3, 30], record=["feature_dimensionality"], stop_at=4)
    for stop in (5, 17, None):
        run = tk.fit(resume=run, stop_at=stop, progress=False)
    assert_same_bits(run, together)


@pytest.mark.parametrize("case", VARIED, ids=ids)
def test_a_stored_run_goes_on_with_its_bits(case, tmp_path):
    whole = fit_case(case)
    run = fit_case(case, stop_at=11)
    run.save(tmp_path / "run")
    loaded = tk.Run.load(tmp_path / "run")
    assert loaded.model.config() == run.model.config()
    assert_same_bits(loaded, run)
    for name, held in run.model.fixed_tensors().items():
        assert torch.equal(loaded.model.get_buffer(name), held)
    again = tk.fit(resume=loaded, progress=False)
    assert_same_bits(again, whole)
    assert_same_bits(again.rerun(1), whole, None, [1])


@pytest.mark.parametrize("case", MLP_CASES[::3], ids=ids)
def test_evaluate_is_the_references_mean_over_the_stream(case):
    model, data = model_of(case), data_of(case)
    told = dict(case.loss)
    found = tk.evaluate(model, data, samples=512, seed=[7, 8, 9], **told)
    parameters, network = reference.parameters_of(model), reference.network_of(model)
    if isinstance(data, tk.Dataset):
        x, clean = batches_of(data, None, None, case.n_models, model.n_outputs)(0)
    else:
        drawn = {"seed": [7, 8, 9], "n_models": 3, "purpose": "evaluation"}
        x, clean = (data.sample(0, 512, clean=c, **drawn) for c in (False, True))
    expected, _ = reference.loss_and_gradients(parameters, x, network, clean=clean, **told)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Where no function magnifies what is rare, so that random samples are an estimate.
SMALL = [
    case
    for case in MLP_CASES
    if case.dataset is None
    and case.n_features < 8
    and not {"x_exp", "square"} & {case.network["hidden_activation"], case.network["output_activation"]}
]


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_the_stratified_loss_is_the_same_expectation(case):
    model, data = model_of(case), data_of(case)
    if case.loss.get("loss") == "batch_cross_entropy":
        with pytest.raises(ValueError, match="method='stratified' weights single samples"):
            tk.evaluate(model, data, method="stratified", **case.loss)
        return
    many = tk.evaluate(model, data, samples=400_000, seed=0, **case.loss)
    strata = tk.evaluate(model, data, method="stratified", **case.loss)
    torch.testing.assert_close(strata, many, rtol=0.05, atol=1e-3)


# Autoencoders with options that the loops of today do not have

AUTOENCODERS = {
    "hidden bias": {"hidden_bias": True, "hidden_activation": "relu"},
    "centred": {"centered": True},
    "top-k": {"hidden_activation": "topk", "top_k": 3},
    "all": {"hidden_activation": "topk", "top_k": 2, "hidden_bias": True, "centered": True},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_with_codes_of_their_own(name, tied):
    loss = {"l1": [0.0, 0.01, 0.1], "importance": np.linspace(0.1, 1, 9), "target": "abs"}
    case = FitCase(
        name, 9, 5, 0.2, 64, tk.AdamW(lr=3e-3), steps=60, tied=tied, network=AUTOENCODERS[name],
        features={"magnitude": "symmetric"}, loss=loss,
    )  # fmt: skip
    assert regime_of(case) == "general"
    run = fit_case(case, record_every=7)
    assert_follows_the_reference(case, run)
    assert_same_bits(run.rerun(2), run, None, [2])


def test_l1_takes_a_plain_autoencoder_to_the_general_loop():
    case = FitCase("l1", 9, 5, 0.2, 64, tk.AdamW(lr=3e-3), steps=60, loss={"l1": 0.05})
    assert_follows_the_reference(case, fit_case(case, record_every=7))
    some = fit_case(replace(case, loss={"l1": [0.0, 0.05, 0.0]}))
    assert_same_bits(some.rerun(0), some, None, [0])
    assert some.config["l1"] == "per_model"
    none = replace(case, loss={"l1": 0.0})  # the loop of today
    plain = fit_case(none, record_every=7)
    assert "l1" not in plain.config and "l1" not in plain.arrays
    assert_same_bits(plain, fit_case(replace(case, loss={}), record_every=7))
    assert_follows_the_reference(none, plain)


def test_frozen_parameters_stay():
    model = tk.MLP(6, 5, n_models=2, embedding=3)
    model.encoder.requires_grad_(False)
    model.hidden_bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = tk.fit(model, tk.SparseFeatures(6, 0.3), steps=20, batch_size=32, progress=False)
    assert run.config["frozen"] == ["encoder", "hidden_bias"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in ("encoder", "hidden_bias", "embedding")), name
    assert_same_bits(run.rerun(1), run, None, [1])


def test_l1_is_kept_compared_and_told_by_row(tmp_path):
    def begun(l1, stop_at=3):
        return tk.fit(
            tk.MLP(5, 3, n_models=2), tk.SparseFeatures(5, 0.2), 8, 16, l1=l1, stop_at=stop_at, progress=False
        )

    number, per_model = begun(0.1), begun([0.1, 0.2])
    assert number.config["l1"] == 0.1 and per_model.config["l1"] == "per_model"
    assert per_model.arrays["l1"].tolist() == [0.1, 0.2]
    for run, same, others in ((number, 0.1, (0.2, [0.1, 0.3])), (per_model, [0.1, 0.2], (0.1,))):
        for other in others:
            with pytest.raises(ValueError, match="l1 differs from that of the run to resume"):
                tk.fit(resume=run, l1=other)
        run.save(tmp_path / str(run.config["l1"]))
        loaded = tk.Run.load(tmp_path / str(run.config["l1"]))
        assert torch.equal(loaded.arrays["l1"], run.arrays["l1"])
        tk.fit(resume=loaded, l1=same, progress=False)
        assert_same_bits(loaded, begun(same, None))
        assert loaded.rerun(1).settings.l1 in (0.1, 0.2)
    number.config["l1"] = 0.3
    with pytest.raises(ValueError, match=r"config\['l1'\] is 0.3, but arrays\['l1'\]"):
        tk.fit(resume=number)
    del number.config["l1"]
    with pytest.raises(ValueError, match="arrays must have the entries"):
        tk.fit(resume=number)


def test_a_sweep_over_l1_keeps_it_by_model(tmp_path):
    def plan(part, index):
        return {
            "model": tk.MLP(4, 3, n_models=part.n_models, embedding=2, seed=index),
            "data": tk.SparseFeatures(4, 0.3), "l1": part.l1, "steps": 3, "batch_size": 8,
        }  # fmt: skip

    grid = tk.grid(l1=[0.0, 0.1, 0.2], seed=range(2))
    swept = tk.sweep(grid, plan, tmp_path / "sweep", chunk=2, progress=False)
    assert swept.read("inputs/l1").tolist() == [[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]]
    run = tk.fit(**plan(grid, torch.arange(6)), seed=torch.arange(6), progress=False)
    assert np.array_equal(swept.read("loss").reshape(6, -1), run.loss.numpy())
    assert np.array_equal(swept.read("encoder").reshape(6, 3, 2), run.model.encoder.detach().numpy())


# What is refused by name


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"target": "embedding"}, "target='embedding' is for a model with an embedding"),
        ({"embedding": 2}, {"target": "embedding"}, "target='embedding' has .* n_embedding = 2"),
        ({"n_outputs": 3}, {}, "target='identity' has as many numbers as n_features = 4"),
        ({}, {"l1": -0.1}, "l1 must be"),
        ({}, {"l1": [0.1, 0.2, 0.3]}, "l1 must be one number or have one entry for each of the 2 models"),
        ({}, {"l1": float("nan")}, "l1 must be"),
        ({}, {"loss": "hinge"}, "loss must be one of 'squared_error', 'cross_entropy'"),
        ({"output_activation": "relu"}, {"loss": "cross_entropy"}, "loss='cross_entropy' is of outputs"),
        ({"n_outputs": 2, "embedding": 2}, {"target": "embedding", "importance": torch.ones(4)},
         r"importance must broadcast to \[models, n_outputs\] = \[2, 2\]"),
    ],
)  # fmt: skip
def test_what_fit_and_evaluate_refuse(options, given, message):
    model, data = tk.MLP(4, 3, n_models=2, **options), tk.SparseFeatures(4, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in (
        lambda: tk.fit(model, data, steps=2, batch_size=8, progress=False, **given),
        lambda: tk.evaluate(model, data, samples=8, **given),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"l1": 0.1}, "no l1='other than 0' for this model: that is not of a SparseTiedAutoencoder"),
        ({"loss": "cross_entropy"}, "no loss='cross_entropy' for this model"),
    ],
)
def test_sparse_models_are_not_of_the_general_loop(given, message):
    model = tk.SparseTiedAutoencoder(4, 3, density=0.5, output_activation="none")
    with pytest.raises(ValueError, match=message):
        tk.fit(model, tk.SparseFeatures(4, 0.2), steps=2, batch_size=8, **given)
    with pytest.raises(ValueError, match=message):
        tk.evaluate(model, tk.SparseFeatures(4, 0.2), samples=8, **given)


def test_fixed_tensors_of_other_shapes_dtypes_or_places_are_refused():
    model, data = tk.MLP(4, 3, n_models=2, embedding=2), tk.SparseFeatures(4, 0.2)
    held = model.embedding
    for wrong, error, message in (
        (torch.ones(2, 2, 3), ValueError, r"model.embedding must have the shape \[2, 2, 4\]"),
        (torch.ones(1, 2, 4), ValueError, r"model.embedding must have the shape \[2, 2, 4\]"),
        (held.double(), TypeError, "model must have float32 parameters to fit; embedding is"),
        (held.to("meta"), ValueError, "model must have all its parameters on one device"),
    ):
        model.embedding = wrong
        with pytest.raises(error, match=message):
            tk.fit(model, data, steps=1, batch_size=8)
    strided = held.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    other = tk.MLP(4, 3, n_models=2, embedding=2)
    model.embedding = strided
    runs = [tk.fit(m, data, steps=5, batch_size=8, progress=False) for m in (model, other)]
    assert_same_bits(*runs)
