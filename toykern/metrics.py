"""What the geometry of superposition is measured by, and exact results to compare with.

`weight` is `[models, n_hidden, n_features]` or `[n_hidden, n_features]` (one model), as
`TiedAutoencoder.weight` or `Autoencoder.encoder`; W_i is the column of feature i. Results have the models'
dimension only where the weight has it, the dtype of the weight (sums are in double precision) and can be
differentiated. A model's bits are its own: whatever stands beside it, and on any number of threads. The
definitions are those of Elhage et al. 2022, *Toy Models of Superposition*.

The exact losses are per sample and summed over features (`loss_reduction="sum"`), for independent features
that are active with probability p (the density), then uniform on [0, 1], and a ReLU output: losses of
hand-made solutions, without any training. The critical points are for exactly one active feature per
sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from toykern.arguments.broadcast import real_array, real_tensor
from toykern.arguments.errors import check_int, check_number, check_size, describe
from toykern.arguments.memory import check_free_memory

UNDEFINED, NOT_REPRESENTED, DEDICATED, SUPERPOSITION = -1, 0, 1, 2
"""The phases of a feature: `classify_phase` and `best_solution` return these numbers."""

_CACHED = 1 << 16
"""Numbers (half a megabyte of doubles) that are worked on at a time where they are read again and again."""


def features_per_dimension(weight: Any) -> torch.Tensor:
    """‖W‖²_F / m, `[models]`: about how many features are represented per hidden dimension.

    Its inverse is D*, the dimensions per feature.

    >>> features_per_dimension(torch.eye(2)).item()
    1.0
    """
    w = _check_weight(weight)
    squares = _models_last(w).square().flatten(0, 1)
    return _back(_sum(squares) / w.shape[-2], w)


def interference(weight: Any) -> torch.Tensor:
    """WᵀW, `[models, n_features, n_features]`: how strongly each feature reads every other.

    >>> interference(torch.tensor([[1.0, -1.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    w = _check_weight(weight)
    wide = _models_last(w)
    return _back(_product(wide.transpose(0, 1), wide), w)


def superposition(weight: Any) -> torch.Tensor:
    """Σ_{j≠i} (Ŵ_i · W_j)², `[models, n_features]`: how much of the other features lies along feature i.

    0 for a feature orthogonal to all others, and for one whose column is 0.

    >>> superposition(torch.tensor([[1.0, -1.0]])).tolist()
    [1.0, 1.0]
    """
    w = _check_weight(weight)
    return _back(_superposition(*_norm_and_shared(w)), w)


def feature_dimensionality(weight: Any) -> torch.Tensor:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i · W_j)² with j = i included, `[models, n_features]`.

    The fraction of a hidden dimension that feature i has for itself: 1 if dedicated, 1/2 in an antipodal
    pair, 2/5 in a pentagon; 0 for a feature whose column is 0.

    >>> feature_dimensionality(torch.tensor([[1.0, -1.0, 0.0]])).tolist()
    [0.5, 0.5, 0.0]
    """
    w = _check_weight(weight)
    norm, shared = _norm_and_shared(w)
    represented = shared != 0  # a diverged model's NaN stays NaN
    own = torch.where(represented, norm.square() / torch.where(represented, shared, 1.0), 0.0)
    return _back(own, w)


def classify_phase(
    weight: Any, feature: int = -1, norm_threshold: float = 0.5, superposition_threshold: float = 0.25
) -> torch.Tensor:
    """The phase of one feature in each model, int64 `[models]`, as in the paper's phase diagrams.

    * 0 (`NOT_REPRESENTED`): its column has a norm below `norm_threshold`;
    * 2 (`SUPERPOSITION`): it is represented, and Σ_{j≠i} (Ŵ_i · W_j)² is at least `superposition_threshold`;
    * 1 (`DEDICATED`): it is represented, about orthogonal to the others;
    * −1 (`UNDEFINED`): the weights are not finite (the model diverged).

    The paper shows the norm and the superposition as a colour; the two thresholds make three regions of it.
    `feature` is the last by default, whose importance the diagrams vary.

    >>> classify_phase(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, -1.0]]])).tolist()
    [0, 1, 2]
    """
    w = _check_weight(weight)
    feature = check_int("feature", feature, minimum=-w.shape[-1], maximum=w.shape[-1] - 1)
    norm_threshold = check_number("norm_threshold", norm_threshold, minimum=0.0)
    superposition_threshold = check_number("superposition_threshold", superposition_threshold, minimum=0.0)
    norms, shares = _norm_and_shared(w)
    norm, shared = norms[feature], _superposition(norms, shares)[feature]
    phase = torch.where(shared >= superposition_threshold, SUPERPOSITION, DEDICATED)
    phase = torch.where(norm < norm_threshold, NOT_REPRESENTED, phase)
    phase = torch.where(torch.isfinite(shared) & torch.isfinite(norm), phase, UNDEFINED)
    return phase if w.ndim == 3 else phase[0]


def ignored_loss(density: ArrayLike, importance: ArrayLike = 1.0) -> NDArray[np.float64]:
    """Exact loss of one feature that is not represented: importance · (p/3 − p²/4), its variance.

    Its column is 0 and its bias its mean p/2. Arguments broadcast.

    >>> float(ignored_loss(1.0))
    0.08333333333333331
    """
    p, importance = _check_density(density), _check_importance("importance", importance)
    _check_together(density=p, importance=importance)
    return importance * (p / 3 - p**2 / 4)


def antipodal_loss(
    density: ArrayLike, importance: ArrayLike = 1.0, other_importance: ArrayLike = 1.0
) -> NDArray[np.float64]:
    """Exact loss of two features that share a dimension as +1 and −1: (importance + other_importance) · p²/6.

    Biases are 0; each is read exactly unless both are active, and then each is wrong by the smaller.
    Arguments broadcast.

    >>> round(float(antipodal_loss(0.3)), 6)
    0.03
    """
    p = _check_density(density)
    first = _check_importance("importance", importance)
    second = _check_importance("other_importance", other_importance)
    _check_together(density=p, importance=first, other_importance=second)
    return (first + second) * p**2 / 6


def solution_losses(
    density: ArrayLike, relative_importance: ArrayLike, n_features: int = 2
) -> dict[str, NDArray[np.float64]]:
    """Exact losses of the hand-made solutions for one hidden dimension less than features, by name.

    All features have importance 1 but the last, which has `relative_importance` r. Features that are
    neither ignored nor in a pair have a dimension to themselves and cost nothing.

    | name | loss | phase of the last feature |
    |---|---|---|
    | `"last_ignored"` | r(p/3 − p²/4) | not represented |
    | `"other_ignored"` | p/3 − p²/4 | dedicated |
    | `"antipodal_with_last"` | (1 + r)p²/6 | superposition |
    | `"antipodal_others"` (n_features ≥ 3) | p²/3 | dedicated |

    >>> {name: round(float(loss), 4) for name, loss in solution_losses(0.1, 0.5).items()}
    {'last_ignored': 0.0154, 'other_ignored': 0.0308, 'antipodal_with_last': 0.0025}
    """
    n_features = check_int("n_features", n_features, minimum=2)
    density, r = _check_density(density), _check_importance("relative_importance", relative_importance)
    _check_together(density=density, relative_importance=r)
    losses = {
        "last_ignored": ignored_loss(density, r),
        "other_ignored": ignored_loss(density),
        "antipodal_with_last": antipodal_loss(density, 1.0, r),
    }
    if n_features >= 3:
        losses["antipodal_others"] = antipodal_loss(density)
    return dict(zip(losses, np.broadcast_arrays(*losses.values()), strict=True))


def best_solution(
    density: ArrayLike, relative_importance: ArrayLike, n_features: int = 2
) -> NDArray[np.int64]:
    """The phase of the last feature in the best hand-made solution; the arguments broadcast.

    0 not represented, 1 dedicated, 2 superposition, as `classify_phase` has them: the theoretical phase
    diagram for n_features features and one hidden dimension less (n=2, m=1 and n=3, m=2 in the paper).

    >>> best_solution(density=[1.0, 0.1], relative_importance=0.5).tolist()
    [0, 2]
    """
    losses = solution_losses(density, relative_importance, n_features)
    phases = {
        "last_ignored": NOT_REPRESENTED,
        "other_ignored": DEDICATED,
        "antipodal_with_last": SUPERPOSITION,
        "antipodal_others": DEDICATED,
    }
    return np.array([phases[name] for name in losses])[np.argmin(np.stack(list(losses.values())), axis=0)]


def phase_boundary(relative_importance: ArrayLike) -> NDArray[np.float64]:
    """The density p below which superposition is best for n=2, m=1, by the second feature's importance r.

    The smaller of 2r/(1 + 2.5r), where the antipodal pair ties with ignoring the second feature, and 2/(r +
    2.5), where it ties with ignoring the first. The two meet at r = 1; above the boundary r = 1 parts the
    other two phases.

    >>> phase_boundary([0.1, 1.0, 10.0]).round(4).tolist()
    [0.16, 0.5714, 0.16]
    """
    r = _check_importance("relative_importance", relative_importance)
    return np.minimum(2 * r / (1 + 2.5 * r), 2 / (r + 2.5))


MAX_VERTICES = 12
"""Largest polygon of `polygon`; up to here the tests check that it has the lowest loss of its kind."""


@dataclass(frozen=True)
class CriticalPoint:
    """An exact critical point of the loss of one tied autoencoder with ReLU output.

    Attributes:
        weight: float64 `[n_hidden, n_features]`.
        bias: float64 `[n_features]`.
        loss: per sample, summed over features (`loss_reduction="sum"`).
        radius: length of the represented features' columns.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    loss: float
    radius: float


def polygon(n_vertices: int, n_features: int | None = None) -> CriticalPoint:
    """The regular polygon of features in m=2, exact for one-sparse data (Chen et al. 2023).

    The data are x = μ e_i, μ uniform on [0, 1], i uniform over the `n_features` features (by default as many
    as vertices), importance 1. The first `n_vertices` features point at the corners of a regular polygon, all
    of one length and bias, which minimise the loss among such polygons; the others have a column of 0 and
    their mean 1/(2·n_features) as bias. By symmetry the gradient of the loss vanishes there. Up to the square
    the loss of the represented features is 0, from the pentagon on their biases are negative. ValueError
    where `n_vertices` is not from 2 to 12, or `n_features` less than it.

    >>> pentagon = polygon(5)
    >>> round(pentagon.radius, 5), round(pentagon.bias[0].item(), 5), round(pentagon.loss, 5)
    (1.17046, -0.2823, 0.01583)
    """
    n_vertices = check_int("n_vertices", n_vertices, minimum=2, maximum=MAX_VERTICES)
    n_features = n_vertices if n_features is None else check_size("n_features", n_features)
    check_int("n_features", n_features, minimum=n_vertices)
    check_free_memory(f"n_features={n_features:,} features", 24 * n_features, "take fewer")
    cosines = torch.cos(
        2 * math.pi * torch.arange(1, n_vertices, dtype=torch.float64, device="cpu") / n_vertices
    )
    neighbours = cosines[cosines > 1e-9]  # only these features' outputs can be switched on by another feature
    square, bias = (1.0, 0.0) if len(neighbours) == 0 else _polygon_minimum(neighbours)
    represented = float(
        _polygon_loss(torch.tensor([square, bias], dtype=torch.float64, device="cpu"), neighbours)
    )
    dead_loss = 1 / (3 * n_features) - 1 / (4 * n_features**2)

    angles = 2 * math.pi * torch.arange(n_vertices, dtype=torch.float64, device="cpu") / n_vertices
    weight = torch.zeros(2, n_features, dtype=torch.float64, device="cpu")
    weight[:, :n_vertices] = math.sqrt(square) * torch.stack([torch.cos(angles), torch.sin(angles)])
    biases = torch.full((n_features,), 1 / (2 * n_features), dtype=torch.float64, device="cpu")
    biases[:n_vertices] = bias
    loss = represented * n_vertices / n_features + dead_loss * (n_features - n_vertices)
    return CriticalPoint(weight, biases, loss, math.sqrt(square))


def _polygon_loss(point: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Exact loss over the represented features given that one of them is active; point = (radius², bias ≤ 0).

    An output with slope c in μ is c μ + b from μ = −b/c on; the active feature itself has c = radius².
    """
    square, bias = point[0], point[1]
    start = -bias / square
    slope = 1 - square  # of the error x − y while the output is on
    off = start**3 / 3
    on = slope**2 * (1 - start**3) / 3 - slope * bias * (1 - start**2) + bias**2 * (1 - start)
    reach = (square * neighbours + bias).clamp(min=0)
    return off + on + (reach**3 / (3 * square * neighbours)).sum()


def _polygon_minimum(neighbours: torch.Tensor) -> tuple[float, float]:
    """(radius², bias) where `_polygon_loss` is least: Newton's method with halved steps."""
    point = torch.tensor([1.2, -0.3], dtype=torch.float64, device="cpu")
    for _ in range(100):
        at = point.clone().requires_grad_()
        loss = _polygon_loss(at, neighbours)
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        rows = [torch.autograd.grad(component, at, retain_graph=True)[0] for component in slope]
        slope = slope.detach()
        if float(slope.abs().max()) < 1e-15:
            break
        step = -torch.linalg.solve(torch.stack(rows), slope)
        if slope @ step >= 0:  # not downhill: the curvature is not positive here
            step = -slope
        while _polygon_loss(point + step, neighbours) > loss and float(step.abs().max()) > 1e-15:
            step = step / 2
        point = point + step
    return float(point[0]), float(point[1])


# ---- sums whose order follows from the shape of one model -------------------------------------------------
#
# A batched product or a reduction takes other loops for another number of models, threads or addresses, and
# adds up in another order. The last bits then depend on what stands beside a model, and where sums cancel, as
# they do in the superposition of features that are nearly orthogonal, many digits do. Products and additions
# element by element are rounded the same wherever they are done. Models are the last dimension, so that there
# are long rows to work on.


def _models_last(weight: torch.Tensor) -> torch.Tensor:
    """float64 `[n_hidden, n_features, models]`, contiguous."""
    stacked = weight if weight.ndim == 3 else weight.unsqueeze(0)
    return stacked.double().movedim(0, -1).contiguous()


def _back(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A result `[…, models]` as `[models, …]`, or `[…]` of one model, in the dtype of the weight."""
    result = value.movedim(-1, 0).to(weight.dtype).contiguous()
    return result if weight.ndim == 3 else result[0]


def _sum(terms: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension: the halves are added to each other until one is left."""
    while len(terms) > 1:
        half = len(terms) // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = folded if len(terms) == 2 * half else torch.cat([folded, terms[-1:]])
    return terms[0]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix products `[a, c, models]`, `[c, b, models]`: `[a, b, models]`, added in the order of c."""
    product = left[:, :1] * right[:1]
    for k in range(1, len(right)):
        product = product + left[:, k : k + 1] * right[k : k + 1]
    return product


def _norm_and_shared(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """‖W_i‖ and Σ_j (Ŵ_i · W_j)² = Ŵ_iᵀ (W Wᵀ) Ŵ_i, float64 `[n_features, models]`, without WᵀW."""
    w = _models_last(weight)
    square = _sum(w.square())
    absent = square == 0  # the slope of the root is infinite there; NaN goes through
    length = torch.where(absent, 1.0, square).sqrt()
    norm, unit = torch.where(absent, 0.0, length), w / length
    gram = _product(w, w.transpose(0, 1))
    # Some features at a time: the sums of all would not fit into a cache.
    at_once = max(1, _CACHED // (w.shape[0] * w.shape[2]))
    shared = [_sum(part * _product(gram, part)) for part in unit.split(at_once, dim=1)]
    return norm, torch.cat(shared)


def _superposition(norm: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return (shared - norm.square()).clamp(min=0)


def _check_weight(weight: Any) -> torch.Tensor:
    tensor = real_tensor("weight", weight, detach=False)
    if not tensor.is_floating_point():
        raise TypeError(f"weight must hold floating-point numbers, not {describe(weight)}")
    if tensor.ndim not in (2, 3) or 0 in tensor.shape:
        raise ValueError(
            f"weight must have the shape [models, n_hidden, n_features] or [n_hidden, n_features], "
            f"not {describe(weight)}"
        )
    return tensor


def _check_density(density: ArrayLike) -> NDArray[np.float64]:
    p = real_array("density", density)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"density must lie between 0 and 1, not {describe(density)}")
    return p


def _check_together(**arrays: NDArray[np.float64]) -> None:
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(str(list(array.shape)) for array in arrays.values())
        raise ValueError(f"{', '.join(arrays)} must broadcast with each other, not have {shapes}") from None


def _check_importance(name: str, importance: ArrayLike) -> NDArray[np.float64]:
    value = real_array(name, importance)
    if not (np.isfinite(value) & (value >= 0)).all():
        raise ValueError(f"{name} must be finite and at least 0, not {describe(importance)}")
    return value
