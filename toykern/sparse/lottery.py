"""Lottery tickets: iterative magnitude pruning, with the weights put back after every round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from toykern.errors import (
    check_choice,
    check_int,
    check_non_negative_int,
    check_number,
    check_positive_int,
)
from toykern.sparse.change import Change
from toykern.sparse.layer import AttachedLayer, SparseLayer
from toykern.sparse.prune import Magnitude, PruneCriterion, drops_of
from toykern.sparse.recipe import SCOPES, Recipe, check_ungrouped

if TYPE_CHECKING:
    from toykern.sparse.attached import AttachedTopology


@dataclass(frozen=True, kw_only=True)
class LotteryTicket(Recipe):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, §2; Frankle et al. 2020).

    A round trains for `round_steps` steps, drops a fraction of smallest |value|, and puts everything that
    remains back to what it was after step `rewind_to`: values, all other parameters of the model, its buffers
    (as those of batch norm), and the optimiser's state. After `rounds` such rounds the ticket trains on
    undisturbed. Begin with dense or nearly dense layers.

    Args:
        rounds: how often connections are dropped.
        round_steps: steps of a round, counted from the initial weights; rounds after the first begin at
            `rewind_to`, so they take round_steps − rewind_to more steps.
        drop_fraction: of the remaining connections, what each round drops, in (0, 1); 0.2 in the paper.
        rewind_to: 0 is the initial weights (the weights when the recipe is attached).
        prune, scope, minimum_fan_in: as for `PruneAndGrow`.
        rewind_optimizer: whether the optimiser's state goes back too; False: it goes on from the end of the
            round.
        seed, track_explored, grown_std: see `Recipe`.

    A learning-rate schedule is not the recipe's: where `topology.step()` returns an update, set it back to
    step `update.rewound_to` yourself, and draw the data from there.

    >>> ticket = LotteryTicket(rounds=2, round_steps=100, rewind_to=10)
    >>> [step for step in range(1, 1000) if ticket.is_update(step)]
    [100, 190]
    """

    rounds: int
    round_steps: int
    drop_fraction: float = 0.2
    rewind_to: int = 0
    prune: PruneCriterion = field(default_factory=Magnitude)
    scope: str = "layer"
    minimum_fan_in: int = 0
    rewind_optimizer: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("rounds", self.rounds)
        check_positive_int("round_steps", self.round_steps)
        if check_number("drop_fraction", self.drop_fraction, minimum=0.0, below=1.0) == 0:
            raise ValueError("drop_fraction must be above 0, not 0.0")
        check_int("rewind_to", self.rewind_to, minimum=0, maximum=self.round_steps - 1)
        check_choice("scope", self.scope, SCOPES)
        check_non_negative_int("minimum_fan_in", self.minimum_fan_in)

    def check(self, layers: list[AttachedLayer]) -> None:
        """ValueError if layers are compared that are stacks of different sizes."""
        if self.scope == "global" and len({layer.topology.n_models for layer in layers}) > 1:
            raise ValueError("scope='global' needs layers with the same number of models")
        if self.scope == "global":
            check_ungrouped(layers, "scope='global'")

    def fraction(self, step: int) -> float:
        """The fraction that a round drops."""
        return self.drop_fraction

    def is_update(self, step: int) -> bool:
        """Whether a round ends with step `step`, counted from 1 over all rounds."""
        past, length = step - self.round_steps, self.round_steps - self.rewind_to
        return past >= 0 and past % length == 0 and past // length < self.rounds

    def attached_to(self, attached: AttachedTopology) -> None:
        """Keep the initial weights, if that is where to go back to."""
        if self.rewind_to == 0:
            _keep(attached)

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """Drop the fraction of lowest score."""
        drops = drops_of(
            layers,
            self.prune,
            number,
            scope=self.scope,
            minimum_fan_in=self.minimum_fan_in,
            fraction=self.drop_fraction,
        )
        return [Change(drop, drop.new_empty(0, dtype=torch.int64)) for drop, _ in drops]

    def finished(self, attached: AttachedTopology, step: int, update: bool) -> int | None:
        """Keep the weights of step `rewind_to`; put them back at the end of a round."""
        if step == self.rewind_to:
            _keep(attached)
        if not update:
            return None
        _put_back(attached, self.rewind_optimizer)
        return self.rewind_to


def _others(attached: AttachedTopology) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the model that are not of a sparse layer's slots, by name."""
    values = {id(layer.module.values) for layer in attached.attached_layers}
    found: dict[str, torch.Tensor] = {
        name: p for name, p in attached.model.named_parameters() if id(p) not in values
    }
    for prefix, module in attached.model.named_modules():
        if isinstance(module, SparseLayer):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _keep(attached: AttachedTopology) -> None:
    """Copy all weights and states; those of slots go to the layers, where they follow their connections."""
    attached.memory["weights"] = {name: t.detach().clone() for name, t in _others(attached).items()}
    attached.memory["states"] = {
        name: [_copied_state(optimizer.state.get(parameter, {})) for optimizer in attached.optimizers]
        for name, parameter in attached.model.named_parameters()
    }
    for layer in attached.attached_layers:
        values = layer.module.values
        layer.slot_memory = {"values": values.detach().clone()}
        for i, optimizer in enumerate(attached.optimizers):
            for key, entry in optimizer.state.get(values, {}).items():
                if isinstance(entry, torch.Tensor) and entry.shape == values.shape:
                    layer.slot_memory[f"{i}.{key}"] = entry.detach().clone()


def _put_back(attached: AttachedTopology, with_optimizer: bool) -> None:
    with torch.no_grad():
        for name, tensor in _others(attached).items():
            tensor.copy_(attached.memory["weights"][name])
        for layer in attached.attached_layers:
            layer.module.values.copy_(layer.slot_memory["values"])
    if not with_optimizer:
        return
    of_layer = {id(layer.module.values): layer for layer in attached.attached_layers}
    for name, parameter in attached.model.named_parameters():
        owner = of_layer.get(id(parameter))
        for i, optimizer in enumerate(attached.optimizers):
            kept = _copied_state(attached.memory["states"][name][i])
            if owner is not None:
                prefix = f"{i}."
                for key, tensor in owner.slot_memory.items():
                    if key.startswith(prefix):
                        kept[key.removeprefix(prefix)] = tensor.clone()
            if kept:
                optimizer.state[parameter] = kept
            else:
                optimizer.state.pop(parameter, None)


def _copied_state(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: entry.detach().clone() if isinstance(entry, torch.Tensor) else entry
        for key, entry in state.items()
    }
