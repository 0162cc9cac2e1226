"""Trains a grid of any size, a chunk of models at a time, and puts every finished chunk away."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.broadcast import from_data
from toykern.arguments.errors import check_flag, check_function, check_positive_int, describe
from toykern.arguments.grids import Grid
from toykern.fitting.fitting import fit
from toykern.results.labels import trailing_dims, trained_arrays
from toykern.results.run import Run
from toykern.results.store_format import StoreError, check_path, import_zarr
from toykern.results.store_place import check_target
from toykern.sweeps.boxes import Box, box_shape, boxes_of
from toykern.sweeps.layout import CHUNK_SECONDS, create
from toykern.sweeps.memory import default_chunk
from toykern.sweeps.result import Sweep, open_sweep
from toykern.training.progress import SweepProgress

Plan = Callable[[Grid, Tensor], Mapping[str, Any]]
Measure = Callable[[Run, Grid, Tensor], Mapping[str, Any]]

_INPUTS = ("seed", "importance", "lr", "weight_decay", "probability", "init_seed", "topology_seed")
_OURS = ("progress", "resume", "stop_at", "grid")  # arguments of fit that a sweep sees to
_ORIGIN = ("toykern", "commit", "instruction_set", "gpu")  # of provenance: the bits may depend on these


def sweep(
    grid: Grid,
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    measure: Measure | None = None,
    chunk: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Sweep:
    """Train all models of a grid, a chunk at a time, each finished chunk going to the store at once.

    Models are the same bits in any chunk, so results do not depend on `chunk` or on interruptions.

    Args:
        grid: its axes, as from `toykern.grid`.
        plan: called with the points of a chunk (a `Grid` of these alone) and the flat numbers of their models
            in the whole grid (int64 `[models]`): returns the arguments of `toykern.fit` for them, among them
            `model` and `data`. What a model gets must depend on its own point and number alone: give it
            seeds made of them, as below (the `seed` of `fit` defaults to the number). The models' device
            decides where they are trained. For sparse models too, with densities from the grid;
            `topology=`, a recipe, is in the settings, or here where seeds of its own go with the models.
        path: of the store, a Zarr directory.
        measure: called with the finished run of a chunk, its points and its numbers: returns further results
            by name, `[models, …]` each, to be stored with the others.
        chunk: models trained at once, at most (a chunk is a box of points). Default: by the memory that is
            free, and such that there are about sixteen.
        resume: go on with the sweep in the store at `path`, or begin it where there is none. Its finished
            chunks are read to see that they are whole (one that is damaged is trained again), and are
            skipped.
        overwrite: replace an existing toykern store (when the first chunk is finished).
        progress: one bar over all chunks; True, False, or None: if standard error is a terminal.
        **settings: further arguments of `toykern.fit`, the same for all chunks.

    Returns:
        A `Sweep`. After Ctrl-C (`interrupted`) it holds the chunks finished so far.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; before anything is trained.
        StoreError: the store cannot be written, or is not one of this sweep.
        MemoryError: a chunk does not fit the device.
        KeyboardInterrupt: Ctrl-C before any chunk was finished.

    Example:
        >>> import tempfile
        >>> import toykern as tk
        >>> def plan(points, index):
        ...     model = tk.TiedAutoencoder(2, 1, points.n_models, seed=index)
        ...     return {"model": model, "data": tk.SparseFeatures(2, points.density[:, None]), "seed": index}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = tk.sweep(tk.grid(density=[0.1, 1.0], seed=range(3)), plan, f"{folder}/s.zarr", steps=5)
        ...     done.to_xarray()["weight"].sel(density=0.1, seed=2).shape
        (1, 2)
    """
    import_zarr()
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid, as from toykern.grid, not {describe(grid)}")
    check_function("plan", plan, ("points", "index"))
    if measure is not None:
        check_function("measure", measure, ("run", "points", "index"))
    if progress is not None:
        progress = check_flag("progress", progress)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    chunk = None if chunk is None else check_positive_int("chunk", chunk)
    for name in _OURS:
        if name in settings:
            raise TypeError(f"sweep takes no {name}: it sees to that itself")
    going_on = resume and os.path.lexists(check_path(path))
    target = Path(os.path.realpath(path)) if going_on else check_target(path, overwrite=overwrite)

    job = _Job(grid, plan, measure, settings)
    probe = job.begin(Box(0, (0,) * len(grid.shape), (1,) * len(grid.shape), 0))
    steps, described = probe.steps_to_make, _settings(probe)
    _check_names(probe, grid)
    if going_on:
        store: Sweep | None = open_sweep(target)
        assert store is not None
        _check_same(store, grid, described, probe, chunk)
        boxes, done = store.boxes, store.finished
        done = _check_finished(store, job, done)
    else:
        store = None
        shape = box_shape(grid.shape, min(chunk or default_chunk(probe, grid.n_models), grid.n_models))
        boxes = boxes_of(grid.shape, shape)
        done = np.zeros(len(boxes), dtype=bool)
    todo = [box for box in boxes if not done[box.number]]
    before = grid.n_models - sum(box.n_models for box in todo)
    bar = SweepProgress(steps, grid.n_models, len(boxes), before, progress)
    interrupted = False
    try:
        for box in todo:
            run = job.train(box, bar)
            if run.interrupted:
                interrupted = True
                break
            values, dimensions = job.results(run, box)
            if store is None:
                made = create(
                    target, grid, boxes[0].shape, values, dimensions, _coordinates(run),
                    {"settings": described, "provenance": run.provenance}, overwrite,
                )  # fmt: skip
                store = open_sweep(made)
            store._write_box(box, values, run.seconds)
            del run, values
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
    if store is None:
        raise KeyboardInterrupt(f"stopped before the first of {len(boxes)} chunks was finished")
    return Sweep(store.path, store.grid, store.attributes, interrupted)


class _Job:
    """What is to be done with a chunk."""

    def __init__(self, grid: Grid, plan: Plan, measure: Measure | None, settings: Mapping[str, Any]) -> None:
        self._grid, self._plan, self._measure, self._settings = grid, plan, measure, dict(settings)

    def begin(self, box: Box) -> Run:
        """The run of a chunk at step 0."""
        return fit(**self._arguments(box), stop_at=0, progress=False)

    def train(self, box: Box, bar: SweepProgress) -> Run:
        """The run of a chunk, to its end or to Ctrl-C."""
        try:
            return fit(**self._arguments(box), progress=bar.of_chunk(box.number))
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            smaller = max(1, box.n_models // 2)
            raise MemoryError(
                f"a chunk of {box.n_models:,} models does not fit ({error}); try chunk={smaller} (--chunk "
                f"{smaller})"
            ) from error

    def results(self, run: Run, box: Box) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
        """Everything of a finished run that is stored, `[models, …]`, and the names of the dimensions after
        the models'."""
        found: dict[str, Tensor] = {"loss": run.loss, "diverged_at": run.diverged_at, **run.records}
        dims = {"loss": ("record",), "diverged_at": ()}
        dims |= {n: ("record", *trailing_dims(n, v.ndim - 2)) for n, v in run.records.items()}
        for name, trained in trained_arrays(run).items():
            found[name], dims[name] = trained, trailing_dims(name, trained.ndim - 1)
        for name in next(iter(run.snapshots.values()), {}):
            stacked = torch.stack([snapshot[name] for snapshot in run.snapshots.values()], dim=1)
            found[f"{name}_snapshots"] = stacked
            dims[f"{name}_snapshots"] = ("snapshot", *trailing_dims(name, stacked.ndim - 2))
        for name, value in self._measured(run, box, found).items():
            found[name], dims[name] = value, trailing_dims(name, value.ndim - 1)
        for name, value in _inputs(run).items():
            found[f"inputs/{name}"] = value
            dims[f"inputs/{name}"] = ("feature",) if value.ndim == 2 else ()
        return {name: value.detach().cpu().numpy() for name, value in found.items()}, dims

    def _measured(self, run: Run, box: Box, taken: Mapping[str, Any]) -> dict[str, Tensor]:
        if self._measure is None:
            return {}
        measured = self._measure(run, box.points(self._grid), box.index)
        if not isinstance(measured, Mapping):
            raise TypeError(f"measure must return a dictionary of arrays, not {describe(measured)}")
        found = {}
        for name, value in measured.items():
            if not isinstance(name, str) or not name.isidentifier() or name in (*taken, *self._grid.dims):
                raise ValueError(f"measure: {name!r} is no name for a result, or is taken already")
            found[name] = from_data(value)
            if found[name].ndim == 0 or len(found[name]) != box.n_models:
                raise ValueError(
                    f"measure: {name} must have one row for each of the {box.n_models} models, not be "
                    f"{describe(value)}"
                )
        return found

    def _arguments(self, box: Box) -> dict[str, Any]:
        """Those of `fit` for a chunk."""
        points = box.points(self._grid)
        planned = self._plan(points, box.index)
        if not isinstance(planned, Mapping):
            raise TypeError(f"plan must return a dictionary of arguments of fit, not {describe(planned)}")
        twice = sorted((planned.keys() & self._settings.keys()) | (planned.keys() & set(_OURS)))
        if twice:
            raise TypeError(f"plan must not give {twice[0]}: sweep gives it to all chunks")
        return {"seed": box.index, **planned, **self._settings, "grid": points}


def _inputs(run: Run) -> dict[str, Tensor]:
    """The exact inputs of every model."""
    return {
        name: run.arrays[name].expand(run.n_models, *run.arrays[name].shape[1:])
        for name in _INPUTS
        if name in run.arrays
    }


def _coordinates(run: Run) -> dict[str, np.ndarray]:
    found = {"record": run.record_steps}
    if run.snapshots:
        found["snapshot"] = np.array(list(run.snapshots), dtype=np.int64)
    return found


def _settings(probe: Run) -> dict[str, Any]:
    """The configuration that all chunks share."""
    config = dict(probe.config)
    config["model"] = {k: v for k, v in config["model"].items() if k not in ("n_models", "init")}
    config["device"] = next(probe.model.parameters()).device.type
    return config


def _check_names(probe: Run, grid: Grid) -> None:
    names = {"chunk", CHUNK_SECONDS, "inputs", *trained_arrays(probe)}
    names |= {f"{name}_snapshots" for name in names} | set(probe.config["record"])
    for name in grid.dims:
        if name in names:
            raise ValueError(f"the grid's axis {name!r} has the name of a result; rename the axis")


def _check_same(store: Sweep, grid: Grid, settings: Mapping[str, Any], probe: Run, chunk: int | None) -> None:
    """StoreError where a store is not one of this sweep; a warning where its bits may differ."""

    def differs(what: str) -> StoreError:
        return StoreError(f"{what} differs from that of the sweep in {store.path}; resume needs the same")

    if store.grid != grid:
        raise differs("the grid")
    before = store.attributes["settings"]
    for name in (*settings, *before):
        if settings.get(name) != before.get(name) and name != "device":
            raise differs(name)
    if chunk is not None and box_shape(grid.shape, min(chunk, grid.n_models)) != store.boxes[0].shape:
        raise differs(f"chunk ({store.boxes[0].n_models} models there)")
    origin = store.attributes["provenance"]
    if origin.get("stream_version") != probe.provenance.get("stream_version"):
        raise differs("the version of the data stream")
    changed = [name for name in _ORIGIN if origin.get(name) != probe.provenance.get(name)]
    changed += ["device"] if before["device"] != settings["device"] else []
    if changed:
        warnings.warn(
            f"the sweep in {store.path} was begun with another {' and '.join(changed)}: the bits will not be "
            "those of one go",
            stacklevel=3,
        )


def _check_finished(store: Sweep, job: _Job, done: np.ndarray) -> np.ndarray:
    """Which chunks are finished and whole; StoreError where their models are not those of this sweep."""
    done = done.copy()
    for box in store.boxes:
        if done[box.number] and (damage := store.damage(box)) is not None:
            warnings.warn(f"{damage}; this chunk is trained again", stacklevel=3)
            done[box.number] = False
    first = next((box for box in store.boxes if done[box.number]), None)
    if first is not None:
        for name, value in _inputs(job.begin(first)).items():
            stored = store.read(f"inputs/{name}", first)
            if stored.tobytes() != value.detach().cpu().contiguous().numpy().tobytes():
                raise StoreError(
                    f"{name} of the models in {store.path} is not what plan gives them; resume needs the same"
                )
    return done
