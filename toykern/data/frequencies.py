"""How often features are active: helpers that make the probabilities of a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import bounded_numbers
from toykern.arguments.errors import check_int, describe
from toykern.data.features import MAX_FEATURES


def zipf(n_features: int, exponent: Any, mean_active: Any) -> torch.Tensor:
    """Probabilities by a power law: feature i is active ∝ (i + 1)^−exponent, at most always.

    They are scaled so that `mean_active` features are active on average. Where that would make some of them
    exceed 1, these are always active and the others are scaled up until the mean is right.

    Args:
        n_features: n, at most 2²⁴.
        exponent: at least 0; 1 is Zipf's law, 0 makes all features alike. A number, or one for each model.
        mean_active: expected number of active features, 0 … n_features. A number, or one for each model.

    Returns:
        float64 `[n_features]`, or `[models, n_features]` where one of them is given per model.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> zipf(4, exponent=1.0, mean_active=0.5)
        tensor([0.2400, 0.1200, 0.0800, 0.0600], dtype=torch.float64)
        >>> zipf(3, exponent=1.0, mean_active=2.0)
        tensor([1.0000, 0.6000, 0.4000], dtype=torch.float64)
        >>> data = SparseFeatures(100, zipf(100, exponent=[0.5, 1.0], mean_active=3))
        >>> data.active_features()
        tensor([3., 3.], dtype=torch.float64)
    """
    n = check_int("n_features", n_features, minimum=1, maximum=MAX_FEATURES)
    exponents = bounded_numbers("exponent", exponent, float("inf"), "at least 0")
    means = bounded_numbers("mean_active", mean_active, float(n), f"from 0 to n_features = {n}")
    models = max(exponents.numel(), means.numel())
    if {exponents.numel(), means.numel()} - {1, models}:
        raise ValueError(
            f"mean_active must be one number, or one for each of the {exponents.numel()} of exponent, "
            f"not {describe(mean_active)}"
        )
    rows = [
        _power_law(n, float(e), float(m))
        for e, m in zip(exponents.expand(models), means.expand(models), strict=True)
    ]
    single = exponents.ndim == means.ndim == 0
    return torch.from_numpy(rows[0] if single else np.stack(rows))


def _power_law(n: int, exponent: float, mean: float) -> np.ndarray:
    """float64 `[n]`: min(1, s·(i + 1)^−exponent) with the s at which they add up to the mean."""
    place = np.arange(1, n + 1, dtype=np.float64)

    def shares(always: int) -> np.ndarray:
        """Of the features from number `always` on, the first of which has 1."""
        with np.errstate(under="ignore"):
            return (place[always:] / place[always]) ** -exponent

    # The first c are always active, where c is the least number for which feature c does not exceed 1; if one
    # does not, neither do those after it.
    always, known = 0, n
    while always < known:
        middle = (always + known) // 2
        if mean - middle <= shares(middle).sum():
            known = middle
        else:
            always = middle + 1
    p = np.ones(n)
    if always < n:
        share = shares(always)
        p[always:] = np.minimum(1.0, (mean - always) * (share / share.sum()))
    return p
