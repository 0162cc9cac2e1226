"""Sparse models in `fit` beside dense ones: model-steps a second, and what updates of the topology take.

    python -m bench.bench_fit_topology [--shape 20,10] [--models 1000] [--repeats 3]

Prints the table of docs/sparse_layers.md and writes a record to bench/results/. Every line trains the same
number of models on the same data, on all cores; the lines take turns, and the median of the repeats is shown.
Updates are timed inside `fit`. The recipes' end is far away: what an update drops is the whole 30%.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any
from unittest import mock

import torch

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save
from toykern.training.resident_topology import ResidentTopology

INTERVAL = 100
STEPS = {(20, 10): 400, (80, 40): 100}  # shape → steps of a run
DENSITIES = (0.1, 0.25, 0.5)
RECIPES: dict[str, Any] = {"fixed": None, "SET": tk.SET, "RigL": tk.RigL}


def one(
    shape: tuple[int, int], density: float | None, recipe: Any, models: int, steps: int
) -> dict[str, Any]:
    """Model-steps a second of one run, the seconds of all its updates, and of all of it."""
    n, m = shape
    model: Any = (
        tk.TiedAutoencoder(n, m, models)
        if density is None
        else tk.SparseTiedAutoencoder(n, m, density, n_models=models)
    )
    topology = None if recipe is None else recipe(interval=INTERVAL, end=1000 * INTERVAL)
    spent = 0.0
    advance = ResidentTopology.advance

    def timed(self: ResidentTopology, *args: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        try:
            return advance(self, *args)
        finally:
            spent += time.perf_counter() - began

    with mock.patch.object(ResidentTopology, "advance", timed):
        run = tk.fit(
            model, tk.SparseFeatures(n, 0.05), steps=steps, batch_size=256, record_every=steps,
            optimizer=tk.Adam(lr=1e-3), topology=topology, progress=False,
        )  # fmt: skip
    updates = run.topology.updates if run.topology is not None else 0
    return {
        "rate": run.model_steps_per_second, "updates": updates, "seconds": run.seconds,
        "update_seconds": spent,
    }  # fmt: skip


def measure(shape: tuple[int, int], models: int, repeats: int, densities: tuple[float, ...]) -> list[Any]:
    """Every line of a shape's table: density, recipe, and the runs."""
    lines: list[tuple[float | None, str, Any]] = [(None, "dense", None)]
    lines += [(density, name, recipe) for density in densities for name, recipe in RECIPES.items()]
    found: list[list[dict[str, Any]]] = [[] for _ in lines]
    one(shape, None, None, models, 5)
    for _ in range(repeats):
        for at, (density, _, recipe) in enumerate(lines):
            found[at].append(one(shape, density, recipe, models, STEPS[shape]))
    return [
        {"density": density or 1.0, "recipe": name, "runs": runs}
        for (density, name, _), runs in zip(lines, found, strict=True)
    ]


def row(shape: tuple[int, int], line: dict[str, Any], dense: float) -> str:
    """A line of the table."""

    def median(name: str) -> float:
        return statistics.median(run[name] for run in line["runs"])

    updates = line["runs"][0]["updates"]
    last = "| "
    if updates:
        share = median("update_seconds") / median("seconds")
        last = f"{1e3 * median('update_seconds') / updates:.3g} ms | {share:.1%}"
    return (
        f"| {shape[0]}→{shape[1]} | {line['density']} | {line['recipe']} | {median('rate') / 1e3:.3g} k | "
        f"{median('rate') / dense:.2f}× | {last} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", help="only this one, for example 20,10")
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    record = head(
        "fit with topology: model-steps a second, and seconds of all updates of a run",
        cores=torch.get_num_threads(), models=options.models, interval=INTERVAL, shapes=[],
    )  # fmt: skip
    print("| shape | density | connections | model-steps/s | of dense | an update | share of the time |")
    print("|---|---|---|---|---|---|---|")
    for shape in STEPS:
        if options.shape not in (None, f"{shape[0]},{shape[1]}"):
            continue
        lines = measure(shape, options.models, options.repeats, tuple(options.density))
        record["shapes"].append({"shape": shape, "steps": STEPS[shape], "lines": lines})
        dense = statistics.median(run["rate"] for run in lines[0]["runs"])
        for line in lines:
            print(row(shape, line, dense), flush=True)
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        path = save(record, "fit-topology")
        print(f"Every figure: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
