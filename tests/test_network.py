"""The one description of a network: what is derived from it is what modules and kernels have."""

from __future__ import annotations

import dataclasses

import pytest
import torch

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

CONFIGS = {
    "tied": {"bias": False},
    "leaky": {"output_activation": "leaky_relu", "negative_slope": 0.25},
    "topk": {"hidden_activation": "topk", "top_k": 2, "hidden_bias": True},
    "untied": {"class": "Autoencoder", "centered": True},
    "sparse": {"class": "SparseTiedAutoencoder"},
}


def test_every_field_is_told_or_follows_from_the_class():
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


@pytest.mark.parametrize("name", STACKS)
def test_the_table_of_tensors_is_what_the_stack_has(name):
    model = STACKS[name]()
    network = model.network
    named = {tensor.name: (2, *network.shape(tensor)) for tensor in network.tensors}
    assert {key: tuple(array.shape) for key, array in model.trained_arrays().items()} == named
    own = {key: list(p.shape) for key, p in model.named_parameters()}
    assert own == model.parameter_shapes()


def test_dimensions_have_their_names_in_a_run():
    run = tk.fit(tk.Autoencoder(5, 3, 2), tk.SparseFeatures(5, 0.5), steps=1, batch_size=4, progress=False)
    found = run.to_xarray()
    assert found["encoder"].dims == ("model", "hidden", "feature")
    assert found["decoder"].dims == ("model", "feature", "hidden")
    assert found["bias"].dims == ("model", "feature")


@pytest.mark.parametrize(
    ("options", "unfitted"),
    [
        ({}, {}),
        ({"hidden_activation": "leaky_relu", "negative_slope": 0.5}, {}),
        ({"hidden_bias": True}, {"hidden_bias": True}),
        ({"hidden_activation": "topk", "top_k": 1}, {"hidden_activation": "topk", "top_k": 1}),
    ],
)
def test_what_fit_does_not_know_is_named(options, unfitted):
    model = tk.TiedAutoencoder(4, 2, **options)
    assert model.unfitted_options() == unfitted
    if unfitted:
        with pytest.raises(ValueError, match=next(iter(unfitted))):
            tk.fit(model, tk.SparseFeatures(4, 0.5), steps=1)


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
