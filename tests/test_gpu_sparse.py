"""Sparse layers on a GPU: every back end against the float64 oracle, bit for bit again, captured, moved."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_kit import DEVICE, on_cuda, same_bits
from sparse_cases import DTYPES, FLOORS, SPARSE_CASES, dense_results, problem_of
from test_device_sparse import GROUPED, WIDE, grouped_problem, width_of

import toykern as tk
from toykern.ops import backend_choice
from toykern.ops.sparse_index import SparseIndex
from toykern.ops.sparse_linear_device import sparse_linear_on_device

pytestmark = pytest.mark.gpu
BACKENDS = ("dense", "slots", "groups")
LARGE = [c for c in SPARSE_CASES if c.name in ("large", "long rows", "stack", "stack on one batch")]


def on_device(p):
    """Copies there: (x, values, bias, index, dy)."""
    x, values, dy, *of_index = (t.to(DEVICE, copy=True) for t in (p.x, p.values, p.dy, *p.index[1:]))
    bias = None if p.bias is None else p.bias.to(DEVICE, copy=True)
    return x, values, bias, SparseIndex(p.index.in_features, *of_index), dy


def results(case, p, backend, group=1, width=0):
    x, values, bias, index, dy = on_device(p)
    for t in (x, values, bias):
        if t is not None:
            t.requires_grad_()
    y = sparse_linear_on_device(x, values, bias, index, case.relu, 0, backend, group, width)
    y.backward(dy)
    made = {"y": y.detach(), "x": x.grad, "values": values.grad}
    made = made if bias is None else made | {"bias": bias.grad}
    return {name: tensor.cpu() for name, tensor in made.items()}


def assert_equals_the_oracle(case, p, dtype, backend, group=1, width=0):
    """As on the CPU: twice the error of plain PyTorch on the CPU, and a floor."""
    ours = results(case, p, backend, group, width)
    exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    if case.relu:
        agree = ((exact["y"] > 0) == (ours["y"] > 0)) & ((exact["y"] > 0) == (plain["y"] > 0))
        p.dy.masked_fill_(~agree, 0)
        ours = results(case, p, backend, group, width)
        exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    for name, expected in exact.items():
        error = (ours[name].double() - expected).abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item()
        allowed += 2 * FLOORS[dtype] * expected.abs().max().item()
        assert error <= allowed, f"{name}: {error:.3g}, allowed {allowed:.3g}"
    assert not ours["values"][~p.topology.occupied()].any()


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["auto", "dense", "slots"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SPARSE_CASES, *WIDE], ids=lambda c: c.name)
def test_equals_the_dense_oracle(case, dtype, backend):
    assert_equals_the_oracle(case, problem_of(case, dtype), dtype, backend)


@pytest.mark.parametrize("backend", ["auto", "groups"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "group"), GROUPED, ids=lambda c: getattr(c, "name", c))
def test_groups_equal_the_dense_oracle(case, group, dtype, backend):
    p = grouped_problem(case, group, dtype)
    assert_equals_the_oracle(case, p, dtype, backend, group, width_of(p))


def bits(tensor):
    return tensor.contiguous().view(torch.int16)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.name)
def test_the_same_bits_again(case, dtype):
    p = problem_of(case, dtype)
    for backend in ("dense", "slots"):
        first = results(case, p, backend)
        for _ in range(3):
            again = results(case, p, backend)
            for name, tensor in first.items():
                assert same_bits(bits(tensor), bits(again[name])), (backend, name)
    case, group = GROUPED[2]
    p = grouped_problem(case, group, dtype)
    first, again = (results(case, p, "groups", group, width_of(p)) for _ in range(2))
    assert all(same_bits(bits(first[name]), bits(again[name])) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    case, group = GROUPED[4]
    p = grouped_problem(case, group, torch.float64)
    x, values, bias, index, _ = on_device(p)
    live = p.topology.occupied().to(DEVICE)
    inputs = [t.requires_grad_() for t in (x, values, bias)]

    def product(x, values, bias):
        return sparse_linear_on_device(x, values * live, bias, index, False, 0, backend, group, width_of(p))

    assert torch.autograd.gradcheck(product, inputs, nondet_tol=0.0)


def layer_on(device, backend, group=1, **options):
    return tk.SparseLinear(
        96, 64, fan_in=12, group=group, activation="relu", seed=3, device=device, backend=backend, **options
    )


@on_cuda
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_step_in_a_cuda_graph_and_a_topology_that_moves_under_it(backend):
    group = 16 if backend == "groups" else 1
    x, target = torch.randn(70, 96, device=DEVICE), torch.randn(70, 64, device=DEVICE)

    def made():
        layer = layer_on(DEVICE, backend, group)
        return layer, torch.optim.Adam(layer.parameters(), lr=1e-2, capturable=True)

    def step(layer, optimizer):
        optimizer.zero_grad(set_to_none=False)
        (layer(x) - target).square().mean().backward()
        optimizer.step()

    captured, eager = made(), made()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*captured)
    for _ in range(3):
        step(*eager)
    for update in range(3):
        for _ in range(4):
            graph.replay()
            step(*eager)
        torch.testing.assert_close(captured[0].values, eager[0].values, rtol=1e-4, atol=1e-6)
        if update == 2:
            break
        # The connections move, and the graph goes on with those there are now.
        kind = tk.sparse.ConstantFanIn if group > 1 else tk.sparse.PruneAndGrow
        recipe = kind(grow=tk.sparse.RandomGrowth(), interval=1, end=100, seed=update)
        before = captured[0].topology
        assert recipe.attach(*captured).step().dropped > 0
        assert captured[0].topology != before
        for theirs, ours in zip(eager, captured, strict=True):
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))


@pytest.mark.parametrize("recipe", [tk.SET, tk.RigL, tk.SRigL, tk.GSE], ids=lambda r: r.__name__)
@pytest.mark.parametrize(("backend", "group"), [("dense", 1), ("slots", 1), ("groups", 16)])
def test_updates_choose_what_they_choose_on_the_cpu(recipe, backend, group):
    """The same batches in float64, so that rounding does not decide; values, moments and choices follow."""
    made = []
    for device in ("cpu", DEVICE):
        layer = layer_on(device, backend if device != "cpu" else "auto", group, dtype=torch.float64)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        topology = recipe(interval=3, end=100).attach(layer, optimizer)
        generator = torch.Generator().manual_seed(1)
        for _ in range(9):
            x = torch.randn(50, 96, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            (layer(x.to(device)) - x[:, :64].abs().to(device)).square().mean().backward()
            optimizer.step()
            topology.step()
        assert topology.updates == 3 and topology.history[-1].dropped > 0
        assert layer.column.device.type == torch.device(device).type
        made.append((layer, optimizer))
    (cpu, cpu_optimizer), (gpu, gpu_optimizer) = made
    assert gpu.topology.to("cpu") == cpu.topology
    torch.testing.assert_close(gpu.values.cpu(), cpu.values, rtol=1e-9, atol=1e-12)
    for name in ("exp_avg", "exp_avg_sq"):
        theirs = cpu_optimizer.state[cpu.values][name]
        torch.testing.assert_close(gpu_optimizer.state[gpu.values][name].cpu(), theirs, rtol=1e-9, atol=1e-15)
    for name in ("column_start", "row", "slot"):
        assert torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)), name


@pytest.mark.parametrize("backend", ["dense", "slots"])
def test_the_tied_autoencoder(backend):
    def made(device, backend):
        return tk.SparseTiedAutoencoder(40, 20, density=0.3, n_models=3, device=device, backend=backend)

    x = torch.rand(60, 40)
    cpu, gpu = made("cpu", "auto"), made(DEVICE, backend)
    for model in (cpu, gpu):
        model.capture_gradient()
        model.loss(x.to(model.values.device)).sum().backward()
    torch.testing.assert_close(gpu.values.grad.cpu(), cpu.values.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gpu.bias.grad.cpu(), cpu.bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gpu.dense_gradient().cpu(), cpu.dense_gradient(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_is_that_of_a_dense_layer(backend):
    layer = layer_on(DEVICE, backend, 16)
    x = torch.randn(33, 96, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = layer(x)
        expected = torch.relu(torch.nn.functional.linear(x, layer.to_dense()[0], layer.bias))
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().square().mean().backward()
    assert layer.values.grad.dtype == torch.float32 and bool(layer.values.grad.isfinite().all())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiled_without_breaks(backend):
    layer = layer_on(DEVICE, backend, 16)
    x = torch.randn(33, 96, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
    compiled(x).sum().backward()
    assert layer.values.grad is not None


def test_a_layer_moves_between_devices_with_what_it_has_learned():
    layer = tk.SparseLinear(30, 20, density=0.2, seed=1)
    x = torch.randn(7, 30)
    expected = layer(x)
    torch.testing.assert_close(layer.to(DEVICE)(x.to(DEVICE)).cpu(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.cpu()(x), expected)


@on_cuda
def test_the_choice_is_measured_once_for_a_kind():
    backend_choice.forget_measurements()
    layer = layer_on(DEVICE, "auto", 16)
    for batch in (33, 40, 64, 65):
        layer(torch.randn(batch, 96, device=DEVICE))
    found = backend_choice.measurements()
    assert len(found) == 2 and all(set(times) == set(BACKENDS) for times in found.values())
    assert all(0 < t < 1000 for times in found.values() for t in times.values())


def test_an_index_that_leads_outside_does_not_reach_the_kernels():
    p = problem_of(SPARSE_CASES[2], torch.float32)
    x, values, bias, index, _ = on_device(p)
    index.column[0] = 96
    for backend in ("dense", "slots"):
        with pytest.raises(ValueError, match="column must be from 0 to 95"):
            sparse_linear_on_device(x, values, bias, index, False, 0, backend, 1, 0)
