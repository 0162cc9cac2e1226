"""Sweeps of any size: grid → chunks of models → one labelled store that grows chunk by chunk and resumes."""

from toykern.sweeps.extending import merge_sweeps
from toykern.sweeps.planning import SweepPlan
from toykern.sweeps.result import Sweep, open_sweep
from toykern.sweeps.run import sweep

__all__ = ["Sweep", "SweepPlan", "merge_sweeps", "open_sweep", "sweep"]
