"""Updates of a topology, and a stack of sparse layers against a loop over them.

`python -m bench.bench_sparse_updates` prints milliseconds, medians, on all cores torch may use. The RigL
figure is without its dense-gradient product, which is printed beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import toykern as tk

IN_FEATURES, OUT_FEATURES, DENSITY, BATCH = 768, 3072, 0.1, 1024  # 2.4e5 connections
MODELS, ENSEMBLE_IN, ENSEMBLE_OUT, ENSEMBLE_BATCH, ENSEMBLE_DENSITY = 1000, 64, 32, 64, 0.1


def median_ms(work: Callable[[], object], repeats: int = 9) -> float:
    """The median time of `work()` after two warm-up calls."""
    times = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        work()
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure_update(recipe: object) -> tuple[float, float]:
    """(one update, the dense-gradient product) of a recipe that updates at every step, ms."""
    layer = tk.SparseLinear(IN_FEATURES, OUT_FEATURES, DENSITY, seed=0)
    network = nn.Sequential(layer)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    topology = recipe.attach(network, optimizer)
    x, dy = torch.randn(BATCH, IN_FEATURES), torch.randn(BATCH, OUT_FEATURES)
    dense = layer.dense_gradient
    spent = [0.0]

    def timed_dense() -> torch.Tensor:
        start = time.perf_counter()
        gradient = dense()
        spent[0] = time.perf_counter() - start
        return gradient

    layer.dense_gradient = timed_dense
    updates, products = [], []
    for step in range(11):
        optimizer.zero_grad()
        network(x).backward(dy)
        optimizer.step()
        spent[0] = 0.0
        start = time.perf_counter()
        topology.step()
        if step >= 2:
            updates.append(time.perf_counter() - start - spent[0])
            products.append(spent[0])
    return statistics.median(updates) * 1e3, statistics.median(products) * 1e3


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


def main() -> int:
    set_update, _ = measure_update(tk.SET(interval=1, end=1000))
    print(f"SET update at {round(DENSITY * IN_FEATURES * OUT_FEATURES)} connections: {set_update:.2f} ms")
    rigl_update, product = measure_update(tk.RigL(interval=1, end=1000))
    print(f"RigL update: {rigl_update:.2f} ms beside its dense-gradient product of {product:.2f} ms")
    stack, loop = measure_ensemble()
    print(
        f"{MODELS} layers {ENSEMBLE_IN}→{ENSEMBLE_OUT}, batch {ENSEMBLE_BATCH}: {stack:.2f} ms stacked, ",
        end="",
    )
    print(f"{loop:.1f} ms in a loop: {loop / stack:.0f}×")
    return 0


if __name__ == "__main__":
    sys.exit(main())
