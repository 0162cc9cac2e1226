"""How busy a bench's machine was: every record says; one of a busy machine is refused, or marked if asked.

watch = Watch.begin(insist=options.busy)     # Busy where others are at work already
…                                            # measure
record["load"] = watch.end()                 # Busy where others were at work meanwhile
print(render(record), mark(record))
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUSY_SHARE = 0.05  # of all cores: what a quiet system's own services stay below
PROBE_SECONDS = 1.0  # how long is looked at the machine before a bench begins


class Busy(SystemExit):
    """Others were at work; the message says how much, and the bench ends with it."""


@dataclass(frozen=True)
class Counters:
    """What has been used up to a moment, in seconds.

    Attributes:
        clock: wall time.
        own: processor time of this process, of those that it has started and of those that they have started.
        all: processor time of everything on all cores; None where the system does not tell (Linux does).
        load_average: of the last minute.
        cores: of the machine, which `all` is of.
    """

    clock: float
    own: float
    all: float | None
    load_average: float
    cores: int


def read_counters() -> Counters:
    """Those of this machine, now."""
    times = os.times()
    busy = None
    stat = Path("/proc/stat")
    if stat.exists():
        # user, nice, system, (idle, iowait,) irq, softirq, steal: what another machine takes counts too
        ticks = [int(part) for part in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    own = times.user + times.system + times.children_user + times.children_system + _seconds_of_descendants()
    return Counters(time.monotonic(), own, busy, os.getloadavg()[0], os.cpu_count() or 1)


def _seconds_of_descendants() -> float:
    """Processor time of the processes below this one that are alive, and of those that these have seen end.

    A contender's processes are children of the one that forks them, so they are not among our own children.
    """
    parent, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(path.parent.name)
        parent[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    below, found = {os.getpid()}, 0
    while new := {pid for pid, above in parent.items() if above in below} - below:
        found += sum(ticks[pid] for pid in new)
        below |= new
    return found / os.sysconf("SC_CLK_TCK")


class Watch:
    """Looks at the machine from `begin` to `end`; `load` is what it has found."""

    def __init__(self, start: Counters, insist: bool, read: Callable[[], Counters]) -> None:
        self._start, self._insist, self._read = start, insist, read
        self.load: dict[str, Any] = {}

    @classmethod
    def begin(
        cls,
        insist: bool = False,
        read: Callable[[], Counters] = read_counters,
        pause: Callable[[float], None] = time.sleep,
    ) -> Watch:
        """Begin to look; `Busy` where others are at work now, unless one insists."""
        before = read()
        pause(PROBE_SECONDS)
        start = read()
        _refuse(load_between(before, start), insist, "is busy")
        return cls(start, insist, read)

    def end(self) -> dict[str, Any]:
        """The load since `begin` (`load_between`); `Busy` where others were at work, unless one insists."""
        self.load = load_between(self._start, self._read())
        _refuse(self.load, self._insist, "was busy while this was measured")
        return self.load


def load_between(start: Counters, end: Counters) -> dict[str, Any]:
    """What a record says of its machine: seconds, processor time, what others used, and whether that is busy.

    `others` is the mean number of cores that others used; where the system does not tell, the load average at
    the start decides.
    """
    seconds = max(end.clock - start.clock, 1e-9)
    own = end.own - start.own
    others, limit = None, BUSY_SHARE * end.cores
    if start.all is not None and end.all is not None:
        others = max(0.0, end.all - start.all - own) / seconds
    return {
        "load_average": [start.load_average, end.load_average],
        "cores": end.cores,
        "seconds": seconds,
        "processor_seconds": own,
        "others": others,
        "busy": (start.load_average > 0.5 if others is None else others > limit),
    }


def mark(record: Mapping[str, Any]) -> str:
    """What a table made from a record says of a busy machine; empty for a quiet one and for older records."""
    load = record.get("load")
    return f"**On a busy machine: {_how_busy(load)}.**" if load and load["busy"] else ""


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--busy`, for those who want figures also from a busy machine."""
    parser.add_argument(
        "--busy", action="store_true", help="measure on a busy machine too; the record and its tables say so"
    )


def _how_busy(load: Mapping[str, Any]) -> str:
    if load["others"] is None:
        return f"its load average was {load['load_average'][0]:.1f}"
    return f"other processes used {load['others']:.2f} of {load['cores']} cores"


def _refuse(load: Mapping[str, Any], insist: bool, what: str) -> None:
    if load["busy"] and not insist:
        raise Busy(f"the machine {what}: {_how_busy(load)}; no record is written (--busy marks it instead)")
