"""Grids of hyper-parameters: the Cartesian product of named axes as flat per-model arrays.

A grid of 64 importances, 64 densities and 4 seeds is 16,384 models standing in one ensemble. `toykern.fit`
wants one value per model; a person wants the result back with the axes they asked for. `Grid` holds both
views: it stores only the axes, expands them on demand, and folds results back without copying.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.errors import MAX_SIZE, check_dense_tensor, describe
from toykern.arguments.memory import check_free_memory

__all__ = ["Grid", "grid"]

# Dimension and variable names of the result arrays (Run.to_xarray), with which an axis would collide.
_RESULT_NAMES = frozenset(
    {"model", "record", "hidden", "feature", "snapshot", "loss", "diverged_at", "chunk"}
)

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, np.ndarray)


class Grid:
    """The Cartesian product of named axes; made by `grid`.

    Attributes:
        dims: names of the axes, in order; the last varies fastest.
        coords: per axis a 1-D NumPy array of its values (float64 or int64); for an axis of vectors, their
            indices 0, 1, ….
        shape: number of points of each axis.
        n_models: the product of `shape`.

    Every axis is also an attribute: `g.importance` is the flat tensor to hand to `toykern.fit`, float64 or
    int64 `[models]`, or `[models, n_features]` for an axis of vectors. Each access builds a fresh tensor; the
    grid itself stores the axes alone, so a grid of millions of models costs nothing until it is expanded.

    Example:
        >>> import toykern as tk
        >>> g = tk.grid(importance=[0.1, 1.0, 10.0], seed=range(2))
        >>> g.shape, g.n_models
        ((3, 2), 6)
        >>> g.importance.tolist()
        [0.1, 0.1, 1.0, 1.0, 10.0, 10.0]
        >>> g.unflatten(g.seed).shape
        torch.Size([3, 2])
        >>> g.index(importance=1.0)
        array([2, 3])
    """

    __slots__ = ("_axes",)

    _axes: dict[str, np.ndarray]

    def __init__(self, axes: Mapping[str, Any]) -> None:
        if not isinstance(axes, Mapping):
            raise TypeError(f"axes must be a mapping from names to values, not {describe(axes)}")
        if not axes:
            raise ValueError(
                "grid() needs at least one axis, for example grid(importance=[0.1, 1, 10], seed=range(4))"
            )
        self._axes = {name: _axis_values(name, values) for name, values in axes.items()}

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes in order; the last varies fastest in the flat arrays."""
        return tuple(self._axes)

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Per axis its coordinate values, 1-D; for an axis of vectors the index of each vector."""
        return {
            name: values.copy() if values.ndim == 1 else np.arange(len(values), dtype=np.int64)
            for name, values in self._axes.items()
        }

    @property
    def axes(self) -> dict[str, np.ndarray]:
        """Per axis its values: `[points]`, or `[points, n_features]` for an axis of vectors."""
        return {name: values.copy() for name, values in self._axes.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points of each axis, in the order of `dims`."""
        return tuple(len(values) for values in self._axes.values())

    @property
    def n_models(self) -> int:
        """Number of models: the product of `shape`."""
        return math.prod(self.shape)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._axes:
            raise AttributeError(f"this grid has no axis {name!r}; its axes are {', '.join(self._axes)}")
        values = torch.from_numpy(self._axes[name].copy())
        trailing = values.shape[1:]
        check_free_memory(
            f"{name} of {self.n_models:,} models",
            8 * self.n_models * trailing.numel(),
            "take a grid of fewer points, or a part of it at a time (toykern.sweep)",
        )
        at = self.dims.index(name)
        aligned = values.reshape([-1 if k == at else 1 for k in range(len(self.dims))] + list(trailing))
        return aligned.expand(*self.shape, *trailing).reshape(self.n_models, *trailing)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._axes]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Grid, (self._axes,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((self.dims, self.shape))

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}={_describe(values)}" for name, values in self._axes.items())
        return f"<toykern.Grid {' × '.join(map(str, self.shape))} = {self.n_models:,} models: {axes}>"

    def unflatten(self, flat: ArrayOrTensor) -> ArrayOrTensor:
        """Fold a per-model tensor or array `[models, …]` into `[*shape, …]`: a view where possible.

        Raises:
            ValueError: the first dimension is not the number of models.
        """
        if not isinstance(flat, Tensor | np.ndarray):
            raise TypeError(f"flat must be a tensor or an array [{self.n_models}, …], not {describe(flat)}")
        if isinstance(flat, Tensor) and flat.layout != torch.strided:
            raise TypeError(f"flat must be a dense tensor, not {describe(flat)} of the layout {flat.layout}")
        if flat.ndim == 0 or flat.shape[0] != self.n_models:
            raise ValueError(
                f"flat must have {self.n_models} models in its first dimension, not {describe(flat)}"
            )
        return flat.reshape(self.shape + tuple(flat.shape[1:]))

    def index(self, **selectors: Any) -> np.ndarray:
        """Flat model numbers of the selected points, int64, shaped as the dimensions that remain.

        A selector is one value of its axis (the axis disappears) or a sequence of values (the axis stays, in
        the order asked for); axes not named stay whole. Floats match to one part in 10⁹. Axes of vectors are
        selected by index.

        Raises:
            ValueError: an unknown axis, or a value that is not on the axis (the message names the nearest
                one).

        Example:
            >>> import toykern as tk
            >>> g = tk.grid(importance=[0.1, 1.0, 10.0], seed=range(2))
            >>> int(g.index(importance=10.0, seed=1))
            5
        """
        for name in selectors:
            if name not in self._axes:
                raise ValueError(f"index: no axis {name!r}; the axes are {', '.join(self._axes)}")
        flat = np.arange(self.n_models, dtype=np.int64).reshape(self.shape)
        coords = self.coords
        # From the last axis to the first, so that dropping an axis does not move those still to come.
        for at, name in reversed(list(enumerate(self.dims))):
            if name in selectors:
                flat = np.take(flat, _positions(name, coords[name], selectors[name]), axis=at)
        return np.asarray(flat)

    def config(self) -> dict[str, Any]:
        """The grid as plain lists, dictionaries and numbers (JSON keeps it exactly); see `from_config`."""
        return {
            "axes": [
                {"name": name, "dtype": str(values.dtype), "values": values.tolist()}
                for name, values in self._axes.items()
            ]
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Grid:
        """The grid that `config` described; ValueError or TypeError where it describes none."""
        axes = config.get("axes") if isinstance(config, Mapping) else None
        keys = {"name", "dtype", "values"}
        if not isinstance(axes, list) or not all(isinstance(a, Mapping) and set(a) == keys for a in axes):
            raise ValueError(f"config must be what Grid.config() gives, not {describe(config)}")
        return cls({axis["name"]: np.asarray(axis["values"], dtype=axis["dtype"]) for axis in config["axes"]})


def grid(**axes: Any) -> Grid:
    """The Cartesian product of the named axes, in keyword order, the last varying fastest.

    Args:
        **axes: one-dimensional numbers (list, range, NumPy array or tensor) per axis; integers stay int64,
            everything else becomes float64. A two-dimensional array `[points, n_features]` is an axis of
            vectors (say, one importance per feature): its points are the rows.

    Returns:
        A `Grid`, whose attributes are the flat per-model arrays: `g.importance`, `g.seed`, ….

    Raises:
        TypeError: an axis that is not numeric.
        ValueError: no axes; an axis that is empty, repeats a value, is not finite, or has the wrong number of
            dimensions; a name that is not an identifier or belongs to something else.

    Example:
        >>> import toykern as tk
        >>> g = tk.grid(importance=[1.0, 2.0], probability=[0.1, 0.5], seed=range(3))
        >>> g.dims, g.n_models
        (('importance', 'probability', 'seed'), 12)
        >>> g.probability[:6].tolist()
        [0.1, 0.1, 0.1, 0.5, 0.5, 0.5]
    """
    return Grid(axes)


def _axis_values(name: str, values: Any) -> np.ndarray:
    """Check one axis and bring it to int64 or float64, 1-D or 2-D."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"grid: axes must have Python identifiers as names, not {describe(name)}")
    if name in _RESULT_NAMES or name.startswith("_") or hasattr(Grid, name):
        raise ValueError(
            f"grid: an axis cannot be called {name!r}, a name that grids and their results use themselves"
        )
    if isinstance(values, range):
        _check_length(name, values)
    if isinstance(values, Tensor):
        values = check_dense_tensor(f"axis {name!r} of the axes", values).detach().cpu().numpy()
    try:
        array = np.asarray(list(values) if isinstance(values, (Sequence, range)) else values)
    except ValueError as error:
        raise ValueError(f"axis {name!r} of the axes has rows of different lengths") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"axis {name!r} of the axes must hold integers or floats, got {values!r:.60}")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"axis {name!r} of the axes must be one-dimensional, or [points, n_features] for an axis of "
            f"vectors, got shape {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"axis {name!r} of the axes is empty")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"axis {name!r} of the axes holds {array.max()}, larger than int64 can hold")
    array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0]
        raise ValueError(f"axis {name!r} of the axes must be finite, got {array[bad]} at position {bad}")
    unique, counts = np.unique(array, axis=0, return_counts=True)
    if len(unique) < len(array):
        raise ValueError(f"axis {name!r} of the axes holds {unique[counts > 1][0]} more than once")
    array.setflags(write=False)
    return array


def _check_length(name: str, values: range) -> None:
    """A range takes no memory, its numbers do: ValueError or MemoryError before there are too many."""
    points = max(0, -((values.start - values.stop) // values.step))  # len() takes 63 bits at most
    if points > MAX_SIZE:
        raise ValueError(
            f"axis {name!r} of the axes must have at most {MAX_SIZE} points, not {describe(values)}"
        )
    check_free_memory(
        f"axis {name!r} of the axes, with {points:,} points,", 64 * points, "give it fewer points"
    )


def _positions(name: str, coords: np.ndarray, selector: Any) -> np.ndarray:
    """Positions of the wanted values on an axis, shaped like the selector (a scalar or one dimension)."""
    if isinstance(selector, Tensor):
        selector = check_dense_tensor(f"index: {name}", selector).detach().cpu()
    try:
        wanted = np.asarray(selector)
    except ValueError:
        raise ValueError(
            f"index: {name} must be a number or a sequence of numbers, not {describe(selector)}"
        ) from None
    if wanted.dtype.kind not in "iuf" or wanted.ndim > 1 or wanted.size == 0:
        raise ValueError(
            f"index: {name} must be a number or a non-empty sequence of numbers, got {selector!r:.60}"
        )
    positions = np.empty(wanted.shape, dtype=np.int64)
    for at, value in np.ndenumerate(wanted):
        nearest = int(np.argmin(np.abs(coords - value)))
        exact = coords.dtype.kind == wanted.dtype.kind == "i"
        if coords[nearest] != value and (
            exact or not np.isclose(coords[nearest], value, rtol=1e-9, atol=0.0)
        ):
            raise ValueError(f"index: {name} has no point {value}; the nearest is {coords[nearest]}")
        positions[at] = nearest
    return positions


def _describe(values: np.ndarray) -> str:
    if values.ndim == 2:
        return f"{len(values)} vectors of {values.shape[1]}"
    if len(values) == 1:
        return f"{values[0]:g}" if values.dtype.kind == "f" else f"{values[0]}"
    form = "g" if values.dtype.kind == "f" else "d"
    return f"{values[0]:{form}}…{values[-1]:{form}}"
