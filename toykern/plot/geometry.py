"""How features lie: their directions, WᵀW, their dimensionalities beside those of polytopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from toykern import metrics
from toykern.arguments.broadcast import Values, real_tensor
from toykern.arguments.errors import check_flag, check_number
from toykern.plot.axes import (
    BLUE,
    GREY,
    SKY,
    VERMILLION,
    axes_for,
    feature_ticks,
    one_model,
    per_feature,
    plain_log_ticks,
    positive,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Dimensionality of a feature that lies in one of the polytopes of Elhage et al. 2022, "geometry of
# superposition".
POLYTOPES = {
    "antiprism": (3, 8),
    "pentagon": (2, 5),
    "digon": (1, 2),
    "triangle": (2, 3),
    "tetrahedron": (3, 4),
}


def feature_directions(
    weight: Values,
    importance: Values | None = None,
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
    weight = one_model(weight)
    if weight.ndim != 2 or weight.shape[0] != 2 or 0 in weight.shape:
        raise ValueError(f"feature_directions: weight must be [2, n_features], got {weight.shape}")
    features = weight.shape[1]
    shade = np.arange(features) if importance is None else per_feature("importance", importance, features)
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


def interference(
    weight: Values, bias: Values | None = None, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
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

    weight = one_model(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"interference: weight must be one model, [n_hidden, n_features], got {weight.shape}"
        )
    features = weight.shape[1]
    biases = np.zeros(0) if bias is None else per_feature("bias", bias, features)
    ax = axes_for(ax, figsize=(6.8, 4.6))
    diverging = LinearSegmentedColormap.from_list("blue_white_vermillion", [BLUE, "white", VERMILLION])
    gram = weight.T @ weight
    reach = max(1.0, float(np.abs(gram).max()), float(np.abs(biases).max(initial=0.0)))
    scale = Normalize(-reach, reach)
    image = ax.imshow(gram, cmap=diverging, norm=scale, interpolation="nearest")
    ax.set(xlabel="feature j", ylabel="feature i")
    ax.set_title("WᵀW" if title is None else title)
    feature_ticks(ax.xaxis, features)
    feature_ticks(ax.yaxis, features)
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
    weight: Values,
    density: Values,
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
    density = positive("density", density)
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
    plain_log_ticks(ax.xaxis)
    ax.set_xlabel("1 / (1 − S) = 1 / feature density")
    ax.set_ylabel("dimensions per feature")
    if title:
        ax.set_title(title)
    ax.legend(frameon=False, loc="upper right", fontsize="small")
    return ax
