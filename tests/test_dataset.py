"""Finite datasets: `fit` and `evaluate` on them follow the float64 reference, and what belongs to a model
alone stays its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kit import LEVELS, TRAJECTORY, isa_level, worst_errors

import toykern as tk
from toykern import reference
from toykern.data.shuffle import permutation, shuffled_rows

N, M, MODELS, T, STEPS = 37, 6, 3, 45, 25


def models(**options: Any) -> tk.Autoencoder:
    kind = tk.TiedAutoencoder if options.pop("tied", True) else tk.Autoencoder
    bias = options.pop("bias_at", 0.0)
    model = kind(N, options.pop("n_hidden", M), MODELS, **options)
    with torch.no_grad():
        model.bias.fill_(bias)
    return model


def inputs(own: bool = True, dense: bool = False) -> torch.Tensor:
    shape = (MODELS if own else 1, T, N)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    rare = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.06
    return x if dense else x * rare


def trained(data: tk.Dataset, model: Any, steps: int = STEPS, **options: Any) -> tk.Run:
    settings = {"optimizer": tk.Adam(lr=1e-2), "progress": False} | options
    return tk.fit(model, data, steps, **settings)


def expected_of(data: tk.Dataset, model: Any, steps: int = STEPS, **options: Any) -> reference.Trained:
    size = options.pop("batch_size", None)
    seed = options.pop("seed", None)
    settings = {"optimizer": tk.Adam(lr=1e-2)} | options
    optimizer = settings.pop("optimizer")
    return reference.train(
        reference.parameters_of(model),
        lambda step: data.batch(step, size, seed, MODELS),
        steps,
        optimizer,
        reference.network_of(model),
        **settings,
    )


CASES: dict[str, dict[str, Any]] = {
    "entries, full batch": {"data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs()))},
    "shared entries": {"data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs(own=False)))},
    "dense rows": {"data": lambda: tk.Dataset(inputs(own=False, dense=True)[0])},
    "dense rows that are mostly zeros": {"data": lambda: tk.Dataset(inputs())},
    "targets": {"data": lambda: tk.Dataset(inputs(own=False), inputs().flip(2)), "model": {"tied": False}},
    "entries with targets": {
        "data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs()), inputs(own=False).flip(2)),
        "fit": {"target": "abs", "loss_reduction": "sum"},
    },
    "minibatches": {
        "data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs())),
        "fit": {"batch_size": 16},
        "model": {"hidden_activation": "relu", "tied": False},
    },
    "batches of more than an epoch": {
        "data": lambda: tk.Dataset(inputs(own=False)),
        "fit": {"batch_size": 100},
    },
    "one at a time": {"data": lambda: tk.Dataset(inputs()), "fit": {"batch_size": 1, "seed": 5}},
    "one hidden unit": {
        "data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs())),
        "model": {"n_hidden": 1},
    },
    "two hidden units, biases that leave little active": {
        "data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs())),
        "model": {"n_hidden": 2, "bias_at": -0.3},
        "fit": {"importance": torch.linspace(0.5, 2.0, N)},
    },
    "three hidden units, linear": {
        "data": lambda: tk.Dataset(inputs(own=False), inputs().flip(2)),
        "model": {"n_hidden": 3, "output_activation": "none", "tied": False, "hidden_activation": "gelu"},
        "fit": {"target": "abs"},
    },
    "four hidden units": {
        "data": lambda: tk.Dataset(tk.SparseBatch.from_dense(inputs())),
        "model": {"n_hidden": 4, "hidden_activation": "relu"},
        "fit": {"batch_size": 16},
    },
    "two hidden units, softplus": {
        "data": lambda: tk.Dataset(inputs(own=False)),
        "model": {"n_hidden": 2, "output_activation": "softplus"},
    },
    "gelu": {
        "data": lambda: tk.Dataset(inputs(dense=True)),
        "model": {"hidden_activation": "gelu", "output_activation": "softplus"},
        "fit": {"batch_size": 32},
    },
}  # fmt: skip


ON_ALL_LEVELS = ("entries, full batch", "dense rows", "minibatches", "four hidden units")


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in CASES for level in (LEVELS if name in ON_ALL_LEVELS else LEVELS[:1])],
)
def test_training_follows_the_reference(name: str, level: str) -> None:
    case = CASES[name]
    data, options = case["data"](), case.get("fit", {})
    model = models(**case.get("model", {}))
    expected = expected_of(data, model, **options)
    with isa_level(level):
        run = trained(data, model, record_every=1, **options)
    assert max(worst_errors(model, expected.parameters).values()) <= TRAJECTORY
    torch.testing.assert_close(run.loss.double(), expected.losses, rtol=TRAJECTORY, atol=1e-7)


def test_a_model_may_have_fewer_samples_than_others() -> None:
    # The reference is told the mean over each model's own rows by training them one at a time.
    samples = [1, T, 20]
    data = tk.Dataset(tk.SparseBatch.from_dense(inputs()), samples=samples)
    model = models()
    start = reference.parameters_of(model)
    trained(data, model)
    for i, own in enumerate(samples):
        x = inputs()[i : i + 1, :own]
        alone = {name: value[i : i + 1] for name, value in start.items()}
        batches = lambda step, x=x: x  # noqa: E731
        expected = reference.train(alone, batches, STEPS, tk.Adam(lr=1e-2), reference.network_of(model))
        assert max(worst_errors(model[i], expected.parameters).values()) <= TRAJECTORY


@pytest.mark.parametrize("options", [{}, {"batch_size": 13}])
def test_bits_do_not_depend_on_neighbours_threads_or_interruptions(options: dict[str, Any]) -> None:
    data = tk.Dataset(tk.SparseBatch.from_dense(inputs()), inputs(own=False), samples=[9, 45, 30])
    run = trained(data, models(), **options)
    for i in range(MODELS):
        again = run.rerun(i)
        assert torch.equal(again.model.weight[0], run.model.weight[i])
        assert torch.equal(again.loss[0], run.loss[i])
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(trained(data, models(), **options).model.weight, run.model.weight)
        finally:
            torch.set_num_threads(before)
    part = trained(data, models(), stop_at=11, **options)
    assert torch.equal(tk.fit(resume=part, progress=False).model.weight, run.model.weight)


def test_large_models_are_shared_by_threads_with_the_same_bits() -> None:
    data = tk.SparseFeatures(300, 0.02).dataset(samples=700, normalize="unit")
    weights = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            model = tk.TiedAutoencoder(300, 40)
            tk.fit(model, data, 4, progress=False)
        finally:
            torch.set_num_threads(before)
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_entries_and_dense_rows_are_one_dataset() -> None:
    x = inputs()
    runs = [trained(tk.Dataset(given), models()) for given in (x, tk.SparseBatch.from_dense(x), x.numpy())]
    for run in runs[1:]:
        torch.testing.assert_close(run.model.weight, runs[0].model.weight, rtol=1e-4, atol=1e-5)


def test_evaluate_takes_every_sample_once() -> None:
    data = tk.Dataset(tk.SparseBatch.from_dense(inputs()), samples=[3, 45, 20])
    model = models()
    found = tk.evaluate(model, data)
    for i, own in enumerate([3, 45, 20]):
        x = inputs()[i : i + 1, :own]
        alone = {name: value[i : i + 1] for name, value in reference.parameters_of(model).items()}
        expected, _ = reference.loss_and_gradients(alone, x, reference.network_of(model))
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="stratified"):
        tk.evaluate(model, data, method="stratified")


def test_a_run_on_a_dataset_is_stored_and_goes_on(tmp_path: Any) -> None:
    pytest.importorskip("zarr")
    data = tk.Dataset(tk.SparseBatch.from_dense(inputs()), inputs(own=False), samples=[9, 45, 30])
    whole = trained(data, models())
    trained(data, models(), stop_at=12).save(tmp_path / "run")
    run = tk.Run.load(tmp_path / "run")
    assert isinstance(run.data, tk.Dataset)
    assert run.config["batch_size"] is None
    tk.fit(resume=run, data=data, progress=False)
    assert torch.equal(run.model.weight, whole.model.weight)
    other = tk.Dataset(tk.SparseBatch.from_dense(inputs()), inputs(own=False), samples=[9, 45, 31])
    with pytest.raises(ValueError, match="data differs"):
        tk.fit(resume=run, data=other, progress=False)


def test_a_sweep_over_the_number_of_samples(tmp_path: Any) -> None:
    pytest.importorskip("zarr")
    stream = tk.SparseFeatures(N, 0.1)

    def plan(points: Any, index: torch.Tensor) -> dict[str, Any]:
        data = stream.dataset(points.samples, seed=0, normalize="unit")
        return {"model": tk.TiedAutoencoder(N, 2, points.n_models, seed=index), "data": data}

    made = tk.sweep(
        tk.grid(samples=[3, 20, 60], seed=range(2)),
        plan,
        tmp_path / "sweep",
        steps=30,
        chunk=2,
        progress=False,
    )
    data = stream.dataset(torch.tensor([3, 3, 20, 20, 60, 60]), seed=0, normalize="unit")
    whole = tk.fit(tk.TiedAutoencoder(N, 2, 6), data, 30, progress=False)
    weight = torch.as_tensor(made.read("weight")).reshape(6, 2, N)
    assert torch.equal(weight, whole.model.weight)
    assert "of all samples" in repr(made)


def test_minibatches_are_those_of_the_documented_order() -> None:
    # One feature a row, so that a row shows in the gradient of the first step.
    eye = torch.eye(N)
    data = tk.Dataset(eye)
    rows = data.rows_of(step=0, batch_size=5, seed=[3, 4, 5], n_models=MODELS)
    model = tk.Autoencoder(N, M, MODELS, output_activation="none")
    run = trained(data, model, steps=1, batch_size=5, seed=[3, 4, 5], optimizer=tk.SGD(lr=1.0, momentum=0.9))
    gradient = run.optimizer_state["encoder/momentum_buffer"]
    for i in range(MODELS):
        assert gradient[i].abs().sum(0).nonzero().flatten().tolist() == sorted(rows[i].tolist())


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 1000])
def test_an_epoch_sees_every_row_once(rows: int) -> None:
    seen = np.concatenate([shuffled_rows(-3, step, 10, rows) for step in range(rows)])
    for epoch in range(10):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    if rows > 7:
        assert not np.array_equal(seen[:rows], seen[rows : 2 * rows])


def test_orders_of_few_rows_are_equally_frequent() -> None:
    # Chi-square of the 24 orders of four rows over seeds; 23 degrees of freedom, 1 in 1,000 is above 49.7.
    found = [tuple(permutation(seed, 0, 4, np.arange(4))) for seed in range(4_800)]
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 49.7


def test_the_kept_stream_is_the_stream() -> None:
    stream = tk.SparseFeatures(50, torch.tensor([[0.02], [0.1]]).expand(2, 50))
    data = stream.dataset(samples=[30, 70], normalize="unit")
    x = stream.sample(0, 70)
    length = x.norm(dim=2, keepdim=True)
    kept = data.batch(0, None, n_models=2)[0]
    expected = torch.where(length > 0, x / length, 0.0)
    expected[0, 30:] = 0
    torch.testing.assert_close(kept, expected)
    # The first samples of a longer one.
    short = stream.dataset(samples=30).batch(0, None, n_models=2)[0]
    assert torch.equal(short, stream.dataset(samples=70).batch(0, None, n_models=2)[0][:, :30])
    # Noise stays in the inputs alone.
    noisy = tk.SparseFeatures(5, 0.2, noise=0.1).dataset(samples=8)
    assert noisy.target is not None and noisy.input is not None
    assert not torch.equal(noisy.target, noisy.input)
    assert torch.equal(noisy.target, tk.SparseFeatures(5, 0.2).sample(0, 8))


def test_an_all_zero_sample_and_a_single_one() -> None:
    for x in (torch.zeros(1, N), torch.zeros(4, N), torch.eye(N)[:1]):
        for given in (x, tk.SparseBatch.from_dense(x)):
            model = models()
            expected = expected_of(tk.Dataset(given), model)
            trained(tk.Dataset(given), model)
            assert max(worst_errors(model, expected.parameters).values()) <= TRAJECTORY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.zeros(0, 4)}, "inputs must have the shape"),
        ({"inputs": torch.zeros(4)}, "inputs must have the shape"),
        ({"inputs": torch.tensor([[1.0, float("nan")]])}, "inputs must be finite"),
        ({"inputs": "text"}, "inputs"),
        (
            {"inputs": torch.ones(3, 4), "targets": torch.ones(2, 4)},
            "targets must have a row for each of the 3",
        ),
        ({"inputs": torch.ones(2, 3, 4), "targets": torch.ones(3, 3, 4)}, "one number of models"),
        ({"inputs": torch.ones(3, 4), "samples": [[1, 2]]}, r"samples must be a number or \[models\]"),
        ({"inputs": torch.ones(3, 4), "samples": [0]}, "samples must be from 1 to 3"),
        ({"inputs": torch.ones(3, 4), "samples": [4]}, "samples must be from 1 to 3"),
        ({"inputs": torch.ones(3, 4), "samples": [1.5]}, "samples must hold integers"),
    ],
)
def test_bad_datasets_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tk.Dataset(**arguments)


def test_fit_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="data has n_features = 4, the model has 37"):
        trained(tk.Dataset(torch.eye(4)), models())
    with pytest.raises(ValueError, match="data has samples for 2 models, the model stacks 3"):
        trained(tk.Dataset(torch.rand(2, 4, N)), models())
    with pytest.raises(TypeError, match="make a Dataset of it"):
        trained(torch.eye(N), models())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        trained(tk.Dataset(torch.eye(N)), models(), batch_size=0)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        tk.SparseFeatures(4, 0.1).dataset(samples=0)
    with pytest.raises(ValueError, match="normalize"):
        tk.SparseFeatures(4, 0.1).dataset(samples=2, normalize="length")


@pytest.mark.slow
def test_few_samples_are_memorised_and_of_many_the_features_are_learnt() -> None:
    """The two ends of double descent (Henighan et al. 2023), small: five samples form a pentagon, and of two
    thousand five features do."""
    stream = tk.SparseFeatures(200, 0.03)
    samples = torch.tensor([5, 2000]).repeat_interleave(4)
    data = stream.dataset(samples, seed=0, normalize="unit")
    test = stream.dataset(2000, seed=0, normalize="unit", purpose="evaluation")
    model = tk.TiedAutoencoder(200, 2, n_models=8)
    settings: dict[str, Any] = {"schedule": tk.WarmupCosine(150), "loss_reduction": "sum", "progress": False}
    tk.fit(model, data, 3000, optimizer=tk.AdamW(lr=1e-2), **settings)
    train_loss, test_loss = (tk.evaluate(model, d, loss_reduction="sum") for d in (data, test))
    few, many = int(train_loss[:4].argmin()), 4 + int(train_loss[4:].argmin())
    weight = model.weight.detach()

    x = data.row(few).batch(0)[0][0, :5]
    places = (weight[few] @ x.T)[None]
    assert train_loss[few] < 0.01 and test_loss[few] > 0.98
    assert abs(tk.metrics.feature_dimensionality(places).median() - 2 / 5) < 0.01
    assert (weight[few].norm(dim=0) > 0.5).sum() > 10

    assert train_loss[many] > 0.9 and test_loss[many] < 0.97
    assert (weight[many].norm(dim=0) > 0.5).sum() == 5
    assert 0.3 < tk.metrics.feature_dimensionality(weight)[many].max() < 2 / 5


@pytest.mark.parametrize("batch_size", [None, 16])
def test_one_number_of_samples_is_for_all_models(batch_size):
    """As the dataset of so many rows; the kernels read a number for each model."""
    shared = inputs(own=False)[0]
    told, cut = tk.Dataset(shared, samples=20), tk.Dataset(shared[:20])
    assert told.n_models is None
    ours, theirs = (trained(data, models(), 5, batch_size=batch_size, record_every=1) for data in (told, cut))
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(tk.evaluate(models(), told), tk.evaluate(models(), cut))
