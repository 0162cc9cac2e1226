"""Training one chunk of a sweep and putting it into the store, as in every way of computing a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toykern.results.run import Run
from toykern.results.store_format import StoreError
from toykern.sweeps.boxes import Box
from toykern.sweeps.claims import Claims
from toykern.sweeps.job import Job
from toykern.sweeps.kept import forget_kept, read_kept
from toykern.sweeps.layout import CHUNK_SECONDS
from toykern.sweeps.result import Sweep, open_sweep
from toykern.sweeps.writing import check_values, write_box, writing
from toykern.training.progress import Bar, BarMaker, bar_for

_PINNED = ("instruction_set", "gpu")  # of provenance: other bits
_SIGNALS = ("SIGTERM", "SIGUSR1")  # of those who end jobs at the end of their time


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk: `state` is "trained", "finished" before, "claimed" by others, or "stopped"."""

    number: int
    seconds: float
    state: str


class Stopped(BaseException):
    """The training of a chunk is left, since the process is to end."""


@dataclass
class Stop:
    """Whether the process is to end, as somebody who ends jobs has said."""

    _told: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bool:
        """Whether it has been said."""
        return self._told.is_set()

    def tell(self) -> None:
        """Say so."""
        self._told.set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGUSR1 for word, where nobody else takes them; a second one is as Ctrl-C."""

        def note(number: int, frame: Any) -> None:
            if self():
                raise KeyboardInterrupt
            self.tell()

        before = {}
        if threading.current_thread() is threading.main_thread():  # signals go there
            numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
            free = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
            before = {number: signal.signal(number, note) for number in free}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_chunk(
    path: Path | Sweep, job: Job, number: int, mixed: bool = False, device: str | None = None,
    progress: BarMaker | None = None, stop: Stop | None = None,
) -> Outcome:  # fmt: skip
    """Train chunk `number` of the sweep in the store at `path`, unless it is finished or somebody has it.

    It can run in any process on any machine that sees the store.

    Raises:
        StoreError: the store cannot be written, or was begun on another device or instruction set.
        MemoryError: the chunk does not fit the device.
    """
    sweep = open_sweep(path) if isinstance(path, Path) else path
    if device is not None:
        job = replace(job, device=torch.device(device))
    box, claims = sweep.boxes[number], Claims(sweep.path)
    mark = sweep.path / CHUNK_SECONDS / "c" / str(number)
    if sweep.finished[number]:
        return Outcome(number, 0.0, "finished")
    with writing(sweep.path):
        if not claims.take(number, _longest(sweep) if number in claims.numbers() else None):
            return Outcome(number, 0.0, "claimed")
    began = time.perf_counter()
    stop = Stop() if stop is None else stop
    try:
        if sweep.attributes["version"] > 2 and mark.exists():  # since the listing
            return Outcome(number, 0.0, "finished")
        with stop.listening():
            bar = watched(progress, stop, claims.keep_alive(number))
            made = _values_of(sweep, job, box, bar, mixed)
            if made is None:
                return Outcome(number, 0.0, "stopped")
            values, seconds, origin = made
            write_box(sweep, box, values, seconds, {**origin, "wall": time.perf_counter() - began})
            forget_kept(sweep.path, number)
    except Stopped:
        return Outcome(number, 0.0, "stopped")
    finally:
        claims.release(number)
    return Outcome(number, seconds, "trained")


def _values_of(
    sweep: Sweep, job: Job, box: Box, bar: BarMaker, mixed: bool
) -> tuple[dict[str, np.ndarray], float, dict[str, Any]] | None:
    """The results of a chunk, the seconds of its training, and where it comes from; None if it was stopped.

    What an extended store kept of it is not trained again.
    """
    kept = read_kept(sweep.path, box, sweep.result_shapes)
    if kept is None:
        run = job.train(box, bar)
        if run.interrupted:
            return None
        check_origin(sweep, run.provenance, mixed)
        return job.results(run, box)[0], run.seconds, origin_of(run, 0.0)
    whole = {
        name: np.empty((box.n_models, *rows.shape[1:]), rows.dtype) for name, rows in kept.values.items()
    }
    for name, rows in kept.values.items():
        whole[name][kept.mask] = rows
    seconds, origin = kept.seconds, kept.origin()
    for part in kept.missing(box, sweep.grid.shape):
        run = job.train(part, bar)
        if run.interrupted:
            return None
        check_origin(sweep, run.provenance, mixed)
        values, _ = job.results(run, part)
        check_values(sweep, values, box.number)
        for name, rows in values.items():
            whole[name][part.index.numpy() - box.first] = rows
        seconds, origin = seconds + run.seconds, kept.origin(origin_of(run, 0.0))
    return whole, seconds, origin


def watched(progress: BarMaker | None, stop: Stop, beat: Callable[[], None]) -> BarMaker:
    """A bar that keeps the claim on its chunk and leaves the training when it is to stop."""

    class Watched:
        def __init__(self, inner: Bar) -> None:
            self._inner = inner

        def update(self, done: int) -> None:
            self._inner.update(done)
            beat()
            if stop():
                raise Stopped

        def close(self) -> None:
            self._inner.close()

    def make(total: int, done: int, n_models: int) -> Bar:
        return Watched(bar_for(progress or False, total, done, n_models))

    return make


def origin_of(run: Run, wall: float) -> dict[str, Any]:
    """Where a chunk was trained, and how long all of it took."""
    given = run.provenance
    kept = ("toykern", "commit", "instruction_set", "gpu", "torch", "date", "threads")
    device = next(run.model.parameters()).device
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "device": str(device), "wall": wall,
        **{name: given[name] for name in kept if name in given},
    }  # fmt: skip


def check_origin(sweep: Sweep, here: Mapping[str, Any], mixed: bool) -> None:
    """StoreError where models trained here would have other bits than the store's, unless `mixed`."""
    there = sweep.attributes["provenance"]
    for name in _PINNED:
        if not mixed and there.get(name) != here.get(name):
            what = name.replace("_", " ")
            pin = ""
            if name == "instruction_set" and "gpu" not in there and "gpu" not in here:
                pin = f"TOYKERN_ISA={there[name]} in the environment takes that of the store, "
            raise StoreError(
                f"the sweep in {sweep.path} was begun with {what} {there.get(name)}, here it is "
                f"{here.get(name)}: the bits would be others; {pin}mixed=True (--mixed) goes on nevertheless"
            )


def _longest(sweep: Sweep) -> float | None:
    """Seconds that the longest finished chunk took, if one tells."""
    found = []
    for number in sweep.finished.nonzero()[0].tolist():
        with contextlib.suppress(StoreError):
            found.append(float(sweep.origin(number).get("wall", 0.0)))
    return max(found, default=None)
