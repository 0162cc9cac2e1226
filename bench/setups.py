"""The set-ups of every contender that are tried on a workload on a CPU.

Listed are those that won on some workload, or nearly; the fastest of a peer stands for it.
"""

from __future__ import annotations

from bench.peers import Variant
from bench.workloads import Workload


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
    return [Variant(contender)]
