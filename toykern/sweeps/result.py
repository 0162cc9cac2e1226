"""A sweep in its store, which grows by a chunk of models at a time; how it lies there is in `layout.py`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toykern.arguments.grids import Grid
from toykern.explorer import Atlas, figure_of
from toykern.results.store_format import (
    SWEEP_FORMAT,
    StoreError,
    check_path,
    import_zarr,
    read_attributes,
)
from toykern.sweeps.boxes import Box, boxes_of, models_of
from toykern.sweeps.claims import Claims, read_origin
from toykern.sweeps.kept import kept_numbers
from toykern.sweeps.layout import CHUNK_SECONDS, open_seconds, read_finished, read_seconds
from toykern.sweeps.reading import StoredArray, labelled
from toykern.terminal import say

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sweep:
    """A sweep in its store, read piece by piece: made by `toykern.sweep`, `toykern.merge_sweeps`
    and `toykern.open_sweep`.

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
        return read_seconds(self.path, len(self.boxes), self.mark_entry)

    @property
    def finished(self) -> np.ndarray:
        """bool `[chunks]`: which chunks are there."""
        return read_finished(self.path, len(self.boxes), self.mark_entry, self.attributes["version"])

    @property
    def claimed(self) -> np.ndarray:
        """bool `[chunks]`: which somebody has begun to train and not finished, as their claims tell."""
        found = np.zeros(len(self.boxes), dtype=bool)
        with contextlib.suppress(FileNotFoundError):  # stores before version 3 may have none
            found[[n for n in Claims(self.path).numbers() if n < len(found)]] = True
        return found & ~self.finished

    def origin(self, number: int) -> dict[str, Any]:
        """Who trained a finished chunk: host, process, device, instruction set, versions, date.

        Raises:
            StoreError: the chunk is not finished, or that is lost; stores before version 3 do not have it.
        """
        if not self.finished[number]:
            raise StoreError(f"{self.path}: chunk {number} is not finished")
        return read_origin(self.path, number)

    @property
    def complete(self) -> bool:
        """Whether all chunks are finished."""
        return bool(self.finished.all())

    @property
    def kept(self) -> np.ndarray:
        """bool `[chunks]`: which are not finished, but hold models of the store that this one was extended
        or merged from; these show like those of finished chunks."""
        found = np.zeros(len(self.boxes), dtype=bool)
        found[[n for n in kept_numbers(self.path) if n < len(found)]] = True
        return found & ~self.finished

    @property
    def result_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one model's results, by name."""
        depth = len(self.grid.shape)
        return {entry["path"]: tuple(entry["shape"][depth:]) for entry in self.attributes["manifest"]}

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
            return self._stored(name).read([slice(None)] * self._ndim(name), self.finished)
        if not self.finished[box.number]:
            raise StoreError(f"{self.path}: chunk {box.number} is not finished")
        return self._read_box(name, box)

    def read_at(self, name: str, key: Sequence[int | slice]) -> np.ndarray:
        """A part of one array of results: an integer or a stretch for each of its dimensions.

        What is not finished shows as in `to_xarray`.

        Raises:
            StoreError: there is no such array, or what is asked for is damaged.
        """
        if name not in self.names:
            raise StoreError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}")
        return self._stored(name).read(key, self.finished)

    def explore(self) -> Figure:
        """A figure of the sweep: the map of its models, and the best of them; it says how to see more.

        Raises:
            ImportError: matplotlib is not installed (`pip install toykern[plot]`).
        """
        figure = figure_of(Atlas(self))
        say(f"to browse it: toykern explore {shlex.quote(str(self.path))}")
        return figure

    def damage(self, box: Box, thorough: bool = True) -> str | None:
        """What is wrong with a finished chunk, after reading all of it; None where nothing is.

        Not `thorough`: after reading its mark and looking for its files.
        """
        if not self.readable_mark(box):
            return f"{self.path} is damaged: the mark of chunk {box.number} cannot be read"
        try:
            for name in self.names:
                if thorough:
                    self._read_box(name, box)
                elif (wrong := self._stored(name).missing(box)) is not None:
                    return wrong
        except StoreError as error:
            return str(error)
        return None

    def to_xarray(self) -> xarray.Dataset:
        """The results as a labelled data set that reads from the store what is looked at.

        Dimensions: the grid's axes, then `record`, `hidden`, `feature`, `snapshot`. Chunks that were not
        finished when this was called show as NaN (floats), the lowest number (integers) or False, but for
        the models in them that an extended or merged store had before.

        Raises:
            StoreError: something of a finished chunk, or a coordinate, is missing or damaged; what can only
                be seen by reading raises when it is read.
            ImportError: xarray is not installed (`pip install toykern[results]`).
        """
        return labelled(self)

    def __repr__(self) -> str:
        seconds, settings = self.seconds, self.attributes["settings"]
        done, steps = int(np.isfinite(seconds).sum()), int(settings["steps"])
        models = models_of(self.boxes, np.isfinite(seconds))
        total = float(np.nansum(seconds))
        rate = f", {models * steps / total:,.0f} model-steps/s" if total > 0 else ""
        claimed = int(self.claimed.sum())
        others = f", {claimed:,} being trained" if claimed else ""
        axes = " × ".join(f"{n} {name}" for n, name in zip(self.grid.shape, self.grid.dims, strict=True))
        lines = [
            f"<toykern.Sweep of {self.grid.n_models:,} models in {self.path}>",
            f"  grid        {axes}",
            f"  chunks      {done:,} of {len(self.boxes):,} finished{others}, {self.boxes[0].n_models:,} "
            "models each",
            f"  steps       {steps:,}, batch {settings['batch_size'] or 'of all samples'}",
            f"  time        {total:.2f} s{rate}",
            f"  arrays      {', '.join(self.names)}",
        ]
        return "\n".join(lines)

    @property
    def coordinates(self) -> list[dict[str, Any]]:
        """Entries, as in the manifest, of the arrays that label results, maybe with `chunk_seconds`."""
        if "coordinates" in self.attributes:
            return list(self.attributes["coordinates"])
        # Version 1 had no list of them.
        sizes = {name: (len(values), str(values.dtype)) for name, values in self.grid.coords.items()}
        depth = len(self.grid.shape)
        for entry in self.attributes["manifest"]:
            if entry["path"] == "loss":
                sizes["record"] = entry["shape"][depth], "int64"
            elif entry["path"].endswith("_snapshots"):
                sizes["snapshot"] = entry["shape"][depth], "int64"
        return [{"path": name, "shape": [n], "dtype": dtype} for name, (n, dtype) in sizes.items()]

    def readable_mark(self, box: Box) -> bool:
        """Whether the entry of a chunk in `chunk_seconds` can be read; an absent one is NaN."""
        try:
            float(open_seconds(self.path, len(self.boxes), self.mark_entry)[box.number])
        except StoreError:
            raise
        except Exception:  # zarr and its codecs raise whatever they like on damaged bytes
            return False
        return True

    @property
    def mark_entry(self) -> dict[str, Any]:
        """The entry, as in the manifest, of `chunk_seconds`; stores of version 1 did not list it."""
        listed = (entry for entry in self.coordinates if entry["path"] == CHUNK_SECONDS)
        return next(listed, {"path": CHUNK_SECONDS, "shape": [len(self.boxes)], "dtype": "float64"})

    def _entry(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.attributes["manifest"] if entry["path"] == name)

    def _ndim(self, name: str) -> int:
        return len(self._entry(name)["shape"])

    def _stored(self, name: str) -> StoredArray:
        return StoredArray(self.path, self._entry(name), self.boxes)

    def _read_box(self, name: str, box: Box) -> np.ndarray:
        """The part of one chunk, whether it is marked as finished or not."""
        rest = [slice(None)] * (self._ndim(name) - len(box.shape))
        return self._stored(name).read([*box.region, *rest], np.ones(len(self.boxes), dtype=bool))


def open_sweep(path: str | os.PathLike[str]) -> Sweep:
    """The sweep in the store at `path`, finished or not; nothing but its description is read.

    Raises:
        StoreError: there is no store, or it is none of a sweep, of another version, or damaged.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    import_zarr()
    source = Path(os.path.realpath(check_path(path)))
    attributes = read_attributes(source, SWEEP_FORMAT)
    try:
        sweep = Sweep(source, Grid.from_config(attributes["grid"]), attributes)
        _check(sweep)
    except Exception as error:  # a damaged description may be of anything, and lead anywhere
        raise StoreError(
            f"{source} is damaged: its attributes describe no sweep ({type(error).__name__}: {error})"
        ) from error
    return sweep


def _check(sweep: Sweep) -> None:
    """ValueError, or whatever it leads to, where the attributes are none of a sweep."""
    shape, box = list(sweep.grid.shape), sweep.attributes["box"]
    if not isinstance(box, list) or len(box) != len(shape):
        raise ValueError(f"its chunks are {box!r:.80}")
    if not all(type(n) is int and 1 <= n <= points for n, points in zip(box, shape, strict=True)):
        raise ValueError(f"its chunks are {box!r:.80}")
    if "loss" not in sweep.names:
        raise ValueError("it has no loss")
    for entry in sweep.attributes["manifest"]:
        if entry["shape"][: len(shape)] != shape:
            raise ValueError(f"array {entry['path']} is {entry['shape']} on a grid of {shape}")
    settings, provenance = sweep.attributes["settings"], sweep.attributes["provenance"]
    if not isinstance(settings, dict) or not isinstance(provenance, dict):
        raise ValueError("it has no settings or provenance")
    int(settings["steps"]), int(settings["batch_size"] or 0), str(settings["device"])  # None: a full batch
    sweep.coordinates  # noqa: B018  it looks for them
