"""Lottery tickets: iterative magnitude pruning, with the weights put back after every round."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from toykern.arguments.errors import (
    check_choice,
    check_int,
    check_non_negative_int,
    check_number,
    check_positive_int,
)
from toykern.sparse.change import Change
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.prune import Magnitude, PruneCriterion, drops_of
from toykern.sparse.recipe import SCOPES, Recipe, check_ungrouped
from toykern.sparse.rules import Rewindable


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
        prune, scope, minimum_fan_in, minimum_fan_out: as for `PruneAndGrow`.
        rewind_optimizer: whether the optimiser's state goes back too; False: it goes on from the end of the
            round.
        seed, track_explored, grown_std: see `Recipe`.

    In a loop of one's own a learning-rate schedule is not the recipe's: where `topology.step()` returns an
    update, set it back to step `update.rewound_to` yourself, and draw the data from there. `tk.fit` does so.

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
    minimum_fan_out: int = 0
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
        check_non_negative_int("minimum_fan_out", self.minimum_fan_out)

    def check(self, layers: list[AttachedLayer]) -> None:
        """ValueError if layers are compared that are stacks of different sizes."""
        if self.scope == "global" and len({layer.topology.n_models for layer in layers}) > 1:
            raise ValueError("scope='global' needs layers with the same number of models")
        if self.scope == "global":
            check_ungrouped(layers, "scope='global'")

    @property
    def round_length(self) -> int:
        """Steps of every round after the first."""
        return self.round_steps - self.rewind_to

    def fraction(self, step: int) -> float:
        """The fraction that a round drops."""
        return self.drop_fraction

    def is_update(self, step: int) -> bool:
        """Whether a round ends with step `step`, counted from 1 over all rounds."""
        past = step - self.round_steps
        return past >= 0 and past % self.round_length == 0 and past // self.round_length < self.rounds

    def next_stop(self, step: int, limit: int) -> int:
        """The first step after `step` at which weights are kept or a round ends; `limit` if none before."""
        ends = (self.round_steps + i * self.round_length for i in range(self.rounds))
        return min([limit, *(t for t in (self.rewind_to, *ends) if t > step)])

    def steps_gone_back(self, updates: int | None = None) -> int:
        """By how many steps the first `updates` updates put the weights back in all; None: all of them."""
        return self.round_length * (self.rounds if updates is None else updates)

    def attached_to(self, attached: Rewindable) -> None:
        """Keep the initial weights, if that is where to go back to."""
        if self.rewind_to == 0:
            attached.keep_weights()

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """Drop the fraction of lowest score."""
        drops = drops_of(
            layers,
            self.prune,
            number,
            scope=self.scope,
            minimum_fan_in=self.minimum_fan_in,
            minimum_fan_out=self.minimum_fan_out,
            fraction=self.drop_fraction,
        )
        return [Change(drop, drop.new_empty(0, dtype=torch.int64)) for drop, _ in drops]

    def finished(self, attached: Rewindable, step: int, update: bool) -> int | None:
        """Keep the weights of step `rewind_to`; put them back at the end of a round."""
        if step == self.rewind_to:
            attached.keep_weights()
        if not update:
            return None
        attached.put_weights_back(self.rewind_optimizer)
        return self.rewind_to
