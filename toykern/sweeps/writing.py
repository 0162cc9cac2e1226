"""Putting a finished chunk into the store of a sweep, by any number of writers at once.

The pieces of a chunk are written to a folder of its own process, and then renamed into place, one by one, and
at last the mark that says that it is there. A piece that was cut short is never opened
(zarr cannot write into a shard that was), and a chunk that two have trained is replaced by the same bits: at
no moment is there a mark without the whole chunk.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toykern.results.store_format import StoreError, digest, import_zarr, open_array
from toykern.sweeps.boxes import Box
from toykern.sweeps.claims import WORK, begun, scratch, write_origin
from toykern.sweeps.layout import CHUNK_SECONDS
from toykern.sweeps.result import Sweep, open_sweep

_ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}


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
        described = (store / "zarr.json").read_bytes()
        encoder, partial = _encoder(sweep, described), scratch(store)
        try:
            files: list[tuple[Path, str, str]] = []
            for name, array in values.items():
                for piece, data in encoder.encode(
                    name, box.region, array.reshape(*box.shape, *array.shape[1:])
                ):
                    files.append((partial / str(len(files)), name, piece))
                    files[-1][0].write_bytes(data)
            if (store / "zarr.json").read_bytes() != described:  # such as one that has been extended
                raise _replaced(store)
            with begun(store, box.number):
                if sweep.attributes["version"] < 3:  # there a chunk is marked as unfinished by NaN
                    _mark(encoder, partial / str(len(files)), store, box.number, math.nan)
                for file, name, piece in files:
                    _place(file, store, name, piece)
                write_origin(store, box.number, origin)
                _mark(encoder, partial / str(len(files)), store, box.number, seconds)
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


class _Encoder:
    """The files that hold a region of an array, as zarr writes them, but to memory.

    Its arrays are opened once for all chunks of a store: zarr takes milliseconds to open an array, and longer
    to make folders for its pieces beside their places. Pieces that are no shards are compressed here, with
    the codec that zarr uses: its way to each leads through other threads, and takes ten times as long.
    """

    def __init__(self, store: Path) -> None:
        zarr = import_zarr()
        from zarr.core.buffer import default_buffer_prototype

        sweep = open_sweep(store)
        self._files: dict[str, Any] = {}
        self._lock, self._arrays, self._plain = threading.Lock(), dict[str, Any](), set[str]()
        memory = zarr.storage.MemoryStore(store_dict=self._files)
        for entry in (*sweep.attributes["manifest"], sweep.mark_entry):
            name = entry["path"]
            open_array(store, entry)  # it is what was written
            metadata = (store / name / "zarr.json").read_bytes()
            self._files[f"{name}/zarr.json"] = default_buffer_prototype().buffer.from_bytes(metadata)
            made = zarr.open_array(store=memory, path=name, mode="r+")
            self._arrays[name] = made.with_config({"write_empty_chunks": True})
            if [codec for codec in json.loads(metadata)["codecs"] if codec["name"] != "bytes"] == [_ZSTD]:
                self._plain.add(name)
        self._metadata = set(self._files)

    def encode(self, name: str, region: tuple[slice, ...], values: np.ndarray) -> list[tuple[str, bytes]]:
        """The pieces of a region by their names below the array's folder, and what is in them."""
        if name in self._plain:
            return _compressed(self._arrays[name], region, values)
        with self._lock:
            self._arrays[name][region] = values
            made = {key: self._files.pop(key) for key in self._files.keys() - self._metadata}
        return [(key.removeprefix(f"{name}/"), data.to_bytes()) for key, data in made.items()]


def _compressed(stored: Any, region: tuple[slice, ...], values: np.ndarray) -> list[tuple[str, bytes]]:
    """The pieces of a region of an array that is stored in plain chunks."""
    from numcodecs import Zstd

    codec, dtype = Zstd(**_ZSTD["configuration"]), values.dtype.newbyteorder("<")
    starts = [*(stretch.start for stretch in region), *(0 for _ in stored.shape[len(region) :])]
    ranges = [
        range(start // step, -(-(start + length) // step))
        for start, length, step in zip(starts, values.shape, stored.chunks, strict=True)
    ]
    found = []
    for numbers in itertools.product(*ranges):
        first = [k * step - start for k, step, start in zip(numbers, stored.chunks, starts, strict=True)]
        part = values[tuple(slice(at, at + step) for at, step in zip(first, stored.chunks, strict=True))]
        whole = np.full(stored.chunks, stored.fill_value, dtype=dtype)  # at the end of an axis it is not full
        whole[tuple(slice(0, length) for length in part.shape)] = part
        found.append(("/".join(["c", *map(str, numbers)]), bytes(codec.encode(whole))))
    return found


def _encoder(sweep: Sweep, described: bytes) -> _Encoder:
    """That of a sweep, whose store's zarr.json is `described`; StoreError where it is that of another."""
    encoder, attributes = _opened(sweep.path, described)
    if attributes != digest(sweep.attributes):
        raise _replaced(sweep.path)
    return encoder


@functools.lru_cache(maxsize=4)
def _opened(store: Path, described: bytes) -> tuple[_Encoder, str]:
    return _Encoder(store), digest(json.loads(described)["attributes"])


def _replaced(store: Path) -> StoreError:
    return StoreError(f"{store} was replaced by another sweep meanwhile")


def _mark(encoder: _Encoder, file: Path, store: Path, number: int, seconds: float) -> None:
    """Put the entry of a chunk in its place, by way of a file beside it."""
    for piece, data in encoder.encode(CHUNK_SECONDS, (slice(number, number + 1),), np.array([seconds])):
        file.write_bytes(data)
        _place(file, store, CHUNK_SECONDS, piece)


def _place(file: Path, store: Path, name: str, piece: str) -> None:
    """Rename a file into the store; FileNotFoundError where the array is gone, which is not made again."""
    target = store / name / piece
    try:
        os.replace(file, target)
    except FileNotFoundError:
        folder = store / name
        for part in piece.split("/")[:-1]:
            folder = folder / part
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
        os.replace(file, target)
