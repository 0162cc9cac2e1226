"""Gradual magnitude pruning: connections only go, until a density is reached."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from toykern.arguments.errors import check_choice, check_int, check_non_negative_int, check_number
from toykern.sparse.change import Change
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.prune import Magnitude, PruneCriterion, drops_of
from toykern.sparse.recipe import SCOPES, Recipe, check_ungrouped
from toykern.sparse.schedules import Timing


@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(Recipe):
    """Gradual magnitude pruning (Zhu & Gupta 2017, eq. 1): s_t = s_f + (s_i − s_f)(1 − (t − t₀)/(n Δt))³.

    Args:
        final_density: 1 − s_f, in (0, 1), of every layer (or with scope "global" of all together); s_i is
            what the layers have when the recipe is attached, so begin with dense or nearly dense ones.
        begin, interval, end: t₀, Δt and t₀ + n Δt; `end` is moved down to a whole number of intervals.
        prune: which connections go first.
        scope: "layer", or "global" to compare connections over all layers of a model.
        minimum_fan_in: every output keeps that many inputs, if it had as many, and minimum_fan_out: every
            input that many outputs; the density may then end higher.
        seed, track_explored, grown_std: see `Recipe`.

    A layer's slots stay: memory follows the initial connections, time the current ones.

    >>> round(GradualMagnitude(final_density=0.1, end=1000).density_at(500, initial=1.0), 4)
    0.2125
    """

    final_density: float
    end: int
    begin: int = 0
    interval: int = 100
    prune: PruneCriterion = field(default_factory=Magnitude)
    scope: str = "layer"
    minimum_fan_in: int = 0
    minimum_fan_out: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        density = check_number("final_density", self.final_density, minimum=0.0, below=1.0)
        if density == 0:
            raise ValueError("final_density must be above 0, not 0.0")
        timing = Timing(self.interval, self.begin)
        object.__setattr__(self, "interval", timing.interval)
        object.__setattr__(self, "begin", timing.begin)
        object.__setattr__(self, "end", check_int("end", self.end))
        if self.end - self.begin < self.interval:
            raise ValueError(
                f"end must be at least begin + interval ({self.begin + self.interval}), not {self.end}"
            )
        check_choice("scope", self.scope, SCOPES)
        check_non_negative_int("minimum_fan_in", self.minimum_fan_in)
        check_non_negative_int("minimum_fan_out", self.minimum_fan_out)

    @property
    def timing(self) -> Timing:
        """When connections go."""
        return Timing(self.interval, self.begin, self.end)

    def check(self, layers: list[AttachedLayer]) -> None:
        """ValueError where a layer has no more than the final density."""
        for layer in layers:
            density = float(layer.topology.density.min())
            if self.scope == "layer" and density <= self.final_density:
                raise ValueError(
                    f"final_density must be below that of every layer; {layer.name!r} has {density:.6g}"
                )
        if self.scope == "global" and len({layer.topology.n_models for layer in layers}) > 1:
            raise ValueError("scope='global' needs layers with the same number of models")
        if self.scope == "global":
            check_ungrouped(layers, "scope='global'")

    def density_at(self, step: int, initial: float) -> float:
        """The density after the update at `step`, for layers that began with `initial`."""
        step, initial = check_int("step", step), check_number("initial", initial)
        whole = (self.end - self.begin) // self.interval * self.interval
        left = 1 - min(1.0, max(0.0, (step - self.begin) / whole))
        return self.final_density + (initial - self.final_density) * left**3

    def is_update(self, step: int) -> bool:
        """Whether connections go after step `step`, counted from 1."""
        return self.timing.is_update(step)

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """Drop what is above the density that the schedule asks for."""
        surplus = []
        for layer in layers:
            topology = layer.topology
            positions = topology.in_features * topology.out_features
            initial = layer.budget.double() / positions
            wanted = [self.density_at(step, float(d)) * positions for d in initial]
            target = torch.tensor(wanted, dtype=torch.float32, device="cpu")
            surplus.append(topology.n_connections - (target + 0.5).floor().long().to(topology.device))
        drops = drops_of(
            layers,
            self.prune,
            number,
            scope=self.scope,
            minimum_fan_in=self.minimum_fan_in,
            minimum_fan_out=self.minimum_fan_out,
            counts=surplus,
        )
        return [Change(drop, drop.new_empty(0, dtype=torch.int64)) for drop, _ in drops]
