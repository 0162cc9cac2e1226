"""Experiments of the literature, from scratch, by one call: `run("intro-polygons")`.

`names()` lists them, `get(name)` tells what one is, `plan(name)` what it would take; on the command line,
`toykern experiment NAME`. One file each, all of one form (`experiment.py`).
"""

from toykern.experiments.experiment import Experiment, Findings, Outcome, Stage, Trained
from toykern.experiments.phase_diagram import (
    PhaseDiagram,
    diagram_of,
    phase_diagram_grid,
    train_phase_diagram,
)
from toykern.experiments.registry import get, names
from toykern.experiments.running import Result, Unfinished, check, plan, run

__all__ = [
    "Experiment",
    "Findings",
    "Outcome",
    "PhaseDiagram",
    "Result",
    "Stage",
    "Trained",
    "Unfinished",
    "check",
    "diagram_of",
    "get",
    "names",
    "phase_diagram_grid",
    "plan",
    "run",
    "train_phase_diagram",
]
