"""`SparseLinear` and `SparseTiedAutoencoder` as modules: start, changes of topology, storing, compiling."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import toykern as tk
from toykern.nn import SparseLinear, SparseTiedAutoencoder, TiedAutoencoder
from toykern.nn.sparse_initialization import initial_values
from toykern.sparse.topology import Topology


def _layer(n_models=1, **options):
    options = {"density": 0.3, "seed": 5} | options
    density = options.pop("density")
    return SparseLinear(17, 9, density, n_models=n_models, **options)


def _swap(layer, generator_seed=0):
    """A topology with a third of every model's connections elsewhere, and old_slot."""
    generator = torch.Generator().manual_seed(generator_seed)
    topology = layer.topology
    drop = (torch.rand(len(topology.column), generator=generator) < 0.33) & topology.occupied()
    free = ~topology.to_mask()
    model, row, column = (part[::5] for part in free.nonzero(as_tuple=True))
    room = [int(drop.view(topology.n_models, -1)[k].sum()) for k in range(topology.n_models)]
    chosen = torch.cat([(model == k).nonzero()[: room[k], 0] for k in range(topology.n_models)])
    return topology.with_changes(drop, (model[chosen], row[chosen], column[chosen]))


# --- what it computes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("shape", [(17,), (4, 17), (2, 3, 17), (0, 17)])
def test_one_model_is_a_linear_layer(shape, activation):
    layer = _layer(activation=activation)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    dense = layer.to_linear()
    expected = functional.relu(dense(x)) if activation == "relu" else dense(x)
    torch.testing.assert_close(layer(x), expected)


def test_several_models_on_batches_of_their_own_or_one():
    layer = _layer(n_models=3)
    x = torch.randn(3, 6, 17, generator=torch.Generator().manual_seed(1))
    expected = torch.baddbmm(layer.bias[:, None], x, layer.to_dense().mT)
    torch.testing.assert_close(layer(x), expected)
    for shared in (x[0], x[:1]):
        y = layer(shared)
        y.sum().backward()
        torch.testing.assert_close(
            y, torch.baddbmm(layer.bias[:, None], x[:1].expand(3, -1, -1), layer.to_dense().mT)
        )


def test_the_input_of_all_models_gets_the_sum_of_their_gradients():
    layer = _layer(n_models=3, dtype=torch.float64)
    x = torch.randn(6, 17, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    ours, x.grad = x.grad, None
    torch.baddbmm(layer.bias[:, None], x.expand(3, 6, 17), layer.to_dense().mT).square().sum().backward()
    torch.testing.assert_close(ours, x.grad)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_to_csr():
    layer = _layer(n_models=2)
    for model in (0, 1, -1):
        csr = layer.to_csr(model)
        assert csr.layout == torch.sparse_csr and torch.equal(csr.to_dense(), layer.to_dense()[model])
    with pytest.raises(IndexError, match="model 2 is out of range"):
        layer.to_csr(2)


def test_from_linear_and_back():
    dense = nn.Linear(20, 30, dtype=torch.float64).eval()
    topology = Topology.from_largest(dense.weight, 0.2)
    layer = SparseLinear.from_linear(dense, topology)
    kept = torch.where(topology.to_mask()[0], dense.weight, 0)
    assert torch.equal(layer.to_dense()[0], kept) and torch.equal(layer.bias, dense.bias)
    assert torch.equal(layer.to_linear().weight, kept) and not layer.training
    assert SparseLinear.from_linear(nn.Linear(20, 30, bias=False), topology).bias is None


def test_trains_like_a_masked_dense_layer():
    layer = _layer(dtype=torch.float64)
    mask = layer.topology.to_mask()[0]
    dense = layer.to_linear()
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.01) for module in (layer, dense)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        x, target = torch.randn(20, 17, generator=generator).double(), torch.randn(20, 9, generator=generator)
        for module, optimizer in zip((layer, dense), optimizers, strict=True):
            optimizer.zero_grad()
            functional.mse_loss(module(x), target.double()).backward()
            if module is dense:
                dense.weight.grad.mul_(mask)
            optimizer.step()
    torch.testing.assert_close(layer.to_linear().weight, dense.weight, rtol=1e-9, atol=1e-12)


# --- how it begins ----------------------------------------------------------------------------------------


def test_seeds_decide_everything():
    assert torch.equal(_layer(seed=3).to_dense(), _layer(seed=3).to_dense())
    assert not torch.equal(_layer(seed=3).to_dense(), _layer(seed=4).to_dense())
    stack = _layer(n_models=3, seed=[7, 3, 1])
    alone = _layer(seed=3)
    assert torch.equal(stack.to_dense()[1], alone.to_dense()[0]) and torch.equal(stack.bias[1], alone.bias)


def test_without_a_seed_torch_decides():
    torch.manual_seed(1)
    first, second = _layer(seed=None), _layer(seed=None)
    torch.manual_seed(1)
    again = _layer(seed=None)
    assert torch.equal(first.to_dense(), again.to_dense())
    assert not torch.equal(first.to_dense(), second.to_dense())


def test_constant_fan_in():
    assert SparseLinear(50, 30, fan_in=4, n_models=2).topology.fan_in.unique().tolist() == [4]
    assert SparseLinear(50, 30, fan_in=[4, 6], n_models=2, seed=0).topology.fan_in.unique().tolist() == [4, 6]


def test_room_for_more_connections():
    layer = _layer(n_models=2, capacity=100)
    assert len(layer.values) == 200 and layer.topology.n_connections.tolist() == [46, 46]
    assert torch.equal(layer.to_dense(), _layer(n_models=2).to_dense())


def test_initial_statistics_follow_the_actual_fan_in():
    """Rows of 4 and rows of 64 connections: the spread of each by its own number."""
    mask = torch.zeros(400, 400, dtype=torch.bool)
    mask[::2, :4] = True
    mask[1::2, 100:164] = True
    layer = SparseLinear(400, 400, topology=Topology.from_mask(mask), seed=1)
    for rows, fan_in in ((slice(0, None, 2), 4), (slice(1, None, 2), 64)):
        drawn = layer.to_dense()[0, rows][mask[rows]]
        bound = fan_in**-0.5
        assert drawn.abs().max() <= bound
        # Of n uniform draws the variance is bound²/3, with a standard error of √(4/5/n) of it.
        assert drawn.var().item() == pytest.approx(bound**2 / 3, rel=5 * (0.8 / len(drawn)) ** 0.5)
        assert abs(drawn.mean().item()) < 5 * bound / (3 * len(drawn)) ** 0.5
        assert layer.bias[rows].abs().max() <= bound < 1.1 * layer.bias[rows].abs().max()


@pytest.mark.parametrize(("init", "std"), [("kaiming", 0.5), ("xavier", 0.5**0.5 / 2), (0.3, 0.3)])
def test_normal_initialisations(init, std):
    topology = Topology.random_fan_in(800, 800, 8)  # mean fan-out 8 too
    drawn = initial_values(topology, torch.tensor([2]), init)
    assert drawn.std().item() == pytest.approx(std, rel=5 * (0.5 / len(drawn)) ** 0.5)
    layer = SparseLinear(800, 800, topology=topology, init=init)
    assert not layer.bias.any()


def test_a_row_without_connections_starts_at_0():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    layer = SparseLinear(4, 3, topology=Topology.from_mask(mask), seed=0)
    assert layer.bias[0] == 0 and layer.bias[2] == 0 and layer.bias[1] != 0


def test_repr_and_options():
    assert repr(_layer(n_models=2, activation="relu")) == (
        "SparseLinear(in_features=17, out_features=9, density=0.3007, n_models=2, bias=True, "
        "activation='relu')"
    )
    assert _layer(bias=False).bias is None
    assert _layer(dtype=torch.bfloat16)(torch.zeros(2, 17, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert tk.SparseLinear is SparseLinear and tk.SparseTiedAutoencoder is SparseTiedAutoencoder


# --- how it changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_models", [1, 3])
def test_values_follow_their_connections(n_models):
    layer = _layer(
        n_models=n_models, topology=Topology.random(17, 9, 0.3, n_models=n_models, capacity=60), density=None
    )
    parameter, buffer = layer.values, layer.column
    x = torch.randn(n_models, 5, 17, generator=torch.Generator().manual_seed(0))
    x = x if n_models > 1 else x[0]
    layer(x).sum().backward()
    before, gradient = layer.to_dense(), layer.topology.to_dense(layer.values.grad)
    old = layer.topology
    old_mask, old_column = old.to_mask(), old.column.clone()
    topology, old_slot = _swap(layer)
    assert int((old_slot >= 0).sum()) < int(old.n_connections.sum())
    layer.set_topology(topology, old_slot, grown=0.25)
    assert layer.values is parameter and layer.column is buffer
    assert layer.topology == topology and torch.equal(old.column, old_column)
    stays, grown = topology.to_mask() & old_mask, topology.to_mask() & ~old_mask
    after = layer.to_dense()
    assert torch.equal(after[stays], before[stays]) and bool((after[grown] == 0.25).all())
    assert not after[~topology.to_mask()].any() and not layer.values[~topology.occupied()].any()
    assert torch.equal(topology.to_dense(layer.values.grad), torch.where(stays, gradient, 0))
    dense = torch.matmul(x, after.mT if n_models > 1 else after[0].T) + (
        layer.bias[:, None] if n_models > 1 else layer.bias
    )
    torch.testing.assert_close(layer(x), dense)


def test_values_of_grown_connections_one_by_one():
    layer = _layer()
    topology, old_slot = _swap(layer)
    start = torch.arange(1.0, len(old_slot) + 1)
    layer.set_topology(topology, old_slot, grown=start)
    new = (old_slot < 0) & topology.occupied()
    assert torch.equal(layer.values[new], start[new])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: (Topology.random(16, 9, 0.3), s), "topology must have the module's"),
        (lambda t, s: (t, s[1:]), "old_slot must be an int64 tensor"),
        (lambda t, s: (t, s.int()), "old_slot must be an int64 tensor"),
        (lambda t, s: (t, s + 1000), "old_slot must be from −1 to"),
    ],
)
def test_a_change_that_does_not_fit_leaves_the_layer_as_it_was(change, message):
    layer = _layer()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=message):
        layer.set_topology(*change(*_swap(layer)))
    with pytest.raises(ValueError, match="grown must be a number"):
        layer.set_topology(*_swap(layer), grown=torch.ones(3))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_pass_that_began_before_a_change_is_refused_afterwards():
    layer = _layer()
    y = layer(torch.randn(4, 17))
    layer.set_topology(*_swap(layer))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- gradients that growth looks at -----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("shared", [False, True])
def test_captured_gradients(shared, activation):
    layer = _layer(n_models=3, dtype=torch.float64, activation=activation)
    weight = layer.to_dense().detach().requires_grad_()
    layer.capture_gradient(True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # two passes add up
        x = torch.randn(5, 17, generator=generator).double() if shared else torch.randn(3, 5, 17).double()
        target = torch.randn(3, 5, 9, generator=generator).double()
        (layer(x) * target).sum().backward()
        y = torch.matmul(x, weight.mT) + layer.bias.detach()[:, None]
        ((y.relu() if activation == "relu" else y) * target).sum().backward()
    torch.testing.assert_close(layer.dense_gradient(), weight.grad)
    places = torch.randint(0, 10**6, (3, 200), generator=generator) % torch.tensor([[3], [9], [17]])
    torch.testing.assert_close(layer.gradient_at(*places), weight.grad[tuple(places)])
    torch.testing.assert_close(layer.gradient_at(*places[:, :0]), weight.grad[:0].sum(dim=(1, 2)))
    occupied = layer.topology.occupied_slots()
    torch.testing.assert_close(layer.gradient_at(*layer.topology.places()), layer.values.grad[occupied])
    layer.capture_gradient(False)
    layer(x).sum().backward()
    for ask in (layer.dense_gradient, lambda: layer.gradient_at(*places)):
        with pytest.raises(RuntimeError, match="no backward pass was captured"):
            ask()
    layer.capture_gradient(True)
    layer(x).sum().backward()
    with pytest.raises(ValueError, match="column must be from 0 to 16"):
        layer.gradient_at(places[0], places[1], places[2] + 17)


def test_copies_capture_for_themselves():
    layer = _layer()
    layer.capture_gradient(True)
    layer(torch.randn(4, 17)).sum().backward()
    twin = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="no backward pass"):
        twin.dense_gradient()
    twin(torch.randn(4, 17)).sum().backward()
    assert not torch.equal(twin.dense_gradient(), layer.dense_gradient())


# --- storing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_models", [1, 3])
def test_state_dict_into_a_layer_of_another_number_of_connections(n_models):
    layer, other = _layer(n_models=n_models), _layer(n_models=n_models, density=0.7, seed=9)
    parameter = other.values
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    assert set(layer.state_dict()) == {"values", "bias", "shape", "row_start", "column"}
    other.load_state_dict(torch.load(stored))
    assert other.values is parameter and other.topology == layer.topology
    x = torch.randn(n_models, 4, 17) if n_models > 1 else torch.randn(4, 17)
    assert torch.equal(other(x), layer(x))
    other(x).sum().backward()
    layer(x).sum().backward()
    assert torch.equal(other.values.grad, layer.values.grad)


def test_loading_beneath_a_container_and_its_optimizer():
    network = nn.Sequential(_layer(), nn.ReLU(), SparseLinear(9, 4, 0.5))
    twin = nn.Sequential(_layer(density=0.5), nn.ReLU(), SparseLinear(9, 4, 0.2))
    optimizers = [torch.optim.Adam(n.parameters()) for n in (network, twin)]
    x = torch.randn(6, 17, generator=torch.Generator().manual_seed(0))
    network(x).square().sum().backward()
    optimizers[0].step()
    twin.load_state_dict(network.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for one, optimizer in zip((network, twin), optimizers, strict=True):
        optimizer.zero_grad()
        one(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


def _changed(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _changed(s, column=s["column"] + 17), "column must be from 0 to in_features"),
        (lambda s: _changed(s, column=s["column"].flip(0)), "column must ascend"),
        (lambda s: _changed(s, row_start=s["row_start"][:, 1:]), "row_start must have the shape"),
        (lambda s: _changed(s, row_start=s["row_start"] * 2), "row_start must end at or below"),
        (lambda s: _changed(s, values=s["values"][1:]), "values must have one entry for each slot"),
        (lambda s: {k: v for k, v in s.items() if k != "column"}, "must be loaded together"),
        (lambda s: SparseLinear(18, 9, 0.3).state_dict(), r"is \[1, 9, 18\], not \[1, 9, 17\]"),
        (lambda s: SparseLinear(17, 9, 0.3, n_models=2).state_dict(), r"is \[2, 9, 17\]"),
    ],
)
def test_a_state_that_does_not_fit_leaves_the_layer_as_it_was(change, message):
    layer = _layer()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(change(_layer(seed=8).state_dict()))
    assert all(
        torch.equal(value, before[name]) for name, value in layer.state_dict().items() if name != "bias"
    )
    torch.testing.assert_close(layer(torch.ones(2, 17)), layer.to_linear()(torch.ones(2, 17)))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("kind", ["linear", "autoencoder"])
def test_copies(duplicate, kind):
    layer = _layer(n_models=2) if kind == "linear" else SparseTiedAutoencoder(17, 9, 0.3, n_models=2)
    assert layer.topology is layer.topology
    twin = duplicate(layer)
    x = torch.randn(4, 17)
    assert torch.equal(twin(x), layer(x)) and twin.topology == layer.topology
    twin.set_topology(*_swap(twin))
    assert twin.topology != layer.topology and not torch.equal(twin(x), layer(x))
    assert twin.values.data_ptr() != layer.values.data_ptr()


def test_dtypes_and_what_moves():
    layer = _layer().double()
    assert layer.values.dtype == torch.float64 and layer.column.dtype == torch.int32
    assert layer(torch.zeros(1, 17, dtype=torch.float64)).dtype == torch.float64
    meta = _layer().to("meta")
    assert meta(torch.zeros(3, 17, device="meta")).shape == (3, 9)


def test_in_inference_mode():
    with torch.inference_mode():
        layer = _layer()
        assert layer(torch.zeros(2, 17)).shape == (2, 9)
        assert layer.topology == layer.topology


def test_functional_call_and_frozen_values():
    layer = _layer()
    doubled = {"values": 2 * layer.values.detach(), "bias": layer.bias.detach()}
    x = torch.randn(3, 17)
    y = torch.func.functional_call(layer, doubled, (x,))
    torch.testing.assert_close(y, functional.linear(x, 2 * layer.to_dense()[0], layer.bias))
    layer.values.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.values.grad is None and layer.bias.grad is not None


# --- compiling --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiles_in_one_graph_that_outlives_updates():
    torch.compiler.reset()
    layer = _layer(activation="relu")
    network = nn.Sequential(layer, nn.Linear(9, 3))
    compiled = torch.compile(network, fullgraph=True)
    x = torch.randn(6, 17)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            expected = network(x)
            torch.testing.assert_close(compiled(x), expected)
            (ours,) = torch.autograd.grad(compiled(x).square().sum(), layer.values)
            (eager,) = torch.autograd.grad(expected.square().sum(), layer.values)
            torch.testing.assert_close(ours, eager)
            layer.set_topology(*_swap(layer, step))
    layer.capture_gradient(True)
    compiled(x).square().sum().backward()
    captured = layer.dense_gradient()
    layer.capture_gradient(True)
    network(x).square().sum().backward()
    torch.testing.assert_close(captured, layer.dense_gradient())


@pytest.mark.slow
def test_the_autoencoder_compiles_in_one_graph():
    model = SparseTiedAutoencoder(17, 9, 0.4, n_models=2)
    compiled = torch.compile(model.loss, fullgraph=True)
    x = torch.rand(6, 17)
    torch.testing.assert_close(compiled(x), model.loss(x))
    (ours,) = torch.autograd.grad(compiled(x).sum(), model.values)
    torch.testing.assert_close(ours, torch.autograd.grad(model.loss(x).sum(), model.values)[0])


# --- the autoencoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", ["none", "relu"])
@pytest.mark.parametrize("output", ["none", "relu"])
def test_autoencoder_equals_the_dense_one(hidden, output):
    options = {"n_models": 3, "hidden_activation": hidden, "output_activation": output}
    sparse = SparseTiedAutoencoder(12, 7, 0.4, dtype=torch.float64, **options)
    dense = TiedAutoencoder(12, 7, **options).double()
    with torch.no_grad():
        sparse.bias += 0.1
        dense.weight.copy_(sparse.weight)
        dense.bias.copy_(sparse.bias)
    sparse.capture_gradient(True)
    x = torch.rand(3, 30, 12, generator=torch.Generator().manual_seed(0)).double()
    arguments = {"importance": 0.9 ** torch.arange(12).double(), "loss_reduction": "sum"}
    for inputs in (x, x[0]):
        torch.testing.assert_close(sparse(inputs), dense(inputs))
        loss = sparse.loss(inputs, **arguments)
        torch.testing.assert_close(loss, dense.loss(inputs, **arguments))
        loss.sum().backward()
        dense.loss(inputs, **arguments).sum().backward()
    mask = sparse.topology.to_mask()
    expected = torch.where(mask, dense.weight.grad, 0)
    torch.testing.assert_close(sparse.topology.to_dense(sparse.values.grad), expected)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)
    torch.testing.assert_close(sparse.dense_gradient(), dense.weight.grad)
    model, row, column = (~mask).nonzero(as_tuple=True)
    torch.testing.assert_close(sparse.gradient_at(model, row, column), dense.weight.grad[~mask])
    torch.testing.assert_close(tk.metrics.feature_dimensionality(sparse.weight.float()),
                               tk.metrics.feature_dimensionality(dense.weight.float()))  # fmt: skip


def test_autoencoder_after_a_change_and_a_load():
    model = SparseTiedAutoencoder(12, 7, 0.4, n_models=2)
    other = SparseTiedAutoencoder(12, 7, 0.7, n_models=2, seed=[8, 9])
    x = torch.rand(5, 12)
    model.set_topology(*_swap(model))
    hidden = x @ model.weight.mT
    torch.testing.assert_close(model(x), (hidden @ model.weight + model.bias[:, None]).relu())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_autoencoder_refuses():
    model = SparseTiedAutoencoder(12, 7, fan_in=3)
    with pytest.raises(ValueError, match=r"\[1, batch, 12\] or \[batch, 12\], not \[5, 11\]"):
        model(torch.zeros(5, 11))
    with pytest.raises(ValueError, match="at least one sample"):
        model.loss(torch.zeros(0, 12))
    with pytest.raises(ValueError, match="target must have the samples"):
        model.loss(torch.zeros(4, 12), target=torch.zeros(3, 12))


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"density": 0.0}, ValueError, "density must be above 0 and at most 1, not 0.0"),
        ({"density": 1.5}, ValueError, "density must be above 0 and at most 1, not 1.5"),
        ({"density": 1e-6}, ValueError, "leaves no connection"),
        ({"density": None}, ValueError, "exactly one of density, fan_in and topology"),
        ({"fan_in": 3}, ValueError, "exactly one of density, fan_in and topology"),
        ({"density": None, "fan_in": 18}, ValueError, "fan_in must be from 1 to in_features"),
        ({"density": None, "topology": 3}, TypeError, "topology must be a toykern.sparse.Topology"),
        ({"density": None, "topology": Topology.random(9, 17, 0.5)}, ValueError, r"\(17, 9, 1\), not"),
        ({"capacity": 5}, ValueError, "capacity must be at least the number of connections"),
        ({"density": None, "topology": Topology.random(17, 9, 0.5), "capacity": 99}, ValueError, "capacity"),
        ({"init": "none"}, ValueError, "init must be one of 'linear', 'kaiming', 'xavier'"),
        ({"init": -1.0}, ValueError, "at least 0"),
        ({"init": None}, TypeError, "init must be one of"),
        ({"activation": "gelu"}, ValueError, "activation must be one of 'none', 'relu'"),
        ({"dtype": torch.float16}, ValueError, "dtype must be one of float32, float64, bfloat16"),
        ({"n_models": 0}, ValueError, "n_models must be"),
        ({"bias": 1}, TypeError, "bias must be True or False"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)  # fmt: skip
def test_constructor_refuses(options, kind, message):
    with pytest.raises(kind, match=message):
        _layer(**options)


@pytest.mark.parametrize(
    ("n_models", "shape", "message"),
    [
        (1, (4, 16), "in_features = 17, not"),
        (3, (2, 4, 17), r"\[3, batch, 17\] or \[batch, 17\], not \[2, 4, 17\]"),
        (3, (17,), r"\[3, batch, 17\] or"),
        (3, (1, 3, 4, 17), "x must have the shape"),
    ],
)
def test_forward_refuses(n_models, shape, message):
    with pytest.raises(ValueError, match=message):
        _layer(n_models=n_models)(torch.zeros(shape))


def test_forward_refuses_another_dtype():
    with pytest.raises(TypeError, match="values must have the dtype of x, torch.float64"):
        _layer()(torch.zeros(2, 17, dtype=torch.float64))
