"""The roof on a GPU: the least time of a model-step, by counted instructions and the device's issue rate.

A multiprocessor issues four warp-instructions per clock, a single-precision multiply-add among them, so both
bounds are times at that rate:

- arithmetic: the multiply-adds and elementwise operations of the training alone, in full warps;
- issue: these, and the instructions for random numbers, for places and for the optimiser, in full warps.

Counted for one model-step in expectation (docs/gpu_trainer.md says where the constants come from), with B
samples, features active with probability p, a active entries and s samples that are not all zero:

- multiply-adds of the direct or the Gram form (bench/roof.py), whichever has fewer at a density; and 6
  elementwise operations per feature of a sample in s;
- 40 instructions for a Philox block of four words (its round keys follow from the model alone); 2 words per
  active entry where p ≤ 1/8, else 11/32 of a word for each entry and one for each active entry;
- 20 instructions to turn a word into the place of the next active entry (p ≤ 1/8), 4 to store an active one;
- 15 for each parameter (Adam).

Nothing is counted for loads, stores, reductions and waiting. Products are counted over all outputs, though
the backward pass of a large, sparse model may leave inactive ones out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.roof import direct_multiply_adds, gram_multiply_adds
from bench.workloads import Workload

ISSUES_PER_CLOCK = 4  # warp-instructions of a multiprocessor
LANES = 32
WORD = 40 / 4
ELEMENTWISE = 6
PLACE, STORE, ADAM = 20, 4, 15
GATE_WORDS, RARE = 11 / 32, 1 / 8


@dataclass(frozen=True)
class Counts:
    """Warp-instructions of one model-step, in expectation."""

    arithmetic: float
    random: float
    places: float
    optimizer: float

    @property
    def issue(self) -> float:
        """All of them."""
        return self.arithmetic + self.random + self.places + self.optimizer


def count(workload: Workload) -> Counts:
    """Those of a workload, averaged over its densities; see the top of this file."""
    p = workload.probability(4096)[:, 0]
    n, m, batch = workload.n_features, workload.n_hidden, workload.batch_size
    samples = batch * -np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-12)))
    active = batch * n * p
    rare = p <= RARE
    gates = np.where(rare, active, np.where(p == 1.0, 0.0, GATE_WORDS * batch * n))
    products = np.minimum(direct_multiply_adds(workload, p), gram_multiply_adds(workload, p))
    arithmetic = products + ELEMENTWISE * samples * n
    places = np.where(rare, PLACE * active, 0.0) + STORE * active
    found = (arithmetic, WORD * (gates + active), places, np.full_like(p, ADAM * (n * m + n)))
    return Counts(*(float(value.mean()) / LANES for value in found))


def bounds(workload: Workload, multiprocessors: int, clock_hz: float) -> dict[str, float]:
    """Model-steps per second that the counts allow, and the counts (warp-instructions per model-step)."""
    counts, rate = count(workload), multiprocessors * ISSUES_PER_CLOCK * clock_hz
    return {
        "arithmetic_instructions": counts.arithmetic,
        "issue_instructions": counts.issue,
        "arithmetic_rate": rate / counts.arithmetic,
        "issue_rate": rate / counts.issue,
    }
