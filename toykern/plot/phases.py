"""The phase diagram of one feature, by colour, beside its exact boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toykern import metrics
from toykern.arguments.broadcast import Values, real_array, real_tensor
from toykern.arguments.errors import check_flag
from toykern.plot.axes import (
    BLUE,
    VERMILLION,
    axes_for,
    edges,
    limits,
    plain_log_ticks,
    positive,
    rgb,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def phase_diagram(
    weight: Values,
    importance: Values,
    density: Values,
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
    importance, density = positive("importance", importance), positive("density", density)
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
        edges(importance[columns]),
        edges(density[rows]),
        colours[columns][:, rows].transpose(1, 0, 2),
        rasterized=True,
    )
    ax.set(xscale="log", yscale="log", xlim=limits(importance), ylim=limits(density))
    plain_log_ticks(ax.xaxis)
    plain_log_ticks(ax.yaxis)
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
    norm, superposition = real_array("norm", norm), real_array("superposition", superposition)
    strength = np.clip(np.nan_to_num(norm), 0.0, 1.0)[..., None]
    mixed = np.clip(np.nan_to_num(superposition), 0.0, 1.0)[..., None]
    own, shared = rgb(BLUE), rgb(VERMILLION)
    colours = 1.0 - strength * (1.0 - (own * (1.0 - mixed) + shared * mixed))
    colours[np.isnan(norm)] = 0.75
    return colours


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
