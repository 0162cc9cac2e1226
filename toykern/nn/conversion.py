"""Turns the Linears of any network into sparse layers, with one density for all or shared out among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import nn

from toykern.arguments.errors import (
    check_choice,
    check_dense_tensor,
    check_int,
    check_non_negative_int,
    check_number,
    check_size,
    describe,
)
from toykern.nn.sparse_linear import SparseLinear
from toykern.sparse.draws import words64
from toykern.sparse.topology import Topology

DISTRIBUTIONS = ("uniform", "erdos-renyi", "erk")
SOURCES = ("random", "largest")

Module = TypeVar("Module", bound=nn.Module)


@overload
def sparsify(
    module: nn.Linear, density: float, distribution: str = "uniform", *, exclude: Iterable[str] = (),
    from_weights: str = "random", minimum_fan_in: int = 0, capacity: float = 1.0, seed: int | None = None,
) -> nn.Linear | SparseLinear: ...  # fmt: skip


@overload
def sparsify(
    module: Module, density: float, distribution: str = "uniform", *, exclude: Iterable[str] = (),
    from_weights: str = "random", minimum_fan_in: int = 0, capacity: float = 1.0, seed: int | None = None,
) -> Module: ...  # fmt: skip


def sparsify(
    module: Module,
    density: float,
    distribution: str = "uniform",
    *,
    exclude: Iterable[str] = (),
    from_weights: str = "random",
    minimum_fan_in: int = 0,
    capacity: float = 1.0,
    seed: int | None = None,
) -> Module | SparseLinear:
    """Replace every `torch.nn.Linear` in `module` by a `SparseLinear`; in place, and returned.

    Args:
        module: any network. Layers of exactly the type nn.Linear are replaced, also where one stands in
            several places, and their hooks of forward and backward go over. A Linear by itself is not
            changed, and its sparse layer returned. What stays dense is said in a warning: Linears that may
            compute something else (subclasses, lazy and parametrised ones, weight_norm, pruned ones),
            convolutions, recurrent layers, Bilinear and attention's own projections.
        density: the fraction of connections of all replaced layers together, in (0, 1].
        distribution: "uniform" gives every layer that density. "erdos-renyi" gives layer l a density in
            proportion to (in + out)/(in · out), so that larger layers are sparser, but at most 1 (Mocanu et
            al. 2018, eq. 3; Evci et al. 2020, §3 (1)). "erk" counts the kernels of convolutions too, and is
            the same for Linears.
        exclude: names of layers that stay dense, as in `module.named_modules()`, without a warning; "*" and
            "?" match anything.
        from_weights: "random" draws connections, and values and biases anew, by the actual fan-in (as
            `SparseLinear` does). "largest" keeps each layer's connections of largest |weight|, with their
            values, and its bias.
        minimum_fan_in: every output gets at least that many inputs (for "random").
        capacity: slots of a layer, as a multiple of its connections (but at most all positions): room for
            recipes that move connections between layers.
        seed: of what is drawn; None takes it from torch's generator.

    ValueError or TypeError names the argument at fault, a density that leaves a layer without connections or
    with too few, and what a sparse layer cannot take over (shared parameters, hooks of a weight, of states, a
    forward of one layer's own); the module is then as it was. Make the optimiser afterwards: the parameters
    are new ones.

    >>> network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> sparsify(network, 0.1, exclude=["2"])
    Sequential(
      (0): SparseLinear(in_features=64, out_features=32, density=0.1001, bias=True)
      (1): ReLU()
      (2): Linear(in_features=32, out_features=10, bias=True)
    )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {describe(module)}")
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_choice("from_weights", from_weights, SOURCES)
    check_non_negative_int("minimum_fan_in", minimum_fan_in)
    check_number("capacity", capacity, minimum=1.0)
    if minimum_fan_in and from_weights == "largest":
        raise ValueError("minimum_fan_in is for from_weights='random', not 'largest'")
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    check_int("seed", seed, minimum=0, maximum=2**63 - 1)
    linears, left = _chosen(module, exclude)
    _check_untied(module, linears)
    for name, linear in linears.items():
        _check_hooks(name, linear)
    densities = layer_densities(
        [(linear.in_features, linear.out_features) for linear in linears.values()], density, distribution
    )
    made: dict[int, SparseLinear] = {}
    for number, ((name, linear), layer_density) in enumerate(zip(linears.items(), densities, strict=True)):
        layer_seed = int(
            words64(np.array([seed]), np.array([number]), 1, purpose="layer")[0, 0] >> np.uint64(1)
        )
        try:
            made[id(linear)] = _sparse(
                linear, layer_density, from_weights, minimum_fan_in, capacity, layer_seed
            )
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    for linear in linears.values():
        _carry_hooks(linear, made[id(linear)], shared=linear is not module)
    if id(module) in made:
        return made[id(module)]
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                parent._modules[name] = made[id(child)]
    _close_shortcuts(module)
    if left:
        described = ", ".join(f"{name!r} ({kind})" for name, kind in left.items())
        warnings.warn(
            f"sparsify leaves dense: {described}; name them in exclude where that is meant", stacklevel=2
        )
    return module


def layer_densities(
    shapes: list[tuple[int, int]], density: float, distribution: str = "uniform"
) -> list[float]:
    """The density of each layer of shape (in_features, out_features), for one over all of them.

    See `sparsify`. Layers that Erdős–Rényi would give more than all connections are dense, and the others
    share what is left.

    >>> [round(d, 3) for d in layer_densities([(784, 300), (300, 100), (100, 10)], 0.1, "erdos-renyi")]
    [0.08, 0.23, 1.0]
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    shapes = _checked_shapes(shapes)
    density = check_number("density", density, minimum=0.0, maximum=1.0)
    if density == 0:
        raise ValueError("density must be above 0 and at most 1, not 0.0")
    if distribution == "uniform":
        return [density] * len(shapes)
    sizes = np.array([a * b for a, b in shapes], dtype=np.float64)
    raw = np.array([(a + b) / (a * b) for a, b in shapes], dtype=np.float64)
    dense = np.zeros(len(shapes), dtype=bool)
    while True:
        left = density * sizes.sum() - sizes[dense].sum()
        result = np.where(dense, 1.0, raw * left / max((raw * sizes)[~dense].sum(), np.finfo(float).tiny))
        over = (result > 1) & ~dense
        if not over.any():
            return [float(d) for d in result]
        dense |= over & (raw == raw[over].max())


def _checked_shapes(shapes: Any) -> list[tuple[int, int]]:
    """The pairs of sizes, as ints; TypeError or ValueError for what is no such list."""
    if isinstance(shapes, torch.Tensor):
        check_dense_tensor("shapes", shapes)
    if isinstance(shapes, torch.Tensor | np.ndarray):
        shapes = shapes.tolist()
    if isinstance(shapes, str | bytes) or not isinstance(shapes, Iterable):
        raise TypeError(f"shapes must be a list of pairs (in_features, out_features), not {describe(shapes)}")
    pairs = list(shapes)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"shapes must hold pairs (in_features, out_features), not {describe(pair)}")
    return [(check_size("a size in shapes", a), check_size("a size in shapes", b)) for a, b in pairs]


def _close_shortcuts(module: nn.Module) -> None:
    """In evaluation PyTorch's transformer encoders go round their Linears, to kernels that take dense
    weights; not where one of them is sparse."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer | nn.TransformerEncoder) and any(
            isinstance(layer, SparseLinear) for layer in part.modules()
        ):
            if isinstance(part, nn.TransformerEncoderLayer):
                part.activation_relu_or_gelu = 0  # what it asks before it goes there
            else:
                part.use_nested_tensor = False


_DENSE = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a Linear of weight and bias, and nothing else."""
    return type(layer) is nn.Linear and set(layer._parameters) == {"weight", "bias"}


def _chosen(module: nn.Module, exclude: Iterable[str]) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The layers to replace, and the kinds of those with dense weights that are neither replaced nor
    excluded, by the first of their names."""
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of names, such as [{exclude!r}], not a string")
    if isinstance(exclude, torch.Tensor) or not isinstance(exclude, Iterable):
        raise TypeError(f"exclude must be a list of names, not {describe(exclude)}")
    patterns = list(exclude)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude must hold names, not {describe(pattern)}")
    every = [
        (name, layer)
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _DENSE)
    ]
    named = [(name, layer) for name, layer in every if isinstance(layer, nn.Linear) and _is_plain(layer)]
    unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name, _ in every)]
    if unused:
        raise ValueError(
            f"exclude names {unused}, which is no Linear of the module, nor another layer with dense "
            f"weights; it has {[name for name, _ in every]}"
        )
    excluded = {id(layer) for name, layer in every if any(fnmatchcase(name, p) for p in patterns)}
    found: dict[str, nn.Linear] = {}
    for name, layer in named:
        if id(layer) not in excluded and not any(layer is other for other in found.values()):
            found[name] = layer
    left: dict[str, str] = {}
    seen = excluded | {id(layer) for layer in found.values()}
    for name, other in every:
        if id(other) not in seen:
            seen.add(id(other))
            left[name] = _kind(other)
    if not found:
        others = f"; it has {', '.join(left.values())}, which stay dense" if left else ""
        raise ValueError(
            "module has no torch.nn.Linear to make sparse" + " but those excluded" * bool(named) + others
        )
    return found, left


def _kind(layer: nn.Module) -> str:
    """What to call a layer that stays dense."""
    name = type(layer).__name__
    if type(layer) is nn.Linear:
        parameters = ", ".join(layer._parameters)
        return f"{name} with {parameters} for parameters"
    return name


_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _check_hooks(name: str, linear: nn.Linear) -> None:
    """ValueError for what is done to a layer and would be lost or meaningless with a sparse one."""
    if "forward" in vars(linear):
        raise ValueError(
            f"layer {name!r} has a forward of its own, which a sparse one would lose; exclude it"
        )
    if any(vars(linear).get(kind) for kind in _STATE_HOOKS):
        raise ValueError(
            f"layer {name!r} has hooks of its state_dict, whose entries a sparse one has not; exclude it"
        )
    for of, parameter in linear.named_parameters(recurse=False):
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"layer {name!r} has a hook of the gradient of its {of}, which is another in a sparse one; "
                "exclude it, or register the hook afterwards"
            )


def _carry_hooks(linear: nn.Linear, layer: SparseLinear, shared: bool) -> None:
    """The hooks of calls go over; `shared` with their very containers, so that handles still remove them."""
    for kind in _CALL_HOOKS:
        hooks = vars(linear)[kind]
        setattr(layer, kind, hooks if shared else hooks.copy())
    layer._is_full_backward_hook = linear._is_full_backward_hook


def _check_untied(module: nn.Module, linears: dict[str, nn.Linear]) -> None:
    """ValueError where a layer shares its parameters with another module: they would no longer be shared."""
    owners: dict[int, set[int]] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(part))
    for name, linear in linears.items():
        for parameter_name, parameter in linear.named_parameters(recurse=False):
            if len(owners[id(parameter)]) > 1:
                raise ValueError(
                    f"layer {name!r} shares its {parameter_name} with another module, as no sparse one can; "
                    "exclude it"
                )


def _sparse(
    linear: nn.Linear, density: float, from_weights: str, minimum_fan_in: int, capacity: float, seed: int
) -> SparseLinear:
    """The sparse layer in place of one dense one."""
    if from_weights == "largest":
        topology = Topology.from_largest(linear.weight.detach(), density)
    else:
        topology = Topology.random(
            linear.in_features, linear.out_features, density, seed=seed, minimum_fan_in=minimum_fan_in
        )
    if capacity > 1:
        room = min(linear.in_features * linear.out_features, int(capacity * topology.capacity))
        topology = Topology.from_mask(topology.to_mask(), capacity=room)
    if from_weights == "largest":
        return SparseLinear.from_linear(linear, topology)
    layer = SparseLinear(
        linear.in_features,
        linear.out_features,
        topology=topology,
        bias=linear.bias is not None,
        seed=seed,
        dtype=linear.weight.dtype,
        device=linear.weight.device,
    )
    layer.values.requires_grad_(linear.weight.requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(linear.bias.requires_grad)
    return layer.train(linear.training)
