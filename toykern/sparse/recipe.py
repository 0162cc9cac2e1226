"""Recipes: how a topology changes while a network trains.

    recipe    which connections go, which come, how many and when          (frozen, can be shared and printed)
    attached  the recipe at work on one model and optimiser: `topology.step()` after `optimizer.step()`

What is common to all is in `Recipe`, the questions in `Rules` below it (`rules.py`); `PruneAndGrow` holds the
number of connections and is composed of a prune criterion, a grow criterion, a schedule and a scope. The
named algorithms are presets of it (`named.py`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import distributed, nn

from toykern.arguments.errors import (
    check_choice,
    check_non_negative_int,
    check_number,
    check_positive_int,
    describe,
)
from toykern.sparse.attached import AttachedTopology
from toykern.sparse.change import Change
from toykern.sparse.grow import DenseGradient, GrowCriterion
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.prune import Magnitude, PruneCriterion, drops_of
from toykern.sparse.rules import Rules
from toykern.sparse.schedules import DropSchedule, Timing, check_drop_schedule, drop_fraction
from toykern.sparse.selection import largest_of_groups, shared_out

SCOPES = ("layer", "global")


@dataclass(frozen=True, kw_only=True)
class Recipe(Rules):
    """Base of all recipes.

    Args:
        seed: of random choices, an int or `[n_models]`; None means 0 … n_models − 1.
        track_explored: keep, as one bool for each position, which ones ever had a connection.
        grown_std: grown connections start from normal draws of this standard deviation; 0: from zero.
    """

    def attach(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        process_group: distributed.ProcessGroup | None = None,
    ) -> AttachedTopology:
        """This recipe at work on all sparse layers of `model`.

        Args:
            model: the network, which may be one sparse layer or wrapped by DistributedDataParallel.
            optimizer: the torch optimiser that holds the layers' values, or a list of several.
            process_group: over which ranks scores are averaged; None is the default group, if there is one.

        ValueError if the model has no sparse layer, the optimiser does not hold a layer's values, or the
        recipe does not fit the layers; TypeError for what is no optimiser. Nothing is changed then.
        """
        return AttachedTopology(self, model, optimizer, process_group)


@dataclass(frozen=True, kw_only=True)
class PruneAndGrow(Recipe):
    """Every `interval` steps drop the worst fraction of all connections and grow as many elsewhere.

    Args:
        prune: which connections go: `Magnitude()`, `Sensitivity()`, `RandomPrune()`, or one's own. grow:
            which come: `RandomGrowth()`, `DenseGradient()`, `SampledGradient()`, `MomentumGrowth()`,
            likewise.
        drop_fraction: of its connections, what each model drops at first, in [0, 1]; rounded down.
        schedule: how the fraction goes on from `begin` to `end`: "constant", "cosine", "linear" or a callable
            (step) -> fraction. "cosine" is eq. 1 of Evci et al. 2020 moved to start at `begin`.
        interval: steps between updates; begin, end: the updates lie in begin < step ≤ end (None: no end).
        scope: "layer" compares connections within a layer, "global" over all layers of a model; then
            connections move between layers, as far as the layers' capacity has room (a warning where there is
            none at all; `tk.sparsify(capacity=…)`).
        redistribution: None, or "score": with scope "layer", what is dropped anywhere is grown in the layers
            in proportion to the mean score of their connections (SNFS), as far as there is room.
        minimum_fan_in: no output ends an update's dropping with fewer inputs, if it had as many;
            minimum_fan_out: no input with fewer outputs, likewise (docs/sparse_layers.md: rare features).
        accumulate: over how many steps up to an update the gradients for the score of growth are summed.
        seed, track_explored, grown_std: see `Recipe`.

    Each model of a stack is by itself. A connection that is dropped and picked again in the same update stays
    as it was, with its value and moments.

    >>> recipe = PruneAndGrow(grow=DenseGradient(), interval=100, end=7500)
    >>> round(recipe.fraction(3750), 3), recipe.is_update(200), recipe.is_update(7600)
    (0.15, True, False)
    """

    prune: PruneCriterion = field(default_factory=Magnitude)
    grow: GrowCriterion = field(default_factory=DenseGradient)
    drop_fraction: float = 0.3
    schedule: DropSchedule = "cosine"
    interval: int = 100
    begin: int = 0
    end: int | None = None
    scope: str = "layer"
    redistribution: str | None = None
    minimum_fan_in: int = 0
    minimum_fan_out: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, method in (("prune", "score"), ("grow", "propose")):
            part = getattr(self, name)
            if isinstance(part, type) or not hasattr(part, method):
                raise TypeError(
                    f"{name} must be a {name} criterion such as {_EXAMPLES[name]}, not {describe(part)}"
                )
        check_number("drop_fraction", self.drop_fraction, minimum=0.0, maximum=1.0)
        check_drop_schedule(self.schedule, self.timing)
        if check_choice("scope", self.scope, SCOPES) == "global" and getattr(self.prune, "by_sign", False):
            raise ValueError("by_sign is for scope='layer', not 'global'")
        check_non_negative_int("minimum_fan_in", self.minimum_fan_in)
        check_non_negative_int("minimum_fan_out", self.minimum_fan_out)
        accumulate = check_positive_int("accumulate", self.accumulate)
        if accumulate > self.interval:
            raise ValueError(f"accumulate must be at most the interval ({self.interval}), not {accumulate}")
        if self.redistribution is not None:
            check_choice("redistribution", self.redistribution, ("score",))
            if self.scope == "global":
                raise ValueError(
                    'redistribution is for scope="layer"; scope="global" redistributes by itself'
                )

    @cached_property
    def timing(self) -> Timing:
        """When updates happen."""
        return Timing(self.interval, self.begin, self.end)

    def check(self, layers: list[AttachedLayer]) -> None:
        """ValueError if connections move between layers that are stacks of different sizes."""
        if self.moves_between_layers:
            _check_one_stack(layers, "scope='global' or redistribution")
            check_ungrouped(layers, "scope='global' or redistribution")
            _warn_without_room(layers, type(self).__name__)

    @property
    def looks_once(self) -> bool:
        """Whether an update looks at the gradient of one step, and once: then nothing need be kept of it."""
        return self.accumulate == 1 and self.redistribution is None

    @property
    def moves_between_layers(self) -> bool:
        """Whether a layer's number of connections changes."""
        return self.scope == "global" or self.redistribution is not None

    def fraction(self, step: int) -> float:
        """The fraction that is dropped at step `step`."""
        return drop_fraction(self.schedule, self.drop_fraction, step, self.timing)

    def is_update(self, step: int) -> bool:
        """Whether the topology changes after step `step`, counted from 1."""
        return self.timing.is_update(step)

    def observes(self, step: int) -> bool:
        """Whether the gradient of step `step` goes into the score of growth."""
        coming = self.timing.next_update(step)
        if self.grow.window == "never" or coming is None:
            return False
        return self.grow.window == "always" or step > coming - self.accumulate

    def next_stop(self, step: int, limit: int) -> int:
        """The first step after `step` that is observed or updated after; `limit` if none comes before."""
        coming = self.timing.next_update(step + 1)
        if coming is None:
            return limit
        window = {"never": 1, "always": coming}.get(self.grow.window, self.accumulate)
        return min(limit, max(step + 1, coming - window + 1))

    def observe(self, layer: AttachedLayer, step: int, number: int) -> None:
        """Hand the last backward pass to the grow criterion."""
        coming = self.timing.next_update(step)
        assert coming is not None
        if self.looks_once and layer.group == 1 and getattr(self.grow, "looks_once", False):
            for kept in ("gradient", "gradient_is_finite"):
                layer.memory.pop(kept, None)  # propose() looks at the pass itself
            return
        self.grow.observe(layer, step == coming - self.accumulate + 1, number)

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """Drop by the prune criterion, then grow by the grow criterion, as the scope says."""
        if self.moves_between_layers:
            _check_one_stack(layers, "scope='global' or redistribution")
        self.mark_not_finite(layers)
        drops = self.drops(layers, self.fraction(step), number)
        taken = [
            layer.topology.keys(drop if self.grow.grows_dropped else None)
            for layer, (drop, _) in zip(layers, drops, strict=True)
        ]
        counts = [count for _, count in drops]
        if self.moves_between_layers:
            grown = self._grow_between_layers(layers, taken, counts, number)
        else:
            grown = [
                self.proposed(layer, keys, count, False, number)[0]
                for layer, keys, count in zip(layers, taken, counts, strict=True)
            ]
        return [Change(drop, keys) for (drop, _), keys in zip(drops, grown, strict=True)]

    def drops(
        self, layers: list[AttachedLayer], fraction: float, number: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What to drop in each layer: (bool `[n_models · capacity]`, how many int64 `[n_models]`)."""
        return drops_of(
            layers,
            self.prune,
            number,
            scope=self.scope,
            minimum_fan_in=self.minimum_fan_in,
            minimum_fan_out=self.minimum_fan_out,
            fraction=fraction,
            by_sign=bool(getattr(self.prune, "by_sign", False)),
        )

    def mark_not_finite(self, layers: list[AttachedLayer]) -> None:
        """Mark models whose last gradient is not finite, where an update looks at that one alone."""
        if self.grow.window == "update" and self.accumulate == 1:
            for layer in layers:
                layer.mark_not_finite(~layer.finite_values_gradient())

    def proposed(
        self, layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the grow criterion proposes; models with a score that is not finite are marked.

        NaN and infinity are larger than any number, so where a free place has them they are chosen.
        """
        keys, score = self.grow.propose(layer, taken, counts, by_row, number)
        if score is not None:
            positions = layer.topology.in_features * layer.topology.out_features
            bad = ~score.isfinite()
            if bool(bad.any()):
                marks = torch.zeros_like(layer.not_finite)
                marks[keys[bad] // positions] = True
                layer.mark_not_finite(marks)
        return keys, score

    def _grow_between_layers(
        self,
        layers: list[AttachedLayer],
        taken: list[torch.Tensor],
        counts: list[torch.Tensor],
        number: int,
    ) -> list[torch.Tensor]:
        """Grow as many as were dropped in all layers of a model, wherever the recipe wants them."""
        total = torch.stack(counts).sum(dim=0)
        room = torch.stack(
            [
                torch.minimum(
                    layer.topology.capacity - layer.topology.n_connections + count,
                    layer.free_positions() + (count if self.grow.grows_dropped else 0),
                )
                for layer, count in zip(layers, counts, strict=True)
            ],
            dim=1,
        )
        if self.redistribution is not None:
            shares = torch.stack([self._mean_score(layer) for layer in layers], dim=1)
            dealt = shared_out(total, shares, room)
            return [
                self.proposed(layer, keys, dealt[:, i], False, number)[0]
                for i, (layer, keys) in enumerate(zip(layers, taken, strict=True))
            ]
        # The best over all layers are among the best that each has room for.
        proposals = [
            self.proposed(layer, keys, total.minimum(room[:, i]), False, number)
            for i, (layer, keys) in enumerate(zip(layers, taken, strict=True))
        ]
        scores = [score for _, score in proposals if score is not None]
        if len(scores) < len(proposals):  # places at random: every free one is equally likely on average
            free = torch.stack([layer.free_positions().double() for layer in layers], dim=1)
            dealt = shared_out(total, free, room)
            return [
                self.proposed(layer, keys, dealt[:, i], False, number)[0]
                for i, (layer, keys) in enumerate(zip(layers, taken, strict=True))
            ]
        model = [
            keys // (layer.topology.in_features * layer.topology.out_features)
            for layer, (keys, _) in zip(layers, proposals, strict=True)
        ]
        sizes = [len(keys) for keys, _ in proposals]
        every_key = torch.cat([keys for keys, _ in proposals])
        layer_of = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.int64, device=every_key.device))

        def words(entry: torch.Tensor) -> torch.Tensor:
            found = torch.zeros_like(entry)
            for i, layer in enumerate(layers):
                mine = layer_of[entry] == i
                found[mine] = layer.ties_of_positions(number).words(every_key[entry[mine]])
            return found

        chosen = largest_of_groups(torch.cat(scores), torch.cat(model), total, words)
        parts = chosen.split(sizes)
        return [keys[part] for (keys, _), part in zip(proposals, parts, strict=True)]

    def _mean_score(self, layer: AttachedLayer) -> torch.Tensor:
        """The mean score of a layer's connections, float64 `[n_models]`."""
        score = self.grow.connected(layer)
        if score is None:
            raise ValueError('redistribution="score" needs a grow criterion with a score')
        sums = layer.per_model(score.double() * layer.topology.occupied()).sum(dim=1)
        return (sums / layer.topology.n_connections.clamp(min=1)).nan_to_num(nan=0.0, posinf=0.0)


_EXAMPLES = {"prune": "tk.sparse.Magnitude()", "grow": "tk.sparse.RandomGrowth()"}


def _check_one_stack(layers: list[AttachedLayer], what: str) -> None:
    """ValueError unless all layers have the same number of models and the same device."""
    sizes = {layer.name: layer.topology.n_models for layer in layers}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what} needs layers with the same number of models, not {sizes}")


def _warn_without_room(layers: list[AttachedLayer], recipe: str) -> None:
    """A warning where connections are to move between layers, and no layer could take in one more."""
    full = (bool((layer.topology.n_connections == layer.topology.capacity).all()) for layer in layers)
    if len(layers) > 1 and all(full):
        warnings.warn(
            f"{recipe} moves connections between layers, but no layer has room for more than it has, so each "
            "will keep its number: make them with capacity=, as in tk.sparsify(…, capacity=1.5)",
            stacklevel=5,
        )


def check_ungrouped(layers: list[AttachedLayer], what: str) -> None:
    """ValueError if a layer has groups: a unit of one layer is more connections than one of another."""
    grouped = [layer.name for layer in layers if layer.group > 1]
    if grouped:
        raise ValueError(f"{what} needs layers whose connections stand alone; {grouped} have groups")
