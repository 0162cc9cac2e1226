"""When a topology is updated, and what fraction of the connections is dropped then.

| schedule | fraction at step t, from `begin` to `end`, starting from α |
|---|---|
| `"constant"` | α |
| `"cosine"` | α/2 · (1 + cos(π (t − begin)/(end − begin))), eq. 1 of Evci et al. 2020 with begin = 0 |
| `"linear"` | α (1 − (t − begin)/(end − begin)) |
| a callable | `schedule(t)`, the fraction itself |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from toykern.arguments.errors import (
    check_choice,
    check_int,
    check_non_negative_int,
    check_number,
    check_positive_int,
    describe,
)

DropSchedule: TypeAlias = str | Callable[[int], float]
"""A name of the table above, or any callable (step) -> fraction in [0, 1]."""

DROP_SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Timing:
    """Updates happen after step begin + interval, begin + 2·interval, … up to and including `end`.

    Steps are counted from 1: step t is the t-th call of `topology.step()`. `end` None means for ever.

    >>> timing = Timing(interval=100, begin=0, end=250)
    >>> [step for step in range(1, 1000) if timing.is_update(step)]
    [100, 200]
    """

    interval: int
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", check_positive_int("interval", self.interval))
        object.__setattr__(self, "begin", check_non_negative_int("begin", self.begin))
        if self.end is not None:
            object.__setattr__(self, "end", check_int("end", self.end, minimum=1))
            if self.end <= self.begin:
                raise ValueError(f"end must be above begin ({self.begin}), not {self.end}")

    def is_update(self, step: int) -> bool:
        """Whether the topology changes after step `step`."""
        inside = step > self.begin and (self.end is None or step <= self.end)
        return inside and (step - self.begin) % self.interval == 0

    def next_update(self, step: int) -> int | None:
        """The first update at or after `step`; None if there is none."""
        following = self.begin + max(1, -(-(step - self.begin) // self.interval)) * self.interval
        return following if self.end is None or following <= self.end else None


def check_drop_schedule(schedule: Any, timing: Timing) -> None:
    """TypeError or ValueError unless `schedule` is one, and has the `end` it needs."""
    if not isinstance(schedule, str):
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(
                f"schedule must be one of {', '.join(map(repr, DROP_SCHEDULES))} or a callable (step) -> "
                f"fraction, not {describe(schedule)}"
            )
        return
    if check_choice("schedule", schedule, DROP_SCHEDULES) != "constant" and timing.end is None:
        raise ValueError(
            f"schedule {schedule!r} goes to 0 at `end`, so it needs end (a step, say three quarters of the "
            "training), not None"
        )


def drop_fraction(schedule: DropSchedule, initial: float, step: int, timing: Timing) -> float:
    """The fraction to drop at `step`; ValueError if a callable gives one outside [0, 1].

    >>> round(drop_fraction("cosine", 0.3, 250, Timing(interval=10, end=1000)), 4)
    0.2561
    """
    if not isinstance(schedule, str):
        return check_number(f"schedule({step})", schedule(step), minimum=0.0, maximum=1.0)
    if schedule == "constant":
        return initial
    assert timing.end is not None
    past = (step - timing.begin) / (timing.end - timing.begin)
    return initial * (0.5 * (1 + math.cos(math.pi * past)) if schedule == "cosine" else 1 - past)
