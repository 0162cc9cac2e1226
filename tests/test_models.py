"""The two stacked modules as ordinary nn.Modules: forward, loss, views of a stack, and what they refuse."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern import reference
from toykern.network.activations import LAYER_HIDDEN_ACTIVATIONS
from toykern.nn import Autoencoder, TiedAutoencoder, model_from_config

KINDS = [TiedAutoencoder, Autoencoder]
FLOAT32_FLOOR = 2e-6


def _perturbed(model):
    """Biases other than 0, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def _batch(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.2


@given(
    kind=st.sampled_from(KINDS),
    models=st.integers(1, 4),
    n=st.integers(1, 7),
    m=st.integers(1, 7),
    batch=st.integers(1, 6),
    hidden=st.sampled_from(["none", "relu"]),
    output=st.sampled_from(["none", "relu"]),
    bias=st.booleans(),
    shared=st.booleans(),
)
def test_forward_is_the_reference(kind, models, n, m, batch, hidden, output, bias, shared):
    model = _perturbed(kind(n, m, models, hidden_activation=hidden, output_activation=output, bias=bias))
    x = _batch(batch, n) if shared else _batch(models, batch, n)
    expected = reference.forward(reference.parameters_of(model), x, reference.network_of(model)).output
    assert model(x).shape == (models, batch, n)
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=FLOAT32_FLOOR * n * m)
    torch.testing.assert_close(model.double()(x.double()), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["identity", "abs"])
@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
@pytest.mark.parametrize("importance", [1.0, "features", "models", "both"])
def test_loss_is_the_reference(kind, target, loss_reduction, importance):
    models, n = 3, 5
    shapes = {"features": (n,), "models": (models, 1), "both": (models, n)}
    importance = _batch(*shapes[importance]) + 1 if importance in shapes else importance
    model, x = _perturbed(kind(n, 2, models)).double(), _batch(models, 16, n).double()
    loss = model.loss(x, importance, target, loss_reduction)
    loss.sum().backward()
    expected, gradients = reference.loss_and_gradients(
        reference.parameters_of(model), x, importance=importance, target=target, loss_reduction=loss_reduction
    )
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-11, atol=1e-14)


def test_loss_by_hand():
    model = TiedAutoencoder.from_published(torch.tensor([[2.0], [0.0]]), bias=[0.5, -1.0])
    x = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    # outputs: (4.5, 0) and (0.5, 0); squared errors: 12.25 + 1 and 0.25 + 9
    assert model.loss(x, loss_reduction="sum").tolist() == [(13.25 + 9.25) / 2]
    assert model.loss(x).tolist() == [(13.25 + 9.25) / 4]
    assert model.loss(x, importance=[2.0, 0.0], loss_reduction="sum").tolist() == [12.5]


def test_loss_of_a_tensor_target_is_for_noisy_inputs():
    model, clean = _perturbed(TiedAutoencoder(5, 2, 3)), _batch(3, 8, 5)
    noisy = clean + 0.1
    expected, _ = reference.loss_and_gradients(reference.parameters_of(model), noisy, clean=clean)
    torch.testing.assert_close(
        model.loss(noisy, target=clean).double().detach(), expected, rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(model.loss(clean), model.loss(clean, target=clean))  # by another kernel
    assert torch.equal(model.loss(clean), model.loss(clean, target=None))


def test_models_are_independent():
    model, x = TiedAutoencoder(5, 2, 3), _batch(3, 8, 5)
    model.loss(x)[1].backward()
    assert model.weight.grad[1].any()
    assert not model.weight.grad[[0, 2]].any()


def test_relu_slope_at_zero_is_zero():
    model = TiedAutoencoder(2, 1, init=0.0)
    model.loss(torch.ones(4, 2)).sum().backward()
    assert not model.bias.grad.any()


def test_linear_output_keeps_its_bias():
    model = TiedAutoencoder(2, 1, output_activation="none", init=0.0)
    with torch.no_grad():
        model.bias.fill_(-0.5)
    assert model(torch.zeros(1, 2)).tolist() == [[[-0.5, -0.5]]]


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_expanded_inputs(kind):
    model = _perturbed(kind(4, 3, 2))
    whole = _batch(2, 6, 8)
    for x in (
        whole[:, :, ::2],
        whole[:, ::3, :4],
        whole.transpose(1, 2)[:, 4:, :4],
        _batch(4).expand(2, 6, 4),
    ):
        assert torch.equal(model(x), model(x.contiguous()))
        assert torch.equal(model.loss(x), model.loss(x.contiguous()))


def test_empty_batch():
    model = TiedAutoencoder(4, 2, 3)
    assert model(torch.zeros(0, 4)).shape == (3, 0, 4)
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        model.loss(torch.zeros(0, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [2, -1, np.int64(0), torch.tensor(3), slice(1, 3), slice(None, None, 2)])
def test_a_view_shares_memory_and_trains_the_stack(kind, index):
    model = kind(5, 2, 4, seed=[10, 11, 12, 13])
    chosen = np.arange(4)[int(index) if not isinstance(index, slice) else index]
    before, part = {k: v.clone() for k, v in model.state_dict().items()}, model[index]
    assert part.n_models == np.size(chosen) == len(part)
    assert part.seed.tolist() == (10 + np.atleast_1d(chosen)).tolist()
    optimizer = torch.optim.Adam(part.parameters())
    part.loss(_batch(8, 5)).sum().backward()
    optimizer.step()
    changed = np.zeros(4, dtype=bool)
    changed[chosen] = True
    for name, value in model.state_dict().items():
        moved = (value != before[name]).flatten(1).any(dim=1)
        assert moved.tolist() == changed.tolist(), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "index", [[3, 0, 3], np.array([1]), torch.tensor([-1, 2]), torch.tensor([True, False, True, False])]
)
def test_an_array_of_indices_is_a_copy(index):
    model = _perturbed(TiedAutoencoder(5, 2, 4))
    part, before = model[index], model.weight.clone()
    assert torch.equal(part.weight, model.weight[torch.as_tensor(index)])
    assert torch.equal(part.bias, model.bias[torch.as_tensor(index)])
    assert torch.equal(part.seed, model.seed[torch.as_tensor(index)])
    with torch.no_grad():
        part.weight.zero_()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "index", [4, -5, [0, 4], slice(2, 2), [], torch.zeros(4, dtype=torch.bool), torch.ones(3) > 0]
)
def test_index_out_of_range(index):
    with pytest.raises(IndexError):
        TiedAutoencoder(5, 2, 4)[index]


@pytest.mark.parametrize("index", ["0", 1.0, (0, 1), None, [0.5], True])
def test_index_of_the_wrong_kind(index):
    with pytest.raises(TypeError, match="index must"):
        TiedAutoencoder(5, 2, 4)[index]


def test_backward_slice_is_refused():
    with pytest.raises(ValueError, match="positive step"):
        TiedAutoencoder(5, 2, 4)[::-1]


def test_iteration_gives_every_model_and_ends():
    model = TiedAutoencoder(5, 2, 3)
    assert [part.seed.item() for part in model] == [0, 1, 2]


def test_a_view_keeps_mode_and_options():
    model = Autoencoder(3, 6, 2, hidden_activation="relu", output_activation="none", bias=False).eval()
    model.encoder.requires_grad_(False)
    part = model[1]
    assert not part.training
    assert part.bias is None
    assert not part.encoder.requires_grad
    assert part.decoder.requires_grad
    assert part.config() == {**model.config(), "n_models": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts(kind):
    model, x = _perturbed(kind(5, 2, 3)), _batch(4, 5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model[:])):
        assert torch.equal(other(x), model(x))
        assert torch.equal(other.seed, model.seed)
        assert torch.equal(other.init_std, model.init_std)
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert not torch.equal(other(x), model(x))
    fresh = kind(5, 2, 3, init=0.0)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert set(model.state_dict()) == {*kind.weight_names, "bias"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["xavier", "xavier_stacked_hidden_features", 0.3])
def test_config_round_trip(kind, init):
    model = kind(5, 2, 3, "relu", "none", False, init, seed=[7, 8, 9])
    config = json.loads(json.dumps(model.config()))
    again = model_from_config(config, seed=model.seed)
    assert type(again) is kind
    assert again.config() == config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_config_of_per_model_init_needs_it_again():
    model = TiedAutoencoder(5, 2, 3, init=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="init was given per model"):
        model_from_config(model.config())
    assert torch.equal(model_from_config(model.config(), init=model.init_std).weight, model.weight)


@pytest.mark.parametrize(
    "config", [None, {}, {"class": "Linear"}, {"class": "TiedAutoencoder", "n_features": 3}]
)
def test_foreign_config_is_refused(config):
    with pytest.raises(ValueError, match="config must|class must"):
        model_from_config(config)


def test_initial_parameters_stay_what_they_were():
    model = Autoencoder(5, 2, 3, init=0.4)
    first = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if name != "bias"
    }
    _perturbed(model)
    again = model.initial_parameters()
    assert list(again) == ["encoder", "decoder"]
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_from_published(kind):
    """The notebooks' own forward pass: einsum over [instances, features, hidden]."""
    published, bias, x = _batch(10, 5, 2).to(kind), _batch(10, 5).to(kind), _batch(7, 10, 5)
    hidden = torch.einsum("bif,ifh->bih", x, published.float())
    expected = torch.relu(torch.einsum("bih,ifh->bif", hidden, published.float()) + bias.float())
    model = TiedAutoencoder.from_published(published, bias)
    assert model.weight.is_contiguous()
    torch.testing.assert_close(model(x.transpose(0, 1)), expected.transpose(0, 1))
    published.zero_()
    assert model.weight.all()
    assert TiedAutoencoder.from_published(_batch(5, 2).numpy()).weight.shape == (1, 2, 5)


def test_from_published_refuses():
    with pytest.raises(ValueError, match=r"weight must have the shape \[models, features, hidden\]"):
        TiedAutoencoder.from_published(torch.zeros(5))
    with pytest.raises(ValueError, match=r"bias must have the shape .* = \[10, 5\]"):
        TiedAutoencoder.from_published(torch.zeros(10, 5, 2), torch.zeros(10, 2))


def test_compiles_without_a_graph_break():
    model, x = _perturbed(TiedAutoencoder(5, 2, 3)), _batch(3, 8, 5)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, importance=torch.ones(5)), model.loss(x))


def test_repr_shows_shape_and_options():
    assert repr(TiedAutoencoder(5, 2, 3)) == (
        "TiedAutoencoder(n_features=5, n_hidden=2, n_models=3, hidden_activation='none', "
        "output_activation='relu', bias=True, init='xavier')"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_features": 0}, ValueError, "n_features must be an integer at least 1, not 0"),
        ({"n_hidden": -1}, ValueError, "n_hidden must"),
        ({"n_models": 0}, ValueError, "n_models must"),
        ({"n_models": 2.0}, TypeError, "n_models must be an integer, not 2.0"),
        (
            {"hidden_activation": "tanh"},
            ValueError,
            f"hidden_activation must be one of {str(LAYER_HIDDEN_ACTIVATIONS)[1:-1]}, not 'tanh'",
        ),
        ({"output_activation": None}, TypeError, "output_activation must be one of"),
        ({"bias": 1}, TypeError, "bias must be True or False"),
    ],
)
def test_bad_construction(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**{"n_features": 5, "n_hidden": 2, **arguments})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(3, 8, 4),
            ValueError,
            r"x must have the shape .*\[3, batch, 5\] or \[batch, 5\], not \[3, 8, 4\]",
        ),
        (torch.zeros(2, 8, 5), ValueError, "x must have the shape"),
        (torch.zeros(5), ValueError, "x must have the shape"),
        (torch.zeros(1, 3, 8, 5), ValueError, "x must have the shape"),
        (
            torch.zeros(8, 5).double(),
            TypeError,
            "x must have the dtype of the weights, torch.float32, not torch.float64",
        ),
        (torch.zeros(8, 5, dtype=torch.int64), TypeError, "x must have the dtype"),
        (torch.zeros(8, 5, device="meta"), ValueError, "x must be on the device"),
        (np.zeros((8, 5)), TypeError, "x must be a tensor"),
    ],
)
def test_bad_inputs(x, error, message):
    model = TiedAutoencoder(5, 2, 3)
    for call in (model, model.loss):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "square"}, ValueError, "target must be one of 'identity', 'abs'"),
        ({"target": torch.zeros(7, 5)}, ValueError, "target must have as many samples as x"),
        ({"target": torch.zeros(8, 4)}, ValueError, "target must have the shape"),
        ({"loss_reduction": "none"}, ValueError, "loss_reduction must be one of 'mean', 'sum'"),
        ({"importance": torch.ones(4)}, ValueError, "importance must broadcast"),
        ({"importance": -1.0}, ValueError, "importance must be finite and at least 0"),
    ],
)
def test_bad_loss_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TiedAutoencoder(5, 2, 3).loss(torch.zeros(8, 5), **arguments)
