"""Whole training steps of the family's members, beside PyTorch eager, torch.compile and JAX on the same work.

    python -m bench.bench_family [--only KEY …] [--repeats 5] [--threads N] [--no-compile] [--no-jax]

The rows are those of `bench/family_rows.py`; drawing is part of the step of a stream. Of each peer the
quickest of a few ways to write it stands for it. Contenders take turns from the same start; medians of wall
and processor time of a step of all models, ratios to the best peer in the same run, and the counted roof
(`Row.operations`) at this machine's measured peaks. Prints a table and writes a record to bench/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch

import toykern as tk
from bench.family_rows import ROWS, Row
from bench.load import Watch, add_option, mark
from bench.peers.family import Contender, Steps, contenders, jax_is_here
from bench.record import head, save
from bench.roof import Peaks, measure_peaks

OURS = "fit"
KINDS = ("wall", "processor")
TITLES = {"eager": "eager", "compile": "torch.compile", "jax": "JAX"}


def fit_contender(row: Row) -> Contender:
    """`tk.fit`, with its checks and what it lays out at the beginning of a run."""

    def begin() -> Steps:
        model = row.model()

        def run(steps: int) -> dict[str, torch.Tensor]:
            tk.fit(
                model, row.data, steps, batch_size=row.batch_size, optimizer=row.fit_optimizer(),
                progress=False, **row.settings,
            )  # fmt: skip
            return {name: p.detach() for name, p in model.named_parameters()}

        return run

    return begin


def timed(contender: Contender, steps: int) -> tuple[float, float]:
    """Milliseconds of wall and processor time a step."""
    run = contender()
    begin = time.perf_counter(), time.process_time()
    run(steps)
    return 1e3 * (time.perf_counter() - begin[0]) / steps, 1e3 * (time.process_time() - begin[1]) / steps


def measure(row: Row, repeats: int, compiled: bool, jax: bool) -> dict[str, Any]:
    """A line of the table: milliseconds a step of all models of each contender, every repeat."""
    at_work: dict[str, tuple[Contender, int]] = {OURS: (fit_contender(row), row.steps)}
    chosen: dict[str, str] = {}
    for name, ways in contenders(row, compiled, jax, torch.get_num_threads()).items():
        tried = {}
        for label, way in ways.items():
            timed(way, row.peer_steps)  # warms up
            tried[label] = timed(way, row.peer_steps)[0] if len(ways) > 1 else 0.0
        chosen[name] = min(tried, key=tried.__getitem__)
        at_work[name] = ways[chosen[name]], row.peer_steps
    found: dict[str, Any] = {name: {kind: [] for kind in KINDS} for name in at_work}
    timed(*at_work[OURS])
    for _ in range(repeats):
        for name, (contender, steps) in at_work.items():
            for kind, value in zip(KINDS, timed(contender, steps), strict=True):
                found[name][kind].append(value)
    return {
        "key": row.key, "name": row.name, "asked": row.asked, "models": row.model().n_models,
        "contenders": found, "setups": chosen, "active_codes": active_share(row),
    }  # fmt: skip


def active_share(row: Row) -> float:
    """Share of the codes that are not 0 at the start, over samples of the first model that are not all
    zeros."""
    model = row.model()
    if model.hidden_activation != "relu":
        return 1.0
    assert row.batch_size is not None
    x = row.data.sample(0, row.batch_size, n_models=model.n_models)
    with torch.no_grad():
        return float((model.encode(x)[0][(x[0] != 0).any(dim=1)] != 0).float().mean())


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
    parser.add_argument("--threads", type=int, help="cores to use (default: as many as PyTorch would)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no-jax", action="store_true", help="leave out JAX")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
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
