"""Putting a finished chunk into the store of a sweep, by any number of writers at once.

A chunk is written beside the others, in a folder of its own process, and then its pieces are renamed into
place, one by one, and at last the mark that says that it is there. A piece that was cut short is never opened
(zarr cannot write into a shard that was), and a chunk that two have trained is replaced by the same bits: at
no moment is there a mark without the whole chunk.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toykern.results.store_format import StoreError, open_array, piece_names, piece_shape
from toykern.sweeps.boxes import Box
from toykern.sweeps.claims import WORK, begun, scratch, write_origin
from toykern.sweeps.layout import CHUNK_SECONDS
from toykern.sweeps.result import Sweep


def check_values(sweep: Sweep, values: Mapping[str, np.ndarray], number: int) -> None:
    """ValueError where the results of a chunk are not of the kinds that the store was laid out for."""
    entries = {entry["path"]: entry for entry in sweep.attributes["manifest"]}
    if values.keys() != entries.keys():
        raise ValueError(
            f"chunk {number} has the results {sorted(values)}, the store was made for {list(entries)}"
        )
    for name, array in values.items():
        trailing = entries[name]["shape"][len(sweep.grid.shape) :]
        if list(array.shape[1:]) != trailing or str(array.dtype) != entries[name]["dtype"]:
            raise ValueError(
                f"{name} of chunk {number} is {array.dtype} {list(array.shape[1:])} a model, the store was "
                f"made for {entries[name]['dtype']} {trailing}"
            )


def write_box(
    sweep: Sweep, box: Box, values: Mapping[str, np.ndarray], seconds: float, origin: Mapping[str, Any]
) -> None:
    """Add a chunk, `[models, …]` of each array: everything of it, then the mark that says so.

    Raises:
        StoreError: it cannot be written; the chunk is not finished then, unless it was before.
        ValueError: the results are not those that the store was made for.
    """
    check_values(sweep, values, box.number)
    store = sweep.path
    with writing(store):
        partial = scratch(store)
        try:
            pieces: list[tuple[Path, str, str]] = []
            for name, array in values.items():
                entry = next(entry for entry in sweep.attributes["manifest"] if entry["path"] == name)
                stored = _array_beside(store, partial, entry)
                stored[box.region] = array.reshape(*box.shape, *array.shape[1:])
                shape = piece_shape(stored)
                pieces += [(partial, name, piece) for piece in piece_names(shape, stored.shape, box.region)]
            with begun(store, box.number):
                if sweep.attributes["version"] < 3:  # there a chunk is marked as unfinished by NaN
                    _mark(sweep, partial, box.number, math.nan)
                for folder, name, piece in pieces:
                    _place(folder, store, name, piece)
                write_origin(store, box.number, origin)
                _mark(sweep, partial, box.number, seconds)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def unmark(sweep: Sweep, number: int) -> None:
    """Say that a chunk is not finished, since something of it is damaged."""
    store = sweep.path
    with writing(store):
        (store / WORK).mkdir(exist_ok=True)
        (store / WORK / f"{number}.begun").touch()
        (store / CHUNK_SECONDS / "c" / str(number)).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """What the system says of a store that cannot be written, as a StoreError that says which."""
    try:
        yield
    except OSError as error:
        if not (store / "zarr.json").exists():
            raise StoreError(f"{store} is gone: it was removed or moved while the sweep ran") from error
        raise StoreError(f"cannot write {store}: {error.strerror or error}") from error


def _array_beside(store: Path, partial: Path, entry: Mapping[str, Any]) -> Any:
    """An empty array like one of the store's, in another folder."""
    name = entry["path"]
    (partial / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(store / name / "zarr.json", partial / name / "zarr.json")
    return open_array(partial, entry, "r+")


def _mark(sweep: Sweep, partial: Path, number: int, seconds: float) -> None:
    entry = sweep.mark_entry
    stored = _array_beside(sweep.path, partial, entry)
    stored[number] = seconds
    _place(partial, sweep.path, CHUNK_SECONDS, f"c/{number}")


def _place(partial: Path, store: Path, name: str, piece: str) -> None:
    """Rename a file into the store; FileNotFoundError where the array is gone, which is not made again."""
    target = store / name / piece
    try:
        os.replace(partial / name / piece, target)
    except FileNotFoundError:
        folder = store / name
        for part in piece.split("/")[:-1]:
            folder = folder / part
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
        os.replace(partial / name / piece, target)
