"""The reference of the family against autograd: every combination of what a network and its loss may be.

What autograd differentiates is written once more here, by PyTorch's own functions, a model at a time.
"""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import toykern as tk
from toykern import reference
from toykern.network import HIDDEN_ACTIVATIONS, LOSSES, OUTPUT_ACTIVATIONS
from toykern.reference import Network

MODELS, N, M, D, BATCH, K, SLOPE = 2, 5, 4, 3, 6, 2, 0.3
LOSS = "squared_error"  # the one that a mean over outputs is taken of

PLAIN = {
    "none": lambda z: z,
    "relu": functional.relu,
    "leaky_relu": lambda z: functional.leaky_relu(z, SLOPE),
    "gelu": functional.gelu,
    "softplus": lambda z: functional.softplus(z, threshold=1e9),
    "square": lambda z: z * z,
    "x_exp": lambda z: z * z.exp(),
    "solu": lambda z: z * functional.softmax(z, dim=-1),
    "topk": lambda z: torch.where(z >= z.topk(K, dim=-1).values[..., -1:], z, 0.0),
}


def structures() -> list[dict[str, Any]]:
    """Every network of the family by its tensors, as far as they fit together."""
    found = []
    names = ("tied", "residual", "centered", "hidden_bias", "bias")
    for fixed in ("none", "embedding", "both"):
        for flags in product((False, True), repeat=len(names)):
            for outputs in (N, D):
                given = dict(zip(names, flags, strict=True)) | {"fixed": fixed, "outputs": outputs}
                seen = N if fixed == "none" else D
                decoded = D if fixed == "both" else outputs
                paired = given["tied"] or given["residual"]
                if paired and seen != decoded:
                    continue
                if given["centered"] and (not given["bias"] or fixed == "both" or seen != outputs):
                    continue
                found.append(given)
    return found


def label(given: dict[str, Any]) -> str:
    on = [name for name, value in given.items() if value is True]
    return " ".join([given["fixed"], str(given["outputs"]), *on])


def draws(*shape: int, seed: int) -> torch.Tensor:
    """Of a size that keeps e^e^z within what doubles tell apart."""
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """To a few roundings of the largest entry."""
    assert found.shape == expected.shape, name
    assert bool(expected.isfinite().all()), name
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-11, (name, float(error))


def network_of(given: dict[str, Any], hidden: str, output: str) -> tuple[dict[str, torch.Tensor], Network]:
    """Parameters of the structure, and the reference's network with these activations."""
    fixed, outputs = given["fixed"], given["outputs"]
    seen, decoded = (N if fixed == "none" else D), (D if fixed == "both" else outputs)
    parameters = {}
    if given["tied"]:
        parameters["weight"] = draws(MODELS, M, seen, seed=1)
    else:
        parameters["encoder"] = draws(MODELS, M, seen, seed=1)
        parameters["decoder"] = draws(MODELS, decoded, M, seed=2)
    if given["bias"]:
        parameters["bias"] = draws(MODELS, outputs, seed=3)
    if given["hidden_bias"]:
        parameters["hidden_bias"] = draws(MODELS, M, seed=4)
    network = Network(
        hidden, output, K if hidden == "topk" else 0, given["centered"], SLOPE, given["residual"],
        None if fixed == "none" else draws(1, D, N, seed=5),
        draws(MODELS, outputs, D, seed=6) if fixed == "both" else None,
    )  # fmt: skip
    return parameters, network


def plain_outputs(parameters: dict[str, torch.Tensor], network: Network, x: torch.Tensor, k: int) -> Any:
    """(codes, outputs) of model `k`, one sample at a time as people write it."""
    e = x[k] if network.embedding is None else torch.einsum("dn,bn->bd", network.embedding[0], x[k])
    encoder = parameters["weight"][k] if "weight" in parameters else parameters["encoder"][k]
    decoder = parameters["weight"][k].T if "weight" in parameters else parameters["decoder"][k]
    codes = functional.linear(
        e - parameters["bias"][k] if network.centered else e,
        encoder,
        parameters["hidden_bias"][k] if "hidden_bias" in parameters else None,
    )
    codes = PLAIN[network.hidden_activation](codes)
    found = functional.linear(codes, decoder)
    if network.residual:
        found = found + e
    if network.unembedding is not None:
        found = functional.linear(found, network.unembedding[k])
    if "bias" in parameters:
        found = found + parameters["bias"][k]
    return codes, PLAIN[network.output_activation](found)


def plain_loss(
    codes: torch.Tensor, y: torch.Tensor, t: torch.Tensor, importance: torch.Tensor, name: str, mean: bool,
    l1: float,
) -> torch.Tensor:  # fmt: skip
    """The loss of one model."""
    if name == "squared_error":
        found = (importance * functional.mse_loss(y, t, reduction="none")).sum() / len(y)
        found = found / y.shape[1] if mean else found
    elif name == "cross_entropy":
        found = -(importance * t * functional.log_softmax(y, dim=-1)).sum(dim=-1).mean()
    else:
        assert name == "batch_cross_entropy", name
        logs = functional.log_softmax(y.reshape(-1), dim=0).reshape(y.shape)
        found = -(importance * functional.softmax(t.reshape(-1), dim=0).reshape(t.shape) * logs).sum()
    return found + l1 * codes.abs().sum(dim=-1).mean()


def targets_of(given: dict[str, Any]) -> list[str]:
    """Names of the targets that a structure can have."""
    made = ["identity", "abs"] if given["outputs"] == N else []
    embedded = given["fixed"] != "none" and given["outputs"] == D
    return [*made, *(["embedding"] if embedded else []), "tensor", "labels"]


def check(given: dict[str, Any], hidden: str, output: str, target: str, loss: str, mean: bool) -> None:
    """The reference's loss and all its gradients are those of autograd."""
    parameters, network = network_of(given, hidden, output)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    outputs = given["outputs"]
    x = draws(MODELS, BATCH, N, seed=7).requires_grad_()
    clean = None
    if target == "tensor":
        clean = draws(MODELS, BATCH, outputs, seed=8).requires_grad_()
    elif target == "labels":
        numbers = torch.randint(outputs, (MODELS, BATCH), generator=torch.Generator().manual_seed(9))
        clean = functional.one_hot(numbers, outputs).double().requires_grad_()
        assert torch.equal(reference.one_hot(numbers, outputs), clean)
    importance = draws(MODELS, outputs, seed=10).abs()
    prices = [0.3, 0.0]  # with and without
    losses = []
    for k in range(MODELS):
        codes, y = plain_outputs(leaves, network, x, k)
        t = x[k] if clean is None else clean[k]
        if target == "abs":
            t = t.abs()
        elif target == "embedding":
            t = functional.linear(t, network.embedding[0])
        losses.append(plain_loss(codes, y, t, importance[k], loss, mean, prices[k]))
    expected = torch.stack(losses)
    wanted = {**leaves, "x": x} | ({} if clean is None else {"clean": clean})
    slopes = torch.autograd.grad(expected.sum(), list(wanted.values()))
    found, gradients = reference.loss_and_gradients(
        parameters,
        x.detach(),
        network,
        importance=importance,
        target=target if target in ("abs", "embedding") else "identity",
        clean=None if clean is None else clean.detach(),
        loss_reduction="mean" if mean else "sum",
        loss=loss,
        l1=prices,
        input_gradients=True,
    )
    assert_same("loss", found, expected.detach())
    assert gradients.keys() == wanted.keys()
    for name, slope in zip(wanted, slopes, strict=True):
        assert_same(name, gradients[name], slope)


@pytest.mark.parametrize("given", structures(), ids=label)
def test_loss_and_gradients_are_autograds(given):
    """Every target, loss and reduction of every structure, each with the next pair of activations."""
    pairs = list(product(HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS))
    turn = structures().index(given) * 7 % len(pairs)
    pair = cycle([*pairs[turn:], *pairs[:turn]])
    for target, (loss, mean) in product(
        targets_of(given), ((LOSS, True), *((name, False) for name in LOSSES))
    ):
        hidden, output = next(pair)
        check(given, hidden, output, target, loss, mean)


@pytest.mark.parametrize("hidden", HIDDEN_ACTIVATIONS)
@pytest.mark.parametrize("output", OUTPUT_ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_pair_of_activations_with_every_loss(hidden, output, loss):
    for given in (
        {"fixed": "none", "outputs": N, "tied": True, "residual": False, "centered": True, "bias": True},
        {"fixed": "both", "outputs": N, "tied": False, "residual": True, "centered": False, "bias": True},
    ):
        check(given | {"hidden_bias": True}, hidden, output, "identity", loss, True)


@pytest.mark.parametrize("loss", ["cross_entropy", "batch_cross_entropy"])
def test_gradients_of_cross_entropies_are_finite_differences(loss):
    given = next(
        g for g in structures() if g["outputs"] == N and g["bias"] and g["hidden_bias"] and not g["tied"]
    )
    parameters, network = network_of(given, "solu", "none")
    x, size = draws(MODELS, BATCH, N, seed=7), 1e-6
    _, gradients = reference.loss_and_gradients(parameters, x, network, loss=loss)
    for name, value in parameters.items():
        for index in np.ndindex(*value.shape[1:]):
            sides = []
            for sign in (1, -1):
                moved = {key: other.clone() for key, other in parameters.items()}
                moved[name][(slice(None), *index)] += sign * size
                sides.append(reference.loss_and_gradients(moved, x, network, loss=loss)[0])
            difference = (sides[0] - sides[1]) / (2 * size)
            torch.testing.assert_close(
                gradients[name][(slice(None), *index)], difference, rtol=1e-6, atol=1e-8
            )


def test_cross_entropies_are_pytorchs_and_do_not_overflow():
    logits, labels = 1000 * draws(1, 7, 5, seed=1), torch.arange(7)[None] % 5
    parameters = {"encoder": torch.eye(5).double()[None], "decoder": torch.eye(5).double()[None]}
    found, _ = reference.loss_and_gradients(
        parameters, logits, Network("none", "none"), clean=reference.one_hot(labels, 5), loss="cross_entropy"
    )
    torch.testing.assert_close(found[0], functional.cross_entropy(logits[0], labels[0]), rtol=1e-12, atol=0)
    share = functional.softmax(logits.flatten(), 0)
    found, slopes = reference.loss_and_gradients(
        parameters, logits, Network("none", "none"), loss="batch_cross_entropy"
    )
    entropy = -(share * functional.log_softmax(logits.flatten(), 0)).sum()
    torch.testing.assert_close(found[0], entropy, rtol=1e-12, atol=1e-12)  # of targets that are the outputs
    torch.testing.assert_close(slopes["decoder"], torch.zeros(1, 5, 5).double(), rtol=0, atol=1e-9)


def test_a_module_of_the_family_is_the_references_network():
    model = tk.MLP(N, M, n_models=MODELS, embedding=D, unembedding=True, residual=True).double()
    network, parameters = reference.network_of(model), reference.parameters_of(model)
    assert (network.residual, network.hidden_activation) == (True, "relu")
    assert torch.equal(network.unembedding, network.embedding.mT)
    x = draws(MODELS, BATCH, N, seed=1)
    torch.testing.assert_close(reference.forward(parameters, x, network).output, model(x).detach())
    network.embedding.zero_()  # a copy
    assert bool(model.embedding.any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "embedding"}, "target='embedding' is for a network with an embedding"),
        ({"clean": torch.zeros(2, 6, 4)}, "the target must have the shape of the outputs"),
        ({"loss": "hinge"}, "loss must be one of 'squared_error', 'cross_entropy', 'batch_cross_entropy'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    parameters, network = network_of(structures()[0], "relu", "none")
    with pytest.raises(ValueError, match=message):
        reference.loss_and_gradients(parameters, draws(MODELS, BATCH, N, seed=7), network, **options)
