"""Which connections of a sparse layer exist, for a stack of models: rows of sorted columns in fixed memory.

The arrays never change their size while connections come and go, so what is as long as them (a layer's
values, an optimiser's moments) can stay where it is. A `Topology` itself is never changed: `with_changes`
makes a new one and says where every connection was.

What connections are called, and how some are drawn at random, is in `places.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import (
    check_dense_tensor,
    check_flag,
    check_int,
    check_non_negative_int,
    describe,
)
from toykern.arguments.memory import check_free_memory
from toykern.native.devices import check_device
from toykern.ops import sparse_topology as native
from toykern.sparse.places import MatrixStack, Places, keys_of_growth, name_of
from toykern.sparse.selection import largest


class Topology:
    """The connections of `n_models` sparse matrices `[out_features, in_features]`.

    Args:
        in_features, out_features: the shape of each matrix.
        row_start: int64 `[n_models, out_features + 1]`; the connections of row r of model k are its slots
            row_start[k, r] … row_start[k, r + 1] − 1. row_start[k, 0] = 0.
        column: int32 `[n_models · capacity]`, ascending and without repeats within a row. Slot s of model k
            is at k · capacity + s. Slots from row_start[k, −1] on are slack: they belong to no row and
            hold 0.
        check: False skips the checks of what is in the arrays (for arrays that a Topology made).

    Attributes: those arguments, `n_models` and `capacity` (slots of each model). Both arrays are on one
    device. ValueError or TypeError names the argument at fault and where.

    >>> topology = Topology(4, 2, torch.tensor([[0, 1, 3]]), torch.tensor([3, 0, 2], dtype=torch.int32))
    >>> topology.to_mask().int().tolist()
    [[[0, 0, 0, 1], [1, 0, 1, 0]]]
    >>> topology
    Topology(in_features=4, out_features=2, n_models=1, density=0.375)
    """

    __slots__ = ("_row", "capacity", "column", "in_features", "n_models", "out_features", "row_start")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        row_start: torch.Tensor,
        column: torch.Tensor,
        *,
        check: bool = True,
    ) -> None:
        self.in_features = check_int("in_features", in_features, minimum=1, maximum=2**31 - 1)
        self.out_features = check_int("out_features", out_features, minimum=1, maximum=2**31 - 1)
        self.row_start = row_start
        self.column = column
        self._row: torch.Tensor | None = None
        if check_flag("check", check):
            self._check_arrays()
        self.n_models = row_start.shape[0]
        self.capacity = column.shape[0] // self.n_models
        if check:
            self._check_contents()

    # --- constructors -------------------------------------------------------------------------------------

    @classmethod
    def random(
        cls,
        in_features: int,
        out_features: int,
        density: Values,
        *,
        n_models: int = 1,
        seed: Values | None = None,
        layer: int = 0,
        minimum_fan_in: int = 0,
        capacity: int | None = None,
    ) -> Topology:
        """Connections at random, all sets of round(density · in · out) of them equally likely.

        Args:
            in_features, out_features, n_models: the shape.
            density: the fraction that exists, in (0, 1], one or `[n_models]`.
            seed: one or `[n_models]`; None means 0 … n_models − 1. A model draws from its own seed alone.
            layer: layers with the same seed and different numbers here draw differently.
            minimum_fan_in: every row first gets that many, at random; the rest fall anywhere else.
            capacity: slots of each model; None takes just enough.

        ValueError if there would be no connection at all, or fewer than minimum_fan_in · out.

        >>> Topology.random(64, 32, 0.1, n_models=3).n_connections.tolist()
        [205, 205, 205]
        """
        shape = MatrixStack(in_features, out_features, n_models)
        return cls._from_keys(shape, shape.random_keys(density, seed, layer, minimum_fan_in), capacity)

    @classmethod
    def random_fan_in(
        cls,
        in_features: int,
        out_features: int,
        fan_in: Values,
        *,
        n_models: int = 1,
        seed: Values | None = None,
        layer: int = 0,
        capacity: int | None = None,
    ) -> Topology:
        """Connections at random with the same number in every row, all such sets equally likely.

        `fan_in` is an integer in 1 … in_features, one or `[n_models]`; the rest as in `random`.

        >>> Topology.random_fan_in(64, 32, 6).fan_in.unique().tolist()
        [6]
        """
        shape = MatrixStack(in_features, out_features, n_models)
        return cls._from_keys(shape, shape.random_keys_in_rows(fan_in, seed, layer), capacity)

    @classmethod
    def from_mask(cls, mask: torch.Tensor, *, capacity: int | None = None) -> Topology:
        """The connections where `mask`, bool `[out, in]` or `[n_models, out, in]`, is true.

        >>> Topology.from_mask(torch.eye(3, dtype=torch.bool)).column.tolist()
        [0, 1, 2]
        """
        if check_dense_tensor("mask", mask).dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, not {describe(mask)}")
        shape, stacked = MatrixStack.of("mask", mask)
        return cls._from_keys(shape, stacked.reshape(-1).nonzero()[:, 0], capacity)

    @classmethod
    def from_largest(cls, weight: torch.Tensor, density: Values, *, capacity: int | None = None) -> Topology:
        """The round(density · in · out) largest |weight| of each model; of equal ones the first.

        `weight` is `[out, in]` or `[n_models, out, in]`, `density` in (0, 1], one or `[n_models]`.

        >>> Topology.from_largest(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), 0.5).to_mask().int().tolist()
        [[[0, 1], [1, 0]]]
        """
        if not check_dense_tensor("weight", weight).is_floating_point():
            raise TypeError(f"weight must be a floating-point tensor, not {describe(weight)}")
        shape, stacked = MatrixStack.of("weight", weight.detach())
        counts = torch.from_numpy(shape.counts_at("density", density))
        chosen = largest(stacked.abs().reshape(shape.n_models, -1), counts)
        return cls._from_keys(shape, chosen.reshape(-1).nonzero()[:, 0], capacity)

    @classmethod
    def _from_keys(cls, shape: MatrixStack, key: torch.Tensor, capacity: int | None) -> Topology:
        """From ascending keys (model · out + row) · in + column, int64."""
        row, column = key // shape.in_features, key % shape.in_features
        counts = torch.bincount(row, minlength=shape.n_models * shape.out_features)
        row_start = _row_start(counts.reshape(shape.n_models, shape.out_features))
        connections = row_start[:, -1]
        most = int(connections.max())
        capacity = most if capacity is None else check_non_negative_int("capacity", capacity)
        if capacity < most:
            raise ValueError(
                f"capacity must be at least the number of connections of every model ({most}), not {capacity}"
            )
        check_free_memory(
            f"capacity={capacity:,} slots of n_models={shape.n_models:,}",
            4 * shape.n_models * capacity,
            "take fewer",
        )
        flat = torch.zeros(shape.n_models * capacity, dtype=torch.int32, device=key.device)
        flat[_slots_of(connections, capacity)] = column.to(torch.int32)
        return cls(shape.in_features, shape.out_features, row_start, flat, check=False)

    # --- what is there ------------------------------------------------------------------------------------

    @property
    def n_connections(self) -> torch.Tensor:
        """How many connections each model has, int64 `[n_models]`."""
        return self.row_start[:, -1]

    @property
    def density(self) -> torch.Tensor:
        """The fraction of connections that exist, float64 `[n_models]`."""
        return self.n_connections.double() / (self.in_features * self.out_features)

    @property
    def fan_in(self) -> torch.Tensor:
        """How many inputs each output has, int64 `[n_models, out_features]`."""
        return self.row_start.diff(dim=1)

    @property
    def fan_out(self) -> torch.Tensor:
        """How many outputs each input reaches, int64 `[n_models, in_features]`."""
        slot = self.occupied_slots()
        key = slot // max(1, self.capacity) * self.in_features + self.column[slot]
        counts = torch.bincount(key, minlength=self.n_models * self.in_features)
        return counts.reshape(self.n_models, self.in_features)

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.column.device

    @property
    def row(self) -> torch.Tensor:
        """The row of every slot, int64 `[n_models · capacity]`; −1 for slack. Kept once made."""
        if self._row is None:
            row = torch.full((self.n_models, self.capacity), -1, dtype=torch.int64, device=self.device)
            rows = torch.arange(self.out_features, dtype=torch.int64, device=self.device).repeat(
                self.n_models
            )
            row.view(-1)[self.occupied_slots()] = rows.repeat_interleave(self.fan_in.reshape(-1))
            self._row = row.view(-1)
        return self._row

    def occupied(self) -> torch.Tensor:
        """Which slots hold a connection, bool `[n_models · capacity]`."""
        slot = torch.arange(self.capacity, dtype=torch.int64, device=self.device)
        return (slot < self.n_connections[:, None]).reshape(-1)

    def occupied_slots(self) -> torch.Tensor:
        """The slots that hold a connection, ascending, int64 `[connections]`."""
        return _slots_of(self.n_connections, self.capacity)

    def places(self) -> Places:
        """(model, row, column) of every connection in the order of the slots, int64 `[connections]` each."""
        slot = self.occupied_slots()
        return slot // max(1, self.capacity), self.row[slot], self.column[slot].long()

    def keys(self, drop: torch.Tensor | None = None) -> torch.Tensor:
        """(model · out_features + row) · in_features + column of every connection, ascending, int64.

        Without those in `drop`, bool `[n_models · capacity]`, where it is given.
        """
        if drop is not None:
            self._check_drop(drop)
        if native.on_cpu(self.column, self.row_start):
            return native.keys(self.row_start, self.column, self.in_features, drop)
        if drop is not None:
            return self.keys()[~drop[self.occupied_slots()]]
        rows = (
            torch.arange(self.n_models * self.out_features, dtype=torch.int64, device=self.device)
            * self.in_features
        )
        return rows.repeat_interleave(self.fan_in.reshape(-1)) + self.column[self.occupied_slots()]

    def to_mask(self) -> torch.Tensor:
        """bool `[n_models, out_features, in_features]`, true where there is a connection."""
        mask = torch.zeros(
            self.n_models * self.out_features * self.in_features, dtype=torch.bool, device=self.device
        )
        mask[self.keys()] = True
        return mask.reshape(self.n_models, self.out_features, self.in_features)

    def to_dense(self, values: torch.Tensor) -> torch.Tensor:
        """`values` `[n_models · capacity]` at their places, else 0: `[n_models, out, in]`, differentiable."""
        if not isinstance(values, torch.Tensor):
            raise TypeError(f"values must be a tensor, not {describe(values)}")
        if values.shape != self.column.shape:
            raise ValueError(
                f"values must have one entry for each slot, {list(self.column.shape)}, not {describe(values)}"
            )
        size = self.n_models * self.out_features * self.in_features
        flat = values.new_zeros(size).index_put((self.keys(),), values[self.occupied_slots()])
        return flat.reshape(self.n_models, self.out_features, self.in_features)

    # --- changes ------------------------------------------------------------------------------------------

    def with_changes(self, drop: torch.Tensor, grow: Places) -> tuple[Topology, torch.Tensor]:
        """A topology without the connections `drop` and with those of `grow`, of the same capacity.

        Args:
            drop: bool `[n_models · capacity]`, the slots to empty; ignored where they are slack.
            grow: (model, row, column) of the new connections, int64 `[grown]` each, in any order. None may be
                there already, unless it is dropped in the same call: then it counts as a new one.

        Returns: the new topology and `old_slot`, int64 `[n_models · capacity]`: the slot in this topology of
        the connection in each new slot; −1 for grown connections and slack. So
        `torch.where(old_slot < 0, 0, values[old_slot])` is what the values become.

        ValueError if a place is out of range, named twice, already connected, or a model would have more
        connections than its capacity; this topology is never changed.

        >>> topology = Topology.from_mask(torch.tensor([[True, True, False]]))
        >>> place = tuple(torch.tensor([i]) for i in (0, 0, 2))
        >>> changed, old_slot = topology.with_changes(torch.tensor([True, False]), place)
        >>> changed.column.tolist(), old_slot.tolist()
        ([1, 2], [1, -1])
        """
        self._check_drop(drop)
        grown = keys_of_growth(grow, self.n_models, self.out_features, self.in_features, self.device)
        if native.on_cpu(self.column, self.row_start):
            return self._merged(drop.to(self.device), grown)
        slot = self.occupied_slots()
        stays = ~drop.to(self.device)[slot]
        kept_slot, kept = slot[stays], self.keys()[stays]
        # A merge of two ascending sequences: each moves on by how many of the other come before.
        at = torch.searchsorted(kept, grown)
        if len(kept) and len(grown) and bool((kept[at.clamp(max=len(kept) - 1)] == grown).any()):
            clash = int((kept[at.clamp(max=len(kept) - 1)] == grown).nonzero()[0])
            raise ValueError(f"grow names {self._name(int(grown[clash]))}, which is connected already")
        row = torch.cat([kept, grown]).div(self.in_features, rounding_mode="floor")
        counts = torch.bincount(row, minlength=self.n_models * self.out_features)
        row_start = _row_start(counts.reshape(self.n_models, self.out_features))
        most = int(row_start[:, -1].max())
        if most > self.capacity:
            raise ValueError(
                f"grow would give a model {most} connections, more than its capacity of {self.capacity}"
            )
        new_slot = _slots_of(row_start[:, -1], self.capacity)
        before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=self.device)
        before.index_add_(0, at, torch.ones_like(at))
        kept_at = torch.arange(len(kept), dtype=torch.int64, device=self.device) + before[:-1].cumsum(0)
        grown_at = torch.arange(len(grown), dtype=torch.int64, device=self.device) + at
        column = torch.zeros_like(self.column)
        column[new_slot[kept_at]] = self.column[kept_slot]
        column[new_slot[grown_at]] = (grown % self.in_features).to(torch.int32)
        old_slot = torch.full_like(self.column, -1, dtype=torch.int64)
        old_slot[new_slot[kept_at]] = kept_slot
        return Topology(self.in_features, self.out_features, row_start, column, check=False), old_slot

    def _merged(self, drop: torch.Tensor, grown: torch.Tensor) -> tuple[Topology, torch.Tensor]:
        """`with_changes` on the CPU, natively."""
        merged = self.merged(drop, grown)
        return self.of_merged(merged), merged.old_slot

    def merged(
        self, drop: torch.Tensor, grown: torch.Tensor, *, keep_returning: bool = False
    ) -> native.Merged:
        """The arrays after a change by keys, on the CPU (`toykern.ops.sparse_topology.merge`); ValueErrors
        are as those of `with_changes`."""
        try:
            return native.merge(
                self.row_start, self.column, drop, grown, self.in_features, keep_returning=keep_returning
            )
        except ValueError as error:
            kind, number = str(error).split()
            if kind == "unordered":
                ordered = torch.sort(grown).values
                if not torch.equal(ordered, grown):  # a criterion of one's own may give them in any order
                    return self.merged(drop, ordered, keep_returning=keep_returning)
                raise ValueError(
                    f"grow must name places of {self.n_models} x {self.out_features} x {self.in_features} "
                    "by keys that ascend without repeats"
                ) from None
            if kind == "clash":
                raise ValueError(
                    f"grow names {self._name(int(number))}, which is connected already"
                ) from None
            raise ValueError(
                f"grow would give a model {number} connections, more than its capacity of {self.capacity}"
            ) from None

    def of_merged(self, merged: native.Merged) -> Topology:
        """A topology of this shape with the arrays of `merged`."""
        return Topology(self.in_features, self.out_features, merged.row_start, merged.column, check=False)

    def to(self, device: torch.device | str) -> Topology:
        """This topology with its arrays on `device`."""
        there = check_device(device)
        if there is None:
            raise TypeError("device must be a device such as 'cpu' or 'cuda', not None")
        if there == self.device:
            return self
        row_start, column = self.row_start.to(there), self.column.to(there)
        return Topology(self.in_features, self.out_features, row_start, column, check=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return (
            (self.in_features, self.out_features) == (other.in_features, other.out_features)
            and torch.equal(self.row_start, other.row_start)
            and torch.equal(self.column, other.column)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        density = self.density
        least, most = float(density.min()), float(density.max())
        text = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        return (
            f"Topology(in_features={self.in_features}, out_features={self.out_features}, "
            f"n_models={self.n_models}, density={text})"
        )

    # --- checks -------------------------------------------------------------------------------------------

    def _name(self, key: int) -> str:
        return name_of(key, self.in_features, self.out_features)

    def _check_drop(self, drop: Any) -> None:
        if not isinstance(drop, torch.Tensor) or drop.dtype != torch.bool or drop.shape != self.column.shape:
            raise ValueError(
                f"drop must be a bool tensor with one entry for each slot, {list(self.column.shape)}, "
                f"not {describe(drop)}"
            )

    def _check_arrays(self) -> None:
        row_start, column = self.row_start, self.column
        for name, array, dtype, ndim in (
            ("row_start", row_start, torch.int64, 2),
            ("column", column, torch.int32, 1),
        ):
            if not isinstance(array, torch.Tensor) or array.dtype != dtype or array.ndim != ndim:
                kind = str(dtype).removeprefix("torch.")
                raise TypeError(f"{name} must be a {ndim}-d {kind} tensor, not {describe(array)}")
        if row_start.shape[0] < 1 or row_start.shape[1] != self.out_features + 1:
            raise ValueError(
                f"row_start must have the shape [n_models, out_features + 1] = [n_models, "
                f"{self.out_features + 1}], not {list(row_start.shape)}"
            )
        if column.shape[0] % row_start.shape[0]:
            raise ValueError(
                f"column must have the same number of slots for each of {row_start.shape[0]} models, "
                f"not {column.shape[0]} in all"
            )
        if row_start.device != column.device:
            raise ValueError(
                f"row_start and column must be on one device, not {row_start.device} and {column.device}"
            )

    def _check_contents(self) -> None:
        start = self.row_start
        if bool((start[:, 0] != 0).any()) or bool((start.diff(dim=1) < 0).any()):
            raise ValueError("row_start must begin with 0 and never descend within a model")
        most = int(start[:, -1].max())
        if most > self.capacity:
            raise ValueError(
                f"row_start must end at or below the slots of a model ({self.capacity}), not at {most}"
            )
        slot = self.occupied_slots()
        column = self.column[slot]
        outside = (column < 0) | (column >= self.in_features)
        if bool(outside.any()):
            raise ValueError(
                f"column must be from 0 to in_features − 1 ({self.in_features - 1}), not "
                f"{int(column[outside][0])} (slot {int(slot[outside][0])})"
            )
        key = self.keys()
        wrong = key[1:] <= key[:-1]
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0]) + 1
            raise ValueError(
                "column must ascend without repeats within every row; it does not at "
                f"{self._name(int(key[first]))}"
            )
        if bool((self.column.masked_fill(self.occupied(), 0) != 0).any()):
            raise ValueError("column must be 0 in the slots that belong to no row")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "_row"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._row = None


def _row_start(fan_in: torch.Tensor) -> torch.Tensor:
    """int64 `[n_models, out + 1]` from the number in every row, `[n_models, out]`."""
    start = torch.zeros(fan_in.shape[0], fan_in.shape[1] + 1, dtype=torch.int64, device=fan_in.device)
    torch.cumsum(fan_in, dim=1, out=start[:, 1:])
    return start


def _slots_of(connections: torch.Tensor, capacity: int) -> torch.Tensor:
    """The first `connections[k]` slots of every model k, ascending."""
    if len(connections) == 1:
        return torch.arange(int(connections[0]), dtype=torch.int64, device=connections.device)
    if bool((connections == capacity).all()):  # no slack, the usual case
        return torch.arange(len(connections) * capacity, dtype=torch.int64, device=connections.device)
    slot = torch.arange(capacity, dtype=torch.int64, device=connections.device)
    return (slot < connections[:, None]).reshape(-1).nonzero()[:, 0]
