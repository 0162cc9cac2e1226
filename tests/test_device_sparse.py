"""Sparse layers' CUDA back ends without a GPU: the device's source on the host, products by torch there."""

from __future__ import annotations

import itertools

import pytest
import torch
from sparse_cases import DTYPES, FLOORS, SPARSE_CASES, SparseCase, SparseProblem, dense_results, problem_of

import toykern as tk
from toykern.nn import sparse_linear as layers
from toykern.ops import backend_choice, sparse_backends, sparse_linear_device
from toykern.ops.sparse_backends import Connections, gathered_at, scattered
from toykern.ops.sparse_index import SparseIndex, transposed_index
from toykern.ops.sparse_linear import sparse_linear
from toykern.ops.sparse_linear_device import sparse_linear_on_device
from toykern.sparse.groups import expanded
from toykern.sparse.topology import Topology

WIDE = [
    SparseCase("rows beyond a tile", 5000, 3, 5, 0.01),
    SparseCase("inputs beyond shared memory", 13000, 3, 70, 0.003),
    SparseCase("many outputs", 20, 700, 33, 0.2, relu=True),
]
CASES = [
    pytest.param(c, id=c.name, marks=[pytest.mark.sanitize] * (c.name in ("odd", "stack", "one sample")))
    for c in [*SPARSE_CASES, *WIDE]
]  # fmt: skip
GROUPED = [  # (case, group); the density becomes a fan-in of the groups
    (SparseCase("two groups", 10, 8, 5, 0.5, relu=True), 4),
    (SparseCase("odd sizes", 37, 21, 33, 0.3), 7),
    (SparseCase("no bias", 64, 32, 65, 0.1, bias=False), 16),
    (SparseCase("one group", 50, 16, 3, 0.2), 16),
    (SparseCase("stack", 20, 12, 17, 0.4, n_models=3, relu=True), 3),
    (SparseCase("stack on one batch", 33, 8, 40, 0.2, n_models=2, shared=True), 4),
    (SparseCase("columns beyond a tile", 11000, 4, 3, 0.001), 2),
    (SparseCase("many columns", 300, 32, 41, 0.3), 16),
    (SparseCase("more columns than threads", 1200, 8, 3, 0.9), 4),
]


def grouped_problem(case: SparseCase, group: int, dtype: torch.dtype) -> SparseProblem:
    """A problem whose rows share their columns in groups, some groups with none."""
    units = torch.rand(
        case.n_models, case.out_features // group, case.in_features,
        generator=torch.Generator().manual_seed(5),
    ) < case.density  # fmt: skip
    units[0, -1] = units[0, -1] & (units.shape[1] == 1)
    p = problem_of(case, dtype)
    topology = expanded(Topology.from_mask(units), group)
    topology = Topology.from_mask(topology.to_mask(), capacity=topology.capacity + 3)
    p.topology, p.mask = topology, topology.to_mask()
    p.index = SparseIndex.of(case.in_features, topology.row_start, topology.column)
    generator = torch.Generator().manual_seed(6)
    p.values = torch.randn(len(topology.column), generator=generator).to(dtype)
    p.values.masked_fill_(~topology.occupied(), 0)
    return p


def width_of(p: SparseProblem) -> int:
    return (int(p.topology.fan_in.max()) + 7) // 8 * 8 or 8


def results(case, p, backend, group=1, width=0):
    """y and the gradients, by a back end."""
    x, values = p.x.clone().requires_grad_(), p.values.clone().requires_grad_()
    bias = None if p.bias is None else p.bias.clone().requires_grad_()
    y = sparse_linear_on_device(x, values, bias, p.index, case.relu, 0, backend, group, width)
    y.backward(p.dy)
    made = {"y": y.detach(), "x": x.grad, "values": values.grad}
    return made if bias is None else made | {"bias": bias.grad}


def assert_equals_the_oracle(case, p, dtype, backend, group=1, width=0):
    ours = results(case, p, backend, group, width)
    exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    if case.relu:  # an output that is 0 but for rounding may go either way: not compared
        agree = ((exact["y"] > 0) == (ours["y"] > 0)) & ((exact["y"] > 0) == (plain["y"] > 0))
        p.dy.masked_fill_(~agree, 0)
        ours = results(case, p, backend, group, width)
        exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    assert ours.keys() == exact.keys()
    for name, expected in exact.items():
        assert ours[name].dtype == dtype and ours[name].shape == expected.shape
        error = (ours[name].double() - expected).abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item()
        allowed += FLOORS[dtype] * expected.abs().max().item()
        assert error <= allowed, f"{name}: {error:.3g}, allowed {allowed:.3g}"
    assert not ours["values"][~p.topology.occupied()].any()


@pytest.fixture
def descending(monkeypatch):
    """Lanes, warps and blocks from the last to the first: a barrier that is missing shows."""
    monkeypatch.setattr(sparse_backends, "_host_descending", True)


@pytest.mark.parametrize("backend", ["dense", "slots"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_oracle(case, dtype, backend):
    assert_equals_the_oracle(case, problem_of(case, dtype), dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "group"), GROUPED, ids=lambda c: getattr(c, "name", c))
def test_groups_equal_the_dense_oracle(case, group, dtype):
    p = grouped_problem(case, group, dtype)
    assert_equals_the_oracle(case, p, dtype, "groups", group, width_of(p))
    assert_equals_the_oracle(case, p, dtype, "groups", group, width_of(p) + 8)


@pytest.mark.parametrize(
    "case", [c for c in SPARSE_CASES if c.name in ("odd", "stack", "many panels")], ids=str
)
def test_the_order_of_lanes_changes_no_bit(case, monkeypatch):
    p = problem_of(case, torch.float32)
    first = {name: results(case, p, name) for name in ("dense", "slots")}
    monkeypatch.setattr(sparse_backends, "_host_descending", True)
    for name, expected in first.items():
        for key, tensor in results(case, p, name).items():
            assert torch.equal(tensor, expected[key]), (name, key)


@pytest.mark.usefixtures("descending")
@pytest.mark.parametrize(("case", "group"), GROUPED[:2], ids=lambda c: getattr(c, "name", c))
def test_groups_with_lanes_descending(case, group):
    p = grouped_problem(case, group, torch.float32)
    assert_equals_the_oracle(case, p, torch.float32, "groups", group, width_of(p))


def test_slots_give_a_model_the_same_bits_alone_and_among_others():
    case = SparseCase("stack", 60, 40, 200, 0.2, n_models=7, relu=True)
    p = problem_of(case, torch.float32)
    together = results(case, p, "slots")
    for model in (0, 6):
        mask = p.mask[model]
        topology = Topology.from_mask(mask, capacity=p.topology.capacity)
        mine = slice(model * topology.capacity, (model + 1) * topology.capacity)
        one = SparseProblem(
            SparseIndex.of(60, topology.row_start, topology.column), topology, mask[None],
            p.x[model : model + 1], p.values[mine], p.bias[model : model + 1], p.dy[model : model + 1],
        )  # fmt: skip
        alone = results(case, one, "slots")
        assert torch.equal(alone["values"], together["values"][mine])
        for name in ("y", "x", "bias"):
            assert torch.equal(alone[name], together[name][model : model + 1]), name


@pytest.mark.parametrize("case", CASES)
def test_the_index_by_column_is_that_of_the_cpu(case):
    p = problem_of(case, torch.float32)
    made = transposed_index(case.in_features, p.index.row_start, p.index.column)
    for ours, theirs in zip(made, p.index[3:], strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scatter_and_gather_move_every_bit(case, dtype):
    p = problem_of(case, dtype)
    c = Connections(case.in_features, p.index.row_start, p.index.column)
    dense = scattered(p.values, c)
    assert torch.equal(dense, p.topology.to_dense(p.values))
    assert torch.equal(gathered_at(dense, c), p.values)
    noise = torch.randn(dense.shape, dtype=torch.float64).to(dtype)
    found = gathered_at(noise, c)
    slot = p.topology.occupied_slots()
    assert torch.equal(found[slot], noise.reshape(-1)[p.topology.keys()])
    assert not found[~p.topology.occupied()].any()


@pytest.mark.parametrize("backend", ["dense", "slots", "groups"])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_what_is_wanted_is_computed(wanted, backend):
    case, group = GROUPED[4]
    p = grouped_problem(case, group, torch.float32)
    full = results(case, p, backend, group, width_of(p))
    inputs = [t.clone().requires_grad_(w) for t, w in zip((p.x, p.values, p.bias), wanted, strict=True)]
    y = sparse_linear_on_device(*inputs, p.index, case.relu, 0, backend, group, width_of(p))
    assert torch.equal(y, full["y"])
    if any(wanted):
        y.backward(p.dy)
    for name, tensor, want in zip(("x", "values", "bias"), inputs, wanted, strict=True):
        assert torch.equal(tensor.grad, full[name]) if want else tensor.grad is None


@pytest.mark.parametrize("backend", ["dense", "slots", "groups"])
def test_gradcheck(backend):
    case, group = SparseCase("small", 6, 4, 3, 0.5, n_models=2), 2
    p = grouped_problem(case, group, torch.float64)
    inputs = [t.clone().requires_grad_() for t in (p.x, p.values, p.bias)]
    live = p.topology.occupied()

    def product(x, values, bias):
        values = values * live
        return sparse_linear_on_device(x, values, bias, p.index, True, 0, backend, group, width_of(p))

    assert torch.autograd.gradcheck(product, inputs)


@pytest.mark.parametrize("backend", ["auto", "dense", "slots", "groups"])
def test_opcheck(backend):
    case, group = GROUPED[0]
    p = grouped_problem(case, group, torch.float32)
    width = width_of(p)
    torch.library.opcheck(
        torch.ops.toykern.sparse_linear_device_forward.default,
        (p.x, p.values, p.bias, *p.index[1:], True, backend, group, width),
    )
    torch.library.opcheck(
        torch.ops.toykern.sparse_linear_device_backward.default,
        (p.dy, p.x, p.values, p.dy, *p.index[1:], True, backend, group, width, [True] * 3, 0),
    )


@pytest.mark.parametrize("backend", ["dense", "slots", "groups"])
def test_empty_batch(backend):
    case, group = SparseCase("empty", 10, 12, 0, 0.5, n_models=2), 3
    p = grouped_problem(case, group, torch.float32)
    made = results(case, p, backend, group, width_of(p))
    assert made["y"].shape == (2, 0, 12) and made["x"].shape == (2, 0, 10)
    assert not made["values"].any() and not made["bias"].any()


def test_numbers_that_are_none_reach_the_outputs_connected_to_them_alone():
    topology = Topology.from_mask(torch.tensor([[True, False], [False, True]]))
    index = SparseIndex.of(2, topology.row_start, topology.column)
    x, values = torch.tensor([[[float("nan"), 1.0]]]), torch.tensor([2.0, 3.0])
    for relu in (False, True):
        y = sparse_linear_on_device(x, values, None, index, relu, 0, "slots", 1, 0)
        assert y[0, 0, 0].isnan() and y[0, 0, 1] == 3


def test_indices_that_lead_outside_are_refused():
    case = SPARSE_CASES[2]
    for name, value in (
        ("column", 96),
        ("row", -1),
        ("slot", 10**6),
        ("row_start", -1),
        ("column_start", 10**6),
    ):
        p = problem_of(case, torch.float32)
        getattr(p.index, name).view(-1)[0] = value
        with pytest.raises(ValueError, match="must be|must begin"):
            sparse_linear_on_device(p.x, p.values, None, p.index, False, 0, "slots", 1, 0)
    p = problem_of(case, torch.float32)
    sparse_linear_on_device(p.x, p.values, None, p.index, False, 0, "slots", 1, 0)
    p.index.column[0] = 96  # after it was seen once
    with pytest.raises(ValueError, match="column must be from 0 to 95"):
        sparse_linear_on_device(p.x, p.values, None, p.index, False, 0, "slots", 1, 0)


def test_bad_back_ends_are_refused():
    p = problem_of(SPARSE_CASES[2], torch.float32)
    with pytest.raises(
        ValueError, match="backend must be one of 'auto', 'dense', 'slots', 'groups', not 'fast'"
    ):
        sparse_linear_on_device(p.x, p.values, None, p.index, False, 0, "fast", 1, 0)
    with pytest.raises(ValueError, match="share their inputs"):
        sparse_linear_on_device(p.x, p.values, None, p.index, False, 0, "groups", 1, 0)
    layer = tk.SparseLinear(8, 6, density=0.5)
    with pytest.raises(ValueError, match="share their inputs"):
        layer.backend = "groups"
    with pytest.raises(ValueError, match="backend must be"):
        tk.SparseLinear(8, 6, density=0.5, backend="fast")


# --- which one --------------------------------------------------------------------------------------------


def test_the_fastest_is_chosen_once_and_remembered(monkeypatch):
    backend_choice.forget_measurements()
    p = grouped_problem(GROUPED[2][0], 16, torch.float32)
    c = Connections(64, *p.index[1:], group=16, width=width_of(p))
    seen = []

    def timer(step, device):
        step()
        seen.append(len(seen))
        return [3.0, 1.0, 2.0][len(seen) - 1]

    assert backend_choice.measured(("dense", "slots", "groups"), p.x, p.values, c, timer) == {
        "dense": 3.0, "slots": 1.0, "groups": 2.0,
    }  # fmt: skip
    assert backend_choice.choose(p.x, p.values, c) == "groups"  # nothing is measured on the CPU
    assert not backend_choice.measurements()

    class OnGpu:
        device, dtype, shape = torch.device("cuda", 0), torch.float32, p.x.shape

    calls = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(
        backend_choice, "measured", lambda found, *_: calls.append(found) or {"dense": 2.0, "slots": 1.0}
    )
    assert backend_choice.choose(OnGpu(), p.values, c) == "slots"
    assert backend_choice.choose(OnGpu(), p.values, c) == "slots"
    assert calls == [["dense", "slots", "groups"]] and len(backend_choice.measurements()) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert backend_choice.choose(OnGpu(), p.values, c) == "slots"
    backend_choice.forget_measurements()
    assert backend_choice.choose(OnGpu(), p.values, c) == "groups"  # by the rule, while capturing
    assert not backend_choice.measurements()


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (1, 4, 24), (2, 1, 3, 24), (0, 24)], ids=str)
def test_one_model_takes_x_of_any_shape(shape):
    """By the ops with a back end, and by the CPU's own where they are given tensors on a GPU."""
    p = problem_of(SparseCase("one", 24, 7, 1, 0.3, relu=True), torch.float32)
    x, values, bias = (t.clone().requires_grad_() for t in (torch.randn(shape), p.values, p.bias))
    y = sparse_linear(x, values, bias, p.index, relu=True)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = [y.detach(), *(t.grad.clone() for t in (x, values, bias))]
    for backend in ("dense", "slots"):
        for t in (x, values, bias):
            t.grad = None
        y = sparse_linear_on_device(x, values, bias, p.index, True, 0, backend, 1, 0)
        y.backward(dy)
        for found, wanted in zip([y.detach(), x.grad, values.grad, bias.grad], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    plain = (x.detach(), values.detach(), bias.detach(), p.index.row_start, p.index.column, True)
    y = sparse_linear_device._plain_forward(*plain)
    back = (dy, x.detach(), values.detach(), y, *p.index[1:], True, [True, True, True], 0)
    for found, wanted in zip([y, *sparse_linear_device._plain_backward(*back)], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# --- layers -----------------------------------------------------------------------------------------------


@pytest.fixture
def through_the_device(monkeypatch):
    """Layers take the way of a GPU, on the host."""

    def product(x, values, bias, index, *, relu=False, capture=0, backend="auto", group=1, width=0):
        return sparse_linear_on_device(x, values, bias, index, relu, capture, backend, group, width)

    monkeypatch.setattr(layers, "sparse_linear", product)


def trained(backend, group, recipe, steps=9):
    torch.manual_seed(0)
    layer = tk.SparseLinear(24, 16, fan_in=5, group=group, activation="relu", seed=3)
    layer.backend = backend
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    topology = recipe.attach(layer, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(40, 24, generator=generator)
        loss = (layer(x) - x[:, :16].abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        topology.step()
    return layer, topology


@pytest.mark.parametrize(
    "recipe", [tk.SET(interval=3), tk.RigL(interval=3, end=100), tk.SRigL(interval=3, end=100)], ids=str
)
@pytest.mark.parametrize(("backend", "group"), [("dense", 1), ("slots", 1), ("groups", 4), ("dense", 4)])
def test_training_by_a_back_end_is_training_on_the_cpu(backend, group, recipe, request):
    expected, updates = trained("auto", group, recipe)
    assert updates.updates == 3
    request.getfixturevalue("through_the_device")
    ours, _ = trained(backend, group, recipe)
    assert ours.topology == expected.topology
    torch.testing.assert_close(ours.values, expected.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bias, expected.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "slots"])
def test_the_gradient_for_growth(backend, through_the_device):
    """The dense back end hands over the one it has; others keep what it takes to compute it."""
    layer = tk.SparseLinear(9, 7, density=0.3, seed=0)
    layer.backend = backend
    layer.capture_gradient()
    x = torch.randn(5, 9)
    for _ in range(2):
        layer(x).square().sum().backward()
    kept = layer._capture
    assert (len(kept.dense), len(kept.passes)) == ((2, 0) if backend == "dense" else (0, 2))
    weight = layer.to_dense()[0].detach().requires_grad_()
    (2 * torch.nn.functional.linear(x, weight, layer.bias).square().sum()).backward()
    torch.testing.assert_close(layer.dense_gradient()[0], weight.grad)
    model, row, column = torch.tensor([0, 0]), torch.tensor([6, 2]), torch.tensor([0, 8])
    torch.testing.assert_close(layer.gradient_at(model, row, column), weight.grad[row, column])
    layer.capture_gradient(False)
    assert not kept.dense and not kept.passes


def test_on_the_cpu_the_back_end_makes_no_difference():
    x = torch.randn(6, 24)
    made = []
    for backend in ("auto", "dense", "slots", "groups"):
        layer = tk.SparseLinear(24, 16, fan_in=5, group=4, seed=3, backend=backend)
        made.append(layer(x))
    assert all(torch.equal(y, made[0]) for y in made)
    assert torch.equal(made[0], sparse_linear(x[None], layer.values, layer.bias, layer.index)[0])
