"""Trains a grid of any size, a chunk of models at a time, and puts every finished chunk away."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from toykern.arguments.errors import check_flag, check_function, check_positive_int, describe
from toykern.arguments.grids import Grid
from toykern.results.labels import trained_arrays
from toykern.results.run import Run
from toykern.results.store_format import StoreError, check_path, import_zarr
from toykern.results.store_place import check_target
from toykern.sweeps.boxes import Box, box_shape, boxes_of, models_of
from toykern.sweeps.claims import WORK, Claims, clear_left
from toykern.sweeps.executors import Crew
from toykern.sweeps.extending import check_grown, check_source, extended, is_being_extended
from toykern.sweeps.job import OURS, Job, Measure, Plan, inputs_of, why_not
from toykern.sweeps.layout import CHUNK_SECONDS, create
from toykern.sweeps.memory import default_chunk
from toykern.sweeps.planning import SweepPlan, plan_of
from toykern.sweeps.result import Sweep, open_sweep
from toykern.sweeps.shares import Share, share_of, unfinished
from toykern.sweeps.worker import Stop, Stopped, check_origin, origin_of, train_chunk, watched
from toykern.sweeps.writing import unmark, write_box, writing
from toykern.training.progress import SweepProgress
from toykern.training.settings import described_differences

_ORIGIN = ("toykern", "commit")  # of provenance: the bits may depend on these
_WAIT = 0.2  # seconds: how often a share looks whether another has extended the store


@overload
def sweep(
    grid: Grid, plan: Plan, path: str | os.PathLike[str], *, dry_run: Literal[True], **options: Any
) -> SweepPlan:
    """What the sweep would take; nothing is written."""


@overload
def sweep(
    grid: Grid, plan: Plan, path: str | os.PathLike[str], *, dry_run: Literal[False] = False, **options: Any
) -> Sweep:
    """The sweep, trained and stored."""


def sweep(
    grid: Grid,
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    measure: Measure | None = None,
    chunk: int | None = None,
    resume: bool = False,
    extend: bool | str | os.PathLike[str] = False,
    check: bool = False,
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
    executor: Executor | None = None,
    devices: Sequence[str] | None = None,
    mixed: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Sweep | SweepPlan:
    """Train all models of a grid, a chunk at a time, each finished chunk going to the store at once.

    Models are the same bits in any chunk, whoever trains it, so results do not depend on `chunk`, on the
    number of processes or on interruptions. The store is laid out first, from one model that is trained to
    its end; then any number of processes may work at it, on all machines that see it (`docs/clusters.md`).

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
            chunks are skipped, those that lack a file are trained again.
        extend: as `resume`, and the grid may have more points than that of the store, of which it needs all:
            the models that are there are kept and the others trained. What `plan` gives must be made of the
            points, not of the numbers, since these change. A path: that store is left as it is, and the
            larger sweep made at `path`.
        check: with `resume`: read all that is finished, and train again what is damaged.
        overwrite: replace an existing toykern store (when one model has been trained).
        share: (i, n), share i of n, from 0: train every n-th chunk from the i-th, then help with those that
            nobody has claimed. A share of several goes on with the store that is there, as with `resume`.
            Default: that of a task of a SLURM job array or of a rank (`SLURM_ARRAY_TASK_ID`, `RANK`), see
            `toykern.sweeps.shares.share_of`; otherwise the whole.
        executor: any `concurrent.futures.Executor`, whose workers then train the chunks: a pool of processes
            (not of forked ones), of threads, or that of another engine (`client.get_executor()` of Dask). All
            must see `path`; for processes `plan` and `measure` must be such that they can be pickled.
        devices: where to train, as ["cuda:0", "cuda:1"], one chunk at a time on each, wherever the plan puts
            its models; by threads of this process, or by the `executor`.
        mixed: go on with a sweep that was begun on another kind of device or instruction set, although
            the bits of some models are then others.
        dry_run: write nothing and train no more than one model and a moment of a chunk; return a
            `toykern.sweeps.SweepPlan`: models, chunks, memory, size of the store, time.
        progress: one bar over all chunks, or a line a minute; True, False or None as in `toykern.fit`.
        **settings: further arguments of `toykern.fit`, the same for all chunks.

    Returns:
        A `Sweep`. After Ctrl-C, SIGTERM or SIGUSR1 (`interrupted`) it holds the chunks finished so far. One
        that is not `complete` although not interrupted has chunks that others are training (`claimed`).

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; before anything is trained.
        StoreError: the store cannot be written, or is not one of this sweep.
        MemoryError: a chunk does not fit the device.
        RuntimeError: workers of the executor failed; it says with which chunks, the others are in the store.
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
    check, mixed = check_flag("check", check), check_flag("mixed", mixed)
    here = Path(os.path.realpath(check_path(path)))
    smaller = check_source(extend, here)
    dry_run = check_flag("dry_run", dry_run)
    chunk = None if chunk is None else check_positive_int("chunk", chunk)
    for name in OURS:
        if name in settings:
            raise TypeError(f"sweep takes no {name}: {why_not(name)}")
    part = share_of(share)
    if part.n > 1 and overwrite:
        raise ValueError(f"overwrite would have every share replace the store, and this is {part}")
    resume = resume or part.n > 1 or smaller == here
    job = Job(grid, plan, measure, settings)
    crew = Crew.of(executor, devices, job)
    going_on = resume and os.path.lexists(path)
    target = here if going_on else check_target(path, overwrite=overwrite)

    if devices is not None:
        job = crew.at_first_device(job)
    probe = job.begin(_first(grid))
    _check_names(probe, grid)
    described, stop = _settings(probe), Stop()
    store = open_sweep(target) if going_on else None
    source = _source_of(store, None if store is None and smaller == here else smaller, grid)
    if source is not None:
        _check_same(source, source.grid, described, probe, None, mixed)
        check_grown(source, grid)
        store = None
    if dry_run:
        if store is not None:
            _check_same(store, grid, described, probe, chunk, mixed)
        boxes = _boxes(grid, probe, chunk, crew) if store is None else store.boxes
        there = np.zeros(len(boxes), dtype=bool) if store is None else store.finished
        kept = 0 if source is None else models_of(source.boxes, source.finished)
        return plan_of(job, boxes, there, probe, len(crew.devices) or crew.at_once, str(part), kept)
    with stop.listening():
        if source is not None:
            shape = _boxes(grid, probe, chunk, crew)[0].shape
            store = _extend(source, target, job, shape, overwrite, resume, part, stop)
        elif store is None:
            store = _create(target, job, probe, described, chunk, crew, overwrite, resume, stop)
        _check_same(store, grid, described, probe, chunk, mixed)
        _prepare(store, job, check, stacklevel=3)
        bar = SweepProgress(
            probe.steps_to_make, grid.n_models, len(store.boxes), models_of(store.boxes, store.finished),
            progress, label="" if part.n == 1 else f"{part}, ",
        )  # fmt: skip
        try:
            stopped = _train(store, job, part, crew, mixed, bar, stop)
        except KeyboardInterrupt:
            stopped = True
        finally:
            bar.close()
    finished = int(store.finished.sum())
    if stopped and finished == 0:
        raise KeyboardInterrupt(f"stopped before the first of {len(store.boxes)} chunks was finished")
    if not stopped and finished < len(store.boxes):
        _say_who_has_the_rest(store)
    return Sweep(store.path, store.grid, store.attributes, stopped)


def _first(grid: Grid) -> Box:
    """The first model alone."""
    return Box(0, (0,) * len(grid.shape), (1,) * len(grid.shape), 0)


def _boxes(grid: Grid, probe: Run, chunk: int | None, crew: Crew) -> list[Box]:
    most = min(chunk or default_chunk(probe, grid.n_models, crew.at_once), grid.n_models)
    return boxes_of(grid.shape, box_shape(grid.shape, most))


def _create(
    target: Path, job: Job, probe: Run, described: Mapping[str, Any], chunk: int | None, crew: Crew,
    overwrite: bool, resume: bool, stop: Stop,
) -> Sweep:  # fmt: skip
    """The store, laid out as one model that was trained to its end shows; with `resume` that of another
    process, if it was faster.

    Raises:
        KeyboardInterrupt: Ctrl-C, or word to stop; nothing was made.
    """
    grid = job.grid
    boxes = _boxes(grid, probe, chunk, crew)
    nothing = KeyboardInterrupt(f"stopped before the first of {len(boxes)} chunks was finished")
    try:
        run = job.train(_first(grid), watched(None, stop, lambda: None))
        if run.interrupted:
            raise nothing
        values, dimensions = job.results(run, _first(grid))
    except (KeyboardInterrupt, Stopped):
        raise nothing from None
    attributes = {"settings": described, "provenance": run.provenance}
    try:
        made = create(
            target, grid, boxes[0].shape, values, dimensions, _coordinates(run), attributes, overwrite
        )
    except StoreError:
        if not (resume and os.path.lexists(target)):
            raise
        return open_sweep(target)
    store = open_sweep(made)
    if boxes[0].n_models == 1:  # that was a whole chunk
        write_box(store, boxes[0], values, run.seconds, origin_of(run, run.seconds))
    return store


def _source_of(store: Sweep | None, smaller: Path | None, grid: Grid) -> Sweep | None:
    """The store whose models a larger sweep is to take; None where there is nothing to take, or no more."""
    if smaller is None or (store is not None and store.grid == grid):
        return None
    if store is not None:
        return store if store.path == smaller else None
    return open_sweep(smaller)


def _extend(
    source: Sweep, target: Path, job: Job, shape: tuple[int, ...], overwrite: bool, resume: bool,
    share: Share, stop: Stop,
) -> Sweep:  # fmt: skip
    """The store of the larger grid, in chunks of a `shape`; where another process was faster, its.

    Of several shares one makes it, and the others wait.

    Raises:
        StoreError: as `extended` raises it.
        KeyboardInterrupt: Ctrl-C, or word to stop; nothing was made.
    """
    while True:
        try:
            return open_sweep(extended(source, target, job, shape, overwrite, stop))
        except StoreError:
            if resume and os.path.lexists(target) and (there := open_sweep(target)).grid == job.grid:
                return there
            if share.n == 1 or not is_being_extended(source):
                raise
        except Stopped:
            raise KeyboardInterrupt(f"stopped before {source.path} was extended") from None
        time.sleep(_WAIT)


def _prepare(store: Sweep, job: Job, check: bool, stacklevel: int) -> None:
    """Mark what is damaged as unfinished, and clear away what killed writers left.

    Raises:
        StoreError: the models of the store are not those of this sweep.
    """
    with writing(store.path):
        (store.path / WORK).mkdir(exist_ok=True)  # stores before version 3 had none
        clear_left(store.path, set(np.flatnonzero(store.finished).tolist()))
    finished = store.finished
    for box in store.boxes:
        if finished[box.number] and (damage := store.damage(box, check)) is not None:
            warnings.warn(f"{damage}; this chunk is trained again", stacklevel=stacklevel)
            unmark(store, box.number)
            finished[box.number] = False
    first = next((box for box in store.boxes if finished[box.number]), None)
    if first is None:
        return
    for name, value in inputs_of(job.begin(first)).items():
        stored = store.read(f"inputs/{name}", first)
        if stored.tobytes() != value.detach().cpu().contiguous().numpy().tobytes():
            raise StoreError(
                f"{name} of the models in {store.path} is not what plan gives them; resume needs the same"
            )


def _train(
    store: Sweep, job: Job, share: Share, crew: Crew, mixed: bool, bar: SweepProgress, stop: Stop
) -> bool:
    """Train all that is to be trained here; whether it was stopped."""
    if crew.executor is not None:
        return crew.train(store, job, unfinished(share, store.finished), mixed, bar, stop)
    for number in share.order(len(store.boxes)):
        if stop():
            return True
        finished = store.finished
        if finished[number]:
            continue
        bar.others_finished(models_of(store.boxes, finished))
        made = train_chunk(store, job, number, mixed, None, bar.of_chunk(number), stop)
        if made.state == "stopped":
            return True
    return False


def _say_who_has_the_rest(store: Sweep) -> None:
    """A warning: the sweep is not complete, and who is at the rest of it."""
    claims = [Claims(store.path).look(number, None) for number in np.flatnonzero(store.claimed).tolist()]
    who = sorted({f"process {c.pid} on {c.host}" for c in claims if c is not None and c.pid})
    missing = int((~store.finished).sum())
    if missing:
        warnings.warn(
            f"{missing} of {len(store.boxes)} chunks of {store.path} are being trained by others"
            f"{': ' + ', '.join(who[:3]) if who else ''}{', …' if len(who) > 3 else ''}; should they fail, "
            "the same call with resume=True (--resume) goes on",
            stacklevel=3,
        )


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


def _check_same(
    store: Sweep, grid: Grid, settings: Mapping[str, Any], probe: Run, chunk: int | None, mixed: bool
) -> None:
    """StoreError where a store is not one of this sweep; a warning where its bits may differ."""

    def differs(what: str) -> StoreError:
        return StoreError(f"{what} differs from that of the sweep in {store.path}; resume needs the same")

    if store.grid != grid:
        raise StoreError(
            f"{differs('the grid')}, unless extend=True (--extend) is to train the points that are new"
        )
    for name in described_differences(settings, store.attributes["settings"]):
        if name != "device":  # kinds of device may be mixed: `check_origin`
            raise differs(name)
    if chunk is not None and box_shape(grid.shape, min(chunk, grid.n_models)) != store.boxes[0].shape:
        raise differs(f"chunk ({store.boxes[0].n_models} models there)")
    origin = store.attributes["provenance"]
    if origin.get("stream_version") != probe.provenance.get("stream_version"):
        raise differs("the version of the data stream")
    check_origin(store, probe.provenance, mixed)
    changed = [name for name in _ORIGIN if origin.get(name) != probe.provenance.get(name)]
    if changed:
        warnings.warn(
            f"the sweep in {store.path} was begun with another {' and '.join(changed)}: the bits will not be "
            "those of one go",
            stacklevel=3,
        )
