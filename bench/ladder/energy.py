"""What a model-step costs in joules, beside Landauer's bound: an estimate, with its assumptions."""

from __future__ import annotations

import math

from bench.ladder.rungs import BATCH, DENSITY, N_FEATURES, N_PARAMETERS

BOLTZMANN = 1.380649e-23  # J/K, exact in the SI
KELVIN = 300.0
VALUE_BITS = 24  # of a uniform number in float32


def joules(nanoseconds: float, watts: float) -> float:
    """Energy of a step that keeps a core busy for so long, at `watts` for it and its share of the rest."""
    return nanoseconds * 1e-9 * watts


def erased_bits() -> float:
    """Bits that a step cannot keep: what it overwrites, and the batch that it forgets.

    Overwritten are the parameters and both moments, 32 bits each. A batch is forgotten after its step; it
    holds B n H(p) bits of which entries are active, and 24 of each active one's value.
    """
    state = 3 * N_PARAMETERS * 32
    gates = -DENSITY * math.log2(DENSITY) - (1 - DENSITY) * math.log2(1 - DENSITY)
    entries = BATCH * N_FEATURES
    return state + entries * gates + entries * DENSITY * VALUE_BITS


def landauer_joules() -> float:
    """k T ln 2 for each of `erased_bits`, at 300 K (Landauer 1961)."""
    return erased_bits() * BOLTZMANN * KELVIN * math.log(2.0)
