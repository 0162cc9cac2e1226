"""The phase diagram of three features in two dimensions (`toykern.experiments.phase_outcomes`)."""

from __future__ import annotations

from toykern.experiments.phase_outcomes import phase_experiment

EXPERIMENT = phase_experiment("phase-diagram-3", 3, 2)
