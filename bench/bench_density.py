"""What a step of a sparse model costs in `fit`, against its density.

    python -m bench.bench_density [--only 80,20,0.5 …] [--repeats 5]

One thread, microseconds of processor time per model-step, Adam, batches of 1,024; the densities take turns,
so that a busy machine disturbs all of them alike, and what a call costs beside its steps is taken off.
"Dense" is a `TiedAutoencoder` of the same shape. Prints the table of docs/performance.md and writes a record
to bench/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save
from bench.table import markdown, significant

SECONDS = 0.03  # of processor time at least, for each repeat
BATCH = 1024
DENSITIES = (None, 0.5, 0.25, 0.1, 0.05)  # None: a dense model
# n, m, sparsity of the features, hidden activation
SHAPES: tuple[tuple[int, int, float, str], ...] = (
    (40, 20, 0.99, "none"), (40, 20, 0.5, "none"), (80, 20, 0.99, "none"), (80, 20, 0.99, "relu"),
    (80, 20, 0.5, "none"), (200, 20, 0.99, "none"), (400, 30, 0.99, "none"), (400, 30, 0.99, "relu"),
    (128, 256, 0.97, "none"), (128, 256, 0.97, "relu"), (128, 256, 0.5, "relu"), (512, 64, 0.99, "none"),
    (512, 64, 0.5, "none"),
)  # fmt: skip


def seconds_of(shape: tuple[int, int, float, str], density: float | None, steps: int) -> float:
    """Processor time of so many steps of one model, without that of a call."""
    n, m, sparsity, hidden = shape
    model: Any = (
        tk.TiedAutoencoder(n, m, seed=0, hidden_activation=hidden)
        if density is None
        else tk.SparseTiedAutoencoder(n, m, density, seed=0, hidden_activation=hidden)
    )
    data = tk.SparseFeatures(n, round(1.0 - sparsity, 12))

    def spent(many: int) -> float:
        began = time.process_time()
        tk.fit(model, data, many, BATCH, tk.Adam(lr=1e-3), record_every=many, progress=False)
        return time.process_time() - began

    spent(1)
    of_a_call = min(spent(1), spent(1))
    return max(spent(steps + 1) - of_a_call, 1e-9)


def steps_for(shape: tuple[int, int, float, str], density: float | None, seconds: float) -> int:
    """How many take so long, by ever more: a few steps are lost beside what a call costs."""
    steps = 1
    while (took := seconds_of(shape, density, steps)) < seconds / 4:
        steps *= 4
    return max(1, int(steps * seconds / took))


def measure(shape: tuple[int, int, float, str], repeats: int, seconds: float = SECONDS) -> dict[str, Any]:
    """A line: microseconds of every repeat by density ("dense", "0.5", …)."""
    steps = {density: steps_for(shape, density, seconds) for density in DENSITIES}
    figures: dict[str, list[float]] = {}
    for _ in range(repeats):
        for density in DENSITIES:
            took = seconds_of(shape, density, steps[density]) / steps[density]
            figures.setdefault(str(density or "dense"), []).append(took * 1e6)
    n, m, sparsity, hidden = shape
    name = f"{n} → {m}, S = {sparsity:g}" + (", ReLU codes" if hidden == "relu" else "")
    return {"key": name, "microseconds": figures}


def render(lines: list[dict[str, Any]]) -> str:
    """Medians, and of each density the share of the dense model's time."""
    rows = []
    for line in lines:
        medians = {name: statistics.median(values) for name, values in line["microseconds"].items()}
        rows.append(
            [line["key"], significant(medians["dense"])]
            + [
                f"{significant(value)} ({value / medians['dense']:.2f})"
                for name, value in medians.items()
                if name != "dense"
            ]
        )
    return markdown(["µs per model-step", *(str(density or "dense") for density in DENSITIES)], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_density", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="N,M,S", help="only these of the listed shapes")
    parser.add_argument("--repeats", type=int, default=5, help="of each density (default %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    shapes = [
        shape for shape in SHAPES if not options.only or ",".join(map(str, shape[:3])) in set(options.only)
    ]
    watch = None if options.no_record else Watch.begin(options.busy)
    torch.set_num_threads(1)
    lines = []
    for shape in shapes:
        print(f"{shape[0]} → {shape[1]} …", file=sys.stderr, flush=True)
        lines.append(measure(shape, options.repeats))
    print(render(lines))
    if watch is not None:
        record = head("density", threads=1, batch=BATCH, workloads=lines, load=watch.end())
        print(f"\n{mark(record)}\n\nEvery figure: {save(record, 'density')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
