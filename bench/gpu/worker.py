"""A contender in a process of its own, asked through a pipe: what breaks there breaks nothing else."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.gpu.setups import numbers_of, options_of
from bench.peers import OURS, Variant
from bench.peers.problem import Trainer, problem_of
from bench.workloads import Workload

TRIAL_SECONDS = 0.15  # of each trial of a set-up
REPEAT_SECONDS = 0.4  # of each repeat that is reported


class Worker:
    """The parent's end. Every call has a time limit; a process that fails is ended, the next call starts one.

    Calls return (result, None) or (None, why not).
    """

    def __init__(self, contender: str, device: str) -> None:
        self._contender, self._device = contender, device
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, method: str, *arguments: Any, limit: float) -> tuple[Any, str | None]:
        """A method of `_Server`."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, there = context.Pipe()
            target = (there, self._contender, self._device)
            self._process = context.Process(target=_serve, args=target, daemon=True)
            self._process.start()
            there.close()
        assert self._pipe is not None
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(max(limit, 0.0)):
                self.close()
                return None, f"took longer than {limit:.0f} s"
            failed, value = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.exitcode
            self.close()
            return None, f"its process died (exit status {code})"
        if failed:
            self.close()  # an error on the device may have left it unusable
            return None, value
        return value, None

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


class _Server:
    """The contender's end."""

    def __init__(self, contender: str, device: str) -> None:
        self._contender, self._device = contender, device
        self._trainer: Trainer | None = None
        self._workload: Workload | None = None
        self._variant: Variant | None = None
        self._steps = 0

    def tune(self, workload: Workload, seconds: float, most: int | None) -> dict[str, Any]:
        """Tries set-ups and numbers of models for about so long, and keeps the best.

        The likeliest set-up climbs through the powers of two from a number whose batch stays in cache, then
        the other set-ups try the best number. At least one is tried; what there was no time for is told.
        """
        end, longest = time.monotonic() + seconds, 0.0
        tried: dict[str, Any] = {}
        rates: dict[Variant, float] = {}
        error: Exception | None = None

        def attempt(choice: dict[str, str], number: int) -> float:
            """Model-steps per second; 0 where it fails or there is no time."""
            nonlocal longest, error
            variant = Variant(self._contender, choice, n_models=number)
            if variant.label in tried:
                return rates.get(variant, 0.0)
            if rates and time.monotonic() + longest > end:
                tried[variant.label] = "no time left"
                return 0.0
            began = time.monotonic()
            try:
                tried[variant.label] = rates[variant] = self._trial(variant, workload)
            except Exception as problem:  # out of memory, or a set-up that this version cannot run
                error = problem
                self._drop()
                tried[variant.label] = f"{type(problem).__name__}: {str(problem)[:300]}"
            longest = max(longest, time.monotonic() - began)
            return rates.get(variant, 0.0)

        choices = options_of(self._contender, workload)
        if self._contender == OURS:
            number = min(workload.n_models, most or workload.n_models)
            attempt(choices[0], number)
        else:
            start, largest = numbers_of(workload)
            largest = min(largest, most or largest)
            number = climb(lambda n: attempt(choices[0], n), min(start, largest), largest)
        for choice in choices[1:]:
            attempt(choice, number)
        if not rates:
            raise RuntimeError(f"no set-up worked: {tried}") from error
        best = max(rates, key=rates.__getitem__)
        if self._variant != best:
            self._set_up(best, workload)
        assert self._trainer is not None
        chunks = rates[best] / best.n_models * REPEAT_SECONDS / self._trainer.chunk
        self._steps = max(1, math.ceil(chunks)) * self._trainer.chunk
        return {"setup": best.label, "n_models": best.n_models, "steps": self._steps, "tried": tried}

    def repeat(self) -> dict[str, float]:
        """Model-steps per second of one more run."""
        assert self._trainer is not None and self._variant is not None
        seconds = self._timed(self._steps)
        found = {"rate": self._variant.n_models * self._steps / seconds}
        if hasattr(self._trainer, "call_seconds"):
            found["call_seconds"] = self._trainer.call_seconds
        return found

    def whole(self, workload: Workload, steps: int) -> dict[str, float]:
        """A run of so many steps of all models, in one call."""
        self._set_up(
            Variant(self._contender, options_of(self._contender, workload)[0], n_models=workload.n_models),
            workload,
        )
        began = time.perf_counter()
        seconds = self._timed(steps)
        return {"seconds": seconds, "call_seconds": time.perf_counter() - began, "steps": steps}

    def drop(self) -> None:
        """Gives the memory back."""
        self._drop()

    def _trial(self, variant: Variant, workload: Workload) -> float:
        self._set_up(variant, workload)
        steps = self._steps_for(TRIAL_SECONDS)
        return variant.n_models * steps / min(self._timed(steps) for _ in range(2))

    def _set_up(self, variant: Variant, workload: Workload) -> None:
        self._drop()
        self._trainer = variant.build(problem_of(workload, variant.n_models, device=self._device))
        self._variant, self._workload = variant, workload
        for _ in range(1 if variant.contender == OURS else 2):  # compiles, captures, warms up
            self._timed(self._trainer.chunk)

    def _timed(self, steps: int) -> float:
        """Seconds of `steps` steps; the device is idle before and after."""
        assert self._trainer is not None
        began = time.perf_counter()
        own = self._trainer.run(steps)
        seconds = time.perf_counter() - began
        return seconds if own is None else own

    def _steps_for(self, seconds: float) -> int:
        """How many steps take about `seconds`, found by growing."""
        assert self._trainer is not None
        chunk = steps = self._trainer.chunk
        while (taken := self._timed(steps)) < seconds / 8 and steps < 2**22:
            steps *= 8
        return max(chunk, math.ceil(steps * seconds / max(taken, 1e-9) / chunk) * chunk)

    def _drop(self) -> None:
        self._trainer = self._variant = None
        gc.collect()
        if "torch" in sys.modules:
            import torch

            torch.compiler.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def climb(rate: Callable[[int], float], start: int, largest: int) -> int:
    """The number of models with the highest rate found from `start` by factors of four, then of two.

    >>> climb(lambda n: -abs(n - 100), 8, 4096)
    128
    """
    best, highest = start, rate(start)
    for factor in (4.0, 0.25):
        moved = False
        while 1 <= (number := int(best * factor)) <= largest and (found := rate(number)) > highest:
            best, highest, moved = number, found, True
        if moved:
            break
    for number in (best * 2, best // 2):
        if 1 <= number <= largest and (found := rate(number)) > highest:
            best, highest = number, found
    return best


def _serve(pipe: Connection, contender: str, device: str) -> None:
    server = _Server(contender, device)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((False, getattr(server, method)(*arguments)))
        except Exception as error:
            trace = traceback.format_exc()[-1500:]
            pipe.send((True, f"{type(error).__name__}: {str(error)[:500]}\n{trace}"))
