"""An optimiser's state follows its connections when a topology changes, whichever optimiser it is.

Whatever an optimiser keeps for a layer's values in their shape (momentum, second moments, sums of squares,
their maxima) is one number for each slot, so it moves with the slots; a connection that was just grown starts
from what the optimiser itself begins with. Numbers for the parameter as a whole (the count of steps) stay.
Anything else cannot be told where to go, and is refused rather than left pointing at the wrong connections.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import Optimizer

from toykern.arguments.errors import describe
from toykern.ops import sparse_topology


def as_optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """One torch optimiser or several, as a tuple; TypeError for anything else, ValueError for one whose state
    no recipe can reach."""
    several = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
    for one in several:
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, or a list of them, not {describe(one)}"
            )
        check_kept_by_parameter(one)
    if not several:
        raise TypeError("optimizer must be a torch.optim.Optimizer, or a list of them, not an empty list")
    return several


def check_kept_by_parameter(optimizer: Optimizer) -> None:
    """ValueError for the optimisers of PyTorch that keep what belongs to a parameter's entries elsewhere.

    They would go on with the moments of other connections, and nothing in their state would show it.
    """
    for kind in type(optimizer).__mro__:
        where = _ELSEWHERE.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
        if where is not None:
            raise ValueError(
                f"optimizer: {type(optimizer).__name__} keeps {where}, so its state cannot follow "
                "connections; use one that keeps state for each parameter, such as Adam or SGD"
            )


_ELSEWHERE = {
    "torch.LBFGS": "steps and gradients of all parameters in one vector",
    "torch.ZeroRedundancyOptimizer": "each parameter's state on one rank alone",
}


def check_held(optimizers: Sequence[Optimizer], values: torch.Tensor, name: str) -> None:
    """ValueError unless one of the optimisers updates `values`, the values of the layer `name`."""
    held = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    if not any(p is values for p in held):
        raise ValueError(
            f"optimizer does not hold the values of the sparse layer {name!r}; make it from "
            "model.parameters() after the sparse layers are in the model, and attach the recipe to that"
        )


def state_of(optimizers: Iterable[Optimizer], values: torch.Tensor, name: str) -> list[torch.Tensor]:
    """The state tensors that have one entry for each slot of `values`, in a fixed order.

    ValueError if an optimiser keeps something else of more than one entry, because nobody knows to which
    connection each entry belongs.
    """
    found = []
    for optimizer in optimizers:
        for key, entry in optimizer.state.get(values, {}).items():
            if isinstance(entry, torch.Tensor):
                if entry.shape == values.shape:
                    found.append(entry)
                    continue
                if entry.numel() <= 1:
                    continue
            elif not isinstance(entry, list | tuple | dict) or not _holds_tensors(entry):
                continue
            raise ValueError(
                f"{type(optimizer).__name__} keeps {key!r} ({describe(entry)}) for the values of {name!r} "
                f"({list(values.shape)}), which cannot follow their connections"
            )
    return found


def beginnings_of(optimizers: Iterable[Optimizer], values: torch.Tensor) -> list[float]:
    """What every tensor of `state_of` begins with, in the same order.

    An optimiser of the same class and options is given a parameter of one zero and makes a step with a
    gradient of 0; what it first puts into its state is taken: Adagrad's initial accumulator, Rprop's step
    size. Where no such optimiser can be made, 0 and a RuntimeWarning.
    """
    found = []
    for optimizer in optimizers:
        kept = optimizer.state.get(values, {})
        keys = [
            key
            for key, entry in kept.items()
            if isinstance(entry, torch.Tensor) and entry.shape == values.shape
        ]
        fresh = _fresh_state(optimizer, values) if keys else {}
        found += [float(fresh.get(key, 0.0)) for key in keys]
    return found


def _fresh_state(optimizer: Optimizer, values: torch.Tensor) -> dict[str, Any]:
    """The tensors that an optimiser with one entry to train first puts into its state."""
    optimizer = _wrapped(optimizer)
    group = next(group for group in optimizer.param_groups if any(p is values for p in group["params"]))
    probe_of = torch.nn.Parameter(torch.zeros(1, dtype=values.dtype, device=values.device))
    probe_of.grad = torch.zeros_like(probe_of)
    options = {**group, "params": [probe_of]}
    faults = []
    for make in (_of_same_class, _emptied_copy):
        try:
            with torch.no_grad():
                probe = make(optimizer, options)
                step = type(probe).step
                if getattr(step, "hooked", False):  # hooks are not to see this step
                    step = step.__wrapped__  # type: ignore[attr-defined]
                # Adagrad's state is there before the first step.
                there = {key: _Begun(state) for key, state in probe.state.items()}
                probe.state = defaultdict(_Begun, there)
                step(probe)
            state = probe.state[probe_of]
            return state.first if isinstance(state, _Begun) else dict(state)
        except Exception as error:  # whatever an optimiser of one's own may raise
            faults.append(f"{type(error).__name__}: {error}")
    warnings.warn(
        f"what {type(optimizer).__name__} begins with could not be found ({'; '.join(faults)}), so its state "
        "for grown connections begins with 0",
        RuntimeWarning,
        stacklevel=2,
    )
    return {}


class _Begun(dict[str, Any]):
    """State of a parameter that remembers what each tensor was when it was first put there."""

    def __init__(self, state: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__()
        self.first: dict[str, torch.Tensor] = {}
        self.update(state)

    def __setitem__(self, key: str, entry: Any) -> None:
        if key not in self and isinstance(entry, torch.Tensor) and entry.numel() == 1:
            self.first[key] = entry.detach().clone()
        super().__setitem__(key, entry)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """By way of `__setitem__`."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **more: Any) -> None:
        """Likewise."""
        for key, entry in dict(*others, **more).items():
            self[key] = entry


def _wrapped(optimizer: Optimizer) -> Optimizer:
    """The optimiser that keeps the state: itself, or what it wraps and shares the state with."""
    for part in vars(optimizer).values():
        if isinstance(part, Optimizer) and part is not optimizer and part.state is optimizer.state:
            return _wrapped(part)
    return optimizer


def _of_same_class(optimizer: Optimizer, options: dict[str, Any]) -> Optimizer:
    taken = inspect.signature(type(optimizer).__init__).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in taken}
    return type(optimizer)([options], **defaults)


def _emptied_copy(optimizer: Optimizer, options: dict[str, Any]) -> Optimizer:
    if any(isinstance(part, Optimizer) for part in vars(optimizer).values()):
        raise TypeError("it wraps an optimizer, whose own parameters a step would change")
    probe = copy.copy(optimizer)
    probe.param_groups, probe.state = [options], defaultdict(dict)
    return probe


def move(tensor: torch.Tensor, old_slot: torch.Tensor) -> None:
    """Entry s of `tensor` becomes what was at old_slot[s], or 0 where that is −1; in place.

    >>> moments = torch.tensor([1.0, 2.0, 3.0])
    >>> move(moments, torch.tensor([2, -1, 1]))
    >>> moments
    tensor([3., 0., 2.])
    """
    sparse_topology.move([tensor], old_slot)


def _holds_tensors(entry: Any) -> bool:
    parts = entry.values() if isinstance(entry, dict) else entry
    return any(isinstance(part, torch.Tensor) and part.numel() > 1 for part in parts)
