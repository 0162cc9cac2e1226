"""On a GPU: the fused layer against the oracle; graphs, streams, autocast, TF32, torch.compile."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from cases import LAYER_CASES, LayerCase
from gpu_kit import DEVICE, on_cuda
from gpu_kit import same_bits as same_float_bits
from kit import largest_error, layer_batch, layer_of, layer_reference
from layer_kit import LARGE_TOLERANCE, TOLERANCE, case_errors

import toykern as tk
from toykern import _native
from toykern.network import Objective
from toykern.ops import tied_autoencoder_cuda_call
from toykern.ops import tied_autoencoder_large as large_models

pytestmark = pytest.mark.gpu
# What the layer knows, by models that go through products: the shared list has none of those with options.
PRODUCTS = [
    LayerCase(f"large, {name}", 70, 300, 2, 41, 0.1, tied, network, loss, name == "a target")
    for name, tied, network, loss in (
        ("gelu and softplus", False,
         {"hidden_activation": "gelu", "output_activation": "softplus", "hidden_bias": True},
         {"l1": 0.25, "importance": "each"}),
        ("leaky ReLU", True,
         {"hidden_activation": "leaky_relu", "output_activation": "leaky_relu", "negative_slope": 0.25},
         {"l1": 0.25}),
        ("top-k", True, {"hidden_activation": "topk", "top_k": 5, "hidden_bias": True, "centered": True}, {}),
        ("sparse autoencoder", False,
         {"centered": True, "hidden_bias": True, "hidden_activation": "relu", "output_activation": "none"},
         {"l1": 0.25, "loss_reduction": "sum"}),
        ("a target", True, {"hidden_activation": "relu", "bias": False}, {}),
        ("|x|", False, {"output_activation": "gelu"}, {"target": "abs"}),
    )
]  # fmt: skip
MANY = {"hidden_activation": "topk", "top_k": 7, "hidden_bias": True}
PRODUCTS.append(LayerCase("large, top-k of many", 40, 1300, 1, 9, 0.3, True, MANY, {"l1": 0.25}))
each_case = pytest.mark.parametrize("case", [*LAYER_CASES, *PRODUCTS], ids=lambda case: case.name)

# Each way, tied or not: small, and large by products; sizes that no tile divides.
SMALL = LayerCase("small", 5, 2, 300, 128, 0.05)
MIDDLE = LayerCase("middle", 60, 20, 4, 700, 0.1, False, {"hidden_activation": "relu", "hidden_bias": True})
LARGE = LayerCase("large", 1500, 130, 1, 300, 0.02)
WIDE = LayerCase("wide", 333, 700, 2, 65, 0.3, False, {"hidden_activation": "topk", "top_k": 9}, {"l1": 0.1})
KINDS = [SMALL, MIDDLE, LARGE, WIDE]
each_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def strict_products():
    """Strict float32 unless a test says otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def inputs(case, dtype=torch.float32, sparse=False):
    """(module, batch) on the device."""
    x = layer_batch(case, dtype)["x"].to(DEVICE)
    return layer_of(case, dtype).to(DEVICE), tk.SparseBatch.from_dense(x) if sparse else x


def same_bits(a, b):
    """Also of bfloat16, which NumPy does not know and float32 holds exactly."""
    return a.dtype == b.dtype and same_float_bits(a.float(), b.float())


def run(model, x, **options):
    """[loss, gradients …] of a fresh forward and backward pass."""
    model.zero_grad()
    loss = model.loss(x, **options)
    loss.sum().backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_loss_and_every_gradient(case, dtype, sparse):
    small = _native.layer_is_stacked(case.n_features, case.n_hidden, case.tied)
    allowed = (TOLERANCE if small else LARGE_TOLERANCE)[dtype] * (2 if case.shared else 1)
    for needs_inputs in (False, True):
        errors = case_errors(case, dtype, sparse=sparse, inputs=needs_inputs, device=DEVICE)
        assert max(errors.values()) <= allowed, errors


@each_case
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_output_and_its_backward(case, sparse):
    """Against the CPU's kernels in float64."""
    expected = layer_reference(case)[0]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, DEVICE)):
        model, x = layer_of(case, dtype).to(device), layer_batch(case, dtype)["x"].to(device)
        given = tk.SparseBatch.from_dense(x) if sparse else x
        leaf = (given.value if sparse else x).requires_grad_()
        output = model(given)
        output.backward(grad.to(output))
        found.append([output.detach().cpu(), leaf.grad.cpu(), *(p.grad.cpu() for p in model.parameters())])
    assert largest_error(found[0][0], expected) < 1e-12
    for wanted, value in zip(*found, strict=True):
        assert largest_error(value, wanted) <= TOLERANCE[torch.float32]


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_the_same_bits_again(case, dtype, sparse):
    model, x = inputs(case, dtype, sparse)
    first = run(model, x)
    for _ in range(3):
        assert all(same_bits(a, b) for a, b in zip(first, run(model, x), strict=True))


def test_bits_of_a_small_model_do_not_depend_on_its_neighbours():
    model, x = inputs(SMALL)
    stack = run(model, x)
    alone = run(model[7], x[7:8])
    assert all(same_bits(a[7:8], b) for a, b in zip(stack, alone, strict=True))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_what_is_not_a_number_stays_with_its_model(case, dtype, sparse):
    case = dataclasses.replace(case, n_models=2, batch_size=min(case.batch_size, 65))
    model, x = inputs(case, dtype)
    given = tk.SparseBatch.from_dense(x) if sparse else x
    before = run(model, given)
    with torch.no_grad():
        x[1] = torch.where(x[1] != 0, torch.nan, 0)
        given = tk.SparseBatch.from_dense(x) if sparse else x
        output = model(given)
    after = run(model, given)
    for a, b in zip(before, after, strict=True):
        assert same_bits(a[0], b[0]) and not bool(a.isnan().any())
    assert bool(output[1].isnan().any()) and not bool(output[0].isnan().any())
    assert bool(after[0][1].isnan()) and all(bool(gradient[1].isnan().any()) for gradient in after[1:])


@on_cuda
@each_kind
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_a_captured_graph_does_the_same(case, sparse):
    model, x = inputs(case, sparse=sparse)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(model, x)
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = model.loss(x)
        loss.sum().backward()
    with torch.no_grad():
        (x.value if sparse else x).mul_(0.5)
    graph.replay()
    found = [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]
    expected = run(model, x)
    for a, b in zip(found, expected, strict=True):
        assert largest_error(a.cpu(), b.double().cpu()) < 1e-5


@on_cuda
@each_kind
def test_work_goes_to_the_current_stream(case):
    """Behind a long wait on a stream of its own; the default stream must not have to wait for it."""
    model, x = inputs(case)
    expected, late = run(model, x), torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = run(model, late)
    stream.synchronize()
    assert all(same_bits(a, b) for a, b in zip(expected, found, strict=True))


@each_kind
def test_autocast_is_bfloat16(case):
    model, x = inputs(case)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss, output = model.loss(x, **case.loss), model(x)
    loss.sum().backward()
    assert output.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    cast = copy.deepcopy(model).to(torch.bfloat16)
    assert same_bits(cast.loss(x.to(torch.bfloat16), **case.loss), loss)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@on_cuda
def test_tf32_is_torchs_own_switch():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no TF32")
    case = LayerCase("tf32", 2048, 512, 1, 512, 1.0)
    expected = layer_reference(case)[1]
    model, x = inputs(case)
    errors = []
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        errors.append(largest_error(model.loss(x).detach().cpu(), expected))
    assert errors[0] < 3e-6
    assert errors[1] < 1e-2
    small, batch = inputs(SMALL)  # no product of torch's in there
    torch.backends.cuda.matmul.allow_tf32 = False
    strict = run(small, batch)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert all(same_bits(a, b) for a, b in zip(strict, run(small, batch), strict=True))


@each_kind
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_compile_without_graph_breaks(case, sparse):
    model, x = inputs(case, sparse=sparse)
    expected = run(model, x)

    @torch.compile(fullgraph=True, backend="aot_eager")  # graphs are looked at, not kernels compiled
    def loss_of(batch):
        return model.loss(batch).sum()

    model.zero_grad()
    loss_of(x).backward()
    for parameter, gradient in zip(model.parameters(), expected[1:], strict=True):
        assert largest_error(parameter.grad.cpu(), gradient.double().cpu()) < 1e-5


@each_kind
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "entries"])
def test_opcheck(case, sparse):
    model, x = inputs(case, sparse=sparse)
    options = model._options()
    names = [getattr(model, name).detach() for name in model.weight_names]
    values = x.value if sparse else x
    entries = (x.row_start, x.feature) if sparse else (None, None)
    hidden = None if model.hidden_bias is None else model.hidden_bias.detach()
    weights = (names[0], names[1] if len(names) > 1 else None, model.bias.detach(), hidden)
    network = (values, *entries, case.batch_size, *weights, *options.arguments())
    importance = torch.ones(1, case.n_features, device=DEVICE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.toykern.tied_autoencoder, network, test_utils=checks)
    loss = (*network, importance, None, None, *Objective().objective(), True, True, False)
    torch.library.opcheck(torch.ops.toykern.tied_autoencoder_loss, loss, test_utils=checks)
    grad = torch.ones(case.n_models, case.batch_size, case.n_features, device=DEVICE)
    backward = (grad, None, *network, True, True)
    torch.library.opcheck(torch.ops.toykern.tied_autoencoder_backward, backward, test_utils=checks)


@on_cuda
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "rows"), [(2048, None), (1500, 64)], ids=["whole", "in pieces"])
def test_few_active_outputs_are_taken_one_by_one(n, rows, dtype, tied, monkeypatch):
    """A bias far below 0 leaves few outputs on; both ways give the same gradients. In pieces of the batch,
    as where memory is short, a piece's gradients are added to those before."""
    case = LayerCase("few", n, 130, 1, 200, 0.02, tied)
    model, x = inputs(case, dtype)
    if rows is not None:
        whole = large_models.plan

        def cut(*arguments, **options):
            return dataclasses.replace(whole(*arguments, **options), rows=rows)

        monkeypatch.setattr(large_models, "plan", cut)
    with torch.no_grad():
        model.bias.fill_(-model.forward(x).std() * 4)
    monkeypatch.setattr(large_models, "ACTIVE_WORK", 0)  # looks at the share even of little work
    called = []
    true_tile = tied_autoencoder_cuda_call.Kernels.tile

    def tile(kernels, params, kernel):
        called.append(kernel)
        true_tile(kernels, params, kernel)

    monkeypatch.setattr(tied_autoencoder_cuda_call.Kernels, "tile", tile)
    found = []
    for share in (1.0, -1.0):
        monkeypatch.setattr(large_models, "ACTIVE_SHARE", dict.fromkeys(large_models.ACTIVE_SHARE, share))
        called.clear()
        found.append(run(model, x))
        assert (large_models._ACTIVE_CODES in called) is (share > 0)
    allowed = 1e-5 if dtype == torch.float32 else LARGE_TOLERANCE[dtype]
    for a, b in zip(*found, strict=True):
        assert largest_error(a.cpu(), b.double().cpu()) < allowed


@on_cuda
@pytest.mark.parametrize(
    ("models", "batch", "n", "m", "sparse", "mib"),
    [
        (1, 1024, 262_144, 512, True, 256),
        (1, 1024, 262_144, 512, False, 256),
        (1, 4096, 1 << 20, 512, True, 8192),
    ],
)
def test_peak_memory(models, batch, n, m, sparse, mib):
    """Beyond weights, gradients and input; cuBLAS' own workspace, up to 32 MiB, is made before."""
    needed = 4 * n * m * 2 + (0 if sparse else 4 * batch * n) + (mib << 20) + (1 << 30)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory")
    model = tk.TiedAutoencoder(4, 2, models, device=DEVICE)
    model.weight = torch.nn.Parameter(torch.randn(models, m, n, device=DEVICE) * 0.01)
    model.bias = torch.nn.Parameter(torch.full((models, n), -0.1, device=DEVICE))
    model.n_features, model.n_hidden = n, m
    if sparse:
        data = tk.SparseFeatures(n, 1e-3)
        x = data.sample(0, batch, layout="sparse").to(DEVICE)
    else:
        x = torch.rand(1, batch, n, device=DEVICE).sub_(0.999).clamp_(min=0)
    run(model, x)
    model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = model.loss(x)
    loss.sum().backward()
    torch.cuda.synchronize()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    assert bool(torch.isfinite(loss).all())
    assert torch.cuda.max_memory_allocated() - before - gradients <= mib << 20


@on_cuda
def test_what_is_elsewhere_is_named_and_harms_nothing():
    model, x = inputs(SMALL)
    expected = run(model, x)
    for call in (
        lambda: model(x.cpu()),
        lambda: model.loss(x, target=x.cpu()),
        lambda: model(tk.SparseBatch.from_dense(x.cpu())),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"device of the weights|on the device"):
            call()
    with pytest.raises(TypeError, match="float32 or bfloat16 on CUDA"):
        copy.deepcopy(model).double()(x.double())
    batch = tk.SparseBatch.from_dense(x)
    batch.feature = batch.feature + 1000  # past the check of the constructor
    assert model.loss(batch).isnan().any()
    assert all(same_bits(a, b) for a, b in zip(expected, run(model, x), strict=True))


@on_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    model, x = inputs(SMALL)
    expected = run(model, x)
    found = run(copy.deepcopy(model).to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    if torch.cuda.get_device_capability(0) == torch.cuda.get_device_capability(1):
        assert all(same_bits(a, b) for a, b in zip(expected, found, strict=True))


def test_backward_scales_and_leaves_what_it_saved():
    model, x = inputs(SMALL)
    once = run(model, x)[1:]
    loss = model.loss(x)
    weights = torch.linspace(-2, 2, SMALL.n_models, device=DEVICE)
    for _ in range(2):
        model.zero_grad()
        (loss * weights).sum().backward(retain_graph=True)
        for parameter, gradient in zip(model.parameters(), once, strict=True):
            scaled = gradient * weights.view(-1, *[1] * (gradient.ndim - 1))
            torch.testing.assert_close(parameter.grad, scaled)
