"""Loss by strata: samples sorted by how many units are active, every stratum with its exact probability.

What is switched on together is a *unit* (a feature, or a group; docs/data_stream.md §2), and a *pattern* says
which units are active, and of an exclusive group which member. Where features are rare nearly all samples are
empty, and what tells solutions apart happens in a share of p² or less of them: drawn at random, these samples
are few and their number is noise. Here the number is no matter of chance:

    loss = Σ_patterns P(pattern) · E[loss | pattern]  +  P(more units) · E[loss | more units]

* The patterns with 0, 1, 2, … active units are listed as far as there is room for some samples of each. P is
  the product of the units' own probabilities, per model. The empty sample is exact; the magnitudes of the
  others are points of a scrambled Sobol sequence, which fill the cube far more evenly than random ones.
* Samples with more active units are drawn at random, unit by unit, each with its probability given that
  enough units are still to come; how often there are such samples is again exact.

Which samples are drawn follows from the units, `samples` and the seed. The models of one seed therefore share
them (magnitudes and uniform variates), whatever their probabilities. A model's bits are its own: the layer's
are, and all sums here run model by model in an order that follows from the units and `samples`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.quasirandom import SobolEngine

from toykern.data.features import SparseFeatures
from toykern.data.groups import EXCLUSIVE
from toykern.data.philox import half_normal
from toykern.network.losses import LOSSES, Objective
from toykern.nn.dense_stack import DenseStack
from toykern.nn.kinds import AnyModel

MAX_UNITS = 4096
"""More would be drawn one by one, and with so many the number of active ones says little."""

_PATTERNS = 2048  # that are listed: each is a call of the layer
_ROWS = 8  # samples of a pattern, at least
_BATCH = 512  # samples of a call, at most
_ENTRIES = 1 << 24  # numbers of a call: models × samples × features, at most
_SOBOL_DIMENSIONS = 64  # further magnitudes are random: a sequence is not even in so many

Options = list[tuple[int, ...]]
"""Of a unit: which features it may switch on, an option each for the members of an exclusive group."""


@dataclass(frozen=True)
class Plan:
    """How many samples are drawn of what; follows from the units and `samples` alone.

    Attributes:
        rows: active units -> samples of each such pattern. Without 0 where the empty sample is known.
        listed: patterns with at most so many active units are listed.
        rest: samples with more.
    """

    rows: dict[int, int]
    listed: int
    rest: int


def plan(options: list[int], samples: int, *, known: bool = False, noisy: bool = False) -> Plan:
    """The plan for units with so many options each.

    Every listed number of active units gets the same share, and the rest as much as all of them. `known`:
    one sample of a pattern says everything (magnitudes are constant); `noisy`: the empty sample is drawn too.

    >>> plan([1, 1], 4096)
    Plan(rows={1: 1024, 2: 2048}, listed=2, rest=0)
    >>> plan([1] * 20, 65_536)
    Plan(rows={1: 512, 2: 32, 3: 8}, listed=3, rest=32768)
    """
    counts, most = [1], len(options) + 1  # of patterns by active units, as far as they might be listed
    for number in options:
        counts = [a + number * b for a, b in zip([*counts, 0], [0, *counts], strict=True)][:most]
        while sum(counts) > _PATTERNS and len(counts) > 1:
            counts.pop()
            most = len(counts)
    least = 1 if known else _ROWS
    for listed in reversed(range(len(counts))):
        strata = range(0 if noisy else 1, listed + 1)
        parts = len(strata) * (1 if listed == len(options) else 2)
        share = samples // max(1, parts)
        if all(counts[k] * least <= share for k in strata):
            break
    else:
        listed, strata = -1, range(0)
    rows = {k: 1 if known else 1 << (share // counts[k]).bit_length() - 1 for k in strata}
    complete = listed == len(options)
    return Plan(rows, listed, 0 if complete else samples // 2 if rows else samples)


def stratified_loss(
    model: AnyModel,
    data: SparseFeatures,
    *,
    samples: int,
    seed: torch.Tensor,
    importance: torch.Tensor,
    objective: Objective,
    l1: torch.Tensor | None = None,
) -> torch.Tensor:
    """float64 `[models]`, on the model's device; arguments as checked by `toykern.evaluate`.

    ValueError for a distribution of more than `MAX_UNITS` units.
    """
    data.refuse_dependence("method='stratified'; use method='samples'")
    if LOSSES[objective.loss].over == "batch":
        raise ValueError(
            f"method='stratified' weights single samples, of which loss={objective.loss!r} is none"
        )
    if data.projection is not None:
        raise ValueError("data with a projection cannot be used by method='stratified'; use method='samples'")
    options, on, off = _units(data)
    if len(options) > MAX_UNITS:
        raise ValueError(
            f"method='stratified' takes at most {MAX_UNITS} features or groups in data, not {len(options)}; "
            "use method='samples'"
        )
    noisy = data.noise > 0.0
    known = data.magnitude == "constant" and not noisy
    drawn = plan([len(o) for o in options], samples, known=known, noisy=noisy)
    network = model.dense()
    loss = torch.zeros(model.n_models, dtype=torch.float64, device="cpu")
    device = next(network.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for value in seed.unique().tolist():
            chosen = (seed == value).nonzero()[:, 0]
            everyone = len(chosen) == model.n_models
            part = network if everyone else network[chosen]
            rows = slice(None) if everyone or data.n_models is None else chosen
            own = importance if everyone or len(importance) == 1 else importance[chosen]
            work = _Strata(
                part, data, drawn, value, options, [o[:, rows] for o in on], off[:, rows], own, objective,
                None if l1 is None else l1[chosen],
            )  # fmt: skip
            loss[chosen] = work.loss()
    return loss.to(device)


@dataclass(frozen=True)
class _Batch:
    """Samples for a call of the layer: a slice of models -> float32 CPU `[1 or models, rows, n_features]`.

    `noise` `[rows, n_features]` comes to the inputs, not to the target.
    """

    rows: int
    clean: Callable[[slice], torch.Tensor]
    noise: torch.Tensor | None = None


class _Strata:
    """The models of one seed; `on` and `off` are the probabilities of options, `[…, models or 1]`."""

    def __init__(
        self, network: DenseStack, data: SparseFeatures, drawn: Plan, seed: int, options: list[Options],
        on: list[torch.Tensor], off: torch.Tensor, importance: torch.Tensor, objective: Objective,
        l1: torch.Tensor | None,
    ) -> None:  # fmt: skip
        self._network, self._data, self._plan, self._seed = network, data, drawn, seed
        self._options, self._on, self._off = options, on, off
        self._importance, self._objective, self._l1 = importance, objective, l1
        self._total = torch.zeros(network.n_models, dtype=torch.float64, device="cpu")

    def loss(self) -> torch.Tensor:
        """float64 CPU `[models]`."""
        if self._plan.listed >= 0:
            between = _between(self._off)
            if 0 not in self._plan.rows:
                empty = torch.zeros(1, 1, self._data.n_features, dtype=torch.float32, device="cpu")
                self._add(between[0, -1], [_Batch(1, partial(_same, empty))])
            for active, rows in self._plan.rows.items():
                random = np.random.default_rng([self._seed, active])
                magnitudes = _Magnitudes(self._data.magnitude, self._most_active(active), random)
                for features, weight in self._patterns(active, between):
                    self._add(weight, self._pattern_batches(features, rows, magnitudes, random))
        if self._plan.rest:
            self._add_rest(self._plan.listed + 1)
        return self._total

    def _add(self, weight: torch.Tensor, batches: Iterable[_Batch]) -> None:
        """Add weight `[models or 1]` · the mean loss over the batches. All are drawn, whatever the weight."""
        weight = weight.expand(len(self._total))
        needed = bool((weight > 0).any())
        sums, rows = torch.zeros_like(self._total), 0
        for batch in batches:
            if needed:
                sums += self._mean_loss(batch) * batch.rows
            rows += batch.rows
        # What never happens costs nothing, even where it would be infinite.
        self._total += torch.where(weight > 0, weight * (sums / rows), 0.0)

    def _mean_loss(self, batch: _Batch) -> torch.Tensor:
        """Of each model over a batch, float64 CPU `[models]`."""
        device = next(self._network.parameters()).device
        at_once = max(1, _ENTRIES // (batch.rows * self._data.n_features))
        losses = []
        for first in range(0, len(self._total), at_once):
            models = slice(first, first + at_once)
            clean = batch.clean(models).to(device)
            network = self._network if at_once >= len(self._total) else self._network[models]
            target: str | torch.Tensor = self._objective.target
            x = clean
            if batch.noise is not None:
                x = clean + batch.noise.to(device)
                target = network.target_of(clean, self._objective.target)
            importance = self._importance if len(self._importance) == 1 else self._importance[models]
            losses.append(
                network.loss(
                    x,
                    importance=importance.to(device),
                    target=target,
                    loss_reduction=self._objective.loss_reduction,
                    loss=self._objective.loss,
                    l1=0.0 if self._l1 is None else self._l1[models],
                )
            )
        return torch.cat(losses).double().cpu()

    def _most_active(self, active: int) -> int:
        """Features that are active in any pattern of so many units, at most."""
        sizes = sorted((len(options[0]) for options in self._options), reverse=True)
        return sum(sizes[:active])

    def _patterns(self, active: int, between: torch.Tensor) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The features of every pattern of so many active units, and its probability, `[models or 1]`."""
        for units in itertools.combinations(range(len(self._options)), active):
            for chosen in itertools.product(*(range(len(self._options[u])) for u in units)):
                features: list[int] = []
                weight, first = torch.ones_like(between[0, 0]), 0
                for unit, option in zip(units, chosen, strict=True):
                    weight = weight * between[first, unit] * self._on[unit][option]
                    features += self._options[unit][option]
                    first = unit + 1
                yield features, weight * between[first, -1]

    def _pattern_batches(
        self, features: list[int], rows: int, magnitudes: _Magnitudes, random: np.random.Generator
    ) -> Iterator[_Batch]:
        n = self._data.n_features
        for first in range(0, rows, _BATCH):
            x = torch.zeros(1, min(_BATCH, rows - first), n, dtype=torch.float32, device="cpu")
            x[0, :, features] = magnitudes.draw(x.shape[1])[:, : len(features)]
            yield _Batch(x.shape[1], partial(_same, x), self._noise(x.shape[1], random))

    def _noise(self, rows: int, random: np.random.Generator) -> torch.Tensor | None:
        if self._data.noise == 0.0:
            return None
        drawn = random.standard_normal((rows, self._data.n_features), dtype=np.float32)
        return torch.from_numpy(drawn) * self._data.noise

    def _add_rest(self, needed: int) -> None:
        """The samples with `needed` active units or more."""
        at_least = _at_least(self._off, needed)
        random = np.random.default_rng([self._seed, len(self._options) + 1])

        def batches() -> Iterator[_Batch]:
            for first in range(0, self._plan.rest, _BATCH):
                rows = min(_BATCH, self._plan.rest - first)
                uniform = torch.from_numpy(random.random((2, len(self._options), rows)))
                words = random.integers(0, 1 << 32, (rows, self._data.n_features), dtype=np.uint32)
                values = torch.from_numpy(_magnitude(self._data.magnitude, words))
                draw = partial(self._draw, uniform[0], uniform[1], values, at_least)
                yield _Batch(rows, draw, self._noise(rows, random))

        self._add(at_least[0][needed], batches())

    def _draw(
        self,
        gates: torch.Tensor,
        choices: torch.Tensor,
        values: torch.Tensor,
        at_least: list[torch.Tensor],
        models: slice,
    ) -> torch.Tensor:
        """Samples given that enough units are active, unit by unit, `[1 or models, rows, n_features]`.

        gates, choices: uniform variates `[units, rows]`; values: magnitudes `[rows, n_features]`. The units
        still needed are counted down; a unit is active with its probability given that so many are still to
        come.
        """
        own = models if self._off.shape[1] > 1 else slice(None)
        off = self._off[:, own]
        x = torch.zeros(off.shape[1], *values.shape, dtype=torch.float32, device="cpu")
        needed = torch.full(x.shape[:2], len(at_least[0]) - 1, dtype=torch.int64, device="cpu")
        for unit, options in enumerate(self._options):
            here, later = at_least[unit][:, own], at_least[unit + 1][:, own]
            one_less = torch.cat([later[:1], later[:-1]])
            share = torch.where(here > 0, (1 - off[unit]) * one_less / here, 0.0)  # [needed, models]
            active = gates[unit] < share.mT.gather(1, needed)
            needed -= (active & (needed > 0)).to(torch.int64)
            starts = _running(self._on[unit][:, own])  # of each option among the unit's, and the end
            for option, features in enumerate(options):
                on = active
                if len(options) > 1:
                    point = choices[unit] * starts[-1].unsqueeze(1)
                    on = active & (point >= starts[option].unsqueeze(1))
                    if option + 1 < len(options):
                        on = on & (point < starts[option + 1].unsqueeze(1))
                for feature in features:
                    x[:, :, feature] = torch.where(on, values[:, feature], 0.0)
        return x


class _Magnitudes:
    """Points of a scrambled Sobol sequence as magnitudes, in the order in which they are asked for."""

    def __init__(self, magnitude: str, dimensions: int, random: np.random.Generator) -> None:
        self._magnitude, self._dimensions, self._random = magnitude, dimensions, random
        even = min(max(dimensions, 1), _SOBOL_DIMENSIONS)
        self._sobol = SobolEngine(even, scramble=True, seed=int(random.integers(1 << 62)))

    def draw(self, rows: int) -> torch.Tensor:
        """float32 `[rows, dimensions]`."""
        begun = self._sobol.num_generated > 0
        points = self._sobol.draw(rows, dtype=torch.float64)
        if not begun:  # torch rounds the first one to the default dtype
            points[0] = self._sobol.shift.double() / 2**self._sobol.MAXBIT
        # A point is the lower end of a cell of width 2^-30; the word is that of its middle.
        words = (points * 2.0**32).numpy().astype(np.uint32) | np.uint32(2)
        more = self._dimensions - words.shape[1]
        if more > 0:
            words = np.hstack([words, self._random.integers(0, 1 << 32, (rows, more), dtype=np.uint32)])
        return torch.from_numpy(_magnitude(self._magnitude, words))


def _same(x: torch.Tensor, models: slice) -> torch.Tensor:
    """Samples that all models share."""
    return x


def _magnitude(magnitude: str, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Of active features, from uniform words; the distributions of docs/data_stream.md §6."""
    if magnitude == "constant":
        return np.ones(words.shape, dtype=np.float32)
    if magnitude == "half_normal":
        return half_normal(words)
    uniform = (words | np.uint32(1)) * 2.0**-32
    if magnitude == "exponential":
        return (-np.log(uniform)).astype(np.float32)
    if magnitude == "lognormal":
        # By the quantile: a sign from the word's last bit would be the same for all points.
        return torch.special.ndtri(torch.from_numpy(uniform)).exp().numpy().astype(np.float32)
    return (2.0 * uniform - 1.0 if magnitude == "symmetric" else uniform).astype(np.float32)


def _units(data: SparseFeatures) -> tuple[list[Options], list[torch.Tensor], torch.Tensor]:
    """The options of each unit; their probabilities, a list of `[options, models or 1]`, all float64; and
    those of being off, `[units, models or 1]`.
    """
    start, member, kind = data.unit_arrays()
    p = data.probability.mT
    options: list[Options] = []
    on: list[torch.Tensor] = []
    off: list[torch.Tensor] = []
    for unit, one_gate in enumerate(kind != EXCLUSIVE):
        members = [int(j) for j in member[start[unit] : start[unit + 1]]]
        if one_gate:
            options.append([tuple(members)])
            on.append(p[members[:1]])
            off.append(1.0 - on[-1][0])
        else:
            options.append([(j,) for j in members])
            total = _running(p[members])[-1]
            on.append(p[members] / total.clamp(min=1.0))  # the sum may exceed 1 by rounding
            off.append(1.0 - total.clamp(max=1.0))
    return options, on, torch.stack(off)


def _running(terms: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0, 1, … terms along the first dimension, added in their order."""
    sums = [torch.zeros_like(terms[0])]
    for term in terms:
        sums.append(sums[-1] + term)
    return torch.stack(sums)


def _between(off: torch.Tensor) -> torch.Tensor:
    """[a, b]: the probability that the units a … b−1 are off, `[units + 1, units + 1, models or 1]`."""
    units, models = off.shape
    table = torch.ones(units + 1, units + 1, models, dtype=torch.float64, device="cpu")
    for unit in range(units):
        table[: unit + 1, unit + 1] = table[: unit + 1, unit] * off[unit]
    return table


def _at_least(off: torch.Tensor, most: int) -> list[torch.Tensor]:
    """[u][r]: the probability that r units or more of u, u + 1, … are active, r = 0 … most; a list of
    `[most + 1, models or 1]`. All terms are positive: small probabilities are as exact as large ones.
    """
    none = torch.zeros(most + 1, off.shape[1], dtype=torch.float64, device="cpu")
    none[0] = 1.0
    table = [none]
    for gone in off.flip(0):
        later = table[-1]
        here = torch.ones_like(later)
        here[1:] = (1.0 - gone) * later[:-1] + gone * later[1:]
        table.append(here)
    return table[::-1]
