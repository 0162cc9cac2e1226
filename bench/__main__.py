"""`python -m bench`: measures every workload, prints the table, writes a record. See `--help`."""

from __future__ import annotations

import argparse
import sys

from bench import bench_threads
from bench.gpu import table as gpu_table
from bench.load import Busy, Watch, add_option, load_between, read_counters
from bench.measure import REPEATS, measure
from bench.record import RESULTS, new_record, newest, save, tried_before, workload_entry
from bench.roof import measure_peaks
from bench.session import cores
from bench.table import render, update_readme
from bench.workloads import WORKLOADS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times toykern.fit beside PyTorch eager, torch.compile, JAX, plain C++, numba and occhio "
        "(those that are installed) on the same work, on all cores, prints the table and writes every figure "
        f"to {RESULTS.name}/.",
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="repeats of each figure (default %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="KEY", choices=[w.key for w in WORKLOADS], help="only these workloads"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="only rewrite the tables of README.md and docs/benchmarks.md from the newest records",
    )
    parser.add_argument(
        "--known",
        action="store_true",
        help="try only the set-ups of peers that were the best, or nearly, in the newest record",
    )
    parser.add_argument(
        "--threads", action="store_true", help="toykern alone, on one thread and on all: bench.bench_threads"
    )
    add_option(parser)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    if options.readme:
        update_readme(newest())
        gpu_table.update_readme(gpu_table.newest_record())
        return 0
    if options.threads:
        only = ["--only", *options.only] if options.only else []
        busy = ["--busy"] if options.busy else []
        return bench_threads.main([*only, *busy, "--repeats", str(options.repeats)])
    workloads = [w for w in WORKLOADS if options.only is None or w.key in options.only]
    known = tried_before(newest()) if options.known else {}
    watch = Watch.begin(options.busy)
    peaks = measure_peaks(cores())
    record = new_record(peaks)
    for workload in workloads:
        print(f"{workload.name} …", file=sys.stderr, flush=True)
        before = read_counters()
        timings = measure(workload, options.repeats, known.get(workload.name))
        entry = workload_entry(workload, timings, peaks) | {"load": load_between(before, read_counters())}
        record["workloads"].append(entry)
    try:
        record["load"] = watch.end()
    except Busy:  # the figures are shown with their mark, but not kept
        print(render(record | {"load": watch.load}))
        raise
    print(render(record))
    print(f"\nEvery figure: {save(record)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
