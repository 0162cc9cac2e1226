"""An optimiser's state follows its connections when a topology changes, whichever optimiser it is.

Whatever an optimiser keeps for a layer's values in their shape (momentum, second moments, sums of squares,
their maxima) is one number for each slot, so it moves with the slots; a connection that was just grown starts
from zero. Numbers for the parameter as a whole (the count of steps) stay. Anything else cannot be told where
to go, and is refused rather than left pointing at the wrong connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from toykern.errors import describe
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
            "model.parameters() after the sparse layers are in the model"
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
