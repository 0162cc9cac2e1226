"""The loop that trains: native calls in stretches, and what is to be done between them."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from toykern.arguments.errors import describe
from toykern.training.progress import BarMaker, bar_for
from toykern.training.records import Moment, records_of
from toykern.training.schedule import multipliers, schedule_from_config
from toykern.training.settings import Settings
from toykern.training.state import TrainingState
from toykern.training.ways import AnyResident, evaluated, resident_of

State = TypeVar("State", bound=TrainingState)

_IN_TRAINING: set[int] = set()  # the runs, by what Python knows them by

_STRETCH_SECONDS = 0.4  # of work in one native call: how often progress shows and Ctrl-C is heard
_STRETCH_STEPS = 8  # fewer would spend their time on moving models in and out of the cache


def train(
    run: State,
    stop: int,
    progress: bool | None | BarMaker,
    callback: Callable[[State], bool | None] | None = None,
    told: Settings | None = None,
) -> None:
    """Advance a run until `stop` steps were made, Ctrl-C, or `callback` returns True, stretch by stretch.

    `told` stands for the run's `settings`, where it was just begun with them.
    """
    if id(run) in _IN_TRAINING:
        raise RuntimeError("this run is being trained just now: a callback cannot train it further")
    _IN_TRAINING.add(id(run))
    try:
        _train(run, stop, progress, callback, run.settings if told is None else told)
    finally:
        _IN_TRAINING.discard(id(run))


def _train(
    run: State,
    stop: int,
    progress: bool | None | BarMaker,
    callback: Callable[[State], bool | None] | None,
    settings: Settings,
) -> None:
    steps, every, schedule = settings.steps, settings.record_every, settings.schedule
    if schedule is None:
        schedule = schedule_from_config(run.config["schedule"])  # raises: it was a callable
    resident = resident_of(
        run.model, run.data, settings, arrays=run.arrays, state=run.optimizer_state, loss=run.loss,
        loss_carry=run.carry["loss"], diverged_at=run.diverged_at,
    )  # fmt: skip
    topology = run.topology
    others = [name for name in settings.record if name != "loss"]
    wanted = sorted(settings.snapshots)
    bar = bar_for(progress, run.steps_to_make, run.steps_made, run.n_models)
    length = max(1, 4096 // run.n_models)
    run.interrupted = stopped = False
    if topology is not None:
        assert resident.layer is not None
        topology.begin(resident.layer, resident.changing, run.step)
    if run.step == 0 and 0 in wanted and 0 not in run.snapshots:
        run.snapshots[0] = resident.snapshot()
    try:
        with _interruptible() as interrupted:
            while run.steps_made < stop and not stopped and not interrupted():
                ends = [run.step + min(length, stop - run.steps_made), steps]
                ends += [min((run.step // every + 1) * every, steps)] if others or callback else []
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
                at_record = end % every == 0 or end == steps
                if others and at_record:
                    _record(run, resident, others, (end - 1) // every)
                if end in wanted:
                    run.snapshots[end] = resident.snapshot()
                bar.update(run.steps_made)
                if callback is not None and at_record:
                    stopped = _call(callback, run, resident)
                length = _next_length(length, done, seconds)
    finally:
        resident.write_back()
        if topology is not None:
            topology.end()
        bar.close()
        if run.complete:
            _mark_what_the_last_update_broke(run)
        run.interrupted = run.steps_made < stop and not stopped


def _call(callback: Callable[[State], bool | None], run: State, resident: AnyResident) -> bool:
    """Show the run to `callback`, with everything in it as it is now; whether it wants an end."""
    resident.write_back()
    if run.topology is not None:
        run.topology.end()
    if run.complete:
        _mark_what_the_last_update_broke(run)
    wants = callback(run)
    if wants is not None and not isinstance(wants, bool | np.bool_):
        raise TypeError(f"callback must return True, False or None, not {describe(wants)}")
    if run.topology is not None:
        assert resident.layer is not None
        run.topology.begin(resident.layer, resident.changing, run.step)
    return bool(wants)


def _go_back(run: TrainingState, step: int) -> None:
    """Weights, states and sums are again those of `step`: so are the run's count, records and snapshots."""
    run.step = step
    first = step // int(run.config["record_every"])
    for records in (run.loss, *run.records.values()):
        records[:, first:] = torch.nan
    for kept in [t for t in run.snapshots if t > step]:
        del run.snapshots[kept]


def _mark_what_the_last_update_broke(run: TrainingState) -> None:
    """Kernels see that a model diverged by its loss, of which there is none after the last update."""
    # A sum is not finite where one of its numbers is not, nor, rarely, where all are: then each is looked at.
    if all(math.isfinite(float(held.sum())) for held in run.model.stacked_parameters().values()):
        return
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


def _record(run: TrainingState, resident: AnyResident, names: list[str], at: int) -> None:
    """Measure the records `names` now, as record number `at`."""
    settings = run.settings
    network = settings.network(run.model)
    known = records_of(network)

    def test_loss() -> torch.Tensor:
        assert run.test is not None
        return evaluated(
            run.model, run.test, batches=1, batch_size=None, parameters=resident.tensors,
            seed=run.arrays["seed"], importance=run.arrays["importance"], objective=settings.objective,
            l1=run.arrays.get("l1"),
        )  # fmt: skip

    moment = Moment(
        run.model, network, resident.tensors, run.data, run.test, test_loss, resident.layer, run.topology
    )
    # As in the loss; the weights of a model that is marked may still be finite, and the last update may have
    # broken one that is not.
    gone = (resident.diverged_at >= 0) | ~moment.finite
    for name in names:
        measure = known[name].measure
        assert measure is not None
        value = measure(moment).to("cpu", torch.float32, copy=True)
        value[gone] = torch.nan
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
