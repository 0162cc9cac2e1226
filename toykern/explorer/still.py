"""The map of a sweep and its best model in one figure, for where there is no browser to talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from toykern.explorer.atlas import Atlas, View
from toykern.explorer.axis import MapAxis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_of(atlas: Atlas, view: View | None = None) -> Figure:
    """The map that a sweep begins with (or another `view`), read to its end, and the best model on it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure of a sweep needs matplotlib: pip install 'toykern[plot]'") from error
    view = atlas.check(atlas.first_view() if view is None else view)
    while atlas.advance(view.colour, 60.0) or atlas.waiting(view.colour):
        pass
    shown = atlas.map(view)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    scale = LogNorm if shown.log else Normalize
    norm = None if shown.rgb is not None else scale(shown.low, shown.high)
    picture = shown.values if shown.rgb is None else shown.rgb
    drawn = left.imshow(picture, origin="lower", aspect="auto", interpolation="nearest", norm=norm)
    left.set_facecolor("#d1d1d1")
    if shown.rgb is None:
        figure.colorbar(drawn, ax=left)
    _ticks(left.xaxis, shown.across)
    _ticks(left.yaxis, shown.up)
    left.set(xlabel=view.across, ylabel=view.up or "", title=_title(view))
    losses = atlas.map(View(view.across, view.up, atlas.judge, view.best, view.at))
    if not np.isfinite(losses.values).any():
        return figure
    best = np.unravel_index(np.nanargmin(losses.values), losses.values.shape)
    details = atlas.details(int(losses.number[best]))
    left.plot(best[1], best[0], "o", markerfacecolor="none", markeredgecolor="black")
    words = ", ".join(f"{name} {value:.4g}" for name, value in details.point.items())
    if details.weight is not None:
        along, principal = details.plane
        for x, y in along[:2].T:
            middle.plot([0, x], [0, y], color="0.6")
        middle.plot(along[0], along[1], "o")
        middle.set(aspect="equal", title="features" + (", principal directions" if principal else ""))
    right.plot(details.steps, details.loss)
    right.set(yscale="log", xlabel="step", title="loss")
    figure.supxlabel(f"the best: model {details.number}, {words}", fontsize="medium")
    return figure


def _title(view: View) -> str:
    return view.colour + (f", best {view.best}" if view.best is not None else "")


def _ticks(axis: Any, along: MapAxis) -> None:
    ticks = along.ticks()
    axis.set_ticks(list(ticks), labels=list(ticks.values()))
