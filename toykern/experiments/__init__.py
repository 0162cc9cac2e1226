"""Experiments of the literature, from scratch, by one call."""

from toykern.experiments.phase_diagram import (
    PhaseDiagram,
    diagram_of,
    phase_diagram_grid,
    train_phase_diagram,
)

__all__ = ["PhaseDiagram", "diagram_of", "phase_diagram_grid", "train_phase_diagram"]
