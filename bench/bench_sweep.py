"""What a sweep costs beside the training in it: plans, claims, marks and the writing of its store.

    python -m bench.bench_sweep [--seconds 0.25 1] [--chunks 12] [--repeats 3]

Prints the table of docs/clusters.md and writes a record to bench/results/. Each line trains chunks that take
about so many seconds, on one thread: as a sweep, and the same chunks by `fit` alone; the two take turns. All
figures are processor time of this process, which other work on the machine does not count into. "In one run"
is what a sweep used beyond its calls of `fit`, over what these used; "beside fit alone" compares whole runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save
from toykern.sweeps.boxes import box_shape, boxes_of
from toykern.sweeps.job import Job

MODELS = 1024  # of a chunk
BATCH = 256
RECORDS = 100


def plan(points: tk.Grid, index: torch.Tensor) -> dict[str, Any]:
    """Five features in two dimensions."""
    return {
        "model": tk.TiedAutoencoder(5, 2, points.n_models, seed=index),
        "data": tk.SparseFeatures(5, points.density[:, None]),
    }


def settings_of(steps: int) -> dict[str, Any]:
    """Arguments of `fit` that all chunks share."""
    every = max(1, steps // RECORDS)
    return {"steps": steps, "batch_size": BATCH, "record_every": every, "optimizer": tk.Adam(lr=1e-3)}


def steps_for(seconds: float) -> int:
    """How many steps of a chunk take so long."""
    index = torch.arange(MODELS)
    grid = tk.grid(density=[0.05], seed=range(MODELS))
    for _ in range(2):  # the first one warms up
        began = time.process_time()
        tk.fit(**plan(grid, index), **settings_of(200), seed=index, progress=False)
    return max(RECORDS, int(200 * seconds / (time.process_time() - began)))


def swept(grid: tk.Grid, steps: int, path: Path) -> tuple[float, float]:
    """Processor time of a sweep, and of the calls of `fit` in it (that of the model for the layout aside)."""
    inside, train = 0.0, Job.train

    def timed(job: Job, box: Any, progress: Any = False) -> tk.Run:
        nonlocal inside
        began = time.process_time()
        run = train(job, box, progress)
        if box.n_models > 1:
            inside += time.process_time() - began
        return run

    with mock.patch.object(Job, "train", timed):
        began = time.process_time()
        tk.sweep(grid, plan, path, chunk=MODELS, progress=False, **settings_of(steps))
        return time.process_time() - began, inside


def alone(grid: tk.Grid, steps: int) -> float:
    """Processor time of the same chunks by `fit` alone."""
    began = time.process_time()
    for box in boxes_of(grid.shape, box_shape(grid.shape, MODELS)):
        points = box.points(grid)
        tk.fit(**plan(points, box.index), **settings_of(steps), seed=box.index, grid=points, progress=False)
    return time.process_time() - began


def measure(seconds: float, chunks: int, repeats: int) -> dict[str, Any]:
    """A line of the table."""
    steps, grid = (
        steps_for(seconds),
        tk.grid(density=[0.01 * (k + 1) for k in range(chunks)], seed=range(MODELS)),
    )
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            whole, inside = swept(grid, steps, Path(folder) / "s.zarr")
        runs.append({"sweep": whole, "inside": inside, "alone": alone(grid, steps)})
    return {"name": f"{seconds:g} s", "seconds": seconds, "steps": steps, "chunks": chunks, "runs": runs}


def row(line: dict[str, Any]) -> str:
    """A line of the table in words."""
    runs = line["runs"]
    chunk = statistics.median(run["inside"] for run in runs) / line["chunks"]
    within = statistics.median(run["sweep"] / run["inside"] - 1 for run in runs)
    beside = statistics.median(run["sweep"] / run["alone"] - 1 for run in runs)
    each = 1e3 * statistics.median((run["sweep"] - run["inside"]) / line["chunks"] for run in runs)
    return f"| {chunk:.2f} s | {each:.1f} ms | {within:.2%} | {beside:+.2%} |"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what Zarr does when it is used for the first time
        swept(tk.grid(density=[0.1, 0.2], seed=range(MODELS)), 2, Path(folder) / "s.zarr")
    record = head(
        "processor seconds of a sweep, of the calls of fit in it, and of the same by fit alone",
        cores=1, threads=1, models=MODELS, batch=BATCH, records=RECORDS, workloads=[],
    )  # fmt: skip
    print("| a chunk's training | a sweep adds | of it, in one run | beside fit alone |")
    print("|---|---|---|---|")
    for seconds in options.seconds:
        record["workloads"].append(measure(seconds, options.chunks, options.repeats))
        print(row(record["workloads"][-1]), flush=True)
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        print(f"Every figure: {save(record, 'sweep')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
