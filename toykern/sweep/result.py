"""The store of a sweep: one labelled Zarr directory that grows by a chunk of models at a time.

Layout (Zarr format 3), with the grid's axes as the leading dimensions of every array of results, so that
`xarray.open_zarr(path)` shows it labelled:

    attributes             format, version, the grid, the shape of a chunk, settings, provenance, a manifest
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
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toykern.grid import Grid
from toykern.store import (
    SWEEP_FORMAT,
    StoreError,
    check_target,
    import_zarr,
    move_into_place,
    read_attributes,
)
from toykern.sweep.boxes import Box, boxes_of

if TYPE_CHECKING:
    import xarray

VERSION = 1
CHUNK_SECONDS = "chunk_seconds"
_PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Sweep:
    """A sweep in its store, read piece by piece: made by `toykern.sweep` and `toykern.open_sweep`.

    Attributes:
        path: of the store.
        grid: the grid of its models.
        attributes: what the store says of itself: `settings` (steps, batch size, optimiser, …), `provenance`,
            `manifest`, ….
        interrupted: True if Ctrl-C ended the call of `toykern.sweep` that returned it.

    Example:
        >>> import tempfile
        >>> import toykern as tk
        >>> def plan(points, index):
        ...     model = tk.TiedAutoencoder(2, 1, points.n_models, seed=index)
        ...     return {"model": model, "data": tk.SparseFeatures(2, points.density[:, None]), "seed": index}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = tk.sweep(tk.grid(density=[0.1, 1.0], seed=range(3)), plan, f"{folder}/s.zarr", steps=5)
        ...     done.read("weight").shape
        (2, 3, 1, 2)
    """

    path: Path
    grid: Grid
    attributes: dict[str, Any]
    interrupted: bool = False

    @property
    def boxes(self) -> list[Box]:
        """The chunks, in the flat order of their models."""
        return boxes_of(self.grid.shape, tuple(self.attributes["box"]))

    @property
    def seconds(self) -> np.ndarray:
        """float64 `[chunks]`: how long each chunk trained; NaN where it is not finished."""
        stored = _open(self.path, CHUNK_SECONDS)
        try:
            return np.asarray(stored[...])
        except Exception:  # some entry is torn: look at one after another
            return np.array([_seconds_of(stored, number) for number in range(stored.shape[0])])

    @property
    def finished(self) -> np.ndarray:
        """bool `[chunks]`."""
        return np.isfinite(self.seconds)

    @property
    def complete(self) -> bool:
        """Whether all chunks are finished."""
        return bool(self.finished.all())

    @property
    def names(self) -> list[str]:
        """What `read` can read."""
        return [entry["path"] for entry in self.attributes["manifest"]]

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """One array of results, `[*grid.shape, …]`, or the part of one chunk, `[*box.shape, …]`.

        Raises:
            StoreError: there is no such array, a chunk asked for is not finished, or it is damaged.
        """
        if name not in self.names:
            raise StoreError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}")
        if box is None:
            todo = np.flatnonzero(~self.finished)
            if todo.size:
                raise StoreError(
                    f"{self.path} has {len(self.boxes) - todo.size} of its {len(self.boxes)} chunks; "
                    "the same call with resume=True (--resume) goes on"
                )
            shape = tuple(self._entry(name)["shape"])
            whole = np.empty(shape, dtype=self._entry(name)["dtype"])
            for part in self.boxes:
                whole[part.region] = self._read_box(name, part)
            return whole
        if not math.isfinite(_seconds_of(_open(self.path, CHUNK_SECONDS), box.number)):
            raise StoreError(f"{self.path}: chunk {box.number} is not finished")
        return self._read_box(name, box)

    def damage(self, box: Box) -> str | None:
        """What is wrong with a finished chunk, after reading all of it; None where nothing is."""
        try:
            for name in self.names:
                self._read_box(name, box)
        except StoreError as error:
            return str(error)
        return None

    def to_xarray(self) -> xarray.Dataset:
        """The results as a labelled data set that reads from the store what is looked at.

        Dimensions: the grid's axes, then `record`, `hidden`, `feature`, `snapshot`. Chunks that are not
        finished show as NaN (floats), the lowest number (integers) or False.

        Raises:
            ImportError: xarray is not installed (`pip install toykern[results]`).
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install 'toykern[results]'") from error
        opened = xarray.open_zarr(str(self.path), chunks=None, consolidated=False, mask_and_scale=False)
        return opened.drop_vars(CHUNK_SECONDS)

    def __repr__(self) -> str:
        seconds, settings = self.seconds, self.attributes["settings"]
        done, steps = int(np.isfinite(seconds).sum()), int(settings["steps"])
        models = sum(box.n_models for box in self.boxes if np.isfinite(seconds[box.number]))
        total = float(np.nansum(seconds))
        rate = f", {models * steps / total:,.0f} model-steps/s" if total > 0 else ""
        axes = " × ".join(f"{n} {name}" for n, name in zip(self.grid.shape, self.grid.dims, strict=True))
        lines = [
            f"<toykern.Sweep of {self.grid.n_models:,} models in {self.path}>",
            f"  grid        {axes}",
            f"  chunks      {done:,} of {len(self.boxes):,} finished, {self.boxes[0].n_models:,} models each",
            f"  steps       {steps:,}, batch {settings['batch_size']}",
            f"  time        {total:.2f} s{rate}",
            f"  arrays      {', '.join(self.names)}",
        ]
        return "\n".join(lines)

    def _entry(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.attributes["manifest"] if entry["path"] == name)

    def _read_box(self, name: str, box: Box) -> np.ndarray:
        entry, where = self._entry(name), f"{self.path} is damaged: chunk {box.number} of array {name}"
        stored = _open(self.path, name)
        if list(stored.shape) != entry["shape"] or str(stored.dtype) != entry["dtype"]:
            raise StoreError(
                f"{self.path} is damaged: array {name} should be {entry['dtype']} {entry['shape']}, "
                f"but is {stored.dtype} {list(stored.shape)}"
            )
        for key in _pieces(box, stored.chunks, stored.shape):
            if not (self.path / name / key).is_file():
                raise StoreError(f"{where} is missing")
        try:
            return np.asarray(stored[box.region])
        except Exception as error:  # zarr and its codecs raise whatever they like on damaged bytes
            raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error

    def _write_box(self, box: Box, values: Mapping[str, np.ndarray], seconds: float) -> None:
        """Add a chunk: everything of it, then the entry that says so."""
        if values.keys() != set(self.names):
            raise ValueError(
                f"chunk {box.number} has the results {sorted(values)}, the chunks before had {self.names}"
            )
        try:
            _open(self.path, CHUNK_SECONDS, "r+")[box.number] = np.nan
            for name, array in values.items():
                entry = self._entry(name)
                trailing = tuple(entry["shape"][len(box.shape) :])
                if array.shape[1:] != trailing or str(array.dtype) != entry["dtype"]:
                    raise ValueError(
                        f"{name} of chunk {box.number} is {array.dtype} {list(array.shape[1:])} a model, "
                        f"that of the chunks before was {entry['dtype']} {list(trailing)}"
                    )
                _open(self.path, name, "r+")[box.region] = array.reshape(*box.shape, *trailing)
            _open(self.path, CHUNK_SECONDS, "r+")[box.number] = seconds
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error


def open_sweep(path: str | os.PathLike[str]) -> Sweep:
    """The sweep in the store at `path`, finished or not; nothing but its description is read.

    Raises:
        StoreError: there is no store, or it is none of a sweep, of another version, or damaged.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    import_zarr()
    source = Path(os.path.realpath(path))
    attributes = read_attributes(source, SWEEP_FORMAT, VERSION)
    try:
        grid = Grid.from_config(attributes["grid"])
        sweep = Sweep(source, grid, attributes)
        if len(tuple(attributes["box"])) != len(grid.shape) or min(attributes["box"]) < 1:
            raise ValueError(f"its chunks are {attributes['box']}")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{source} is damaged: its attributes describe no sweep ({error})") from error
    return sweep


def create(
    path: Path, grid: Grid, box: tuple[int, ...], values: Mapping[str, np.ndarray],
    dimensions: Mapping[str, tuple[str, ...]], coordinates: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any], overwrite: bool,
) -> Sweep:  # fmt: skip
    """A new store without any chunk, for results shaped and typed as `values` (`[models, …]`).

    It is made beside its place and renamed. `coordinates` are those of the dimensions after the grid's;
    `dimensions` names those of each array.
    """
    zarr = import_zarr()
    target = check_target(path, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:12]}")
    boxes = boxes_of(grid.shape, box)
    try:
        root = zarr.create_group(store=str(partial), zarr_format=3)

        def make(name: str, shape: Any, dtype: Any, chunks: Any, dims: Any) -> Any:
            kind = np.dtype(dtype).kind
            return root.create_array(
                name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dims,
                compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
                fill_value=math.nan if kind == "f" else np.iinfo(dtype).min if kind in "iu" else 0,
                config={"write_empty_chunks": True},
            )  # fmt: skip

        manifest = []
        for name, array in values.items():
            shape = (*grid.shape, *array.shape[1:])
            pieces = _piece_shape(box, array.itemsize * math.prod(array.shape[1:]))
            chunks = (*pieces, *(max(1, n) for n in array.shape[1:]))
            make(name, shape, array.dtype, chunks, (*grid.dims, *dimensions[name]))
            manifest.append({"path": name, "shape": list(shape), "dtype": str(array.dtype)})
        for name, array in {**grid.coords, **coordinates}.items():
            make(name, array.shape, array.dtype, array.shape, (name,))[...] = array
        make(CHUNK_SECONDS, (len(boxes),), "float64", (1,), ("chunk",))
        # The attributes come last: a directory with them is complete.
        root.attrs.update(
            {
                "format": SWEEP_FORMAT,
                "version": VERSION,
                "grid": grid.config(),
                "box": list(box),
                "manifest": manifest,
                **attributes,
            }
        )
        move_into_place(partial, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_sweep(target)


def _piece_shape(box: tuple[int, ...], bytes_per_model: int) -> tuple[int, ...]:
    """How a chunk is stored: whole, or cut evenly where it is too large for one file."""
    piece = list(box)
    for axis, points in enumerate(box):
        while bytes_per_model * math.prod(piece) > _PIECE_BYTES and piece[axis] > 1:
            piece[axis] = next(n for n in range(piece[axis] - 1, 0, -1) if points % n == 0)
    return tuple(piece)


def _pieces(box: Box, chunks: tuple[int, ...], shape: tuple[int, ...]) -> list[str]:
    """The files of a chunk, below the folder of an array stored in `chunks`."""
    if math.prod(shape) == 0:
        return []
    ranges = [range(w.start // c, -(-w.stop // c)) for w, c in zip(box.region, chunks, strict=False)]
    ranges += [range(-(-n // c)) for n, c in zip(shape[len(ranges) :], chunks[len(ranges) :], strict=True)]
    numbers = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(ranges))
    return ["c/" + "/".join(map(str, row)) for row in numbers.tolist()]


def _seconds_of(stored: Any, number: int) -> float:
    """One entry of `chunk_seconds`; NaN for one that is torn: its chunk is not finished."""
    try:
        return float(stored[number])
    except Exception:  # zarr and its codecs raise whatever they like on damaged bytes
        return math.nan


def _open(path: Path, name: str, mode: str = "r") -> Any:
    if not (path / name / "zarr.json").is_file():
        raise StoreError(f"{path} is damaged: array {name} is missing")
    try:
        return import_zarr().open_array(store=str(path), path=name, mode=mode)
    except Exception as error:  # whatever zarr raises on damaged metadata
        raise StoreError(
            f"{path} is damaged: array {name} cannot be opened ({type(error).__name__}: {error})"
        ) from error
