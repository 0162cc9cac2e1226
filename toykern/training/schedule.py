"""Learning-rate schedules: a multiplier of the learning rate for every step t = 0 … T−1 of a run of T steps.

| schedule | multiplier at step t |
|---|---|
| `"constant"` | 1 |
| `"linear"` | 1 − t/T |
| `"cosine"` | ½(1 + cos(π·t/T)) |
| `"quarter_cosine"` | cos(π/2 · t/(T−1)) |
| `WarmupCosine(warmup)` | (t+1)/warmup while t < warmup, then ½(1 + cos(π·(t−warmup)/(T−warmup))) |
| `PeriodicCosine(period)` | ½(1 + cos(2π·t/period)) |
| a callable | `schedule(t, T)` |

Linear and quarter-cosine are the alternatives of the notebook of Elhage et al. 2022, warm-up and cosine the
schedule of Henighan et al. 2023, the periodic cosine that of Jermyn et al. 2022 (a period of 1,024 steps).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from toykern.arguments.errors import check_choice, check_int, check_positive_int, describe, is_number


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up over `warmup` ≥ 1 steps, then a cosine to 0 at the end of the run.

    >>> multipliers(WarmupCosine(2), steps=4, start=0, stop=4).round(3).tolist()
    [0.5, 1.0, 1.0, 0.5]
    """

    warmup: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", check_positive_int("warmup", self.warmup))

    def __call__(self, step: int, steps: int) -> float:
        """The multiplier at `step` of a run of `steps`."""
        if self.warmup > steps:
            raise ValueError(f"warmup must be at most the number of steps ({steps}), not {self.warmup}")
        if step < self.warmup:
            return (step + 1) / self.warmup
        return _cosine(step - self.warmup, steps - self.warmup)


@dataclass(frozen=True)
class PeriodicCosine:
    """A cosine that falls from 1 to 0 in the first half of `period` ≥ 2 steps and rises again in the other.

    It does not depend on the length of the run, which may therefore be made longer.

    >>> multipliers(PeriodicCosine(4), steps=8, start=0, stop=6).round(3).tolist()
    [1.0, 0.5, 0.0, 0.5, 1.0, 0.5]
    """

    period: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "period", check_int("period", self.period, minimum=2, maximum=2**53))

    def __call__(self, step: int, steps: int) -> float:
        """The multiplier at `step`, whatever the number of steps."""
        return _cosine(2 * (step % self.period), self.period)


Schedule: TypeAlias = str | WarmupCosine | PeriodicCosine | Callable[[int, int], float]
"""A name, a `WarmupCosine`, a `PeriodicCosine`, or any callable (step, steps) -> multiplier ≥ 0."""

_WITH_OPTIONS: dict[str, type[WarmupCosine] | type[PeriodicCosine]] = {
    "warmup_cosine": WarmupCosine,
    "periodic_cosine": PeriodicCosine,
}

OF_ANY_LENGTH = ("constant", "periodic_cosine")
"""Those, by the name in their config, whose multipliers do not depend on the number of steps."""


def _constant(step: int, steps: int) -> float:
    return 1.0


def _linear(step: int, steps: int) -> float:
    return 1.0 - step / steps


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _quarter_cosine(step: int, steps: int) -> float:
    return math.cos(0.5 * math.pi * step / (steps - 1)) if steps > 1 else 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "quarter_cosine": _quarter_cosine,
}


def check_schedule(schedule: Any) -> Callable[[int, int], float]:
    """The callable behind `schedule`; TypeError or ValueError (with the names) if there is none."""
    if not isinstance(schedule, str) and callable(schedule) and not isinstance(schedule, type):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(
            f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, a WarmupCosine, a PeriodicCosine, "
            f"or a callable (step, steps) -> float, not {describe(schedule)}"
        )
    return SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]


def multipliers(schedule: Schedule, steps: int, start: int, stop: int) -> np.ndarray:
    """Multipliers of the steps start … stop−1 of a run of `steps` steps, float64 `[stop − start]`.

    A step's multiplier does not depend on `start` and `stop`. ValueError if 0 ≤ start ≤ stop ≤ steps does not
    hold, or a callable gives something negative or not finite; TypeError if it gives no number.

    >>> multipliers("linear", steps=4, start=1, stop=4).tolist()
    [0.75, 0.5, 0.25]
    """
    function = check_schedule(schedule)
    steps = check_positive_int("steps", steps)
    start = check_int("start", start, minimum=0, maximum=steps)
    stop = check_int("stop", stop, minimum=start, maximum=steps)
    if isinstance(schedule, str):
        return np.array([function(step, steps) for step in range(start, stop)], dtype=np.float64)
    return np.array(
        [_check_multiplier(_called(function, step, steps), step) for step in range(start, stop)],
        dtype=np.float64,
    )


def schedule_config(schedule: Schedule) -> dict[str, Any]:
    """JSON-able description of a schedule; of a callable only its name, from which it cannot be made again.

    >>> schedule_config(WarmupCosine(100))
    {'name': 'warmup_cosine', 'warmup': 100}
    """
    check_schedule(schedule)
    if isinstance(schedule, str):
        return {"name": schedule}
    for name, kind in _WITH_OPTIONS.items():
        if isinstance(schedule, kind):
            return {"name": name, **dataclasses.asdict(schedule)}
    return {"name": "callable", "callable": getattr(schedule, "__qualname__", type(schedule).__qualname__)}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that `schedule_config` described; ValueError for a callable, which has to be passed again.

    >>> schedule_from_config({"name": "warmup_cosine", "warmup": 100})
    WarmupCosine(warmup=100)
    """
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"the schedule's config must be a dict with the key 'name', not {describe(config)}")
    name = check_choice("the schedule's name", config["name"], [*SCHEDULES, *_WITH_OPTIONS, "callable"])
    if name in _WITH_OPTIONS:
        return _WITH_OPTIONS[name](**{key: value for key, value in config.items() if key != "name"})
    if name == "callable":
        raise ValueError(f"the schedule was the callable {config.get('callable')!r}; pass it again")
    return name


def _called(function: Callable[[int, int], float], step: int, steps: int) -> float:
    try:
        return function(step, steps)
    except TypeError as error:
        raise TypeError(
            f"schedule must be a callable (step, steps) -> float; with ({step}, {steps}) it raised: {error}"
        ) from error


def _check_multiplier(value: Any, step: int) -> float:
    if not is_number(value):
        raise TypeError(f"schedule must return a number, not {describe(value)} (at step {step})")
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            f"schedule must return a finite number that is at least 0, not {value} (at step {step})"
        )
    return float(value)
