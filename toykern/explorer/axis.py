"""How the points of one axis of a grid lie on a map: evenly, as far apart as their numbers allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

_EVEN = 1e-6  # relative: steps that differ by less are the same
_TICKS = 7  # at most, where there is room for few


@dataclass(frozen=True)
class MapAxis:
    """One axis of a map. Places count from 0, in the order of the map; points lie at whole numbers.

    Attributes:
        name: of the grid's axis.
        values: of its points as the map has them, ascending.
        order: the place in the grid of each of them.
        scale: "linear" or "log" where the points are evenly spaced so, else "steps".
    """

    name: str
    values: np.ndarray
    order: np.ndarray
    scale: Literal["linear", "log", "steps"]

    @staticmethod
    def of(name: str, values: np.ndarray) -> MapAxis:
        """The axis of a grid, from its values.

        >>> MapAxis.of("density", np.array([1.0, 0.01, 0.1])).scale
        'log'
        """
        order = np.argsort(values, kind="stable")
        values = values[order].astype(np.float64)
        return MapAxis(name, values, order, _scale(values))

    def thinned(self, step: int) -> MapAxis:
        """The same with every so manieth point."""
        values = self.values[::step]
        return MapAxis(self.name, values, self.order[::step], self.scale if len(values) > 2 else "steps")

    def place(self, at: float) -> int:
        """The point nearest to a place on the map."""
        return min(max(round(at), 0), len(self.values) - 1) if math.isfinite(at) else 0

    def ticks(self) -> dict[float, str]:
        """Marks: what stands at some places. Round numbers where the points are evenly spaced."""
        first, last = float(self.values[0]), float(self.values[-1])
        if self.scale == "log" and last / first >= 5:
            step = math.log(last / first) / (len(self.values) - 1)
            return {math.log(v / first) / step: _number(v) for v in _round_log(first, last)}
        if self.scale == "linear" and len(self.values) > _TICKS:
            step = (last - first) / (len(self.values) - 1)
            return {(v - first) / step: _number(v) for v in _round(first, last)}
        every = -(-len(self.values) // _TICKS)
        return {float(at): _number(self.values[at]) for at in range(0, len(self.values), every)}


def _scale(values: np.ndarray) -> Literal["linear", "log", "steps"]:
    if len(values) < 2:
        return "steps"
    for name, kind in (("linear", values), ("log", np.log(values) if (values > 0).all() else None)):
        if kind is not None:
            steps = np.diff(kind)
            if np.ptp(steps) <= _EVEN * abs(kind[-1] - kind[0]):
                return name  # type: ignore[return-value]
    return "steps"


def _round(first: float, last: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, about five of them."""
    rough = (last - first) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [k * step for k in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)]


def _round_log(first: float, last: float) -> list[float]:
    """Powers of ten between two numbers; with 2 and 5 times these where there are few."""
    low, high = math.floor(math.log10(first)), math.ceil(math.log10(last))
    kinds = (1,) if math.log10(last / first) > 3 else (1, 3) if math.log10(last / first) > 1.5 else (1, 2, 5)
    found = [k * 10.0**n for n in range(low, high + 1) for k in kinds]
    return [v for v in found if first * (1 - 1e-9) <= v <= last * (1 + 1e-9)]


def _number(value: float) -> str:
    return f"{value:.4g}"
