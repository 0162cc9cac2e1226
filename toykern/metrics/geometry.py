"""The geometry of features: how many are represented, and how much each shares with others.

`weight` is `[models, n_hidden, n_features]` or `[n_hidden, n_features]` (one model), as
`TiedAutoencoder.weight` or `Autoencoder.encoder`; W_i is the column of feature i. Results have the models'
dimension only where the weight has it, the dtype of the weight (sums are in double precision) and can be
differentiated. A model's bits are its own: whatever stands beside it, and on any number of threads. The
definitions are those of Elhage et al. 2022, *Toy Models of Superposition*.
"""

from __future__ import annotations

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_int, check_number
from toykern.metrics.stacks import CACHED, check_stack, models_first, models_last, product, total

UNDEFINED, NOT_REPRESENTED, DEDICATED, SUPERPOSITION = -1, 0, 1, 2
"""The phases of a feature: `classify_phase` and `best_solution` return these numbers."""


def features_per_dimension(weight: Values) -> torch.Tensor:
    """‖W‖²_F / m, `[models]`: about how many features are represented per hidden dimension.

    Its inverse is D*, the dimensions per feature.

    >>> features_per_dimension(torch.eye(2)).item()
    1.0
    """
    w = _check_weight(weight)
    squares = models_last(w).square().flatten(0, 1)
    return models_first(total(squares) / w.shape[-2], w)


def interference(weight: Values) -> torch.Tensor:
    """WᵀW, `[models, n_features, n_features]`: how strongly each feature reads every other.

    >>> interference(torch.tensor([[1.0, -1.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    w = _check_weight(weight)
    wide = models_last(w)
    return models_first(product(wide.transpose(0, 1), wide), w)


def superposition(weight: Values) -> torch.Tensor:
    """Σ_{j≠i} (Ŵ_i · W_j)², `[models, n_features]`: how much of the other features lies along feature i.

    0 for a feature orthogonal to all others, and for one whose column is 0.

    >>> superposition(torch.tensor([[1.0, -1.0]])).tolist()
    [1.0, 1.0]
    """
    w = _check_weight(weight)
    return models_first(_superposition(*_norm_and_shared(w)), w)


def feature_dimensionality(weight: Values) -> torch.Tensor:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i · W_j)² with j = i included, `[models, n_features]`.

    The fraction of a hidden dimension that feature i has for itself: 1 if dedicated, 1/2 in an antipodal
    pair, 2/5 in a pentagon; 0 for a feature whose column is 0.

    >>> feature_dimensionality(torch.tensor([[1.0, -1.0, 0.0]])).tolist()
    [0.5, 0.5, 0.0]
    """
    w = _check_weight(weight)
    return models_first(dimensionality(w), w)


def classify_phase(
    weight: Values, feature: int = -1, norm_threshold: float = 0.5, superposition_threshold: float = 0.25
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


def dimensionality(weight: torch.Tensor) -> torch.Tensor:
    """Of each column, float64 `[columns, models]`."""
    norm, shared = _norm_and_shared(weight)
    represented = shared != 0  # a diverged model's NaN stays NaN
    return torch.where(represented, norm.square() / torch.where(represented, shared, 1.0), 0.0)


def _norm_and_shared(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """‖W_i‖ and Σ_j (Ŵ_i · W_j)² = Ŵ_iᵀ (W Wᵀ) Ŵ_i, float64 `[n_features, models]`, without WᵀW."""
    w = models_last(weight)
    square = total(w.square())
    absent = square == 0  # the slope of the root is infinite there; NaN goes through
    length = torch.where(absent, 1.0, square).sqrt()
    norm, unit = torch.where(absent, 0.0, length), w / length
    gram = product(w, w.transpose(0, 1))
    # Some features at a time: the sums of all would not fit into a cache.
    at_once = max(1, CACHED // (w.shape[0] * w.shape[2]))
    shared = [total(part * product(gram, part)) for part in unit.split(at_once, dim=1)]
    return norm, torch.cat(shared)


def _superposition(norm: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return (shared - norm.square()).clamp(min=0)


def _check_weight(weight: Values) -> torch.Tensor:
    return check_stack("weight", weight, ("n_hidden", "n_features"))
