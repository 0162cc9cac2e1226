"""Packings of n features into d dimensions: k orthogonal subspaces, and almost orthogonal directions in each.

A subspace of d/k dimensions holds n/k features whose cosines stay below ε, by the lemma of Johnson and
Lindenstrauss (with the constants of Dasgupta and Gupta 2003) where

    d/k = 4 ln(n/k) / (ε²/2 − ε³/3),

and the n²/k pairs within subspaces interfere as ε^p: the loss is (n²/k) ε^p up to a constant factor, p being
the moment of the interference that the loss sees (2 for a squared error that is linear in it; higher where
an output activation hides what is small). k = 1 is one packing of all features, larger k a tegum product of
smaller ones.

Arguments are numbers or arrays that broadcast with each other; results are float64 arrays. k is from 1 to the
smaller of n and d, and need not be whole.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toykern.arguments.broadcast import real_array
from toykern.arguments.errors import describe

_LARGEST = 1 / 6
"""ε²/2 − ε³/3 at ε = 1: there is no ε in (0, 1) for more."""

_SCAN = 513
"""Numbers of subspaces that are looked at before the minimum is narrowed down."""


def packing_interference(n: ArrayLike, d: ArrayLike, k: ArrayLike = 1.0) -> NDArray[np.float64]:
    """ε, from 0 to 1: the interference of n features in k orthogonal subspaces of d dimensions in all.

    The solution of 4 (k/d) ln(n/k) = ε²/2 − ε³/3. 0 for k = n, one feature a subspace. NaN where no ε up to 1
    solves it: the features are too many for what the lemma says of so few dimensions, d/k < 24 ln(n/k).

    ValueError or TypeError names the argument: n and d must be finite and at least 1, k from 1 to the smaller
    of n and d.

    >>> packing_interference(1000, 400, [1, 2, 4]).round(4).tolist()
    [0.4427, 0.6704, nan]
    """
    return _interference(*_check(n=n, d=d, k=k))


def packing_loss(
    n: ArrayLike, d: ArrayLike, k: ArrayLike = 1.0, moment: ArrayLike = 2.0
) -> NDArray[np.float64]:
    """(n²/k) ε^p, p the `moment`: the loss of n features in k orthogonal subspaces, up to a constant factor.

    NaN where `packing_interference` is. `moment` must be finite and at least 0, the others as there.

    >>> packing_loss(1000, 400, [1, 2], moment=4).round(0).tolist()
    [38419.0, 101018.0]
    """
    n, d, k, p = _check(n=n, d=d, k=k, moment=moment)
    return np.asarray(n**2 / k * _power(_interference(n, d, k), p), dtype=np.float64)


def packing_slope(
    n: ArrayLike, d: ArrayLike, k: ArrayLike = 1.0, moment: ArrayLike = 2.0
) -> NDArray[np.float64]:
    """The derivative of `packing_loss` with respect to k, of the same arguments.

    Below 0 where more and smaller subspaces are better. Infinite at ε = 1, and at k = n for a moment below 2,
    unless the moment is 0; NaN where the loss is.

    >>> packing_slope(1000, 400, 1.0, moment=[0.5, 4]).round(0).tolist()
    [-485440.0, 44697.0]
    """
    n, d, k, p = _check(n=n, d=d, k=k, moment=moment)
    return _slope(n, d, k, p, _interference(n, d, k))


def best_packing(n: ArrayLike, d: ArrayLike, moment: ArrayLike = 2.0) -> NDArray[np.float64]:
    """The number of subspaces k with the least `packing_loss`, from 1 to the smaller of n and d.

    A real number, as the derivative has it; compare `packing_loss` of the whole numbers around it. 1 for a
    high moment, more for a low one. NaN where no k has a solution. Arguments as `packing_loss` takes them.

    >>> best_packing(1000, 400, moment=[1, 4]).round(3).tolist()
    [2.516, 1.0]
    """
    arrays = _check(n=n, d=d, moment=moment)
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    flat = zip(*(np.broadcast_to(array, shape).ravel().tolist() for array in arrays), strict=True)
    return np.array([_best(*one) for one in flat], dtype=np.float64).reshape(shape)


def _interference(n: Any, d: Any, k: Any) -> NDArray[np.float64]:
    """The root in [0, 1] of ε²/2 − ε³/3 = c, without cancellation: ε = 1/2 + cos θ turns the equation into
    cos 3θ = 1 − 12 c, and with φ = arccos(1 − 12 c) = 2 arcsin √(6c) the root is θ = (φ + 4π)/3."""
    c = _demand(n, d, k)
    with np.errstate(invalid="ignore"):
        third = 2 / 3 * np.arcsin(np.sqrt(c / _LARGEST))  # NaN above the largest
    return np.asarray(np.sin(third / 2) ** 2 + np.sqrt(3) / 2 * np.sin(third), dtype=np.float64)


def _demand(n: Any, d: Any, k: Any) -> Any:
    return 4 * k * np.log(n / k) / d


def _slope(n: Any, d: Any, k: Any, p: Any, e: Any) -> NDArray[np.float64]:
    """(n²/k²) (p k ε^(p−1) dε/dk − ε^p), where (ε − ε²) dε/dk = dc/dk = 4 (ln(n/k) − 1)/d."""
    change = 4 * (np.log(n / k) - 1) / d
    with np.errstate(divide="ignore", invalid="ignore"):
        risen = p * k * change * e ** (p - 2) / (1 - e)
    return np.asarray(n**2 / k**2 * (np.where(p == 0, 0.0, risen) - _power(e, p)), dtype=np.float64)


def _power(e: Any, p: Any) -> Any:
    """ε^p, NaN for NaN even where p is 0."""
    return np.where(np.isnan(e), np.nan, e**p)


def _best(n: float, d: float, p: float) -> float:
    candidates = [k for low, high in _solvable(n, d) for k in _minima(n, d, p, low, high)]
    if not candidates:
        return float("nan")
    return candidates[int(np.argmin(_log_loss(n, d, np.array(candidates), p)))]


def _log_loss(n: float, d: float, k: Any, p: float) -> Any:
    """Without the factor n²: a loss itself may be too small for a double."""
    with np.errstate(divide="ignore"):
        return (p * np.log(_clipped(n, d, k)) if p else 0.0) - np.log(k)


def _clipped(n: float, d: float, k: Any) -> Any:
    """ε where it is known that there is one, so that rounding at the end of the range makes no NaN."""
    return np.where(_demand(n, d, k) < _LARGEST, _interference(n, d, k), 1.0)


def _solvable(n: float, d: float) -> list[tuple[float, float]]:
    """The ranges of k where there is an ε: k ln(n/k) rises up to k = n/e and falls from there on."""
    last = min(n, d)
    peak = min(max(n / math.e, 1.0), last)
    ranges = []
    for low, high in ((1.0, peak), (peak, last)):
        inside = [_demand(n, d, k) <= _LARGEST for k in (low, high)]
        if all(inside):
            ranges.append((low, high))
        elif any(inside):
            good, bad = (low, high) if inside[0] else (high, low)
            while True:
                middle = (good + bad) / 2
                if middle in (good, bad):
                    break
                good, bad = (middle, bad) if _demand(n, d, middle) <= _LARGEST else (good, middle)
            ranges.append((min(low, good), good) if inside[0] else (good, high))
    return ranges


def _minima(n: float, d: float, p: float, low: float, high: float) -> list[float]:
    """The ends of a range of k, and the minimum beside the least of a scan, where the slope is 0."""
    scan = np.geomspace(low, high, _SCAN).clip(low, high)
    least = int(np.argmin(_log_loss(n, d, scan, p)))
    left, right = float(scan[max(least - 1, 0)]), float(scan[min(least + 1, _SCAN - 1)])
    found = [low, high, float(scan[least])]
    while True:
        middle = (left + right) / 2
        if not left < middle < right:
            return [*found, middle]
        left, right = (
            (middle, right) if float(_slope(n, d, middle, p, _clipped(n, d, middle))) < 0 else (left, middle)
        )


def _check(**arguments: Any) -> tuple[NDArray[np.float64], ...]:
    arrays = {
        name: _numbers(name, value, 0.0 if name == "moment" else 1.0) for name, value in arguments.items()
    }
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(str(list(array.shape)) for array in arrays.values())
        raise ValueError(f"{', '.join(arrays)} must broadcast with each other, not have {shapes}") from None
    if "k" in arrays and not bool((arrays["k"] <= np.minimum(arrays["n"], arrays["d"])).all()):
        raise ValueError(f"k must be from 1 to the smaller of n and d, not {describe(arguments['k'])}")
    return tuple(arrays.values())


def _numbers(name: str, value: Any, least: float) -> NDArray[np.float64]:
    array = real_array(name, value)
    if not bool((np.isfinite(array) & (array >= least)).all()):
        raise ValueError(f"{name} must be finite and at least {least:g}, not {describe(value)}")
    return array
