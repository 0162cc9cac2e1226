"""How importance, seeds and per-model quantities reach [models, …], and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk
from toykern.arguments.broadcast import broadcast_importance, broadcast_per_model, broadcast_seed, from_data


@given(models=st.integers(1, 5), features=st.integers(1, 5), data=st.data())
def test_importance_broadcasts_as_in_numpy(models, features, data):
    shape = data.draw(
        st.sampled_from([(), (features,), (1, features), (models, 1), (models, features), (1, 1)])
    )
    value = np.random.default_rng(0).random(shape)
    got = broadcast_importance(value, models, features)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.shape[0] in (1, models)
    expected = np.broadcast_to(value, (models, features)).astype(np.float32)
    np.testing.assert_array_equal(got.expand(models, features).numpy(), expected)


def _read_only(values):
    array = np.array(values)
    array.flags.writeable = False  # as columns of pandas are
    return array


@pytest.mark.filterwarnings("error")
def test_arrays_that_may_not_be_written_to():
    values = [0.25, 0.5, 1.0]
    given = _read_only(values)
    assert from_data(given).tolist() == values and from_data(_read_only(2.0)).shape == ()
    from_data(given)[0] = 7.0  # its own memory
    assert given.tolist() == values
    assert tk.SparseFeatures(3, given).probability.tolist() == [values]
    assert tk.metrics.superposition(_read_only([[1.0, -1.0]])).tolist() == [1.0, 1.0]
    chosen = tk.TiedAutoencoder(5, 2, 3)[_read_only([0, 2])]
    assert chosen.n_models == 2


def test_one_dimension_is_features_where_models_are_as_many():
    assert broadcast_importance([1.0, 2.0, 3.0], 3, 3).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12.0).reshape(4, 3).T,
        torch.ones(1).expand(3, 4),
        np.arange(24.0).reshape(3, 8)[:, ::2],
        np.arange(12.0).reshape(3, 4)[::-1],
    ],
)
def test_strided_importance(value):
    assert broadcast_importance(value, 3, 4).tolist() == value.tolist()


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(3, 4), torch.ones(1, 3, 4), [], [[1.0], [1.0], [1.0]]]
)
def test_importance_of_another_shape(bad):
    with pytest.raises(ValueError, match=r"importance must broadcast to \[models, n_features\] = \[2, 4\]"):
        broadcast_importance(bad, 2, 4)


@pytest.mark.parametrize(
    "bad", [math.nan, -0.5, math.inf, 1e39, [1, 1, -1, 1], torch.tensor([[1.0], [math.nan]])]
)
def test_importance_out_of_range(bad):
    with pytest.raises(ValueError, match="importance must be finite and at least 0"):
        broadcast_importance(bad, 2, 4)


@pytest.mark.parametrize("bad", ["1", None, True, [[1, 2], [3]], torch.tensor([True]), 1j])
def test_importance_of_no_numbers(bad):
    with pytest.raises(TypeError, match="importance must"):
        broadcast_importance(bad, 2, 4)


def test_the_error_says_where():
    with pytest.raises(ValueError, match=r"with -1.0 at index \[1, 2\]"):
        broadcast_importance([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]], 2, 3)


@pytest.mark.parametrize(("value", "seeds"), [(None, [0, 1, 2]), (7, [7, 7, 7]), ([5, 3, 1], [5, 3, 1])])
def test_seeds(value, seeds):
    got = broadcast_seed("seed", value, 3)
    assert got.dtype == torch.int64
    assert got.is_contiguous()
    assert got.tolist() == seeds


@pytest.mark.parametrize("kind", [np.int32, np.uint64, np.int8])
def test_seeds_of_any_integer_type(kind):
    assert broadcast_seed("seed", np.array([1, 2, 3], dtype=kind), 3).tolist() == [1, 2, 3]
    assert broadcast_seed("seed", kind(4), 2).tolist() == [4, 4]


def test_largest_seed():
    assert broadcast_seed("seed", 2**63 - 1, 1).tolist() == [2**63 - 1]


def test_per_model_is_a_copy_in_double_precision():
    given_value = torch.tensor([0.1, 0.2], dtype=torch.float64)
    got = broadcast_per_model("lr", given_value, 2)
    got[0] = 9.0
    assert given_value[0] == 0.1
    assert broadcast_per_model("lr", 0.1, 2).tolist() == [0.1, 0.1]


def test_per_model_refuses():
    with pytest.raises(
        ValueError, match=r"rate must.*each of the 3 models \(shape \[3\]\), not a float32 tensor"
    ):
        broadcast_per_model("rate", torch.ones(2), 3)
    with pytest.raises(ValueError, match="rate must be finite.*nan at index 1"):
        broadcast_per_model("rate", [0.0, math.nan, 1.0], 3)
    with pytest.raises(TypeError, match="rate must hold real numbers"):
        broadcast_per_model("rate", torch.ones(3, dtype=torch.complex64), 3)
