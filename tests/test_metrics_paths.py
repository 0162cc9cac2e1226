"""Units matched against all permutations, straight lines and barriers by hand."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import metrics
from toykern.network import NetworkSpec


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _network(*models, seed=0, hidden=4):
    return {
        "encoder": _random(*models, hidden, 3, seed=seed),
        "decoder": _random(*models, 5, hidden, seed=seed + 1),
        "hidden_bias": _random(*models, hidden, seed=seed + 2),
        "bias": _random(*models, 5, seed=seed + 3),
    }


def _distance(first, second):
    return sum((first[name] - second[name]).square().sum().item() for name in first)


def test_the_hidden_units_are_where_networks_have_them():
    for tied in (True, False):
        spec = NetworkSpec(n_features=5, n_hidden=2, tied=tied, hidden_bias=True)
        for tensor in spec.parameters:
            ndim, axis = metrics.paths._UNITS[tensor.name]
            where = tensor.dims.index("hidden") - len(tensor.dims) if "hidden" in tensor.dims else None
            assert (ndim, axis) == (len(tensor.dims), where)


@pytest.mark.parametrize("tied", [True, False])
def test_the_matching_is_the_nearest_of_all_permutations(tied):
    first, second = _network(3), _network(3, seed=10)
    if tied:
        first, second = ({"weight": held["encoder"], "bias": held["bias"]} for held in (first, second))
    orders = metrics.match_units(first, second)
    assert orders.shape == (3, 4) and orders.dtype == torch.int64
    moved = metrics.permute_units(second, orders)
    for k in range(3):
        a = {name: held[k] for name, held in first.items()}
        b = {name: held[k] for name, held in second.items()}
        every = itertools.permutations(range(4))
        best = min(_distance(a, metrics.permute_units(b, list(order))) for order in every)
        assert _distance(a, {name: held[k] for name, held in moved.items()}) == pytest.approx(best)
        assert torch.equal(metrics.match_units(a, b), orders[k])


def test_a_shuffled_network_is_put_back_and_computes_the_same():
    model = tk.MLP(6, 8, n_models=3, n_outputs=4, hidden_activation="relu", hidden_bias=True,
                   dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        model.hidden_bias += _random(3, 8)
    shuffle = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(k)) for k in range(3)])
    before = {name: held.detach().clone() for name, held in model.stacked_parameters().items()}
    shuffled = metrics.permute_units(before, shuffle)
    back = metrics.permute_units(shuffled, metrics.match_units(before, dict(reversed(shuffled.items()))))
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert not torch.equal(shuffled["encoder"], before["encoder"])
    x = _random(10, 6)
    output = model(x)
    with torch.no_grad():
        for name, held in model.stacked_parameters().items():
            held.copy_(shuffled[name])
    torch.testing.assert_close(model(x), output)


def test_one_network_beside_a_stack():
    one, stack = _network(), _network(3, seed=10)
    orders = metrics.match_units(stack, one)
    assert orders.shape == (3, 4)
    moved = metrics.permute_units(one, orders)
    assert {name: list(held.shape) for name, held in moved.items()} == {
        name: list(held.shape) for name, held in stack.items()
    }
    for k in range(3):
        alone = metrics.match_units({name: held[k] for name, held in stack.items()}, one)
        assert torch.equal(alone, orders[k])
        assert torch.equal(moved["decoder"][k], one["decoder"][:, alone])
        assert torch.equal(moved["encoder"][k], one["encoder"][alone])
        assert torch.equal(moved["hidden_bias"][k], one["hidden_bias"][alone])
        assert torch.equal(moved["bias"][k], one["bias"])
    shared = metrics.permute_units(stack, [3, 2, 1, 0])
    assert torch.equal(shared["encoder"], stack["encoder"].flip(1))


def test_a_diverged_network_keeps_its_order():
    first, second = _network(3), _network(3, seed=10)
    whole = metrics.match_units(first, second)
    first["encoder"][1, 0, 0] = math.nan
    orders = metrics.match_units(first, second)
    assert orders[1].tolist() == [0, 1, 2, 3] and torch.equal(orders[::2], whole[::2])


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"toykern\[analysis\]"):
        metrics.match_units(_network(), _network())


def test_networks_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"second\['encoder'\] does not go with that of first"):
        metrics.match_units(_network(), _network(hidden=5))
    with pytest.raises(ValueError, match=r"second\['encoder'\] does not go with that of first"):
        metrics.match_units(_network(2), _network(3))
    with pytest.raises(ValueError, match="second must have the names of first"):
        metrics.match_units(_network(), {"encoder": _random(4, 3)})
    with pytest.raises(ValueError, match="first must have parameters by the names"):
        metrics.match_units({"linear1.weight": _random(4, 3)}, _network())
    with pytest.raises(ValueError, match="first must be of as many models and hidden units"):
        metrics.match_units(_network() | {"hidden_bias": _random(5)}, _network())
    with pytest.raises(ValueError, match=r"first\['hidden_bias'\] must have the shape \[models, n_hidden\]"):
        metrics.match_units(_network() | {"hidden_bias": _random(2, 3, 4)}, _network())


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [[0, 1, 2, 3]], [[[0, 1, 2, 3]]]]
)
def test_orders_that_are_none(order):
    with pytest.raises(ValueError, match="order must"):
        metrics.permute_units(_network(2), order)


@pytest.mark.parametrize("models", [(), (3,)])
def test_the_line_is_straight_and_ends_exactly(models):
    first, second = _network(*models), _network(*models, seed=10)
    path = metrics.linear_path(first, second, points=5)
    for name, line in path.items():
        assert line.shape == (5, *first[name].shape)
        assert torch.equal(line[0], first[name]) and torch.equal(line[-1], second[name])
        for i, t in enumerate(np.linspace(0, 1, 5).tolist()):
            torch.testing.assert_close(line[i], (1 - t) * first[name] + t * second[name])
    some = metrics.linear_path(first, second, points=[1.0, 0.0, -0.5, 0.3])
    for name, line in some.items():
        assert torch.equal(line[0], second[name]) and torch.equal(line[1], first[name])
        torch.testing.assert_close(line[2], 1.5 * first[name] - 0.5 * second[name])
    single = {name: held.float() for name, held in first.items()}
    assert metrics.linear_path(single, single)["encoder"].dtype == torch.float32


def test_the_line_can_be_differentiated():
    arguments = _random(2, 3).requires_grad_(), _random(2, 3, seed=1).requires_grad_()
    line = lambda a, b: metrics.linear_path({"any name": a}, {"any name": b}, points=4)["any name"]  # noqa: E731
    assert torch.autograd.gradcheck(line, arguments)


def test_lines_that_are_none():
    first = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match=r"second\['a'\] must have the shape"):
        metrics.linear_path(first, {"a": torch.ones(3)})
    with pytest.raises(TypeError, match=r"first\['a'\] must hold floating-point numbers"):
        metrics.linear_path({"a": torch.ones(2, dtype=torch.int64)}, first)
    with pytest.raises(ValueError, match="points must be at least 2, not 1"):
        metrics.linear_path(first, first, points=1)
    with pytest.raises(ValueError, match="points must be an integer or a list of finite numbers"):
        metrics.linear_path(first, first, points=[0.0, math.inf])


def test_a_line_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("toykern.arguments.memory.free_memory", lambda device: 2**28)
    with pytest.raises(MemoryError, match="points=1,000,000 points of the path"):
        metrics.linear_path({"a": torch.ones(1000)}, {"a": torch.ones(1000)}, points=10**6)


def test_barriers_by_hand():
    losses = torch.tensor([[1.0, 2.0, 0.0], [4.0, 1.0, 1.0], [3.0, 0.0, 5.0], [4.0, 5.0, 3.0]])
    assert metrics.loss_barrier(losses).tolist() == pytest.approx([2.0, 0.0, 3.0])
    assert metrics.loss_barrier(losses[:, 0]).item() == pytest.approx(2.0)
    points = [0.0, 0.5, 0.9, 1.0]
    expected = [4 - 2.5, 0.0, 5 - 2.7]
    assert metrics.loss_barrier(losses, points).tolist() == pytest.approx(expected)
    scaled = [10 + 3 * t for t in points]
    assert metrics.loss_barrier(losses, scaled).tolist() == pytest.approx(expected)


def test_a_convex_loss_has_no_barrier():
    losses = torch.linspace(-1, 2, 9, dtype=torch.float64).square() + 0.1
    assert metrics.loss_barrier(losses).item() == 0
    losses[3] = math.nan
    assert metrics.loss_barrier(losses).isnan()


def test_the_barrier_can_be_differentiated():
    assert torch.autograd.gradcheck(metrics.loss_barrier, (_random(6, 2).requires_grad_(),))


def test_the_way_round_a_barrier():
    """Two orders of the same units: a barrier between them, and none after they are matched."""
    model = tk.TiedAutoencoder(6, 6, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.eye(6))
    first = {name: held.detach()[0].clone() for name, held in model.stacked_parameters().items()}
    second = metrics.permute_units(first, [1, 2, 3, 4, 5, 0])
    line = tk.TiedAutoencoder(6, 6, 5, dtype=torch.float64)
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def barrier(end):
        with torch.no_grad():
            for name, held in metrics.linear_path(first, end, points=5).items():
                line.get_parameter(name).copy_(held)
            return metrics.loss_barrier(line.loss(x)).item()

    assert barrier(second) > 0.01
    assert barrier(metrics.permute_units(second, metrics.match_units(first, second))) == 0


@pytest.mark.parametrize("losses", [torch.ones(1), torch.ones(()), torch.ones(3, 0)])
def test_too_few_losses(losses):
    with pytest.raises(ValueError, match="losses must have the shape"):
        metrics.loss_barrier(losses)


@pytest.mark.parametrize("points", [[0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.5, 0.0]])
def test_points_that_do_not_rise(points):
    with pytest.raises(ValueError, match="points must be 3 rising numbers"):
        metrics.loss_barrier(torch.ones(3), points)
