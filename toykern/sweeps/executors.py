"""Chunks trained by the workers of an executor: a pool of processes or threads, or another engine's."""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from toykern.arguments.errors import describe
from toykern.native.devices import check_kernels
from toykern.sweeps.boxes import models_of
from toykern.sweeps.job import Job
from toykern.sweeps.result import Sweep
from toykern.sweeps.worker import Outcome, Stop, train_chunk
from toykern.training.progress import SweepProgress

_POLL = 0.5  # seconds: how soon word to stop is heard


@dataclass(frozen=True)
class Crew:
    """Who trains the chunks.

    Attributes:
        executor: whose workers do; None: this thread does.
        devices: where, a chunk at a time on each; (): where the plan puts its models.
        at_once: chunks that are trained at once in the memory of one device, as far as that is known.
        own: the executor was made here, and is shut down here.
    """

    executor: Executor | None = None
    devices: tuple[str, ...] = ()
    at_once: int = 1
    own: bool = False

    @staticmethod
    def of(executor: Any, devices: Any, job: Job) -> Crew:
        """Those that were given to `sweep`.

        Raises:
            TypeError, ValueError: it is no executor, there are no such devices, or the job cannot be given to
                the workers.
        """
        names = _check_devices(devices)
        if executor is None:
            if not names:
                return Crew()
            return Crew(ThreadPoolExecutor(len(names)), names, 1, own=True)
        if not isinstance(executor, Executor):
            raise TypeError(
                f"executor must be a concurrent.futures.Executor, not {describe(executor)}; that of a Dask "
                "client is client.get_executor()"
            )
        if isinstance(executor, ProcessPoolExecutor):
            _check_start(executor)
        if not isinstance(executor, ThreadPoolExecutor):
            _check_pickled(job, executor)
        workers = getattr(executor, "_max_workers", 1)
        return Crew(executor, names, 1 if names else max(1, int(workers or 1)))

    def at_first_device(self, job: Job) -> Job:
        """The job as it is on the first device."""
        return replace(job, device=torch.device(self.devices[0]))

    def train(
        self, store: Sweep, job: Job, numbers: Sequence[int], mixed: bool, bar: SweepProgress, stop: Stop
    ) -> bool:
        """Have these chunks trained; whether it was stopped before all were.

        Raises:
            RuntimeError: some could not be; the others have been.
        """
        assert self.executor is not None
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in self.devices:
            free.put(name)
        todo, running = list(numbers), dict[Future[Outcome], tuple[int, str | None]]()
        failed: dict[int, BaseException] = {}
        stopped = False
        with self._open() as executor:
            try:
                while (todo and not stopped) or running:
                    stopped = stopped or stop()
                    if stopped:
                        for future in running:
                            future.cancel()
                    while todo and not stopped and not (self.devices and free.empty()):
                        number = todo.pop(0)
                        device = free.get() if self.devices else None
                        # Word to stop reaches threads of this process alone.
                        told = stop if isinstance(executor, ThreadPoolExecutor) else None
                        try:
                            future = executor.submit(
                                train_chunk, store.path, job, number, mixed, device, None, told
                            )
                            running[future] = number, device
                        except RuntimeError as error:  # the pool is broken, or was shut down
                            failed[number] = error
                    done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                    for future in done:
                        number, device = running.pop(future)
                        if device is not None:
                            free.put(device)
                        try:
                            stopped = future.result().state == "stopped" or stopped
                        except CancelledError:
                            stopped = True
                        except Exception as error:
                            failed[number] = error
                    if done:
                        finished = store.finished
                        bar.finished(int(finished.sum()), models_of(store.boxes, finished))
                    else:
                        bar.waiting()
            except BaseException:
                stop.tell()  # threads of this process hear it
                for future in running:
                    future.cancel()
                raise
        if failed:
            _raise(failed, store)
        return stopped

    @contextmanager
    def _open(self) -> Iterator[Executor]:
        assert self.executor is not None
        try:
            yield self.executor
        finally:
            if self.own:
                self.executor.shutdown()


def _raise(failed: dict[int, BaseException], store: Sweep) -> None:
    number, error = next(iter(failed.items()))
    shown = ", ".join(map(str, list(failed)[:8])) + (", …" if len(failed) > 8 else "")
    many = f"chunks {shown}" if len(failed) > 1 else f"chunk {shown}"
    kind = MemoryError if isinstance(error, MemoryError) else RuntimeError
    raise kind(
        f"{many} of {len(store.boxes)} could not be trained (chunk {number}: {type(error).__name__}: "
        f"{error}); {int(store.finished.sum())} are in {store.path}, and the same call with resume=True "
        "(--resume) goes on"
    ) from error


def _check_devices(devices: Any) -> tuple[str, ...]:
    if devices is None:
        return ()
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise TypeError(
            f'devices must be a list of devices, as ["cuda:0", "cuda:1"], not {describe(devices)}'
        )
    found = []
    for given in devices:
        if not isinstance(given, (str, torch.device)):
            raise TypeError(f"devices must be names of devices such as 'cuda:0', not {describe(given)}")
        try:
            found.append(str(torch.device(given)))
        except RuntimeError as error:
            raise ValueError(f"devices: {describe(given)} is no device") from error
        if torch.device(given).type == "cuda":
            try:
                check_kernels(found[-1])
            except RuntimeError as error:
                raise RuntimeError(f"devices: {error}") from None
    return tuple(found)


def _check_start(executor: ProcessPoolExecutor) -> None:
    """ValueError for processes that are forked: the kernels' threads do not survive that."""
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor: its processes are forked from this one, whose threads they would lack; make it as "
            'ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))'
        )


def _check_pickled(job: Job, executor: Executor) -> None:
    """TypeError where the plan or what goes with it cannot be sent to another process."""
    parts = {"plan": job.plan, "measure": job.measure, **job.settings}
    for name, value in parts.items():
        try:
            pickle.dumps(value)
        except Exception as error:  # whatever its own methods raise
            if not isinstance(executor, ProcessPoolExecutor) and _cloudpickled(value):
                continue  # such engines send functions by value
            raise TypeError(
                f"{name} cannot be sent to the executor's processes ({error}); define it at the top level of "
                "a module, or take a ThreadPoolExecutor"
            ) from error
        in_main = getattr(value, "__module__", "") == "__main__"
        is_file = os.path.exists(getattr(sys.modules["__main__"], "__file__", None) or "")
        if isinstance(executor, ProcessPoolExecutor) and in_main and not is_file:
            raise TypeError(
                f"{name} is defined in an interactive session, of which the executor's processes know "
                "nothing; put it into a module, or take a ThreadPoolExecutor"
            )


def _cloudpickled(value: Any) -> bool:
    try:
        importlib.import_module("cloudpickle").dumps(value)
    except Exception:  # it is not installed, or cannot either
        return False
    return True
