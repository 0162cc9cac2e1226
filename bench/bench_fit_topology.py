"""Sparse models in `fit` beside dense ones: model-steps a second, and what updates of the topology take.

    python -m bench.bench_fit_topology [--models 1000] [--steps 300 100]

Prints the table of docs/sparse_layers.md. Every line trains the same number of models on the same data, on
all cores; the lines take turns, and the median of the repeats is shown. Updates are timed inside `fit`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any
from unittest import mock

import toykern as tk
from toykern.resident_topology import ResidentTopology

INTERVAL = 100
SHAPES = ((20, 10), (80, 40))
DENSITIES = (0.1, 0.25, 0.5)
RECIPES: dict[str, Any] = {"fixed": None, "SET": tk.SET, "RigL": tk.RigL}


def one(shape: tuple[int, int], density: float | None, recipe: Any, models: int, steps: int) -> Any:
    """(model-steps a second, seconds of all updates, updates) of one run."""
    n, m = shape
    model: Any = (
        tk.TiedAutoencoder(n, m, models)
        if density is None
        else tk.SparseTiedAutoencoder(n, m, density, n_models=models)
    )
    topology = None if recipe is None else recipe(interval=INTERVAL, end=steps)
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
    return run.model_steps_per_second, spent, updates, run.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 100), help="for the two shapes")
    arguments = parser.parse_args()
    print("| shape | density | connections | model-steps/s | of dense | an update | share of the time |")
    print("|---|---|---|---|---|---|---|")
    for shape, steps in zip(SHAPES, arguments.steps, strict=True):
        lines = [(None, "dense", None)]
        lines += [(density, name, recipe) for density in DENSITIES for name, recipe in RECIPES.items()]
        found: list[list[Any]] = [[] for _ in lines]
        one(shape, None, None, arguments.models, 5)
        for _ in range(arguments.repeats):
            for at, (density, _, recipe) in enumerate(lines):
                found[at].append(one(shape, density, recipe, arguments.models, steps))
        dense = statistics.median(result[0] for result in found[0])
        for (density, name, _), results in zip(lines, found, strict=True):
            rate = statistics.median(result[0] for result in results)
            spent = statistics.median(result[1] for result in results)
            seconds = statistics.median(result[3] for result in results)
            updates = results[0][2]
            last = f"{1e3 * spent / updates:.3g} ms | {spent / seconds:.1%}" if updates else "| "
            print(
                f"| {shape[0]}→{shape[1]} | {density or 1} | {name} | {rate / 1e3:.3g} k | "
                f"{rate / dense:.2f}× | {last} |"
            )


if __name__ == "__main__":
    main()
