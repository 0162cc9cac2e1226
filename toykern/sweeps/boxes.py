"""Chunks of a grid: boxes of points whose models are neighbours in the flat order.

A chunk is a box rather than any stretch of models, so that it is one region of every array that is labelled
by the grid, and no two chunks share a piece of a stored array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from toykern.arguments.errors import check_positive_int
from toykern.arguments.grids import Grid


@dataclass(frozen=True)
class Box:
    """One chunk of a grid.

    Attributes:
        number: of the chunk, from 0, in the flat order of the models.
        start: its first point, along each axis.
        shape: its points along each axis.
        first: flat number of its first model; they are `first` … `first + n_models − 1`.
    """

    number: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    first: int

    @property
    def n_models(self) -> int:
        """Models of this chunk."""
        return math.prod(self.shape)

    @property
    def region(self) -> tuple[slice, ...]:
        """Where it lies in an array shaped as the grid."""
        return tuple(
            slice(start, start + points) for start, points in zip(self.start, self.shape, strict=True)
        )

    @property
    def index(self) -> torch.Tensor:
        """Flat numbers of its models in the whole grid, int64 `[n_models]`."""
        return torch.arange(self.first, self.first + self.n_models, dtype=torch.int64, device="cpu")

    def points(self, whole: Grid) -> Grid:
        """The grid of these points alone."""
        axes = whole.axes
        return Grid({name: axes[name][where] for name, where in zip(whole.dims, self.region, strict=True)})


@dataclass(frozen=True)
class Part:
    """Some models of a chunk: all combinations of places along each axis.

    Attributes:
        number: of the chunk.
        places: along each axis of the whole grid, ascending.
        shape: of the whole grid.
    """

    number: int
    places: tuple[np.ndarray, ...]
    shape: tuple[int, ...]

    @property
    def n_models(self) -> int:
        """Models of this part."""
        return math.prod(map(len, self.places))

    @property
    def index(self) -> torch.Tensor:
        """Flat numbers of its models in the whole grid, int64 `[n_models]`."""
        return torch.from_numpy(np.ravel_multi_index(np.ix_(*self.places), self.shape).reshape(-1))

    def points(self, whole: Grid) -> Grid:
        """The grid of these points alone."""
        axes = whole.axes
        return Grid({name: axes[name][at] for name, at in zip(whole.dims, self.places, strict=True)})


def box_shape(shape: tuple[int, ...], chunk: int) -> tuple[int, ...]:
    """The largest box of at most `chunk` models that is a stretch of the flat order, evened out.

    >>> box_shape((256, 256, 16), 65_536)
    (16, 256, 16)
    >>> box_shape((4, 10), 8)
    (1, 5)
    """
    room = check_positive_int("chunk", chunk)
    box = [1] * len(shape)
    for axis in reversed(range(len(shape))):
        points = min(shape[axis], room)
        if points < shape[axis]:
            parts = -(-shape[axis] // points)
            box[axis] = -(-shape[axis] // parts)
            break
        box[axis] = points
        room //= points
    return tuple(box)


def boxes_of(shape: tuple[int, ...], box: tuple[int, ...]) -> list[Box]:
    """All chunks of a grid, in the flat order.

    >>> [b.shape for b in boxes_of((4, 10), (1, 7))][:3]
    [(1, 7), (1, 3), (1, 7)]
    """
    found: list[Box] = []
    for start in product(*(range(0, points, step) for points, step in zip(shape, box, strict=True))):
        size = tuple(min(step, points - at) for at, step, points in zip(start, box, shape, strict=True))
        first = 0
        for at, points in zip(start, shape, strict=True):
            first = first * points + at
        found.append(Box(len(found), start, size, first))
    return found


def models_of(boxes: Iterable[Box], chosen: np.ndarray) -> int:
    """How many models the chunks have that `chosen`, bool `[chunks]`, is true of."""
    return sum(box.n_models for box in boxes if chosen[box.number])
