"""Pictures of toy models: the phase diagram, loss curves, feature directions, WᵀW, feature dimensionality.

Every function takes `ax=` (a matplotlib Axes; a new figure if None), draws on it and returns it. Weights are
tensors or arrays in toykern's layout `[…, n_hidden, n_features]`. Colours are those of Okabe and Ito (2008)
and cividis, which people with any colour vision can tell apart. matplotlib is imported only when something is
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toykern import metrics
from toykern.arguments.broadcast import real_array, real_tensor
from toykern.arguments.errors import check_flag, check_number, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "dimensionality_scatter",
    "feature_directions",
    "interference",
    "loss_curves",
    "phase_diagram",
]

BLUE, VERMILLION, ORANGE, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#666666"

# Dimensionality of a feature that lies in one of the polytopes of Elhage et al. 2022, "geometry of
# superposition".
POLYTOPES = {
    "antiprism": (3, 8),
    "pentagon": (2, 5),
    "digon": (1, 2),
    "triangle": (2, 3),
    "tetrahedron": (3, 4),
}


def phase_diagram(
    weight: Any,
    importance: Any,
    density: Any,
    *,
    boundaries: bool | None = None,
    key: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The phase diagram of Elhage et al. 2022: what becomes of the last feature?

    Each point of the grid is one trained model. White: the last feature is not represented (its norm is 0).
    Blue: it has a dimension of its own. Vermillion: it is in superposition, Σ_{j≠i} (Ŵ_i·W_j)² ≥ 1. Strength
    shows the norm, hue the superposition, both cut at 1.

    Args:
        weight: `[importances, densities, n_hidden, n_features]`.
        importance: relative importance of the last feature, `[importances]`, positive, ascending.
        density: probability that a feature is active, `[densities]`, in (0, 1].
        boundaries: draw the exact boundaries between the candidate solutions (`toykern.metrics`); known for
            n = 2, m = 1 and n = 3, m = 2. None: where they are known.
        key: draw the colour key to the right.
        title: default: names n and m.
        ax: where to draw.

    Raises:
        ValueError: the shapes do not fit together, or `boundaries=True` where none are known.

    Example:
        >>> import torch, toykern as tk
        >>> weight = torch.zeros(4, 3, 1, 2)
        >>> weight[..., 0] = 1.0
        >>> ax = tk.plot.phase_diagram(weight, [0.1, 0.5, 2.0, 10.0], [0.01, 0.1, 1.0])
        >>> ax.get_ylabel()
        'feature density 1 − S (probability of being active)'
    """
    importance, density = _positive("importance", importance), _positive("density", density)
    weight = real_tensor("weight", weight).cpu().to(torch.float64)
    boundaries = None if boundaries is None else check_flag("boundaries", boundaries)
    key = check_flag("key", key)
    if weight.ndim != 4 or tuple(weight.shape[:2]) != (importance.size, density.size) or 0 in weight.shape:
        raise ValueError(
            "phase_diagram: weight must be [importances, densities, n_hidden, n_features] = "
            f"[{importance.size}, {density.size}, …], got {tuple(weight.shape)}"
        )
    hidden, features = weight.shape[2:]
    known = (features, hidden) in ((2, 1), (3, 2))
    if boundaries and not known:
        raise ValueError(
            f"phase_diagram: boundaries are known for n=2, m=1 and n=3, m=2, not n={features}, m={hidden}"
        )
    flat = weight.reshape(-1, hidden, features)
    norm = flat[..., -1].norm(dim=-1).reshape(importance.size, density.size).numpy()
    superposition = metrics.superposition(flat)[:, -1].reshape(importance.size, density.size).numpy()

    ax = axes_for(ax, figsize=(6.6, 4.8) if key else (5.2, 4.8))
    colours = phase_colours(norm, superposition)
    rows, columns = np.argsort(density), np.argsort(importance)
    ax.pcolormesh(
        _edges(importance[columns]),
        _edges(density[rows]),
        colours[columns][:, rows].transpose(1, 0, 2),
        rasterized=True,
    )
    ax.set(xscale="log", yscale="log", xlim=_limits(importance), ylim=_limits(density))
    _plain_log_ticks(ax.xaxis)
    _plain_log_ticks(ax.yaxis)
    ax.set_xlabel("relative importance of the last feature")
    ax.set_ylabel("feature density 1 − S (probability of being active)")
    ax.set_title(
        title
        if title is not None
        else f"Phase diagram, {features} features in {hidden} dimension{'s' * (hidden > 1)}"
    )
    if known and boundaries is not False:
        _draw_boundaries(ax, features)
    if key:
        _phase_key(ax)
    return ax


def phase_colours(norm: Any, superposition: Any) -> np.ndarray:
    """RGB `[…, 3]` of a feature's norm (white to full colour) and superposition (blue to vermillion).

    Each is cut at 1; grey where the norm is NaN.
    """
    from matplotlib.colors import to_rgb

    norm, superposition = real_array("norm", norm), real_array("superposition", superposition)
    strength = np.clip(np.nan_to_num(norm), 0.0, 1.0)[..., None]
    mixed = np.clip(np.nan_to_num(superposition), 0.0, 1.0)[..., None]
    own, shared = np.array(to_rgb(BLUE)), np.array(to_rgb(VERMILLION))
    colours = 1.0 - strength * (1.0 - (own * (1.0 - mixed) + shared * mixed))
    colours[np.isnan(norm)] = 0.75
    return colours


def loss_curves(
    loss: Any,
    steps: Any = None,
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


def feature_directions(
    weight: Any,
    importance: Any = None,
    *,
    numbers: bool | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The columns W_i of a model with two hidden dimensions as points in the plane, with the unit circle.

    Args:
        weight: `[2, n_features]`.
        importance: `[n_features]`; colours the features (otherwise their number does).
        numbers: write each feature's number at its point; default: up to 12 features.
        title: default none.
        ax: where to draw.

    Example:
        >>> import torch, toykern as tk
        >>> angle = torch.arange(5) * 2 * torch.pi / 5
        >>> ax = tk.plot.feature_directions(torch.stack([angle.cos(), angle.sin()]))
        >>> ax.get_xlabel()
        'hidden dimension 1'
    """
    weight = _one_model(weight)
    if weight.ndim != 2 or weight.shape[0] != 2 or 0 in weight.shape:
        raise ValueError(f"feature_directions: weight must be [2, n_features], got {weight.shape}")
    features = weight.shape[1]
    shade = np.arange(features) if importance is None else _per_feature("importance", importance, features)
    numbers = features <= 12 if numbers is None else check_flag("numbers", numbers)
    ax = axes_for(ax, figsize=(4.8, 4.4))
    reach = 1.18 * max(1.0, float(np.abs(weight).max()))
    turn = np.linspace(0.0, 2.0 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    for x, y in weight.T:
        ax.plot([0.0, x], [0.0, y], color=GREY, linewidth=1.0, zorder=2)
    points = ax.scatter(
        weight[0], weight[1], c=shade, cmap="cividis", s=46, edgecolors="black", linewidths=0.6, zorder=3
    )
    if numbers:
        for i, (x, y) in enumerate(weight.T):
            length = np.hypot(x, y)
            away = (10 * x / length, 10 * y / length) if length > 0.05 else (7.0, 7.0)
            ax.annotate(
                str(i),
                (x, y),
                xytext=away,
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize="small",
            )
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_xlabel("hidden dimension 1")
    ax.set_ylabel("hidden dimension 2")
    if title:
        ax.set_title(title)
    if importance is not None and np.ptp(shade) > 0:
        ax.figure.colorbar(points, cax=ax.inset_axes((1.04, 0.0, 0.05, 1.0)), label="importance")
    return ax


def interference(weight: Any, bias: Any = None, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """One model as in the paper's figures: WᵀW (and the bias), and beside it the norm of each feature.

    The matrix shows W_i·W_j, vermillion where positive and blue where negative. The bars have the length
    ‖W_i‖ and the colour of the feature's superposition Σ_{j≠i} (Ŵ_i·W_j)², dark for a feature with directions
    of its own. Features without a bar are not represented.

    Args:
        weight: `[n_hidden, n_features]`.
        bias: `[n_features]`, optional.
        title: default none.
        ax: where to draw the matrix; bias and bars are attached to its right.

    Example:
        >>> import torch, toykern as tk
        >>> ax = tk.plot.interference(torch.eye(2, 4))
        >>> len(ax.child_axes)  # the bars and two colour keys
        3
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    weight = _one_model(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"interference: weight must be one model, [n_hidden, n_features], got {weight.shape}"
        )
    features = weight.shape[1]
    biases = np.zeros(0) if bias is None else _per_feature("bias", bias, features)
    ax = axes_for(ax, figsize=(6.8, 4.6))
    diverging = LinearSegmentedColormap.from_list("blue_white_vermillion", [BLUE, "white", VERMILLION])
    gram = weight.T @ weight
    reach = max(1.0, float(np.abs(gram).max()), float(np.abs(biases).max(initial=0.0)))
    scale = Normalize(-reach, reach)
    image = ax.imshow(gram, cmap=diverging, norm=scale, interpolation="nearest")
    ax.set(xlabel="feature j", ylabel="feature i")
    ax.set_title("WᵀW" if title is None else title)
    _feature_ticks(ax.xaxis, features)
    _feature_ticks(ax.yaxis, features)
    # Everything else is placed in units of the matrix, so that rows, bias and bars stay aligned.
    left = 1.05
    if bias is not None:
        width = max(1.0 / features, 0.05)
        column = ax.inset_axes((left, 0.0, width, 1.0))
        column.imshow(
            biases.reshape(features, 1),
            cmap=diverging,
            norm=scale,
            interpolation="nearest",
            aspect="auto",
        )
        column.set(xticks=[], yticks=[], title="b")
        left += width + 0.05
    bars = ax.inset_axes((left, 0.0, 0.6, 1.0))
    norm = np.linalg.norm(weight, axis=0)
    superposition = metrics.superposition(torch.from_numpy(weight)).numpy()
    shades = ScalarMappable(Normalize(0.0, 1.0), "cividis")
    bars.barh(
        np.arange(features), norm, height=0.8, color=shades.to_rgba(np.where(norm > 1e-3, superposition, 0.0))
    )
    bars.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    bars.set(ylim=(features - 0.5, -0.5), xlim=(0.0, max(1.15, 1.05 * float(norm.max()))), yticks=[])
    bars.set_xlabel("norm ‖Wᵢ‖")
    bars.spines[["top", "right"]].set_visible(False)
    key = ax.inset_axes((0.1, -0.26, 0.8, 0.04))
    ax.figure.colorbar(
        image, cax=key, orientation="horizontal", label="Wᵢ·Wⱼ" if bias is None else "Wᵢ·Wⱼ and bias bᵢ"
    )
    key = ax.inset_axes((left, -0.26, 0.6, 0.04))
    ax.figure.colorbar(
        shades, cax=key, orientation="horizontal", label="superposition Σⱼ (Ŵᵢ·Wⱼ)²", ticks=[0, 0.5, 1]
    )
    return ax


def dimensionality_scatter(
    weight: Any,
    density: Any,
    *,
    polytopes: bool = True,
    minimum_norm: float = 0.1,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Feature dimensionality D_i against 1/(1−S), and the line of dimensions per feature D* = m / ‖W‖²_F.

    Args:
        weight: `[models, n_hidden, n_features]`.
        density: the density 1 − S of each model, `[models]`.
        polytopes: draw the dimensionalities of the known polytopes (digon 1/2, triangle 2/3, …).
        minimum_norm: features shorter than this are not represented and left out.
        title: default none.
        ax: where to draw.

    Example:
        >>> import torch, toykern as tk
        >>> ax = tk.plot.dimensionality_scatter(torch.eye(2, 4).expand(3, 2, 4), density=[1.0, 0.5, 0.1])
        >>> ax.get_ylabel()
        'dimensions per feature'
    """
    weight = real_tensor("weight", weight).cpu().to(torch.float64)
    density = _positive("density", density)
    polytopes = check_flag("polytopes", polytopes)
    minimum_norm = check_number("minimum_norm", minimum_norm, minimum=0.0)
    if weight.ndim != 3 or density.shape != (weight.shape[0],) or 0 in weight.shape:
        raise ValueError(
            "dimensionality_scatter: weight must be [models, n_hidden, n_features] and density [models], "
            f"got {tuple(weight.shape)} and {density.shape}"
        )
    ax = axes_for(ax, figsize=(7.4, 4.6))
    rarity = 1.0 / density
    dimensionality = metrics.feature_dimensionality(weight).numpy()
    norm = weight.norm(dim=1).numpy()
    x = np.broadcast_to(rarity[:, None], dimensionality.shape)
    shown = norm >= minimum_norm
    ax.scatter(
        x[shown],
        dimensionality[shown],
        s=9,
        color=SKY,
        edgecolors=BLUE,
        linewidths=0.3,
        alpha=0.6,
        label="one feature, $D_i$",
    )
    order = np.argsort(rarity)
    per_feature = weight.shape[1] / weight.square().sum(dim=(1, 2)).clamp_min(1e-12).numpy()
    ax.plot(
        rarity[order],
        per_feature[order],
        color=VERMILLION,
        linewidth=1.8,
        marker="o",
        markersize=3,
        label=r"$D^* = m\,/\,\|W\|_F^2$",
    )
    top = 1.08
    ax.set(xscale="log", ylim=(0.0, top))
    if polytopes:
        for name, (above, below) in POLYTOPES.items():
            level = above / below
            ax.axhline(level, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
            ax.annotate(
                f"{name} {above}/{below}",
                (1.0, level),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va={"pentagon": "bottom", "antiprism": "top"}.get(name, "center"),
                fontsize="small",
                color=GREY,
            )
    _plain_log_ticks(ax.xaxis)
    ax.set_xlabel("1 / (1 − S) = 1 / feature density")
    ax.set_ylabel("dimensions per feature")
    if title:
        ax.set_title(title)
    ax.legend(frameon=False, loc="upper right", fontsize="small")
    return ax


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


def _one_model(weight: Any) -> np.ndarray:
    """The weights of one model, float64; of a stack of one without its first dimension."""
    array = real_array("weight", weight)
    if not np.isfinite(array).all():
        raise ValueError(f"weight must be finite, not {describe(weight)} with NaN or infinity in it")
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _per_feature(name: str, value: Any, features: int) -> np.ndarray:
    """Finite numbers, one for all or one for each feature, float64 `[features]`."""
    array = real_array(name, value)
    array = array[0] if array.ndim == 2 and array.shape[0] == 1 else array
    if array.shape not in ((), (1,), (features,)) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers, one for each of {features} features, not {describe(value)}"
        )
    return np.broadcast_to(array, (features,))


def _positive(name: str, values: Any) -> np.ndarray:
    """The places along a logarithmic axis, float64 `[places]`."""
    array = real_array(name, values)
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"{name} must be positive and finite (its axis is logarithmic), one number for each place, not "
            f"{describe(values)}"
        )
    return array


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around logarithmically placed centres."""
    logs = np.log(centres)
    if len(logs) == 1:
        return np.exp([logs[0] - 0.5, logs[0] + 0.5])
    between = 0.5 * (logs[1:] + logs[:-1])
    return np.exp(np.concatenate([[2 * logs[0] - between[0]], between, [2 * logs[-1] - between[-1]]]))


def _limits(values: np.ndarray) -> tuple[float, float]:
    """First and last centre: of a cell at the border, only the half within the range is shown."""
    if len(values) == 1:
        below, above = _edges(values)
        return float(below), float(above)
    return float(f"{values.min():.6g}"), float(f"{values.max():.6g}")  # 0.1000001 would lose its tick


def _plain_log_ticks(axis: Any) -> None:
    """0.1, 1, 10 instead of powers of ten; 2 and 5 as well where the axis spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _feature_ticks(axis: Any, features: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=min(features, 10), integer=True, min_n_ticks=1))


def _draw_boundaries(ax: Axes, features: int) -> None:
    """Where the exact loss of one phase of the last feature becomes lower than that of all others."""
    importance = np.geomspace(*ax.get_xlim(), 400)
    density = np.geomspace(*ax.get_ylim(), 400)
    r, p = np.meshgrid(importance, np.minimum(density, 1.0))
    solutions = metrics.solution_losses(p, r, features)
    ignored, shared = solutions.pop("last_ignored"), solutions.pop("antipodal_with_last")
    own = np.min(list(solutions.values()), axis=0)
    losses = np.stack([ignored, own, shared])
    for k in range(3):
        ax.contour(
            r,
            p,
            losses[k] - np.delete(losses, k, axis=0).min(axis=0),
            levels=[0.0],
            colors="black",
            linewidths=1.4,
        )


def _phase_key(ax: Axes) -> None:
    """To the right of the diagram: the three phases by name, and the two-dimensional colour key."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor="white", edgecolor="black", linewidth=0.6, label="not represented"),
        Patch(facecolor=BLUE, edgecolor="black", linewidth=0.6, label="own dimension"),
        Patch(facecolor=VERMILLION, edgecolor="black", linewidth=0.6, label="in superposition"),
    ]
    if ax.collections[1:]:
        handles.append(Line2D([], [], color="black", linewidth=1.4, label="theory: equal loss"))
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        frameon=False,
        title="The last feature is",
    )
    key = ax.inset_axes((1.16, 0.14, 0.26, 0.30))
    across = np.linspace(0.0, 1.0, 64)
    colours = phase_colours(*np.meshgrid(across, across, indexing="ij"))
    key.imshow(colours, origin="lower", extent=(0, 1, 0, 1), aspect="auto")
    key.set(xticks=[0, 1], yticks=[0, 1])
    key.set_xticklabels(["0", "≥ 1"])
    key.set_yticklabels(["0", "≥ 1"])
    key.get_xticklabels()[1].set_horizontalalignment("right")
    key.tick_params(labelsize="small", length=2)
    key.set_xlabel("superposition\nΣⱼ (Ŵᵢ·Wⱼ)²", fontsize="small", labelpad=1)
    key.set_ylabel("norm ‖Wᵢ‖", fontsize="small", labelpad=-2)


def _loss_groups(
    loss: Any, steps: Any, by: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, str]:
    """Models of each curve by its label, values `[models, records]`, their steps, label of the y axis."""
    grid, ylabel = None, "loss"
    if hasattr(loss, "record_steps"):
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
