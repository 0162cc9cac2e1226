"""Saving and loading runs: one Zarr store per run, chunked over models, written whole or not at all.

Layout (Zarr format 3; every dimension has the name that it has in `Run.to_xarray`, so that other readers,
such as `xarray.open_zarr(path)` and `xarray.open_datatree(path, engine="zarr")`, show what belongs together):

    attributes      format, version, the run's settings, grid and provenance, a manifest of every array, and a
                    digest of all that (`toykern/results/store_format.py`)
    loss, diverged_at                 the results, models flat along `model`
    record, <axis of the grid>        coordinates of these
    model/<parameter>                 the trained parameters
    initialization/seed, std          what the initial weights were drawn from
    records/<name>  snapshots/<step>/<parameter>
    topology/<name>                   what a topology recipe keeps of sparse models, and what its updates did
    arrays/<name>  optimizer_state/<name>  carry/<name>     what is needed to resume or rerun; a "/" in a name
    is a group

All numbers are stored as they are, bit for bit; chunks carry a checksum and absent chunks are an error, so a
damaged store is found when it is read, never taken for zeros or for other settings. How a store takes its
place is in `toykern/results/store_place.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.errors import check_flag
from toykern.arguments.grids import Grid
from toykern.nn.kinds import has_connections, model_from_state
from toykern.results import placing
from toykern.results.labels import trailing_dims
from toykern.results.run_checks import State, check_run
from toykern.results.store_format import (
    FORMAT,
    SWEEP_FORMAT,
    VERSION,
    StoreError,
    check_path,
    entry_of,
    import_zarr,
    open_array,
    piece_names,
    read_attributes,
    sealed,
)
from toykern.results.store_place import check_target, place_store
from toykern.sparse.config import recipe_from_config
from toykern.training.kernels import freeze
from toykern.training.resident_topology import ResidentTopology, state_from_store, stored_state
from toykern.training.settings import Settings
from toykern.training.state import TrainingState

__all__ = [
    "FORMAT",
    "SWEEP_FORMAT",
    "VERSION",
    "StoreError",
    "check_target",
    "import_zarr",
    "load_run",
    "read_attributes",
    "save_run",
    "tensors_of",
]

_CHUNK_BYTES = 8 << 20
_GROUPS = ("arrays", "records", "optimizer_state", "carry")


def save_run(run: TrainingState, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write `run` to a new Zarr store at `path`.

    The store is written beside its place, synced to the disk and then renamed, so `path` never holds half a
    store: after a failure (or Ctrl-C) what was there before is untouched and nothing new is left. A process
    that is killed leaves a hidden directory at most, which the next one to save there removes.

    Args:
        run: the run to save.
        path: the directory to create; its parent must exist.
        overwrite: replace an existing toykern store, at one instant. Anything else at `path` is never
            replaced, even if it appears while the run is being saved; nor is a store that somebody put
            something into.

    Raises:
        StoreError: `path` cannot be written or holds something, or the run holds what JSON cannot.
        TypeError: `overwrite` is neither True nor False, or `path` no path.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    zarr = import_zarr()
    target = check_target(path, overwrite=check_flag("overwrite", overwrite))
    partial = placing.beside(target, "partial")
    try:
        _write(zarr, run, partial)
        place_store(partial, target, overwrite)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_run(path: str | os.PathLike[str], kind: type[State]) -> State:
    """Read a run that `save_run` wrote: every tensor bit for bit, on the CPU, ready to be resumed.

    `kind` is the class to make of it: `toykern.Run`.

    Raises:
        StoreError: there is no store, it is not a toykern store, was written by a newer version, or is
            damaged: what is returned is what was saved.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    import_zarr()
    source = check_path(path)
    attributes = read_attributes(source)
    tensors = {entry["path"]: _read_array(source, entry) for entry in attributes["manifest"]}
    try:
        return check_run(_rebuild(attributes, tensors, kind), "the run")
    except Exception as error:  # a damaged description may be of anything, and lead anywhere
        raise StoreError(
            f"{source} is damaged: its settings do not describe a run ({type(error).__name__}: {error})"
        ) from error


def _write(zarr: Any, run: TrainingState, directory: Path) -> None:
    root = zarr.create_group(store=str(directory), zarr_format=3)
    manifest: list[dict[str, Any]] = []
    for name, tensor in tensors_of(run):
        array = tensor.detach().cpu().numpy()
        _write_array(zarr, root, name, array, _dimension_names(name, array.shape, run))
        manifest.append(entry_of(directory, name))
    # Coordinates for people who open the store with xarray; loading does not need them.
    coordinates: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {"record": (run.record_steps, ("record",))}
    if run.grid is not None:
        for name in run.grid.dims:
            flat = getattr(run.grid, name)
            if flat.ndim == 1 and name not in root:
                coordinates[name] = flat.numpy(), ("model",)
    for name, (array, dims) in coordinates.items():
        _write_array(zarr, root, name, array, dims)
    topology = _topology_state(run)[0]
    described = {
        **({} if topology is None else {"topology": topology}),
        "format": FORMAT,
        "version": VERSION,
        "manifest": manifest,
        "coordinates": [entry_of(directory, name) for name in coordinates],
        "step": run.step,
        "seconds": run.seconds,
        "interrupted": run.interrupted,
        "snapshots": list(run.snapshots),
        "grid": None if run.grid is None else run.grid.config(),
        "config": run.config,
        "provenance": run.provenance,
    }
    # The marker comes last: a directory with it is complete.
    root.attrs.update(sealed(described))
    read_attributes(directory)  # JSON holds what was given


def _topology_state(run: TrainingState) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What the run's recipe keeps: JSON-able, and tensors by name; (None, {}) without one."""
    if run.topology is None:
        return (None, {}) if run.topology_state is None else run.topology_state["stored"]
    try:
        return stored_state(run.topology)
    except ValueError as error:
        raise StoreError(f"the run's topology cannot be stored: {error}") from error


def tensors_of(run: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a run with its path in the store."""
    yield "loss", run.loss
    yield "diverged_at", run.diverged_at
    for name, tensor in run.model.state_dict().items():
        yield f"model/{name}", tensor
    for name, tensor in run.model.drawn_from().items():
        yield f"initialization/{name}", tensor
    for group in _GROUPS:
        for name, tensor in getattr(run, group).items():
            yield f"{group}/{name}", tensor
    for step, snapshot in run.snapshots.items():
        for name, tensor in snapshot.items():
            yield f"snapshots/{step}/{name}", tensor
    for name, tensor in _topology_state(run)[1].items():
        yield f"topology/{name}", tensor


def _dimension_names(path: str, shape: tuple[int, ...], run: TrainingState) -> tuple[str, ...]:
    """Those of `to_xarray` where the array is one of models; else names that no other array has.

    xarray takes dimensions of one name in a group and in those above it for the same.
    """
    leading: list[str] = []
    if shape and shape[0] == run.n_models:
        leading.append("model")
        if path == "loss" or path.startswith("records/"):
            leading.append("record")
    trailing = shape[len(leading) :]
    network = run.model.network
    sizes = network.sizes
    for name in reversed(path.split("/")):  # a moment of the weight has its dimensions
        of_inputs = {"probability": ("feature",), "importance": (network.output_dim,)}
        found = of_inputs.get(name) or trailing_dims(name, len(trailing), network)
        if len(found) == len(trailing) and all(
            sizes.get(dim) == length for dim, length in zip(found, trailing, strict=False)
        ):
            return (*leading, *found)
    flat = path.replace("/", "_")
    return (*leading, *(f"{flat}_dim_{k}" for k in range(len(trailing))))


def _write_array(zarr: Any, root: Any, name: str, array: np.ndarray, dims: tuple[str, ...]) -> None:
    chunks = _chunks(array)
    stored = root.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
        fill_value=0,
        dimension_names=dims,
        config={"write_empty_chunks": True},
    )
    if array.size:
        stored[...] = array


def _chunks(array: np.ndarray) -> tuple[int, ...]:
    """Whole models, about 8 MiB of them, per chunk."""
    if array.ndim == 0:
        return ()
    per_model = max(1, array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    models = max(1, min(array.shape[0], _CHUNK_BYTES // per_model))
    return (models, *(max(1, length) for length in array.shape[1:]))


def _read_array(source: Path, entry: dict[str, Any]) -> Tensor:
    name, shape = entry["path"], tuple(entry["shape"])
    where, stored = f"{source} is damaged: array {name}", open_array(source, entry)
    names = piece_names(stored.chunks, shape)
    there = sum((source / name / piece).is_file() for piece in names)
    if there != len(names):
        raise StoreError(f"{where} has {there} of its {len(names)} chunks")
    try:
        values = stored[...] if names else np.empty(shape, dtype=entry["dtype"])
        return torch.from_numpy(np.ascontiguousarray(values).reshape(shape))
    except Exception as error:  # zarr and its codecs raise whatever they like on damaged bytes
        raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error


def _rebuild(attributes: dict[str, Any], tensors: dict[str, Tensor], kind: type[State]) -> State:
    groups = {group: _take(tensors, f"{group}/") for group in ("model", "initialization", *_GROUPS)}
    config = attributes["config"]
    settings = Settings.from_config(config, groups["arrays"])
    run = kind(
        model=model_from_state(config["model"], groups["model"], groups["initialization"]),
        data=settings.data,
        config=config,
        arrays=groups["arrays"],
        step=attributes["step"],
        loss=tensors["loss"],
        diverged_at=tensors["diverged_at"],
        records=groups["records"],
        snapshots={step: _take(tensors, f"snapshots/{step}/") for step in attributes["snapshots"]},
        optimizer_state=groups["optimizer_state"],
        carry=groups["carry"],
        seconds=attributes["seconds"],
        provenance=attributes["provenance"],
        interrupted=attributes["interrupted"],
        grid=None if attributes["grid"] is None else Grid.from_config(attributes["grid"]),
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        test=settings.test,
    )
    freeze(run.model, config.get("frozen", []))
    if "topology" in config:
        _restore_topology(run, attributes["topology"], _take(tensors, "topology/"))
    return run


def _restore_topology(run: TrainingState, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The recipe at work as it was; where it cannot be made again, its state until it is given."""
    described, seeds = run.config["topology"], run.arrays["topology_seed"]
    state = state_from_store(plain, tensors)
    recipe = recipe_from_config(described["recipe"], None if described["seed"] is None else seeds)
    if recipe is None:
        run.topology_state = {**state, "stored": (plain, tensors)}
        return
    if not has_connections(run.model):
        raise ValueError(f"a topology of {type(run.model).__name__}")
    run.topology = ResidentTopology.restored(recipe, run.model, seeds, state)


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
