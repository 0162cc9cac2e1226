"""Between two networks: their hidden units matched, the straight line between their weights, its barrier.

Parameters are dicts of tensors by name, as `model.stacked_parameters()` gives them: `[models, …]` each, or
without that dimension those of one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toykern.arguments.broadcast import Values, real_tensor
from toykern.arguments.errors import check_size, describe, is_int
from toykern.arguments.memory import check_free_memory
from toykern.metrics.assignment import largest_assignment

_UNITS: dict[str, tuple[int, int | None]] = {
    "weight": (2, -2),
    "encoder": (2, -2),
    "decoder": (2, -1),
    "hidden_bias": (1, -1),
    "bias": (1, None),
}
"""Parameters by name: the dimensions of one model's, and which of them the hidden units are."""


def match_units(first: Any, second: Any) -> torch.Tensor:
    """The order of the second network's hidden units nearest to the first, int64 `[models, n_hidden]`.

    Unit `order[i]` of the second stands for unit i of the first: Σ ‖first_i − second_order[i]‖² is least,
    over the weights into a unit, its bias and the weights out of it. `permute_units(second, order)` is then
    the same function as `second`, with its weights as near to the first as a permutation brings them. For a
    model whose weights are not finite, the units stay in order. By linear assignment, for one hidden layer
    exact (Ainsworth, Hayase and Srinivasa 2022, *Git Re-Basin*, weight matching). Bits of the distances may
    depend on the number of threads; the order does where two orders are equally good up to rounding.

    Args:
        first, second: parameters by name: "encoder", "decoder", "weight" (tied), "hidden_bias"; "bias" is
            of no unit. Stacks of as many models, or one model's, which then stands for all.

    Returns:
        int64 `[models, n_hidden]`, or `[n_hidden]` for two single models; on the device of the first.

    Raises:
        ValueError, TypeError: naming the argument.
        ImportError: SciPy is not installed (`pip install toykern[analysis]`).

    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> match_units({"weight": weight}, {"weight": weight[[2, 0, 1]]}).tolist()
    [1, 2, 0]
    """
    one, other = _check_network("first", first), _check_network("second", second)
    _check_alike(one, other)
    both = _stacked(one) and _stacked(other)
    for name, tensor in one.items():
        ndim = _UNITS[name][0]
        if tensor.shape[-ndim:] != other[name].shape[-ndim:] or (both and len(tensor) != len(other[name])):
            raise ValueError(
                f"second[{name!r}] does not go with that of first: {list(other[name].shape)} with "
                f"{list(tensor.shape)}"
            )
    rows, columns = _units(one), _units(other)
    n_hidden = rows.shape[1]
    check_free_memory(f"matching the {n_hidden:,} units of second", 24 * n_hidden**2, "take fewer units")
    orders = []
    for i in range(max(len(rows), len(columns))):
        gain = rows[i if len(rows) > 1 else 0] @ columns[i if len(columns) > 1 else 0].mT
        finite = bool(torch.isfinite(gain).all())
        orders.append(
            largest_assignment(gain) if finite else torch.arange(n_hidden, dtype=torch.int64, device="cpu")
        )
    order = torch.stack(orders).to(rows.device)
    return order if _stacked(one) or _stacked(other) else order[0]


def permute_units(parameters: Any, order: Any) -> dict[str, torch.Tensor]:
    """The same network with its hidden units in another order: unit `order[i]` comes to place i.

    Args:
        parameters: by name, as `match_units` takes them.
        order: integers, each unit once: `[n_hidden]` for all models, or `[models, n_hidden]`, which makes a
            stack of one model's parameters.

    Returns:
        New tensors by name, of the same dtypes; they can be differentiated.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> permute_units({"weight": torch.tensor([[1.0], [2.0]])}, [1, 0])["weight"].tolist()
    [[2.0], [1.0]]
    """
    held = _check_network("parameters", parameters)
    n_hidden = _n_hidden(held)
    chosen = real_tensor("order", order)
    if chosen.is_floating_point():
        raise TypeError(f"order must hold integers, not {describe(order)}")
    any_of = next(iter(held.values()))
    chosen = chosen.to(device=any_of.device, dtype=torch.int64)
    every = torch.arange(n_hidden, dtype=torch.int64, device=chosen.device)
    if chosen.ndim not in (1, 2) or 0 in chosen.shape or chosen.shape[-1] != n_hidden:
        raise ValueError(
            f"order must have the shape [models, {n_hidden}] or [{n_hidden}], not {describe(order)}"
        )
    if not bool((chosen.sort(dim=-1).values == every).all()):
        raise ValueError(f"order must have each of the {n_hidden} units once in each model")
    if chosen.ndim == 2 and _stacked(held) and len(chosen) != len(any_of):
        raise ValueError(f"order must be of the {len(any_of)} models of parameters, not of {len(chosen)}")
    stacked = chosen.ndim == 2 or _stacked(held)
    models = len(chosen) if chosen.ndim == 2 else len(any_of) if stacked else 1
    chosen = chosen.expand(models, n_hidden)
    found = {}
    for name, tensor in held.items():
        ndim, axis = _UNITS[name]
        wide = tensor.expand(models, *tensor.shape[-ndim:])
        if axis is None:
            moved = wide.clone()
        else:
            index = chosen if ndim == 1 else chosen.unsqueeze(-1 if axis == -2 else -2)
            moved = wide.gather(axis, index.expand_as(wide))
        found[name] = moved if stacked else moved[0]
    return found


def linear_path(first: Any, second: Any, points: Values = 11) -> dict[str, torch.Tensor]:
    """The parameters on the straight line from one network to another, `[points, …]` by name.

    (1 − t) · first + t · second, exactly the first at t = 0 and the second at t = 1. The points of two single
    models are a stack of models; of two stacks, `path[name].flatten(0, 1)` is one. The loss at each is for
    you to evaluate, and `loss_barrier` tells how high the line rises. Computed in double precision; can be
    differentiated.

    Args:
        first, second: floating-point tensors by name, any names and shapes, the same in both.
        points: how many, 2 or more, t evenly spaced from 0 to 1; or the t themselves, any numbers.

    Raises:
        ValueError, TypeError: naming the argument.
        MemoryError: so many points do not fit.

    >>> linear_path({"bias": torch.zeros(1)}, {"bias": torch.ones(1)}, points=3)["bias"].tolist()
    [[0.0], [0.5], [1.0]]
    """
    one, other = _check_tensors("first", first), _check_tensors("second", second)
    _check_alike(one, other)
    for name, tensor in one.items():
        if tensor.shape != other[name].shape:
            raise ValueError(
                f"second[{name!r}] must have the shape that it has in first, {list(tensor.shape)}, "
                f"not {list(other[name].shape)}"
            )
    if is_int(points):
        count = check_size("points", points)
        if count < 2:
            raise ValueError(f"points must be at least 2, not {count}")
        _check_room(count, one)
        t = torch.arange(count, dtype=torch.float64, device="cpu") / (count - 1)
    else:
        t = _check_positions("points", points)
        _check_room(len(t), one)
    found = {}
    for name, start in one.items():
        end = other[name]
        at = t.to(start.device).reshape(-1, *[1] * start.ndim)
        line = _between(start.double(), end.double(), at)
        found[name] = line.to(torch.promote_types(start.dtype, end.dtype))
    return found


def loss_barrier(losses: Values, points: Values | None = None) -> torch.Tensor:
    """How far the loss rises above the line between its ends, `[…]`: max_t L(t) − (1 − t) L(0) − t L(1).

    At least 0, and 0 for a path along which the loss is convex. NaN where a loss is NaN, or infinite at an
    end. Entezari et al. 2022, *The Role of Permutation Invariance in Linear Mode Connectivity of Neural
    Networks*.

    Args:
        losses: `[points, …]`, along `linear_path` from its start to its end.
        points: where on the path they are, rising from its start to its end; by default evenly spaced.

    Returns:
        Of the same dtype, computed in double precision; can be differentiated.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> loss_barrier(torch.tensor([1.0, 4.0, 2.0])).item()
    2.5
    """
    loss = real_tensor("losses", losses, detach=False)
    if not loss.is_floating_point():
        raise TypeError(f"losses must hold floating-point numbers, not {describe(losses)}")
    if loss.ndim == 0 or len(loss) < 2 or 0 in loss.shape:
        raise ValueError(
            f"losses must have the shape [points, …] with 2 points or more, not {describe(losses)}"
        )
    if points is None:
        t = torch.arange(len(loss), dtype=torch.float64, device="cpu") / (len(loss) - 1)
    else:
        t = _check_positions("points", points)
        if len(t) != len(loss) or not bool((t.diff() > 0).all()):
            raise ValueError(
                f"points must be {len(loss)} rising numbers, one for each loss, not {describe(points)}"
            )
        t = (t - t[0]) / (t[-1] - t[0])
    wide = loss.double()
    line = _between(wide[0], wide[-1], t.to(loss.device).reshape(-1, *[1] * (loss.ndim - 1)))
    return (wide - line).amax(0).to(loss.dtype)


def _between(start: torch.Tensor, end: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(1 − t) · start + t · end, without rounding at both ends."""
    step = end - start
    return torch.where(t < 0.5, start + t * step, end - (1 - t) * step)


def _check_positions(name: str, value: Any) -> torch.Tensor:
    t = real_tensor(name, value).double().cpu()
    if t.ndim != 1 or len(t) == 0 or not bool(torch.isfinite(t).all()):
        raise ValueError(f"{name} must be an integer or a list of finite numbers, not {describe(value)}")
    return t


def _check_room(points: int, tensors: dict[str, torch.Tensor]) -> None:
    # The line in double precision, with two terms beside it, of the largest; the others as they are.
    needed = points * sum(8 * tensor.numel() for tensor in tensors.values())
    needed += points * 16 * max(tensor.numel() for tensor in tensors.values())
    check_free_memory(f"points={points:,} points of the path", needed, "take fewer")


def _check_tensors(name: str, value: Any) -> dict[str, torch.Tensor]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a dict of tensors by name, not {describe(value)}")
    found = {}
    for key, given in value.items():
        tensor = real_tensor(f"{name}[{key!r}]", given, detach=False)
        if not tensor.is_floating_point():
            raise TypeError(f"{name}[{key!r}] must hold floating-point numbers, not {describe(given)}")
        if 0 in tensor.shape:
            raise ValueError(f"{name}[{key!r}] must not be empty, not {describe(given)}")
        found[key] = tensor
    return found


def _check_network(name: str, value: Any) -> dict[str, torch.Tensor]:
    """Parameters of known names, of as many models and hidden units, on one device."""
    tensors = _check_tensors(name, value)
    unknown = [key for key in tensors if key not in _UNITS]
    if unknown or not any(_UNITS[key][1] is not None for key in tensors):
        raise ValueError(
            f"{name} must have parameters by the names {', '.join(map(repr, _UNITS))}, and one of hidden "
            f"units among them, not {', '.join(map(repr, tensors))}"
        )
    for key, tensor in tensors.items():
        if tensor.ndim - _UNITS[key][0] not in (0, 1):
            dims = {"bias": "n_outputs", "hidden_bias": "n_hidden"}.get(key, "rows, columns")
            raise ValueError(
                f"{name}[{key!r}] must have the shape [models, {dims}] or [{dims}], not {describe(tensor)}"
            )
    stacks = {len(tensor) if tensor.ndim > _UNITS[key][0] else 0 for key, tensor in tensors.items()}
    hidden = {tensor.shape[axis] for key, tensor in tensors.items() if (axis := _UNITS[key][1]) is not None}
    if len(stacks) > 1 or len(hidden) > 1 or len({tensor.device for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{key!r} {list(tensor.shape)}" for key, tensor in tensors.items())
        raise ValueError(f"{name} must be of as many models and hidden units, on one device, not {shapes}")
    return tensors


def _check_alike(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    if first.keys() != second.keys():
        raise ValueError(f"second must have the names of first, {list(first)}, not {list(second)}")
    for name, tensor in first.items():
        if tensor.device != second[name].device:
            raise ValueError(f"second[{name!r}] is on {second[name].device}, but first on {tensor.device}")


def _stacked(tensors: dict[str, torch.Tensor]) -> bool:
    return any(tensor.ndim > _UNITS[name][0] for name, tensor in tensors.items())


def _n_hidden(tensors: dict[str, torch.Tensor]) -> int:
    sizes = (tensor.shape[axis] for name, tensor in tensors.items() if (axis := _UNITS[name][1]) is not None)
    return next(sizes)


def _units(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What belongs to each unit, side by side, float64 `[models or 1, n_hidden, numbers]`."""
    parts = []
    for name, (ndim, axis) in _UNITS.items():  # in one order, whatever that of the dict
        if axis is not None and name in tensors:
            tensor = tensors[name]
            wide = tensor.detach().double()
            wide = wide if tensor.ndim > ndim else wide.unsqueeze(0)
            parts.append(wide.movedim(axis, 1).flatten(2) if ndim == 2 else wide.unsqueeze(2))
    return torch.cat(parts, dim=2)
