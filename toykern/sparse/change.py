"""What becomes of a layer's connections in an update, and carrying it out.

Change     what a recipe wants: slots to empty, places to fill
Changed    the topology that comes of it, where every connection went, and what to report
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toykern.arguments.errors import describe
from toykern.ops import sparse_topology as native
from toykern.sparse.topology import Topology


@dataclass(frozen=True)
class Change:
    """What becomes of one layer: `drop` bool `[n_models · capacity]`, `grow` int64 keys, ascending."""

    drop: torch.Tensor
    grow: torch.Tensor


@dataclass(frozen=True)
class Changed:
    """A layer's topology after a change; what was dropped and grown at once stayed as it was.

    Attributes:
        topology: the new connections.
        old_slot: int64 `[n_models · capacity]`, the slot of each in the topology before; −1: new, or slack.
        fresh: int64, ascending: the keys of the new ones.
        dropped, grown: int64 `[n_models]`, connections that went and came.
        active_neurons: int64 `[n_models]`, outputs with at least one input; `active_inputs`: inputs likewise.
    """

    topology: Topology
    old_slot: torch.Tensor
    fresh: torch.Tensor
    dropped: torch.Tensor
    grown: torch.Tensor
    active_neurons: torch.Tensor
    active_inputs: torch.Tensor


def changed(old: Topology, change: Change) -> Changed:
    """The change carried out on a topology, which stays as it is.

    ValueError where `drop` or `grow` has another dtype or shape, a place to fill is out of range, named
    twice, connected already, or a model would have more connections than its capacity.

    >>> old = Topology.from_mask(torch.tensor([[True, True, False]]))
    >>> new = changed(old, Change(torch.tensor([True, True]), torch.tensor([0, 2])))
    >>> new.topology.column.tolist(), new.old_slot.tolist(), int(new.dropped), int(new.grown)
    ([0, 2], [0, -1], 1, 1)
    """
    if change.drop.dtype != torch.bool or change.drop.numel() != old.column.numel():
        raise ValueError(
            f"drop must be a bool for each of {old.column.numel()} slots, not {describe(change.drop)}"
        )
    if change.grow.dtype != torch.int64 or change.grow.ndim != 1:
        raise ValueError(f"grow must be int64 keys [connections], not {describe(change.grow)}")
    if native.on_cpu(old.column, old.row_start, change.drop, change.grow):
        merged = old.merged(change.drop, change.grow, keep_returning=True)
        return Changed(old.of_merged(merged), *merged[2:])
    return changed_anywhere(old, change)


def changed_anywhere(old: Topology, change: Change) -> Changed:
    """`changed` by PyTorch, on any device."""
    drop, grow = _without_returning(old, change)
    positions = old.in_features * old.out_features
    row = grow // old.in_features
    model = grow // positions
    new, old_slot = old.with_changes(drop, (model, row % old.out_features, grow % old.in_features))
    return Changed(
        new,
        old_slot,
        grow,
        (drop & old.occupied()).reshape(old.n_models, -1).sum(dim=1),
        torch.bincount(model, minlength=old.n_models),
        (new.fan_in > 0).sum(dim=1),
        (new.fan_out > 0).sum(dim=1),
    )


def _without_returning(topology: Topology, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """The change without the connections that would go and come back: they stay as they are."""
    drop, grow = change.drop & topology.occupied(), torch.sort(change.grow).values
    occupied = topology.occupied_slots()
    going = drop[occupied]
    slot, key = occupied[going], topology.keys()[going]
    if len(slot) == 0 or len(grow) == 0:
        return drop, grow
    at = torch.searchsorted(grow, key).clamp(max=len(grow) - 1)
    back = grow[at] == key
    fresh = torch.ones_like(grow, dtype=torch.bool)
    fresh[at[back]] = False
    drop[slot[back]] = False
    return drop, grow[fresh]
