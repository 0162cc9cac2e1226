"""Reading the results of a sweep from its store: what was written, or a `StoreError`.

Zarr shows a piece that is not there as fill values. Here a piece of a finished chunk must be there and be
whole; fill values stand for chunks that are not finished, and for those alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from toykern.results.store_format import StoreError, open_array, piece_names, piece_shape
from toykern.results.stored import Stored
from toykern.sweeps.boxes import Box
from toykern.sweeps.claims import is_begun
from toykern.sweeps.kept import read_kept
from toykern.sweeps.layout import CHUNK_SECONDS, fill_value

if TYPE_CHECKING:
    import xarray

Key = Sequence[int | slice]


class StoredSweep(Stored, Protocol):
    """What of a sweep is looked at here (`Sweep` has it)."""

    @property
    def boxes(self) -> list[Box]:
        """The chunks."""

    @property
    def finished(self) -> np.ndarray:
        """bool `[chunks]`."""

    @property
    def coordinates(self) -> list[dict[str, Any]]:
        """Entries of the arrays that label results."""

    def readable_mark(self, box: Box) -> bool:
        """Whether the entry that says that a chunk is finished can be read."""


class StoredArray:
    """One array of results, `[*grid.shape, …]`.

    Raises:
        StoreError: it is missing or damaged.

    Attributes:
        shape: of the whole.
        dtype: of its numbers.
        dims: names of its dimensions.
    """

    def __init__(self, store: Path, entry: Mapping[str, Any], boxes: Sequence[Box]) -> None:
        self._store, self._name, self._boxes = store, entry["path"], boxes
        self._array = open_array(store, entry)
        self.shape, self.dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        names = self._array.metadata.dimension_names or ()
        self.dims = tuple(name or f"dim_{at}" for at, name in enumerate(names))

    def missing(self, box: Box) -> str | None:
        """What is wrong with a finished chunk as far as the names of its pieces tell."""
        for piece in piece_names(piece_shape(self._array), self.shape, box.region):
            if not (self._store / self._name / piece).is_file():
                return f"{self._where(box)} is missing"
        return None

    def read(self, key: Key, finished: np.ndarray) -> np.ndarray:
        """The numbers at `key`, one integer or stretch for each dimension; `finished`, bool `[chunks]`, says
        which chunks there are.

        Raises:
            StoreError: a finished chunk that is needed is missing or damaged.
        """
        stretches = [slice(k, k + 1) if isinstance(k, int) else k for k in self._positive(key)]
        kept = tuple(0 if isinstance(k, int) else slice(None) for k in self._positive(key))
        parts = list(self._parts(stretches))
        for box, _, _ in parts:
            if finished[box.number] and (wrong := self.missing(box)) is not None:
                raise StoreError(wrong)
        if all(finished[box.number] for box, _, _ in parts):
            try:
                return np.asarray(self._array[tuple(stretches)])[kept]
            except Exception:  # find out below which chunk it is
                pass
        lengths = [len(range(n)[s]) for n, s in zip(self.shape, stretches, strict=True)]
        found = np.full(lengths, fill_value(self.dtype), dtype=self.dtype)
        for box, there, here in parts:
            if finished[box.number]:
                found[here] = self._read_part(box, there)
            elif (part := self._kept_part(box, there)) is not None:
                found[here] = part
        return found[kept]

    def _kept_part(self, box: Box, stretches: tuple[slice, ...]) -> np.ndarray | None:
        """What an extended store has of an unfinished chunk, fill values for the other models."""
        trailing = self.shape[len(box.shape) :]
        kept = read_kept(self._store, box, {self._name: trailing}, warn=False)
        if kept is None:
            return None
        whole = np.full((box.n_models, *trailing), fill_value(self.dtype), dtype=self.dtype)
        whole[kept.mask] = kept.values[self._name]
        inside = (
            slice(s.start - start, s.stop - start, s.step)
            for s, start in zip(stretches, box.start, strict=False)
        )
        return whole.reshape(*box.shape, *trailing)[(*inside, *stretches[len(box.shape) :])]

    def _read_part(self, box: Box, stretches: tuple[slice, ...]) -> np.ndarray:
        try:
            return np.asarray(self._array[stretches])
        except Exception as error:  # zarr and its codecs raise whatever they like on damaged bytes
            raise StoreError(
                f"{self._where(box)} cannot be read ({type(error).__name__}: {error})"
            ) from error

    def _positive(self, key: Key) -> list[int | slice]:
        """The key with every number counted from the start."""
        return [
            int(range(n)[k]) if not isinstance(k, slice) else slice(*k.indices(n))
            for n, k in zip(self.shape, key, strict=True)
        ]

    def _parts(
        self, stretches: Sequence[slice]
    ) -> Iterator[tuple[Box, tuple[slice, ...], tuple[slice, ...]]]:
        """The chunks that a key touches: what of the array is in them, and where in the result it goes."""
        depth, first = len(self._boxes[0].shape), self._boxes[0].shape
        counts = [-(-n // size) for n, size in zip(self.shape[:depth], first, strict=True)]
        along: list[dict[int, tuple[slice, slice]]] = []
        for n, size, stretch in zip(self.shape, first, stretches, strict=False):
            wanted = np.arange(n)[stretch]
            pieces, start, count = np.unique(wanted // size, return_index=True, return_counts=True)
            along.append(
                {
                    int(p): (slice(int(wanted[s]), int(wanted[s + c - 1]) + 1, stretch.step), slice(s, s + c))
                    for p, s, c in zip(pieces, start.tolist(), count.tolist(), strict=True)
                }
            )
        rest = tuple(stretches[depth:])
        for numbers in itertools.product(*along):
            found = [axis[number] for axis, number in zip(along, numbers, strict=True)]
            box = self._boxes[int(np.ravel_multi_index(numbers, counts))]
            yield box, (*(there for there, _ in found), *rest), tuple(here for _, here in found)

    def _where(self, box: Box) -> str:
        return f"{self._store} is damaged: chunk {box.number} of array {self._name}"


def read_whole(store: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """A small array whose pieces must all be there.

    Raises:
        StoreError: it is missing or damaged.
    """
    stored, where = open_array(store, entry), f"{store} is damaged: array {entry['path']}"
    if not all(
        (store / entry["path"] / piece).is_file() for piece in piece_names(piece_shape(stored), stored.shape)
    ):
        raise StoreError(f"{where} is missing a piece")
    try:
        return np.asarray(stored[...])
    except Exception as error:  # as above
        raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error


def labelled(sweep: StoredSweep) -> xarray.Dataset:
    """The results of a sweep as a data set that reads from the store what is looked at."""
    try:
        import xarray
        from xarray.backends import BackendArray, BackendEntrypoint
        from xarray.core import indexing
    except ImportError as error:
        raise ImportError("to_xarray needs xarray: pip install 'toykern[results]'") from error
    finished = sweep.finished
    _check_marks(sweep, finished)

    class Lazy(BackendArray):
        def __init__(self, stored: StoredArray) -> None:
            self.stored, self.shape, self.dtype = stored, stored.shape, stored.dtype

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.BASIC
            return indexing.explicit_indexing_adapter(key, self.shape, support, self.read)

        def read(self, key: Key) -> np.ndarray:
            return self.stored.read(key, finished)

    class Engine(BackendEntrypoint):
        def open_dataset(self, filename_or_obj: Any, *, drop_variables: Any = None) -> xarray.Dataset:
            variables = {}
            for entry in sweep.attributes["manifest"]:
                stored = StoredArray(sweep.path, entry, sweep.boxes)
                for box in sweep.boxes:
                    if finished[box.number] and (wrong := stored.missing(box)) is not None:
                        raise StoreError(wrong)
                if "/" not in entry["path"]:
                    lazy = indexing.LazilyIndexedArray(Lazy(stored))
                    variables[entry["path"]] = xarray.Variable(stored.dims, lazy)
            return xarray.Dataset(variables, coords=_coordinates(sweep), attrs=sweep.attributes)

    try:
        return xarray.open_dataset(str(sweep.path), engine=Engine, chunks=None)
    except (ValueError, TypeError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{sweep.path} is damaged: its arrays do not go together ({error})") from error


def _coordinates(sweep: StoredSweep) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Those of the grid's axes, and of the dimensions after them, from the store."""
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        entry["path"]: ((entry["path"],), read_whole(sweep.path, entry))
        for entry in sweep.coordinates
        if entry["path"] != CHUNK_SECONDS
    }
    for name, values in sweep.grid.coords.items():
        if name not in found or found[name][1].tobytes() != values.tobytes():
            raise StoreError(f"{sweep.path} is damaged: the coordinate {name} is not that of its grid")
    return found


def _check_marks(sweep: StoredSweep, finished: np.ndarray) -> None:
    """StoreError where a chunk only looks unfinished: while its pieces are put in place there is a file that
    says so, in version 2 an entry that is NaN.

    Not so in stores of version 1, where zarr left out entries that are NaN.
    """
    first = StoredArray(sweep.path, sweep.attributes["manifest"][0], sweep.boxes)
    version = sweep.attributes["version"]
    for box in sweep.boxes:
        mark = sweep.path / CHUNK_SECONDS / "c" / str(box.number)
        if finished[box.number]:
            lost = version > 2 and not sweep.readable_mark(box)
        elif mark.is_file() and version < 3:
            lost = not sweep.readable_mark(box)
        else:  # the mark is looked at twice, since a writer may be at it
            lost = version > 1 and first.missing(box) is None and not mark.is_file()
            lost = lost and not is_begun(sweep.path, box.number) and not mark.is_file()
        if lost:
            raise StoreError(
                f"{sweep.path} is damaged: whether chunk {box.number} is finished cannot be read; the same "
                "call with resume=True (--resume) trains it again"
            )
