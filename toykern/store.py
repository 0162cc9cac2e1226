"""Saving and loading runs: one Zarr store per run, chunked over models, written whole or not at all.

Layout (Zarr format 3; every array has named dimensions, so `xarray.open_zarr(path)` shows the losses with
their grid):

    attributes      format, version, the run's settings, grid and provenance, and a manifest of every array
    loss, diverged_at                 the results, models flat along `model`
    model/<parameter>                 the trained parameters
    initialization/seed, std          what the initial weights were drawn from
    records/<name>  snapshots/<step>/<parameter>
    topology/<name>                   what a topology recipe keeps of sparse models, and what its updates did
    arrays/<name>  optimizer_state/<name>  carry/<name>     what is needed to resume or rerun; a "/" in a name
    is a group

All numbers are stored as they are, bit for bit; chunks carry a checksum and absent chunks are an error, so a
damaged store is found when it is read, never taken for zeros.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from toykern.optim import Optimizer
    from toykern.resident import AnyModel
    from toykern.run import Run

__all__ = ["FORMAT", "VERSION", "StoreError", "check_target", "load_run", "save_run"]

FORMAT = "toykern run"
SWEEP_FORMAT = "toykern sweep"  # toykern/sweep/result.py
VERSION = 1
_CHUNK_BYTES = 8 << 20
_GROUPS = ("arrays", "records", "optimizer_state", "carry")


class StoreError(ValueError):
    """A result store is missing, foreign, damaged or cannot be written; the message says which and why."""


class _OwnStoreError(StoreError):
    """Damaged or of another version, but written by toykern, so that it may be replaced when asked to."""


def save_run(run: Run, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write `run` to a new Zarr store at `path`.

    The store is written beside its place and then renamed, so `path` never holds half a store: after a
    failure (or Ctrl-C) what was there before is untouched and nothing new is left.

    Args:
        run: the run to save.
        path: the directory to create; its parent must exist.
        overwrite: replace an existing toykern store. Anything else at `path` is never replaced.

    Raises:
        StoreError: `path` cannot be written or holds something.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    zarr = import_zarr()
    target = check_target(path, overwrite=overwrite)
    partial = _beside(target, "partial")
    try:
        _write(zarr, run, partial)
        move_into_place(partial, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run that `save_run` wrote: every tensor bit for bit, on the CPU, ready to be resumed.

    Raises:
        StoreError: there is no store, it is not a toykern store, was written by a newer version, or is
            damaged.
        ImportError: zarr is not installed (`pip install toykern[results]`).
    """
    from toykern.run_checks import check_run

    zarr = import_zarr()
    source = Path(path)
    attributes = read_attributes(source)
    tensors = {}
    for entry in attributes["manifest"]:
        tensors[entry["path"]] = _read_array(zarr, source, entry)
    try:
        return check_run(_rebuild(attributes, tensors), "the run")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{source} is damaged: its settings do not describe a run ({error})") from error


def check_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The real path of a store to be written at `path`, after checking that it can be.

    Nothing is left behind; to be asked before hours of training.

    Raises:
        StoreError: the parent is missing or not writable, or `path` holds something that may not be replaced.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target):
        if not _is_store(target):
            raise StoreError(f"{target} exists and is not a toykern store; it will not be overwritten")
        if not overwrite:
            raise StoreError(
                f"{target} already holds a toykern store; overwrite=True (--overwrite) replaces it"
            )
    if not target.parent.is_dir():
        raise StoreError(f"cannot write {target}: there is no directory {target.parent}")
    probe = _beside(target, "probe")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _beside(target: Path, kind: str) -> Path:
    """A fresh hidden name in the same directory, hence on the same file system."""
    return target.with_name(f".{target.name}.{kind}-{uuid.uuid4().hex[:12]}")


def move_into_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; an old store there is put aside first and put back if anything fails."""
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    old = _beside(target, "old")
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(zarr: Any, run: Run, directory: Path) -> None:
    root = zarr.create_group(store=str(directory), zarr_format=3)
    manifest: list[dict[str, Any]] = []
    for name, tensor in tensors_of(run):
        array = tensor.detach().cpu().numpy()
        dims = _dimension_names(name, array.shape, run)
        _write_array(zarr, root, name, array, dims)
        manifest.append({"path": name, "shape": list(array.shape), "dtype": str(array.dtype)})
    # Coordinates for people who open the store with xarray; loading does not need them.
    _write_array(zarr, root, "record", run.record_steps, ("record",))
    if run.grid is not None:
        for name in run.grid.dims:
            flat = getattr(run.grid, name)
            if flat.ndim == 1 and name not in root:
                _write_array(zarr, root, name, flat.numpy(), ("model",))
    # The marker comes last: a directory with it is complete.
    topology = _topology_state(run)[0]
    root.attrs.update(
        {
            **({} if topology is None else {"topology": topology}),
            "format": FORMAT,
            "version": VERSION,
            "manifest": manifest,
            "step": run.step,
            "seconds": run.seconds,
            "interrupted": run.interrupted,
            "snapshots": list(run.snapshots),
            "grid": None if run.grid is None else run.grid.config(),
            "config": run.config,
            "provenance": run.provenance,
        }
    )


def _topology_state(run: Run) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """What the run's recipe keeps: JSON-able, and tensors by name; (None, {}) without one."""
    from toykern.resident_topology import stored_state

    if run.topology is None:
        return (None, {}) if run.topology_state is None else run.topology_state["stored"]
    try:
        return stored_state(run.topology)
    except ValueError as error:
        raise StoreError(f"the run's topology cannot be stored: {error}") from error


def tensors_of(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a run with its path in the store."""
    from toykern.nn import StackedModel

    yield "loss", run.loss
    yield "diverged_at", run.diverged_at
    for name, tensor in run.model.state_dict().items():
        yield f"model/{name}", tensor
    yield "initialization/seed", run.model.seed
    if isinstance(run.model, StackedModel):
        yield "initialization/std", run.model.init_std
    for group in _GROUPS:
        for name, tensor in getattr(run, group).items():
            yield f"{group}/{name}", tensor
    for step, snapshot in run.snapshots.items():
        for name, tensor in snapshot.items():
            yield f"snapshots/{step}/{name}", tensor
    for name, tensor in _topology_state(run)[1].items():
        yield f"topology/{name}", tensor


def _dimension_names(path: str, shape: tuple[int, ...], run: Run) -> tuple[str | None, ...]:
    names: list[str | None] = [None] * len(shape)
    if shape and shape[0] == run.n_models:
        names[0] = "model"
    if len(shape) > 1 and (path == "loss" or path.startswith("records/")):
        names[1] = "record"
    return tuple(names)


def _write_array(zarr: Any, root: Any, name: str, array: np.ndarray, dims: tuple[str | None, ...]) -> None:
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


def _is_store(path: Path) -> bool:
    try:
        read_attributes(path)
    except _OwnStoreError:
        return True
    except StoreError:
        return False
    return True


def read_attributes(path: Path, wanted: str = FORMAT, version: int = VERSION) -> dict[str, Any]:
    """The attributes of a store after checking that it is one of ours, of the `wanted` format; without zarr.

    Raises:
        StoreError: it is missing, foreign, damaged, or of another format or version.
    """
    if not os.path.lexists(path):
        raise StoreError(f"{path} does not exist")
    if not path.is_dir():
        raise StoreError(f"{path} is not a toykern store: it is a file, a store is a directory")
    metadata = path / "zarr.json"
    if not metadata.is_file():
        raise StoreError(f"{path} is not a toykern store: it has no zarr.json")
    try:
        attributes = json.loads(metadata.read_text(encoding="utf-8"))["attributes"]
        marker = attributes.get("format")
    except OSError as error:
        raise StoreError(f"cannot read {metadata}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not a toykern store, or its zarr.json is damaged ({error})") from error
    if marker not in (FORMAT, SWEEP_FORMAT):
        raise StoreError(f"{path} is a Zarr store but not a {wanted}: its format attribute is {marker!r}")
    if marker != wanted:
        reader = "toykern.open_sweep" if marker == SWEEP_FORMAT else "toykern.Run.load"
        raise _OwnStoreError(f"{path} is the store of a {marker}, not of a {wanted}; {reader} reads it")
    if attributes.get("version") != version:
        raise _OwnStoreError(
            f"{path} has store version {attributes.get('version')!r}; this toykern reads version {version}"
        )
    if not isinstance(attributes.get("manifest"), list):
        raise _OwnStoreError(f"{path} is damaged: zarr.json has no manifest of its arrays")
    return attributes


def _read_array(zarr: Any, source: Path, entry: dict[str, Any]) -> Tensor:
    name, shape = entry["path"], tuple(entry["shape"])
    where = f"{source} is damaged: array {name}"
    if not (source / name / "zarr.json").is_file():
        raise StoreError(f"{where} is missing")
    try:
        stored = zarr.open_array(store=str(source), path=name, mode="r")
        if stored.shape != shape or str(stored.dtype) != entry["dtype"]:
            raise StoreError(
                f"{where} should be {entry['dtype']} {shape}, but is {stored.dtype} {stored.shape}"
            )
        if stored.nchunks_initialized != stored.nchunks and stored.size:
            raise StoreError(f"{where} has {stored.nchunks_initialized} of its {stored.nchunks} chunks")
        values = stored[...] if stored.size else np.empty(shape, dtype=entry["dtype"])
    except StoreError:
        raise
    except Exception as error:  # zarr and its codecs raise whatever they like on damaged bytes
        raise StoreError(f"{where} cannot be read ({type(error).__name__}: {error})") from error
    return torch.from_numpy(np.ascontiguousarray(values).reshape(shape))


def _rebuild(attributes: dict[str, Any], tensors: dict[str, Tensor]) -> Run:
    from toykern.data.features import features_from_config
    from toykern.grid import Grid
    from toykern.run import Run
    from toykern.schedule import schedule_from_config

    groups = {group: _take(tensors, f"{group}/") for group in ("model", "initialization", *_GROUPS)}
    config = attributes["config"]
    run = Run(
        model=_model(config["model"], groups["model"], groups["initialization"]),
        data=features_from_config(config["data"], groups["arrays"]),
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
        optimizer=_optimizer(config, groups["arrays"]),
        schedule=None
        if config["schedule"]["name"] == "callable"
        else schedule_from_config(config["schedule"]),
    )
    if "topology" in config:
        _restore_topology(run, attributes["topology"], _take(tensors, "topology/"))
    return run


def _model(config: dict[str, Any], state: dict[str, Tensor], initialization: dict[str, Tensor]) -> AnyModel:
    """The model that a config and a state_dict describe."""
    from toykern.nn import SparseTiedAutoencoder, model_from_config
    from toykern.sparse import Topology

    if config["class"] == SparseTiedAutoencoder.__name__:
        topology = Topology(config["n_features"], config["n_hidden"], state["row_start"], state["column"])
        weight = topology.to_dense(state["values"])
        return SparseTiedAutoencoder.from_config(
            config, topology, weight, state.get("bias"), initialization["seed"]
        )
    model = model_from_config(
        config, seed=initialization["seed"], init=0.0, dtype=torch.float32, device="cpu"
    )
    model.init, model.init_std = config["init"], initialization["std"]
    model.load_state_dict(state)
    return model


def _restore_topology(run: Run, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The recipe at work as it was; where it cannot be made again, its state until it is given."""
    from toykern.nn import SparseTiedAutoencoder
    from toykern.resident_topology import ResidentTopology, state_from_store
    from toykern.sparse.config import recipe_from_config

    described, seeds = run.config["topology"], run.arrays["topology_seed"]
    state = state_from_store(plain, tensors)
    recipe = recipe_from_config(described["recipe"], None if described["seed"] is None else seeds)
    if recipe is None:
        run.topology_state = {**state, "stored": (plain, tensors)}
        return
    if not isinstance(run.model, SparseTiedAutoencoder):
        raise ValueError(f"a topology of {type(run.model).__name__}")
    run.topology = ResidentTopology.restored(recipe, run.model, seeds, state)


def _optimizer(config: dict[str, Any], arrays: dict[str, Tensor]) -> Optimizer:
    """The optimiser as it was given: numbers where numbers were, per-model arrays elsewhere."""
    from toykern.optim import PER_MODEL, optimizer_from_config

    described = config["optimizer"]
    given = {name: arrays[name] for name in ("lr", "weight_decay") if described[name] == PER_MODEL}
    return optimizer_from_config(described, **given)


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
