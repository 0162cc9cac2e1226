"""Optimisers as descriptions: defaults, per-model rates, config, refusals (arithmetic: test_reference)."""

import json
import math

import numpy as np
import pytest
import torch

from toykern.training.optim import SGD, Adam, AdamW, optimizer_from_config

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
