"""The map of a sweep: one colour for every point of two axes, from what is finished by now.

Of each model one number (or two) is kept, so that the map of a million models takes four megabytes, and is
redrawn without reading the store. The numbers are read chunk by chunk, a little at a time (`Atlas.advance`),
while the sweep grows and while somebody looks. Of sweeps with more models than `MODELS` every so manieth
point of an axis is mapped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from toykern import metrics
from toykern.explorer.axis import MapAxis
from toykern.explorer.model import Details, details_of
from toykern.plot.phases import phase_colours
from toykern.results.store_format import StoreError
from toykern.results.stored import Stored

MODELS = 1 << 22
"""Models that a map has at most; of larger sweeps it is coarser."""
PIXELS = 512
"""Points along a side of the picture, at most."""
PHASE, DENSE = "phase of the last feature", "features per dimension"
_LOOK = 1.0  # seconds between two looks which chunks are finished
_WIDE = 30.0  # the largest over the smallest: from there on colours are logarithmic
_GREY = 0.82  # of what is not there yet


class Chunk(Protocol):
    """A chunk of a sweep, as far as it is used here."""

    @property
    def number(self) -> int:
        """Of the chunk."""

    @property
    def region(self) -> tuple[slice, ...]:
        """Where it lies in an array shaped as the grid."""


class Browsed(Stored, Protocol):
    """A sweep, as far as it is looked at (`toykern.Sweep` has it)."""

    @property
    def boxes(self) -> Any:
        """The chunks."""

    @property
    def finished(self) -> np.ndarray:
        """bool `[chunks]`."""

    @property
    def kept(self) -> np.ndarray:
        """bool `[chunks]`: unfinished, with some models."""

    @property
    def result_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one model's results, by name."""

    def read_at(self, name: str, key: Any) -> np.ndarray:
        """The numbers at a key; NaN or the lowest where there are none yet."""


@dataclass(frozen=True)
class View:
    """What the map shows.

    Attributes:
        across, up: names of the axes; `up` is None where the grid has one axis alone.
        colour: one of `Atlas.colours`.
        best: the axis of which each point shows the best model, by loss; None: the one that is chosen.
        at: the place along each other axis.
    """

    across: str
    up: str | None
    colour: str
    best: str | None
    at: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """A picture of a sweep.

    Attributes:
        across, up: its axes; `up` of one place for a grid with one axis.
        number: the flat number of the model that each point shows, int64 `[up, across]`; −1: none yet.
        values: what is coloured, float64 `[up, across]`, NaN where there is nothing; of phases the norm.
        rgb: the colours of phases, uint8 `[up, across, 3]`, or None.
        low, high: the range of the values.
        log: whether they are to be coloured logarithmically.
    """

    across: MapAxis
    up: MapAxis
    number: np.ndarray
    values: np.ndarray
    rgb: np.ndarray | None
    low: float
    high: float
    log: bool


class Atlas:
    """What of a sweep is on the map, and one model at a time.

    Attributes:
        sweep: that is looked at.
        colours: what the map can be coloured by.
        coarse: for each axis, every how manieth point is mapped.
        judge: which loss says what is best: one that was measured, such as "fresh_loss", where there is any,
            else the last that was recorded.
        problem: what could not be read last, or None.
    """

    def __init__(self, sweep: Browsed, models: int = MODELS) -> None:
        self.sweep, self._boxes = sweep, sweep.boxes
        self.coarse = _steps(sweep.grid.shape, models)
        shape = [-(-n // step) for n, step in zip(sweep.grid.shape, self.coarse, strict=True)]
        self._shape = tuple(shape)
        self._axes = {
            name: MapAxis.of(name, values[::step])
            for (name, values), step in zip(sweep.grid.coords.items(), self.coarse, strict=True)
        }
        self._sources = _sources(sweep)
        self.colours = tuple(self._sources)
        one = [name for name, shape in sweep.result_shapes.items() if shape == () and "loss" in name]
        self.judge = one[0] if one else "loss"
        along = [np.arange(n) * step for n, step in zip(self._shape, self.coarse, strict=True)]
        self._numbers = np.ravel_multi_index(np.ix_(*along), sweep.grid.shape)
        self._arrays: dict[str, np.ndarray] = {}
        self._have: dict[str, np.ndarray] = {}
        self._state = np.zeros(len(self._boxes), dtype=np.int8)  # 1: some models, 2: finished
        self._looked = -math.inf
        self.problem: str | None = None

    def first_view(self) -> View:
        """What is shown first: the first two axes that are not seeds, by phase if there are weights."""
        dims = self.sweep.grid.dims
        best = "seed" if "seed" in dims and len(dims) > 1 else None
        wide = sorted((d for d in dims if d != best), key=lambda d: len(self._axes[d].values) == 1)
        colour = PHASE if PHASE in self.colours else "loss"
        up = next((d for d in wide[1:]), None)
        return View(wide[0], up, colour, best, dict.fromkeys(dims, 0))

    def check(self, view: View) -> View:
        """The view with what cannot be at once put right: two equal axes, a best over one that is shown."""
        dims = self.sweep.grid.dims
        if view.up == view.across:
            view = replace(view, up=next((d for d in dims if d not in (view.across, view.best)), None))
        if view.best in (view.across, view.up):
            view = replace(view, best=None)
        places = {name: view.at.get(name, 0) % len(self._axes[name].values) for name in dims}
        return replace(view, at=places)

    def axis(self, name: str) -> MapAxis:
        """An axis as the map has it."""
        return self._axes[name]

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks that are finished, as far as is known, and all."""
        return int((self._state == 2).sum()), len(self._boxes)

    def advance(self, colour: str, seconds: float = 0.1) -> bool:
        """Read on for about so long, at least a chunk; whether anything has changed on a map so coloured.

        What cannot be read is `problem`, and is tried again when its chunk is finished anew.
        """
        changed, end = False, time.monotonic() + seconds
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            try:
                finished, kept = self.sweep.finished, self.sweep.kept
            except StoreError as error:  # it was removed
                changed, self.problem = self.problem != str(error), str(error)
                return changed
            state = np.where(finished, 2, kept.astype(np.int8))
            changed, self._state = bool((state != self._state).any()), state
        for name in self._needed(colour):
            have = self._have.setdefault(name, np.zeros(len(self._boxes), dtype=np.int8))
            for number in np.flatnonzero(have < self._state).tolist():
                self._read(name, number)
                have[number], changed = self._state[number], True
                if time.monotonic() > end:
                    return changed
        return changed

    def waiting(self, colour: str) -> bool:
        """Whether there is more to read at once for a map so coloured."""
        none = np.zeros_like(self._state)
        return any((self._have.get(name, none) < self._state).any() for name in self._needed(colour))

    def map(self, view: View) -> Map:
        """The picture of a view, from what has been read."""
        dims = self.sweep.grid.dims
        key = tuple(
            slice(None)
            if name in (view.across, view.up, view.best)
            else self._axes[name].order[view.at[name]]
            for name in dims
        )
        left = [name for name in dims if name in (view.across, view.up, view.best)]
        wanted = [name for name in (view.up, view.across, view.best) if name is not None]

        def cut(array: np.ndarray) -> np.ndarray:
            """As `[up, across, best]`."""
            found = array[key].transpose([left.index(name) for name in wanted])
            found = found if view.up is not None else found[None]
            return found if view.best is not None else found[..., None]

        parts = [cut(self._array(name)) for name in self._parts(view.colour)]
        ranked, diverged = cut(self._array(self.judge)), cut(self._array("diverged_at")) >= 0
        ranked = np.where(np.isfinite(ranked) & ~diverged, ranked, np.inf)
        chosen = ranked.argmin(axis=2)[..., None] if view.best is not None else np.zeros((1, 1, 1), np.int64)
        chosen = np.broadcast_to(chosen, (*ranked.shape[:2], 1))
        parts = [np.take_along_axis(part, chosen, axis=2)[..., 0].astype(np.float64) for part in parts]
        there = ~np.isnan(cut(self._array(self.judge))) | diverged
        there = np.take_along_axis(there, chosen, axis=2)[..., 0]
        numbers = np.take_along_axis(cut(self._numbers), chosen, axis=2)[..., 0]
        numbers = np.where(there, numbers, -1)

        across, up = self._axes[view.across], self._axes[view.up] if view.up is not None else None
        rows = up.order if up is not None else np.zeros(1, np.int64)
        steps = [-(-len(rows) // PIXELS), -(-len(across.order) // PIXELS)]
        order = np.ix_(rows[:: steps[0]], across.order[:: steps[1]])
        up = MapAxis("", np.zeros(1), np.zeros(1, np.int64), "steps") if up is None else up.thinned(steps[0])
        parts, numbers = [part[order] for part in parts], numbers[order]
        return _coloured(across.thinned(steps[1]), up, numbers, parts, view.colour)

    def details(self, number: int) -> Details:
        """All of one model, by its flat number in the whole grid.

        Raises:
            StoreError: it is not finished, or damaged.
        """
        return details_of(self.sweep, number)

    def places(self, number: int) -> dict[str, int]:
        """Where on the map's axes a model lies, as far as it is mapped."""
        found = np.unravel_index(number, self.sweep.grid.shape)
        return {
            name: int(np.flatnonzero(self._axes[name].order == int(place) // step)[0])
            for name, place, step in zip(self.sweep.grid.dims, found, self.coarse, strict=True)
        }

    def _parts(self, colour: str) -> tuple[str, ...]:
        return self._sources[colour].parts

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.full(self._shape, np.nan, dtype=np.float32)
        return self._arrays[name]

    def _needed(self, colour: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._parts(colour), self.judge, "diverged_at")))

    def _read(self, name: str, number: int) -> None:
        """The numbers of a chunk that is there."""
        where, key = [], []
        for stretch, step in zip(self._boxes[number].region, self.coarse, strict=True):
            first = -(-stretch.start // step)
            where.append(slice(first, -(-stretch.stop // step)))
            key.append(slice(first * step, stretch.stop, step))
        if any(part.start >= part.stop for part in where):
            return
        source = next(s for s in self._sources.values() if name in s.parts)
        trailing = self.sweep.result_shapes[source.array]
        try:
            rest = [slice(None)] * len(trailing)
            if source.last and trailing:
                rest[0] = slice(trailing[0] - 1, trailing[0])
            read = self.sweep.read_at(source.array, [*key, *rest])
        except StoreError as error:
            self.problem = str(error)
            return
        flat = read.reshape(-1, *read.shape[len(key) :])
        for part, values in zip(source.parts, source.reduce(flat), strict=True):
            self._array(part)[tuple(where)] = values.reshape(read.shape[: len(key)])
            have = self._have.setdefault(part, np.zeros(len(self._boxes), dtype=np.int8))
            have[number] = self._state[number]


@dataclass(frozen=True)
class _Source:
    """Where a colour comes from.

    Attributes:
        parts: names of the numbers of a model that it takes.
        array: of the store that they are made of.
        last: of its first dimension the last place alone: the last record.
        reduce: from `[models, …]` to one `[models]` for each part.
    """

    parts: tuple[str, ...]
    array: str
    last: bool
    reduce: Callable[[np.ndarray], list[np.ndarray]]


def _sources(sweep: Browsed) -> dict[str, _Source]:
    """All colours of a sweep."""
    found = {"loss": _Source(("loss",), "loss", True, _mean)}
    shapes = sweep.result_shapes
    weight = next((name for name in ("weight", "encoder") if name in shapes), None)
    if weight is not None:
        found[PHASE] = _Source(("norm", "superposition"), weight, False, _phase)
        found[DENSE] = _Source((DENSE,), weight, False, _dense)
    recorded = set(sweep.attributes["settings"].get("record", ()))
    for name in shapes:
        plain = "/" not in name and not name.endswith("_snapshots") and name != "diverged_at"
        if plain and name not in (
            *found,
            "weight",
            "encoder",
            "decoder",
            "bias",
            "hidden_bias",
            "connections",
        ):
            found[name] = _Source((name,), name, name in recorded, _mean)
    found["diverged at step"] = _Source(("diverged_at",), "diverged_at", False, _diverged)
    return found


def _mean(values: np.ndarray) -> list[np.ndarray]:
    return [values.reshape(len(values), -1).astype(np.float64).mean(axis=1)]


def _diverged(values: np.ndarray) -> list[np.ndarray]:
    """NaN for those that did not."""
    return [np.where(values >= 0, values, np.nan)]


def _phase(weight: np.ndarray) -> list[np.ndarray]:
    tensor = torch.from_numpy(np.ascontiguousarray(weight))
    return [
        tensor[..., -1].double().norm(dim=-1).numpy(),
        metrics.superposition(tensor)[:, -1].numpy(),
    ]


def _dense(weight: np.ndarray) -> list[np.ndarray]:
    return [metrics.features_per_dimension(torch.from_numpy(np.ascontiguousarray(weight))).numpy()]


def _steps(shape: tuple[int, ...], models: int) -> tuple[int, ...]:
    """Every how manieth point of each axis is mapped: the longest are thinned first."""
    steps = [1] * len(shape)
    while math.prod(-(-n // step) for n, step in zip(shape, steps, strict=True)) > models:
        longest = max(range(len(shape)), key=lambda axis: -(-shape[axis] // steps[axis]))
        steps[longest] += 1
    return tuple(steps)


def _coloured(across: MapAxis, up: MapAxis, number: np.ndarray, parts: list[np.ndarray], colour: str) -> Map:
    values = np.where(number >= 0, parts[0], np.nan)
    rgb = None
    if colour == PHASE:
        shades = phase_colours(values, np.where(number >= 0, parts[1], np.nan))
        shades[np.isnan(values)] = _GREY
        rgb = np.round(255 * shades).astype(np.uint8)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    log = low > 0 and high / low > _WIDE
    if low == high:
        low, high = (low - 0.5, high + 0.5) if not log else (low, high)
    return Map(across, up, number, values, rgb, low, high, log)
