"""The one description of a network: what is derived from it is what modules and kernels have."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import xarray as xr

import toykern as tk
from toykern.native.numbers import number
from toykern.network import NetworkSpec, Objective, Options
from toykern.network.specification import ALWAYS, OPTIONS
from toykern.nn import model_from_config
from toykern.training.kernels import network_params
from toykern.training.settings import Settings

STACKS = {
    "tied": lambda: tk.TiedAutoencoder(5, 3, 2, bias=False),
    "leaky": lambda: tk.TiedAutoencoder(5, 3, 2, output_activation="leaky_relu", negative_slope=0.25),
    "topk": lambda: tk.TiedAutoencoder(5, 3, 2, hidden_activation="topk", top_k=2, hidden_bias=True),
    "untied": lambda: tk.Autoencoder(5, 3, 2, centered=True),
    "sparse": lambda: tk.SparseTiedAutoencoder(5, 3, density=0.5, n_models=2),
}
FAMILY = {
    "mlp": lambda: tk.MLP(5, 3, 2, 2, seed=[3, 4]),
    "embedded": lambda: tk.MLP(5, 3, n_models=2, embedding=2, unembedding=True, residual=True),
    "tied mlp": lambda: tk.MLP(5, 3, n_models=2, tied=True, centered=True, top_k=2, hidden_activation="topk"),
    "given": lambda: tk.MLP(
        5, 3, 4, 2, embedding=torch.ones(2, 5), unembedding=torch.ones(2, 4, 2), hidden_bias_init=-1.0
    ),
}

CONFIGS = {
    "tied": {"bias": False},
    "leaky": {"output_activation": "leaky_relu", "negative_slope": 0.25},
    "topk": {"hidden_activation": "topk", "top_k": 2, "hidden_bias": True},
    "untied": {"class": "Autoencoder", "centered": True},
    "sparse": {"class": "SparseTiedAutoencoder"},
}


def test_every_field_is_told_or_follows_from_the_class():
    """Of an `MLP`, whether it is tied too, is an option."""
    fields = {field.name for field in dataclasses.fields(NetworkSpec)}
    objective = {field.name for field in dataclasses.fields(Objective)}  # told by a run's settings
    assert fields == {*ALWAYS, *OPTIONS, *objective, "tied", "sparse"}


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_described_in_full_and_no_more(name):
    plain = {
        "class": "TiedAutoencoder", "n_features": 5, "n_hidden": 3, "n_models": 2,
        "hidden_activation": "none", "output_activation": "relu", "bias": True, "init": "xavier",
    }  # fmt: skip
    assert STACKS[name]().config() == plain | CONFIGS[name]


@pytest.mark.parametrize("name", [name for name in STACKS if name != "sparse"])
def test_a_description_makes_the_same_network(name):
    model = STACKS[name]()
    assert model_from_config(model.config()).network == model.network


@pytest.mark.parametrize("name", [*STACKS, *FAMILY])
def test_the_table_of_tensors_is_what_the_stack_has(name):
    model = (STACKS | FAMILY)[name]()
    network = model.network
    named = {tensor.name: (2, *network.shape(tensor)) for tensor in network.tensors}
    assert {key: tuple(array.shape) for key, array in model.trained_arrays().items()} == named
    own = {key: list(p.shape) for key, p in model.named_parameters()}
    assert own == model.parameter_shapes()
    fixed = {tensor.name: network.shape(tensor) for tensor in network.fixed}
    assert {key: tuple(held.shape[1:]) for key, held in model.fixed_tensors().items()} == fixed


@pytest.mark.parametrize("name", FAMILY)
def test_views_of_parameters_lie_one_behind_the_other(name):
    """As common/tensors.h has them: encoder, decoder, bias, hidden bias."""
    network = FAMILY[name]().network
    views, end = network.views(), 0
    assert list(views) == [r for r in ("encoder", "decoder", "bias", "hidden_bias") if r in views]
    for tensor in network.parameters:
        rows, columns, offset = views[tensor.role]
        assert (rows, columns) == (1, *network.shape(tensor))[-2:]
        assert offset == end
        end += rows * columns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": True, "n_outputs": 4}, "tied needs n_outputs = n_features = 5, not 4"),
        ({"tied": True, "n_embedding": 3}, "tied needs n_outputs = n_embedding = 3, not 5"),
        ({"residual": True, "n_outputs": 4}, "residual needs n_outputs = n_features = 5, not 4"),
        ({"centered": True, "n_outputs": 4}, "centered needs n_outputs = n_features = 5, not 4"),
        ({"centered": True, "bias": False}, "centered .* needs bias=True"),
        (
            {"centered": True, "n_embedding": 3, "unembedding": True},
            "centered .* none where there is an unembedding",
        ),
        ({"unembedding": True}, "unembedding needs an embedding"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    network = NetworkSpec(**({"n_features": 5, "n_hidden": 3, "tied": False} | options))
    with pytest.raises(ValueError, match=message):
        network.check_shape()


@pytest.mark.parametrize(
    ("model", "dims"),
    [
        (tk.MLP(5, 3, 4), {"encoder": ("hidden", "feature"), "decoder": ("output", "hidden")}),
        (tk.MLP(5, 3, 4), {"bias": ("output",), "hidden_bias": ("hidden",)}),
        (tk.MLP(5, 3), {"decoder": ("feature", "hidden"), "bias": ("feature",)}),
        (
            tk.MLP(5, 3, embedding=2, unembedding=True),
            {"encoder": ("hidden", "embedding"), "decoder": ("embedding", "hidden"), "bias": ("feature",)},
        ),
        (tk.MLP(5, 3, embedding=2, n_outputs=2, tied=True), {"weight": ("hidden", "embedding")}),
    ],
)
def test_dimensions_of_the_family_have_their_names(model, dims, tmp_path):
    data = tk.Dataset(torch.eye(5), torch.ones(5, model.n_outputs))
    importance = torch.ones(1, model.n_outputs)
    run = tk.fit(
        model, data, steps=1, importance=importance, snapshots=[1], record=["feature_dimensionality"]
    )
    found = run.to_xarray()
    run.save(tmp_path / "run")
    stored = xr.open_zarr(tmp_path / "run", consolidated=False)
    for name, named in dims.items():
        assert found[name].dims == ("model", *named)
        assert found[f"{name}_snapshots"].dims == ("model", "snapshot", *named)
        in_store = xr.open_zarr(tmp_path / "run", group="model", consolidated=False)[name]
        assert in_store.dims == ("model", *named)
    assert found["feature_dimensionality"].dims == ("model", "record", "feature")
    assert stored["loss"].sizes["record"] == 1


def test_dimensions_have_their_names_in_a_run():
    run = tk.fit(tk.Autoencoder(5, 3, 2), tk.SparseFeatures(5, 0.5), steps=1, batch_size=4, progress=False)
    found = run.to_xarray()
    assert found["encoder"].dims == ("model", "hidden", "feature")
    assert found["decoder"].dims == ("model", "feature", "hidden")
    assert found["bias"].dims == ("model", "feature")


@pytest.mark.parametrize(
    ("kind", "options", "beyond"),
    [
        (tk.TiedAutoencoder, {}, {}),
        (tk.TiedAutoencoder, {"hidden_activation": "leaky_relu", "negative_slope": 0.5}, {}),
        (tk.TiedAutoencoder, {"hidden_bias": True}, {"hidden_bias": True}),
        (tk.Autoencoder, {"centered": True}, {"centered": True}),
        (
            tk.TiedAutoencoder,
            {"hidden_activation": "topk", "top_k": 1},
            {"hidden_activation": "topk", "top_k": 1},
        ),
        (tk.MLP, {"hidden_bias": False}, {}),  # which is an Autoencoder
        (tk.MLP, {}, {"hidden_bias": True}),
        (tk.MLP, {"hidden_bias": False, "n_outputs": 3}, {"n_outputs": 3}),
        (tk.MLP, {"hidden_bias": False, "embedding": 3}, {"n_embedding": 3}),
        (tk.MLP, {"hidden_bias": False, "residual": True}, {"residual": True}),
        (
            tk.MLP,
            {"hidden_bias": False, "embedding": 3, "unembedding": True},
            {"n_embedding": 3, "unembedding": True},
        ),
        *(
            (tk.MLP, {"hidden_bias": False, "hidden_activation": name}, {"hidden_activation": name})
            for name in ("square", "x_exp", "solu", "softplus")
        ),
        (
            tk.MLP,
            {"hidden_bias": False, "output_activation": "square"},
            {"output_activation": "square"},
        ),
    ],
)
def test_what_no_kernel_of_a_device_takes_is_named(kind, options, beyond):
    assert kind(4, 2, **options).network.without_kernels() == beyond


@pytest.mark.parametrize(
    ("objective", "l1", "told"),
    [
        (Objective(), False, {}),
        (Objective(), True, {"l1": "other than 0"}),
        (Objective(loss="cross_entropy"), False, {"loss": "cross_entropy"}),
        (Objective("embedding"), False, {"target": "embedding"}),
    ],
)
def test_what_of_an_objective_kernels_of_a_device_and_sparse_models_do_not_have(objective, l1, told):
    dense, sparse = STACKS["untied"]().network, STACKS["sparse"]().network
    assert dense.trained_for(objective).untrained(l1) == {}
    assert dense.trained_for(objective).without_kernels(l1) == {"centered": True} | told
    assert sparse.trained_for(objective).untrained(l1) == told


def test_optimizer_states_follow_the_table():
    model = tk.Autoencoder(4, 2, bias=False)
    run = tk.fit(model, tk.SparseFeatures(4, 0.5), steps=2, batch_size=8, progress=False)
    assert {key: value.shape for key, value in run.optimizer_state.items()} == {
        f"{name}/{moment}": torch.Size(shape)
        for name, shape in (("encoder", (1, 2, 4)), ("decoder", (1, 4, 2)))
        for moment in ("exp_avg", "exp_avg_sq")
    }


def test_settings_say_what_a_network_is_trained_for():
    model = tk.Autoencoder(5, 3, 2)
    data = tk.SparseFeatures(5, 0.2)
    settings = Settings(
        data=data, steps=4, batch_size=8, optimizer=tk.Adam(), target="abs", loss_reduction="sum"
    )
    trained = settings.network(model)
    assert trained.objective() == ("abs", "sum", "squared_error")
    assert model.network.objective() == ("identity", "mean", "squared_error")
    assert trained.config() == model.network.config()  # what is stored of a model does not say
    told = network_params(trained)
    assert (told.target, told.reduction) == (number("target", "abs"), number("reduction", "sum"))


@pytest.mark.parametrize("name", ["target", "loss_reduction", "loss"])
def test_an_objective_names_what_it_does_not_know(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, not 'none of them'"):
        Objective(**{name: "none of them"}).check_objective()


@pytest.mark.parametrize(
    ("operator", "described"),
    [("tied_autoencoder", [Options]), ("tied_autoencoder_backward", [Options]),
     ("tied_autoencoder_loss", [Options, Objective])],
)  # fmt: skip
def test_schemas_list_the_fields_of_the_specification(operator, described):
    schema = getattr(torch.ops.toykern, operator).default._schema
    told = [argument.name for argument in schema.arguments]
    for kind in described:
        names = [field.name for field in dataclasses.fields(kind)]
        first = told.index(names[0])
        assert told[first : first + len(names)] == names
