"""What experiments on streams are trained with: the optimiser and the numbers that their settings have."""

from __future__ import annotations

from typing import Any, Protocol

from toykern.training.optim import AdamW


class StreamSettings(Protocol):
    """Settings of an experiment whose models see fresh batches."""

    @property
    def steps(self) -> int:
        """Updates of each model."""

    @property
    def batch_size(self) -> int:
        """Samples to an update."""

    @property
    def lr(self) -> float:
        """Learning rate."""

    @property
    def schedule(self) -> str:
        """Of the learning rate, as `toykern.fit` takes it."""


def adamw(settings: StreamSettings) -> dict[str, Any]:
    """Arguments of `toykern.fit` as the paper's notebook has them: AdamW with its weight decay of 0.01.

    >>> from toykern.experiments import get
    >>> adamw(get("geometry").settings)["steps"]
    10000
    """
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": AdamW(lr=settings.lr),
        "schedule": settings.schedule,
    }
