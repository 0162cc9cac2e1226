"""torch.func over the layers: gradients and vmap by the kernels, the rest by fused=False, and the errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

import toykern as tk

SAE = {"hidden_activation": "relu", "output_activation": "none", "centered": True, "hidden_bias": True}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tied": (tk.TiedAutoencoder, {}),
    "untied": (tk.Autoencoder, {"hidden_activation": "leaky_relu", "output_activation": "softplus"}),
    "sae": (tk.TiedAutoencoder, SAE),
    "topk": (
        tk.TiedAutoencoder,
        {"hidden_activation": "topk", "top_k": 2, "output_activation": "gelu", "bias": False},
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_stack = pytest.mark.parametrize("models", [1, 2])


class Loss(torch.nn.Module):
    """`loss` as a forward pass: what functional_call calls."""

    def __init__(self, model: torch.nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: Any, **more: Any) -> torch.Tensor:
        return self.model.loss(x, **self.options, **more)


def made(kind: str, models: int, dtype: torch.dtype = torch.float64) -> Any:
    """A model with all its parameters away from 0."""
    build, options = KINDS[kind]
    model = build(5, 3, models, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(models)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * (torch.rand(shape, generator=generator) < 0.7)


def parameters_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# ---- the same numbers ------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("entries", [False, True], ids=["dense", "entries"])
def test_by_torch_operations_it_is_the_same(kind: str, entries: bool) -> None:
    model, x = made(kind, 2), inputs(2, 6, 5)
    given = tk.SparseBatch.from_dense(x) if entries else x
    close(model(given, fused=False), model(given))
    importance = torch.rand(2, 5, dtype=torch.float64)
    l1 = torch.tensor([0.1, 0.3], dtype=torch.float64)
    for options in (
        {},
        {"importance": importance, "l1": l1, "loss_reduction": "sum"},
        {"target": "abs"},
        {"target": inputs(6, 5, seed=3)},
    ):
        close(model.loss(given, fused=False, **options), model.loss(given, **options))


def test_types_are_the_same_by_torch_operations() -> None:
    model, x = made("sae", 2, torch.bfloat16), inputs(2, 6, 5).bfloat16()
    assert model(x, fused=False).dtype == model(x).dtype == torch.bfloat16
    assert model.loss(x, fused=False).dtype == model.loss(x).dtype == torch.float32
    torch.testing.assert_close(model.loss(x, fused=False), model.loss(x), rtol=1e-5, atol=1e-6)
    model, x = made("sae", 2, torch.float32), inputs(2, 6, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x, fused=False).dtype == model(x).dtype == torch.bfloat16
        torch.testing.assert_close(model.loss(x, fused=False), model.loss(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="fused must be"):
        model(x, fused="no")
    with pytest.raises(ValueError, match="at least one sample"):
        model.loss(x[:, :0], fused=False)


# ---- by the kernels --------------------------------------------------------------------------------------


@each_kind
@each_stack
def test_grad_and_vjp_are_those_of_autograd(kind: str, models: int) -> None:
    module, x = Loss(made(kind, models), importance=2.0, l1=0.1), inputs(models, 6, 5)
    scale = torch.arange(1.0, models + 1, dtype=torch.float64)
    (module(x) * scale).sum().backward()
    want = {name: parameter.grad for name, parameter in module.named_parameters()}
    parameters = parameters_of(module)
    got = grad(lambda p: (functional_call(module, p, (x,)) * scale).sum())(parameters)
    close(got, want)
    _, pull = vjp(lambda p: functional_call(module, p, (x,)), parameters)
    close(pull(scale)[0], want)


@each_kind
@each_stack
def test_gradients_of_each_sample(kind: str, models: int) -> None:
    """`vmap(grad)`: parameters shared, samples apart."""
    module, x = Loss(made(kind, models), l1=0.1), inputs(7, models, 1, 5)
    parameters = parameters_of(module)

    def each(p: Any, sample: torch.Tensor) -> torch.Tensor:
        return functional_call(module, p, (sample,)).sum()

    got = vmap(grad(each, argnums=(0, 1)), in_dims=(None, 0))(parameters, x)
    want = [grad(each, argnums=(0, 1))(parameters, sample) for sample in x]
    for i, (of_parameters, of_x) in enumerate(want):
        close({name: gradient[i] for name, gradient in got[0].items()}, of_parameters)
        close(got[1][i], of_x)


@each_kind
@pytest.mark.parametrize("call", ["loss", "forward"])
def test_an_ensemble_of_modules(kind: str, call: str) -> None:
    """Parameters batched, in whatever place, x shared or not; a vmap within one."""
    several = [made(kind, 2) for _ in range(3)]
    with torch.no_grad():
        for i, model in enumerate(several):
            for parameter in model.parameters():
                parameter += 0.1 * i
    modules = [Loss(model) if call == "loss" else model for model in several]
    parameters, _ = stack_module_state(modules)
    parameters = {name: parameter.detach() for name, parameter in parameters.items()}
    moved = {name: parameter.movedim(0, 1) for name, parameter in parameters.items()}
    for x, place in ((inputs(6, 5), None), (inputs(3, 6, 5), 0), (inputs(2, 6, 3, 5), 2)):

        def one(p: Any, given: torch.Tensor) -> torch.Tensor:
            return functional_call(modules[0], p, (given,))

        want = torch.stack(
            [module(x if place is None else x.select(place, i)) for i, module in enumerate(modules)]
        )
        close(vmap(one, in_dims=(1, place))(moved, x), want)
        close(vmap(one, in_dims=(0, place))(parameters, x), want)
    x = inputs(4, 6, 5)
    twice = vmap(lambda p: vmap(lambda rows: one(p, rows))(x))(parameters)
    close(twice, torch.stack([torch.stack([module(rows) for rows in x]) for module in modules]))


@each_kind
@each_stack
def test_gradients_through_vmap(kind: str, models: int) -> None:
    """`grad(vmap)`, and jacobians, which are `vmap` over backward passes."""
    model, x = made(kind, models), inputs(4, models, 3, 5)
    module, parameters = Loss(model), parameters_of(Loss(model))

    def all_of(p: Any, given: torch.Tensor) -> torch.Tensor:
        return vmap(lambda rows: functional_call(module, p, (rows,)))(given).square().sum()

    def one_by_one(p: Any, given: torch.Tensor) -> torch.Tensor:
        return sum(functional_call(module, p, (rows,)).square().sum() for rows in given)

    close(grad(all_of, argnums=(0, 1))(parameters, x), grad(one_by_one, argnums=(0, 1))(parameters, x))

    def through(p: Any, given: torch.Tensor, fused: bool) -> torch.Tensor:
        return functional_call(
            model, {n.removeprefix("model."): t for n, t in p.items()}, given, {"fused": fused}
        )

    for which in (0, 1):
        got = jacrev(through, argnums=which)(parameters, x[0], True)
        close(got, jacrev(through, argnums=which)(parameters, x[0], False))


def test_gradients_of_importance_and_l1() -> None:
    model, x = made("sae", 2), inputs(2, 6, 5)
    importance, l1 = torch.rand(2, 5, dtype=torch.float64), torch.rand(2, dtype=torch.float64)

    def loss(i: torch.Tensor, price: torch.Tensor, fused: bool) -> torch.Tensor:
        return model.loss(x, importance=i, l1=price, fused=fused).sum()

    close(grad(loss, (0, 1))(importance, l1, True), grad(loss, (0, 1))(importance, l1, False))
    several = vmap(grad(loss, (0, 1)), in_dims=(0, None, None))(
        torch.stack([importance, importance + 1]), l1, True
    )
    close(several[0][1], grad(loss)(importance + 1, l1, False))


def test_entries_are_shared_by_calls_or_refused() -> None:
    module, x = Loss(made("untied", 1)), inputs(6, 5)
    batch = tk.SparseBatch.from_dense(x)
    parameters = {name: torch.stack([t, t + 0.1]) for name, t in parameters_of(module).items()}
    got = vmap(lambda p: functional_call(module, p, (batch,)))(parameters)
    close(got, vmap(lambda p: functional_call(module, p, (x,)))(parameters))
    of_both = Loss(made("tied", 2))
    theirs = tk.SparseBatch.from_dense(inputs(2, 6, 5))
    with pytest.raises(RuntimeError, match=r"x must be dense or a SparseBatch that all models share"):
        vmap(lambda p: functional_call(of_both, {"model.weight": p}, (theirs,)))(inputs(4, 2, 3, 5))


# ---- what the kernels have not ---------------------------------------------------------------------------


def scalar(module: torch.nn.Module, x: torch.Tensor, fused: bool) -> Any:
    return lambda p: functional_call(module, p, (x,), {"fused": fused}).square().sum()


@each_kind
@pytest.mark.parametrize("call", ["loss", "forward"])
def test_forward_mode_and_second_derivatives_say_what_to_do(kind: str, call: str) -> None:
    model, x = made(kind, 2), inputs(2, 6, 5)
    module = Loss(model) if call == "loss" else model
    parameters = parameters_of(module)
    along = ({name: torch.ones_like(t) for name, t in parameters.items()},)
    fused, plain = scalar(module, x, True), scalar(module, x, False)
    for refused in (lambda: jvp(fused, (parameters,), along), lambda: hessian(fused)(parameters)):
        with pytest.raises(RuntimeError, match="no derivative in forward mode.*fused=False"):
            refused()
    with pytest.raises(RuntimeError, match="no second derivative.*fused=False"):
        jacrev(jacrev(fused))(parameters)
    with pytest.raises(RuntimeError, match="no second derivative.*fused=False"):
        grad(lambda given: sum(t.sum() for t in grad(scalar(module, given, True))(parameters).values()))(x)
    _, slope = jvp(plain, (parameters,), along)
    close(slope, sum(t.sum() for t in grad(fused)(parameters).values()))
    by_rows = hessian(plain)(parameters)
    close(by_rows, jacrev(jacrev(plain))(parameters))
    name = next(iter(parameters))
    step, size = torch.zeros_like(parameters[name]), 1e-6
    step.view(-1)[4] = size  # the kernels' own gradients, a little apart
    ahead, behind = (grad(fused)({**parameters, name: parameters[name] + s})[name] for s in (step, -step))
    column = by_rows[name][name].flatten(-step.ndim)[..., 4]
    torch.testing.assert_close((ahead - behind) / (2 * size), column, rtol=1e-5, atol=1e-6)


def test_dual_numbers_say_so_too() -> None:
    model, x = made("tied", 1), inputs(6, 5)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="no derivative in forward mode"),
    ):
        model.loss(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("call", ["loss", "forward"])
def test_a_second_derivative_past_frozen_weights_is_refused_too(call: str) -> None:
    model, x = made("tied", 1).requires_grad_(False), inputs(6, 5).requires_grad_()
    first = model.loss(x).sum() if call == "loss" else model(x).square().sum()
    (gradient,) = torch.autograd.grad(first, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


# ---- sparse layers ---------------------------------------------------------------------------------------

SPARSE: dict[str, Any] = {
    "layer": lambda: tk.SparseLinear(5, 4, 0.6, activation="relu", seed=1, dtype=torch.float64),
    "stack": lambda: tk.SparseLinear(
        5, 4, density=[0.3, 0.7], n_models=2, capacity=17, seed=1, dtype=torch.float64
    ),
    "autoencoder": lambda: tk.SparseTiedAutoencoder(5, 3, 0.6, n_models=2, dtype=torch.float64),
}
each_sparse = pytest.mark.parametrize("kind", SPARSE)


@each_sparse
def test_sparse_layers_by_kernels_and_by_torch_operations(kind: str) -> None:
    layer, x = SPARSE[kind](), inputs(2, 6, 5)
    parameters = parameters_of(layer)
    close(layer(x, fused=False), layer(x))
    fused, plain = scalar(layer, x, True), scalar(layer, x, False)
    close(grad(fused)(parameters), grad(plain)(parameters))
    along = ({name: torch.ones_like(t) for name, t in parameters.items()},)
    with pytest.raises(RuntimeError, match="no derivative in forward mode.*fused=False"):
        jvp(fused, (parameters,), along)
    with pytest.raises(RuntimeError, match="no second derivative.*fused=False"):
        grad(lambda p: sum(t.sum() for t in grad(fused)(p).values()))(parameters)
    with pytest.raises(RuntimeError, match="sparse layers have no kernels under torch.vmap.*fused=False"):
        vmap(lambda rows: layer(rows))(inputs(3, 2, 6, 5))
    close(jvp(plain, (parameters,), along)[1], sum(t.sum() for t in grad(fused)(parameters).values()))
    close(hessian(plain)(parameters), jacrev(jacrev(plain))(parameters))
    rows = inputs(3, 2, 6, 5)
    close(vmap(lambda given: layer(given, fused=False))(rows), torch.stack([layer(given) for given in rows]))
    if kind == "autoencoder":
        close(layer.loss(x, importance=2.0, fused=False), layer.loss(x, importance=2.0))
    with pytest.raises(TypeError, match="fused must be"):
        layer(x, fused=1)


def test_two_layer_networks_take_every_transform_as_they_are() -> None:
    model = tk.MLP(5, 3, n_models=2, dtype=torch.float64)
    parameters, x = parameters_of(model), inputs(2, 6, 5)

    def loss(p: Any) -> torch.Tensor:
        return functional_call(model, p, (x,)).square().sum()

    close(hessian(loss)(parameters), jacrev(jacrev(loss))(parameters))
    rows = inputs(3, 2, 6, 5)
    close(vmap(model)(rows), torch.stack([model(given) for given in rows]))
