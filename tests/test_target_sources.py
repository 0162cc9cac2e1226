"""Labels, targets of another width and projections, trained on: they follow the float64 reference, and what
belongs to a model alone stays its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit import LEVELS, TRAJECTORY, isa_level, worst_errors

import toykern as tk
from toykern import reference

N, HIDDEN, OUTPUTS, T, MODELS, STEPS = 23, 9, 6, 40, 3, 25


def inputs(models: int = 1) -> torch.Tensor:
    x = torch.rand(models, T, N, generator=torch.Generator().manual_seed(1))
    return x * (torch.rand(models, T, N, generator=torch.Generator().manual_seed(2)) < 0.2)


def labels(models: int = 1) -> torch.Tensor:
    return torch.randint(OUTPUTS, (models, T), generator=torch.Generator().manual_seed(3))


def targets(models: int = 1) -> torch.Tensor:
    return torch.randn(models, T, OUTPUTS, generator=torch.Generator().manual_seed(4))


def matrix(models: int = 1) -> torch.Tensor:
    return torch.randn(models, OUTPUTS, N, generator=torch.Generator().manual_seed(5)) / 3


def entries(x: torch.Tensor) -> tk.SparseBatch:
    return tk.SparseBatch.from_dense(x)


def stream(models: int = 1, **options: Any) -> tk.SparseFeatures:
    return tk.SparseFeatures(N, 0.15, projection=matrix(models), **options)


DATA: dict[str, tuple[Any, dict[str, Any]]] = {
    "labels": (lambda: tk.Dataset(inputs(), labels=labels()), {}),
    "own labels of shared entries": (lambda: tk.Dataset(entries(inputs()), labels=labels(MODELS)), {}),
    "labels, minibatches": (
        lambda: tk.Dataset(entries(inputs(MODELS)), labels=labels()),
        {"batch_size": 17, "loss_reduction": "sum"},
    ),
    "labels, cross-entropy": (
        lambda: tk.Dataset(inputs(), labels=labels(MODELS)),
        {"loss": "cross_entropy"},
    ),
    "labels, cross-entropy, minibatches": (
        lambda: tk.Dataset(entries(inputs()), labels=labels(MODELS)),
        {"loss": "cross_entropy", "batch_size": 64, "seed": 7},
    ),
    "labels, importance": (
        lambda: tk.Dataset(inputs(MODELS), labels=labels()),
        {"importance": torch.rand(MODELS, OUTPUTS, generator=torch.Generator().manual_seed(6))},
    ),
    "one label": (lambda: tk.Dataset(inputs()[:, :1], labels=[OUTPUTS - 1]), {}),
    "targets of another width": (lambda: tk.Dataset(inputs(MODELS), targets()), {}),
    "own targets": (lambda: tk.Dataset(entries(inputs()), targets(MODELS)), {"target": "abs"}),
    "targets, minibatches": (lambda: tk.Dataset(inputs(), targets(MODELS)), {"batch_size": 7}),
    "a projection": (lambda: stream(), {"batch_size": 50}),
    "own projections": (lambda: stream(MODELS), {"batch_size": 50, "loss_reduction": "sum"}),
    "a projection of samples with noise": (lambda: stream(MODELS, noise=0.2), {"batch_size": 40}),
    "a projection of exactly so many": (
        lambda: tk.SparseFeatures(N, active=3, projection=matrix()),
        {"batch_size": 33},
    ),
    "a projection of samples of which most are zero": (
        lambda: tk.SparseFeatures(N, 0.004, projection=matrix(MODELS)),
        {"batch_size": 200},
    ),
    "a kept stream with its projection": (lambda: stream(MODELS).dataset(30, normalize="unit"), {}),
}  # fmt: skip


def model_of(**options: Any) -> tk.MLP:
    return tk.MLP(N, HIDDEN, OUTPUTS, MODELS, **({"hidden_activation": "gelu"} | options))


def batches_of(data: Any, options: dict[str, Any]) -> Any:
    size, seed = options.get("batch_size"), options.get("seed")
    if isinstance(data, tk.Dataset):
        return lambda step: data.batch(step, size, seed, MODELS, n_outputs=OUTPUTS)
    return lambda step: (
        data.sample(step, size, seed, n_models=MODELS),
        data.targets(step, size, seed, n_models=MODELS),
    )


ON_ALL_LEVELS = ("labels, cross-entropy", "own projections", "labels, minibatches")


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in DATA for level in (LEVELS if name in ON_ALL_LEVELS else LEVELS[:1])],
)
def test_training_follows_the_reference(name: str, level: str) -> None:
    make, options = DATA[name]
    data, model = make(), model_of()
    settings = {k: v for k, v in options.items() if k not in ("batch_size", "seed")}
    expected = reference.train(
        reference.parameters_of(model),
        batches_of(data, options),
        STEPS,
        tk.Adam(lr=1e-2),
        reference.network_of(model),
        **settings,
    )
    with isa_level(level):
        run = tk.fit(
            model, data, STEPS, optimizer=tk.Adam(lr=1e-2), record_every=1, progress=False, **options
        )
    assert max(worst_errors(model, expected.parameters).values()) <= TRAJECTORY
    torch.testing.assert_close(run.loss.double(), expected.losses, rtol=TRAJECTORY, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in DATA if "projection of" not in name])
def test_evaluate_has_the_loss_of_the_reference(name: str) -> None:
    make, options = DATA[name]
    data, model = make(), model_of()
    settings = {k: v for k, v in options.items() if k not in ("batch_size", "seed")}
    if isinstance(data, tk.Dataset):
        x, clean = data.batch(0, None, n_models=MODELS, n_outputs=OUTPUTS)
        found = tk.evaluate(model, data, **settings)
    else:
        x = data.sample(0, 500, n_models=MODELS, purpose="evaluation")
        clean = data.targets(0, 500, n_models=MODELS, purpose="evaluation")
        found = tk.evaluate(model, data, samples=500, **settings)
    parameters, network = reference.parameters_of(model), reference.network_of(model)
    expected, _ = reference.loss_and_gradients(parameters, x, network, clean=clean, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["own labels of shared entries", "labels, minibatches", "own projections"])
def test_bits_do_not_depend_on_neighbours_threads_or_interruptions(name: str) -> None:
    make, options = DATA[name]

    def trained(**more: Any) -> tk.Run:
        return tk.fit(model_of(), make(), STEPS, progress=False, **options, **more)

    run = trained()
    for i in range(MODELS):
        again = run.rerun(i)
        assert torch.equal(again.model.encoder[0], run.model.encoder[i])
        assert torch.equal(again.loss[0], run.loss[i])
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(trained().model.decoder, run.model.decoder)
        finally:
            torch.set_num_threads(before)
    part = trained(stop_at=11)
    assert torch.equal(tk.fit(resume=part, progress=False).model.encoder, run.model.encoder)


@pytest.mark.parametrize("name", ["own labels of shared entries", "own projections"])
def test_a_run_is_stored_and_goes_on(name: str, tmp_path: Any) -> None:
    pytest.importorskip("zarr")
    make, options = DATA[name]
    whole = tk.fit(model_of(), make(), STEPS, progress=False, **options)
    tk.fit(model_of(), make(), STEPS, stop_at=12, progress=False, **options).save(tmp_path / "run")
    run = tk.Run.load(tmp_path / "run")
    tk.fit(resume=run, data=make(), progress=False)
    assert torch.equal(run.model.encoder, whole.model.encoder)
    other = tk.Dataset(entries(inputs()), labels=labels()) if "labels" in name else stream()
    unfinished = tk.fit(model_of(), make(), STEPS, stop_at=12, progress=False, **options)
    with pytest.raises(ValueError, match="data differs"):
        tk.fit(resume=unfinished, data=other, progress=False)


def test_labels_are_the_targets_that_are_one_there() -> None:
    one_hot = torch.nn.functional.one_hot(labels(), OUTPUTS).float()
    for options in ({}, {"batch_size": 11}, {"loss": "cross_entropy"}):
        weights = [
            tk.fit(model_of(), data, 10, progress=False, **options).model.encoder
            for data in (tk.Dataset(inputs(), labels=labels()), tk.Dataset(inputs(), one_hot))
        ]
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_a_projection_by_the_identity_trains_what_no_projection_does() -> None:
    plain = tk.SparseFeatures(N, 0.1, noise=0.1)
    projected = tk.SparseFeatures(N, 0.1, noise=0.1, projection=torch.eye(N))
    for kind in (tk.MLP, tk.Autoencoder, tk.TiedAutoencoder):
        losses = [
            tk.fit(kind(N, HIDDEN, n_models=2), data, 20, batch_size=64, record_every=1, progress=False).loss
            for data in (plain, projected)
        ]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_models_of_other_outputs_are_refused_by_name() -> None:
    model = model_of()
    for action in (
        lambda data: tk.fit(model, data, 2, progress=False),
        lambda data: tk.evaluate(model, data),
    ):
        with pytest.raises(
            ValueError, match=r"labels must be from 0 to n_outputs − 1 = 5, not 6 \(sample 0\)"
        ):
            action(tk.Dataset(inputs()[:, :1], labels=[OUTPUTS]))
        with pytest.raises(ValueError, match="n_outputs = 6"):
            action(tk.Dataset(inputs()))
        with pytest.raises(ValueError, match="n_outputs = 6"):
            action(tk.SparseFeatures(N, 0.1, projection=torch.ones(OUTPUTS + 1, N)))


def test_a_quadratic_network_groks_modular_addition() -> None:
    """Test accuracy follows long after training accuracy (Gromov 2023), small."""
    p = 23
    train, test = tk.modular_addition(p, 0.5)
    model = tk.MLP(
        2 * p, 160, p, 2, hidden_activation="square", bias=False, hidden_bias=False, init=0.1, seed=[0, 1]
    )

    def right(data: tk.Dataset) -> torch.Tensor:
        x, wanted = data.batch(0, n_models=2, n_outputs=p)
        with torch.no_grad():
            return (model(x).argmax(2) == wanted.argmax(2)).float().mean(1)

    settings = {"optimizer": tk.AdamW(lr=1e-2, weight_decay=1.0), "progress": False}
    early = tk.fit(model, train, 1000, stop_at=100, **settings)
    assert bool((right(train) == 1).all()) and bool((right(test) < 0.2).all())
    tk.fit(resume=early, progress=False)
    assert bool((right(test) > 0.98).all())
