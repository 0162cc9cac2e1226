"""Optimisers as descriptions: defaults, per-model rates, config, refusals (arithmetic: test_reference)."""

import json
import math
import pickle

import numpy as np
import pytest
import torch

from toykern.network.specification import NetworkSpec
from toykern.training.optim import (
    LAMB,
    SGD,
    SGLD,
    Adam,
    AdamW,
    BiasDecay,
    Optimizer,
    UnitNorm,
    optimizer_from_config,
    rate_names,
)

PEERS = [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]
EVERY = [
    SGD(),
    SGD(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    SGD(momentum=0.5, nesterov=True),
    Adam(betas=(0.5, 0.9), eps=1e-6),
    AdamW(lr=3e-4, weight_decay=0.0),
]


@pytest.mark.parametrize(("ours", "theirs"), PEERS)
def test_defaults_are_pytorchs(ours, theirs):
    defaults = theirs([torch.zeros(1)]).defaults
    for name, value in ours().config().items():
        if name != "name":
            assert (tuple(value) if name == "betas" else value) == defaults[name], name


@pytest.mark.parametrize(
    ("optimizer", "peer"),
    [
        (SGD(momentum=0.9), torch.optim.SGD([torch.zeros(1, requires_grad=True)], momentum=0.9)),
        (Adam(), torch.optim.Adam([torch.zeros(1, requires_grad=True)])),
        (AdamW(), torch.optim.AdamW([torch.zeros(1, requires_grad=True)])),
    ],
)
def test_state_names_are_pytorchs(optimizer, peer):
    peer.param_groups[0]["params"][0].sum().backward()
    peer.step()
    assert set(optimizer.state_names) == set(peer.state_dict()["state"][0]) - {"step"}


def test_sgd_without_momentum_keeps_no_state():
    assert SGD().state_names == ()


@pytest.mark.parametrize("optimizer", EVERY)
def test_config_round_trip(optimizer):
    config = json.loads(json.dumps(optimizer.config()))
    assert optimizer_from_config(config) == optimizer
    assert hash(optimizer_from_config(config)) == hash(optimizer)


def test_config_of_per_model_rates_needs_them_again():
    optimizer = Adam(lr=[0.1, 0.2], weight_decay=np.array([0.0, 1.0]))
    config = json.loads(json.dumps(optimizer.config()))
    assert config["lr"] == config["weight_decay"] == "per_model"
    with pytest.raises(ValueError, match="lr was given per model"):
        optimizer_from_config(config)
    assert optimizer_from_config(config, lr=[0.1, 0.2], weight_decay=[0.0, 1.0]) == optimizer
    assert optimizer_from_config(config, lr=[0.1, 0.3], weight_decay=[0.0, 1.0]) != optimizer


@pytest.mark.parametrize("config", [None, {}, {"name": "Adagrad"}, {"name": "SGD", "beta": 1}])
def test_foreign_config_is_refused(config):
    with pytest.raises(ValueError, match="name|unknown keys"):
        optimizer_from_config(config)


@pytest.mark.parametrize(
    "given",
    [
        [0.1, 0.2, 0.3],
        (0.1, 0.2, 0.3),
        np.array([0.1, 0.2, 0.3]),
        torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    ],
)
def test_per_model_rates(given):
    lr, weight_decay = AdamW(lr=given).per_model(3)
    torch.testing.assert_close(lr, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(weight_decay, torch.full((3,), 0.01, dtype=torch.float64), rtol=0, atol=0)


def test_per_model_rates_are_copies():
    given = torch.tensor([0.1, 0.2], dtype=torch.float64)
    optimizer = SGD(lr=given)
    given[0] = 5.0
    optimizer.per_model(2)[0][1] = 5.0
    assert optimizer.per_model(2)[0].tolist() == [0.1, 0.2]


def test_strided_and_expanded_rates():
    assert Adam(lr=torch.arange(6.0)[::2]).per_model(3)[0].tolist() == [0, 2, 4]
    assert Adam(lr=np.arange(6.0)[::-2]).per_model(3)[0].tolist() == [5, 3, 1]
    assert Adam(lr=torch.ones(1).expand(4)).per_model(4)[0].tolist() == [1, 1, 1, 1]
    assert Adam(lr=torch.tensor(0.5)).lr == 0.5


@pytest.mark.parametrize("argument", ["lr", "weight_decay"])
def test_wrong_number_of_rates(argument):
    optimizer = Adam(**{argument: [0.1, 0.2, 0.3]})
    with pytest.raises(ValueError, match=rf"{argument} must.*4 models.*\[3\]"):
        optimizer.per_model(4)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("argument", ["lr", "weight_decay"])
@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf, [0.1, -0.2], [[0.1]], []])
def test_bad_rates(kind, argument, bad):
    with pytest.raises(ValueError, match=argument):
        kind(**{argument: bad})


@pytest.mark.parametrize("bad", ["0.1", None, True, 1j, object()])
def test_rates_that_are_no_numbers(bad):
    with pytest.raises(TypeError, match="lr must"):
        SGD(lr=bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(betas=(0.9, 1.0)), r"betas\[1\] must.*below 1"),
        (lambda: AdamW(betas=(-0.1, 0.9)), r"betas\[0\] must.*at least 0"),
        (lambda: Adam(eps=-1e-8), "eps must"),
        (lambda: SGD(momentum=-0.1), "momentum must"),
        (lambda: SGD(nesterov=True), "nesterov=True needs momentum"),
        (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), "nesterov=True needs.*dampening 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_kinds_of_settings():
    with pytest.raises(TypeError, match="betas must be two numbers"):
        Adam(betas=0.9)
    with pytest.raises(TypeError, match="nesterov must be True or False"):
        SGD(momentum=0.9, nesterov=1)


def test_repr_does_not_print_a_million_rates():
    assert repr(AdamW(lr=torch.zeros(10**6))).startswith(
        "AdamW(lr=<per model, [1000000]>, betas=(0.9, 0.999)"
    )


# LAMB, SGLD, and what all optimisers may have

MORE = [
    LAMB(),
    LAMB(lr=0.1, betas=(0.5, 0.9), clamp=1.0, debias=True, weight_decay=0.1),
    LAMB(form="paper"),
    LAMB(form="paper", debias=False, clamp=5.0),
    SGLD(lr=1e-4, nbeta=10.0, localization=1.0),
    Adam(lr_scale={"bias": 0.1}, weight_decay_scale={"bias": 0.0, "weight": 2.0}),
    SGD(momentum=0.9, clip_norm=1.0),
    AdamW(bias_decay=BiasDecay(0.1, until=5), unit_norm="decoder"),
    AdamW(unit_norm=UnitNorm("weight", remove_parallel=True)),
]
PER_TENSOR = {
    "lr_scale": {"bias": [0.1, 0.2], "weight": 3.0},
    "weight_decay_scale": {"bias": [1.0, 0.0]},
    "clip_norm": [1.0, 2.0],
    "bias_decay": BiasDecay([0.1, 0.3], tensor="bias"),
}


@pytest.mark.parametrize("optimizer", MORE, ids=str)
def test_config_round_trip_of_more(optimizer):
    config = json.loads(json.dumps(optimizer.config()))
    again = optimizer_from_config(config)
    assert again == optimizer and hash(again) == hash(optimizer) and repr(again) == repr(optimizer)
    assert again.config() == optimizer.config()
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    assert all(optimizer != other for other in MORE if other is not optimizer)


def test_what_is_not_used_is_not_told():
    assert set(AdamW(lr_scale={}, clip_norm=None).config()) == {"name", "lr", "betas", "eps", "weight_decay"}
    assert AdamW().extras() == [] and AdamW(lr_scale={}) == AdamW()


def test_all_that_may_be_given_per_model_is_told_so_and_needed_again():
    optimizer = SGLD(lr=[0.1, 0.2], nbeta=[1.0, 2.0], localization=[0.0, 1.0], **PER_TENSOR)
    config = json.loads(json.dumps(optimizer.config()))
    assert config["lr_scale"] == {"bias": "per_model", "weight": 3.0}
    assert config["clip_norm"] == config["nbeta"] == config["bias_decay"]["rate"] == "per_model"
    arrays = optimizer.arrays(2)
    assert list(arrays) == [
        "lr", "weight_decay", "nbeta", "localization", "lr_scale/bias", "lr_scale/weight",
        "weight_decay_scale/bias", "clip_norm", "bias_decay",
    ]  # fmt: skip
    assert sorted(arrays) == sorted(rate_names(config))
    assert arrays["lr_scale/bias"].tolist() == [0.1, 0.2] and arrays["lr_scale/weight"].tolist() == [3.0, 3.0]
    for missing in arrays:
        given = {name: values for name, values in arrays.items() if name != missing}
        if missing in ("weight_decay", "lr_scale/weight"):
            assert optimizer_from_config(config, **given).arrays(2).keys() == arrays.keys()
            continue
        with pytest.raises(ValueError, match=f"{missing} was given per model"):
            optimizer_from_config(config, **given)
    per_model = {n: v for n, v in arrays.items() if n not in ("weight_decay", "lr_scale/weight")}
    assert optimizer_from_config(config, **per_model) == optimizer
    assert optimizer_from_config(config, **(per_model | {"clip_norm": [1.0, 3.0]})) != optimizer
    assert "[2]" in repr(optimizer) and "0.2" not in repr(optimizer)


@pytest.mark.parametrize("option", PER_TENSOR)
def test_wrong_number_of_any_rate(option):
    name = f"{option}/bias" if option.endswith("scale") else option
    with pytest.raises(ValueError, match=f"{name} must.*3 models"):
        SGD(**{option: PER_TENSOR[option]}).arrays(3)


def test_states():
    assert LAMB().state_names == ("exp_avg", "exp_avg_sq")
    assert SGLD().state_names == () and SGLD(localization=[0.0, 0.0]).state_names == ("initial",)


def test_the_form_says_what_is_not_given():
    assert (LAMB().clamp, LAMB().debias) == (10.0, False)
    assert (LAMB(form="paper").clamp, LAMB(form="paper").debias) == (None, True)
    assert LAMB(form="paper").kernel_options()["norm_clamp"] == math.inf
    assert LAMB(debias=True).kernel_options()["debias_step"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LAMB(clamp=0.0), ValueError, "clamp must"),
        (lambda: LAMB(clamp=-1.0), ValueError, "clamp must"),
        (lambda: LAMB(form="adam"), ValueError, "form must be one of 'pytorch', 'paper'"),
        (lambda: LAMB(debias=1), TypeError, "debias must be True or False"),
        (lambda: LAMB(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda: SGLD(nbeta=-1.0), ValueError, "nbeta must"),
        (lambda: SGLD(localization=[0.1, math.nan]), ValueError, "localization must be finite"),
        (lambda: SGD(clip_norm=0.0), ValueError, "clip_norm must be.*above 0"),
        (lambda: SGD(clip_norm=[1.0, 0.0]), ValueError, r"clip_norm must be.*above 0.*model 1"),
        (lambda: SGD(lr_scale=0.5), TypeError, "lr_scale must be a dict from names of tensors"),
        (lambda: SGD(lr_scale={1: 0.5}), TypeError, "lr_scale must have names of tensors"),
        (lambda: SGD(lr_scale={"bias": -0.5}), ValueError, r"lr_scale\['bias'\] must"),
        (lambda: SGD(weight_decay_scale={"bias": "no"}), TypeError, r"weight_decay_scale\['bias'\] must"),
        (lambda: SGD(bias_decay=0.1), TypeError, "bias_decay must be a toykern BiasDecay"),
        (lambda: BiasDecay(-0.1), ValueError, "rate must"),
        (lambda: BiasDecay(0.1, until=-1), ValueError, "until must"),
        (lambda: BiasDecay(0.1, tensor=3), TypeError, "tensor must"),
        (lambda: SGD(unit_norm=3), TypeError, "unit_norm must"),
        (lambda: UnitNorm("decoder", remove_parallel=1), TypeError, "remove_parallel must"),
        (lambda: Optimizer(), TypeError, "make an SGD"),
        (
            lambda: optimizer_from_config({"name": "SGD", "unit_norm": {"tensor": "a"}}),
            ValueError,
            "unit_norm",
        ),
        (lambda: optimizer_from_config(SGD().config(), nbeta=1.0), ValueError, "unknown keys.*nbeta"),
    ],
)
def test_refusals_of_more(make, error, message):
    with pytest.raises(error, match=message):
        make()


UNTIED = NetworkSpec(n_features=5, n_hidden=2, tied=False)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (SGD(lr_scale={"weight": 1.0}), r"lr_scale must name.*tensors \('encoder', 'decoder', 'bias'\)"),
        (SGD(weight_decay_scale={"hidden_bias": 1.0}), "weight_decay_scale must name.*not 'hidden_bias'"),
        (SGD(bias_decay=BiasDecay(0.1)), r"bias_decay must name.*biases \('bias'\), not 'hidden_bias'"),
        (SGD(bias_decay=BiasDecay(0.1, tensor="decoder")), "biases.*not 'decoder'"),
        (SGD(unit_norm="bias"), r"unit_norm must name one of the model's matrices \('encoder', 'decoder'\)"),
        (SGD(clip_norm=[1.0, 2.0]), "clip_norm must.*3 models"),
    ],
)  # fmt: skip
def test_names_and_numbers_of_other_models_are_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        optimizer.check_for(UNTIED, 3)


def test_what_has_no_kernels_on_a_device_is_named():
    for optimizer in (SGD(momentum=0.9), Adam(), AdamW()):
        assert optimizer.without_kernels() == []
    for optimizer, names in (
        (LAMB(), ["LAMB"]),
        (SGLD(), ["SGLD"]),
        (SGD(clip_norm=1.0), ["clip_norm"]),
        (Adam(unit_norm="decoder"), ["unit_norm"]),
        (LAMB(lr_scale={"bias": 2.0}), ["LAMB", "lr_scale"]),
    ):
        assert optimizer.without_kernels() == names


def test_noise_has_no_place_in_sparse_models():
    with pytest.raises(ValueError, match="SGLD for sparse models"):
        SGLD().check_for(NetworkSpec(n_features=5, n_hidden=2, sparse=True), 1)
