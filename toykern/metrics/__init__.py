"""What networks and their codes are measured by, and exact results to compare with.

Measures take one model's tensor or a stack `[models, …]`, and give the models' dimension back where they were
given one. Sums are in double precision.
"""

from toykern.metrics.critical_points import MAX_VERTICES, CriticalPoint, polygon
from toykern.metrics.dictionaries import (
    Matching,
    dead_units,
    explained_variance,
    l0,
    match_directions,
    mean_max_cosine_similarity,
)
from toykern.metrics.exact_losses import (
    antipodal_loss,
    best_solution,
    ignored_loss,
    phase_boundary,
    solution_losses,
)
from toykern.metrics.fourier import fourier_power, inverse_participation_ratio, key_frequencies
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
from toykern.metrics.neurons import monosemantic_share, monosemanticity, single_feature_activations
from toykern.metrics.packings import best_packing, packing_interference, packing_loss, packing_slope
from toykern.metrics.paths import linear_path, loss_barrier, match_units, permute_units
from toykern.metrics.samples import leverage, sample_dimensionality

__all__ = [
    "DEDICATED",
    "MAX_VERTICES",
    "NOT_REPRESENTED",
    "SUPERPOSITION",
    "UNDEFINED",
    "CriticalPoint",
    "Matching",
    "antipodal_loss",
    "best_packing",
    "best_solution",
    "classify_phase",
    "dead_units",
    "explained_variance",
    "feature_dimensionality",
    "features_per_dimension",
    "fourier_power",
    "ignored_loss",
    "interference",
    "inverse_participation_ratio",
    "key_frequencies",
    "l0",
    "leverage",
    "linear_path",
    "loss_barrier",
    "match_directions",
    "match_units",
    "mean_max_cosine_similarity",
    "monosemantic_share",
    "monosemanticity",
    "packing_interference",
    "packing_loss",
    "packing_slope",
    "permute_units",
    "phase_boundary",
    "polygon",
    "sample_dimensionality",
    "single_feature_activations",
    "solution_losses",
    "superposition",
]
