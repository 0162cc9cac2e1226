"""`tk.fit` on one thread and on all, alone and beside a busy program, with and without spinning.

    python -m bench.bench_threads [--only KEY …] [--repeats 5]      (or `python -m bench --threads`)

Threads that wait for others at the end of a stretch spin for a while, which costs nothing on a quiet machine
and takes a core from whoever else has work on a busy one. `OMP_WAIT_POLICY=passive`, set before it starts,
lets them sleep. Every line times the set-ups in turn, by wall and by processor time of all threads; the
busy program is one endless loop that this bench starts. Writes a record to bench/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from bench.load import Watch, add_option, mark
from bench.measure import REPEAT_SECONDS, steps_for
from bench.peers import OURS, Variant
from bench.record import head, save
from bench.session import Session, cores
from bench.table import markdown, significant
from bench.workloads import WORKLOADS, Workload

POLICY = "OMP_WAIT_POLICY"
REPEATS = 5


def measure(workload: Workload, repeats: int, seconds: float = REPEAT_SECONDS) -> dict[str, Any]:
    """A line: microseconds per model-step of each set-up, `[wall, processor]` of every repeat."""
    found: dict[str, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        sessions = {}
        for name, (threads, policy, _) in setups().items():
            with environment(policy):
                session = stack.enter_context(Session(Variant(OURS), workload, threads, fresh=True))
            session.run(1)
            sessions[name] = session, steps_for(session, seconds)
            found[name] = []
        for _ in range(repeats):
            for name, (session, steps) in sessions.items():
                with busy_program() if setups()[name][2] else contextlib.nullcontext():
                    found[name].append(session.microseconds_per_model_step(steps))
    return {"name": workload.name, "key": workload.key, "microseconds": found}


def setups() -> dict[str, tuple[int, str | None, bool]]:
    """Threads, wait policy (None: OpenMP's own), and whether another program is busy."""
    every = cores()
    return {
        "one thread": (1, None, False),
        "all": (every, None, False),
        "all, passive": (every, "passive", False),
        "one thread, busy": (1, None, True),
        "all, busy": (every, None, True),
        "all, passive, busy": (every, "passive", True),
    }


@contextlib.contextmanager
def environment(policy: str | None) -> Iterator[None]:
    """What processes that are started meanwhile find in `OMP_WAIT_POLICY`."""
    before = os.environ.pop(POLICY, None)
    if policy is not None:
        os.environ[POLICY] = policy
    try:
        yield
    finally:
        os.environ.pop(POLICY, None)
        if before is not None:
            os.environ[POLICY] = before


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """An endless loop in a process of its own."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_loop, args=(started,), daemon=True)
    process.start()
    started.wait()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _loop(started: Any) -> None:
    started.set()
    while True:
        pass


def render(record: dict[str, Any]) -> str:
    """Wall / processor time of each set-up, medians, and what the threads gain on a quiet machine."""
    names = list(setups())
    rows = []
    for line in record["workloads"]:
        wall, processor = (
            {name: statistics.median(s[kind] for s in line["microseconds"][name]) for name in names}
            for kind in (0, 1)
        )
        gain = f"{wall['one thread'] / wall['all']:.2f}×"
        cells = [f"{significant(wall[name])} / {significant(processor[name])}" for name in names]
        rows.append([line["name"], gain, *cells])
    return markdown(["µs per model-step, wall / processor", "one → all", *names], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_threads", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="KEY", choices=[w.key for w in WORKLOADS])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each set-up (default %(default)s)")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = Watch.begin(options.busy)
    lines = []
    for workload in WORKLOADS:
        if options.only is None or workload.key in options.only:
            print(f"{workload.name} …", file=sys.stderr, flush=True)
            lines.append(measure(workload, options.repeats))
    record = head("threads", cores=cores(), workloads=lines, load=watch.end())
    print(render(record), mark(record), sep="\n\n")
    print(f"\nEvery figure: {save(record, 'threads')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
