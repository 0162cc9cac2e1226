"""Chooses each peer's best set-up on a workload, then times all contenders in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.peers import CONTENDERS, Variant, why_absent
from bench.session import Session
from bench.setups import variants
from bench.workloads import Workload

TRIAL_SECONDS = 0.3  # for each of a variant's trials
TRIALS = 3
REPEAT_SECONDS = 0.5  # at least, for each repeat of the contenders that are reported
REPEATS = 9


@dataclass(frozen=True)
class Timing:
    """Microseconds per model-step of one contender on one workload.

    Attributes:
        variant: the set-up that was timed.
        samples: microseconds per model-step, one for each repeat.
        steps: training steps of a repeat.
        tried: microseconds per model-step (best of a few short trials) of every set-up tried, by label.
    """

    variant: Variant
    samples: list[float]
    steps: int
    tried: dict[str, float]

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.samples, (0.25, 0.75))
        return float(low), float(high)


@contextlib.contextmanager
def best_session(contender: str, workload: Workload) -> Iterator[tuple[Session, int, dict[str, float]]]:
    """The fastest set-up of a contender on a workload, warmed up.

    Yields the session, the steps that take at least `REPEAT_SECONDS`, and what every set-up took.
    """
    tried: dict[str, float] = {}
    candidates = variants(contender, workload)
    if len(candidates) > 1:
        for variant in candidates:
            with Session(variant, workload) as session:
                tried[variant.label] = _trial(session)
    best = min(candidates, key=lambda variant: tried.get(variant.label, 0.0))
    with Session(best, workload) as session:
        session.run(1)
        yield session, _steps_for(session, REPEAT_SECONDS), tried


def measure(workload: Workload, repeats: int = REPEATS) -> dict[str, Timing | str]:
    """Times every contender on a workload: repeats in turn (a, b, c, a, b, c, …), equally disturbed.

    Returns a `Timing` for each contender, or why it is absent.
    """
    absent = {contender: reason for contender in CONTENDERS if (reason := why_absent(contender)) is not None}
    with contextlib.ExitStack() as stack:
        sessions = {
            contender: stack.enter_context(best_session(contender, workload))
            for contender in CONTENDERS
            if contender not in absent
        }
        samples: dict[str, list[float]] = {contender: [] for contender in sessions}
        for _ in range(repeats):
            for contender, (session, steps, _tried) in sessions.items():
                samples[contender].append(session.microseconds_per_model_step(steps))
        timings = {
            contender: Timing(session.variant, samples[contender], steps, tried)
            for contender, (session, steps, tried) in sessions.items()
        }
    return {contender: absent.get(contender) or timings[contender] for contender in CONTENDERS}


def _trial(session: Session) -> float:
    """Warms a session up; the best of a few short timings, in microseconds per model-step."""
    session.run(1)
    steps = _steps_for(session, TRIAL_SECONDS)
    return min(session.microseconds_per_model_step(steps) for _ in range(TRIALS))


def _steps_for(session: Session, seconds: float) -> int:
    """How many steps take at least `seconds`, found by doubling."""
    steps = session.chunk
    while (taken := session.run(steps)) * steps < seconds / 4:
        steps *= 2
    return max(steps, int(np.ceil(1.1 * seconds / taken / session.chunk)) * session.chunk)
