"""The roof: the least time of a training step on this machine, by counted operations and measured peaks.

Each product is counted in its cheapest known form. For one model-step, in expectation, with B samples of n
features active with probability p, and m hidden units:

- samples that are not all zero: s = B (1 - (1-p)^n); active entries: a = B n p. All-zero samples cost
  nothing.
- multiply-adds: those of the direct form or of the Gram form, whichever has fewer on the workload.
  *Direct*: a·m (first product) + s·n·m (output) + 2·s·n·m (backward: to the hidden units, and to the
  weights through the outputs) + a·m (to the weights through the inputs).
  *Gram*: an active entry costs a row of G = WᵀW on the way to the outputs and a row of A = Σ x dᵀ on the way
  back, 2·a·n in all, whatever m is; and once a batch G itself, of which one half is enough since it is
  symmetric, and the weights' gradient W (A + Aᵀ). Of both only what features that are active in the batch
  make necessary: a pair of features has a part in them unless both are inactive, each with probability
  (1-p)^B.
- random words: 2a where p ≤ 1/8 (a gap and a magnitude for each active entry); otherwise 11/32 of a word
  for each entry (bit-sliced gates decide 32 entries after 11 levels or so; none where p = 1) and a
  magnitude for each active one.
- elementwise: 6 vector operations for each feature of a sample that is not empty (error, loss, two masks,
  importance, bias gradient), at the rate of multiply-adds.

Times are added, not overlapped: all of it goes through the same vector units. Nothing is counted for Adam,
for positions, or for moving data. Outputs count whether they are active or not: a run that leaves inactive
ones out on the way back may come below its roof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.workloads import Workload

ELEMENTWISE_OPERATIONS = 6
GATE_WORDS = 11 / 32
RARE_PROBABILITY = 1 / 8
_TRIES = 30


@dataclass(frozen=True)
class Peaks:
    """What all cores together reach a second: single-precision flops (a multiply-add is 2), random words."""

    flops: float
    random_words: float


@dataclass(frozen=True)
class Operations:
    """Expected operations of one model-step."""

    multiply_adds: float
    random_words: float
    elementwise: float

    def microseconds(self, peaks: Peaks) -> float:
        """The time these take at the peaks, µs."""
        vector_rate = peaks.flops / 2.0
        seconds = (
            self.multiply_adds + self.elementwise
        ) / vector_rate + self.random_words / peaks.random_words
        return seconds * 1e6


def measure_peaks(threads: int) -> Peaks:
    """The best of many short measurements, since other programs can only slow one down."""
    import torch  # noqa: F401  (its OpenMP run-time is the native module's)

    from toykern import _native

    flops = max(_native.measure_fma_peak(threads) for _ in range(_TRIES))
    words = max(_native.measure_random_words(threads) for _ in range(_TRIES))
    return Peaks(flops, words)


def count_operations(workload: Workload) -> Operations:
    """The expected operations of one model-step of a workload; see the top of this file."""
    n, batch = workload.n_features, workload.batch_size
    p = workload.probability(1).item()
    samples = batch * (1.0 - (1.0 - p) ** n)
    active = batch * n * p
    gates = 0.0 if p == 1.0 else active if p <= RARE_PROBABILITY else GATE_WORDS * batch * n
    return Operations(
        multiply_adds=min(direct_multiply_adds(workload, p), gram_multiply_adds(workload, p)),
        random_words=gates + active,
        elementwise=ELEMENTWISE_OPERATIONS * samples * n,
    )


def direct_multiply_adds(workload: Workload, p: Any = None) -> Any:
    """Expected multiply-adds of one model-step whose products go through the hidden units.

    `p`: the probability of a feature, an array of those of many models (the result is alike), or None: the
    workload's own.
    """
    n, m, batch = workload.n_features, workload.n_hidden, workload.batch_size
    p = workload.probability(1).item() if p is None else p
    samples = batch * (1.0 - (1.0 - p) ** n)
    return 2.0 * batch * n * p * m + 3.0 * samples * n * m


def gram_multiply_adds(workload: Workload, p: Any = None) -> Any:
    """Expected multiply-adds of one model-step in the Gram form; `p` as above."""
    n, m, batch = workload.n_features, workload.n_hidden, workload.batch_size
    p = workload.probability(1).item() if p is None else p
    never = (1.0 - p) ** batch  # a feature is active in no sample of the batch
    same, different = n * (1.0 - never), n * (n - 1) * (1.0 - never**2)  # entries of G and A with a part
    once_a_batch = (same + different / 2.0) * m + (same + different) * m
    return 2.0 * batch * n * p * n + once_a_batch
