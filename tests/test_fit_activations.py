"""Activations that the fast loops do not list: `fit`, `evaluate` and the layer, by every loop there is."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from cases import FIT_ACTIVATIONS, LAYER_ACTIVATIONS, FitCase, case_of_activations
from device_kit import device_regime, device_source
from kit import (
    LEVELS,
    PLAIN_ACTIVATIONS,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    data_of,
    fit_case,
    isa_level,
    largest_error,
    layer_batch,
    layer_loss_options,
    layer_of,
    layer_reference,
    model_of,
)
from layer_kit import device_layer

import toykern as tk
from toykern import _native, reference
from toykern.network import Objective
from toykern.network.activations import ACTIVATIONS, LAYER_HIDDEN_ACTIVATIONS, LAYER_OUTPUT_ACTIVATIONS
from toykern.training.kernels import network_params

CASES = FIT_ACTIVATIONS
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_loop = pytest.mark.parametrize("loop", ["small", "large"])


@pytest.mark.parametrize("level", LEVELS)
@each_case
def test_one_step_is_as_exact_as_pytorch(case, level):
    with isa_level(level):
        assert_as_exact_as_pytorch(case, partial(fit_case, case))


@each_loop
@each_case
def test_one_step_of_a_device_is_as_exact_as_pytorch(case, loop):
    with device_source(loop):
        assert_as_exact_as_pytorch(case, partial(fit_case, case))


@each_case
def test_training_follows_the_reference(case):
    assert_follows_the_reference(case, fit_case(case, record_every=7))


@each_loop
@pytest.mark.parametrize("case", CASES[2::4], ids=lambda case: case.name)
def test_training_on_a_device_follows_the_reference(case, loop):
    with device_source(loop):
        assert_follows_the_reference(case, fit_case(case, record_every=7))


@pytest.mark.parametrize("loop", ["large", "small", "cpu"])
def test_bits_are_a_models_own(loop):
    case = CASES[7]  # GELU and softplus
    fit = partial(fit_case, case, steps=10)
    if loop == "cpu":
        whole, again, alone = fit(), fit(), fit().rerun(1)
    else:
        with device_source(loop):
            whole = fit()
            alone = whole.rerun(1)
        with device_source(loop, descending=True):
            again = fit()
    assert_same_bits(whole, again)
    assert_same_bits(alone, whole, [0], [1])


def test_noise_and_long_batches_on_a_device():
    """Targets without the noise of the inputs; sums of several chains and pieces."""
    case = FitCase(
        "noisy", 9, 4, 0.3, 1100, network={"output_activation": "softplus"}, features={"noise": 0.1}
    )
    for loop in ("small", "large"):
        with device_source(loop):
            assert_as_exact_as_pytorch(case, partial(fit_case, case))


@pytest.mark.parametrize("loop", ["small", "large", "cpu"])
@pytest.mark.parametrize("case", [CASES[2], CASES[8]], ids=lambda case: case.name)
def test_evaluate_agrees_with_the_reference(case, loop):
    model, data = model_of(case), data_of(case)
    evaluate = partial(tk.evaluate, model, data, samples=200, seed=3, importance=case.loss["importance"])
    if loop == "cpu":
        found = evaluate()
    else:
        with device_source(loop):
            found = evaluate()
    x = data.sample(0, 200, 3, n_models=case.n_models, purpose="evaluation")
    expected, _ = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), **case.loss
    )
    assert largest_error(found, expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", LAYER_ACTIVATIONS, ids=lambda case: case.name)
def test_layer(case, dtype):
    output, loss, gradients = layer_reference(case)
    model, x = layer_of(case, dtype), layer_batch(case, dtype)["x"].requires_grad_()
    tolerance = 3e-6 if dtype == torch.float32 else 1e-12
    assert largest_error(model(x), output) <= tolerance
    options = layer_loss_options(case)
    found = model.loss(x, **options)
    assert largest_error(found, loss) <= tolerance
    found.sum().backward()
    for name, parameter in model.named_parameters():
        assert largest_error(parameter.grad, gradients[name]) <= tolerance, name
    assert largest_error(x.grad, gradients["x"]) <= tolerance
    entries = tk.SparseBatch.from_dense(x.detach())
    assert largest_error(model.loss(entries, **options), loss) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYER_OUTPUT_ACTIVATIONS)
def test_values_and_slopes_far_from_zero(name, dtype):
    """y = g(b) and its slope for biases of every size, against PyTorch's own function in float64."""
    z = torch.tensor([-80.0, -30.0, -5.0, -1e-3, -0.0, 0.0, 1e-3, 0.5, 5.0, 15.0, 80.0], dtype=torch.float64)
    model = tk.TiedAutoencoder(len(z), 1, output_activation=name, init=0.0, dtype=dtype)
    model.bias.data = z[None].to(dtype)
    output = model(torch.zeros(1, len(z), dtype=dtype))
    output.sum().backward()
    wanted = z.clone().requires_grad_()
    expected = PLAIN_ACTIVATIONS[name](wanted, model)
    expected.sum().backward()
    tolerance = {"rtol": 2e-6, "atol": 2e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(output[0, 0].double(), expected, **tolerance)
    torch.testing.assert_close(model.bias.grad[0].double(), wanted.grad, **tolerance)


def outputs_and_slopes(name: str) -> dict[str, torch.Tensor]:
    """y = g(b) and its slope for 8192 biases from −12 to 12."""
    z = torch.linspace(-12.0, 12.0, 128 * 64).view(128, 64)
    model = tk.TiedAutoencoder(64, 1, n_models=128, output_activation=name, init=0.0)
    model.bias.data = z.clone()
    output = model(torch.zeros(128, 1, 64))
    output.sum().backward()
    return {"z": z, "output": output.detach()[:, 0], "slope": model.bias.grad}


@pytest.mark.parametrize("name", LAYER_OUTPUT_ACTIVATIONS)
def test_a_device_has_the_same_bits_as_vectors(name):
    with device_layer() as kernels:
        device = outputs_and_slopes(name)
    assert kernels.called
    for level in set(LEVELS) - {"base"}:  # which has no fused multiply-add
        with isa_level(level):
            for what, values in outputs_and_slopes(name).items():
                assert torch.equal(values.view(torch.int32), device[what].view(torch.int32)), (level, what)


@pytest.mark.parametrize("level", LEVELS)
def test_gelu_is_as_exact_as_it_says(level):
    """Φ(z) and Φ(z) + z φ(z), against libm in double precision."""
    with isa_level(level):
        found = outputs_and_slopes("gelu")
    z = found["z"].double()
    distribution = 0.5 * torch.erfc(-z / math.sqrt(2))
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    assert (found["output"] / z - distribution).abs().max() <= 3e-7
    assert (found["slope"] - (distribution + z * density)).abs().max() <= 3e-7


@pytest.mark.parametrize("hidden", LAYER_HIDDEN_ACTIVATIONS)
@pytest.mark.parametrize("output", LAYER_OUTPUT_ACTIVATIONS)
def test_the_kernels_are_told_the_number_of_the_activation(hidden, output):
    model = tk.TiedAutoencoder(
        3, 2, hidden_activation=hidden, output_activation=output, top_k=1 if hidden == "topk" else None
    )
    network = network_params(model.network.trained_for(Objective("abs", "sum")))
    assert network.hidden_activation == ACTIVATIONS[hidden].number
    assert network.output_activation == ACTIVATIONS[output].number


def test_what_no_fast_loop_of_a_device_lists_goes_to_the_small_one():
    assert device_regime(tk.TiedAutoencoder(5, 2), 64) == "tiny"
    assert device_regime(tk.TiedAutoencoder(5, 2, output_activation="softplus"), 64) == "small"
    case = case_of_activations(5, 2, 0.1, True, "gelu", "relu", {})
    with device_source("tiny"), pytest.raises(ValueError, match="tiny regime knows none and ReLU alone"):
        fit_case(case, steps=1)


def test_the_native_side_refuses_what_is_no_activation_there():
    model = model_of(case_of_activations(5, 2, 0.1, True, "none", "relu", {}))
    for place, number, allowed in (
        ("hidden_activation", 99, "from 0 to"),
        ("hidden_activation", ACTIVATIONS["topk"].number, "hidden_option must be from 1 to n_hidden"),
        ("output_activation", ACTIVATIONS["solu"].number, "elementwise"),
        ("output_activation", ACTIVATIONS["topk"].number, "elementwise"),
    ):
        params = _native.EvaluateParams()
        params.data, params.n_models = tk.SparseFeatures(5, 0.1).native(), len(model)
        params.network, params.batch_size = network_params(tk.TiedAutoencoder(5, 2).network), 8
        setattr(params.network, place, number)
        with pytest.raises(ValueError, match=allowed):
            _native.evaluate(params)
    with pytest.raises(ValueError, match="hidden_activation must be one of"):
        tk.TiedAutoencoder(5, 2, hidden_activation="softplus")


@pytest.mark.parametrize("kind", [tk.TiedAutoencoder, tk.Autoencoder])
def test_negative_slope_is_told_and_kept(kind, tmp_path):
    model = kind(5, 2, 3, hidden_activation="leaky_relu", negative_slope=0.2)
    assert "negative_slope=0.2" in repr(model) and model[1].negative_slope == 0.2
    assert kind(5, 2, output_activation="leaky_relu").negative_slope == 0.01
    config = json.loads(json.dumps(model.config()))
    assert config["negative_slope"] == 0.2 and "negative_slope" not in kind(5, 2).config()
    assert tk.nn.model_from_config(config).negative_slope == 0.2
    run = tk.fit(model, tk.SparseFeatures(5, 0.2), steps=4, batch_size=8, progress=False)
    run.save(tmp_path / "run")
    loaded = tk.Run.load(tmp_path / "run")
    assert loaded.model.negative_slope == 0.2
    assert_same_bits(loaded, run)
    assert_same_bits(loaded.rerun(2), run, [0], [2])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"negative_slope": 0.2}, ValueError, "negative_slope is for hidden_activation='leaky_relu' or"),
        ({"output_activation": "leaky_relu", "negative_slope": -0.1}, ValueError, "negative_slope must be"),
        ({"output_activation": "leaky_relu", "negative_slope": math.nan}, ValueError, "negative_slope must"),
        ({"output_activation": "leaky_relu", "negative_slope": "0.1"}, TypeError, "negative_slope must be"),
    ],
)  # fmt: skip
def test_bad_slopes(options, error, text):
    with pytest.raises(error, match=text):
        tk.TiedAutoencoder(5, 2, **options)
