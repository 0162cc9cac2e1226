"""The set-ups of every contender that are tried on a workload on a CPU.

Listed are those that won on some workload, or nearly; the fastest of a peer stands for it.
"""

from __future__ import annotations

from bench.peers import Variant
from bench.workloads import Workload

NEARLY = 1.15  # times the best: what other noise might have made the best


def variants(contender: str, workload: Workload) -> list[Variant]:
    """The set-ups of a contender that are worth trying on a workload."""
    small = workload.n_features * workload.n_hidden <= 100
    draws = ("uniform",) if workload.sparsity == 0.0 else ("uniform", "gaps")
    if contender == "eager":
        shapes = [("features_first", draw, sharded) for draw in draws for sharded in (False, True)]
        shapes.append(("samples_first", draws[-1], True))
        return [
            Variant("eager", {"layout": layout, "draw": draw}, sharded) for layout, draw, sharded in shapes
        ]
    if contender == "compile":
        product = "elementwise" if small else "matmul"
        shapes = [(product, draw, True) for draw in draws] + [(product, draws[-1], False)]
        if small and workload.n_features * workload.n_hidden > 10:
            shapes.append(("matmul", draws[-1], True))
        return [
            Variant("compile", {"product": product, "draw": draw}, sharded)
            for product, draw, sharded in shapes
        ]
    if contender == "jax":
        products = [
            "matmul",
            "unrolled" if workload.n_features * workload.n_hidden <= 10 else "matmul_samples_first",
        ]
        return [Variant("jax", {"product": product, "draw": draw}) for product in products for draw in draws]
    if contender == "cpp":  # what suits the compiler best depends on the shape
        levels = ("-O3", "-O2", "-O2 -ftree-loop-vectorize")
        return [Variant("cpp", {"optimize": level}, sharded=True) for level in levels]
    if contender == "numba":
        return [Variant("numba", sharded=True)]
    return [Variant(contender)]


def promising(candidates: list[Variant], tried: dict[str, float]) -> list[Variant]:
    """Those that were the best, or nearly, when all were tried (microseconds by label); all of them if none
    is among those, or some were not tried."""
    if not tried or any(variant.label not in tried for variant in candidates):
        return candidates
    limit = NEARLY * min(tried.values())
    return [variant for variant in candidates if tried[variant.label] <= limit]
