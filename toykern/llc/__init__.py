"""Learning coefficients: estimated beside any weights, known in closed form, and those of polygons."""

from toykern.llc.closed_forms import reduced_rank_learning_coefficient
from toykern.llc.estimation import local_learning_coefficient
from toykern.llc.polygons import PolygonCoefficients, polygon_learning_coefficients
from toykern.llc.result import LearningCoefficient

__all__ = [
    "LearningCoefficient",
    "PolygonCoefficients",
    "local_learning_coefficient",
    "polygon_learning_coefficients",
    "reduced_rank_learning_coefficient",
]
