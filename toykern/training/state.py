"""Where a training stands: what went in, what came out so far, and all that is needed to go on.

`toykern.Run` is this with what its users do with it; the loop that trains (`loop.py`), the checks and the
stores need no more than what is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from toykern.arguments.grids import Grid
from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.nn.kinds import AnyModel
from toykern.training.optim import Optimizer
from toykern.training.resident_topology import ResidentTopology
from toykern.training.schedule import Schedule
from toykern.training.settings import Settings


@dataclass
class TrainingState:
    """The models of a run, at the step that they have been trained to; `toykern.Run` says what the fields
    are."""

    model: AnyModel
    data: Source
    config: dict[str, Any]
    arrays: dict[str, Tensor]
    step: int
    loss: Tensor
    diverged_at: Tensor
    records: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    grid: Grid | None = None
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    topology: ResidentTopology | None = None
    topology_state: dict[str, Any] | None = None
    test: Dataset | None = None

    @property
    def settings(self) -> Settings:
        """What the run was told, as its config and arrays have it."""
        recipe = None if self.topology is None else self.topology.recipe
        return Settings.from_config(
            self.config,
            self.arrays,
            data=self.data,
            test=self.test,
            schedule=self.schedule,
            topology=recipe,
            grid=self.grid,
        )

    @property
    def n_models(self) -> int:
        """Number of models, K."""
        return int(self.loss.shape[0])

    @property
    def steps_made(self) -> int:
        """Updates made in all, also those that a `LotteryTicket` put back."""
        return self.step + (0 if self.topology is None else self.topology.steps_gone_back)

    @property
    def steps_to_make(self) -> int:
        """How many there will be when the run is complete."""
        again = 0 if self.topology is None else self.topology.recipe.steps_gone_back()
        return int(self.config["steps"]) + again

    @property
    def complete(self) -> bool:
        """Whether all `config["steps"]` updates were done (after all rounds of a `LotteryTicket`)."""
        return self.steps_made >= self.steps_to_make

    @property
    def record_steps(self) -> np.ndarray:
        """int64 `[R]`: record r covers the steps from `record_steps[r - 1]` (or 0) up to this, exclusive."""
        ends = (np.arange(self.loss.shape[1], dtype=np.int64) + 1) * int(self.config["record_every"])
        return np.minimum(ends, int(self.config["steps"]))
