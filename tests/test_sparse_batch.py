"""SparseBatch: what it holds, where it comes from and goes, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit import LEVELS, isa_level

import toykern as tk
from toykern import SparseBatch


def _dense(*shape, density=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


@given(
    models=st.integers(1, 3),
    batch=st.integers(0, 5),
    n=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_round_trips(models, batch, n, density):
    x = _dense(models, batch, n, density=density)
    entries = SparseBatch.from_dense(x)
    assert entries.shape == x.shape
    assert torch.equal(entries.to_dense(), x)
    assert torch.equal(SparseBatch.from_coo(*entries.coo(), x.shape).to_dense(), x)
    if batch:
        assert torch.equal(entries.to_csr().to_dense(), x.view(-1, n))
        assert torch.equal(SparseBatch.from_csr(x.view(-1, n).to_sparse_csr(), models).to_dense(), x)


def test_is_what_the_stream_draws():
    data = tk.SparseFeatures(8, torch.linspace(0.01, 0.9, 24).reshape(3, 8).double())
    entries = data.sample(0, 33, layout="sparse")
    assert torch.equal(entries.to_dense(), data.sample(0, 33))
    indices, values = data.sample(0, 33, layout="coo")
    assert torch.equal(entries.coo()[0], indices) and torch.equal(entries.value, values)


def test_from_dense_takes_what_is_not_zero():
    x = torch.tensor([[0.0, math.nan, -0.0], [math.inf, 0.0, -1e-45]], requires_grad=True)
    entries = SparseBatch.from_dense(x)
    assert entries.row_start.tolist() == [0, 1, 3] and entries.feature.tolist() == [1, 0, 2]
    assert entries.value.isnan().tolist() == [True, False, False]
    entries.value.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert SparseBatch.from_dense(torch.zeros(4, 3)).row_start.tolist() == [0] * 5
    assert SparseBatch.from_dense(torch.ones(2, 0, 3)).shape == (2, 0, 3)
    for wrong in (torch.ones(2, 3, dtype=torch.int64), torch.eye(3).to_sparse(), [[1.0]], None):
        with pytest.raises(TypeError, match="^x must be a dense floating-point tensor, not"):
            SparseBatch.from_dense(wrong)


def test_gradient_reaches_the_values():
    entries = SparseBatch.from_dense(_dense(2, 4, 5))
    entries.value.requires_grad_()
    (2 * entries.to_dense()).sum().backward()
    assert (entries.value.grad == 2).all()


def test_to_changes_the_values_alone():
    entries = SparseBatch.from_dense(_dense(4, 5))
    double = entries.to(torch.float64)
    assert (double.dtype, double.feature.dtype) == (torch.float64, torch.int32)
    assert double.row_start is entries.row_start
    assert entries.to("cpu").device == torch.device("cpu")
    assert entries.to("meta").row_start.device.type == "meta"
    with pytest.raises(TypeError, match="must be floating point"):
        entries.to(torch.int64)
    assert (
        repr(double)
        == f"SparseBatch({entries.value.numel()} entries of [1, 4, 5], torch.float64, device='cpu')"
    )


GOOD = {
    "row_start": torch.tensor([0, 2, 2, 3]),
    "feature": torch.tensor([1, 4, 0], dtype=torch.int32),
    "value": torch.ones(3),
    "n_features": 5,
}


def test_the_good_one_is_good():
    assert SparseBatch(**GOOD).shape == (1, 3, 5)
    assert SparseBatch(**GOOD, n_models=3).shape == (3, 1, 5)


def test_a_shape_with_more_samples_than_there_can_be_is_refused():
    with pytest.raises(ValueError, match="shape must have at most 2147483647 samples of all models"):
        tk.SparseBatch.from_coo(torch.zeros(3, 0, dtype=torch.int64), torch.zeros(0), (2**62, 2**62, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"feature": torch.tensor([1, 5, 0])}, ValueError, "feature must lie in 0 … 4, not 5"),
        ({"feature": torch.tensor([-1, 4, 0])}, ValueError, "feature must lie in 0 … 4, not -1"),
        (
            {"feature": torch.tensor([1, 5, 0], dtype=torch.int32)},
            ValueError,
            r"feature must lie in 0 … 4, the model's features \(sample 0\)",
        ),
        ({"feature": torch.tensor([4, 1, 0])}, ValueError, "feature must rise strictly within a sample"),
        ({"feature": torch.tensor([1, 1, 0])}, ValueError, "sorted, none twice"),
        ({"feature": torch.ones(3)}, TypeError, "feature must be int32"),
        ({"feature": torch.tensor([1, 2])}, ValueError, "feature and value must have the same shape"),
        ({"feature": [1, 4, 0]}, TypeError, "feature must be a tensor"),
        ({"row_start": torch.tensor([1, 2, 2, 3])}, ValueError, "row_start must begin with 0"),
        ({"row_start": torch.tensor([0, 2, 1, 3])}, ValueError, r"row_start must never fall .* \(sample 1\)"),
        ({"row_start": torch.tensor([0, 9, 9, 3])}, ValueError, "row_start must never fall"),
        (
            {"row_start": torch.tensor([0, 1, 2, 2])},
            ValueError,
            "row_start must end at the number of entries, 3",
        ),
        ({"row_start": torch.tensor([0, 2, 3]).int()}, TypeError, "row_start must be int64"),
        ({"row_start": torch.zeros(0, dtype=torch.int64)}, ValueError, "row_start must have the shape"),
        ({"n_models": 2}, ValueError, "row_start must have the shape .* with n_models = 2"),
        ({"value": torch.ones(3, 1)}, ValueError, "feature and value must have the same shape"),
        ({"n_features": 0}, ValueError, "n_features must be"),
        ({"n_features": 2**31}, ValueError, "n_features must be at most 2147483647"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseBatch(**{**GOOD, **arguments})


def test_unsorted_or_foreign_sources_are_refused():
    with pytest.raises(ValueError, match="indices must be sorted"):
        SparseBatch.from_coo(torch.tensor([[1, 0], [0, 0], [0, 0]]), torch.ones(2), (2, 1, 3))
    with pytest.raises(ValueError, match="indices must lie within 2 models and 1 samples, not"):
        SparseBatch.from_coo(torch.tensor([[0, 2], [0, 0], [0, 0]]), torch.ones(2), (2, 1, 3))
    with pytest.raises(TypeError, match="csr must be a two-dimensional torch CSR tensor"):
        SparseBatch.from_csr(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must be a tensor"):
        SparseBatch.from_dense(torch.zeros(3))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("row", [0, 5, 40_000, 79_998, 79_999])
def test_a_fault_in_a_large_batch_is_found_with_its_sample(row, level):
    """Checked in slices by several threads, eight samples at a time."""
    counts = torch.randint(0, 3, (80_000,), generator=torch.Generator().manual_seed(0))
    counts[row] = 2
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    feature = torch.arange(int(start[-1]), dtype=torch.int32) % 1000
    feature[start[:-1][counts == 2]] = 3
    feature[start[:-1][counts == 2] + 1] = 7
    value = torch.ones(len(feature))
    torch.set_num_threads(2)
    with isa_level(level):
        tk.SparseBatch(start, feature, value, 1000)
        for first, second, text in ((7, 7, "rise"), (7, 3, "rise"), (3, 1000, "lie in"), (-1, 7, "lie in")):
            bad = feature.clone()
            bad[start[row]], bad[start[row] + 1] = first, second
            with pytest.raises(ValueError, match=rf"feature must {text} .*\(sample {row}\)"):
                tk.SparseBatch(start, bad, value, 1000)
        for wrong in (-1, len(feature) + 1, 2**40):
            bad_start = start.clone()
            bad_start[row + 1 if row + 1 < 80_000 else row] = wrong
            with pytest.raises(ValueError, match="row_start must"):
                tk.SparseBatch(bad_start, feature, value, 1000)
