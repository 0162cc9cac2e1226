"""The layer past the dispatcher: the same bits as by the operators, taken where it may be and not else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from kit import LEVELS, isa_level
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import toykern as tk
from toykern import _native
from toykern.nn import stacked

WAYS = ("plain_loss", "plain_output")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tied": (tk.TiedAutoencoder, {}),
    "untied": (tk.Autoencoder, {"hidden_activation": "relu", "hidden_bias": True}),
    "top-k": (tk.TiedAutoencoder, {"hidden_activation": "topk", "top_k": 2, "output_activation": "gelu"}),
    "slopes": (tk.Autoencoder, {"hidden_activation": "gelu", "output_activation": "leaky_relu"}),
    "no bias": (tk.TiedAutoencoder, {"bias": False, "output_activation": "softplus"}),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


@contextmanager
def ways(taken: list[bool] | None = None) -> Iterator[None]:
    """Whether each call was plain comes into `taken`; without it, no call is plain."""

    def watched(way: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found = way(*arguments) if taken is not None else None
            if taken is not None:
                taken.append(found is not None)
            return found

        return call

    with mock.patch.multiple(stacked, **{name: watched(getattr(stacked, name)) for name in WAYS}):
        yield


def model_of(name: str, n: int = 6, m: int = 3, models: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    kind, options = NETWORKS[name]
    model = kind(n, m, models, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.3 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return model


def batch_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)
    return x.to(dtype)


def results(model: Any, x: Any, weights: torch.Tensor | None, **options: Any) -> list[torch.Tensor]:
    """Of the loss and of the output: the value and every gradient."""
    found = []
    for call in (lambda: model.loss(x, **options), lambda: model(x)):
        model.zero_grad()
        value = call()
        scale = value.new_ones(()) if weights is None else weights.view(-1, *[1] * (value.ndim - 1))
        (value * scale).sum().backward() if weights is not None else value.sum().backward()
        found += [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        with torch.no_grad():
            assert torch.equal(call(), value)
    return found


@each_network
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 3), (30, 12)])
def test_both_ways_have_the_same_bits(name, dtype, shape):
    n, m = shape
    model, dense = model_of(name, n, m, dtype=dtype), batch_of(2, 21, n, dtype=dtype)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    options: list[dict[str, Any]] = [
        {},
        {"importance": 2, "l1": 0.1, "target": "abs", "loss_reduction": "sum"},
        {"importance": torch.linspace(0, 1, n).to(work)},
        {"importance": torch.rand(2, n, dtype=work)},
    ]
    for x in (
        dense,
        dense[0],
        dense[:1],
        tk.SparseBatch.from_dense(dense),
        tk.SparseBatch.from_dense(dense[0]),
    ):
        for given, weights in zip(options, (None, torch.tensor([2.0, -3.0]), None, None), strict=True):
            taken: list[bool] = []
            with ways(taken):
                plain = results(model, x, weights, **given)
            assert all(taken) and len(taken) == 4
            with ways():
                other = results(model, x, weights, **given)
            assert len(plain) == len(other) > 3
            for a, b in zip(plain, other, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)


class Seen(TorchDispatchMode):
    """Notes the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_has_to_see_operators_sees_them():
    model, x = model_of("tied"), batch_of(2, 5, 6)
    with Seen() as seen:
        model.loss(x)
        model(x)
    assert [name.split(".")[1] for name in seen.names if "toykern" in name] == [
        "tied_autoencoder_loss",
        "tied_autoencoder",
    ]
    taken: list[bool] = []
    with ways(taken):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        model.loss(x.clone().requires_grad_())
        model(x.clone().requires_grad_())
        with torch.overrides.BaseTorchFunctionMode():
            model.loss(x)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        torch.func.grad(lambda held: torch.func.functional_call(model, held, (x,)).sum())(parameters)
        torch.func.vmap(model)(x.unsqueeze(0))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode"):
            model(forward_ad.make_dual(x, torch.ones_like(x)))
        model.loss(x, importance=torch.ones(6, requires_grad=True))
        model.loss(x, l1=torch.tensor(0.1))
        model.loss(x, target=x)
    assert not any(taken)


def test_a_compiled_call_is_not_plain():
    model, x = model_of("tied"), batch_of(2, 5, 6)
    taken: list[bool] = []
    with ways(taken), torch._dynamo.config.patch(suppress_errors=False):
        torch._dynamo.reset()
        compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), model.loss(x))
    assert taken == [True]  # that beside it


def test_a_model_that_changed_is_noticed():
    """What is kept follows from shapes, dtypes and options, and those are looked at in every call."""
    model, x = model_of("tied"), batch_of(2, 5, 6)

    def same(given: torch.Tensor) -> None:
        taken: list[bool] = []
        with ways(taken):
            plain = model.loss(given).detach(), model(given).detach()
        with ways():
            assert torch.equal(plain[0], model.loss(given)) and torch.equal(plain[1], model(given))
        assert taken == [True, True]

    same(x)
    model.weight.data = torch.rand(2, 4, 6)  # more hidden units than it was made with
    same(x)
    model.weight = torch.nn.Parameter(torch.rand(2, 3, 6))
    model.output_activation = "none"
    same(x)
    model.double()
    same(x.double())
    model.bias = None
    same(x.double())
    model.weight.data = torch.rand(2, 3, 7, dtype=torch.float64)
    for call in (model, model.loss):
        with pytest.raises((ValueError, TypeError), match="x must have the shape"):
            call(x.double())


BAD: list[tuple[str, Callable[[Any], None], str]] = [
    ("freed", lambda m: m.weight.untyped_storage().resize_(0), "weight must be .*whose memory was freed"),
    (
        "bias of others",
        lambda m: setattr(m.bias, "data", torch.rand(2, 5)),
        r"bias must have the shape \[2, 6\]",
    ),
    ("dtype", lambda m: setattr(m.bias, "data", torch.rand(2, 6).double()), "bias must have the dtype"),
    ("fewer models", lambda m: setattr(m.weight, "data", torch.rand(1, 3, 6)), "must have the shape"),
]


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_kernels_cannot_read_is_refused_as_ever(spoil, message):
    model, x = model_of("tied"), batch_of(2, 5, 6)
    model.loss(x), model(x)
    spoil(model)
    for call in (model.loss, model):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message) as plain:
            call(x)
        with ways(), pytest.raises(type(plain.value)) as other:
            call(x)
        assert str(plain.value) == str(other.value)


@pytest.mark.parametrize(
    "options",
    [
        {"importance": -1.0},
        {"importance": float("nan")},
        {"importance": torch.tensor([1.0, 1, 1, 1, 1, -1])},
        {"importance": torch.tensor([1.0, 1, 1, 1, 1, float("inf")])},
        {"importance": True},
        {"l1": -0.1},
        {"l1": float("nan")},
        {"l1": True},
        {"target": "nothing"},
        {"target": ["abs"]},
        {"loss": "cross_entropy"},
        {"loss_reduction": None},
    ],
)
def test_arguments_are_refused_as_ever(options):
    model, x = model_of("tied"), batch_of(2, 5, 6)
    model.loss(x)
    with pytest.raises((ValueError, TypeError)) as plain:
        model.loss(x, **options)
    with ways(), pytest.raises((ValueError, TypeError)) as other:
        model.loss(x, **options)
    assert type(plain.value) is type(other.value) and str(plain.value) == str(other.value)


def test_entries_are_looked_at_in_every_call():
    model, batch = model_of("tied"), tk.SparseBatch.from_dense(batch_of(2, 5, 6))
    output = model(batch)
    batch.feature[0] = 6
    for call in (lambda: model.loss(batch), lambda: model(batch)):
        with pytest.raises(ValueError, match=r"feature must lie in 0 … 5, the model's features \(sample 0\)"):
            call()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    fewer = copy.copy(batch)
    fewer.value = batch.value[:-1]
    with pytest.raises(ValueError, match="feature and value must have the same shape"):
        model.loss(fewer)


def test_what_changes_between_forward_and_backward():
    model = model_of("tied")
    for spoil, message in (
        (lambda x: x.add_(1), "modified by an inplace operation"),
        (lambda x: setattr(x, "data", torch.rand(1, 1, 6)), "x must have the shape"),
    ):
        x = batch_of(2, 5, 6)
        output = model(x)
        spoil(x)
        with pytest.raises((RuntimeError, ValueError), match=message):
            output.sum().backward()
    loss = model.loss(batch_of(2, 5, 6))
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()
    loss = model.loss(batch_of(2, 5, 6))
    loss.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.sum().backward()


def test_gradients_are_tensors_of_their_own():
    model, x = model_of("untied"), batch_of(2, 5, 6)
    model.loss(x).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.untyped_storage().nbytes() == parameter.grad.nbytes
    kept = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss = model.loss(x)
    model.zero_grad()
    loss.sum().backward(retain_graph=True)
    for parameter in model.parameters():
        parameter.grad.zero_()
    loss.sum().backward()
    assert all(torch.equal(p.grad, kept[name]) for name, p in model.named_parameters())


def test_hooks_on_parameters_are_called():
    model, x, seen = model_of("tied"), batch_of(2, 5, 6), []
    model.weight.register_hook(lambda gradient: seen.append("before") or 2 * gradient)
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("after"))
    model.loss(x).sum().backward()
    doubled = model.weight.grad.clone()
    assert seen == ["before", "after"]
    with ways():
        model.zero_grad()
        model.loss(x).sum().backward()
    assert torch.equal(model.weight.grad, doubled)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n_models", [1, 5])
def test_small_networks_alone_among_others_and_on_any_threads(level, n_models):
    """The loop with samples in lanes: a model's bits are its own, whatever the length of the batch."""
    with isa_level(level):
        for dtype in (torch.float32, torch.float64):
            stack = model_of("slopes", 7, 5, n_models, dtype=dtype)
            for batch in (1, 15, 16, 17, 2100):
                x = batch_of(n_models, batch, 7, dtype=dtype)
                found = []
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    found.append(results(stack, x, None))
                assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
                last = results(stack[n_models - 1 :], x[-1:], None)
                assert all(torch.equal(a, b[-1:]) for a, b in zip(last, found[0], strict=True))


def test_the_loop_of_small_networks_is_picked_by_shape_and_options():
    params = _native.LayerParams()
    params.tied, params.n_features, params.n_hidden, params.output_activation = True, 5, 2, 1
    found = {}
    for task in (0, 1, 2):
        for is_double in (False, True):
            params.task, params.is_double = task, is_double
            found[task, is_double] = _native.layer_regime(params)
    assert found.pop((1, False)) == "models"
    assert set(found.values()) == {"samples"}
    params.n_features = 65
    assert _native.layer_regime(params) == "blocks"
