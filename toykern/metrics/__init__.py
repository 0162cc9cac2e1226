"""What networks and their codes are measured by, and exact results to compare with.

Measures take one model's tensor or a stack `[models, …]`, and give the models' dimension back where they were
given one. Sums are in double precision.
"""

from toykern.metrics.critical_points import MAX_VERTICES, CriticalPoint, polygon
from toykern.metrics.exact_losses import (
    antipodal_loss,
    best_solution,
    ignored_loss,
    phase_boundary,
    solution_losses,
)
from toykern.metrics.geometry import (
    DEDICATED,
    NOT_REPRESENTED,
    SUPERPOSITION,
    UNDEFINED,
    classify_phase,
    feature_dimensionality,
    features_per_dimension,
    interference,
    superposition,
)

__all__ = [
    "DEDICATED",
    "MAX_VERTICES",
    "NOT_REPRESENTED",
    "SUPERPOSITION",
    "UNDEFINED",
    "CriticalPoint",
    "antipodal_loss",
    "best_solution",
    "classify_phase",
    "feature_dimensionality",
    "features_per_dimension",
    "ignored_loss",
    "interference",
    "phase_boundary",
    "polygon",
    "solution_losses",
    "superposition",
]
