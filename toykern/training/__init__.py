"""The resident trainer: settings, optimisers, schedules, the loop, and the seam to its kernels."""

from toykern.training.evaluation import evaluate
from toykern.training.optim import SGD, Adam, AdamW, Optimizer
from toykern.training.schedule import PeriodicCosine, WarmupCosine

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "PeriodicCosine", "WarmupCosine", "evaluate"]
