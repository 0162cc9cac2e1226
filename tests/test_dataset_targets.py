"""What a source of data says is to be given: targets of another width, labels, projections of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import toykern as tk
from toykern.data.sources import source_from_config

N, T, OUTPUTS, MODELS = 5, 7, 4, 3


def inputs(models: int = 1) -> torch.Tensor:
    x = torch.rand(models, T, N, generator=torch.Generator().manual_seed(1))
    return x * (x > 0.4)


def labels(models: int = 1) -> torch.Tensor:
    return torch.randint(OUTPUTS, (models, T), generator=torch.Generator().manual_seed(2))


def matrix(models: int = 1) -> torch.Tensor:
    return torch.randn(models, OUTPUTS, N, generator=torch.Generator().manual_seed(3))


class OnlyDlpack:
    """An array of a package that is not known."""

    def __init__(self, array: np.ndarray) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


@pytest.mark.parametrize(
    "kind",
    [
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        lambda given: given.to(torch.uint8),
        lambda given: given.to(torch.int32).numpy()[::-1][::-1],
        lambda given: OnlyDlpack(given.numpy()),
        lambda given: given.repeat(2)[::2] * 0 + given,
    ],
)
def test_labels_are_taken_in_any_form(kind: Any) -> None:
    data = tk.Dataset(inputs()[0], labels=kind(labels()[0]))
    assert data.label is not None
    assert data.label.dtype == torch.int32 and torch.equal(data.label, labels().int())
    assert data.n_outputs is None and data.n_models is None


def test_labels_are_kept_apart_from_what_they_were_made_of() -> None:
    given = labels()[0].int()
    data = tk.Dataset(inputs()[0], labels=given)
    given.fill_(0)
    assert torch.equal(data.label, labels().int())


@pytest.mark.parametrize("entries", [False, True])
def test_a_batch_has_a_one_for_each_label(entries: bool) -> None:
    x = inputs(MODELS)
    data = tk.Dataset(tk.SparseBatch.from_dense(x) if entries else x, labels=labels(), samples=[1, T, 4])
    found, target = data.batch(step=0, n_outputs=OUTPUTS)
    expected = torch.nn.functional.one_hot(labels(), OUTPUTS).float().repeat(MODELS, 1, 1)
    expected[0, 1:], expected[2, 4:] = 0, 0
    assert torch.equal(target, expected) and target.dtype == torch.float32
    assert torch.equal(found[1], x[1])
    rows = data.rows_of(step=3, batch_size=2, seed=5)
    _, target = data.batch(step=3, batch_size=2, seed=5, n_outputs=OUTPUTS + 1)
    assert target.shape == (MODELS, 2, OUTPUTS + 1)
    assert torch.equal(target.argmax(2), labels()[0][rows]) and bool((target.sum(2) == 1).all())


def test_labels_of_each_model_alone() -> None:
    data = tk.Dataset(inputs()[0], labels=labels(MODELS))
    assert data.n_models == MODELS
    target = data.batch(step=0, n_outputs=OUTPUTS)[1]
    assert torch.equal(target.argmax(2), labels(MODELS))
    assert torch.equal(data.row(1).batch(step=0, n_outputs=OUTPUTS)[1], target[1:2])
    assert data.row(1).input.data_ptr() == data.input.data_ptr()


def test_targets_may_be_of_another_width() -> None:
    for targets in (torch.rand(T, OUTPUTS), torch.rand(MODELS, T, OUTPUTS)):
        data = tk.Dataset(inputs()[0], targets)
        assert data.n_outputs == OUTPUTS and data.n_features == N
        x, target = data.batch(step=0, n_models=MODELS)
        assert torch.equal(target, targets.expand(MODELS, T, OUTPUTS)) and x.shape == (MODELS, T, N)
        assert data.batch(step=0, n_models=MODELS, n_outputs=OUTPUTS)[1].shape == target.shape
    assert "with targets of n_outputs=4" in repr(data)


@pytest.mark.parametrize(
    "data",
    [
        tk.Dataset(inputs()[0], labels=labels(MODELS), samples=[1, 2, 3]),
        tk.Dataset(tk.SparseBatch.from_dense(inputs(MODELS)), labels=labels()),
        tk.Dataset(inputs(MODELS), torch.rand(T, OUTPUTS)),
        tk.SparseFeatures(N, 0.3, projection=matrix(MODELS)),
        tk.SparseFeatures(N, torch.rand(MODELS, N), noise=0.1, projection=matrix()[0]),
    ],
)
def test_a_source_is_what_its_description_and_arrays_make(data: Any) -> None:
    again = source_from_config(data.config(), data.arrays())
    assert again.config() == data.config() and again.arrays().keys() == data.arrays().keys()
    assert all(torch.equal(held, again.arrays()[name]) for name, held in data.arrays().items())
    assert repr(again) == repr(data) and again.n_outputs == data.n_outputs
    row = data.row(2)
    assert row.n_models is None and row.n_outputs == data.n_outputs
    for name, held in data.arrays().items():
        if len(held) == MODELS and name not in ("data/row_start",):
            assert torch.equal(row.arrays()[name], held[2:])


def test_the_kernels_are_told_what_is_there() -> None:
    own = tk.Dataset(inputs()[0], labels=labels(MODELS))
    view = own.native(full=True)
    assert view.label == own.label.data_ptr() and view.label_per_model and view.target == 0
    view = tk.Dataset(inputs()[0], labels=labels()).native(full=True)
    assert view.label and not view.label_per_model
    view = tk.Dataset(inputs()[0], torch.rand(MODELS, T, 2)).native(full=True)
    assert view.label == 0 and view.target and view.target_per_model
    for models in (1, MODELS):
        stream = tk.SparseFeatures(N, 0.3, projection=matrix(models))
        native = stream.projection.native()
        assert native.matrix == stream.projection.matrix.data_ptr() and native.per_model == (models > 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1]}, r"labels must have one for each of the 7 samples"),
        ({"labels": []}, "labels"),
        ({"labels": [[0] * T] * 2, "targets": [[1.0]] * T}, "labels cannot be given together with targets"),
        ({"labels": [0.0] * T}, "labels must hold integers"),
        ({"labels": [True] * T}, "labels"),
        ({"labels": [0, 0, -1, 0, 0, 0, 0]}, r"labels must be at least 0, .*not -1 \(sample 2\)"),
        ({"labels": [[0] * T, [0] * 6 + [2**40]]}, r"not 1099511627776 \(sample 6 of model 1\)"),
        ({"labels": [2**24] + [0] * 6}, "labels must be at least 0, and below 2"),
        ({"labels": torch.zeros(1, 1, T, dtype=torch.int64)}, "labels must have one"),
        ({"labels": torch.zeros(0, T, dtype=torch.int64)}, "labels must have one"),
        ({"labels": labels(2), "inputs": inputs(3)}, "inputs, targets, labels and samples must be for one"),
        ({"targets": torch.ones(T - 1, 2)}, "targets must have a row for each of the 7 samples"),
        ({"targets": torch.ones(T, 0)}, "targets must have the shape"),
        ({"targets": torch.full((T, 2), torch.inf)}, "targets must be finite"),
    ],
)
def test_bad_targets_and_labels_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tk.Dataset(**({"inputs": inputs()[0]} | arguments))


def test_a_batch_needs_to_know_how_many_outputs() -> None:
    with pytest.raises(ValueError, match="n_outputs must be given"):
        tk.Dataset(inputs()[0], labels=labels()).batch(step=0)
    with pytest.raises(ValueError, match=r"labels must be from 0 to n_outputs − 1 = 1, not [23] \(sample"):
        tk.Dataset(inputs()[0], labels=labels()).batch(step=0, n_outputs=2)
    with pytest.raises(ValueError, match="n_outputs must be 5, that of the dataset, not 4"):
        tk.Dataset(inputs()[0]).batch(step=0, n_outputs=OUTPUTS)


ACTIONS = [lambda *a, **k: tk.fit(*a, steps=2, progress=False, **k), tk.evaluate]


@pytest.mark.parametrize("action", ACTIONS)
def test_models_of_other_outputs_are_refused_by_name(action: Any) -> None:
    model = tk.Autoencoder(N, 2, MODELS)
    out_of_range = labels(MODELS)
    out_of_range[2, 3] = N
    with pytest.raises(ValueError, match=r"n_outputs − 1 = 4, not 5 \(sample 3 of model 2\)"):
        action(model, tk.Dataset(inputs()[0], labels=out_of_range))
    with pytest.raises(ValueError, match="as many numbers as the data's 4, but the model has n_outputs = 5"):
        action(model, tk.Dataset(inputs()[0], torch.ones(T, OUTPUTS)))
    with pytest.raises(ValueError, match="as many numbers as the data's 4, but the model has n_outputs = 5"):
        action(model, tk.SparseFeatures(N, 0.1, projection=matrix()))
    with pytest.raises(ValueError, match="data has projections for 2 models, the model stacks 3"):
        action(model, tk.SparseFeatures(N, 0.1, projection=torch.ones(2, N, N)))


@pytest.mark.parametrize("action", ACTIONS)
def test_what_data_says_itself_is_not_passed_over(action: Any) -> None:
    model = tk.Autoencoder(N, 2, MODELS)
    with pytest.raises(ValueError, match="target must be 'identity' where data has labels, not 'abs'"):
        action(model, tk.Dataset(inputs()[0], labels=labels()), target="abs")
    with pytest.raises(ValueError, match="target must be 'identity' where data has a projection, not 'abs'"):
        action(model, tk.SparseFeatures(N, 0.1, projection=torch.eye(N)), target="abs")


def test_the_stratified_method_knows_no_projections() -> None:
    data = tk.SparseFeatures(N, 0.1, projection=torch.eye(N))
    with pytest.raises(ValueError, match="data with a projection .* method='stratified'"):
        tk.evaluate(tk.Autoencoder(N, 2), data, method="stratified")


@pytest.mark.parametrize("models", [1, MODELS])
def test_targets_of_a_projection_are_products_with_the_samples_without_noise(models: int) -> None:
    data = tk.SparseFeatures(N, 0.4, noise=0.2, projection=matrix(models))
    assert data.n_outputs == OUTPUTS and data.n_models == (None if models == 1 else MODELS)
    clean = data.sample(3, 50, seed=1, n_models=MODELS, clean=True)
    found = data.targets(3, 50, seed=1, n_models=MODELS)
    expected = torch.einsum("kbn,kon->kbo", clean.double(), matrix(models).expand(MODELS, -1, -1).double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)
    plain = tk.SparseFeatures(N, 0.4, noise=0.2)
    assert torch.equal(plain.targets(3, 50, seed=1), plain.sample(3, 50, seed=1, clean=True))
    # Which features are active does not depend on what is made of them.
    assert torch.equal(
        plain.sample(3, 50, seed=1), data.sample(3, 50, seed=1, n_models=1 if models == 1 else 3)[:1]
    )


@pytest.mark.parametrize("models", [1, MODELS])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("normalize", [None, "unit"])
def test_a_kept_stream_has_the_projected_targets(models: int, noise: float, normalize: str | None) -> None:
    stream = tk.SparseFeatures(N, 0.4, noise=noise, projection=matrix(models))
    data = stream.dataset(20, n_models=MODELS, normalize=normalize)
    assert data.n_outputs == OUTPUTS
    clean = stream.sample(0, 20, n_models=MODELS, clean=True)
    if normalize:
        clean = clean / clean.norm(dim=2, keepdim=True).clamp(min=1e-30)
    expected = torch.einsum("kbn,kon->kbo", clean.double(), matrix(models).expand(MODELS, -1, -1).double())
    torch.testing.assert_close(data.batch(step=0)[1], expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        (torch.ones(2, N + 1), r"projection must have the shape \[n_outputs, 5\]"),
        (torch.ones(0, N), "projection must have the shape"),
        (torch.ones(N), "projection must have the shape"),
        (torch.full((2, N), torch.nan), r"projection must be finite, not nan \(model, output, feature"),
        ("text", "projection must be a number"),
    ],
)
def test_bad_projections_are_refused_by_name(projection: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tk.SparseFeatures(N, 0.1, projection=projection)
    with pytest.raises(ValueError, match="probability and projection must be for one number of models"):
        tk.SparseFeatures(N, torch.rand(2, N), projection=torch.ones(3, 1, N))


def test_a_single_sample_of_a_single_label() -> None:
    data = tk.Dataset([[1.0, 0.0]], labels=[1])
    assert data.batch(step=0, n_outputs=2)[1].tolist() == [[[0.0, 1.0]]]
    assert data.batch(step=9, batch_size=3, seed=1, n_outputs=2)[1].tolist() == [[[0.0, 1.0]] * 3]
