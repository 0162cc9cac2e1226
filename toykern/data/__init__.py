"""Where training data comes from: feature distributions, and the counter-based stream behind them."""

from toykern.data.features import Anticorrelated, Correlated, SparseFeatures

__all__ = ["Anticorrelated", "Correlated", "SparseFeatures"]
