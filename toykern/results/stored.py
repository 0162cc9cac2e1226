"""A store with a grid of models in it, as rooms see it that know nothing of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from toykern.arguments.grids import Grid


class Stored(Protocol):
    """A sweep as whoever looks at it needs it first: where it lies, and what its store says of it."""

    @property
    def path(self) -> Path:
        """Of the store."""

    @property
    def grid(self) -> Grid:
        """Of its models."""

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of itself."""
