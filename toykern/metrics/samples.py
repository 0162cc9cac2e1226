"""What single samples mean to a model or a fit: how many dimensions each has for itself, and its leverage.

Rows are samples, `[models, samples, …]` or `[samples, …]`. Results have the models' dimension only where the
argument has it, the dtype of the argument (they are computed in double precision) and can be differentiated.
"""

from __future__ import annotations

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_number
from toykern.metrics.geometry import dimensionality
from toykern.metrics.stacks import check_stack, models_first


def sample_dimensionality(codes: Values) -> torch.Tensor:
    """D_x = ‖h_x‖² / Σ_y (ĥ_x · h_y)² with y = x included, `[models, samples]`.

    The fraction of a hidden dimension that a sample has for itself: for a T-gon of samples in m dimensions
    m/T. The same as `feature_dimensionality`, of samples in the place of features; 0 for a sample whose codes
    are all 0. A model's bits are its own, whatever stands beside it. Henighan et al. 2023, *Superposition,
    Memorization, and Double Descent*.

    codes: `[models, samples, n_hidden]` or `[samples, n_hidden]`, the hidden vectors h, as `MLP.encode` or
    W x gives them.

    >>> sample_dimensionality(torch.tensor([[1.0], [-1.0], [0.0]])).tolist()
    [0.5, 0.5, 0.0]
    """
    h = check_stack("codes", codes, ("samples", "n_hidden"))
    return models_first(dimensionality(h.mT), h)


def leverage(matrix: Values, rtol: float | None = None) -> torch.Tensor:
    """h_i = (X X⁺)_ii, `[models, samples]`: the diagonal of the hat matrix of the design matrix X.

    How much a sample's own target decides about its prediction by least squares: from 0 to 1, summing up to
    the rank of X. A constant column makes it the leverage of a fit with an intercept. NaN for a model whose X
    is not finite. First derivatives alone; a model's bits may depend on the number of threads. Hoaglin and
    Welsch 1978, *The Hat Matrix in Regression and ANOVA*.

    Args:
        matrix: X, `[models, samples, n_columns]` or `[samples, n_columns]`.
        rtol: singular values of at most `rtol` times the largest count as 0; by default max(samples,
            n_columns) · ε of the dtype of the matrix, and no more than 0.1.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> leverage(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).round(decimals=6).tolist()
    [1.0, 0.5, 0.5]
    """
    tensor = check_stack("matrix", matrix, ("samples", "n_columns"))
    if rtol is None:
        tolerance = min(0.1, max(tensor.shape[-2:]) * torch.finfo(tensor.dtype).eps)
    else:
        tolerance = check_number("rtol", rtol, minimum=0.0, below=1.0)
    x = tensor.double()
    finite = torch.isfinite(x.detach()).flatten(-2).all(-1)[..., None]
    held = torch.where(finite[..., None], x.detach(), 0.0)
    left, singular, right = torch.linalg.svd(held, full_matrices=False)
    counted = singular > tolerance * singular[..., :1]
    left = left * counted[..., None, :]
    values = left.square().sum(-1)
    if x.requires_grad:
        # d h_i = 2 ((1 − X X⁺) dX X⁺)_ii: the slope of the decomposition itself would be infinite where two
        # singular values are equal. What is added is 0.
        change = torch.where(finite[..., None], x - held, 0.0)
        outside = change - left @ (left.mT @ change)
        inverse = torch.where(counted, 1 / torch.where(counted, singular, 1.0), 0.0)
        values = values + 2 * (outside * ((left * inverse[..., None, :]) @ right)).sum(-1)
    return torch.where(finite, values, torch.nan).to(tensor.dtype)
