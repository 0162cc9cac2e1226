"""Larger sweeps of smaller ones: a store whose grid has grown, and one store of several.

Both are a new store into which the models of others are put before it takes its place, at one instant: whole
chunks as finished ones, models of chunks that hold others too beside them (`kept.py`). What is then missing
is trained as in any sweep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toykern.arguments.errors import check_flag, check_positive_int, describe
from toykern.arguments.grids import Grid
from toykern.results.store_format import StoreError, check_path, open_array
from toykern.results.store_place import check_target
from toykern.sweeps.boxes import Box, box_shape, boxes_of
from toykern.sweeps.claims import WORK, Claims
from toykern.sweeps.job import Job, inputs_of
from toykern.sweeps.kept import Kept, read_kept, write_kept
from toykern.sweeps.layout import CHUNK_SECONDS, create
from toykern.sweeps.reading import StoredArray, read_whole
from toykern.sweeps.result import Sweep, open_sweep
from toykern.sweeps.worker import Stop, Stopped
from toykern.sweeps.writing import write_box
from toykern.training.settings import described_differences

Check = Callable[[Box, Kept], None]

_PINNED = ("instruction_set", "gpu")  # of provenance: other bits


def extended(
    source: Sweep, target: Path, job: Job, box: tuple[int, ...], overwrite: bool, stop: Stop
) -> Path:
    """A store for the grid of `job` at `target`, with the models of `source`; where that is its path, in its
    place.

    Raises:
        StoreError: the models would be others in the larger grid, are damaged, are being trained, or the
            store cannot be written.
        Stopped: word to stop; nothing was made.
    """
    claims, lock = Claims(source.path), len(source.boxes)
    beat = claims.keep_alive(lock)

    def same(part: Box, kept: Kept) -> None:
        if stop():
            raise Stopped
        beat()
        for name, value in inputs_of(job.begin(part)).items():
            planned = value.detach().cpu().contiguous().numpy()[kept.mask]
            at = _first_difference(planned, kept.values[f"inputs/{name}"])
            if at is not None:
                raise StoreError(
                    f"{name} of the model at {_point(job.grid, part, kept, at)} in {source.path} is not what "
                    "plan gives it in the larger grid: to be extended, a sweep needs seeds and the like that "
                    "are made of a model's point (points.seed), not of its number, which changes"
                )

    taken: list[int] = []
    try:
        if target == source.path:  # nobody may train there meanwhile
            (target / WORK).mkdir(exist_ok=True)  # stores before version 3 had none
            for number in (lock, *np.flatnonzero(~source.finished).tolist()):
                if not claims.take(number, None):
                    raise _busy(source, number)
                taken.append(number)
            if open_sweep(source.path).attributes != source.attributes:
                raise StoreError(f"{source.path} was replaced by another store meanwhile")
        return _made_of([source], target, job.grid, box, overwrite or target == source.path, same)
    except OSError as error:
        raise StoreError(f"cannot write {source.path}: {error.strerror or error}") from error
    finally:
        for number in taken:  # where the store was replaced they are gone
            claims.release(number)


def is_being_extended(store: Sweep) -> bool:
    """Whether a process is at it that lives, as far as can be told."""
    claim = Claims(store.path).look(len(store.boxes), None)
    return claim is not None and not claim.void


def check_grown(source: Sweep, grid: Grid) -> None:
    """StoreError where a grid has not all points of a store's."""
    if source.grid.dims != grid.dims:
        raise StoreError(
            f"the axes of the grid are {', '.join(grid.dims)}, those of the sweep in {source.path} "
            f"{', '.join(source.grid.dims)}; to be extended it needs the same, in the same order"
        )
    new = grid.axes
    for name, values in source.grid.axes.items():
        if values.dtype != new[name].dtype or values.shape[1:] != new[name].shape[1:]:
            raise StoreError(
                f"the axis {name} of the grid is of other values ({new[name].dtype} {list(new[name].shape)}) "
                f"than that of the sweep in {source.path} ({values.dtype} {list(values.shape)})"
            )
        lost = np.flatnonzero(_places(new[name], values) < 0)
        if lost.size:
            raise StoreError(
                f"the grid lacks {name}={values[lost[0]]} of the sweep in {source.path}; to be extended it "
                "needs all points that are there, bit for bit (store.grid.axes has them)"
            )


def merge_sweeps(
    paths: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    chunk: int | None = None,
    overwrite: bool = False,
    mixed: bool = False,
) -> Sweep:
    """One store of several sweeps whose grids differ along one axis.

    They must have the same axes, settings, results and version of the data stream. A model that several of
    them have must be the same in all, to the bit. Models that none has finished are left to
    `toykern.sweep(…, resume=True)`. Each model keeps its bits and its exact inputs (`inputs/seed`, …); where
    a `plan` makes these of the points alone, the store is that of one sweep of the whole grid.

    Args:
        paths: of the stores, two or more.
        path: of the new one; that of one of them, with `overwrite`, replaces it.
        chunk: models in a chunk of the new store, at most. Default: as many as in the largest there.
        overwrite: replace an existing toykern store.
        mixed: merge sweeps of different kinds of devices, instruction sets or versions.

    Returns:
        The `Sweep` in the new store. The points of the axis are in order where they are in all of the stores,
        ascending or descending; else those of the first come first.

    Raises:
        StoreError: stores that do not go together, what differs by name; one that is missing, damaged or
            cannot be written.
        TypeError, ValueError: an argument that does not fit.

    Example:
        >>> import tempfile
        >>> import toykern as tk
        >>> def plan(points, index):
        ...     model = tk.TiedAutoencoder(2, 1, points.n_models, seed=points.seed)
        ...     return {"model": model, "data": tk.SparseFeatures(2, 0.1), "seed": points.seed}
        >>> with tempfile.TemporaryDirectory() as at:
        ...     for k in range(2):
        ...         _ = tk.sweep(tk.grid(seed=range(3 * k, 3 * k + 3)), plan, f"{at}/{k}.zarr", steps=5)
        ...     tk.merge_sweeps([f"{at}/0.zarr", f"{at}/1.zarr"], f"{at}/both.zarr").grid
        <toykern.Grid 6 = 6 models: seed=0…5>
    """
    overwrite, mixed = check_flag("overwrite", overwrite), check_flag("mixed", mixed)
    chunk = None if chunk is None else check_positive_int("chunk", chunk)
    if isinstance(paths, str | os.PathLike) or not isinstance(paths, Sequence) or len(paths) < 2:
        raise TypeError(f"paths must be a list of two stores or more, not {describe(paths)}")
    target = check_target(path, overwrite=overwrite)
    sources = [open_sweep(check_path(one, f"paths[{at}]")) for at, one in enumerate(paths)]
    grid = _union(sources)
    for other in sources[1:]:
        _check_alike(sources[0], other, mixed)
    if any(source.path == target for source in sources):
        replaced = next(source for source in sources if source.path == target)
        for number in np.flatnonzero(replaced.claimed).tolist():
            claim = Claims(target).look(number, None)
            if claim is not None and not claim.void:
                raise _busy(replaced, number)
    most = min(chunk or max(source.boxes[0].n_models for source in sources), grid.n_models)
    return open_sweep(_made_of(sources, target, grid, box_shape(grid.shape, most), overwrite))


def _union(sources: Sequence[Sweep]) -> Grid:
    """The grid of several sweeps; StoreError where they are none of one grid along one axis."""
    first, parts = sources[0], dict[str, list[np.ndarray]]()
    for other in sources:
        if other.grid.dims != first.grid.dims:
            raise _unlike(first, other, "axes", ", ".join(first.grid.dims), ", ".join(other.grid.dims))
        for name, values in other.grid.axes.items():
            have = first.grid.axes[name]
            if values.dtype != have.dtype or values.shape[1:] != have.shape[1:]:
                raise _unlike(first, other, f"axis {name}", have.dtype, values.dtype)
            parts.setdefault(name, []).append(values)
    grown = [name for name, found in parts.items() if len({part.tobytes() for part in found}) > 1]
    if len(grown) > 1:
        raise StoreError(
            f"the sweeps differ along {' and '.join(sorted(grown))}: together they are no grid. Merge those "
            "that differ along one axis, or extend one (sweep(…, extend=True))"
        )
    return Grid({name: _joined_axis(found) for name, found in parts.items()})


def _joined_axis(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All points of several axes, in order where all of them are, else as they come."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.concatenate([whole, part[_places(whole, part) < 0]])
    for sign in (1, -1):
        if whole.ndim == 1 and all((sign * np.diff(part) > 0).all() for part in parts):
            return np.sort(whole)[::sign]
    return whole


def _check_alike(first: Sweep, other: Sweep, mixed: bool) -> None:
    """StoreError where two sweeps are not of one kind."""
    ours, theirs = first.attributes["settings"], other.attributes["settings"]
    for name in described_differences(ours, theirs):
        if name != "device":
            raise _unlike(first, other, name, ours.get(name), theirs.get(name))
    results = [
        {entry["path"]: (entry["dtype"], sweep.result_shapes[entry["path"]]) for entry in
         sweep.attributes["manifest"]} for sweep in (first, other)
    ]  # fmt: skip
    for name in (*results[0], *results[1]):
        if results[0].get(name) != results[1].get(name):
            given = [result.get(name, "nothing") for result in results]
            raise _unlike(first, other, f"the result {name}", given[0], given[1])
    ours, theirs = first.attributes["provenance"], other.attributes["provenance"]
    for name in ("stream_version", *(() if mixed else (*_PINNED, "toykern"))):
        if ours.get(name) != theirs.get(name):
            more = "" if name == "stream_version" else "; mixed=True (--mixed) merges them nevertheless"
            raise _unlike(first, other, name.replace("_", " "), ours.get(name), theirs.get(name), more)


def _unlike(first: Sweep, other: Sweep, what: str, ours: Any, theirs: Any, more: str = "") -> StoreError:
    return StoreError(
        f"the sweeps do not go together: {what} is {ours!s:.60} in {first.path} and {theirs!s:.60} in "
        f"{other.path}{more}"
    )


def _busy(store: Sweep, number: int) -> StoreError:
    claim = Claims(store.path).look(number, None)
    who = f"process {claim.pid} on {claim.host}" if claim is not None and claim.pid else "somebody"
    what = f"chunk {number} of it is being trained" if number < len(store.boxes) else "it is being extended"
    return StoreError(f"{store.path} cannot be replaced now: {what} by {who}; try again when that has ended")


# Putting models of some stores into a new one


@dataclass(frozen=True)
class _Source:
    """A store from which models are taken, as a larger grid sees it.

    Attributes:
        store: the sweep.
        finished: bool `[chunks]`.
        seconds: of their training.
        places: for each axis of the larger grid, the place of each of its points in the store, or −1.
        arrays: of its results.
    """

    store: Sweep
    finished: np.ndarray
    seconds: np.ndarray
    places: tuple[np.ndarray, ...]
    arrays: dict[str, StoredArray]

    @staticmethod
    def of(store: Sweep, grid: Grid) -> _Source:
        new = grid.axes
        places = tuple(_places(values, new[name]) for name, values in store.grid.axes.items())
        arrays = {e["path"]: StoredArray(store.path, e, store.boxes) for e in store.attributes["manifest"]}
        return _Source(store, store.finished, store.seconds, places, arrays)

    def take(self, box: Box) -> Kept | None:
        """What it has of a chunk of the larger grid."""
        along = [places[where] for places, where in zip(self.places, box.region, strict=True)]
        have = [np.flatnonzero(places >= 0) for places in along]
        if any(places.size == 0 for places in have):
            return None
        there = [places[at] for places, at in zip(along, have, strict=True)]
        size, shape = self.store.boxes[0].shape, self.store.grid.shape
        counts = [-(-n // step) for n, step in zip(shape, size, strict=True)]
        chunk = np.ravel_multi_index(
            np.ix_(*(places // step for places, step in zip(there, size, strict=True))), counts
        )
        done, before = self.finished[chunk], dict[int, Kept]()
        for number in np.unique(chunk[~done]).tolist():  # it may have been extended itself
            part = self.store.boxes[number]
            if (kept := read_kept(self.store.path, part, {})) is not None:
                before[number] = kept
                models = np.ravel_multi_index(np.ix_(*there), shape) - part.first
                at = chunk == number
                done[at] = kept.mask[models[at]]
        if not done.any():
            return None
        mask = np.zeros(box.shape, dtype=bool)
        mask[np.ix_(*have)] = done
        values = {}
        for name, array in self.arrays.items():
            # All that lies between the first and the last is read, and of that what is wanted.
            around = [slice(int(places.min()), int(places.max()) + 1) for places in there]
            trailing = [slice(None)] * (len(array.shape) - len(shape))
            found = array.read([*around, *trailing], self.finished)
            values[name] = found[np.ix_(*(places - places.min() for places in there))][done]
        total, origins = 0.0, list[dict[str, Any]]()
        for number, count in zip(
            *(each.tolist() for each in np.unique(chunk[done], return_counts=True)), strict=True
        ):
            if number in before:
                share = count / np.count_nonzero(before[number].mask)
                total, known = total + share * before[number].seconds, before[number].origins
            else:
                total += self.seconds[number] * count / self.store.boxes[number].n_models
                known = [self.store.origin(number)] if self.store.attributes["version"] > 2 else []
            origins += [origin for origin in known if origin not in origins]
        return Kept(mask.reshape(-1), values, float(total), origins)


def _made_of(
    sources: Sequence[Sweep], target: Path, grid: Grid, box: tuple[int, ...], overwrite: bool,
    check: Check | None = None,
) -> Path:  # fmt: skip
    """A new store at `target` with all models of others that have a place in its grid; its path."""
    first = sources[0]
    opened = {e["path"]: open_array(first.path, e) for e in first.attributes["manifest"]}
    depth = len(grid.shape)
    values = {
        name: np.empty((0, *first.result_shapes[name]), dtype=array.dtype) for name, array in opened.items()
    }
    dimensions = {name: tuple(array.metadata.dimension_names[depth:]) for name, array in opened.items()}
    labels = {
        e["path"]: read_whole(first.path, e)
        for e in first.coordinates
        if e["path"] not in (CHUNK_SECONDS, *grid.dims)
    }
    described = {name: first.attributes[name] for name in ("settings", "provenance")}
    given = [_Source.of(source, grid) for source in sources]

    def fill(partial: Path) -> None:
        store = open_sweep(partial)
        for one in boxes_of(grid.shape, box):
            kept = None
            for at, source in enumerate(given):
                kept = _joined(grid, one, kept, source.take(one), sources[:at], source.store)
            if kept is None:
                continue
            if check is not None:
                check(one, kept)
            if kept.mask.all():
                write_box(store, one, kept.values, kept.seconds, kept.origin())
            else:
                write_kept(store.path, one.number, kept)

    return create(target, grid, box, values, dimensions, labels, described, overwrite, fill)


def _joined(
    grid: Grid, box: Box, before: Kept | None, more: Kept | None, stores: Sequence[Sweep], store: Sweep
) -> Kept | None:
    """What some stores and a further one have of a chunk.

    Raises:
        StoreError: they do not agree.
    """
    if before is None or more is None:
        return more if before is None else before
    both = before.mask & more.mask
    names = sorted(before.values, key=lambda name: not name.startswith("inputs/"))  # the cause comes first
    for name in names:
        at = _first_difference(before.values[name][both[before.mask]], more.values[name][both[more.mask]])
        if at is not None:
            shared = Kept(both, {}, 0.0, [])
            raise StoreError(
                f"the sweeps do not go together: {name} of the model at {_point(grid, box, shared, at)} is "
                f"another in {store.path} than in {' or '.join(str(other.path) for other in stores)}"
            )
    mask, fresh = before.mask | more.mask, more.mask & ~before.mask
    values = {}
    for name, rows in before.values.items():
        whole = np.empty((box.n_models, *rows.shape[1:]), rows.dtype)
        whole[before.mask] = rows
        whole[fresh] = more.values[name][fresh[more.mask]]
        values[name] = whole[mask]
    share = np.count_nonzero(fresh) / np.count_nonzero(more.mask)
    origins = before.origins + [origin for origin in more.origins if origin not in before.origins]
    return Kept(mask, values, before.seconds + share * more.seconds, origins)


def _places(where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The place of each of `values` among those of an axis, bit for bit; −1 where it has none."""
    known = {row.tobytes(): place for place, row in enumerate(where)}
    return np.array([known.get(row.tobytes(), -1) for row in values], dtype=np.int64)


def _first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """The first row in which two arrays differ in a bit, or None."""
    if one.tobytes() == other.tobytes():
        return None
    return next(row for row in range(len(one)) if one[row].tobytes() != other[row].tobytes())


def _point(grid: Grid, box: Box, kept: Kept, row: int) -> str:
    """The point of a row of what is kept, in words."""
    number = box.first + int(np.flatnonzero(kept.mask)[row])
    places = np.unravel_index(number, grid.shape)
    return ", ".join(f"{name}={grid.coords[name][at]}" for name, at in zip(grid.dims, places, strict=True))


def check_source(extend: Any, path: Path) -> Path | None:
    """The store that is to be extended: None for False, `path` itself for True, or that which is given."""
    if extend is False or extend is True:
        return path if extend else None
    if not isinstance(extend, str | os.PathLike):
        raise TypeError(f"extend must be True, False or the path of a store, not {describe(extend)}")
    return Path(os.path.realpath(check_path(extend, "extend")))
