"""Models of unfinished chunks that were trained before, in a store that was extended or merged.

A chunk of the larger grid may hold models of the former store and others that nobody has trained. Those that
are there lie in an archive of NumPy arrays with checksums, `<number>.kept` beside the claims, until the
others have been trained too and the whole chunk is put in its place. It saves time and nothing else: where it
is lost or damaged all models of the chunk are trained, to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toykern.sweeps.boxes import Box, Part
from toykern.sweeps.claims import WORK, numbers_of

_VALUES = "values/"


@dataclass(frozen=True)
class Kept:
    """What of a chunk was there before.

    Attributes:
        mask: bool `[models]`: which of its models.
        values: the results of these, `[kept, …]`, by name.
        seconds: that their training took.
        origins: of the chunks that they were in.
    """

    mask: np.ndarray
    values: dict[str, np.ndarray]
    seconds: float
    origins: list[dict[str, Any]]

    def origin(self, trained: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Where the chunk comes from: who `trained` the rest of it, and "taken", the origins of what was
        there before; what all of these say alike stands beside."""
        alike = dict(self.origins[0]) if self.origins else {}
        for other in self.origins[1:]:
            alike = {name: value for name, value in alike.items() if other.get(name) == value}
        return {**alike, "wall": 0.0, **(trained or {}), "taken": self.origins}

    def missing(self, box: Box, shape: tuple[int, ...]) -> Iterator[Part]:
        """The rest of a chunk, in parts that are products of places along each axis of a grid of `shape`."""
        for places in products(~self.mask.reshape(box.shape)):
            whole = tuple(start + along for start, along in zip(box.start, places, strict=True))
            yield Part(box.number, whole, shape)


def products(mask: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Products of places along each axis that cover where `mask` is true, each place once.

    >>> [[p.tolist() for p in part] for part in products(np.array([[0, 1, 1], [1, 1, 1], [0, 1, 1]], bool))]
    [[[0, 2], [1, 2]], [[1], [0, 1, 2]]]
    """
    if not mask.any():
        return []
    if mask.all():
        return [tuple(np.arange(length) for length in mask.shape)]
    if mask.ndim == 1:
        return [(np.flatnonzero(mask),)]
    alike: dict[bytes, list[int]] = {}
    for place, row in enumerate(mask):
        alike.setdefault(row.tobytes(), []).append(place)
    return [(np.array(rows), *rest) for rows in alike.values() for rest in products(mask[rows[0]])]


def write_kept(store: Path, number: int, kept: Kept) -> None:
    """Put it beside the chunk's other marks.

    Raises:
        OSError: it cannot be written.
    """
    fresh = store / WORK / f"{number}.kept-{secrets.token_hex(4)}"
    told = json.dumps({"seconds": kept.seconds, "origins": kept.origins}).encode()
    arrays: dict[str, Any] = {_VALUES + name: array for name, array in kept.values.items()}
    try:
        with open(fresh, "wb") as file:
            np.savez(file, mask=kept.mask, told=np.frombuffer(told, np.uint8), **arrays)
        os.replace(fresh, store / WORK / f"{number}.kept")
    finally:
        fresh.unlink(missing_ok=True)


def read_kept(store: Path, box: Box, shapes: Mapping[str, tuple[int, ...]], warn: bool = True) -> Kept | None:
    """What of a chunk was there before; None where nothing was or it is lost.

    `shapes` are those of one model's results by name; a subset of all names reads these alone.
    """
    path = store / WORK / f"{box.number}.kept"
    try:
        with np.load(path, allow_pickle=False) as found:
            mask = found["mask"]
            values = {name: found[_VALUES + name] for name in shapes}
            told = json.loads(found["told"].tobytes())
        seconds, origins = float(told["seconds"]), list(told["origins"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        problem: Exception | None = error
    else:
        problem = _wrong(box, mask, values, shapes)
        if problem is None:
            return Kept(mask, values, seconds, origins)
    if warn:
        warnings.warn(
            f"{path} cannot be read ({problem}); the models that were in it are trained again", stacklevel=2
        )
    return None


def _wrong(
    box: Box, mask: np.ndarray, values: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> Exception | None:
    """What is wrong with what was read, or None."""
    if mask.dtype != bool or mask.shape != (box.n_models,):
        return ValueError("it is of another chunk")
    count = int(np.count_nonzero(mask))
    if any(values[name].shape != (count, *shape) for name, shape in shapes.items()):
        return ValueError("its arrays are of other models")
    return None


def forget_kept(store: Path, number: int) -> None:
    """Remove what is no longer needed, since the chunk is finished."""
    with contextlib.suppress(OSError):  # it is removed when somebody goes on with the sweep
        (store / WORK / f"{number}.kept").unlink(missing_ok=True)


def kept_numbers(store: Path) -> set[int]:
    """The chunks of which something is kept, by a listing."""
    try:
        return numbers_of(store / WORK, ".kept")
    except FileNotFoundError:
        return set()
