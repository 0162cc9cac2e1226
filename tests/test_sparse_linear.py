"""The sparse product and its gradients: against dense PyTorch in float64 at every instruction-set level."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import LEVELS, isa_level
from sparse_cases import DTYPES, FLOORS, SPARSE_CASES, SparseCase, dense_results, problem_of

from toykern.ops.sparse_index import SparseIndex
from toykern.ops.sparse_linear import by_column, sparse_linear
from toykern.sparse.topology import Topology

BY_NAME = {case.name: case for case in SPARSE_CASES}
LARGE = SPARSE_CASES[SPARSE_CASES.index(BY_NAME["large"]) :]
CASES = [pytest.param(c, id=c.name, marks=() if c in LARGE else pytest.mark.sanitize) for c in SPARSE_CASES]


def _results(case, p):
    """y and the gradients, by the kernels."""
    x, values = p.x.clone().requires_grad_(), p.values.clone().requires_grad_()
    bias = None if p.bias is None else p.bias.clone().requires_grad_()
    y = sparse_linear(x, values, bias, p.index, relu=case.relu)
    y.backward(p.dy)
    results = {"y": y.detach(), "x": x.grad, "values": values.grad}
    return results if bias is None else results | {"bias": bias.grad}


def _assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        differ = (tensor != theirs[name]).nonzero()
        assert not len(differ), f"{name} differs first at {differ[0].tolist()}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_oracle(case, dtype, level):
    p = problem_of(case, dtype)
    with isa_level(level):
        ours = _results(case, p)
    exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    if case.relu:
        # Where an output is 0 but for rounding, either slope is right: those are not compared.
        agree = ((exact["y"] > 0) == (ours["y"] > 0)) & ((exact["y"] > 0) == (plain["y"] > 0))
        p.dy.masked_fill_(~agree, 0)
        with isa_level(level):
            ours = _results(case, p)
        exact, plain = dense_results(case, p, torch.float64), dense_results(case, p, dtype)
    for name, expected in exact.items():
        scale = expected.abs().max().item()
        error = (ours[name].double() - expected).abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item() + FLOORS[dtype] * scale
        assert error <= allowed, f"{name}: {error:.3g}, allowed {allowed:.3g}"
    slack = ~p.topology.occupied()
    assert not ours["values"][slack].any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*LARGE, BY_NAME["stack"], BY_NAME["many panels"]], ids=lambda c: c.name)
def test_threads_do_not_change_a_bit(case, level):
    p = problem_of(case, torch.float32)
    with isa_level(level):
        torch.set_num_threads(1)
        alone = _results(case, p)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            _assert_same_bits(_results(case, p), alone)


@pytest.mark.parametrize("batch", [1, 63, 200])
def test_a_model_has_the_same_bits_alone_and_among_others(batch):
    case = SparseCase("stack", 60, 40, batch, 0.2, n_models=40, relu=True)
    p = problem_of(case, torch.float32)
    together = _results(case, p)
    for model in (0, 17, 39):
        topology = Topology.from_mask(p.mask[model])
        count, first = topology.capacity, model * p.topology.capacity
        one = copy.copy(p)
        one.index = SparseIndex.of(60, topology.row_start, topology.column)
        one.x, one.dy, one.bias = p.x[model : model + 1], p.dy[model : model + 1], p.bias[model : model + 1]
        one.values = p.values[first : first + count]
        alone = _results(case, one)
        _assert_same_bits(alone, {
            "y": together["y"][model : model + 1],
            "x": together["x"][model : model + 1],
            "bias": together["bias"][model : model + 1],
            "values": together["values"][first : first + count],
        })  # fmt: skip


def test_one_model_takes_any_shape():
    case = SparseCase("one", 30, 20, 24, 0.3, relu=True)
    p = problem_of(case, torch.float32)
    expected = _results(case, p)
    for shape in ((24,), (2, 3, 4), (24, 1), (4, 6)):
        other = copy.copy(p)
        other.x, other.dy = p.x.reshape(*shape, 30), p.dy.reshape(*shape, 20)
        ours = _results(case, other)
        assert ours["y"].shape == (*shape, 20)
        assert ours["x"].shape == (*shape, 30)
        _assert_same_bits(
            ours | {"y": ours["y"].reshape(1, 24, 20), "x": ours["x"].reshape(1, 24, 30)}, expected
        )
    alone = sparse_linear(p.x[0, 5], p.values, p.bias, p.index)
    assert alone.shape == (20,)
    assert sparse_linear(p.x[:, :0], p.values, p.bias, p.index).shape == (1, 0, 20)
    with pytest.raises(ValueError, match=r"x must have the shape \[\.\.\., in_features\]"):
        sparse_linear(torch.tensor(1.0), p.values, p.bias, p.index)


def test_the_output_may_be_changed_in_place():
    case = SparseCase("one", 30, 20, 24, 0.3, relu=True)
    p = problem_of(case, torch.float32)
    values = p.values.clone().requires_grad_()
    sparse_linear(p.x, values, p.bias, p.index).relu_().backward(p.dy)
    assert torch.equal(values.grad, _results(case, p)["values"])


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 140), st.integers(1, 3)),
    density=st.floats(0.0, 1.0),
    level=st.sampled_from(LEVELS),
)
def test_any_shape_equals_the_dense_oracle(shape, density, level):
    in_features, out_features, batch, n_models = shape
    case = SparseCase("any", in_features, out_features, batch, density, n_models)
    p = problem_of(case, torch.float64)
    with isa_level(level):
        ours = _results(case, p)
    for name, expected in dense_results(case, p, torch.float64).items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-12, atol=1e-11)


@pytest.mark.sanitize
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_what_is_wanted_is_computed(wanted, dtype):
    case = BY_NAME["stack"]
    p = problem_of(case, dtype)
    full = _results(case, p)
    x, values, bias = (
        t.clone().requires_grad_(want) for t, want in zip((p.x, p.values, p.bias), wanted, strict=True)
    )
    y = sparse_linear(x, values, bias, p.index, relu=case.relu)
    assert torch.equal(y, full["y"])
    if any(wanted):
        y.backward(p.dy)
    for name, tensor, want in zip(("x", "values", "bias"), (x, values, bias), wanted, strict=True):
        assert torch.equal(tensor.grad, full[name]) if want else tensor.grad is None


# --- layouts ------------------------------------------------------------------------------------------------


def _layouts(tensor):
    """The same numbers lying otherwise: transposed, every second of a larger tensor, offset."""
    yield tensor.mT.contiguous().mT
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan"))
    wide[..., ::2] = tensor
    yield wide[..., ::2]
    flat = tensor.new_full((tensor.numel() + 1,), float("nan"))
    flat[1:] = tensor.reshape(-1)
    yield flat[1:].reshape(tensor.shape)


def test_any_layout_gives_the_same():
    case = BY_NAME["stack"]
    p = problem_of(case, torch.float32)
    expected = _results(case, p)
    for x, dy in zip(_layouts(p.x), _layouts(p.dy), strict=True):
        other = copy.copy(p)
        other.x, other.dy = x, dy
        other.values, other.bias = p.values.repeat_interleave(2)[::2], p.bias.mT.contiguous().mT
        _assert_same_bits(_results(case, other), expected)


def test_expanded_gradients_and_inputs():
    case = BY_NAME["a panel and a sample"]
    p = problem_of(case, torch.float32)
    x, values = p.x[:, :1].expand(-1, 65, -1).clone().requires_grad_(), p.values.clone().requires_grad_()
    sparse_linear(x, values, None, p.index).sum().backward()  # autograd hands over a gradient of stride 0
    expected = p.topology.to_dense(p.values).sum(dim=1)
    torch.testing.assert_close(x.grad, expected[:, None].expand(-1, 65, -1))
    one = p.x[:, :1].expand(-1, 65, -1)
    assert torch.equal(
        sparse_linear(one, p.values, p.bias, p.index), sparse_linear(x, p.values, p.bias, p.index)
    )


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype):
    case = SparseCase("empty", 10, 12, 0, 0.5, n_models=2, slack=1)
    results = _results(case, problem_of(case, dtype))
    assert results["y"].shape == (2, 0, 12) and results["x"].shape == (2, 0, 10)
    assert not results["values"].any() and not results["bias"].any()


def test_numbers_that_are_none_show_where_they_belong():
    """A NaN reaches the outputs connected to it, through ReLU too, and no others."""
    topology = Topology.from_mask(torch.tensor([[True, False], [False, True]]))
    index = SparseIndex.of(2, topology.row_start, topology.column)
    x = torch.tensor([[[float("nan"), 1.0]]], requires_grad=True)
    values = torch.tensor([2.0, 3.0], requires_grad=True)
    for relu in (False, True):
        y = sparse_linear(x, values, None, index, relu=relu)
        assert y[0, 0, 0].isnan() and y[0, 0, 1] == 3
    y.backward(torch.ones(1, 1, 2))
    assert values.grad[0].isnan() and values.grad[1] == 1 and x.grad[0, 0, 0] == 2
    infinite = sparse_linear(torch.tensor([[[-torch.inf, 0.0]]]), values, None, index, relu=True)
    assert infinite.tolist() == [[[0.0, 0.0]]]


def test_relu_has_slope_0_at_0():
    topology = Topology.from_mask(torch.tensor([[True]]))
    index = SparseIndex.of(1, topology.row_start, topology.column)
    x, values = torch.zeros(1, 3, 1, requires_grad=True), torch.ones(1, requires_grad=True)
    sparse_linear(x, values, None, index, relu=True).sum().backward()
    assert not x.grad.any() and not values.grad.any()


# --- what torch asks of an op ---------------------------------------------------------------------------


def _op_arguments(case, dtype=torch.float32):
    p = problem_of(case, dtype)
    i = p.index
    y = sparse_linear(p.x, p.values, p.bias, i, relu=case.relu)
    forward = (p.x, p.values, p.bias, i.row_start, i.column, case.relu)
    backward = (p.dy, p.x, p.values, y if case.relu else None, *i[1:], case.relu)
    return forward, backward


@pytest.mark.parametrize("name", ["odd", "stack", "stack on one batch", "pair"])
def test_opcheck(name):
    forward, backward = _op_arguments(BY_NAME[name])
    torch.library.opcheck(torch.ops.toykern.sparse_linear_forward.default, forward)
    for wanted in ([True, True, True], [True, False, False], [False, True, True]):
        torch.library.opcheck(torch.ops.toykern.sparse_linear_backward.default, (*backward, wanted, 0))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["odd", "one sample", "pair", "stack on one batch"])
def test_gradcheck(name, level):
    case = BY_NAME[name]
    p = problem_of(case, torch.float64)
    inputs = [t.requires_grad_() for t in (p.x, p.values, p.bias) if t is not None]

    def function(x, values, bias=None):
        return sparse_linear(x, values, bias, p.index, relu=case.relu)

    def occupied(x, values, bias=None):  # the slack's values count for nothing: their gradient is 0
        return function(x, values, bias)

    with isa_level(level):
        assert torch.autograd.gradcheck(occupied, inputs, fast_mode=True)


def test_second_derivatives_are_refused():
    p = problem_of(BY_NAME["odd"], torch.float64)
    x = p.x.requires_grad_()
    (gradient,) = torch.autograd.grad(
        sparse_linear(x, p.values.requires_grad_(), None, p.index).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_autocast_casts_as_linear_does():
    p = problem_of(BY_NAME["odd"], torch.float32)
    values = p.values.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse_linear(p.x, values, p.bias, p.index)
    bfloat16 = (t.bfloat16() for t in (p.x, p.values, p.bias))
    assert y.dtype == torch.bfloat16 and torch.equal(y, sparse_linear(*bfloat16, p.index))
    y.sum().backward()
    assert values.grad.dtype == torch.float32


def test_values_by_column_and_back():
    for name in ("stack", "odd", "empty rows and columns"):
        p = problem_of(BY_NAME[name], torch.float64)
        transposed = p.index.transposed()
        values = p.values.clone().requires_grad_()
        reordered = by_column(values, p.index, transposed)
        there = Topology(p.mask.shape[1], p.mask.shape[2], transposed.row_start, transposed.column)
        assert torch.equal(there.to_dense(reordered), p.topology.to_dense(p.values).mT)
        occupied = p.topology.occupied()
        weights = torch.arange(len(values), dtype=torch.float64)
        (reordered * weights)[occupied].sum().backward()
        (again,) = torch.autograd.grad(
            (by_column(values, p.index, transposed) * weights)[occupied].sum(), values
        )
        expected = torch.zeros_like(weights)
        capacity = p.topology.capacity
        base = torch.arange(len(values)) // capacity * capacity
        expected[(p.index.slot + base)[occupied]] = weights[occupied]
        assert torch.equal(values.grad, expected) and torch.equal(again, values.grad)


# --- bad input ----------------------------------------------------------------------------------------------


def _call(p, **changes):
    index = p.index._replace(**{k: changes.pop(k) for k in list(changes) if k in SparseIndex._fields})
    given = {"x": p.x, "values": p.values, "bias": p.bias} | changes
    x, values = given["x"], given["values"]
    if x.is_floating_point() and values.is_floating_point():
        x, values = x.detach().requires_grad_(), values.detach().requires_grad_()
    return sparse_linear(x, values, given["bias"], index, relu=True).sum().backward()


BAD_INPUTS = {
    "x: dtype": (lambda p: {"x": p.x.half()}, TypeError, "x must be of one of the dtypes float32"),
    "x: features": (lambda p: {"x": p.x[..., :1]}, ValueError, "column must be from 0 to 0"),
    "x: models": (lambda p: {"x": p.x[:2]}, ValueError, r"n_models = 3 \(or 1\), not \[2, 129, 33\]"),
    "x: dimensions": (lambda p: {"x": p.x[0]}, ValueError, "x must have the shape"),
    "values: length": (lambda p: {"values": p.values[:-3]}, ValueError, "one entry for each slot"),
    "values: dtype": (lambda p: {"values": p.values.double()}, TypeError, "dtype of x, torch.float32"),
    "bias: shape": (lambda p: {"bias": p.bias[:, 1:]}, ValueError, r"= \[3, 17\], not \[3, 16\]"),
    "bias: dtype": (lambda p: {"bias": p.bias.bfloat16()}, TypeError, "bias must have the dtype of x"),
    "row_start: dtype": (lambda p: {"row_start": p.index.row_start.int()}, ValueError, "int64 tensor"),
    "column: length": (lambda p: {"column": p.index.column[1:]}, ValueError, "n_models = 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused(name):
    changes, kind, message = BAD_INPUTS[name]
    p = problem_of(SparseCase("bad", 33, 17, 129, 0.2, n_models=3), torch.float32)
    with pytest.raises(kind, match=message):
        _call(p, **changes(p))


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, None], ids=str)
@pytest.mark.parametrize("name", ["column", "row", "slot", "row_start", "column_start"])
def test_an_index_that_leads_outside_is_refused(name, value, level):
    """Whatever somebody wrote into a layer's buffers: an error, not a crash."""
    p = problem_of(BY_NAME["stack"], torch.float32)
    slots = p.topology.capacity + 1
    limits = {"column": 20, "row": 30, "slot": int(p.topology.n_connections[4])}
    limit = limits.get(name, slots)
    array = getattr(p.index, name).clone()
    at = 4 * p.topology.capacity + 11 if array.ndim == 1 else (4, array.shape[1] - 1)
    array[at] = limit if value is None else value
    with isa_level(level), pytest.raises(ValueError, match=rf"{name} must"):
        _call(p, **{name: array})


def test_a_stale_index_by_column_is_refused():
    p = problem_of(BY_NAME["stack"], torch.float32)
    start = p.index.column_start.clone()
    start[2, -1] -= 1
    with pytest.raises(ValueError, match=r"column_start must end where row_start ends"):
        _call(p, column_start=start)


def test_the_slack_may_hold_anything():
    """Only connections are looked at: what stands in the slots of none is never read."""
    case = BY_NAME["many panels"]
    p = problem_of(case, torch.float32)
    expected = _results(case, p)
    slack = ~p.topology.occupied()
    p.values[slack] = float("nan")
    p.index.column[slack] = -7
    p.index.row[slack] = 2**31 - 1
    _assert_same_bits(_results(case, p), expected)


def test_a_device_without_kernels_shapes_alone():
    p = problem_of(BY_NAME["odd"], torch.float32)
    index = p.index._replace(**{n: t.to("meta") for n, t in p.index._asdict().items() if n != "in_features"})
    y = sparse_linear(p.x.to("meta"), p.values.to("meta"), None, index)
    assert y.shape == (1, 40, 7) and y.device.type == "meta"
