"""What topology updates did: dropped, grown, explored, active; as numbers, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from toykern.plot.axes import axes_for
from toykern.sparse.change import Changed
from toykern.sparse.layer import AttachedLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerReport:
    """One layer after one update; every tensor is `[n_models]`.

    Attributes:
        dropped, grown: int64, connections that went and came. These are net changes: one that was to be
            dropped and was among the best to grow in the same update stayed, with its value, and is neither.
            So both may be below the drop fraction of the connections, by much where small values have large
            gradients.
        connections: int64, how many there are now; `density`: float64, as a fraction of all positions.
        explored: float64, the fraction of all positions that ever had a connection: the exploration rate R_s
            of Liu et al. 2021 (In-Time Over-Parameterization, §3.1); None where it is not tracked.
        active_neurons: int64, outputs with at least one input; `active_inputs`: inputs with an output.
    """

    dropped: torch.Tensor
    grown: torch.Tensor
    connections: torch.Tensor
    density: torch.Tensor
    explored: torch.Tensor | None
    active_neurons: torch.Tensor
    active_inputs: torch.Tensor


@dataclass(frozen=True)
class Update:
    """What one update of a topology did.

    Attributes:
        step: after how many steps it was, counted from 1; number: which update, counted from 1.
        drop_fraction: what fraction was to be dropped; None where a recipe goes by a density.
        layers: a `LayerReport` by the layer's name.
        rewound_to: the step whose weights were put back (lottery tickets), else None.
        skipped: the models that kept their connections, since their gradients were not finite.
    """

    step: int
    number: int
    drop_fraction: float | None
    layers: dict[str, LayerReport]
    rewound_to: int | None = None
    skipped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "skipped", tuple(self.skipped))

    @property
    def dropped(self) -> int:
        """Connections dropped in all layers and models."""
        return sum(int(layer.dropped.sum()) for layer in self.layers.values())

    @property
    def grown(self) -> int:
        """Connections grown in all layers and models."""
        return sum(int(layer.grown.sum()) for layer in self.layers.values())

    def __repr__(self) -> str:
        parts = [f"step={self.step}", f"dropped={self.dropped}", f"grown={self.grown}"]
        explored = [layer.explored for layer in self.layers.values()]
        if explored and all(part is not None for part in explored):
            mean = torch.stack([part.mean() for part in explored if part is not None]).mean()
            parts.append(f"explored={float(mean):.3g}")
        if self.rewound_to is not None:
            parts.append(f"rewound_to={self.rewound_to}")
        if self.skipped:
            parts.append(f"skipped={len(self.skipped)}")
        return f"Update({', '.join(parts)})"

    def state(self) -> dict[str, Any]:
        """As plain dicts, numbers and tensors, for a checkpoint; `Update.from_state` is the inverse."""
        layers = {name: dict(vars(layer)) for name, layer in self.layers.items()}
        return {**vars(self), "layers": layers}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Update:
        """The update that `state` described."""
        layers = {name: LayerReport(**layer) for name, layer in state["layers"].items()}
        return cls(**{**state, "layers": layers})


def report_of(layer: AttachedLayer, new: Changed, marked: torch.Tensor | None) -> LayerReport:
    """The report on a layer that was just changed; `marked` int64 `[n_models]`, places explored, or None."""
    topology = layer.topology  # of units, where the layer has groups: all of them alike
    explored = None
    if marked is not None:
        explored = (marked.double() / (topology.in_features * topology.out_features)).cpu()
    return LayerReport(
        dropped=new.dropped.cpu() * layer.group,
        grown=new.grown.cpu() * layer.group,
        connections=new.topology.n_connections.cpu().clone(),
        density=new.topology.density.cpu(),
        explored=explored,
        active_neurons=new.active_neurons.cpu() * layer.group,
        active_inputs=new.active_inputs.cpu().clone(),
    )


def unchanged_report(layer: AttachedLayer) -> LayerReport:
    """The report on a layer that an update left alone."""
    topology = layer.topology
    none = torch.zeros_like(topology.n_connections)
    new = Changed(
        topology=layer.module.topology,
        old_slot=none,
        fresh=none,
        dropped=none,
        grown=none,
        active_neurons=(topology.fan_in > 0).sum(dim=1),
        active_inputs=(topology.fan_out > 0).sum(dim=1),
    )
    explored = layer.explored
    marked = None if explored is None else explored.reshape(topology.n_models, -1).count_nonzero(dim=1)
    return report_of(layer, new, marked)


QUANTITIES = {
    "explored": "explored fraction of all positions",
    "density": "density",
    "active_neurons": "active output neurons",
    "active_inputs": "active inputs",
    "dropped": "connections dropped",
    "grown": "connections grown",
    "connections": "connections",
}


def plot_history(history: Sequence[Update], quantity: str, ax: Axes | None) -> Axes:
    """One line for each layer: the mean over models of a quantity of `LayerReport` against the step."""
    ax = axes_for(ax, figsize=(6.0, 3.8))
    names = list(history[0].layers) if history else []
    steps = [update.step for update in history]
    for name in names:
        values = [getattr(update.layers[name], quantity) for update in history]
        if any(value is None for value in values):
            raise ValueError(
                "the explored fraction was not tracked: attach a recipe with track_explored=True"
            )
        means = [float(value.double().mean()) for value in values]
        ax.plot(steps, means, marker=".", label=name)
    ax.set_xlabel("step")
    ax.set_ylabel(QUANTITIES[quantity])
    if len(names) > 1:
        ax.legend(frameon=False)
    return ax


def share_of_true(marks: torch.Tensor) -> torch.Tensor:
    """The share of true entries of each row, float64 on the CPU; no copy of the marks in another type."""
    return (torch.count_nonzero(marks, dim=1).double() / marks.shape[1]).cpu()
