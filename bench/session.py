"""A contender at work in processes of its own: none shares threads, flags or allocators with another."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from bench.peers import Variant
from bench.peers.problem import Problem, problem_of
from bench.workloads import Workload


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """A variant of a contender, set up on a workload and ready to train: one process, or one per shard.

    Between calls the processes wait for a message and use no core.

        with Session(variant, workload) as session:
            session.run(session.chunk)          # warm-up: compiles
            seconds = session.run(1000)

    `threads` is how many cores it may use; None: all. Processes are forked from one that has imported torch,
    which takes seconds, and done nothing else; those of `fresh` begin anew, in the environment as it is then.
    """

    def __init__(
        self, variant: Variant, workload: Workload, threads: int | None = None, *, fresh: bool = False
    ) -> None:
        threads = cores() if threads is None else threads
        problem = problem_of(workload, threads=threads)
        problems = problem.shards(min(threads, workload.n_models)) if variant.sharded else [problem]
        multiprocessing.set_forkserver_preload(["torch"])
        context = multiprocessing.get_context("spawn" if fresh else "forkserver")
        self.variant, self.workload = variant, workload
        self.processor = 0.0  # seconds of all its cores in the last call
        self._pipes: list[Connection] = []
        self._processes = []
        for shard in problems:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, variant, shard), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        try:
            self.chunk: int = self._receive()[0]
        except BaseException:
            self.close()
            raise

    def run(self, steps: int) -> float:
        """Trains for at least `steps` steps, a whole number of chunks; returns seconds *per step*."""
        steps = -(-steps // self.chunk) * self.chunk
        start = time.perf_counter()
        self._call("run", steps)
        return (time.perf_counter() - start) / steps

    def mean_loss(self) -> np.ndarray:
        """The mean batch loss of each model since the last call, `[models]`."""
        return np.concatenate(self._call("mean_loss"))

    def microseconds_per_model_step(self, steps: int) -> tuple[float, float]:
        """Times `run(steps)`: wall time and processor time of all its processes."""
        steps = -(-steps // self.chunk) * self.chunk
        wall = self.run(steps)
        return wall / self.workload.n_models * 1e6, self.processor / steps / self.workload.n_models * 1e6

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((method, arguments))
        return self._receive()

    def _receive(self) -> list[Any]:
        replies = []
        self.processor = 0.0
        for pipe in self._pipes:
            try:
                failed, value, processor = pipe.recv()
            except EOFError:
                raise RuntimeError(f"{self.variant} on {self.workload.name}: its process died") from None
            if failed:
                raise RuntimeError(f"{self.variant} on {self.workload.name} failed:\n{value}")
            replies.append(value)
            self.processor += processor
        return replies


def _serve(pipe: Connection, variant: Variant, problem: Problem) -> None:
    """In the contender's process: builds the trainer, calls its methods as asked until the pipe is closed."""
    try:
        trainer = variant.build(problem)
        pipe.send((False, trainer.chunk, time.process_time()))
        while True:
            method, arguments = pipe.recv()
            began = time.process_time()
            value = getattr(trainer, method)(*arguments)
            pipe.send((False, value, time.process_time() - began))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        pipe.send((True, traceback.format_exc(), 0.0))
