"""Loss curves of runs and of groups of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from toykern.arguments.broadcast import Values, real_array
from toykern.arguments.errors import describe
from toykern.arguments.grids import Grid
from toykern.plot.axes import (
    BLUE,
    axes_for,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@runtime_checkable
class LossRecords(Protocol):
    """What of a run a curve is drawn from; `toykern.Run` is one."""

    loss: torch.Tensor
    grid: Grid | None
    config: dict[str, Any]

    @property
    def record_steps(self) -> np.ndarray:
        """The steps of the records."""


def loss_curves(
    loss: Values | LossRecords,
    steps: Values | None = None,
    *,
    by: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Loss against training step on logarithmic axes.

    Up to ten models are drawn one by one; more as their median, all together or per value of the grid's axis
    `by` (ten values of it, evenly spaced, if it has more). Up to three medians have the band from the 5th to
    the 95th percentile around them.

    Args:
        loss: a `Run`, or `[models, records]` (or `[records]`).
        steps: training step of each record; needed where `loss` is not a `Run`.
        by: axis of the run's grid to group by.
        labels: one label per curve.
        ax: where to draw.

    Example:
        >>> import toykern as tk
        >>> ax = tk.plot.loss_curves([[1.0, 0.5, 0.2], [1.0, 0.6, 0.4]], steps=[10, 20, 30])
        >>> len(ax.get_lines())
        2
    """
    groups, values, steps, ylabel = _loss_groups(loss, steps, by)
    if labels is not None and (
        isinstance(labels, str | bytes)
        or not isinstance(labels, Sequence | np.ndarray)
        or not all(isinstance(label, str) for label in labels)
    ):
        raise TypeError(f"loss_curves: labels must be a list of texts, not {describe(labels)}")
    names = list(groups) if labels is None else list(labels)
    if len(names) != len(groups):
        raise ValueError(f"loss_curves: labels must name {len(groups)} curves, got {len(names)}")
    ax = axes_for(ax, figsize=(6.4, 4.2))
    import matplotlib

    shades = matplotlib.colormaps["cividis"]
    for at, (name, members) in enumerate(zip(names, groups.values(), strict=True)):
        colour = shades(0.92 * at / (len(groups) - 1)) if len(groups) > 1 else BLUE
        reached = np.isfinite(values[members]).any(axis=0)
        if not reached.any():
            continue
        low, middle, high = np.nanquantile(values[members][:, reached], [0.05, 0.5, 0.95], axis=0)
        ax.plot(steps[reached], middle, color=colour, label=name, linewidth=1.6)
        if len(members) > 1 and len(groups) <= 3:
            ax.fill_between(steps[reached], low, high, color=colour, alpha=0.18, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="training step", ylabel=ylabel)
    if len(values) > 1:
        beside = len(groups) > 3
        ax.legend(
            frameon=False,
            fontsize="small",
            loc="upper left" if beside else "best",
            bbox_to_anchor=(1.01, 1.0) if beside else None,
            title=None if by is None else "median of the models with",
            title_fontsize="small",
        )
    ax.grid(True, which="major", alpha=0.25)
    return ax


def _loss_groups(
    loss: Values | LossRecords, steps: Values | None, by: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, str]:
    """Models of each curve by its label, values `[models, records]`, their steps, label of the y axis."""
    grid, ylabel = None, "loss"
    if isinstance(loss, LossRecords):
        run = loss
        grid, steps = run.grid, run.record_steps
        ylabel = {"mean": "loss (mean over batch and features)", "sum": "loss (sum over features)"}.get(
            run.config.get("loss_reduction", ""), "loss"
        )
        loss = run.loss
    values = np.atleast_2d(real_array("loss", loss))
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"loss_curves: loss must be a Run, [models, records] or [records], not {describe(loss)}"
        )
    given = None if steps is None else real_array("steps", steps)
    if given is None or given.shape != values.shape[1:]:
        raise ValueError(
            f"loss_curves: steps must give the step of each of {values.shape[1]} records of loss, got shape "
            f"{None if given is None else given.shape}"
        )
    models = np.arange(len(values))
    if by is not None:
        if not isinstance(by, str):
            raise TypeError(f"loss_curves: by must be the name of an axis, not {describe(by)}")
        if grid is None or by not in grid.dims:
            raise ValueError(f"loss_curves: by={by!r} is not an axis of the run's grid")
        coordinates = grid.coords[by]
        chosen = np.unique(
            np.linspace(0, len(coordinates) - 1, min(len(coordinates), 10)).round().astype(int)
        )
        groups = {f"{by} = {value:.3g}": np.ravel(grid.index(**{by: value})) for value in coordinates[chosen]}
    elif len(values) <= 10:
        groups = {f"model {i}": models[i : i + 1] for i in models}
    else:
        groups = {f"median of {len(values):,} models, band 5–95%": models}
    return groups, values, given, ylabel
