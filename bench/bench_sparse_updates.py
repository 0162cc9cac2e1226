"""Updates of a topology, and a stack of sparse layers against a loop over them.

    python -m bench.bench_sparse_updates                 milliseconds, and a record in bench/results/
    python -m bench.bench_sparse_updates --no-record     only print

Medians, on all cores torch may use. An update is the whole of `topology.step()`; where it forms the dense
gradient, the products are also timed by themselves, inside the update, and shown beside the rest of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save

IN_FEATURES, OUT_FEATURES, DENSITY, BATCH = 768, 3072, 0.1, 1024  # 2.4e5 connections
MODELS, ENSEMBLE_IN, ENSEMBLE_OUT, ENSEMBLE_BATCH, ENSEMBLE_DENSITY = 1000, 64, 32, 64, 0.1
RECIPES = {
    "SET": tk.SET(interval=1, end=1000),
    "RigL": tk.RigL(interval=1, end=1000),
    "RigL, accumulate=2": tk.RigL(interval=2, end=1000, accumulate=2),
    "GSE": tk.GSE(interval=1, end=1000),
}
WARM, REPEATS = 3, 15


def median_ms(work: Callable[[], object], repeats: int = 9) -> float:
    """The median time of `work()` after two warm-up calls."""
    times = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        work()
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure_update(recipe: Any) -> dict[str, float]:
    """One update, and the dense-gradient products within it, ms: medians, and the spread of the former."""
    layer = tk.SparseLinear(IN_FEATURES, OUT_FEATURES, DENSITY, seed=0)
    network = nn.Sequential(layer)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    topology = recipe.attach(network, optimizer)
    x, dy = torch.randn(BATCH, IN_FEATURES), torch.randn(BATCH, OUT_FEATURES)
    spent, tiles = [0.0], layer.gradient_tiles

    def timed_tiles() -> Iterator[tuple[int, torch.Tensor]]:
        """The tiles, and how long it took to form them (whole gradients are made of them too)."""
        steps = tiles()
        while True:
            start = time.perf_counter()
            tile = next(steps, None)
            spent[0] += time.perf_counter() - start
            if tile is None:
                return
            yield tile

    layer.gradient_tiles = timed_tiles
    updates, products = [], []
    while len(updates) < WARM + REPEATS:
        x.normal_(), dy.normal_()
        optimizer.zero_grad()
        network(x).backward(dy)
        optimizer.step()
        spent[0] = 0.0
        start = time.perf_counter()
        changed = topology.step()
        seconds = time.perf_counter() - start
        if changed is not None:
            updates.append(seconds)
            products.append(spent[0])
    updates, products = updates[WARM:], products[WARM:]
    rest = [update - product for update, product in zip(updates, products, strict=True)]
    found = {"update": statistics.median(updates), "least": min(updates), "most": max(updates)}
    found |= {"product": statistics.median(products), "rest": statistics.median(rest)}
    return {name: value * 1e3 for name, value in found.items()}


def measure_ensemble() -> tuple[float, float]:
    """(the stack, a loop over its layers): forward and backward, ms."""
    stack = tk.SparseLinear(ENSEMBLE_IN, ENSEMBLE_OUT, ENSEMBLE_DENSITY, n_models=MODELS, seed=0)
    layers = [tk.SparseLinear(ENSEMBLE_IN, ENSEMBLE_OUT, ENSEMBLE_DENSITY, seed=i) for i in range(MODELS)]
    x = torch.randn(MODELS, ENSEMBLE_BATCH, ENSEMBLE_IN, requires_grad=True)
    dy = torch.randn(MODELS, ENSEMBLE_BATCH, ENSEMBLE_OUT)
    parts = [part.detach().requires_grad_() for part in x]

    def together() -> None:
        x.grad = None
        stack.zero_grad()
        stack(x).backward(dy)

    def one_by_one() -> None:
        for layer, part, gradient in zip(layers, parts, dy, strict=True):
            part.grad = None
            layer.zero_grad()
            layer(part).backward(gradient)

    return median_ms(together), median_ms(one_by_one, repeats=3)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Updates of a topology, and a stack of layers.")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    connections = round(DENSITY * IN_FEATURES * OUT_FEATURES)
    updates = {}
    print(f"updates at {connections} connections, batch {BATCH}, ms (least to most)")
    for name, recipe in RECIPES.items():
        found = updates[name] = measure_update(recipe)
        print(f"  {name}: {found['update']:.2f} ({found['least']:.2f} to {found['most']:.2f})", end="")
        beside = f", {found['rest']:.2f} beside dense-gradient products of {found['product']:.2f}"
        print(beside if found["product"] else "")
    stack, loop = measure_ensemble()
    print(
        f"{MODELS} layers {ENSEMBLE_IN}→{ENSEMBLE_OUT}, batch {ENSEMBLE_BATCH}: {stack:.2f} ms stacked, ",
        end="",
    )
    print(f"{loop:.1f} ms in a loop: {loop / stack:.0f}×")
    if watch is not None:
        load = watch.end()
        print(mark({"load": load}))
        print(f"record: {_save(updates, stack, loop, load)}")
    return 0


def _save(updates: dict[str, dict[str, float]], stack: float, loop: float, load: dict[str, Any]) -> Path:
    record = head(
        "updates of a topology: milliseconds",
        threads=torch.get_num_threads(),
        shape={"in": IN_FEATURES, "out": OUT_FEATURES, "density": DENSITY, "batch": BATCH},
        load=load,
        updates=updates,
        stack={"stacked": stack, "loop": loop},
    )
    return save(record, "sparse-updates")


if __name__ == "__main__":
    sys.exit(main())
