"""The resident trainer: a whole run inside a few native calls, for one model or a million."""

from __future__ import annotations

import datetime
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from toykern import _native
from toykern.arguments.broadcast import broadcast_importance, broadcast_seed
from toykern.arguments.errors import check_int, check_positive_int, describe
from toykern.arguments.grids import Grid
from toykern.data.features import SparseFeatures
from toykern.fitting.longer import check_longer, make_longer
from toykern.fitting.resume import check_resume
from toykern.native.devices import arch_of
from toykern.nn import SparseTiedAutoencoder
from toykern.results.run import Run
from toykern.results.run_checks import check_run
from toykern.sparse.named import Static
from toykern.sparse.recipe import Recipe
from toykern.training.kernels import AnyModel, Resident, check_data, check_model, frozen_parameters
from toykern.training.optim import AdamW, Optimizer, optimizer_from_config
from toykern.training.progress import BarMaker, bar_for
from toykern.training.resident_topology import ResidentTopology, check_recipe
from toykern.training.schedule import (
    Schedule,
    check_schedule,
    multipliers,
    schedule_config,
    schedule_from_config,
)
from toykern.training.settings import METRICS, check_memory, check_settings, topology_config

_STRETCH_SECONDS = 0.4  # of work in one native call: how often progress shows and Ctrl-C is heard
_STRETCH_STEPS = 8  # fewer would spend their time on moving models in and out of the cache


def fit(
    model: AnyModel | None = None,
    data: SparseFeatures | None = None,
    steps: int | None = None,
    batch_size: int = 1024,
    optimizer: Optimizer | None = None,
    importance: Any = 1.0,
    seed: Any = None,
    target: str = "identity",
    schedule: Schedule = "constant",
    loss_reduction: str = "mean",
    record_every: int | None = None,
    record: Sequence[str] = ("loss",),
    snapshots: Iterable[int] = (),
    resume: Run | None = None,
    stop_at: int | None = None,
    grid: Grid | None = None,
    progress: bool | None | BarMaker = None,
    topology: Recipe | None = None,
) -> Run:
    """Train every model of a stack, in place, each on its own stream of fresh batches.

    Drawing, forward, backward and optimiser run inside native calls that release the interpreter's lock. A
    model's bits depend on itself alone: not on its neighbours in the stack, the number of threads
    (`torch.set_num_threads`), or interruptions; only on the version and the instruction-set level.

    Args:
        model: a `TiedAutoencoder` or `Autoencoder` with float32 parameters, all on the CPU or all on one CUDA
            device, which is where it is trained. Everything else that the run keeps lies on the CPU. Or a
            `SparseTiedAutoencoder`, float32: its missing connections stay exactly 0. Parameters without
            `requires_grad` and their optimiser state stay as they are, for the whole run.
        data: a `SparseFeatures` with as many features; its probabilities are for one model or for all of
            them.
        steps: updates of each model, at most 2³² − 1. Training starts at step 0 with a fresh optimiser state.
        batch_size: samples per update, drawn afresh.
        optimizer: `AdamW()` by default; `SGD`, `Adam`, `AdamW`, with learning rate and weight decay per model
            if need be.
        importance: of each feature in the loss, ≥ 0: a number, `[n_features]`, `[models, 1]` or
            `[models, n_features]`.
        seed: of the data: int, or `[models]`; None means 0 … models−1.
        target: "identity", or "abs" to learn |x|. Made from the features without input noise.
        schedule: multiplies the learning rate: "constant", "linear", "cosine", "quarter_cosine",
            `WarmupCosine(warmup)` or a callable (step, steps) -> factor.
        loss_reduction: "mean" over batch and features, or "sum" over features and mean over the batch.
        record_every: steps to a record, e; max(1, steps // 100) by default. Record r is the mean of the batch
            losses of steps r·e … (r+1)·e − 1, each taken before its update.
        record: "loss", and any of "features_per_dimension", "feature_dimensionality", "superposition"
            (measured after the last update of each record; of the encoder where the model is untied). Of
            sparse models "density" too, and with `topology` "explored", the fraction of positions that ever
            had a connection.
        snapshots: steps t at which to keep all parameters, after t updates (0 … steps); `log_spaced_steps`
            helps.
        resume: a `Run` that was cut short (by `stop_at`, Ctrl-C, or loaded from a store): go on where it
            stopped, with the same bits as if it never had. Its tensors are continued in place. Everything
            else comes from it; what is given nevertheless must agree. But for `steps`, which may be more than
            before where the schedule is constant: the run, finished or not, is then trained that long, with
            the bits of one that was so long from the start (`snapshots` may add some after the former end).
        stop_at: stop after this many updates in all (`run.steps_made`); `resume` goes on.
        grid: the `Grid` that the models come from; the results are then labelled by it.
        progress: True, False, or None: a bar if standard error is a terminal. (Or what makes one:
            `toykern.training.progress.BarMaker`.)
        topology: how the connections of a `SparseTiedAutoencoder` change: `SET()`, `RigL(end=…)`, `SRigL`,
            `SNFS`, `GSE`, `GradualMagnitude`, any `PruneAndGrow`, or `Static()`; None also leaves them as
            they are. Step t of the recipe is after t updates of the weights. Its seed None means `seed`. What
            it did is in `run.topology`. With a `LotteryTicket` the run's steps, data, schedule and records go
            back with the weights at the end of every round: what remains is the training of the last ticket,
            and `steps` is how long that is, counted from the initial weights. Each round takes time.

    Returns:
        A `Run`. After Ctrl-C, what has been trained so far (`run.interrupted`); a second Ctrl-C raises.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; nothing has been trained then.
        RuntimeError: the model's device has no kernels here (the message says why), or this is a forked
            child of a process that used several threads.
        MemoryError: the kernels' memory cannot be had, or what the run keeps would not fit into what is free;
            on a CUDA device it says how many models would fit.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=8)
        >>> data = tk.SparseFeatures(5, 0.05)
        >>> run = tk.fit(model, data, steps=50, batch_size=64, optimizer=tk.Adam(lr=1e-2))
        >>> run.loss.shape
        torch.Size([8, 50])
    """
    if resume is not None:
        given = {
            "model": model, "data": data, "optimizer": optimizer, "seed": seed,
            "record_every": record_every, "grid": grid, "topology": topology,
        }  # fmt: skip
        defaults = {
            "batch_size": (batch_size, 1024), "target": (target, "identity"),
            "schedule": (schedule, "constant"), "loss_reduction": (loss_reduction, "mean"),
        }  # fmt: skip
        given |= {name: value for name, (value, default) in defaults.items() if value != default}
        check_run(resume, "resume")
        length = check_longer(resume, resume.config["steps"] if steps is None else steps)
        kept = check_resume(resume, given, importance, record, snapshots, length)
        run = resume
    else:
        run = _new_run(
            model, data, steps, batch_size, AdamW() if optimizer is None else optimizer, importance, seed,
            target, schedule, loss_reduction, record_every, record, snapshots, grid, topology,
        )  # fmt: skip
        length, kept = int(run.config["steps"]), run.config["snapshots"]
    total = run.steps_to_make + length - int(run.config["steps"])
    stop = total if stop_at is None else check_int("stop_at", stop_at, minimum=run.steps_made, maximum=total)
    if length != run.config["steps"]:
        make_longer(run, length, kept)
    return _train(run, stop, progress)


def log_spaced_steps(steps: int, count: int = 20) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in the logarithm, for `fit(snapshots=…)`.

    >>> log_spaced_steps(1000, 4)
    [1, 10, 100, 1000]
    """
    steps = check_positive_int("steps", steps)
    count = check_int("count", count, minimum=2, maximum=10**6)
    return sorted({round(t) for t in np.geomspace(1, steps, count)})


def _new_run(
    model: Any, data: Any, steps: Any, batch_size: Any, optimizer: Any, importance: Any, seed: Any,
    target: Any, schedule: Any, loss_reduction: Any, record_every: Any, record: Any, snapshots: Any,
    grid: Any, topology: Any,
) -> Run:  # fmt: skip
    """Check everything, then lay out a run at step 0."""
    if model is None or data is None or steps is None:
        raise TypeError("fit needs model, data and steps (or resume)")
    model = check_model(model, "fit")
    data = check_data(data, model)
    recipe = None if topology is None else _check_recipe(topology, model)
    check_schedule(schedule)
    settings = check_settings(
        model=model, steps=steps, batch_size=batch_size, optimizer=optimizer, target=target,
        schedule=schedule, loss_reduction=loss_reduction, record_every=record_every, record=record,
        snapshots=snapshots, grid=grid,
        tracks_explored=recipe is not None and recipe.track_explored,
    )  # fmt: skip
    steps = settings.steps
    check_memory(model, settings, state_names=optimizer.state_names)
    attached = None
    if recipe is not None:
        assert isinstance(model, SparseTiedAutoencoder)
        attached = ResidentTopology.fresh(recipe, model, seed if recipe.seed is None else recipe.seed, steps)

    n_models = model.n_models
    lr, weight_decay = optimizer.per_model(n_models)
    parameters = model.stacked_parameters()
    arrays = {
        "seed": broadcast_seed("seed", seed, n_models),
        "importance": broadcast_importance(importance, n_models, model.n_features).clone(),
        "lr": lr,
        "weight_decay": weight_decay,
        "probability": data.probability,
        "init_seed": model.seed.clone(),
    }
    arrays |= {f"init/{name}": _copy_on_cpu(p) for name, p in parameters.items()}
    if isinstance(model, SparseTiedAutoencoder):
        arrays["init/connections"] = model.topology.to_mask().cpu()
    config = {
        "model": model.config(), "data": data.config(), "steps": steps,
        "batch_size": settings.batch_size, "optimizer": optimizer.config(),
        "schedule": schedule_config(schedule), "target": target, "loss_reduction": loss_reduction,
        "record_every": settings.record_every, "record": list(settings.record),
        "snapshots": settings.snapshots,
    }  # fmt: skip
    if frozen := frozen_parameters(model):
        config["frozen"] = frozen
    if attached is not None:
        arrays["topology_seed"] = attached.seeds
        config["topology"] = topology_config(attached.recipe)
    run = Run(
        model=model,
        data=data,
        config=config,
        arrays=arrays,
        step=0,
        loss=torch.full((n_models, settings.n_records), torch.nan, dtype=torch.float32, device="cpu"),
        diverged_at=torch.full((n_models,), -1, dtype=torch.int64, device="cpu"),
        optimizer_state={
            f"{name}/{suffix}": torch.zeros(p.shape, dtype=torch.float32, device="cpu")
            for name, p in parameters.items()
            for suffix in optimizer.state_names
        },
        carry={"loss": torch.zeros(n_models, dtype=torch.float64, device="cpu")},
        provenance=_provenance(next(model.parameters()).device),
        grid=grid,
        optimizer=optimizer,
        schedule=schedule,
        topology=attached,
    )
    return run


def _train(run: Run, stop: int, progress: bool | None | BarMaker) -> Run:
    """Advance a run until `stop` steps were made (or Ctrl-C), stretch by stretch."""
    config = run.config
    steps, every = int(config["steps"]), int(config["record_every"])
    schedule = schedule_from_config(config["schedule"]) if run.schedule is None else run.schedule
    optimizer = optimizer_from_config(config["optimizer"], run.arrays["lr"], run.arrays["weight_decay"])
    resident = Resident(
        run.model, run.data, optimizer, steps=steps, batch_size=int(config["batch_size"]),
        target=config["target"], loss_reduction=config["loss_reduction"], record_every=every,
        arrays=run.arrays, state=run.optimizer_state, loss=run.loss, loss_carry=run.carry["loss"],
        diverged_at=run.diverged_at,
    )  # fmt: skip
    topology = run.topology
    others = [name for name in config["record"] if name != "loss"]
    wanted = sorted(int(t) for t in config["snapshots"])
    bar = bar_for(progress, run.steps_to_make, run.steps_made, run.n_models)
    length = max(1, 4096 // run.n_models)
    run.interrupted = False
    if topology is not None:
        assert resident.layer is not None
        topology.begin(resident.layer, resident.changing, run.step)
    if run.step == 0 and 0 in wanted and 0 not in run.snapshots:
        run.snapshots[0] = resident.snapshot()
    try:
        with _interruptible() as interrupted:
            while run.steps_made < stop and not interrupted():
                ends = [run.step + min(length, stop - run.steps_made), steps]
                ends += [min((run.step // every + 1) * every, steps)] if others else []
                ends += [t for t in wanted if t > run.step][:1]
                end = min(ends) if topology is None else topology.next_stop(run.step, min(ends))
                factors = multipliers(schedule, steps, run.step, end)
                began = time.perf_counter()
                resident.advance(run.step, factors, topology is not None and topology.needs_gradient(end))
                seconds = time.perf_counter() - began
                done, run.step = end - run.step, end
                update = None
                if topology is not None:
                    update = topology.advance(end, resident.diverged_at >= 0)
                run.seconds += time.perf_counter() - began
                if update is not None and update.rewound_to is not None:
                    _go_back(run, update.rewound_to)
                    bar.update(run.steps_made)
                    continue
                if others and (end % every == 0 or end == steps):
                    _record(run, resident, others, (end - 1) // every)
                if end in wanted:
                    run.snapshots[end] = resident.snapshot()
                bar.update(run.steps_made)
                length = _next_length(length, done, seconds)
    finally:
        resident.write_back()
        if topology is not None:
            topology.end()
        bar.close()
    if run.complete:
        _mark_what_the_last_update_broke(run)
    run.interrupted = run.steps_made < stop
    return run


def _go_back(run: Run, step: int) -> None:
    """Weights, states and sums are again those of `step`: so are the run's count, records and snapshots."""
    run.step = step
    first = step // int(run.config["record_every"])
    for records in (run.loss, *run.records.values()):
        records[:, first:] = torch.nan
    for kept in [t for t in run.snapshots if t > step]:
        del run.snapshots[kept]


def _mark_what_the_last_update_broke(run: Run) -> None:
    """Kernels see that a model diverged by its loss, of which there is none after the last update."""
    finite = torch.ones(run.n_models, dtype=torch.bool, device="cpu")
    for parameter in run.model.stacked_parameters().values():
        finite &= torch.isfinite(parameter).flatten(1).all(dim=1).cpu()
    run.diverged_at[~finite & (run.diverged_at < 0)] = run.step


def _next_length(length: int, done: int, seconds: float) -> int:
    """Steps of the next native call, from how long the last one took."""
    per_step = seconds / done
    fitting = int(_STRETCH_SECONDS / max(per_step, 1e-9))
    shortest = _STRETCH_STEPS if per_step * _STRETCH_STEPS < 10 * _STRETCH_SECONDS else 1
    return max(shortest, min(fitting, 4 * length))


def _record(run: Run, resident: Resident, names: list[str], at: int) -> None:
    """Measure the metrics `names` now, as record number `at`."""
    parameters = resident.tensors
    weight = parameters["weight"] if "weight" in parameters else parameters["encoder"]
    for name in names:
        if name in METRICS:
            value = METRICS[name](weight).to("cpu", torch.float32)
        else:
            value = _topology_metric(name, run, resident)
        value[resident.diverged_at >= 0] = torch.nan  # as in the loss; the weights may still be finite
        if name not in run.records:
            shape = (run.n_models, run.loss.shape[1], *value.shape[1:])
            run.records[name] = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
        run.records[name][:, at] = value


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; a second press raises KeyboardInterrupt.

    The interrupt is noted between native calls, so that it never falls between a call and the count of its
    steps.
    """
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    in_main_thread = threading.current_thread() is threading.main_thread()  # signals go there
    if not in_main_thread or signal.getsignal(signal.SIGINT) in (None, signal.SIG_IGN):
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _topology_metric(name: str, run: Run, resident: Resident) -> torch.Tensor:
    """One of `TOPOLOGY_METRICS`, float32 `[models]`."""
    if name == "density":
        assert resident.layer is not None
        return resident.layer.topology.density.float().cpu()
    assert run.topology is not None
    return run.topology.explored.float()


def _check_recipe(given: Any, model: AnyModel) -> Recipe:
    """The recipe that `given` is; TypeError or ValueError that says why the models cannot follow it."""
    recipe = check_recipe(given)
    if not isinstance(model, SparseTiedAutoencoder):
        raise TypeError(
            "topology is for sparse models: give fit a tk.SparseTiedAutoencoder(n_features, n_hidden, "
            f"density=…), not {describe(model)}"
        )
    if not model.values.requires_grad and not isinstance(recipe, Static):
        raise ValueError(
            f"topology={type(recipe).__name__}(…) would replace connections of model.values, which is frozen "
            "(requires_grad=False); use Static() or none"
        )
    return recipe


def _copy_on_cpu(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _provenance(device: torch.device) -> dict[str, Any]:
    """What a reader of the results needs in order to have the same bits again."""
    build = _native.build_info()
    gpu = {}
    if device.type == "cuda":
        gpu = {"gpu": torch.cuda.get_device_name(device), "instruction_set": arch_of(device)}
    return {
        "toykern": build["version"],
        "commit": build["commit"],
        "stream_version": _native.stream_version(),
        "instruction_set": _native.isa_level(),
        "compiler": build["compiler"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **gpu,
    }
