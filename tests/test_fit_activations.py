"""Activations that the fast loops do not list, in `fit` and in the layer: GELU inside and at the output."""

from __future__ import annotations

import pytest
import torch
from cases import FitCase, LayerCase
from kit import (
    LEVELS,
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    fit_case,
    isa_level,
    largest_error,
    layer_batch,
    layer_of,
    layer_reference,
    model_of,
)

import toykern as tk
from toykern import reference
from toykern.network.activations import ACTIVATIONS
from toykern.training.kernels import network_params

# Both of the CPU's loops, tied and untied, with rare and frequent features.
CASES = [
    FitCase(
        f"{n},{m} {hidden} {output} {'tied' if tied else 'untied'}",
        n,
        m,
        probability,
        batch_size=65,
        optimizer=tk.AdamW(lr=3e-3),
        tied=tied,
        network={"hidden_activation": hidden, "output_activation": output},
        loss={"importance": [0.8**i for i in range(n)]},
    )
    for (n, m, probability), tied in (((6, 3, 0.05), True), ((7, 3, 0.4), False), ((21, 9, 0.05), False))
    for hidden, output in (("gelu", "relu"), ("none", "gelu"), ("gelu", "gelu"))
] + [
    FitCase("40,17 gelu gelu tied", 40, 17, 0.3, batch_size=65, optimizer=tk.AdamW(lr=3e-3),
            network={"hidden_activation": "gelu", "output_activation": "gelu"})
]  # fmt: skip
IDS = [case.name for case in CASES]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_step_is_as_exact_as_pytorch(case, level):
    with isa_level(level):
        assert_as_exact_as_pytorch(case, lambda **options: fit_case(case, **options))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_training_follows_the_reference(case):
    assert_follows_the_reference(case, fit_case(case, record_every=7))


def test_bits_are_a_models_own():
    case = CASES[2]
    whole = fit_case(case, steps=20)
    assert_same_bits(whole, fit_case(case, steps=20))
    assert_same_bits(whole.rerun(1), whole, [0], [1])


def test_evaluate_agrees_with_the_reference():
    case = CASES[2]
    model, data = model_of(case), tk.SparseFeatures(case.n_features, case.probability)
    found = tk.evaluate(model, data, samples=200, seed=3, importance=case.loss["importance"])
    x = data.sample(0, 200, 3, n_models=case.n_models, purpose="evaluation")
    expected, _ = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), **case.loss
    )
    assert largest_error(found, expected) <= 1e-6


# A small network and a large one, so that both the pass over columns and the general loop come up.
LAYERS = [
    LayerCase(
        f"{n},{m} gelu inside", n, m, density=density, tied=tied, network={"hidden_activation": "gelu"} | more
    )
    for n, m, density, tied in ((6, 3, 0.2, True), (75, 20, 0.9, False), (75, 20, 0.03, True))
    for more in ({}, {"hidden_bias": True, "output_activation": "gelu"}, {"output_activation": "none"})
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.name} {case.network}")
def test_layer_inside_gelu(case, dtype):
    output, loss, gradients = layer_reference(case)
    model, x = layer_of(case, dtype), layer_batch(case, dtype)["x"].requires_grad_()
    tolerance = 3e-6 if dtype == torch.float32 else 1e-12
    assert largest_error(model(x), output) <= tolerance
    found = model.loss(x)
    assert largest_error(found, loss) <= tolerance
    found.sum().backward()
    for name, parameter in model.named_parameters():
        assert largest_error(parameter.grad, gradients[name]) <= tolerance, name
    assert largest_error(x.grad, gradients["x"]) <= tolerance
    entries = tk.SparseBatch.from_dense(x.detach())
    assert largest_error(model.loss(entries), loss) <= tolerance


def test_the_kernels_are_told_the_number_of_the_activation():
    model = tk.TiedAutoencoder(3, 2, hidden_activation="gelu", output_activation="none")
    network = network_params(model, "abs", "sum")
    assert network.hidden_activation == ACTIVATIONS["gelu"].number
    assert network.output_activation == ACTIVATIONS["none"].number
