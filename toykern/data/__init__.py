"""Where training data comes from: feature distributions, and the counter-based stream behind them."""

from toykern.data.dataset import Dataset
from toykern.data.dependence import Copula, Hierarchy
from toykern.data.features import SparseFeatures
from toykern.data.frequencies import zipf
from toykern.data.groups import Anticorrelated, Correlated
from toykern.data.modular import modular_addition
from toykern.data.sparse_batch import SparseBatch

__all__ = [
    "Anticorrelated",
    "Copula",
    "Correlated",
    "Dataset",
    "Hierarchy",
    "SparseBatch",
    "SparseFeatures",
    "modular_addition",
    "zipf",
]
