"""How a sweep lies in its store, and the making of one.

Layout (Zarr format 3), with the grid's axes as the leading dimensions of every array of results, so that
`xarray.open_zarr(path)` shows it labelled:

    attributes             format, version, the grid, the shape of a chunk, settings, provenance, a manifest,
                           and a digest of all that (`toykern/results/store_format.py`)
    loss, diverged_at, …   results: the records, the trained parameters, snapshots, what `measure` returned
    inputs/<name>          seed, importance, lr, weight_decay, probability, init_seed: of every model
    <axis>, record, snapshot     coordinates
    chunk_seconds          float64 [chunks]: the training time of a finished chunk; NaN = not finished

A chunk is a region of each array that shares no stored piece with another chunk. Its entry in
`chunk_seconds` is written after all else of it, and every piece carries a checksum: whatever a crash leaves
behind is either a finished chunk or none.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toykern.arguments.grids import Grid
from toykern.results import placing
from toykern.results.store_format import (
    SWEEP_FORMAT,
    VERSION,
    StoreError,
    entry_of,
    import_zarr,
    open_array,
    read_attributes,
    sealed,
)
from toykern.results.store_place import check_target, place_store
from toykern.sweeps.boxes import boxes_of

CHUNK_SECONDS = "chunk_seconds"
_PIECE_BYTES = 64 << 20


def create(
    path: Path, grid: Grid, box: tuple[int, ...], values: Mapping[str, np.ndarray],
    dimensions: Mapping[str, tuple[str, ...]], coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any], overwrite: bool,
) -> Path:  # fmt: skip
    """A new store without any chunk, for results shaped and typed as `values` (`[models, …]`); its path.

    `coordinates` are those of the dimensions after the grid's; `dimensions` names those of each array.

    Raises:
        StoreError: it cannot be written, or something is at `path` that may not be replaced.
    """
    target = check_target(path, overwrite=overwrite)
    partial = placing.beside(target, "partial")
    try:
        _write(partial, grid, box, values, dimensions, coordinates, attributes)
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

    def make(name: str, shape: Any, dtype: Any, chunks: Any, dims: Any) -> Any:
        return root.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dims,
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            fill_value=fill_value(dtype), config={"write_empty_chunks": True},
        )  # fmt: skip

    for name, array in values.items():
        shape = (*grid.shape, *array.shape[1:])
        pieces = _piece_shape(box, array.itemsize * math.prod(array.shape[1:]))
        chunks = (*pieces, *(max(1, n) for n in array.shape[1:]))
        make(name, shape, array.dtype, chunks, (*grid.dims, *dimensions[name]))
    labels = {**grid.coords, **coordinates}
    for name, array in labels.items():
        make(name, array.shape, array.dtype, array.shape, (name,))[...] = array
    make(CHUNK_SECONDS, (len(boxes_of(grid.shape, box)),), "float64", (1,), ("chunk",))
    described = {
        "format": SWEEP_FORMAT,
        "version": VERSION,
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


def _piece_shape(box: tuple[int, ...], bytes_per_model: int) -> tuple[int, ...]:
    """How a chunk is stored: whole, or cut evenly where it is too large for one file."""
    piece = list(box)
    for axis, points in enumerate(box):
        while bytes_per_model * math.prod(piece) > _PIECE_BYTES and piece[axis] > 1:
            piece[axis] = next(n for n in range(piece[axis] - 1, 0, -1) if points % n == 0)
    return tuple(piece)


# Which chunks are finished


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
