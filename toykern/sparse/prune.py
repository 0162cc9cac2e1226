"""Which connections to drop: a score for each, of which the lowest go.

A criterion is any object with `score(layer, number)`, so one's own is a few lines. Scores of different layers
are compared with each other where a recipe's scope is "global".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from toykern.sparse.draws import words64
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.selection import largest, largest_of_groups


class PruneCriterion(Protocol):
    """What a recipe asks of a prune criterion."""

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """A score for every slot of `layer.topology`, `[n_models · capacity]`; that of slack is ignored, NaN
        counts as lowest. `layer.of_units` makes it of scores of the values, for layers with groups too.

        `number` is the number of the update, from 1. RuntimeError if something it needs is not there.
        """


@dataclass(frozen=True)
class Magnitude:
    """|w|: the weights nearest to 0 go (Evci et al. 2020, §3 (2)).

    With `by_sign` the same fraction of the positive and of the negative ones goes (Mocanu et al. 2018,
    Algorithm 1), each by itself; 0 counts as positive. It is for scope "layer" of `PruneAndGrow`.
    """

    by_sign: bool = False

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """|w| of every slot."""
        return layer.of_units(layer.values.abs())


@dataclass(frozen=True)
class Sensitivity:
    """|w · ∂L/∂w|: to first order, what a weight's removal changes (Mozer & Smolensky 1988; Molchanov et al.
    2017), with the gradient of the last backward pass."""

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """|w · gradient| of every slot; RuntimeError if the values have no gradient."""
        return layer.of_units((layer.values * layer.reduce(layer.value_gradient().clone())).abs())


@dataclass(frozen=True)
class RandomPrune:
    """Connections at random, from the recipe's seed: the control beside the others."""

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """A uniform number for every slot, float64."""
        topology = layer.topology
        words = words64(
            layer.seeds,
            np.zeros(topology.n_models, dtype=np.int64),
            topology.capacity,
            purpose="prune",
            layer=layer.number,
            step=number,
        )
        return torch.from_numpy((words >> np.uint64(11)).astype(np.float64)).reshape(-1).to(topology.device)


def fractions(fraction: float, connections: torch.Tensor) -> torch.Tensor:
    """floor(fraction · connections), int64, also where the product falls short of a whole number by rounding.

    >>> fractions(0.29, torch.tensor([100]))
    tensor([29])
    """
    return (fraction * connections.double() * (1 + 1e-12)).floor().long().minimum(connections)


def lowest(
    scores: list[torch.Tensor], available: list[torch.Tensor], counts: torch.Tensor
) -> list[torch.Tensor]:
    """The `counts[k]` lowest scores of model k over all of several layers, among those available.

    `scores` and `available` (bool) are `[n_models, slots]` for each layer, with the same `n_models`; `counts`
    is int64 `[n_models]`. Of equal scores those in earlier layers and slots go; NaN goes first. Returns bool
    tensors of the same shapes; fewer than `counts` where fewer are available.
    """
    mask = torch.cat(available, dim=1)
    score = torch.cat([-score for score in scores], dim=1).masked_fill(~mask, -torch.inf)
    chosen = largest(score, counts.minimum(mask.sum(dim=1))) & mask
    return list(chosen.split([score.shape[1] for score in scores], dim=1))


def protected(layer: AttachedLayer, score: torch.Tensor, minimum_fan_in: int) -> torch.Tensor:
    """The `minimum_fan_in` best-scored connections of every output, bool `[n_models · capacity]`."""
    topology = layer.topology
    keep = torch.zeros_like(topology.occupied())
    if minimum_fan_in == 0:
        return keep
    slot = topology.occupied_slots()
    rows = topology.n_models * topology.out_features
    row = slot // max(1, topology.capacity) * topology.out_features + topology.row[slot]
    counts = torch.full((rows,), minimum_fan_in, device=slot.device)
    keep[slot] = largest_of_groups(score[slot].nan_to_num(nan=-torch.inf), row, counts)
    return keep
