"""Groups of outputs that share their inputs: a topology with one row for each group, and back.

`group` neighbouring rows of a grouped topology have the same columns. What recipes choose among are then
*units*: a column of a group, with all its connections. A grouped layer is shown to recipes as the *reduced*
topology of its units (one row for each group, a slot for each unit), and what they change is done to every
row of the group. So prune and grow criteria, draws and drop fractions mean units, and the score of a unit is
the mean over its connections.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from toykern.sparse.change import Change, Changed, changed
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.topology import Topology


def check_group(group: int, out_features: int) -> None:
    """ValueError unless `group` divides `out_features`."""
    if out_features % group:
        raise ValueError(
            f"group must divide out_features ({out_features}), not {group}: every output is in one group"
        )


def reduced(topology: Topology, group: int) -> Topology:
    """One row for each group; ValueError where the rows of a group have different columns.

    >>> full = Topology.from_mask(torch.tensor([[True, False], [True, False]]))
    >>> reduced(full, 2).to_mask().tolist()
    [[[True, False]]]
    """
    check_group(group, topology.out_features)
    n_models, groups = topology.n_models, topology.out_features // group
    fan_in = topology.fan_in.reshape(n_models, groups, group)
    key = topology.keys()  # rows ascend, so a group's rows stand side by side
    row, column = key // topology.in_features, key % topology.in_features
    rank = (
        torch.arange(len(key), dtype=torch.int64, device=key.device)
        - _starts(topology.fan_in.reshape(-1))[row]
    )
    first = _starts(topology.fan_in.reshape(-1))[row // group * group] + rank
    same = bool((fan_in == fan_in[..., :1]).all())
    if not same or bool((column[first] != column).any()):
        raise ValueError(f"the topology's rows must have the same columns in every {group} neighbours")
    row_start = torch.zeros(n_models, groups + 1, dtype=torch.int64, device=key.device)
    torch.cumsum(fan_in[..., 0], dim=1, out=row_start[:, 1:])
    small = torch.zeros(n_models * (topology.capacity // group), dtype=torch.int32, device=key.device)
    made = Topology(topology.in_features, groups, row_start, small, check=False)
    small[made.occupied_slots()] = column[row % group == 0].to(torch.int32)
    return made


def expanded(units: Topology, group: int, capacity: int | None = None) -> Topology:
    """Every row `group` times; the inverse of `reduced`. `capacity`: slots of each model; None: just as many.

    >>> units = Topology.from_mask(torch.tensor([[True, False], [False, True]]))
    >>> expanded(units, 2).to_mask().int().tolist()
    [[[1, 0], [1, 0], [0, 1], [0, 1]]]
    """
    capacity = units.capacity * group if capacity is None else capacity
    fan_in = units.fan_in.repeat_interleave(group, dim=1)
    row_start = torch.zeros(units.n_models, fan_in.shape[1] + 1, dtype=torch.int64, device=units.device)
    torch.cumsum(fan_in, dim=1, out=row_start[:, 1:])
    column = torch.zeros(units.n_models * capacity, dtype=torch.int32, device=units.device)
    slot = slots_of_units(units, group, capacity)
    live = units.occupied_slots()
    column[slot[live].reshape(-1)] = units.column[live].repeat_interleave(group)
    return Topology(units.in_features, units.out_features * group, row_start, column, check=False)


def slots_of_units(units: Topology, group: int, capacity: int) -> torch.Tensor:
    """The slots of every unit's connections, int64 `[units' slots, group]`; −1 in the slack.

    `capacity` is that of the expanded topology.
    """
    slot = units.occupied_slots()
    model = slot // max(1, units.capacity)
    row = units.row[slot]
    start = units.row_start[model, row]
    rank = slot - model * units.capacity - start
    first = model * capacity + start * group + rank
    step = units.fan_in[model, row]
    made = torch.full((len(units.column), group), -1, dtype=torch.int64, device=slot.device)
    made[slot] = first[:, None] + step[:, None] * torch.arange(group, dtype=torch.int64, device=slot.device)
    return made


def _starts(sizes: torch.Tensor) -> torch.Tensor:
    return sizes.cumsum(0) - sizes


class GroupedLayer(AttachedLayer):
    """A layer with `module.group` outputs to a group, as recipes see it: its units."""

    def __init__(self, *arguments: Any) -> None:
        self._reduced: tuple[Topology, Topology] | None = None
        super().__init__(*arguments)

    @property
    def group(self) -> int:
        """Outputs of each group."""
        return int(self.module.group)

    @property
    def topology(self) -> Topology:
        """The units."""
        full: Topology = self.module.topology
        if self._reduced is None or self._reduced[0] is not full:
            self._reduced = (full, reduced(full, self.group))
        return self._reduced[1]

    def of_units(self, score: torch.Tensor) -> torch.Tensor:
        """The mean over the connections of every unit, 0 in the slack."""
        units = self.topology
        slot = slots_of_units(units, self.group, self.module.topology.capacity)
        return score[slot.clamp(min=0)].mean(dim=1).masked_fill_(slot[:, 0] < 0, 0)

    def of_positions(self, score: torch.Tensor) -> torch.Tensor:
        """The mean over the rows of every group, flat `[n_models · groups · in]`."""
        return score.reshape(-1, self.group, self.topology.in_features).mean(dim=1).reshape(-1)

    def of_outputs(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum over the outputs of every group."""
        return weight.reshape(len(weight), -1, self.group).sum(dim=2)

    def of_candidates(self, score: torch.Tensor) -> torch.Tensor:
        """The mean over what `gradient_at` gave for every key."""
        return score.reshape(-1, self.group).mean(dim=1)

    def gradient_at(self, key: torch.Tensor) -> torch.Tensor:
        """The gradient at all connections that units would have: `[n · group]`, a unit's side by side."""
        units = self.topology
        row = key // units.in_features * self.group
        rows = row[:, None] + torch.arange(self.group, dtype=torch.int64, device=key.device)
        column = (key % units.in_features)[:, None].expand_as(rows)
        model, row = rows // (units.out_features * self.group), rows % (units.out_features * self.group)
        parts = [part.reshape(-1).contiguous() for part in (model, row, column)]
        return self._captured(lambda: self.module.gradient_at(*parts))

    def with_changes(self, change: Change) -> Changed:
        """What the change of units makes of the module's topology; what went and came is counted in units."""
        old, full = self.topology, self.module.topology
        units = changed(old, change)
        new = units.topology
        target = slots_of_units(new, self.group, full.capacity)
        source = slots_of_units(old, self.group, full.capacity)[units.old_slot.clamp(min=0)]
        stayed = units.old_slot >= 0
        old_slot = torch.full_like(full.column, -1, dtype=torch.int64)
        old_slot[target[stayed].reshape(-1)] = source[stayed].reshape(-1)
        return replace(units, topology=expanded(new, self.group, full.capacity), old_slot=old_slot)
