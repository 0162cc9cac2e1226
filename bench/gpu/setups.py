"""The set-ups of every contender that are tried on a workload on a GPU, and with how many models."""

from __future__ import annotations

from bench.workloads import Workload

_MOST = 2**17  # models of a peer
_BATCH_BYTES = 4e9  # of one dense batch, at most; a step holds several arrays of that size
_CACHED_BYTES = 16e6  # a dense batch of this size stays in the second cache of a large GPU


def options_of(contender: str, workload: Workload) -> list[dict[str, str]]:
    """The set-ups worth trying, whatever the number of models; the likeliest first."""
    cells = workload.n_features * workload.n_hidden
    if contender == "eager":
        return [{"layout": "features_first"}, {"layout": "samples_first"}]
    if contender == "compile":
        products = ["elementwise", "matmul"] if cells <= 100 else ["matmul"]
        found = [{"product": products[0], "graphs": "captured"}]
        found += [{"product": products[0], "graphs": "reduce-overhead"}]
        return found + [{"product": product, "graphs": "captured"} for product in products[1:]]
    if contender == "jax":
        other = "unrolled" if cells <= 10 else "matmul_samples_first"
        products = [other, "matmul"] if cells <= 10 else ["matmul", other]
        found = [{"product": product, "generator": "rbg"} for product in products]
        return [*found, {"product": products[0], "generator": "threefry2x32"}]
    return [{}]


def numbers_of(workload: Workload) -> tuple[int, int]:
    """Powers of two for a peer's models: one whose batch stays in cache, and the largest whose batch fits."""
    per_model = 4.0 * workload.n_features * workload.batch_size

    def power(size: float) -> int:
        return 1 << (int(max(1, min(_MOST, size / per_model))).bit_length() - 1)

    return power(_CACHED_BYTES), power(_BATCH_BYTES)
