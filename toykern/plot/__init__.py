"""Pictures of toy models: the phase diagram, loss curves, feature directions, WᵀW, feature dimensionality.

Every function takes `ax=` (a matplotlib Axes; a new figure if None), draws on it and returns it. Weights are
tensors or arrays in toykern's layout `[…, n_hidden, n_features]`. Colours are those of Okabe and Ito (2008)
and cividis, which people with any colour vision can tell apart. matplotlib is imported only when something is
drawn.
"""

from toykern.plot.geometry import dimensionality_scatter, feature_directions, interference
from toykern.plot.losses import loss_curves
from toykern.plot.phases import phase_diagram

__all__ = [
    "dimensionality_scatter",
    "feature_directions",
    "interference",
    "loss_curves",
    "phase_diagram",
]
