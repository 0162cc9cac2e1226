"""What a topology recipe needs of a sparse layer, and what it keeps beside each one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import nn

from toykern.arguments.broadcast import broadcast_seed
from toykern.native.address import refuse_distributed
from toykern.ops.sparse_ties import Ties
from toykern.sparse.change import Change, Changed, changed
from toykern.sparse.draws import tag_of
from toykern.sparse.topology import Topology


class NoBackwardPass(RuntimeError):
    """A layer was asked for a gradient, and there was no backward pass that it could take it from."""


class SparseLayer(Protocol):
    """A module with `values` at the connections of a `topology`: `toykern.SparseLinear`, or one's own.

    `values` is a 1-d Parameter `[n_models · capacity]`, 0 in the slack, and stays the same object for the
    life of the layer. `is_sparse_layer` says whether a module is one; `isinstance` cannot.
    """

    values: nn.Parameter

    @property
    def topology(self) -> Topology:
        """The connections."""

    def set_topology(self, topology: Topology, old_slot: torch.Tensor, grown: Any = 0.0) -> None:
        """Take the new connections; values and their gradient follow `old_slot`.

        `old_slot` is what `Topology.with_changes` gives. New connections have the value `grown`, a number or
        `[n_models · capacity]`, and the gradient 0.
        """

    def capture_gradient(self, enabled: bool) -> None:
        """Whether coming passes keep what the two methods below need."""

    def dense_gradient(self) -> torch.Tensor:
        """∂loss/∂W of the last backward pass at all positions, `[n_models, out_features, in_features]`;
        `NoBackwardPass` if there was none."""

    def gradient_at(self, model: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """The same at some positions, each int64 `[n]`: `[n]`."""


_METHODS = sorted(name for name, member in vars(SparseLayer).items() if name[0] != "_" and callable(member))


def is_sparse_layer(module: object) -> TypeGuard[SparseLayer]:
    """Whether a module is a `SparseLayer`: its class has the methods, and it has `values` and a `topology`.

    `isinstance` of a runtime-checkable protocol does not do: since Python 3.12 it looks at what stands in
    classes and in the instance's `__dict__`, and a module's parameters stand in neither. The methods are
    looked up in the class, so that what only passes attributes on (`torch.compile` of a layer, FSDP) is not
    found beside the layer.
    """
    has_methods = all(callable(getattr(type(module), name, None)) for name in _METHODS)
    return has_methods and hasattr(module, "values") and hasattr(module, "topology")


class AttachedLayer:
    """A sparse layer with its place in the recipe: name, number, seeds, budget and what criteria keep.

    Attributes:
        name, number: where it is in the model, and which sparse layer it is; the number goes into its draws.
        is_last: whether it is the model's last sparse layer.
        module: the layer.
        seeds: int64 `[n_models]`, NumPy.
        budget: int64 `[n_models]`, how many connections each model had when the recipe was attached.
        memory: tensors that criteria keep between steps, by name; saved in checkpoints.
        slot_memory: the same with an entry for each slot; these follow their connections.
        explored: bool `[n_models · out · in]`, the positions that ever had a connection; None if not tracked.
        reduce: averages a tensor over all ranks (the identity where there is one).
        not_finite: bool `[n_models]`, models whose gradients in the step at hand say nothing, since they are
            not finite; criteria mark them (`mark_not_finite`), and such a model keeps its connections.
    """

    def __init__(
        self,
        name: str,
        number: int,
        module: Any,
        seed: Any,
        track_explored: bool,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        refuse_distributed(**{f"{name}.values" if name else "values": getattr(module, "values", None)})
        self.name = name
        self.number = number
        self.is_last = False
        self.module: Any = module
        self.reduce = reduce
        topology = self.topology
        self.seeds: np.ndarray = broadcast_seed("the recipe's seed", seed, topology.n_models).numpy()
        self.budget = topology.n_connections.clone()
        self.memory: dict[str, torch.Tensor] = {}
        self.slot_memory: dict[str, torch.Tensor] = {}
        self.explored = topology.to_mask().reshape(-1) if track_explored else None
        self.forget_not_finite()

    @property
    def frozen(self) -> bool:
        """Whether the layer's values are not trained, so that its connections stay too."""
        return not self.module.values.requires_grad

    def forget_not_finite(self) -> None:
        """No model is marked any more."""
        self.not_finite = torch.zeros(self.topology.n_models, dtype=torch.bool, device=self.topology.device)

    def mark_not_finite(self, models: torch.Tensor) -> None:
        """Mark models, bool `[n_models]`; the same ones on all ranks."""
        self.not_finite = self.not_finite | models

    def finite_models(self, gradient: torch.Tensor) -> torch.Tensor:
        """Which models have only finite numbers in `gradient` `[n_models, …]`, on all ranks: bool
        `[n_models]`."""
        rows = gradient.reshape(self.topology.n_models, -1)
        if rows.shape[1] == 0:
            return torch.ones_like(self.not_finite)
        least, most = rows.aminmax(dim=1)  # NaN is handed on, and nothing as large as the gradient is made
        return self._on_all_ranks(least.isfinite() & most.isfinite())

    def finite_at(self, gradient: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        """The same where `gradient` `[n]` is of the models `model` int64 `[n]`."""
        finite = torch.ones_like(self.not_finite)
        finite[model[~gradient.isfinite()]] = False
        return self._on_all_ranks(finite)

    def finite_values_gradient(self) -> torch.Tensor:
        """The same of the gradient at the connections; where there is none it speaks against no model."""
        gradient = self._gradient_of_values()
        return torch.ones_like(self.not_finite) if gradient is None else self.finite_models(gradient)

    def _on_all_ranks(self, finite: torch.Tensor) -> torch.Tensor:
        return self.reduce(finite.double()) == 1

    @property
    def topology(self) -> Topology:
        """The layer's connections now."""
        topology: Topology = self.module.topology
        return topology

    @property
    def values(self) -> torch.Tensor:
        """The layer's values `[n_models · capacity]`, detached, in single or double precision."""
        values: torch.Tensor = self.module.values.detach()
        return values if values.dtype in (torch.float32, torch.float64) else values.float()

    @property
    def group(self) -> int:
        """Outputs that share their inputs and change them together; 1 but for a `GroupedLayer`."""
        return 1

    def of_units(self, score: torch.Tensor) -> torch.Tensor:
        """A score of every slot, for what is dropped and grown as one: here every connection by itself."""
        return score

    def of_positions(self, score: torch.Tensor) -> torch.Tensor:
        """A score of every position, flat `[n_models · out · in]`, likewise."""
        return score

    def of_candidates(self, score: torch.Tensor) -> torch.Tensor:
        """A score of what `gradient_at` gave, likewise."""
        return score

    def of_outputs(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of every output, `[n_models, out]`, likewise."""
        return weight

    def captured_passes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs `[n_models | 1, batch, in]`, output gradients `[n_models, batch, out]`) of the last pass.

        ValueError where the module does not show them (`SparseWeights.captured_passes`).
        """
        passes = getattr(self.module, "captured_passes", None)
        if passes is None:
            raise ValueError(
                f"the sparse layer {self.name!r} ({type(self.module).__name__}) does not show its passes, "
                'which distribution="grabo" and "graest" look at; use "uniform"'
            )
        try:
            found: list[tuple[torch.Tensor, torch.Tensor]] = passes()
        except NoBackwardPass:
            raise self._no_backward_pass() from None
        return found

    def with_changes(self, change: Change) -> Changed:
        """What the change makes of the module's topology (`changed`)."""
        return changed(self.topology, change)

    def move_to(self, device: torch.device) -> None:
        """All that is kept beside the layer goes to a device."""
        self.budget = self.budget.to(device)
        self.not_finite = self.not_finite.to(device)
        self.memory = {name: tensor.to(device) for name, tensor in self.memory.items()}
        self.slot_memory = {name: tensor.to(device) for name, tensor in self.slot_memory.items()}
        if self.explored is not None:
            self.explored = self.explored.to(device)

    def per_model(self, slots: torch.Tensor) -> torch.Tensor:
        """`[n_models · capacity]` as `[n_models, capacity]`."""
        topology = self.topology
        return slots.reshape(topology.n_models, topology.capacity)

    def ties_of_positions(self, number: int) -> Ties:
        """What decides between places of equal score in update `number`; entries are keys."""
        topology = self.topology
        return self._ties("grow_ties", topology.in_features * topology.out_features, number)

    def ties_of_slots(self, number: int) -> Ties:
        """The same between connections; entries are slots, counted over the models."""
        return self._ties("prune_ties", self.topology.capacity, number)

    def ties_of_outputs(self, number: int) -> Ties:
        """The same between outputs, model · out_features + row."""
        return self._ties("output_ties", self.topology.out_features, number)

    def _ties(self, purpose: str, size: int, number: int) -> Ties:
        return Ties(torch.from_numpy(self.seeds), size, tag_of(purpose, self.number), number)

    def free_positions(self) -> torch.Tensor:
        """How many positions of each model have no connection, int64 `[n_models]`."""
        topology = self.topology
        return topology.in_features * topology.out_features - topology.n_connections

    def value_gradient(self) -> torch.Tensor:
        """The gradient of the values from the last backward; RuntimeError if there is none."""
        gradient = self._gradient_of_values()
        if gradient is None:
            raise RuntimeError(
                f"the values of the sparse layer {self.name!r} have no gradient: call topology.step() after "
                "loss.backward() and optimizer.step(), before zero_grad()"
            )
        return gradient.detach().to(self.values.dtype)

    def _gradient_of_values(self) -> torch.Tensor | None:
        gradient: torch.Tensor | None = self.module.values.grad
        return gradient

    def dense_gradient(self) -> torch.Tensor:
        """The gradient at all positions from the last backward, flat `[n_models · out · in]`."""
        return self._captured(lambda: self.module.dense_gradient().reshape(-1))

    def gradient_tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first key, the gradient at the keys from there on, flat) of the last backward, tile by tile.

        A tile is whole rows of one model or whole models, in the order of the keys; its memory may be written
        to, and is taken back for the next. One tile is all there is of a module without `gradient_tiles`.
        """
        tiles = getattr(self.module, "gradient_tiles", None)
        if tiles is None:
            yield 0, self.dense_gradient().clone()
            return
        try:
            for row, tile in tiles():
                yield row * self.topology.in_features, tile.reshape(-1)
        except NoBackwardPass:
            raise self._no_backward_pass() from None

    def gradient_at(self, key: torch.Tensor) -> torch.Tensor:
        """The gradient at positions given by key ((model · out) + row) · in + column, `[n]`."""
        topology = self.topology
        row, column = key // topology.in_features, key % topology.in_features
        model, row = row // topology.out_features, row % topology.out_features
        return self._captured(lambda: self.module.gradient_at(model, row, column))

    def _captured(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            gradient = compute().detach()
        except NoBackwardPass:
            raise self._no_backward_pass() from None
        return gradient if gradient.dtype == torch.float64 else gradient.float()

    def _no_backward_pass(self) -> RuntimeError:
        return RuntimeError(
            f"the sparse layer {self.name!r} saw no backward pass in this step: call topology.step() "
            "once after every loss.backward() and optimizer.step()"
        )
