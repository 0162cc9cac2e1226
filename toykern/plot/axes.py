"""What pictures share: axes, colours that people with any colour vision can tell apart, ticks, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from toykern.arguments.broadcast import real_array
from toykern.arguments.errors import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, ORANGE, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#666666"


def rgb(colour: str) -> np.ndarray:
    """`"#rrggbb"` as three numbers from 0 to 1."""
    return np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def axes_for(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """`ax`, or that of a new figure; TypeError for what is no Axes of matplotlib."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError("toykern.plot needs matplotlib: pip install 'toykern[plot]'") from error
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax must be a matplotlib Axes, not {describe(ax)}")
        return ax
    return plt.subplots(figsize=figsize, layout="constrained")[1]


def one_model(weight: Any) -> np.ndarray:
    """The weights of one model, float64; of a stack of one without its first dimension."""
    array = real_array("weight", weight)
    if not np.isfinite(array).all():
        raise ValueError(f"weight must be finite, not {describe(weight)} with NaN or infinity in it")
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def per_feature(name: str, value: Any, features: int) -> np.ndarray:
    """Finite numbers, one for all or one for each feature, float64 `[features]`."""
    array = real_array(name, value)
    array = array[0] if array.ndim == 2 and array.shape[0] == 1 else array
    if array.shape not in ((), (1,), (features,)) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers, one for each of {features} features, not {describe(value)}"
        )
    return np.broadcast_to(array, (features,))


def positive(name: str, values: Any) -> np.ndarray:
    """The places along a logarithmic axis, float64 `[places]`."""
    array = real_array(name, values)
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"{name} must be positive and finite (its axis is logarithmic), one number for each place, not "
            f"{describe(values)}"
        )
    return array


def edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around logarithmically placed centres."""
    logs = np.log(centres)
    if len(logs) == 1:
        return np.exp([logs[0] - 0.5, logs[0] + 0.5])
    between = 0.5 * (logs[1:] + logs[:-1])
    return np.exp(np.concatenate([[2 * logs[0] - between[0]], between, [2 * logs[-1] - between[-1]]]))


def limits(values: np.ndarray) -> tuple[float, float]:
    """First and last centre: of a cell at the border, only the half within the range is shown."""
    if len(values) == 1:
        below, above = edges(values)
        return float(below), float(above)
    return float(f"{values.min():.6g}"), float(f"{values.max():.6g}")  # 0.1000001 would lose its tick


def plain_log_ticks(axis: Any) -> None:
    """0.1, 1, 10 instead of powers of ten; 2 and 5 as well where the axis spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def feature_ticks(axis: Any, features: int) -> None:
    """Whole numbers, at most ten."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=min(features, 10), integer=True, min_n_ticks=1))
