"""`fit(record=…, test=…)`: each record against a computation of its own from snapshots at the same steps,
the same bits whether it is there or not, and the same values wherever a model stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import toykern as tk
from toykern.network.activations import OUTPUT_ACTIVATIONS
from toykern.results.labels import trailing_dims
from toykern.training import batched, looking, ways
from toykern.training.records import RECORDS, norms_of, records_of

STEPS, EVERY = 14, 4
ENDS = [4, 8, 12, 14]


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    """Of which about half are 0."""
    made = torch.Generator(device="cpu").manual_seed(seed)
    values = torch.rand(shape, generator=made)
    return values * (torch.rand(shape, generator=made) < 0.5)


def labels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator(device="cpu").manual_seed(seed))


def mlp(hidden: str = "relu", **options: Any) -> tk.MLP:
    options = {"n_outputs": 4, "output_activation": "none", "hidden_bias": True} | options
    if hidden == "topk":
        options["top_k"] = 2
    return tk.MLP(6, 5, n_models=3, hidden_activation=hidden, **options)


def of_labels() -> tk.Dataset:
    return tk.Dataset(inputs(20, 6), labels=labels(20))


CLASSES = ("norms", "accuracy", "test_loss", "test_accuracy")
ALL = (*CLASSES, "dead_units")
CROSS = {"loss": "cross_entropy", "optimizer": tk.SGD(lr=[0.1, 0.5, 2.0])}
# The model, what it is trained and looked at on, its records, and how it is trained.
CASES: dict[str, tuple[Any, Any, Any, Any, dict[str, Any]]] = {
    "labels, shared": (
        mlp, of_labels, lambda: tk.Dataset(inputs(9, 6, seed=2), labels=labels(9)), ALL, CROSS,
    ),
    "labels and samples of each model": (
        mlp,
        of_labels,
        lambda: tk.Dataset(inputs(3, 9, 6, seed=3), labels=labels(3, 9), samples=[9, 1, 4]),
        ALL,
        {**CROSS, "importance": [1.0, 2.0, 0.0, 1.0], "l1": 0.01},
    ),
    "one-hot rows, minibatches, top-k": (
        lambda: mlp("topk"),
        lambda: tk.Dataset(inputs(3, 20, 6), functional.one_hot(labels(20), 4)),
        lambda: tk.Dataset(inputs(7, 6, seed=4), functional.one_hot(labels(3, 7), 4)),
        ALL,
        {"batch_size": 8, "optimizer": tk.Adam(lr=0.05)},
    ),
    "entries": (
        lambda: mlp(hidden_bias=False),
        lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs(3, 20, 6)), labels=labels(20)),
        lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs(3, 11, 6, seed=5)), labels=labels(11)),
        ALL,
        {"loss": "batch_cross_entropy", "optimizer": tk.SGD(lr=0.01)},
    ),
    "embedded, residual": (
        lambda: mlp(n_outputs=6, embedding=4, unembedding=True, residual=True),
        lambda: tk.Dataset(torch.eye(6)),
        lambda: tk.Dataset(tk.SparseBatch.from_dense(torch.eye(6))),
        ALL,
        {"loss_reduction": "sum"},
    ),
    "centred": (
        lambda: tk.MLP(6, 5, n_models=3, hidden_activation="relu", centered=True),
        lambda: tk.Dataset(torch.eye(6)),
        lambda: tk.Dataset(torch.eye(6)),
        ALL,
        {},
    ),
    "tied, on a stream": (
        lambda: tk.TiedAutoencoder(6, 5, 3, hidden_activation="relu"),
        lambda: tk.SparseFeatures(6, 0.3),
        lambda: tk.SparseFeatures(6, 0.3).dataset(samples=30, seed=7),
        ("norms", "test_loss", "dead_units"),
        {"target": "abs"},
    ),
    "sparse": (
        lambda: tk.SparseTiedAutoencoder(12, 6, 0.4, n_models=3, hidden_activation="relu"),
        lambda: tk.SparseFeatures(12, 0.2),
        lambda: tk.SparseFeatures(12, [[0.1], [0.2], [0.5]]).dataset(samples=30, seed=7),
        ("norms", "test_loss", "dead_units", "density"),
        {"topology": tk.RigL(interval=3, end=12, seed=2)},
    ),
}  # fmt: skip


def trained(case: str, model: Any = None, **options: Any) -> tk.Run:
    make, data, test, record, settings = CASES[case]
    settings = {"batch_size": None, "record_every": EVERY, "progress": False} | settings
    settings |= {"record": record, "test": test()} | options
    if settings["record"] == ("loss",):
        settings["test"] = None
    if settings["batch_size"] is None and isinstance(data(), tk.SparseFeatures):
        settings["batch_size"] = 16
    return tk.fit(make() if model is None else model, data(), STEPS, **settings)


# ---- what is expected, one model and one sample at a time -------------------------------------------------


def activated(value: torch.Tensor, activation: str, model: Any) -> torch.Tensor:
    if activation == "topk":
        kept = np.argsort(-value.numpy(), kind="stable")[: model.top_k]
        mask = torch.zeros(len(value), dtype=torch.bool)
        mask[torch.from_numpy(kept)] = True
        return value.where(mask, 0.0)
    return {"none": lambda v: v, "relu": torch.relu}[activation](value)


def forward(run: tk.Run, weights: dict[str, torch.Tensor], i: int, x: torch.Tensor) -> tuple[Any, Any]:
    """Codes and outputs of one sample by model i, float64."""
    model, x = run.model, x.double()
    own = {name: value[i].double() for name, value in weights.items() if name != "connections"}
    fixed = {name: held[i if len(held) > 1 else 0].double() for name, held in model.fixed_tensors().items()}
    encoder = own["weight"] if "weight" in own else own["encoder"]
    decoder = own["weight"].T if "weight" in own else own["decoder"]
    seen = torch.mv(fixed["embedding"], x) if fixed else x
    before = torch.mv(encoder, seen - own["bias"] if model.centered else seen)
    codes = activated(before + own.get("hidden_bias", 0.0), model.hidden_activation, model)
    given = torch.mv(decoder, codes) + (seen if model.residual else 0.0)
    given = torch.mv(fixed["unembedding"], given) if "unembedding" in fixed else given
    return codes, activated(given + own.get("bias", 0.0), model.output_activation, model)


def of_model(data: tk.Dataset, i: int, n_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets that model i has."""
    own = data.row(i)
    x, target = own.batch(0, n_outputs=n_outputs)
    samples = data.rows if own.samples is None else int(own.samples[0])
    return x[0, :samples], target[0, :samples]


def expected(run: tk.Run, name: str, weights: dict[str, torch.Tensor], i: int) -> float:
    if name.endswith("_norm"):
        return float(weights[name.removesuffix("_norm")][i].double().square().sum().sqrt())
    if name == "density":
        return float(weights["connections"][i].double().mean())
    x, target = of_model(run.data if name == "accuracy" else run.test, i, run.model.n_outputs)
    passed = [forward(run, weights, i, sample) for sample in x]
    codes, output = torch.stack([p[0] for p in passed]), torch.stack([p[1] for p in passed])
    if name == "dead_units":
        return float((codes == 0).all(dim=0).double().mean())
    if name.endswith("accuracy"):
        right = [
            int(np.argmax(y.numpy())) == int(np.argmax(t.numpy()))
            for y, t in zip(output, target, strict=True)
        ]
        return sum(right) / len(right)
    target = target.double().abs() if run.config["target"] == "abs" else target.double()
    importance = run.arrays["importance"][i if len(run.arrays["importance"]) > 1 else 0].double()
    price = float(run.arrays["l1"][i]) if "l1" in run.arrays else 0.0
    loss = run.config.get("loss", "squared_error")
    if loss == "batch_cross_entropy":
        share = target.flatten().softmax(0).view_as(target)
        return float(-(importance * share * output.flatten().log_softmax(0).view_as(output)).sum())
    if loss == "cross_entropy":
        terms = -(importance * target * output.log_softmax(1))
    else:
        terms = importance * (target - output).square()
    per_sample = terms.sum(dim=1) + price * codes.abs().sum(dim=1)
    mean = loss == "squared_error" and run.config["loss_reduction"] == "mean"
    return float(per_sample.mean() / (run.model.n_outputs if mean else 1))


@pytest.mark.parametrize("case", CASES)
def test_every_record_is_what_the_snapshot_of_its_step_gives(case):
    run = trained(case, snapshots=ENDS)
    assert (
        run.records.keys() == {n for n in run.config["record"] if n != "loss"} and "norms" not in run.records
    )
    for name, values in run.records.items():
        wanted = [[expected(run, name, run.snapshots[end], i) for end in ENDS] for i in range(run.n_models)]
        assert values.dtype == torch.float32 and values.shape == (run.n_models, len(ENDS))
        exact = name in ("accuracy", "test_accuracy", "dead_units", "density")
        np.testing.assert_allclose(values, np.array(wanted), rtol=1e-7 if exact else 2e-6, err_msg=name)


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_the_classes_are_right_with_every_activation(name):
    model = tk.MLP(6, 5, n_models=3, n_outputs=4, hidden_activation=name, output_activation=name)
    data = of_labels()
    found = looking.accuracy(model.stacked_parameters(), model.network, data)
    output = model.double()(data.input[0].double())
    assert found.tolist() == (output.argmax(2) == data.label).double().mean(1).tolist()


# ---- what must not matter ---------------------------------------------------------------------------------


def assert_same_records(one: tk.Run, other: tk.Run, of: slice = slice(None)) -> None:
    assert one.records.keys() == other.records.keys()
    for name, values in one.records.items():
        assert torch.equal(values.nan_to_num(7.0), other.records[name][of].nan_to_num(7.0)), name


@pytest.mark.parametrize("case", CASES)
def test_no_bit_of_the_training_depends_on_what_is_recorded(case):
    one, other = trained(case), trained(case, record=("loss",))
    assert torch.equal(one.loss, other.loss)
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, dict(other.model.named_parameters())[name])
    for name, state in one.optimizer_state.items():
        assert torch.equal(state, other.optimizer_state[name])


@pytest.mark.parametrize("case", CASES)
def test_a_model_has_the_same_records_alone_with_threads_in_parts_and_resumed(case, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    run = trained(case)
    torch.set_num_threads(3)
    assert_same_records(trained(case), run)
    for i in range(run.n_models):
        assert_same_records(run.rerun(i), run, slice(i, i + 1))
    part = trained(case, stop_at=6)
    part.save(tmp_path / "run.zarr")
    assert_same_records(tk.fit(resume=part, test=CASES[case][2](), progress=False), run)
    assert_same_records(tk.fit(resume=tk.Run.load(tmp_path / "run.zarr"), progress=False), run)
    monkeypatch.setattr(looking, "_BLOCK_BYTES", 2000)  # a few rows of a model at a time
    assert_same_records(trained(case), run)


def near_ties(same: bool) -> tuple[tk.MLP, tk.Dataset]:
    """Every output is a sum of the same terms; in one order, or in another for each output."""
    made = torch.Generator(device="cpu").manual_seed(0)
    base, model = torch.randn(41, generator=made), tk.MLP(3, 41, n_models=7, n_outputs=6, bias=False)
    with torch.no_grad():
        model.encoder[:] = torch.tensor([0.3, 0.1, 0.7])  # all codes are equal
        for k in range(6):
            model.decoder[:, k] = base if same else base[torch.randperm(41, generator=made)]
    return model, tk.Dataset(torch.rand(50, 3, generator=made), labels=torch.arange(50) % 6)


@pytest.mark.parametrize("same", [True, False])
def test_answers_that_hang_on_a_rounding_error_are_the_same_whatever_stands_beside(same, monkeypatch):
    model, data = near_ties(same)
    found = looking.accuracy(model.stacked_parameters(), model.network, data)
    assert len(set(found.tolist())) == 1
    if same:  # equal outputs: the first
        assert found[0].item() == (data.label == 0).double().mean().item()
    alone = [looking.accuracy(m.stacked_parameters(), m.network, data) for m in model]
    assert found.tolist() == torch.cat(alone).tolist()
    for size in (1, 3000, 20_000):
        monkeypatch.setattr(looking, "_BLOCK_BYTES", size)
        assert looking.accuracy(model.stacked_parameters(), model.network, data).tolist() == found.tolist()


def test_codes_that_hang_on_a_rounding_error_are_the_same_whatever_stands_beside(monkeypatch):
    made = torch.Generator(device="cpu").manual_seed(0)
    model = tk.MLP(40, 30, n_models=7, n_outputs=2, hidden_activation="relu")
    base = torch.randn(20, generator=made) * 10 ** torch.linspace(-9, 3, 20)  # else the sums are exact
    with torch.no_grad():
        for k in range(30):  # w·x is 0 but for the order of its sum
            model.encoder[:, k] = torch.cat([base, -base])[torch.randperm(40, generator=made)]
    data = tk.Dataset(torch.ones(3, 40), labels=[0, 1, 0])
    found = looking.dead_units(model.stacked_parameters(), model.network, data)
    assert len(set(found.tolist())) == 1 and 0 < found[0] < 1
    alone = [looking.dead_units(m.stacked_parameters(), m.network, data) for m in model]
    assert found.tolist() == torch.cat(alone).tolist()
    for size in (1, 3000, 20_000):
        monkeypatch.setattr(looking, "_BLOCK_BYTES", size)
        assert looking.dead_units(model.stacked_parameters(), model.network, data).tolist() == found.tolist()


def test_models_that_diverged_are_nan_from_then_on():
    settings = {"optimizer": tk.SGD(lr=[0.1, 3e38, 0.1]), "snapshots": ()}
    run = trained("labels, shared", **settings)
    assert run.diverged_at.tolist()[::2] == [-1, -1] and 0 <= run.diverged_at[1] <= 4
    for name, values in run.records.items():
        assert values[1].isnan().all() and not values[::2].isnan().any(), name


def test_the_last_update_may_break_a_model():
    run = tk.fit(
        mlp(), of_labels(), 1, loss="cross_entropy", optimizer=tk.SGD(lr=[0.1, 3e38, 0.1], momentum=0.0),
        record=["accuracy", "test_loss"], test=of_labels(), importance=1e6, progress=False,
    )  # fmt: skip
    assert run.diverged_at.tolist() == [-1, 1, -1]
    assert run.records["accuracy"].isnan()[:, 0].tolist() == [False, True, False]
    assert run.records["test_loss"].isnan()[:, 0].tolist() == [False, True, False]


# ---- what is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_store_has_the_test_set(case, tmp_path):
    run = trained(case)
    run.save(tmp_path / "run.zarr")
    loaded = tk.Run.load(tmp_path / "run.zarr")
    assert loaded.config == run.config
    held, kept = run.test.arrays(), loaded.test.arrays()
    assert held.keys() == kept.keys() and all(torch.equal(held[name], kept[name]) for name in held)
    assert_same_records(loaded, run)


def test_a_test_set_that_was_changed_is_refused():
    run = trained("labels, shared", stop_at=6)
    other = tk.Dataset(run.test.input, labels=(run.test.label + 1) % 4)
    with pytest.raises(ValueError, match="test differs from that of the run"):
        tk.fit(resume=run, test=other)
    with pytest.raises(ValueError, match="test differs"):
        tk.fit(resume=trained("labels, shared", record=("loss",), stop_at=6), test=other)
    run.arrays["test/label"] = run.arrays["test/label"] + 1
    with pytest.raises(ValueError, match=r"arrays\['test/label'\] is not that of the run's test"):
        tk.fit(resume=run)
    run = trained("labels, shared", stop_at=6)
    run.test = None
    with pytest.raises(ValueError, match="test must be there"):
        tk.fit(resume=run)


def test_chunks_of_a_sweep_have_the_same_numbers(tmp_path):
    g = tk.grid(lr=[0.1, 0.5], seed=range(3))
    test = of_labels()

    def plan(points: tk.Grid, index: torch.Tensor) -> dict[str, Any]:
        model = tk.MLP(
            6, 5, n_models=points.n_models, n_outputs=4, hidden_activation="relu", seed=points.seed
        )
        return {"model": model, "data": of_labels(), "optimizer": tk.SGD(lr=points.lr), "seed": points.seed}

    settings = {"steps": 8, "record": ALL, "loss": "cross_entropy", "test": test, "progress": False}
    done = tk.sweep(g, plan, tmp_path / "s.zarr", chunk=2, **settings)
    whole = tk.fit(**plan(g, torch.arange(6)), **settings, grid=g)
    for name, values in whole.records.items():
        assert np.array_equal(done.read(name), g.unflatten(values).numpy()), name
    found = done.to_xarray()["test_accuracy"]
    assert found.dims == ("lr", "seed", "record")
    with pytest.raises(TypeError, match="callback.*measure="):
        tk.sweep(g, plan, tmp_path / "t.zarr", callback=lambda run: None, **settings)
    with pytest.raises(TypeError, match="plan must not give callback"):
        tk.sweep(g, lambda p, i: plan(p, i) | {"callback": print}, tmp_path / "t.zarr", **settings)


def test_labels_of_dimensions_follow_from_the_table():
    run = tk.fit(
        tk.TiedAutoencoder(5, 2, 3), tk.SparseFeatures(5, 0.1), 4, progress=False,
        record=["superposition", "feature_dimensionality", "weight_norm"],
    )  # fmt: skip
    results = run.to_xarray()
    assert results["superposition"].dims == ("model", "record", "feature")
    assert results["weight_norm"].dims == ("model", "record")
    for name, row in records_of(run.model.network).items():
        assert trailing_dims(name, len(row.dims), run.model.network) == row.dims


def test_the_documents_tell_every_name():
    page = (Path(tk.__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    norms = norms_of(tk.MLP(3, 2, hidden_bias=True).network) | norms_of(tk.TiedAutoencoder(3, 2).network)
    for name in [*RECORDS, "norms"]:
        assert f'"{name}"' in tk.fit.__doc__ and f'"{name}"' in page, name
    assert all(f'"{name}"' in tk.fit.__doc__ for name in norms)


# ---- what is refused --------------------------------------------------------------------------------------


STREAM = tk.SparseFeatures(6, 0.2)
SOFT = tk.Dataset(inputs(4, 6), torch.full((4, 4), 0.25))
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no test": ({"record": ["test_loss"]}, ValueError, "'test_loss' needs test="),
    "a stream": ({"data": STREAM, "record": ["accuracy"], "model": tk.TiedAutoencoder(6, 2)}, ValueError,
                 "'accuracy' needs a finite Dataset"),
    "a stream to look at": ({"record": ["test_loss"], "test": STREAM}, TypeError, "test must be a Dataset"),
    "rows": ({"record": ["test_loss"], "test": torch.eye(6)}, TypeError, "test must be a Dataset"),
    "soft targets": ({"record": ["test_accuracy"], "test": SOFT}, ValueError,
                     "'test_accuracy' needs in test targets that are classes.*sample 0 has not"),
    "soft targets in data": ({"record": ["accuracy"], "data": SOFT}, ValueError,
                             "'accuracy' needs targets that are classes"),
    "unlooked": ({"test": of_labels()}, ValueError, "test is given, but record names nothing.*'test_loss'"),
    "width": ({"record": ["test_loss"], "test": tk.Dataset(torch.eye(5))}, ValueError,
              "test has n_features = 5"),
    "outputs": ({"record": ["test_loss"], "test": tk.Dataset(torch.eye(6))}, ValueError, "test: "),
    "label": ({"record": ["test_loss"], "test": tk.Dataset(torch.eye(6), labels=range(6))}, ValueError,
              "test: labels must be from 0"),
    "models": ({"record": ["test_loss"], "test": tk.Dataset(torch.ones(2, 1, 6), labels=[0])}, ValueError,
               "test has samples for 2 models, the model stacks 3"),
    "never idle": ({"model": mlp("gelu"), "record": ["dead_units"], "test": of_labels()}, ValueError,
                   "'dead_units' needs codes that can be exactly 0.*'gelu'"),
    "no such tensor": ({"record": ["weight_norm"]}, ValueError, "record must be one of.*encoder_norm"),
    "connections": ({"record": ["density"]}, ValueError, "'density' needs sparse models"),
    "not tracked": ({"record": ["explored"]}, ValueError, "'explored' needs topology="),
    "no function": ({"callback": 3}, TypeError, "callback must be a function"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_is_refused_by_name(case):
    given, error, message = REFUSED[case]
    arguments = {"model": mlp(), "data": of_labels(), "steps": 2, "progress": False} | given
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        tk.fit(**arguments)


def test_leaky_relu_of_slope_0_is_idle_too():
    model = mlp("leaky_relu", negative_slope=0.0)
    run = tk.fit(model, of_labels(), 2, record=["dead_units"], test=of_labels(), progress=False)
    assert bool(((run.records["dead_units"] >= 0) & (run.records["dead_units"] <= 1)).all())


# ---- by batched products, as on a CUDA device --------------------------------------------------------------


@pytest.mark.parametrize("size", [2**31, 1])
@pytest.mark.parametrize("case", CASES)
def test_records_of_what_batched_products_train(case, size, monkeypatch):
    """Here on the CPU: the same ways of reading weights, and blocks of models in the loss."""
    monkeypatch.setattr(ways, "way_of", lambda device, asked: ways.BATCHED)
    monkeypatch.setattr(batched, "_LOOKED_BYTES", size)
    run = trained(case, snapshots=ENDS)
    assert run.provenance["trainer"] == ways.BATCHED
    for name, values in run.records.items():
        wanted = [[expected(run, name, run.snapshots[end], i) for end in ENDS] for i in range(run.n_models)]
        np.testing.assert_allclose(values, np.array(wanted), rtol=5e-6, err_msg=name)
