"""A run of some of another's models: which they are by the labels of a grid, and all that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.errors import check_choice, check_dense_tensor, describe
from toykern.arguments.grids import Grid
from toykern.training.held_out import held_out_arrays
from toykern.training.kernels import freeze
from toykern.training.optim import PER_MODEL, optimizer_from_config, rate_names, told_rate
from toykern.training.state import TrainingState

State = TypeVar("State", bound=TrainingState)

_RELATIVE = 1e-9  # floats on an axis match to one part in 10⁹, as in `Grid.index`
_TOLD = 8  # points of an axis that a message lists


def by_label(run: TrainingState, given: Mapping[str, Any], method: str | None) -> tuple[Tensor, Grid | None]:
    """The models that `Run.sel` means: int64 `[chosen]`, and the grid that is left of the run's."""
    if method is not None:
        check_choice("method", method, ["nearest"])
    labels = _labels(run)
    _check_axes("sel", given, labels)
    return _chosen(run, {name: _at_labels(name, labels[name], given[name], method) for name in given})


def by_place(run: TrainingState, given: Mapping[str, Any]) -> tuple[Tensor, Grid | None]:
    """The models that `Run.isel` means, likewise."""
    labels = _labels(run)
    _check_axes("isel", given, labels)
    return _chosen(run, {name: _at_places(name, len(labels[name]), given[name]) for name in given})


def part_of(run: State, chosen: Tensor, grid: Grid | None) -> State:
    """A run of the models `chosen`, int64, alone, labelled by `grid`, with copies of all that is theirs.

    Raises:
        ValueError: a topology recipe is at work, whose memory is of all models together.
    """
    if "topology" in run.config:
        raise ValueError(
            "the run has a topology recipe, which remembers all models together and cannot be divided; "
            "run.to_xarray().sel(…) has the results, and run.rerun(i) trains one model again"
        )

    def of(values: Tensor) -> Tensor:
        return values[chosen] if len(values) == run.n_models else values.clone()

    def all_of(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[chosen] for name, values in held.items()}

    model = run.model[chosen]
    freeze(model, run.config.get("frozen", []))
    data = run.data.of_models(chosen)
    test = None if run.test is None else run.test.of_models(chosen)
    of_data = run.data.arrays() | held_out_arrays(run.test)
    arrays = {name: of(values) for name, values in run.arrays.items() if name not in of_data}
    # In the order that `fit` made them.
    arrays = {name: arrays.get(name, run.arrays[name]) for name in run.arrays} | (
        data.arrays() | held_out_arrays(test)
    )
    config = run.config | {"model": model.config(), "data": data.config()}
    if test is not None:
        config["test"] = test.config()
    described = config["optimizer"]
    own = {name: arrays[name] for name in rate_names(described) if told_rate(described, name) == PER_MODEL}
    return type(run)(
        model=model,
        data=data,
        config=config,
        arrays=arrays,
        step=run.step,
        loss=run.loss[chosen],
        diverged_at=run.diverged_at[chosen],
        records=all_of(run.records),
        snapshots={step: all_of(snapshot) for step, snapshot in run.snapshots.items()},
        optimizer_state=all_of(run.optimizer_state),
        carry=all_of(run.carry),
        seconds=run.seconds,
        provenance=dict(run.provenance),
        interrupted=run.interrupted,
        grid=grid,
        optimizer=optimizer_from_config(described, **own),
        schedule=run.schedule,
        test=test,
    )


def _labels(run: TrainingState) -> dict[str, np.ndarray]:
    """The points of each axis, as `Run.to_xarray` has them."""
    if run.grid is None:
        return {"model": np.arange(run.n_models, dtype=np.int64)}
    return run.grid.coords


def _check_axes(method: str, given: Mapping[str, Any], labels: Mapping[str, np.ndarray]) -> None:
    for name in given:
        if name not in labels:
            raise ValueError(f"{method}: {name!r} is no axis of the run; its axes are {', '.join(labels)}")


def _chosen(run: TrainingState, places: Mapping[str, np.ndarray]) -> tuple[Tensor, Grid | None]:
    """Models and grid of the points at these places; an axis with one place, without a dimension, goes."""
    shape = (run.n_models,) if run.grid is None else run.grid.shape
    dims = ("model",) if run.grid is None else run.grid.dims
    flat = np.arange(run.n_models, dtype=np.int64).reshape(shape)
    for at, name in reversed(list(enumerate(dims))):
        if name in places:
            flat = np.take(flat, places[name], axis=at)
    numbers = torch.from_numpy(np.ascontiguousarray(flat).reshape(-1))
    if run.grid is None:
        return numbers, None
    left = {
        name: points[places[name]] if name in places else points
        for name, points in run.grid.axes.items()
        if name not in places or places[name].ndim == 1
    }
    return numbers, Grid(left) if left else None


def _at_labels(name: str, points: np.ndarray, given: Any, method: str | None) -> np.ndarray:
    """The places of the points that `given` names, shaped like it."""
    if isinstance(given, slice):
        return _between(name, points, given)
    wanted = _numbers("sel", name, given)
    places = np.empty(wanted.shape, dtype=np.int64)
    for at, value in np.ndenumerate(wanted):
        nearest = int(np.argmin(np.abs(points - value)))
        found = points[nearest]
        exact = points.dtype.kind in "iu" and wanted.dtype.kind in "iu"
        same = found == value if exact else bool(np.isclose(found, value, rtol=_RELATIVE, atol=0.0))
        if not same and (method is None or not np.isfinite(value)):
            raise ValueError(f"sel: {name} has no point {value}; it has {_listed(points)}")
        places[at] = nearest
    return _each_once("sel", name, places)


def _between(name: str, points: np.ndarray, given: slice) -> np.ndarray:
    """The places of all points from `given.start` to `given.stop`, both included."""
    if given.step is not None:
        raise ValueError(f"sel: {name} must be a slice without a step, not {describe(given)}")
    inside = np.ones(len(points), dtype=bool)
    for bound, keeps in ((given.start, np.greater_equal), (given.stop, np.less_equal)):
        if bound is None:
            continue
        value = _numbers("sel", name, bound)
        if value.ndim:
            raise ValueError(f"sel: {name} must be a slice of numbers, not {describe(given)}")
        inside &= keeps(points, value) | np.isclose(points, value, rtol=_RELATIVE, atol=0.0)
    if not inside.any():
        raise ValueError(f"sel: {name} has no point in {given}; it has {_listed(points)}")
    return np.flatnonzero(inside)


def _at_places(name: str, n: int, given: Any) -> np.ndarray:
    """The places that `given` counts, from 0, or from −1 backwards."""
    if isinstance(given, slice):
        try:
            found = np.arange(n, dtype=np.int64)[given]
        except TypeError:
            raise TypeError(f"isel: {name} must be a slice of integers, not {given}") from None
        if not found.size:
            raise ValueError(f"isel: {name} has no place in {given}; it has {n} points")
        return found
    wanted = _numbers("isel", name, given, kinds="iub")
    if wanted.dtype.kind == "b":
        if wanted.shape != (n,):
            raise ValueError(f"isel: {name} must have {n} entries where it is a mask, not {describe(given)}")
        wanted = np.flatnonzero(wanted)
        if not wanted.size:
            raise ValueError(f"isel: {name} is a mask that chooses none of {n} points")
    outside = (wanted < -n) | (wanted >= n)
    if outside.any():
        raise ValueError(f"isel: {name} must be from {-n} to {n - 1}, not {wanted[outside].flat[0]}")
    return _each_once("isel", name, wanted.astype(np.int64) % n)


def _numbers(method: str, name: str, given: Any, kinds: str = "iuf") -> np.ndarray:
    """`given` as an array of numbers without a dimension or with one."""
    wanted = f"{method}: {name} must be a number, a slice or a sequence of numbers, not {describe(given)}"
    if isinstance(given, Tensor):
        given = check_dense_tensor(f"{method}: {name}", given).detach().cpu()
    elif isinstance(given, range):
        given = list(given) if len(given) <= 1 << 24 else None
    try:
        found = np.asarray(given)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        raise ValueError(wanted) from None
    if found.dtype.kind not in kinds or found.ndim > 1 or not found.size:
        raise ValueError(wanted)
    return found


def _each_once(method: str, name: str, places: np.ndarray) -> np.ndarray:
    if len(np.unique(places)) < places.size:
        raise ValueError(f"{method}: {name} names a point more than once")
    return places


def _listed(points: np.ndarray) -> str:
    some = ", ".join(f"{value:g}" if points.dtype.kind == "f" else str(value) for value in points[:_TOLD])
    return f"{some}, … {points[-1]:g}" if len(points) > _TOLD else some
