"""Recipes when something around them is not as usual: gradients, frozen layers, optimisers."""

import copy
import gc
import warnings

import pytest
import torch
from masked_dense import Network, batch, loss_of, network, sparse_layer
from torch import nn

import toykern as tk
from toykern import sparse
from toykern.sparse import Topology
from toykern.sparse.optimizer_state import beginnings_of

TIMING = {"interval": 2, "end": 90}
BY_GRADIENT = {
    "rigl": sparse.RigL(**TIMING),
    "accumulated": sparse.RigL(**TIMING, accumulate=2),
    "global": sparse.RigL(**TIMING, scope="global"),
    "snfs": sparse.SNFS(**TIMING),
    "gse": sparse.GSE(**TIMING),
    "gse_accumulated": sparse.GSE(**TIMING, accumulate=2),
    "gse_redistributed": sparse.GSE(**TIMING, redistribution="score"),
    "grabo": sparse.GSE(**TIMING, grow=sparse.SampledGradient(distribution="grabo")),
    "srigl": sparse.SRigL(**TIMING),
    "srigl_once": sparse.SRigL(**TIMING, ablation=0),
    "sensitivity": sparse.SET(**TIMING, prune=sparse.Sensitivity()),
}


def _start(recipe, n_models=2, **options):
    model = network(9, 12, 7, n_models=n_models, capacity=1.5, make=sparse_layer, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, optimizer, recipe.attach(model, optimizer)


def _step(model, optimizer, topology, step, poison=(), value=float("inf"), moves=True):
    n_models = model.layers[0].n_models
    x = batch(step, 9, n_models)
    optimizer.zero_grad()
    losses = loss_of(model(x), x).reshape(-1)
    if len(poison):
        scale = torch.ones(n_models, 1, 1, dtype=x.dtype)
        scale[list(poison)] = value
        output = model(x)
        losses = (output * scale).square().sum()
    losses.sum().backward()
    if moves and not len(poison):
        optimizer.step()
    return topology.step()


def _masks(model):
    return [layer.topology.to_mask() for layer in model.layers]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("recipe", BY_GRADIENT)
def test_gradients_that_are_not_finite_change_nothing_where_they_are(recipe, value):
    """Both steps of a window are infinite in model 1, as a GradScaler meets them; model 0 goes on."""
    model, optimizer, topology = _start(BY_GRADIENT[recipe])
    before = _masks(model)
    _step(model, optimizer, topology, 0, poison=[1], value=value)
    with pytest.warns(RuntimeWarning, match="gradient of 1 models is not finite at step 2"):
        update = _step(model, optimizer, topology, 1, poison=[1], value=value)
    assert update.skipped == (1,) and topology.history[-1].skipped == (1,)
    after = _masks(model)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(after, before, strict=True))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(after, before, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and it is over when gradients are finite again
        for step in range(2, 6):
            update = _step(model, optimizer, topology, step)
    assert update.skipped == () and not all(
        map(torch.equal, (a[1] for a in _masks(model)), (b[1] for b in before))
    )
    kept = [t for layer in topology.attached_layers for t in layer.memory.values() if t.is_floating_point()]
    assert all(bool(t.isfinite().all()) for t in kept)


@pytest.mark.parametrize("recipe", ["accumulated", "snfs", "gse_accumulated"])
def test_a_step_that_is_not_finite_does_not_count(recipe):
    """The update is the one of a window without that step."""
    runs = []
    for poison in ([], [0]):
        model, optimizer, topology = _start(BY_GRADIENT[recipe], n_models=1)
        gathered = []
        for step in range(2):
            if step == 0 and not poison:
                topology._set_capture()
                x = batch(0, 9, 1)
                (loss_of(model(x), x) * 0).sum().backward()  # a gradient of 0 adds nothing
                topology.step()
                continue
            update = _step(model, optimizer, topology, step, poison=poison if step == 0 else [])
            gathered = [layer.memory["gradient"].clone() for layer in topology.attached_layers]
        assert update.skipped == ()
        runs.append((gathered, _masks(model)))
    for ours, theirs in zip(*(run[0] for run in runs), strict=True):
        assert torch.equal(ours, theirs)
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


def test_a_single_infinite_gradient_at_a_connection_is_seen():
    """Free places are finite, the gradient at one connection is not: the step was skipped all the same."""
    layer = tk.SparseLinear(20, 5, 0.3, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    topology = sparse.RigL(interval=1, end=9).attach(layer, optimizer)
    layer(torch.randn(8, 20)).square().sum().backward()
    layer.values.grad[3] = float("inf")
    before = layer.topology
    with pytest.warns(RuntimeWarning, match="the gradient is not finite at step 1"):
        assert topology.step().skipped == (0,)
    assert layer.topology == before


def test_a_skipped_step_in_fit_is_in_the_history():
    """A loss that overflows float32 in one model of two, which then diverges; the other one goes on."""
    model = tk.SparseTiedAutoencoder(20, 10, 0.3, n_models=2)
    run = tk.fit(
        model,
        tk.SparseFeatures(20, 0.5),
        steps=8,
        batch_size=16,
        optimizer=tk.SGD(lr=[0.01, 1e30]),
        topology=tk.RigL(interval=2, end=8),
    )
    assert run.topology.updates == 4
    last = run.topology.history[-1].layers["weight"]
    assert int(last.dropped[1]) == int(last.grown[1]) == 0


# --- frozen layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*BY_GRADIENT, "set", "gradual", "ticket"])
def test_frozen_layers_keep_their_connections_until_they_are_trained_again(recipe):
    recipe = (
        BY_GRADIENT
        | {
            "set": sparse.SET(interval=2),
            "gradual": sparse.GradualMagnitude(final_density=0.1, interval=2, end=90),
            "ticket": sparse.LotteryTicket(rounds=9, round_steps=2),
        }
    )[recipe]
    model = network(9, 12, 12, 7, n_models=2, capacity=1.5, make=sparse_layer)
    model.layers[1].values.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with pytest.warns(UserWarning, match=r"leaves the connections of \['layers.1'\] as they are"):
        topology = recipe.attach(model, optimizer)
    before, values = _masks(model), model.layers[1].values.detach().clone()
    for step in range(4):
        update = _step(model, optimizer, topology, step)
    after = _masks(model)
    assert torch.equal(after[1], before[1]) and torch.equal(model.layers[1].values, values)
    assert not torch.equal(after[0], before[0]) and list(update.layers) == list(topology.layers)
    assert int(update.layers["layers.1"].dropped.sum()) == 0
    model.layers[1].values.requires_grad_(True)
    with pytest.raises(ValueError, match="does not hold the values of the sparse layer 'layers.1'"):
        for step in range(4, 6):
            _step(model, optimizer, topology, step)
    optimizer.add_param_group({"params": [model.layers[1].values]})
    for step in range(6, 10):
        _step(model, optimizer, topology, step)
    assert not torch.equal(_masks(model)[1], before[1])


def test_a_model_that_is_frozen_as_a_whole():
    model = network(9, 12, 7, make=sparse_layer).requires_grad_(False)
    head = nn.Linear(7, 1, dtype=torch.float64)
    with pytest.warns(UserWarning, match="leaves the connections"):
        topology = sparse.RigL(interval=1, end=9).attach(model, torch.optim.SGD(head.parameters(), 0.1))
    before = _masks(model)
    head(model(batch(0, 9))).sum().backward()
    assert topology.step().dropped == 0 and all(map(torch.equal, _masks(model), before))


# --- optimisers ---------------------------------------------------------------------------------------------


def test_another_optimizer_in_the_middle_of_a_run_is_noticed():
    model, first, topology = _start(sparse.SET(interval=1))
    _step(model, first, topology, 0)
    second = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    before, state = _masks(model), topology.state_dict()
    with pytest.raises(RuntimeError, match=r"another optimizer \(SGD\).*recipe.attach\(model, optimizer\)"):
        _step(model, second, topology, 1)
    assert all(map(torch.equal, _masks(model), before)) and topology.steps == 1
    again = sparse.SET(interval=1).attach(model, second)
    again.load_state_dict(state)
    assert _step(model, second, again, 2).step == 2


def test_what_is_no_other_optimizer():
    model, optimizer, topology = _start(sparse.SET(interval=1))
    other = nn.Linear(3, 3)
    beside = torch.optim.Adam(other.parameters())
    for step in range(3):
        other(torch.ones(2, 3)).sum().backward()
        beside.step()
        _step(model, optimizer, topology, step, moves=step != 1)  # a GradScaler leaves a step out

    class Wrapper(torch.optim.Optimizer):
        """As Accelerate's and others': the state is the wrapped one's."""

        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, inner.defaults)
            self.state = inner.state

        def step(self, closure=None):
            self.inner.step()

    wrapped = Wrapper(torch.optim.Adam(model.parameters(), lr=0.01))
    topology = sparse.SET(interval=1).attach(model, wrapped)
    _step(model, wrapped, topology, 3)
    assert topology.updates == 1
    _step(model, wrapped, topology, 4)
    model, optimizer, topology = _start(sparse.SET(interval=1))
    copied_model, copied, copied_topology = copy.deepcopy((model, optimizer, topology))
    _step(copied_model, copied, copied_topology, 4)
    third = torch.optim.Adam(copied_model.parameters())
    with pytest.raises(RuntimeError, match="another optimizer"):
        _step(copied_model, third, copied_topology, 5)
    _step(model, optimizer, topology, 4)


def test_recipes_that_are_gone_watch_nothing():
    from toykern.sparse import optimizer_watch

    model, optimizer, topology = _start(sparse.SET(interval=1))
    number = len(optimizer_watch._watches)
    del topology
    gc.collect()
    assert len(optimizer_watch._watches) < number
    optimizer.step()


class Strange(torch.optim.Optimizer):
    """Takes something that no group holds, and begins with its own number."""

    def __init__(self, model, lr):
        super().__init__(model.parameters(), {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state.setdefault(p, {"own": torch.full_like(p, 7.0)})
                    p -= group["lr"] * p.grad / state["own"]


OPTIMIZERS = {
    "Adadelta": (torch.optim.Adadelta, {}, {}),
    "Adafactor": (torch.optim.Adafactor, {}, {}),
    "Adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "weight_decay": 0.1}, {"sum": 0.1}),
    "Adam": (torch.optim.Adam, {"amsgrad": True}, {}),
    "AdamW": (torch.optim.AdamW, {}, {}),
    "Adamax": (torch.optim.Adamax, {}, {}),  # not the eps that the first step leaves
    "ASGD": (torch.optim.ASGD, {}, {}),
    "NAdam": (torch.optim.NAdam, {}, {}),
    "RAdam": (torch.optim.RAdam, {}, {}),
    "RMSprop": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}, {}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.03}, {"step_size": 0.03}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_grown_connections_begin_as_the_optimizer_does(name):
    make, options, beginnings = OPTIMIZERS[name]
    start = Topology.random(9, 12, 0.4, seed=0)
    model = Network([start], make=sparse_layer)
    optimizer = make(model.parameters(), **options)
    topology = sparse.SET(interval=3).attach(model, optimizer)
    for step in range(3):
        before = model.layers[0].topology
        _step(model, optimizer, topology, step)
    values = model.layers[0].values
    grown = model.layers[0].topology.to_mask() & ~before.to_mask()
    assert int(grown.sum()) > 5
    state = {k: v for k, v in optimizer.state[values].items() if getattr(v, "shape", None) == values.shape}
    assert set(beginnings) <= set(state)
    for key, entry in state.items():
        dense = model.layers[0].topology.to_dense(entry)[grown]
        assert torch.equal(dense, torch.full_like(dense, beginnings.get(key, 0.0))), key


def test_optimizers_of_ones_own_begin_as_they_do():
    model = network(9, 12, 7, make=sparse_layer)
    optimizer = Strange(model, 0.1)
    topology = sparse.SET(interval=1).attach(model, optimizer)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    _step(model, optimizer, topology, 0)
    assert bool((optimizer.state[model.layers[0].values]["own"] == 7).all()) and seen == [1]
    optimizer.state[model.layers[0].values]["own"].fill_(3)

    def refuse(closure=None):
        raise ArithmeticError("not this one")

    broken = type("Broken", (Strange,), {"step": lambda self, closure=None: refuse()})(model, 0.1)
    broken.state[model.layers[0].values] = {"own": torch.ones_like(model.layers[0].values)}
    with pytest.warns(RuntimeWarning, match="what Broken begins with could not be found.*not this one"):
        assert beginnings_of([broken], model.layers[0].values) == [0.0]
