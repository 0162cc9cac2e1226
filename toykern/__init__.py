"""toykern: toy models of superposition and sparsity, trained fast and in huge numbers."""

import torch as _torch  # noqa: F401  (first: the kernels share its OpenMP runtime)

from toykern.data import Anticorrelated, Correlated, SparseFeatures

__all__ = [
    "Anticorrelated",
    "Correlated",
    "SparseFeatures",
]
