"""Which connections to drop: a score for each, of which the lowest go.

A criterion is any object with `score(layer, number)`, so one's own is a few lines. Scores of different layers
are compared with each other where a recipe's scope is "global".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from toykern.arguments.errors import check_flag, describe
from toykern.ops import sparse_topology as native
from toykern.ops.sparse_ties import Ties, first_of_ties
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

    def __post_init__(self) -> None:
        check_flag("by_sign", self.by_sign)

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """|w| of every slot."""
        return layer.of_units(layer.values.abs())


@dataclass(frozen=True)
class Sensitivity:
    """|w · ∂L/∂w|: to first order, what a weight's removal changes (Mozer & Smolensky 1988; Molchanov et al.
    2017), with the gradient of the last backward pass."""

    def score(self, layer: AttachedLayer, number: int) -> torch.Tensor:
        """|w · gradient| of every slot; RuntimeError if the values have no gradient."""
        layer.mark_not_finite(~layer.finite_values_gradient())
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
    scores: list[torch.Tensor], available: list[torch.Tensor], counts: torch.Tensor, ties: list[Ties]
) -> list[torch.Tensor]:
    """The `counts[k]` lowest scores of model k over all of several layers, among those available.

    `scores` and `available` (bool) are `[n_models, slots]` for each layer, with the same `n_models`; `counts`
    is int64 `[n_models]`. NaN goes first; of equal scores those go that `ties` says, of each layer's slots.
    Returns bool tensors of the same shapes; fewer than `counts` where fewer are available.
    """
    sizes = [score.shape[1] for score in scores]
    mask = torch.cat(available, dim=1)
    score = torch.cat([-score for score in scores], dim=1).masked_fill(~mask, -torch.inf)
    counts = counts.to(mask.device).minimum(mask.sum(dim=1))
    chosen = largest(score, counts)
    # The lowest score that is chosen, and what has the same.
    numbers = chosen & ~score.isnan()
    edge = score.masked_fill(~numbers, torch.inf).amin(dim=1, keepdim=True)
    edge = edge.where(numbers.any(dim=1, keepdim=True), torch.nan)
    equal = mask & ((score == edge) | (score.isnan() & edge.isnan()))
    left_out = (equal & ~chosen).any(dim=1) | (chosen & ~mask).any(dim=1)
    if not bool((left_out & (counts > 0)).any()):
        return list((chosen & mask).split(sizes, dim=1))
    chosen &= mask & ~equal
    model, slot = (equal & (counts > 0)[:, None]).nonzero(as_tuple=True)
    words = torch.zeros_like(slot)
    first = 0
    for size, tie in zip(sizes, ties, strict=True):
        mine = (slot >= first) & (slot < first + size)
        words[mine] = tie.words(model[mine] * size + slot[mine] - first)
        first += size
    chosen[model, slot] = first_of_ties(model, words, counts - chosen.sum(dim=1))
    return list(chosen.split(sizes, dim=1))


def _checked(score: Any, layer: AttachedLayer, criterion: PruneCriterion) -> torch.Tensor:
    """The score, if kernels may trust it: a criterion may be a user's own."""
    slots = layer.topology.column
    if not isinstance(score, torch.Tensor) or not score.is_floating_point() or score.shape != slots.shape:
        raise ValueError(
            f"{type(criterion).__name__}.score must give the sparse layer {layer.name!r} a floating point "
            f"tensor of one number for each slot, {list(slots.shape)}, not {describe(score)}"
        )
    if score.device != slots.device:
        raise ValueError(
            f"{type(criterion).__name__}.score must be on the device of the layer, {slots.device}, "
            f"not {score.device}"
        )
    return score


def drops_of(
    layers: list[AttachedLayer],
    criterion: PruneCriterion,
    number: int,
    *,
    scope: str,
    minimum_fan_in: int,
    minimum_fan_out: int,
    fraction: float = 0.0,
    counts: list[torch.Tensor] | None = None,
    by_sign: bool = False,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What goes from each layer: (bool `[n_models · capacity]`, how many int64 `[n_models]`).

    `counts` (int64 `[n_models]` for each layer), or `fraction` of the connections, rounded down: of every
    layer by itself, or with scope "global" as many as that makes over all layers, compared with each other.
    Of equal scores those go that the layers' ties of update `number` say.
    """
    scores = [_checked(criterion.score(layer, number), layer, criterion) for layer in layers]
    free = [
        available(layer, score, minimum_fan_in, minimum_fan_out, number)
        for layer, score in zip(layers, scores, strict=True)
    ]
    if scope == "global":
        if counts is None:
            of_all = torch.stack([layer.topology.n_connections for layer in layers]).sum(dim=0)
            total = fractions(fraction, of_all)
        else:
            total = torch.stack(counts).sum(dim=0)
        chosen = lowest(
            [layer.per_model(score) for layer, score in zip(layers, scores, strict=True)],
            [
                layer.per_model(layer.topology.occupied() if may_go is None else may_go)
                for layer, may_go in zip(layers, free, strict=True)
            ],
            total.clamp(min=0),
            [layer.ties_of_slots(number) for layer in layers],
        )
        return [(drop.reshape(-1), drop.sum(dim=1)) for drop in chosen]
    return [
        lowest_of_layer(
            layer,
            score,
            may_go,
            number,
            counts=None if counts is None else counts[i].clamp(min=0),
            fraction=fraction,
            by_sign=by_sign,
        )
        for i, (layer, score, may_go) in enumerate(zip(layers, scores, free, strict=True))
    ]


def lowest_of_layer(
    layer: AttachedLayer,
    score: torch.Tensor,
    allowed: torch.Tensor | None,
    number: int,
    *,
    counts: torch.Tensor | None = None,
    fraction: float = 0.0,
    by_sign: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest scores of every model of one layer: (bool `[n_models · capacity]`, int64 `[n_models]`).

    `counts` of them, or `fraction` of the connections (of each sign of the values by itself with `by_sign`);
    fewer where fewer are `allowed` (bool for every slot; None: all that hold a connection). NaN goes first;
    of equal scores those go that the layer's ties of update `number` say.
    """
    if native.can_choose(score):
        sign = None
        if by_sign:
            values = layer.of_units(layer.values)
            sign = values if values.dtype == score.dtype else -(values < 0).to(score.dtype)
        return native.lowest_slots(
            score,
            layer.topology.row_start,
            counts=counts,
            fraction=fraction,
            sign=sign,
            allowed=allowed,
            ties=layer.ties_of_slots(number),
        )
    return lowest_anywhere(layer, score, allowed, number, counts=counts, fraction=fraction, by_sign=by_sign)


def lowest_anywhere(
    layer: AttachedLayer,
    score: torch.Tensor,
    allowed: torch.Tensor | None,
    number: int,
    *,
    counts: torch.Tensor | None = None,
    fraction: float = 0.0,
    by_sign: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`lowest_of_layer` by PyTorch, on any device."""
    occupied = layer.per_model(layer.topology.occupied())
    free = occupied if allowed is None else layer.per_model(allowed) & occupied
    classes = [occupied]
    if by_sign:
        negative = layer.per_model(layer.of_units(layer.values) < 0)
        classes = [negative & occupied, ~negative & occupied]
    drop = torch.zeros_like(occupied)
    for members in classes:
        wanted = fractions(fraction, members.sum(dim=1)) if counts is None else counts
        ties = [layer.ties_of_slots(number)]
        drop |= lowest([layer.per_model(score)], [free & members], wanted, ties)[0]
    return drop.reshape(-1), drop.sum(dim=1)


def available(
    layer: AttachedLayer, score: torch.Tensor, minimum_fan_in: int, minimum_fan_out: int, number: int
) -> torch.Tensor | None:
    """The connections that may go, bool `[n_models · capacity]`; None: all of them."""
    if minimum_fan_in == 0 and minimum_fan_out == 0:
        return None
    free = layer.topology.occupied()
    for minimum, by_input in ((minimum_fan_in, False), (minimum_fan_out, True)):
        if minimum:
            free &= ~protected(layer, score, minimum, by_input, number)
    return free


def protected(
    layer: AttachedLayer, score: torch.Tensor, minimum: int, by_input: bool, number: int
) -> torch.Tensor:
    """The `minimum` best-scored connections of every output, or of every input; bool `[n_models · capacity]`.

    Outputs that share their inputs count one by one.
    """
    topology = layer.topology
    keep = torch.zeros_like(topology.occupied())
    slot = topology.occupied_slots()
    model = slot // max(1, topology.capacity)
    if by_input:
        of_model, member = topology.in_features, topology.column[slot].long()
        minimum = -(-minimum // layer.group)
    else:
        of_model, member = topology.out_features, topology.row[slot]
    counts = torch.full((topology.n_models * of_model,), minimum, dtype=torch.int64, device=slot.device)
    ties = layer.ties_of_slots(number)
    keep[slot] = largest_of_groups(
        score[slot].nan_to_num(nan=-torch.inf),
        model * of_model + member,
        counts,
        lambda entry: ties.words(slot[entry]),
    )
    return keep
