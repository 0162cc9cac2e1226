"""Chooses each peer's best set-up on a workload, then times all contenders in turn."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.peers import CONTENDERS, OURS, TITLES, Variant, why_absent
from bench.session import Session
from bench.setups import promising, variants
from bench.workloads import Workload

TRIAL_SECONDS = 0.2  # for each of a set-up's trials
TRIALS = 2
REPEAT_SECONDS = 0.3  # at least, for each repeat of the contenders that are reported
REPEATS = 7

Tried = dict[str, dict[str, float]]  # microseconds per model-step by contender and set-up's label


@dataclass(frozen=True)
class Timing:
    """Microseconds per model-step of one contender on one workload.

    Attributes:
        variant: the set-up that was timed.
        samples: wall time, one for each repeat.
        processor: processor time of all cores, likewise.
        steps: training steps of a repeat.
        tried: wall time (best of a few short trials) of every set-up tried, by label.
    """

    variant: Variant
    samples: list[float]
    processor: list[float]
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
def best_session(
    contender: str, workload: Workload, known: dict[str, float] | None = None
) -> Iterator[tuple[Session, int, dict[str, float]]]:
    """The fastest set-up of a contender on a workload, warmed up.

    Yields the session, the steps that take at least `REPEAT_SECONDS`, and what every set-up took. `known` is
    what an earlier run tried: set-ups that were far from its best are not tried again.
    """
    candidates = promising(variants(contender, workload), known or {})
    tried: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(candidates[0], workload))
        if len(candidates) == 1:
            session.run(1)
        else:
            tried[candidates[0].label] = _trial(session)
        for variant in candidates[1:]:
            with contextlib.ExitStack() as other:
                challenger = other.enter_context(Session(variant, workload))
                tried[variant.label] = _trial(challenger)
                if tried[variant.label] < tried[session.variant.label]:
                    stack.close()
                    session = challenger
                    stack.push(other.pop_all())
        yield session, steps_for(session, REPEAT_SECONDS), tried


def measure(
    workload: Workload, repeats: int = REPEATS, known: Tried | None = None
) -> dict[str, Timing | str]:
    """Times every contender on a workload: repeats in turn (a, b, c, a, b, c, …), equally disturbed.

    Returns a `Timing` for each contender, or why it is absent: not installed, or failed, which is told on
    standard error and ends the bench only for toykern itself.
    """
    absent = {contender: reason for contender in CONTENDERS if (reason := why_absent(contender)) is not None}
    with contextlib.ExitStack() as stack:
        sessions = {}
        for contender in CONTENDERS:
            if contender in absent:
                continue
            try:
                ready = best_session(contender, workload, (known or {}).get(contender))
                sessions[contender] = stack.enter_context(ready)
            except RuntimeError as error:
                if contender == OURS:
                    raise
                print(f"{TITLES[contender]} failed and is left out: {error}", file=sys.stderr, flush=True)
                absent[contender] = f"failed: {str(error).strip().splitlines()[-1]}"
        samples: dict[str, list[tuple[float, float]]] = {contender: [] for contender in sessions}
        for _ in range(repeats):
            for contender, (session, steps, _tried) in sessions.items():
                samples[contender].append(session.microseconds_per_model_step(steps))
        timings = {
            contender: Timing(
                session.variant,
                [wall for wall, _ in samples[contender]],
                [processor for _, processor in samples[contender]],
                steps,
                tried,
            )
            for contender, (session, steps, tried) in sessions.items()
        }
    return {contender: absent.get(contender) or timings[contender] for contender in CONTENDERS}


def _trial(session: Session) -> float:
    """Warms a session up; the best of a few short timings, in microseconds per model-step."""
    session.run(1)
    steps = steps_for(session, TRIAL_SECONDS)
    return min(session.microseconds_per_model_step(steps)[0] for _ in range(TRIALS))


def steps_for(session: Session, seconds: float) -> int:
    """How many steps take at least `seconds`, found by doubling.

    By wall or processor time, whichever is less: where others hold the cores, wall time is long after a step.
    """
    steps = session.chunk
    while (taken := min(session.run(steps) * steps, session.processor)) < seconds / 4:
        steps *= 2
    return max(steps, int(np.ceil(1.1 * seconds * steps / taken / session.chunk)) * session.chunk)
