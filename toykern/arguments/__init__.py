"""Arguments: their checks, how they reach models, grids of them, and the memory that they ask for."""

from toykern.arguments.grids import Grid, grid

__all__ = ["Grid", "grid"]
