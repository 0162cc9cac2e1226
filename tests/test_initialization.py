"""Initial weights: the bits against the independent stream oracle, the scales, and who depends on what."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import stream_oracle
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern.data import philox
from toykern.data.stream_tables import HALF_NORMAL_TABLE
from toykern.nn import INITIALIZATIONS, Autoencoder, TiedAutoencoder, initial_std
from toykern.nn.initialization import initial_weights

ROOT = Path(__file__).resolve().parent.parent
SEEDS = np.array([0, 1, 5, 2**31, 2**32 + 3, 2**63 - 1])


def _tool():
    spec = importlib.util.spec_from_file_location("stream_tables_tool", ROOT / "tools" / "stream_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_table_is_the_headers():
    _, table = stream_oracle.header_tables()
    assert HALF_NORMAL_TABLE.dtype == np.float32
    assert HALF_NORMAL_TABLE.tobytes() == np.ascontiguousarray(table).tobytes()


def test_the_python_table_is_what_the_tool_makes():
    assert _tool().python_module() + "\n" == (ROOT / "toykern" / "data" / "stream_tables.py").read_text()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123 (Salmon et al. 2011)
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox.philox(counter, key)) == words


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 130, 2000])
def test_normal_draws_are_the_oracles(count):
    draws = philox.normal(SEEDS, count, member=1)
    for row, seed in zip(draws, SEEDS, strict=True):
        assert (
            row.tobytes()
            == stream_oracle.initial_normal(int(seed), count, member=1).astype(np.float32).tobytes()
        )


def test_many_seeds_and_long_tensors_cross_the_chunks():
    """The passes of `sequence` and `normal` are a matter of speed alone."""
    seeds = np.arange(40_000)
    many = philox.normal(seeds, 3)
    for seed in (0, 16_383, 16_384, 39_999):
        assert many[seed].tobytes() == philox.normal(np.array([seed]), 3)[0].tobytes()
    long = philox.normal(np.array([9]), 300_000)[0]
    assert long[:100].tobytes() == philox.normal(np.array([9]), 100)[0].tobytes()
    at = 64 * 2000 + 37
    assert long[at] == stream_oracle.initial_normal(9, at + 1)[at]


def test_half_normal_is_the_quantile():
    words = np.array([0, 1, 2**31, 2**32 - 1, 12345, 2**20, 3 * 2**30], dtype=np.uint32)
    exact = torch.special.ndtri(1 - torch.tensor((words | 1) / 2.0**32, dtype=torch.float64) / 2).numpy()
    np.testing.assert_allclose(philox.half_normal(words), exact, rtol=1e-4, atol=1e-4)
    assert (philox.half_normal(words) >= 2.0**-32).all()


def test_draws_are_standard_normal():
    """Moments of 400,000 draws within 5 standard errors, and the share of negative ones."""
    draws = philox.normal(np.arange(1000), 400).astype(np.float64).ravel()
    n = draws.size
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((draws**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    assert abs((draws < 0).mean() - 0.5) < 5 * math.sqrt(0.25 / n)
    between_models = draws.reshape(1000, 400)
    assert np.abs(np.corrcoef(between_models)[np.triu_indices(1000, 1)]).max() < 6.5 / math.sqrt(400)


def test_scales():
    n, m, instances = 7, 3, 10
    assert initial_std("xavier", n, m, instances)[0].item() == math.sqrt(2 / (n + m))
    stacked = {
        "xavier_stacked_features_hidden": (instances, n, m),
        "xavier_stacked_hidden_features": (instances, m, n),
    }
    for name, shape in stacked.items():
        torch.manual_seed(0)
        published = torch.nn.init.xavier_normal_(torch.empty(shape))
        expected = math.sqrt(2 / (shape[2] * (shape[0] + shape[1])))
        assert abs(published.std().item() / expected - 1) < 5 / math.sqrt(2 * published.numel())
        assert initial_std(name, n, m, instances)[0].item() == pytest.approx(expected, rel=1e-15)
    assert initial_std(0.25, n, m, 2).tolist() == [0.25, 0.25]
    assert initial_std([0.25, 0.5], n, m, 2).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("kind", [TiedAutoencoder, Autoencoder])
def test_parameters_are_std_times_the_oracle(kind):
    model = kind(5, 3, 2, seed=[4, 9], init=[0.3, 1.7])
    for member, name in enumerate(model.weight_names):
        for i, (seed, std) in enumerate([(4, 0.3), (9, 1.7)]):
            expected = stream_oracle.initial_normal(seed, 15, member).astype(np.float32) * np.float32(std)
            assert model.get_parameter(name)[i].detach().numpy().tobytes() == expected.tobytes()
    assert not model.bias.any()


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    models=st.integers(1, 6),
    kind=st.sampled_from([TiedAutoencoder, Autoencoder]),
    data=st.data(),
)
def test_a_model_is_the_same_whatever_stands_beside_it(n, m, models, kind, data):
    i = data.draw(st.integers(0, models - 1))
    stack, alone = kind(n, m, models), kind(n, m, seed=i)
    for name in stack.weight_names:
        assert torch.equal(stack.get_parameter(name)[i], alone.get_parameter(name)[0])


def test_one_seed_is_every_models():
    model = TiedAutoencoder(4, 2, 3, seed=8)
    assert model.seed.tolist() == [8, 8, 8]
    assert torch.equal(model.weight[0], model.weight[2])
    assert not torch.equal(model.weight[0], TiedAutoencoder(4, 2, 3).weight[0])


def test_encoder_and_decoder_draw_apart():
    model = Autoencoder(3, 3)
    assert not torch.equal(model.encoder, model.decoder)
    assert torch.equal(model.encoder, TiedAutoencoder(3, 3).weight)


def test_zero_std_draws_nothing():
    assert initial_weights((2, 3), torch.tensor([0]), torch.tensor([0.0]), 0).tolist() == [[[0.0] * 3] * 2]


def test_stacked_names_depend_on_the_stack_and_a_view_remembers():
    model = TiedAutoencoder(5, 2, 10, init="xavier_stacked_features_hidden")
    part = model[3]
    assert part.init == pytest.approx(math.sqrt(2 / (2 * (5 + 10))), rel=1e-15)
    again = TiedAutoencoder(5, 2, init=part.init, seed=part.seed)
    assert torch.equal(again.weight, part.weight)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("kaiming", ValueError, "init must be one of 'xavier'.*not 'kaiming'"),
        (-0.1, ValueError, "init .* at least 0, not -0.1"),
        (math.nan, ValueError, "init must be finite"),
        ([0.1, 0.2], ValueError, r"init must.*3 models.*"),
        (None, TypeError, "init must"),
        (True, TypeError, "init must"),
    ],
)
def test_bad_init(init, error, message):
    with pytest.raises(error, match=message):
        TiedAutoencoder(5, 2, 3, init=init)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed must.*not -1"),
        ([0, 1], ValueError, "seed must.*3 models"),
        ([0, -1, 2], ValueError, "seed must be at least 0"),
        (1.5, TypeError, "seed must hold integers"),
        ("0", TypeError, "seed must"),
        (True, TypeError, "seed must"),
        (2**63, ValueError, "seed must"),
        (np.array([0, 1, 2**63], dtype=np.uint64), ValueError, "seed must fit in 63 bits"),
    ],
)
def test_bad_seeds(seed, error, message):
    with pytest.raises(error, match=message):
        TiedAutoencoder(5, 2, 3, seed=seed)


def test_every_name_is_tried_here():
    assert INITIALIZATIONS == ("xavier", "xavier_stacked_features_hidden", "xavier_stacked_hidden_features")
