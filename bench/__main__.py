"""`python -m bench`: measures every workload, prints the table, writes a record. See `--help`."""

from __future__ import annotations

import argparse
import sys

from bench.gpu import table as gpu_table
from bench.load import Watch, add_option
from bench.measure import REPEATS, measure
from bench.record import RESULTS, new_record, newest, save, workload_entry
from bench.roof import measure_peaks
from bench.session import cores
from bench.table import render, update_readme
from bench.workloads import WORKLOADS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times toykern.fit beside PyTorch eager, torch.compile and JAX on the same work, on all "
        f"cores, prints the table and writes every figure to {RESULTS.name}/. Takes about 20 minutes.",
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
    add_option(parser)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    if options.readme:
        update_readme(newest())
        gpu_table.update_readme(gpu_table.newest_record())
        return 0
    workloads = [w for w in WORKLOADS if options.only is None or w.key in options.only]
    watch = Watch.begin(options.busy)
    peaks = measure_peaks(cores())
    record = new_record(peaks)
    for workload in workloads:
        print(f"{workload.name} …", file=sys.stderr, flush=True)
        record["workloads"].append(workload_entry(workload, measure(workload, options.repeats), peaks))
    record["load"] = watch.end()
    print(render(record))
    print(f"\nEvery figure: {save(record)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
