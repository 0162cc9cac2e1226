"""The resident trainer: settings, optimisers, schedules, the loop, and the seam to its kernels."""

from toykern.training.evaluation import evaluate
from toykern.training.optim import LAMB, SGD, SGLD, Adam, AdamW, BiasDecay, Optimizer, UnitNorm
from toykern.training.schedule import PeriodicCosine, WarmupCosine

__all__ = [
    "LAMB",
    "SGD",
    "SGLD",
    "Adam",
    "AdamW",
    "BiasDecay",
    "Optimizer",
    "PeriodicCosine",
    "UnitNorm",
    "WarmupCosine",
    "evaluate",
]
