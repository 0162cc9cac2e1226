"""Which connections to grow: places without one, with a score of which the highest are taken.

A criterion is an object with the methods of `GrowCriterion`. `observe` is called on the steps for which
`window` asks, after the backward pass; what it keeps is in `layer.memory`, and so in checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from toykern.arguments.errors import check_choice, check_number
from toykern.ops import sparse_topology as native
from toykern.sparse.draws import distinct, free_numbers, tag_of
from toykern.sparse.guided import DISTRIBUTIONS, guided_places
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.selection import largest, largest_of_groups


class GrowCriterion(Protocol):
    """What a recipe asks of a grow criterion."""

    window: str
    """When to observe: "never", "update" (the steps up to an update, as many as the recipe accumulates) or
    "always"."""
    grows_dropped: bool
    """Whether a connection dropped in an update may be grown in the same one."""

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        """Take in the gradient of the last backward pass; `first` begins a new sum of a window.

        Must not change tensors in `layer.memory` in place, but put new ones there.
        """

    def propose(
        self, layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The best free places of every group: (key, score), keys ascending.

        `taken` are the ascending keys of the places not to be had. Groups are the models, or with `by_row`
        the rows (model · out + row) of all; `counts` is int64 `[groups]`, how many at most. No score: None.
        """

    def connected(self, layer: AttachedLayer) -> torch.Tensor | None:
        """The score at the connections there are, `[n_models · capacity]`, for redistribution; or None."""


@dataclass(frozen=True)
class RandomGrowth:
    """Places at random, all equally likely (SET; Mocanu et al. 2018)."""

    window = "never"
    grows_dropped = True

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        """Nothing."""

    def propose(
        self, layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
    ) -> tuple[torch.Tensor, None]:
        """`counts` free places of each group at random, without scores."""
        return random_places(layer, taken, counts, by_row, "grow", number), None

    def connected(self, layer: AttachedLayer) -> None:
        """None: a draw has no score."""


@dataclass(frozen=True)
class DenseGradient:
    """The largest |∂L/∂W| among places without a connection (RigL; Evci et al. 2020, §3 (3)).

    On the CPU the gradient of a single step is never held as a whole: it is formed in tiles of rows, of which
    only places that may be among the best are kept (`best_of_tiles`). Memory for all positions is needed, and
    taken, where gradients of several steps are summed (`accumulate=`), where the score is looked at more than
    once (`redistribution="score"`, constant fan-in), for layers with groups, and on a GPU.
    """

    window = "update"
    grows_dropped = True

    @property
    def looks_once(self) -> bool:
        """Whether `propose` can do without `observe` where the window is one step and it is called once."""
        kind = type(self)
        return kind.observe is DenseGradient.observe and kind.score is DenseGradient.score

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        """Add the gradient at all positions to the window's sum, but of models where it is not finite."""
        gradient = layer.dense_gradient()
        finite = layer.finite_models(gradient)
        _add_to_sum(layer, _zero_where_not(finite, gradient), finite, first)

    def score(self, layer: AttachedLayer) -> torch.Tensor:
        """|sum of the gradients| over ranks and the window, flat `[n_models · out · in]`."""
        return layer.of_positions(layer.reduce(layer.memory["gradient"].clone()).abs_())

    def propose(
        self, layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest scores of each group."""
        if "gradient" in layer.memory:
            _mark_unseen(layer)
            return best_of_dense(layer, self.score(layer), taken, counts, by_row, number)
        return best_of_tiles(layer, taken, counts, by_row, number)

    def connected(self, layer: AttachedLayer) -> torch.Tensor:
        """|gradient| at the connections there are."""
        _mark_unseen(layer)
        return at_connections(layer, self.score(layer))


@dataclass(frozen=True)
class MomentumGrowth(DenseGradient):
    """The largest |exponentially smoothed gradient|, M ← decay·M + (1 − decay)·∂L/∂W at every step (SNFS;
    Dettmers & Zettlemoyer 2019, §3.1). Costs a dense gradient and its memory at every step."""

    decay: float = 0.9
    window = "always"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay", check_number("decay", self.decay, minimum=0.0, below=1.0))

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        """Smooth the gradient at all positions; of models where it is not finite the step does not count."""
        gradient = layer.dense_gradient()
        finite = layer.finite_models(gradient)
        before = layer.memory.get("gradient")
        smoothed = _zero_where_not(finite, gradient) * (1 - self.decay)
        if before is not None:
            summed = smoothed + self.decay * before
            rows = (len(finite), -1)
            smoothed = (
                summed
                if bool(finite.all())
                else summed.reshape(rows).where(finite[:, None], before.reshape(rows)).reshape(-1)
            )
        seen = layer.memory.get("gradient_is_finite", torch.full_like(finite, before is not None))
        layer.memory["gradient"], layer.memory["gradient_is_finite"] = smoothed, seen | finite


@dataclass(frozen=True)
class SampledGradient:
    """The largest |∂L/∂W| among places drawn at random (GSE; Heddes et al. 2024, Algorithm 1).

    `ratio` · connections places (the paper's γ) are drawn for each model, and the gradient is found there
    alone: no dense one exists. `distribution` is what they are drawn from (`toykern.sparse.guided`):

        "uniform"  free places, all equally likely and different
        "grabo"    outputs by Σ|δ| and inputs by Σ|h| over the batch, whose product bounds |∂L/∂W|
        "graest"   outputs by |Σ s·δ| and inputs by |Σ s·h| with random signs s, whose product estimates it

    With the last two, draws that hit a connection, or one place twice, are lost, as in the authors' code
    (which takes all places where more than half of them are connected; here draws are drawn). They need
    layers that show their passes: `fit` refuses them.
    """

    ratio: float = 1.0
    distribution: str = "uniform"
    window = "update"
    grows_dropped = False  # candidates are drawn among what had no connection before the update

    def __post_init__(self) -> None:
        ratio = check_number("ratio", self.ratio, minimum=0.0)
        if ratio == 0:
            raise ValueError("ratio must be above 0, not 0.0")
        object.__setattr__(self, "ratio", ratio)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)

    def observe(self, layer: AttachedLayer, first: bool, number: int) -> None:
        """Draw the candidates (`first`), and add the gradient there to the window's sum."""
        topology = layer.topology
        first = first or "candidates" not in layer.memory
        if first:
            wanted = (self.ratio * topology.n_connections.double()).ceil().long()
            if self.distribution == "uniform":
                counts = wanted.minimum(layer.free_positions())
                key = random_places(layer, topology.keys(), counts, False, "candidates", number)
            else:
                key = guided_places(layer, self.distribution, wanted, number)
            layer.memory["candidates"] = key
        key = layer.memory["candidates"]
        gradient = layer.gradient_at(key)
        model = key // (topology.in_features * topology.out_features)
        model = model.repeat_interleave(layer.group)
        finite = layer.finite_at(gradient, model) & layer.finite_values_gradient()
        if not bool(finite.all()):
            gradient = gradient.masked_fill(~finite[model], 0)
        _add_to_sum(layer, gradient, finite, first)

    def propose(
        self, layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest scores of each group among the candidates."""
        _mark_unseen(layer)
        topology = layer.topology
        key = layer.memory["candidates"]
        score = layer.of_candidates(layer.reduce(layer.memory["gradient"].clone()).abs_())
        group = key // (topology.in_features * (1 if by_row else topology.out_features))
        ties = layer.ties_of_positions(number)
        chosen = largest_of_groups(score, group, counts, lambda entry: ties.words(key[entry]))
        return key[chosen], score[chosen]

    def connected(self, layer: AttachedLayer) -> torch.Tensor:
        """|gradient| of the values in the last backward pass."""
        layer.mark_not_finite(~layer.finite_values_gradient())
        return layer.of_units(layer.reduce(layer.value_gradient().clone()).abs_())


def _zero_where_not(finite: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient at all positions, flat, with 0 for the models that are not `finite` (bool `[n_models]`)."""
    if bool(finite.all()):
        return gradient
    return gradient.reshape(len(finite), -1).masked_fill(~finite[:, None], 0).reshape(-1)


def _add_to_sum(layer: AttachedLayer, gradient: torch.Tensor, finite: torch.Tensor, first: bool) -> None:
    """Add to the window's sum; `seen` are the models of which a step so far was finite."""
    before = None if first else layer.memory.get("gradient")
    if before is None:
        layer.memory["gradient"], layer.memory["gradient_is_finite"] = gradient, finite
        return
    seen = layer.memory.get(
        "gradient_is_finite", torch.ones_like(finite)
    )  # checkpoints of before had only the sum
    layer.memory["gradient"], layer.memory["gradient_is_finite"] = before + gradient, seen | finite


def _mark_unseen(layer: AttachedLayer) -> None:
    """Mark the models of which no step was finite: their sum says nothing."""
    seen = layer.memory.get("gradient_is_finite")
    if seen is not None:
        layer.mark_not_finite(~seen)


def random_places(
    layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, purpose: str, number: int
) -> torch.Tensor:
    """`counts[group]` keys at random that are not in `taken` (ascending), ascending, int64."""
    topology = layer.topology
    size = topology.in_features * (1 if by_row else topology.out_features)
    rows = topology.out_features if by_row else 1
    groups = topology.n_models * rows
    if native.on_cpu(taken) and native.can_draw(size):
        return native.random_places(
            taken,
            counts,
            np.repeat(layer.seeds, rows),
            np.tile(np.arange(rows), topology.n_models),
            size,
            tag=tag_of(purpose, layer.number),
            step=number,
        )
    used = taken.cpu().numpy()
    used_group = used // size
    free = size - np.bincount(used_group, minlength=groups)
    group, rank = distinct(
        free,
        np.minimum(counts.cpu().numpy(), free),
        np.repeat(layer.seeds, rows),
        np.tile(np.arange(rows), topology.n_models),
        purpose=purpose,
        layer=layer.number,
        step=number,
    )
    place = free_numbers(group, rank, used_group, used - used_group * size, groups)
    return torch.from_numpy(group * size + place).to(topology.device)


def best_of_dense(
    layer: AttachedLayer,
    score: torch.Tensor,
    taken: torch.Tensor,
    counts: torch.Tensor,
    by_row: bool,
    number: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best places of each group by a score at all positions (which is overwritten): (key, score).

    Of equal ones those that the layer's ties of update `number` say.
    """
    ties = layer.ties_of_positions(number)
    topology = layer.topology
    size = topology.in_features * (1 if by_row else topology.out_features)
    if native.can_choose(score):
        key = native.largest_indices(score.reshape(-1, size), counts, taken, ties=ties)
        return key, score[key]
    free = size - torch.bincount(taken // size, minlength=score.numel() // size)
    score[taken] = -torch.inf
    key = largest(score.reshape(-1, size), counts.minimum(free), ties).reshape(-1).nonzero()[:, 0]
    return key, score[key]


def best_of_tiles(
    layer: AttachedLayer, taken: torch.Tensor, counts: torch.Tensor, by_row: bool, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best places of each group by |gradient| of the last backward pass: (key, score).

    As `best_of_dense` on `layer.dense_gradient()`, bit by bit, but no more than a tile of the gradient, and
    some multiples of what is chosen from one group, is held at a time. Over ranks every tile is averaged.
    """
    topology = layer.topology
    size = topology.in_features * (1 if by_row else topology.out_features)
    ties = layer.ties_of_positions(number)
    keys, scores = [], []
    open_group: native.LargestOfPieces | None = None  # of which some tiles have been seen
    for first, tile in layer.gradient_tiles():
        flat = layer.reduce(tile).reshape(-1)
        if not native.can_choose(flat):  # on a device: the one tile is all there is
            return best_of_dense(layer, flat.abs_(), taken, counts, by_row, number)
        taken_keys = taken.numpy()
        last = first + len(flat)
        begin, end = np.searchsorted(taken_keys, (first, last))
        mine = taken[begin:end]
        if first % size == 0 and len(flat) % size == 0:  # whole groups
            group = slice(first // size, last // size)
            best = native.largest_indices(
                flat.reshape(-1, size),
                counts[group],
                mine - first,
                absolute=True,
                ties=ties.from_entry(first),
            )
            keys.append(best + first)
            scores.append(flat[best].abs())
            continue
        if open_group is None:
            open_group = native.LargestOfPieces(int(counts[first // size]), ties, first)
        open_group.add(flat, first, mine)
        if last % size == 0:
            for parts, part in zip((keys, scores), open_group.finish(), strict=True):
                parts.append(part)
            open_group = None
    if len(keys) == 1:
        return keys[0], scores[0]
    return torch.cat(keys), torch.cat(scores)


def at_connections(layer: AttachedLayer, score: torch.Tensor) -> torch.Tensor:
    """A score at all positions, at the slots of the layer: `[n_models · capacity]`, 0 in the slack."""
    topology = layer.topology
    slots: Any = torch.zeros(len(topology.column), dtype=score.dtype, device=score.device)
    slots[topology.occupied_slots()] = score[topology.keys()]
    return slots
