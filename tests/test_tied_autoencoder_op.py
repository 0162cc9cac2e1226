"""The fused autoencoder against the float64 oracle: every case, dtype, instruction set, dense and as
entries."""

from __future__ import annotations

import pytest
import torch
from cases import LAYER_CASES, LAYER_SHAPES
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import LEVELS, isa_level, largest_error, layer_batch, layer_loss_options, layer_of, layer_reference

import toykern as tk
from toykern import _native, reference
from toykern.ops import autoencoder_loss, autoencoder_output

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2.0**-8}
each_case = pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
each_level = pytest.mark.parametrize("level", LEVELS)


def loss_and_gradients(case, dtype=torch.float64, sparse=False, inputs=True):
    """What the module makes of a case: (loss, gradients by name)."""
    model, batch = layer_of(case, dtype), layer_batch(case, dtype)
    x, target = batch["x"].requires_grad_(inputs), batch.get("target")
    given = x
    if sparse:
        given = tk.SparseBatch.from_dense(x.detach())
        given.value.requires_grad_(inputs)
    options = layer_loss_options(case)
    if target is not None:
        options["target"] = target.requires_grad_(inputs)
    loss = model.loss(given, **options)
    loss.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    if inputs:
        gradients["x"] = given.value.grad if sparse else x.grad
        if target is not None:
            gradients["target"] = target.grad
    return loss, gradients


def assert_is_the_reference(case, dtype, sparse=False, inputs=True):
    _, expected_loss, expected = layer_reference(case)
    loss, gradients = loss_and_gradients(case, dtype, sparse, inputs)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    errors = {"loss": largest_error(loss, expected_loss)}
    for name, gradient in gradients.items():
        wanted = expected[name]
        if name == "x" and sparse:
            wanted = wanted[layer_batch(case)["x"] != 0]
        assert gradient.dtype == dtype
        errors[name] = largest_error(gradient, wanted)
    assert set(gradients) >= {name for name in expected if name not in ("x", "target")}
    # what models share is rounded in each of them before it is summed
    rounded = 2 if case.shared and dtype == torch.bfloat16 else 1
    assert max(errors.values()) <= rounded * TOLERANCE[dtype], errors


@each_level
@each_case
def test_loss_and_every_gradient(case, level):
    with isa_level(level):
        for dtype in (torch.float64, torch.float32):
            assert_is_the_reference(case, dtype)
            assert_is_the_reference(case, dtype, inputs=False)  # may take another loop
            assert_is_the_reference(case, dtype, sparse=True)
            assert_is_the_reference(case, dtype, sparse=True, inputs=False)


@each_case
def test_bfloat16_is_rounded_once(case):
    assert_is_the_reference(case, torch.bfloat16)
    assert_is_the_reference(case, torch.bfloat16, sparse=True, inputs=False)


@each_level
@each_case
def test_output_and_every_gradient(case, level):
    model, x = layer_of(case), layer_batch(case)["x"]
    expected = layer_reference(case)[0]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = 0.05 if len(case.name) % 2 else 1.0  # few outputs with a gradient, or all
    grad *= torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)) < share
    wanted = _output_gradients(case, model, x, grad)
    with isa_level(level):
        for dtype in (torch.float64, torch.float32):
            for sparse in (False, True):
                found, output = _run_output(case, x, grad, dtype, sparse)
                errors = {"output": largest_error(output, expected)}
                for name, gradient in found.items():
                    value = wanted[name][x != 0] if name == "x" and sparse else wanted[name]
                    errors[name] = largest_error(gradient, value)
                assert max(errors.values()) <= TOLERANCE[dtype], (dtype, sparse, errors)


def _run_output(case, x, grad, dtype, sparse):
    model, given = layer_of(case, dtype), x.to(dtype, copy=True).requires_grad_()
    if sparse:
        given = tk.SparseBatch.from_dense(given.detach())
        given.value.requires_grad_()
    output = model(given)
    output.backward(grad.to(dtype))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found["x"] = given.value.grad if sparse else given.grad
    return found, output


def _output_gradients(case, model, x, grad):
    """By autograd, through the oracle's own formulas of the forward pass."""
    leaves = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    x = x.clone().requires_grad_()
    network = reference.network_of(model)
    activity = reference.forward(leaves, x, network)
    # slopes as the oracle has them: ReLU's at 0 is 0, of top-k the first of equal ones
    output = torch.relu(activity.pre_output) if network.output_activation == "relu" else activity.output
    gradients = torch.autograd.grad(output, [*leaves.values(), x], grad, allow_unused=True)
    if network.hidden_activation == "relu":
        slope = (activity.pre_hidden > 0).double()
        gradients = _with_hidden_slope(leaves, x, network, output, grad, slope)
    found = zip([*leaves, "x"], gradients, strict=True)
    return {
        name: torch.zeros_like(x if name == "x" else leaves[name]) if g is None else g for name, g in found
    }


def _with_hidden_slope(leaves, x, network, output, grad, slope):
    """clamp(min=0) has slope 1 at 0: autograd again with a ReLU in its place."""
    encoder = leaves["weight"] if "weight" in leaves else leaves["encoder"]
    decoder = leaves["weight"] if "weight" in leaves else leaves["decoder"].mT
    seen = x - leaves["bias"].unsqueeze(1) if network.centered else x
    codes = seen @ encoder.mT
    if "hidden_bias" in leaves:
        codes = codes + leaves["hidden_bias"].unsqueeze(1)
    z = torch.relu(codes) @ decoder
    if "bias" in leaves:
        z = z + leaves["bias"].unsqueeze(1)
    again = torch.relu(z) if network.output_activation == "relu" else z
    return torch.autograd.grad(again, [*leaves.values(), x], grad, allow_unused=True)


@settings(max_examples=40)
@given(
    n=st.integers(1, 150),
    m=st.integers(1, 40),
    models=st.integers(1, 3),
    batch=st.integers(1, 90),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tied=st.booleans(),
    hidden=st.sampled_from(["none", "relu"]),
    level=st.sampled_from(LEVELS),
)
def test_any_shape(n, m, models, batch, density, tied, hidden, level):
    from cases import LayerCase

    case = LayerCase("any", n, m, models, batch, density, tied, {"hidden_activation": hidden})
    with isa_level(level):
        assert_is_the_reference(case, torch.float32, inputs=False)
        assert_is_the_reference(case, torch.float64, sparse=True)


@each_case
def test_bits_do_not_depend_on_threads(case):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss, gradients = loss_and_gradients(case, torch.float32, inputs=False)
        found.append([loss.detach(), *gradients.values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@each_level
@pytest.mark.parametrize("shape", [(5, 2), (7, 4), (20, 3), (70, 20)])
@pytest.mark.parametrize("dense_neighbour", [False, True])
def test_bits_of_a_model_do_not_depend_on_its_neighbours(shape, dense_neighbour, level):
    """Nor on how many there are, nor on whether one of them has no zeros in its input."""
    n, m = shape
    x = torch.rand(37, 65, n) * (torch.rand(37, 65, n) < 0.05)
    x[4, :3] = 0.5
    if dense_neighbour:
        x[3] = torch.rand(65, n)
    stack = tk.TiedAutoencoder(n, m, 37)
    with isa_level(level), torch.no_grad():
        stack.bias.normal_()
    with isa_level(level):
        loss = stack.loss(x)
        loss.sum().backward()
        for i in (4, 36):
            alone = stack[i]
            loss_alone = alone.loss(x[i : i + 1])
            loss_alone.sum().backward()
            assert torch.equal(loss_alone[0], loss[i])
            assert torch.equal(alone.weight.grad[0], stack.weight.grad[i])
            assert torch.equal(alone.bias.grad[0], stack.bias.grad[i])


@each_level
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_a_small_stack_has_the_same_bits_from_entries(density, level):
    x = torch.randn(21, 65, 5) * (torch.rand(21, 65, 5) < density)
    found = []
    with isa_level(level):
        for given in (x, tk.SparseBatch.from_dense(x)):
            model = tk.TiedAutoencoder(5, 2, 21)
            with torch.no_grad():
                model.bias.copy_(torch.linspace(-1, 1, 5).expand(21, 5))
            loss = model.loss(given)
            loss.sum().backward()
            found.append((loss.detach(), model.weight.grad, model.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_team_shares_one_large_model():
    """Work enough for a team, in several chunks, and in several segments of rows."""
    x = (torch.rand(9000, 200) * (torch.rand(9000, 200) < 0.05)).double()
    for model in (tk.TiedAutoencoder(200, 24).double(), tk.Autoencoder(200, 24).double()):
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            model.zero_grad()
            loss = model.loss(x)
            loss.sum().backward()
            found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        expected_loss, expected = reference.loss_and_gradients(reference.parameters_of(model), x)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert largest_error(found[0][0], expected_loss) < 1e-12
        for (name, _), gradient in zip(model.named_parameters(), found[0][1:], strict=True):
            assert largest_error(gradient, expected[name]) < 1e-12


def test_top_k_takes_the_first_of_equal_codes():
    model = tk.TiedAutoencoder(2, 4, hidden_activation="topk", top_k=2, output_activation="none", init=0.0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[[1.0, 0], [2, 0], [2, 0], [2, 1]]]))
    assert model(torch.tensor([[1.0, 0.0]])).tolist() == [[[8.0, 0.0]]]


@pytest.mark.parametrize("shape", [(5, 2), (70, 20), (70, 3)])
@pytest.mark.parametrize("hidden", ["none", "relu"])
def test_nan_shows_as_in_pytorch(shape, hidden):
    n, m = shape
    model, x = tk.TiedAutoencoder(n, m, 2, hidden_activation=hidden), torch.rand(2, 8, n)
    x[0, 3, 1] = float("nan")
    act = torch.relu if hidden == "relu" else lambda value: value
    leaves = [model.weight.detach().requires_grad_(), model.bias.detach().requires_grad_()]
    y = torch.relu(act(x @ leaves[0].mT) @ leaves[0] + leaves[1].unsqueeze(1))
    expected = ((x - y) ** 2).mean(dim=(1, 2))
    expected.sum().backward()
    loss = model.loss(x)
    loss.sum().backward()
    assert torch.equal(loss.isnan(), expected.isnan())
    assert torch.equal(model(x).isnan(), y.isnan())
    assert torch.equal(model.weight.grad.isnan(), leaves[0].grad.isnan())
    assert torch.equal(model.bias.grad.isnan(), leaves[1].grad.isnan())


def test_all_loops_are_tested():
    loops, params = set(), _native.LayerParams()
    params.task, params.tied, params.output_activation = 1, True, 1
    for case in LAYER_SHAPES:
        for params.is_double in (False, True):
            params.n_features, params.n_hidden = case.n_features, case.n_hidden
            loops.add(_native.layer_regime(params))
    assert loops == {"models", "columns", "samples", "blocks"}


@pytest.mark.sanitize
@each_level
@pytest.mark.parametrize("case", LAYER_SHAPES[:16], ids=lambda case: case.name)
def test_reads_and_writes_only_what_it_owns(case, level):
    with isa_level(level):
        for dtype in (torch.float32, torch.float64):
            for sparse in (False, True):
                loss_and_gradients(case, dtype, sparse)
                loss_and_gradients(case, dtype, sparse, inputs=False)
            layer_of(case, dtype)(layer_batch(case, dtype)["x"]).sum().backward()


def test_functions_take_plain_tensors():
    x, weight = torch.eye(3).unsqueeze(0), torch.ones(2, 1, 3)
    assert autoencoder_output(x, weight).tolist() == [torch.ones(3, 3).tolist()] * 2
    assert autoencoder_loss(x, weight, importance=torch.ones(1, 3), reduction="sum").tolist() == [2.0, 2.0]


@each_level
@pytest.mark.parametrize("batch", [4, 128, 600])
def test_a_loss_beyond_float32_is_infinite_as_in_pytorch(batch, level):
    x = torch.zeros(1, batch, 5)
    x[0, 1, 2], x[0, 2, 1] = 1e25, 1.0
    all_over = torch.full((1, batch, 5), 1.8e18)
    with isa_level(level):
        one = autoencoder_loss(x, torch.ones(3, 2, 5), bias=torch.zeros(3, 5), importance=torch.ones(1, 5))
        many = autoencoder_loss(
            all_over, torch.zeros(2, 1, 5), importance=torch.full((1, 5), 20.0), reduction="sum"
        )
    assert one.isinf().all()
    assert many.isinf().all() if batch > 5 else not many.isnan().any()


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0)])
@pytest.mark.parametrize("batch", [4, 600])
def test_weights_of_nothing_are_refused(shape, batch):
    x, weight = torch.rand(1, batch, shape[2]), torch.rand(shape)
    with pytest.raises(ValueError, match="weight must have the shape .* at least one hidden unit"):
        autoencoder_output(x, weight)
    with pytest.raises(ValueError, match="weight must have the shape .* at least one hidden unit"):
        autoencoder_loss(x, weight, importance=torch.ones(1, shape[2]))
