"""`tk.sparsify`: which layers become sparse, how dense each is, what they begin with, what is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import toykern as tk
from toykern.nn.conversion import layer_densities


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10, bias=False)
    )


def layers_of(model: nn.Module) -> dict[str, tk.SparseLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, tk.SparseLinear)}


def test_uniform():
    model = classifier()
    assert tk.sparsify(model, 0.1) is model
    found = layers_of(model)
    assert list(found) == ["0", "2", "4"]
    for name, (a, b) in zip(found, [(64, 48), (48, 32), (32, 10)], strict=True):
        assert int(found[name].topology.n_connections[0]) == int(0.1 * a * b + 0.5)
        assert found[name].topology.capacity == int(0.1 * a * b + 0.5)
    assert found["4"].bias is None and found["0"].bias is not None
    x = torch.randn(5, 64)
    y = x
    for layer in model:
        y = layer.to_linear()(y) if isinstance(layer, tk.SparseLinear) else layer(y)
    torch.testing.assert_close(model(x), y)
    model(x).sum().backward()


@pytest.mark.parametrize("distribution", ["erdos-renyi", "erk"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9, 1.0])
def test_erdos_renyi_keeps_the_total_and_the_proportions(distribution, density):
    shapes = [(784, 300), (300, 100), (100, 10), (10, 10)]
    found = layer_densities(shapes, density, distribution)
    total = sum(d * a * b for d, (a, b) in zip(found, shapes, strict=True))
    assert total == pytest.approx(density * sum(a * b for a, b in shapes))
    scales = [d / ((a + b) / (a * b)) for d, (a, b) in zip(found, shapes, strict=True) if d < 1]
    assert scales == pytest.approx([max(scales)] * len(scales)) if scales else density == 1
    for d, (a, b) in zip(found, shapes, strict=True):
        assert d <= 1 and (d < 1 or max(scales, default=0) * (a + b) / (a * b) >= 1 or density == 1)


def test_largest_keeps_weights_and_bias():
    dense = classifier()
    model = tk.sparsify(copy.deepcopy(dense), 0.2, from_weights="largest")
    for name, layer in layers_of(model).items():
        weight = dense.get_submodule(name).weight.detach()
        kept = layer.to_dense()[0] != 0
        assert torch.equal(layer.to_dense()[0][kept], weight[kept])
        count = int(kept.sum())
        assert count == int(0.2 * weight.numel() + 0.5)
        assert weight.abs()[kept].min() >= weight.abs()[~kept].max()
    assert torch.equal(model[0].bias, dense[0].bias)


def test_seeds():
    made = [tk.sparsify(classifier(), 0.2, seed=seed) for seed in (3, 3, 4)]
    first, again, other = (layers_of(model) for model in made)
    for name in first:
        assert first[name].topology == again[name].topology
        assert torch.equal(first[name].values, again[name].values)
        assert first[name].topology != other[name].topology
    same = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    tk.sparsify(same, 0.5, seed=0)
    assert same[0].topology != same[1].topology and not torch.equal(same[0].values, same[1].values)
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(layers_of(tk.sparsify(classifier(), 0.2))["0"].topology)
    assert states[0] == states[1]


def test_values_follow_the_fan_in():
    model = tk.sparsify(nn.Sequential(nn.Linear(1000, 500)), 0.05, seed=0)
    values = model[0].values.detach()
    assert float(values.std()) == pytest.approx((1 / 3 / 50) ** 0.5, rel=0.05)


def test_exclude_and_nesting():
    model = nn.ModuleDict({"head": nn.Linear(8, 4), "body": classifier()})
    tk.sparsify(model, 0.5, exclude=["head", "body.[24]"])
    assert list(layers_of(model)) == ["body.0"]


def test_a_layer_in_two_places_stays_one():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    tk.sparsify(model, 0.5)
    assert isinstance(model[0], tk.SparseLinear) and model[0] is model[2]


def test_kept_as_they_are():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4), nn.Bilinear(2, 2, 2)).eval().double()
    model[1].weight.requires_grad_(False)
    tk.sparsify(model, 0.5)
    assert type(model[0]) is Special and type(model[2]) is nn.Bilinear
    layer = model[1]
    assert not layer.training and layer.values.dtype == torch.float64 and not layer.values.requires_grad


def test_a_linear_by_itself():
    linear = nn.Linear(8, 4)
    layer = tk.sparsify(linear, 0.5, minimum_fan_in=2, capacity=1.5)
    assert isinstance(layer, tk.SparseLinear) and type(linear) is nn.Linear
    assert int(layer.topology.fan_in.min()) >= 2 and layer.topology.capacity == 24
    assert tk.sparsify(linear, 0.9, capacity=9).topology.capacity == 32


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_transformers(activation):
    """In training and evaluation, with gradients and without, as the same network with dense weights."""

    def make():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, activation, batch_first=True)
        return nn.Sequential(
            nn.TransformerEncoder(layer, 2), nn.Transformer(16, 4, 1, 1, 32, 0.0, batch_first=True)
        )

    def run(model, x, hidden):
        encoded = model[0](x, src_key_padding_mask=hidden)
        return model[1](encoded.nan_to_num(), x)

    dense, network = make(), tk.sparsify(make(), 0.3, seed=0)
    for name, layer in network.named_modules():
        if isinstance(layer, tk.SparseLinear):
            dense.get_submodule(name).load_state_dict(layer.to_linear().state_dict())
    assert sum(isinstance(layer, tk.SparseLinear) for layer in network.modules()) == 8
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    for training, gradients in ((True, True), (False, True), (False, False)):
        for module in (dense, network):
            module.train(training)
        with torch.set_grad_enabled(gradients):
            for padding in (None, hidden):
                seen = ~hidden if padding is not None else torch.ones_like(hidden)
                ours, theirs = run(network, x, padding), run(dense, x, padding)
                if padding is None:
                    torch.testing.assert_close(ours, theirs)
                ours, theirs = (m[0](x, src_key_padding_mask=padding) for m in (network, dense))
                torch.testing.assert_close(ours[seen], theirs[seen])


def test_with_a_recipe():
    model = tk.sparsify(classifier(), 0.1, "erdos-renyi", capacity=2.0, seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    topology = tk.RigL(interval=2, end=20, scope="global").attach(model, optimizer)
    total = sum(int(layer.topology.n_connections) for layer in layers_of(model).values())
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
        topology.step()
    assert topology.updates == 3
    assert total == sum(int(layer.topology.n_connections) for layer in layers_of(model).values())


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "arguments", "error", "match"),
    [
        (classifier, {"density": 0.0}, ValueError, "density must be above 0"),
        (classifier, {"density": 1.5}, ValueError, "density"),
        (classifier, {"density": 0.001}, ValueError, "layer '4': density 0.001 leaves no connection"),
        (classifier, {"density": 0.02, "minimum_fan_in": 2}, ValueError, "layer '0': .*minimum_fan_in=2"),
        (classifier, {"density": 0.1, "distribution": "even"}, ValueError, "distribution must be one of"),
        (classifier, {"density": 0.1, "from_weights": "smallest"}, ValueError, "from_weights must be one of"),
        (classifier, {"density": 0.1, "from_weights": "largest", "minimum_fan_in": 1}, ValueError, "is for"),
        (classifier, {"density": 0.1, "exclude": ["5"]}, ValueError, r"exclude names \['5'\]"),
        (classifier, {"density": 0.1, "exclude": "0"}, TypeError, r"such as \['0'\]"),
        (classifier, {"density": 0.1, "exclude": ["*"]}, ValueError, "but those excluded"),
        (classifier, {"density": 0.1, "capacity": 0.5}, ValueError, "capacity"),
        (classifier, {"density": 0.1, "seed": -1}, ValueError, "seed"),
        (nn.ReLU, {"density": 0.1}, ValueError, "no torch.nn.Linear"),
        (tied, {"density": 0.5}, ValueError, "layer '1' shares its weight"),
        (list, {"density": 0.5}, TypeError, "module must be"),
    ],
)
def test_what_is_refused(make, arguments, error, match):
    model = make()
    before = repr(model)
    with pytest.raises(error, match=match):
        tk.sparsify(model, **arguments)
    assert repr(model) == before


def test_hooks_of_calls_go_over_and_their_handles_work():
    model, seen = classifier(), []
    handles = [
        model[0].register_forward_hook(lambda *a: seen.append("forward")),
        model[0].register_forward_hook(
            lambda *a, **k: seen.append("with kwargs"), with_kwargs=True, always_call=True
        ),
        model[0].register_forward_pre_hook(lambda *a: seen.append("before")),
        model[0].register_full_backward_hook(lambda *a: seen.append("backward")),
        model[0].register_full_backward_pre_hook(lambda *a: seen.append("before backward")),
    ]
    tk.sparsify(model, 0.3)
    x = torch.randn(2, 64, requires_grad=True)
    model(x).sum().backward()
    assert seen == ["before", "forward", "with kwargs", "before backward", "backward"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(seen) == 5
    alone = nn.Linear(8, 4)
    alone.register_forward_hook(lambda *a: seen.append("alone"))
    sparse = tk.sparsify(alone, 0.5)
    sparse(torch.zeros(1, 8))
    assert seen[5:] == ["alone"]
    sparse.register_forward_hook(lambda *a: seen.append("of the sparse one"))
    alone(torch.zeros(1, 8))
    assert seen[6:] == ["alone"]


@pytest.mark.parametrize(
    ("do", "match"),
    [
        (lambda layer: setattr(layer, "forward", lambda x: x), "a forward of its own"),
        (lambda layer: layer.weight.register_hook(lambda g: g), "a hook of the gradient of its weight"),
        (
            lambda layer: layer.bias.register_post_accumulate_grad_hook(lambda p: None),
            "a hook of the gradient of its bias",
        ),
        (lambda layer: layer._register_state_dict_hook(lambda *a: None), "hooks of its state_dict"),
        (lambda layer: layer.register_load_state_dict_post_hook(lambda *a: None), "hooks of its state_dict"),
    ],
)
def test_what_cannot_go_over_is_refused(do, match):
    model = classifier()
    do(model[2])
    before = list(model)
    with pytest.raises(ValueError, match=f"layer '2' has {match}"):
        tk.sparsify(model, 0.3)
    assert list(model) == before
    tk.sparsify(model, 0.3, exclude=["2"])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_what_stays_dense_is_said():
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "lazy": nn.LazyLinear(4),
            "conv": nn.Conv2d(1, 2, 3),
            "lstm": nn.LSTM(4, 4),
            "cell": nn.GRUCell(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "parametrised": parametrizations.orthogonal(nn.Linear(4, 4)),
            "old_norm": nn.utils.weight_norm(nn.Linear(4, 4)),
            "pruned": prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
            "norm": nn.LayerNorm(4),
            "embedding": nn.Embedding(4, 4),
        }
    )
    kinds = {name: type(layer) for name, layer in model.items()}
    with pytest.warns(UserWarning, match="sparsify leaves dense") as said:
        tk.sparsify(model, 0.5)
    text = str(said[0].message)
    for name in ("lazy", "conv", "lstm", "cell", "attention", "parametrised", "old_norm", "pruned"):
        assert repr(name) in text and type(model[name]) is kinds[name]
    for name in ("plain", "norm", "embedding"):
        assert f"'{name}'" not in text
    assert list(layers_of(model)) == ["plain"]
    model["plain"] = nn.Linear(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = ["lazy", "conv", "lstm", "cell", "attention*", "parametrised", "old_norm", "pruned"]
        tk.sparsify(model, 0.5, exclude=others)
    with pytest.raises(ValueError, match="to make sparse; it has Conv1d, which stay dense"):
        tk.sparsify(nn.Sequential(nn.Conv1d(1, 1, 1)), 0.5)


def test_a_frozen_bias_stays_frozen():
    for source in ("random", "largest"):
        linear = nn.Linear(8, 4)
        linear.bias.requires_grad_(False)
        layer = tk.sparsify(linear, 0.5, from_weights=source)
        assert not layer.bias.requires_grad and layer.values.requires_grad
