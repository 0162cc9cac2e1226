"""How a sweep lies in its store, and the making of one.

Layout (Zarr format 3), with the grid's axes as the leading dimensions of every array of results, so that
`xarray.open_zarr(path)` shows it labelled:

    attributes             format, version, the grid, the shape of a chunk, settings, provenance, a manifest,
                           and a digest of all that (`toykern/results/store_format.py`)
    loss, diverged_at, …   results: the records, the trained parameters, snapshots, what `measure` returned
    inputs/<name>          seed, importance, lr, weight_decay, probability, init_seed, …: of every model
    <axis>, record, snapshot     coordinates
    chunk_seconds          float64 [chunks]: the training time of a finished chunk
    chunk_seconds/work     claims and origins of chunks (`toykern/sweeps/claims.py`)

The store is made before anything of it is trained. A chunk is a region of each array that shares no stored
piece with another chunk. Its entry in `chunk_seconds`, a file of its own, is written after all else of it,
and every piece carries checksums: whatever a crash leaves behind is either a finished chunk or none, and
which chunks are finished is one listing. Large pieces are shards, inside which at most a thousand models
each can be read by themselves.

Versions 1 and 2 had no shards; there a chunk that was begun has the entry NaN, so its entry must be read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toykern.arguments.grids import Grid
from toykern.results import placing
from toykern.results.store_format import (
    SWEEP_FORMAT,
    SWEEP_VERSION,
    StoreError,
    entry_of,
    import_zarr,
    open_array,
    read_attributes,
    sealed,
)
from toykern.results.store_place import check_target, place_store
from toykern.sweeps.boxes import boxes_of
from toykern.sweeps.claims import WORK, numbers_of

CHUNK_SECONDS = "chunk_seconds"
_PIECE_BYTES = 64 << 20
_READ_MODELS, _READ_BYTES = 1024, 1 << 19  # at most, of what a reader of one model has to read


def create(
    path: Path, grid: Grid, box: tuple[int, ...], values: Mapping[str, np.ndarray],
    dimensions: Mapping[str, tuple[str, ...]], coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any], overwrite: bool, fill: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """A new store without any chunk, for results shaped and typed as `values` (`[models, …]`); its path.

    `coordinates` are those of the dimensions after the grid's; `dimensions` names those of each array. `fill`
    is called with the store before it takes its place, and may put chunks into it.

    Raises:
        StoreError: it cannot be written, or something is at `path` that may not be replaced.
    """
    target = check_target(path, overwrite=overwrite)
    partial = placing.beside(target, "partial")
    try:
        _write(partial, grid, box, values, dimensions, coordinates, attributes)
        if fill is not None:
            try:
                fill(partial)
            except StoreError as error:  # it says the name of the moment
                raise StoreError(str(error).replace(str(partial), str(target))) from error
        place_store(partial, target, overwrite)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(
    directory: Path, grid: Grid, box: tuple[int, ...], values: Mapping[str, np.ndarray],
    dimensions: Mapping[str, tuple[str, ...]], coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> None:  # fmt: skip
    zarr = import_zarr()
    root = zarr.create_group(store=str(directory), zarr_format=3)

    def make(name: str, shape: Any, dtype: Any, chunks: Any, dims: Any, shards: Any = None) -> Any:
        return root.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, shards=shards, dimension_names=dims,
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            fill_value=fill_value(dtype), config={"write_empty_chunks": True},
        )  # fmt: skip

    for name, array in values.items():
        shape = (*grid.shape, *array.shape[1:])
        size, trailing = array.itemsize * math.prod(array.shape[1:]), [max(1, n) for n in array.shape[1:]]
        piece = cut(box, size, _PIECE_BYTES)
        read = cut(piece, size, _READ_BYTES, _READ_MODELS)
        shards = None if read == piece else (*piece, *trailing)
        make(name, shape, array.dtype, (*read, *trailing), (*grid.dims, *dimensions[name]), shards)
    labels = {**grid.coords, **coordinates}
    for name, array in labels.items():
        make(name, array.shape, array.dtype, array.shape, (name,))[...] = array
    make(CHUNK_SECONDS, (len(boxes_of(grid.shape, box)),), "float64", (1,), ("chunk",))
    (directory / WORK).mkdir()
    described = {
        "format": SWEEP_FORMAT,
        "version": SWEEP_VERSION,
        "grid": grid.config(),
        "box": list(box),
        "manifest": [entry_of(directory, name) for name in values],
        "coordinates": [entry_of(directory, name) for name in (*labels, CHUNK_SECONDS)],
        **attributes,
    }
    # The attributes come last: a directory with them is complete.
    root.attrs.update(sealed(described))
    read_attributes(directory, SWEEP_FORMAT)  # JSON holds what was given


def fill_value(dtype: Any) -> Any:
    """What stands where nothing has been written: NaN, the lowest integer, False."""
    kind = np.dtype(dtype).kind
    return math.nan if kind == "f" else int(np.iinfo(dtype).min) if kind in "iu" else 0


def cut(
    box: tuple[int, ...], bytes_per_model: int, most_bytes: int, most_models: int | None = None
) -> tuple[int, ...]:
    """A box of points, whole, or cut evenly along its first axes where it is too large.

    >>> cut((16, 256, 16), 40, 1 << 20, 256)
    (1, 16, 16)
    """
    piece = list(box)
    fitting = most_bytes // max(1, bytes_per_model)
    fitting = fitting if most_models is None else min(fitting, most_models)
    for axis, points in enumerate(box):
        while math.prod(piece) > fitting and piece[axis] > 1:
            piece[axis] = next(n for n in range(piece[axis] - 1, 0, -1) if points % n == 0)
    return tuple(piece)


# Which chunks are finished


def read_finished(store: Path, chunks: int, entry: Mapping[str, Any] | None, version: int) -> np.ndarray:
    """bool `[chunks]`: which are finished, by one listing (in stores before version 3 by reading each entry).

    Raises:
        StoreError: there is no store, or no `chunk_seconds` in it.
    """
    if version < 3:
        return np.isfinite(read_seconds(store, chunks, entry))
    found = np.zeros(chunks, dtype=bool)
    if not (store / "zarr.json").exists():
        raise StoreError(f"{store} is gone: it was removed or moved")
    if not (store / CHUNK_SECONDS / "zarr.json").is_file():
        raise StoreError(f"{store} is damaged: array {CHUNK_SECONDS} is missing")
    try:
        numbers = numbers_of(store / CHUNK_SECONDS / "c")
    except FileNotFoundError:  # no chunk yet
        return found
    except OSError as error:
        raise StoreError(f"cannot read {store}: {error.strerror or error}") from error
    found[[number for number in numbers if number < chunks]] = True
    return found


def read_seconds(store: Path, chunks: int, entry: Mapping[str, Any] | None) -> np.ndarray:
    """float64 `[chunks]`: how long each chunk trained; NaN where it is not finished.

    `entry` is that of the store's list of coordinates, None in a store of version 1.
    """
    stored = open_seconds(store, chunks, entry)
    try:
        return np.asarray(stored[...])
    except Exception:  # some entry is torn: look at one after another
        return np.array([second_of(stored, number) for number in range(chunks)])


def open_seconds(store: Path, chunks: int, entry: Mapping[str, Any] | None, mode: str = "r") -> Any:
    """`chunk_seconds` as an array of Zarr."""
    expected = entry or {"path": CHUNK_SECONDS, "shape": [chunks], "dtype": "float64"}
    return open_array(store, expected, mode)


def second_of(stored: Any, number: int) -> float:
    """One entry of `chunk_seconds`; NaN for one that is torn: its chunk is not finished."""
    try:
        return float(stored[number])
    except Exception:  # zarr and its codecs raise whatever they like on damaged bytes
        return math.nan
