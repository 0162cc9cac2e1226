"""What both kinds of store say of themselves, and how a reader knows that it is true.

The attributes of a store's root hold `format`, `version`, a `manifest` with an entry for every array (path,
shape, dtype, and a digest of the array's own metadata), the same for `coordinates` (arrays that are there for
people who open the store with other readers), and a `digest` over all of that. The stored pieces of an array
carry checksums of their own, and a piece that is not there is an error. So whatever happens to a store, it
gives what was written or a `StoreError`.

Version 1 had no digests and no list of coordinates. Such stores are read with the same checks of their
structure. Version 3, of sweeps alone, has large pieces as shards, and marks finished chunks by files that are
there or not (`toykern/sweeps/layout.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toykern.arguments.errors import describe

__all__ = [
    "FORMAT",
    "SWEEP_FORMAT",
    "SWEEP_VERSION",
    "VERSION",
    "OwnStoreError",
    "StoreError",
    "check_path",
    "digest",
    "entry_of",
    "import_zarr",
    "open_array",
    "piece_names",
    "piece_shape",
    "read_attributes",
    "read_description",
    "sealed",
]

FORMAT = "toykern run"
SWEEP_FORMAT = "toykern sweep"
VERSION = 2
SWEEP_VERSION = 3
_READABLE = {FORMAT: (1, 2), SWEEP_FORMAT: (1, 2, 3)}


class StoreError(ValueError):
    """A result store is missing, foreign, damaged or cannot be written; the message says which and why."""


class OwnStoreError(StoreError):
    """Damaged or of another version, but written by toykern, so that it may be replaced when asked to."""


def check_path(path: Any, name: str = "path") -> Path:
    """The path of a store as a `Path`; TypeError or ValueError for what is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name} must be a string or a path, not {describe(path)}")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"{name} must name a directory, not {os.fspath(path)!r:.80}")
    return Path(path)


# The digest


def digest(value: Any) -> str:
    """The SHA-256 of JSON values, whatever the order of their keys and the spaces between."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as JSON gives them back, with the digest over all others.

    Raises:
        StoreError: JSON cannot hold them, or would give back something else.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(attributes))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the settings cannot be stored: {error}") from error
    return {**plain, "digest": digest(plain)}


def entry_of(directory: Path, name: str) -> dict[str, Any]:
    """The manifest's entry for an array that was written to the store at `directory`."""
    metadata = json.loads((directory / name / "zarr.json").read_text(encoding="utf-8"))
    return {
        "path": name,
        "shape": metadata["shape"],
        "dtype": metadata["data_type"],
        "metadata": digest(_bare(metadata)),
    }


def _bare(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An array's metadata without its attributes: labels that others may add change no number."""
    return {key: value for key, value in metadata.items() if key != "attributes"}


# Reading a store's description


def read_description(path: Path, wanted: str = "toykern store") -> dict[str, Any]:
    """The attributes of a directory that says it is a store of ours, with no further check; without zarr.

    Raises:
        StoreError: there is none, or it is something else; `wanted` is what it should have been.
    """
    if not os.path.lexists(path):
        raise StoreError(f"{path} does not exist")
    if not path.is_dir():
        raise StoreError(f"{path} is not a toykern store: it is a file, a store is a directory")
    metadata = path / "zarr.json"
    if not metadata.is_file():
        raise StoreError(f"{path} is not a toykern store: it has no zarr.json")
    try:
        attributes: dict[str, Any] = json.loads(metadata.read_text(encoding="utf-8"))["attributes"]
        marker = attributes.get("format")
    except OSError as error:
        raise StoreError(f"cannot read {metadata}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is not a toykern store, or its zarr.json is damaged ({error})") from error
    if marker not in (FORMAT, SWEEP_FORMAT):
        raise StoreError(f"{path} is a Zarr store but not a {wanted}: its format attribute is {marker!r}")
    return attributes


def read_attributes(path: Path, wanted: str = FORMAT) -> dict[str, Any]:
    """The attributes of a store after checking that it is one of ours, of the `wanted` format, and that they
    are those that were written; without zarr.

    Raises:
        StoreError: it is missing, foreign, damaged, or of another format or version.
    """
    attributes = read_description(path, wanted)
    marker, version = attributes["format"], attributes.get("version")
    if marker != wanted:
        reader = "toykern.open_sweep" if marker == SWEEP_FORMAT else "toykern.Run.load"
        raise OwnStoreError(f"{path} is the store of a {marker}, not of a {wanted}; {reader} reads it")
    if type(version) is not int or version not in _READABLE[wanted]:
        raise OwnStoreError(
            f"{path} has store version {version!r}; this toykern reads versions "
            f"{' and '.join(map(str, _READABLE[wanted]))}"
        )
    if version > 1 or "digest" in attributes:
        found = digest({key: value for key, value in attributes.items() if key != "digest"})
        if found != attributes.get("digest"):
            raise OwnStoreError(f"{path} is damaged: the attributes in zarr.json are not those written")
    for name in ("manifest", "coordinates"):
        if version == 1 and name == "coordinates":
            continue
        if not _are_entries(attributes.get(name)):
            raise OwnStoreError(f"{path} is damaged: zarr.json has no {name} of its arrays")
    return attributes


def _are_entries(entries: Any) -> bool:
    """Whether these are entries of a manifest: each array once, by a path inside the store."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False
    paths = [entry.get("path") for entry in entries]
    return (
        all(isinstance(path, str) and _is_inside(path) for path in paths)
        and len(set(paths)) == len(paths)
        and all(_is_shape(entry.get("shape")) for entry in entries)
        and all(_is_dtype(entry.get("dtype")) for entry in entries)
    )


def _is_inside(path: str) -> bool:
    return all(part not in ("", ".", "..") and "\0" not in part for part in path.split("/"))


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)


def _is_dtype(dtype: Any) -> bool:
    try:
        return isinstance(dtype, str) and np.dtype(dtype).kind in "biuf"
    except (TypeError, ValueError):
        return False


# Arrays


def open_array(store: Path, entry: Mapping[str, Any], mode: str = "r") -> Any:
    """The array of a manifest's entry as a `zarr.Array`, after checking that it is what was written.

    With the mode "r+" it writes all pieces that it is given: zarr leaves out those that hold nothing but fill
    values if it is not told otherwise, and here a piece that is not there is one that was lost.

    Raises:
        StoreError: it is missing or damaged.
    """
    name, zarr = entry["path"], import_zarr()
    where = f"{store} is damaged: array {name}"
    try:
        metadata = json.loads((store / name / "zarr.json").read_text(encoding="utf-8"))
        whole = "metadata" not in entry or digest(_bare(metadata)) == entry["metadata"]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{where} is missing") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error
    try:
        stored = zarr.open_array(store=str(store), path=name, mode=mode)
        if mode != "r":
            stored = stored.with_config({"write_empty_chunks": True})
        shape, dtype, chunks = list(stored.shape), str(stored.dtype), list(stored.chunks)
    except Exception as error:  # zarr raises whatever it likes on damaged metadata
        raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error
    if shape != entry["shape"] or dtype != entry["dtype"] or len(chunks) != len(shape):
        raise StoreError(f"{where} should be {entry['dtype']} {entry['shape']}, but is {dtype} {shape}")
    if not whole:
        raise StoreError(f"{where} is described by another zarr.json than was written")
    return stored


def piece_shape(stored: Any) -> tuple[int, ...]:
    """The shape of what a file of a `zarr.Array` holds: a shard where there are any, else a chunk."""
    return tuple(stored.shards or stored.chunks)


def piece_names(chunks: Sequence[int], shape: Sequence[int], region: Sequence[slice] = ()) -> list[str]:
    """The files, below the folder of an array stored in `chunks`, that hold a region (default: all of it).

    `region` gives stretches along the leading dimensions.

    >>> piece_names((2, 3), (4, 3), (slice(1, 3),))
    ['c/0/0', 'c/1/0']
    """
    if math.prod(shape) == 0:
        return []
    stretches = [*region, *(slice(0, length) for length in shape[len(region) :])]
    ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(stretches, chunks, strict=True)]
    if not ranges:
        return ["c"]
    numbers = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(ranges))
    return ["c/" + "/".join(map(str, row)) for row in numbers.tolist()]


def import_zarr() -> Any:
    """The module zarr; ImportError that says what to install."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError("saving and loading runs needs zarr: pip install 'toykern[results]'") from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise ImportError(
            f"runs are saved with zarr 3 or newer, not {zarr.__version__}: pip install 'toykern[results]'"
        )
    return zarr
