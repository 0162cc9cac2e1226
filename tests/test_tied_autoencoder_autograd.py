"""The layer as PyTorch expects one: gradients, torch.compile, opcheck, autocast, DDP, and what it refuses."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

import toykern as tk
from toykern.ops import Options, autoencoder_loss, autoencoder_output

SAE = {"hidden_activation": "relu", "output_activation": "none", "centered": True, "hidden_bias": True}
KINDS = [
    (tk.TiedAutoencoder, {}),
    (tk.Autoencoder, {"hidden_activation": "relu"}),
    (tk.TiedAutoencoder, SAE),
    (tk.TiedAutoencoder, {"hidden_activation": "topk", "top_k": 2, "output_activation": "gelu"}),
]
each_kind = pytest.mark.parametrize(("kind", "network"), KINDS, ids=["tied", "untied", "sae", "topk"])


def _model(kind=tk.TiedAutoencoder, n=6, m=3, models=2, **network):
    model = kind(n, m, models, **network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def _batch(*shape, density=0.5):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def _gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# ---- derivatives -------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("sparse", [False, True])
def test_gradcheck(kind, network, sparse):
    model = _model(kind, **network).double()
    names = [name for name, _ in model.named_parameters()]
    x = _batch(2, 5, 6).double()
    batch = tk.SparseBatch.from_dense(x)
    leaves = [batch.value if sparse else x, *model.parameters()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    def evaluate(values, *parameters):
        given = values
        if sparse:
            given = copy.copy(batch)
            given.value = values
        swapped = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(_Both(model), swapped, (given,))

    assert torch.autograd.gradcheck(evaluate, leaves)


class _Both(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x), self.model.loss(x, importance=2.0, l1=0.1)


@pytest.mark.parametrize("call", ["loss", "forward"])
def test_a_second_derivative_is_a_clear_error(call):
    model, x = _model(), _batch(2, 5, 6)
    first = model.loss(x).sum() if call == "loss" else model(x).sum()
    (gradient,) = torch.autograd.grad(first, model.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_backward_scales_and_leaves_what_it_saved():
    model, x = _model(), _batch(2, 8, 6)
    model.loss(x).sum().backward()
    once = _gradients(model)
    model.zero_grad()
    loss = model.loss(x)
    weights = torch.tensor([2.0, -3.0])
    for repeat in (1, 2):
        (loss * weights).sum().backward(retain_graph=True)
        for name, gradient in _gradients(model).items():
            expected = repeat * once[name] * weights.view(-1, *[1] * (gradient.ndim - 1))
            torch.testing.assert_close(gradient, expected)
    model.zero_grad()
    for repeat in (1, 2):  # ones take the saved tensors as they are
        loss.sum().backward(retain_graph=True)
        for name, gradient in _gradients(model).items():
            torch.testing.assert_close(gradient, repeat * once[name])
    model.zero_grad()
    loss.sum().backward()
    for name, gradient in _gradients(model).items():
        assert torch.equal(gradient, once[name])


def test_scales_of_entries_follow_their_model():
    model = _model()
    x = _batch(2, 5, 6)
    dense, batch = x.clone().requires_grad_(), tk.SparseBatch.from_dense(x)
    batch.value.requires_grad_()
    weights = torch.tensor([2.0, -3.0])
    (model.loss(dense) * weights).sum().backward()
    (model.loss(batch) * weights).sum().backward()
    torch.testing.assert_close(batch.value.grad, dense.grad[x != 0])


def test_entries_shared_by_all_models():
    model, x = _model(models=3), _batch(5, 6)
    batch = tk.SparseBatch.from_dense(x)
    batch.value.requires_grad_()
    dense = x.clone().requires_grad_()
    torch.testing.assert_close(model(batch), model(dense))
    (model.loss(batch) * torch.arange(3)).sum().backward()
    (model.loss(dense) * torch.arange(3)).sum().backward()
    torch.testing.assert_close(batch.value.grad, dense.grad[x != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("models", "shape"), [(3, (5, 6)), (3, (3, 5, 6)), (1, (5, 6)), (2, (0, 6))])
def test_entries_that_leave_nothing_out_are_as_good_as_a_dense_x(models, shape, dtype):
    model, x = _model(models=models).to(dtype), (torch.rand(shape) + 0.5).to(dtype)
    batch, dense = tk.SparseBatch.from_dense(x), x.clone().requires_grad_()
    batch.value.requires_grad_()
    weights = torch.arange(1.0, models * 6 + 1).view(models, 1, 6).to(dtype)
    for given in (batch, dense):
        (model(given) * weights).sum().backward()
    assert torch.equal(model(batch), model(dense))
    assert torch.equal(batch.value.grad, dense.grad.flatten())
    if x.numel():
        batch.value.grad = dense.grad = None
        for given in (batch, dense):
            (model.loss(given) * torch.arange(1.0, models + 1)).sum().backward()
        assert torch.equal(batch.value.grad, dense.grad.flatten())


def test_entries_that_left_nothing_out_and_were_changed_are_refused():
    model, batch = _model(models=1), tk.SparseBatch.from_dense(torch.rand(4, 6) + 0.5)
    batch.feature[-1] = 10**6
    for call in (model, model.loss):
        with pytest.raises(ValueError, match="feature"):
            call(batch)


@pytest.mark.parametrize("frozen", ["weight", "bias", "all"])
def test_frozen_parameters(frozen):
    model, x = _model(), _batch(2, 5, 6)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all"))
    loss = model.loss(x)
    assert loss.requires_grad == (frozen != "all")
    if frozen != "all":
        loss.sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == [frozen]
    given = x.requires_grad_()
    model.loss(given).sum().backward()
    assert given.grad.any()


# ---- operators ---------------------------------------------------------------------------------------------


def _network_arguments(sparse, decoder=False):
    x, weight = _batch(2, 5, 6), torch.randn(2, 3, 6)
    entries = (x, None, None)
    if sparse:
        batch = tk.SparseBatch.from_dense(x)
        entries = (batch.value, batch.row_start, batch.feature)
    other = torch.randn(2, 6, 3) if decoder else None
    return (*entries, 5, weight, other, torch.randn(2, 6), torch.randn(2, 3), "relu", "gelu", 0, True, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("decoder", [False, True])
def test_opcheck(sparse, decoder):
    network = _network_arguments(sparse, decoder)
    ops = torch.ops.toykern
    torch.library.opcheck(ops.tied_autoencoder.default, network)
    grad = torch.randn(2, 5, 6)
    torch.library.opcheck(ops.tied_autoencoder_backward.default, (grad, None, *network, True, True))
    torch.library.opcheck(ops.tied_autoencoder_backward.default, (grad, None, *network, False, False))
    loss = (torch.ones(1, 6), torch.tensor([0.1]), None, "identity", "mean", "squared_error")
    torch.library.opcheck(ops.tied_autoencoder_loss.default, (*network, *loss, True, True, False))
    target = (torch.ones(2, 6), None, torch.randn(2, 5, 6), "tensor", "sum", "squared_error")
    torch.library.opcheck(ops.tied_autoencoder_loss.default, (*network, *target, True, False, True))


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("sparse", [False, True])
def test_compiles_into_one_graph(kind, network, sparse):
    model, x = _model(kind, **network), _batch(2, 5, 6)
    given = tk.SparseBatch.from_dense(x) if sparse else x

    def step(values):
        return model.loss(values, importance=torch.ones(6), l1=0.1).sum() + model(values).square().mean()

    expected = step(given)
    expected.backward()
    wanted = _gradients(model)
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = compiled(given)
    found.backward()
    torch.testing.assert_close(found, expected)
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.slow
def test_compiles_with_inductor():
    model, x = _model(), _batch(2, 5, 6)
    model.loss(x).sum().backward()
    wanted = _gradients(model)
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model.loss, fullgraph=True)(x).sum().backward()
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name])


# ---- autocast, copies, DDP ---------------------------------------------------------------------------------


@each_kind
def test_autocast_is_bfloat16_storage_with_float32_sums(kind, network):
    model, x = _model(kind, 40, 9, **network), _batch(2, 33, 40)
    rounded = copy.deepcopy(model).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, loss = model(x), model.loss(x)
    assert (output.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(output, rounded(x.bfloat16()))
    assert torch.equal(loss, rounded.loss(x.bfloat16()))
    loss.sum().backward()
    rounded.loss(x.bfloat16()).sum().backward()
    for (name, found), (_, wanted) in zip(model.named_parameters(), rounded.named_parameters(), strict=True):
        assert found.grad.dtype == torch.float32, name
        assert torch.equal(found.grad, wanted.grad.float()), name


def test_autocast_leaves_float64_alone():
    model, x = _model().double(), _batch(2, 5, 6).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.loss(x), model.loss(x))
        assert model(x).dtype == torch.float64


@each_kind
def test_copies_and_state_dicts_of_the_new_options(kind, network):
    model, x = _model(kind, **network), _batch(2, 5, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model[:])):
        assert torch.equal(other(x), model(x))
    fresh = tk.nn.model_from_config(model.config(), init=0.0)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.loss(x), model.loss(x))
    assert torch.equal(model[1](x[1:]), model(x)[1:])
    assert all(f"{name}={value!r}" in repr(model) for name, value in network.items() if name != "hidden_bias")


DDP = """
import sys, torch, torch.distributed as dist, toykern as tk
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = tk.TiedAutoencoder(6, 3, 2)
    def forward(self, x):
        return self.model.loss(x)
module = Loss()
parallel = torch.nn.parallel.DistributedDataParallel(module)
x = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0))
parallel(x[:, 4 * rank : 4 * rank + 4]).sum().backward()
if rank == 0:
    whole = Loss()
    whole(x).sum().backward()
    for found, wanted in zip(module.parameters(), whole.parameters()):
        torch.testing.assert_close(found.grad, wanted.grad)
    print("same gradients")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DDP]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    results = [process.communicate(timeout=1800) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert "same gradients" in results[0][0]


# ---- layouts -----------------------------------------------------------------------------------------------


def test_expanded_gradients_and_targets():
    model, x = _model(), _batch(2, 5, 6)
    model(x).sum().backward()  # the gradient of a sum is one number, expanded
    expanded = _gradients(model)
    model.zero_grad()
    model(x).backward(torch.ones(2, 5, 6))
    assert all(torch.equal(gradient, expanded[name]) for name, gradient in _gradients(model).items())
    row = _batch(6)
    assert torch.equal(model.loss(x, target=row.expand(2, 5, 6)), model.loss(x, target=row.repeat(2, 5, 1)))


def test_parameters_that_are_not_contiguous():
    model, x = _model(), _batch(2, 5, 6)
    expected = model.loss(x)
    strided = model.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
    model.weight = torch.nn.Parameter(strided)
    assert not model.weight.is_contiguous()
    loss = model.loss(x)
    loss.sum().backward()
    assert torch.equal(loss, expected)
    assert model.weight.grad.shape == model.weight.shape


def test_an_empty_batch_has_zero_gradients():
    model = _model()
    for x in (torch.zeros(2, 0, 6), tk.SparseBatch.from_dense(torch.zeros(2, 0, 6))):
        output = model(x)
        assert output.shape == (2, 0, 6)
        output.sum().backward()
        assert not any(gradient.any() for gradient in _gradients(model).values())


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden_activation": "topk"}, ValueError, "top_k must be given"),
        (
            {"hidden_activation": "topk", "top_k": 4},
            ValueError,
            "top_k must be an integer from 1 to 3, not 4",
        ),
        (
            {"hidden_activation": "topk", "top_k": 0},
            ValueError,
            "top_k must be an integer from 1 to 3, not 0",
        ),
        ({"top_k": 2}, ValueError, "top_k is for hidden_activation='topk' only"),
        ({"centered": True, "bias": False}, ValueError, "centered .* needs bias=True"),
        ({"centered": 1}, TypeError, "centered must be True or False"),
        ({"hidden_bias": None}, TypeError, "hidden_bias must be True or False"),
    ],
)
def test_bad_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        tk.TiedAutoencoder(6, 3, **arguments)


@pytest.mark.parametrize(
    ("l1", "error", "message"),
    [
        (-1.0, ValueError, "l1 must be a finite number at least 0"),
        (float("nan"), ValueError, "l1 must be"),
        ([0.1, -0.1], ValueError, "l1 must be at least 0"),
        ([0.1, 0.1, 0.1], ValueError, "l1 must be one number or have one entry for each of the 2 models"),
        ("much", TypeError, "l1 must be"),
    ],
)
def test_bad_l1(l1, error, message):
    with pytest.raises(error, match=message):
        _model().loss(_batch(2, 5, 6), l1=l1)


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="weight must be of one of the dtypes float32, float64, bfloat16"):
        _model().half()(_batch(2, 5, 6).half())


def test_no_kernel_for_a_device_says_which():
    model = _model().to("meta")
    assert model(torch.zeros(2, 5, 6, device="meta")).device.type == "meta"  # shapes alone
    with pytest.raises(RuntimeError, match="toykern::tied_autoencoder has no kernel for the device 'cuda'"):
        from toykern.ops.gate import check_device_of_kernels

        check_device_of_kernels("tied_autoencoder", torch.device("cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "weight must have the shape"),
        ({"x": torch.ones(2, 5, 7)}, r"x must have the shape \[2, 5, 6\] or \[1, 5, 6\]"),
        ({"x": torch.ones(2, 5, 6).double()}, "x must have the dtype of the weights"),
        ({"bias": torch.ones(2, 5)}, r"bias must have the shape \[2, 6\]"),
        ({"hidden_bias": torch.ones(3)}, r"hidden_bias must have the shape \[2, 3\]"),
        ({"decoder": torch.ones(2, 3, 6)}, r"decoder must have the shape \[2, 6, 3\]"),
        ({"options": Options("topk", top_k=9)}, "top_k must be an integer from 1 to 3, not 9"),
        ({"options": Options("tanh")}, "hidden_activation must be one of"),
    ],
)
def test_the_gate_names_the_argument(arguments, message):
    given = {"x": torch.ones(2, 5, 6), "weight": torch.ones(2, 3, 6), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        autoencoder_output(**given)
    with pytest.raises((ValueError, TypeError), match=message):
        autoencoder_loss(**given, importance=torch.ones(1, 6))


def test_entries_that_were_spoiled_do_not_reach_the_kernel():
    batch = tk.SparseBatch.from_dense(_batch(2, 5, 6))
    batch.feature[0] = 6
    with pytest.raises(ValueError, match=r"feature must lie in 0 … 5, the model's features \(sample 0\)"):
        _model().loss(batch)


def test_a_batch_for_other_models_is_refused():
    with pytest.raises(ValueError, match="x must be a SparseBatch of 2 models"):
        _model()(tk.SparseBatch.from_dense(_batch(3, 5, 6)))
    with pytest.raises(ValueError, match="x must be a SparseBatch"):
        _model()(tk.SparseBatch.from_dense(_batch(2, 5, 7)))


@pytest.mark.parametrize("network", [network for _, network in KINDS[2:]])
def test_the_trainer_evaluates_what_the_layer_computes(network):
    model, x = _model(**network), _batch(2, 40, 6)
    expected = model.loss(x).double()
    torch.testing.assert_close(tk.evaluate(model, tk.Dataset(x)), expected.detach(), rtol=1e-5, atol=1e-7)


def test_out_of_memory_says_what_was_asked():
    x = torch.zeros(1, 1).expand(2**20, 2**24)
    model = tk.TiedAutoencoder(1, 1)
    model.n_features = 2**24  # 64 TiB of output, of an input that needs none
    model.weight = torch.nn.Parameter(torch.zeros(1, 1, 2**24))
    model.bias = None
    with torch.no_grad(), pytest.raises((MemoryError, RuntimeError), match=r"MiB are needed|allocate"):
        model(x)
