"""Whole training steps of the family's members, beside PyTorch eager, torch.compile and JAX doing the same work.

    python -m bench.bench_family [--only KEY …] [--repeats 5] [--no-compile] [--no-jax]

The rows are those of `bench/family_rows.py`, with the data generation of streams in the step. Of each peer the
quickest of a few ways to write it stands for it. Contenders take turns from the same start; medians of wall and
processor time of a step of all models, ratios to the best peer in the same run, and the counted roof
(`Row.operations`) at this machine's measured peaks. Prints a table and writes a record to bench/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import toykern as tk
from bench.family_rows import ROWS, Row
from bench.load import Watch, add_option, mark
from bench.peers.family import contenders, jax_is_here
from bench.record import head, save
from bench.roof import Peaks, measure_peaks

OURS = "fit"
KINDS = ("wall", "processor")
TITLES = {"eager": "eager", "compile": "torch.compile", "jax": "JAX"}


def fit_run(row: Row) -> Callable[[int], None]:
    """Steps of `tk.fit`, from the same start each time."""

    def run(steps: int) -> None:
        model = row.model()
        begin = time.perf_counter(), time.process_time()
        tk.fit(
            model, row.data, steps, batch_size=row.batch_size, optimizer=row.fit_optimizer(),
            progress=False, **row.settings,
        )  # fmt: skip
        run.spent = time.perf_counter() - begin[0], time.process_time() - begin[1]  # type: ignore[attr-defined]
        run.trained = dict(model.named_parameters())  # type: ignore[attr-defined]

    return run


def timed(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Milliseconds of wall and processor time a step; without what a run says that it does not count."""
    begin = time.perf_counter(), time.process_time()
    run(steps)
    spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
    wall, processor = getattr(run, "spent", spent)
    return 1e3 * wall / steps, 1e3 * processor / steps


def measure(row: Row, repeats: int, compiled: bool, jax: bool) -> dict[str, Any]:
    """A line of the table: milliseconds a step of all models of each contender, every repeat."""
    runs: dict[str, tuple[Callable[[int], None], int]] = {OURS: (fit_run(row), row.steps)}
    chosen: dict[str, str] = {}
    for name, ways in contenders(row, compiled, jax, torch.get_num_threads()).items():
        tried = {}
        for label, run in ways.items():
            timed(run, row.peer_steps)  # warms up
            tried[label] = timed(run, row.peer_steps)[0] if len(ways) > 1 else 0.0
        chosen[name] = min(tried, key=tried.__getitem__)
        runs[name] = ways[chosen[name]], row.peer_steps
    found: dict[str, Any] = {name: {kind: [] for kind in KINDS} for name in runs}
    timed(*runs[OURS])
    for _ in range(repeats):
        for name, (run, steps) in runs.items():
            for kind, value in zip(KINDS, timed(run, steps), strict=True):
                found[name][kind].append(value)
    return {
        "key": row.key, "name": row.name, "asked": row.asked, "models": row.model().n_models,
        "contenders": found, "setups": chosen, "active_codes": active_share(row),
    }  # fmt: skip


def active_share(row: Row) -> float:
    """Share of the codes that are not 0 at the start, over samples that are not all zeros."""
    model = row.model()
    x = row.data.sample(0, row.batch_size, n_models=1) if row.streams else row.data.batch(
        0, n_models=row.data.n_models, n_outputs=model.network.n_outputs
    )[0][:1]  # fmt: skip
    x = x[:, (x != 0).any(dim=2)[0]]
    with torch.no_grad():
        return float((model.encode(x[0]) != 0).float().mean())


def add_roof(line: dict[str, Any], row: Row, peaks: Peaks) -> None:
    """The counted operations, the milliseconds they take at the peaks, and ratios to the best peer."""
    operations = row.operations(line["active_codes"])
    line["multiply_adds"], line["random_words"] = operations.multiply_adds, operations.random_words
    line["roof"] = operations.microseconds(peaks) / 1e3
    medians = {
        name: {kind: statistics.median(values[kind]) for kind in KINDS}
        for name, values in line["contenders"].items()
    }
    line["medians"] = medians
    peers = [name for name in medians if name != OURS]
    line["best_peer"] = min(peers, key=lambda name: medians[name]["wall"])
    line["ratio"] = {kind: min(medians[p][kind] for p in peers) / medians[OURS][kind] for kind in KINDS}


def row_text(line: dict[str, Any]) -> str:
    """A line of the table in words."""

    def told(name: str) -> str:
        if name not in line["medians"]:
            return "–"
        wall, processor = (line["medians"][name][kind] for kind in KINDS)
        return f"{wall:.3g} / {processor:.3g}"

    asked = f"{line['asked']:g}×" if line["asked"] else "–"
    ratio = " / ".join(f"{line['ratio'][kind]:.2g}" for kind in KINDS)
    cells = [line["name"], f"{line['active_codes']:.1%}", told(OURS), f"{line['roof']:.3g}"]
    cells += [told(name) for name in TITLES]
    return "| " + " | ".join([*cells, f"{ratio}×", asked]) + " |"


def header() -> str:
    """The table's head."""
    names = ["work", "active codes", "fit, ms", "roof, ms", *TITLES.values(), "ratio", "asked for"]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="KEY", choices=list(ROWS), help="only these rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no-jax", action="store_true", help="leave out JAX")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    threads = torch.get_num_threads()
    peaks = measure_peaks(threads)
    record = head(
        "milliseconds of a step of all models, wall and processor", threads=threads,
        peaks={"flops": peaks.flops, "random_words": peaks.random_words}, workloads=[],
    )  # fmt: skip
    print(header(), flush=True)
    for key in options.only or ROWS:
        row = ROWS[key]()
        line = measure(row, options.repeats, not options.no_compile, jax_is_here() and not options.no_jax)
        add_roof(line, row, peaks)
        record["workloads"].append(line)
        print(row_text(line), flush=True)
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        print(f"Every figure: {save(record, 'family')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
