"""Every kind of sparse layer: derivatives, ops, autocast, copies, storing, compiling, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from masked_dense import Mixed, batch, loss_of
from topology_kit import assert_same, everything
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import toykern as tk
from toykern.sparse import Topology

IN, OUT = 11, 8


def linear(n_models=1, density=0.35, capacity=None, seed=3, **options):
    return tk.SparseLinear(IN, OUT, density, n_models=n_models, capacity=capacity, seed=seed, **options)


def groups(n_models=1, fan_in=4, capacity=None, seed=3, **options):
    options = {"fan_in": fan_in, "group": 4, "n_models": n_models, "capacity": capacity} | options
    return tk.SparseLinear(IN, OUT, seed=seed, **options)


def autoencoder(n_models=1, density=0.35, capacity=None, seed=3, **options):
    options = {"n_models": n_models, "capacity": capacity} | options
    model = tk.SparseTiedAutoencoder(IN, OUT, density, seed=seed, **options)
    with torch.no_grad():
        if model.bias is not None:
            model.bias += 0.1
    return model


# What makes each kind: called with further options, of which `room` and `dense` give another number of slots
# and of connections.
KINDS = {
    "linear": linear,
    "relu": lambda **o: linear(activation="relu", bias=False, **o),
    "stack": lambda **o: linear(n_models=3, **{"capacity": 40} | o),
    "groups": groups,
    "stack of groups": lambda **o: groups(n_models=2, activation="relu", **{"capacity": 48} | o),
    "autoencoder": autoencoder,
    "linear autoencoder": lambda **o: autoencoder(bias=False, output_activation="none", **o),
    "stack of autoencoders": lambda **o: autoencoder(
        n_models=3, hidden_activation="relu", **{"capacity": 40} | o
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def inputs(layer, seed=0, size=6, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(layer.n_models, size, IN, generator=generator, dtype=torch.float64)
    x = x.to(layer.values.dtype if dtype is None else dtype)
    return x if layer.n_models > 1 else x[0]


def swapped(layer, seed=0):
    """Some connections (units, where there are groups) dropped and as many grown elsewhere, by a recipe."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    topology = tk.SET(interval=1, drop_fraction=0.4, seed=seed).attach(layer, optimizer)
    assert topology.step().grown > 0


def tensors(layer):
    """All that the layer holds, index and gradient included, as copies."""
    found = {name: t.detach().clone() for name, t in layer.named_parameters()}
    found |= {f"{name}.grad": p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


# --- derivatives and ops ------------------------------------------------------------------------------------


@each_kind
def test_gradcheck(kind):
    layer = KINDS[kind](dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    for _ in range(2):  # before and after a change of topology
        parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

        def function(x, *given):
            return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))

        x = inputs(layer).requires_grad_()
        assert torch.autograd.gradcheck(function, (x, *parameters))
        swapped(layer)


class Calls(TorchDispatchMode):
    """Notes all calls of our ops, with copies of their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "toykern":
            self.found.append((func, [a.clone() if isinstance(a, torch.Tensor) else a for a in args]))
        return func(*args, **(kwargs or {}))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_of_all_ops_that_a_layer_calls(kind, dtype):
    layer = KINDS[kind](dtype=dtype)
    layer.capture_gradient(True)
    with Calls() as calls:
        layer(inputs(layer).requires_grad_()).sum().backward()
    names = {func._schema.name for func, _ in calls.found}
    assert names == {"toykern::sparse_linear_forward", "toykern::sparse_linear_backward"}
    for func, args in calls.found:
        if func._schema.name.endswith("backward"):
            args = [*args[:-1], 0]  # the number of a capture, which is no part of what the op computes
        torch.library.opcheck(func, tuple(args))


# --- autocast -----------------------------------------------------------------------------------------------


@each_kind
def test_autocast(kind):
    """As the layer in bfloat16 computes it, bit by bit; gradients come back in the layer's own dtype."""
    layer = KINDS[kind]()
    low = copy.deepcopy(layer).bfloat16()
    x = inputs(layer)
    layer.capture_gradient(True)
    low.capture_gradient(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    expected = low(x.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    for (name, ours), theirs in zip(layer.named_parameters(), low.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32, name
        # The autoencoder's two gradients of W are added in float32 here, in bfloat16 there.
        assert torch.allclose(ours.grad, theirs.grad.float(), rtol=2**-6, atol=2**-6), name
    assert torch.equal(layer.dense_gradient(), low.dense_gradient())
    assert layer.dense_gradient().dtype == torch.float32
    swapped(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), copy.deepcopy(layer).bfloat16()(x.bfloat16()))


@pytest.mark.parametrize("mode", ["autocast", "storage"])
@each_kind
def test_recipes_in_bfloat16(kind, mode):
    """Under autocast as with bfloat16 storage, connections that stay keep their values and moments."""
    layer = KINDS[kind](dtype=torch.bfloat16 if mode == "storage" else torch.float32)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    topology = tk.RigL(interval=2, end=100).attach(layer, optimizer)
    for step in range(6):
        x = inputs(layer, seed=step, size=20)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            y = layer(x)
        optimizer.zero_grad()
        (y.float() - x[..., : y.shape[-1]].float().abs()).square().mean().backward()
        optimizer.step()
        state = optimizer.state[layer.values]
        before = [layer.topology.to_dense(t) for t in (layer.values.detach(), state["exp_avg"])]
        mask = layer.topology.to_mask()
        update = topology.step()
        assert (update is not None) == (step % 2 == 1)
        after = [layer.topology.to_dense(t) for t in (layer.values.detach(), state["exp_avg"])]
        stays = mask & layer.topology.to_mask()
        for old, new in zip(before, after, strict=True):
            assert torch.equal(new[stays], old[stays]) and not new[~stays].any()
    assert sum(update.grown for update in topology.history) > 0


# --- copies and storing -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_share_nothing(kind, duplicate):
    layer = KINDS[kind]()
    swapped(layer)
    x = inputs(layer)
    layer(x).sum().backward()
    twin = duplicate(layer)
    layer.zero_grad()  # which torch copies to no copy
    assert_same(tensors(twin), tensors(layer))
    assert twin.topology == layer.topology and repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))
    before = tensors(layer)
    swapped(twin, seed=1)
    assert twin.topology != layer.topology
    assert_same(tensors(layer), before)
    assert not {t.data_ptr() for t in twin.state_dict().values()} & {
        t.data_ptr() for t in layer.state_dict().values()
    }


OTHERS = {
    "more slots": lambda kind: KINDS[kind](capacity=64, seed=9),
    "more connections": lambda kind: KINDS[kind](
        seed=9, **({"fan_in": 7, "capacity": 60} if "groups" in kind else {"density": 0.7, "capacity": 66})
    ),
    "fewer connections": lambda kind: KINDS[kind](
        seed=9, **({"fan_in": 1} if "groups" in kind else {"density": 0.1})
    ),
}


@each_kind
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_into_a_layer_of_another_number_of_connections(kind, other, assign):
    layer, into = KINDS[kind](), OTHERS[other](kind)
    swapped(layer)
    assert into.topology != layer.topology
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    parameter = into.values
    into(inputs(into)).sum().backward()
    into.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert assign or into.values is parameter
    layer.zero_grad()
    into.zero_grad()
    assert_same(tensors(into), tensors(layer))
    for trained in (layer, into):
        trained.capture_gradient(True)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        topology = tk.RigL(interval=1, end=10).attach(trained, optimizer)
        for step in range(4):
            optimizer.zero_grad()
            trained(inputs(trained, seed=step)).square().sum().backward()
            optimizer.step()
            topology.step()
    assert_same(tensors(into), tensors(layer))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["groups", "relu", "stack of groups", "stack of autoencoders"])
def test_compiles_in_one_graph_between_updates(kind):
    torch.compiler.reset()
    layer = KINDS[kind](dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True)
    for seed in range(3):
        x = inputs(layer, seed)
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            y = compiled(x)
        expected = layer(x)
        torch.testing.assert_close(y, expected)
        parameters = list(layer.parameters())
        for ours, theirs in zip(
            torch.autograd.grad(y.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
        swapped(layer, seed)


# --- what is refused, and leaves everything as it was -------------------------------------------------------

MISFITS = {
    "columns out of range": (lambda s: {"column": s["column"] + IN}, "topology: column must be from 0 to"),
    "negative columns": (lambda s: {"column": s["column"] - IN}, "topology: column must be from 0 to"),
    "columns out of order": (lambda s: {"column": s["column"].flip(0)}, "topology: column must"),
    "too many in the rows": (lambda s: {"row_start": s["row_start"] * 3}, "topology: row_start must end at"),
    "rows of another layer": (lambda s: {"row_start": s["row_start"][:, 1:]}, "topology: row_start must"),
    "columns of another type": (lambda s: {"column": s["column"].long()}, "topology: column must be a"),
    "fewer values": (lambda s: {"values": s["values"][:-1]}, "topology: values must have one entry for each"),
    "another shape": (lambda s: {"shape": s["shape"] + 1}, "topology: its .n_models, out_features, in_feat"),
    "another bias": (lambda s: {"bias": torch.zeros(2, 2, 2)}, "bias must have the shape"),
}  # fmt: skip


@each_kind
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_state_whose_topology_does_not_fit(kind, misfit):
    layer, source = KINDS[kind](), KINDS[kind](seed=8)
    if misfit == "another bias" and layer.bias is None:
        return
    layer(inputs(layer)).sum().backward()
    before, topology = tensors(layer), layer.topology
    change, match = MISFITS[misfit]
    state = source.state_dict()
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state | change(state))
    assert_same(tensors(layer), before)
    assert layer.topology is topology
    swapped(layer)  # and it goes on


@each_kind
@pytest.mark.parametrize(
    ("density", "match"),
    [
        (0.0, "density must be above 0 and at most 1, not 0.0"),
        (-0.1, "density must be above 0 and at most 1"),
        (1.0001, "density must be above 0 and at most 1"),
        (float("nan"), "density"),
        (float("inf"), "density"),
        (1e-9, "leaves no connection"),
    ],
)
def test_densities_outside(kind, density, match):
    if "groups" in kind:
        return
    with pytest.raises(ValueError, match=match):
        KINDS[kind](density=density)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: tk.SparseLinear(40, 20, **o),
        lambda **o: tk.SparseTiedAutoencoder(40, 20, **o),
        lambda **o: Topology.random(40, 20, **o),
    ],
    ids=["linear", "autoencoder", "topology"],
)
def test_a_density_that_leaves_an_output_without_inputs(make):
    with pytest.raises(ValueError, match=r"39 connections, not enough for minimum_fan_in=2 on each of 20"):
        make(density=39 / 800, minimum_fan_in=2)
    with pytest.raises(ValueError, match="minimum_fan_in"):
        make(density=0.5, minimum_fan_in=41)
    with pytest.raises(ValueError, match="minimum_fan_in"):
        make(density=0.5, minimum_fan_in=-1)
    for density in (2 / 40, 0.06):
        made = make(density=density, minimum_fan_in=2, n_models=30)
        topology = made if isinstance(made, Topology) else made.topology
        assert int(topology.fan_in.min()) == 2
        assert topology.n_connections.tolist() == [round(density * 800)] * 30
    if not isinstance(made, Topology):
        assert int(make(density=0.06, n_models=30).topology.fan_in.min()) < 2
        for other in ({"fan_in": 3}, {"topology": Topology.random(40, 20, 0.5)}):
            with pytest.raises(ValueError, match="minimum_fan_in=1 goes with density"):
                make(minimum_fan_in=1, **other)


# What needs which gradient, and what a step without it says.
WITHOUT = {
    "rigl": (
        tk.RigL(interval=1, end=9),
        "the sparse layer .* saw no backward pass in this step: call topology.step",
    ),
    "gse": (
        tk.GSE(interval=1, end=9),
        "the sparse layer .* saw no backward pass in this step: call topology.step",
    ),
    "snfs": (
        tk.SNFS(interval=1, end=9),
        "the sparse layer .* saw no backward pass in this step: call topology.step",
    ),
    "srigl": (
        tk.SRigL(interval=1, end=9),
        "the sparse layer .* saw no backward pass in this step: call topology.step",
    ),
    "sensitivity": (
        tk.sparse.PruneAndGrow(
            prune=tk.sparse.Sensitivity(), grow=tk.sparse.RandomGrowth(), interval=1, end=9
        ),
        "have no gradient: call topology.step\\(\\) after loss.backward",
    ),
}


@pytest.mark.parametrize("recipe", WITHOUT)
@pytest.mark.parametrize("where", ["nowhere", "in one of three"])
def test_a_step_without_gradients(recipe, where):
    """In the middle of training; also where some layers have gradients and a later one has none."""
    model = Mixed(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recipe, match = WITHOUT[recipe]
    topology = replace(recipe, interval=2).attach(model, optimizer)
    for step in range(3):
        x = batch(step, 9, 2)
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        topology.step()
    optimizer.zero_grad()
    for layer in topology.layers.values():  # as a fourth step that made no use of them
        layer.capture_gradient(topology.recipe.observes(4))
    if where == "in one of three":
        # The first two sparse layers alone.
        loss_of(model.third(torch.tanh(model.norm(model.second(torch.tanh(model.first(x)))))), x).backward()
    optimizer.step()
    held = everything(model, optimizer, topology)
    before = {name: value.clone() for name, value in held.items()}
    index = [tensors(layer) for layer in topology.layers.values()]
    history = list(topology.history)
    with pytest.raises(RuntimeError, match=match):
        topology.step()
    assert topology.steps == 3 and topology.history == history
    assert_same(everything(model, optimizer, topology), before)
    for layer, kept in zip(topology.layers.values(), index, strict=True):
        assert_same(tensors(layer), kept)
    optimizer.zero_grad()
    loss_of(model(x), x).backward()
    optimizer.step()
    assert topology.step().grown > 0  # and it goes on


@each_kind
def test_an_optimizer_that_does_not_hold_the_values(kind):
    layer = KINDS[kind]()
    model = nn.Sequential(layer, nn.Linear(3, 3))
    before = tensors(layer)
    for recipe in (tk.SET(), tk.RigL(end=100), tk.LotteryTicket(rounds=1, round_steps=5)):
        with pytest.raises(ValueError, match="does not hold the values of the sparse layer '0'"):
            recipe.attach(model, torch.optim.Adam(model[1].parameters()))
    assert_same(tensors(layer), before)
    assert layer._capturing is False


@each_kind
def test_changes_that_do_not_fit(kind):
    layer = KINDS[kind]()
    layer(inputs(layer)).sum().backward()
    before, topology = tensors(layer), layer.topology
    slots = len(layer.values)
    stays = torch.arange(slots)
    full = Topology.from_mask(torch.ones(layer.n_models, OUT, IN, dtype=torch.bool))
    for arguments, match in (
        ((full, stays), "topology must have the module's"),
        ((topology, stays + 1), "old_slot must be from"),
        ((topology, stays - 2), "old_slot must be from"),
        ((topology, stays[1:]), "old_slot must be an int64 tensor"),
        ((topology, stays.double()), "old_slot must be an int64 tensor"),
        ((topology, stays, torch.zeros(slots + 1)), "grown must be a number"),
    ):
        with pytest.raises(ValueError, match=match):
            layer.set_topology(*arguments)
    no_drop = torch.zeros(slots, dtype=torch.bool)
    for place, match in (
        ((0, 0, IN), f"column must be from 0 to {IN - 1}, not {IN}"),
        ((0, OUT, 0), f"row must be from 0 to {OUT - 1}, not {OUT}"),
        ((layer.n_models, 0, 0), "model must be from 0 to"),
        ((0, 0, -1), "column must be from 0 to"),
    ):
        with pytest.raises(ValueError, match=match):
            topology.with_changes(no_drop, tuple(torch.tensor([part]) for part in place))
    assert_same(tensors(layer), before)
    assert layer.topology is topology


# --- names and shapes of parameters -------------------------------------------------------------------------


class _Abs(nn.Module):
    def forward(self, x):
        return x.abs()


def test_the_bias_of_one_model_is_a_vector_and_old_states_load():
    layer, stack = tk.SparseLinear(20, 5, 0.3, seed=0), tk.SparseLinear(20, 5, 0.3, n_models=2, seed=0)
    assert layer.bias.shape == (5,) and stack.bias.shape == (2, 5)
    decayed = [name for name, p in nn.Sequential(layer).named_parameters() if p.ndim >= 2]
    assert decayed == []
    x = torch.randn(8, 20)
    for relu in ("none", "relu"):
        layer.activation = stack.activation = relu
        stack.load_state_dict(stack.state_dict())
        assert torch.equal(layer(x), stack(x)[0])
        (layer(x) ** 2).sum().backward()
        (stack(x)[0] ** 2).sum().backward()
        assert torch.equal(layer.bias.grad, stack.bias.grad[0]) and layer.bias.grad.shape == (5,)
    state = layer.state_dict()
    old = {**state, "bias": state["bias"][None] + 1}
    layer.load_state_dict(old)
    assert torch.equal(layer.bias, old["bias"][0])
    nested = nn.Sequential(layer)
    nested.load_state_dict({f"0.{name}": value for name, value in old.items()})
    with pytest.raises(RuntimeError, match=r"bias must have the shape \[5\], not \[4\]"):
        layer.load_state_dict({**state, "bias": torch.zeros(4)})


def test_values_can_be_parametrised():
    layer = tk.SparseLinear(20, 5, 0.3, seed=0)
    x, dense = torch.randn(8, 20), layer.to_dense()[0].detach()
    parametrize.register_parametrization(layer, "values", _Abs())
    expected = nn.functional.linear(x, dense.abs(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    layer(x).square().sum().backward()
    original = layer.parametrizations["values"].original
    assert original is layer.get_parameter("parametrizations.values.original")
    assert bool(original.grad.any()) and [n for n, _ in layer.named_parameters()] == [
        "bias",
        "parametrizations.values.original",
    ]
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()
    assert bool((layer.to_dense() >= 0).all())
    other = tk.SparseLinear(20, 5, 0.3, seed=1)
    parametrize.register_parametrization(other, "values", _Abs())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and other.topology == layer.topology
    doubled = {name: 2 * p for name, p in layer.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(layer, doubled, x), 2 * layer(x))
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x), layer(x))
    with pytest.raises(RuntimeError, match="values is parametrised"):
        layer.set_topology(layer.topology, torch.arange(len(layer.values)))
    with pytest.raises(ValueError, match="values of the sparse layer '' are parametrised"):
        tk.SET(interval=1).attach(layer, torch.optim.SGD(layer.parameters(), 0.1))
    parametrize.remove_parametrizations(layer, "values")
    assert isinstance(layer.values, nn.Parameter) and bool((layer.values >= 0).all())
    tk.SET(interval=1).attach(layer, torch.optim.SGD(layer.parameters(), 0.1)).step()
