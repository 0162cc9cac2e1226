"""Exact losses of hand-made solutions, without any training, and the phase diagrams that follow from them.

Losses are per sample and summed over features (`loss_reduction="sum"`), for independent features that are
active with probability p (the density), then uniform on [0, 1], and a ReLU output. They are squared errors.
The solutions are those of Elhage et al. 2022, *Toy Models of Superposition*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toykern.arguments.broadcast import real_array
from toykern.arguments.errors import check_int, describe
from toykern.metrics.geometry import DEDICATED, NOT_REPRESENTED, SUPERPOSITION


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
