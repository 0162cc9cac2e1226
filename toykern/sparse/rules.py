"""What is asked of a recipe while a network trains, and what a recipe may ask for: going back.

A recipe at work (`attached.py`) puts the questions, recipes (`recipe.py` and the algorithms) answer them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from toykern.arguments.errors import check_flag, check_number
from toykern.sparse.change import Change
from toykern.sparse.layer import AttachedLayer


class Rewindable(Protocol):
    """What a recipe can have done to the model that it is attached to."""

    def keep_weights(self) -> None:
        """Remember all weights and the optimisers' state as they are now."""

    def put_weights_back(self, with_optimizer: bool) -> None:
        """Go back to what `keep_weights` remembered, as far as there still are connections."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The questions that are put to a recipe; `toykern.sparse.Recipe` is what recipes are made from.

    Args:
        seed: of random choices, an int or `[n_models]`; None means 0 … n_models − 1.
        track_explored: keep, as one bool for each position, which ones ever had a connection.
        grown_std: grown connections start from normal draws of this standard deviation; 0: from zero.
    """

    seed: Any = None
    track_explored: bool = True
    grown_std: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "track_explored", check_flag("track_explored", self.track_explored))
        object.__setattr__(self, "grown_std", check_number("grown_std", self.grown_std, minimum=0.0))

    def check(self, layers: list[AttachedLayer]) -> None:
        """ValueError if the recipe does not fit the layers."""

    def attached_to(self, attached: Rewindable) -> None:
        """Called once, when the recipe has been attached."""

    def fraction(self, step: int) -> float | None:
        """The fraction that is dropped at step `step`, for reports; None where it is not what counts."""
        return None

    def is_update(self, step: int) -> bool:
        """Whether the topology changes after step `step`, counted from 1."""
        return False

    def observes(self, step: int) -> bool:
        """Whether the gradient at all positions, or at some, of step `step` is needed."""
        return False

    def next_stop(self, step: int, limit: int) -> int:
        """The first step after `step` that is observed or updated after; `limit` if none comes before.

        What `is_update` and `observes` say, found by asking; override it with them to be quicker.
        """
        found = (t for t in range(step + 1, limit) if self.is_update(t) or self.observes(t))
        return next(found, limit)

    def steps_gone_back(self, updates: int | None = None) -> int:
        """By how many steps the first `updates` updates put the weights back in all; None: all of them."""
        return 0

    def observe(self, layer: AttachedLayer, step: int, number: int) -> None:
        """Take in what is needed of the last backward pass; `number` is that of the coming update."""

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """What to change in each layer in the update after step `step`. Changes nothing itself."""
        raise NotImplementedError

    def finished(self, attached: Rewindable, step: int, update: bool) -> int | None:
        """Called at the end of every step, after the changes; returns the step that weights went back to."""
        return None
