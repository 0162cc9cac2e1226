"""Linear assignment: the one-to-one matching of rows with columns that has the largest sum."""

from __future__ import annotations

import torch


def largest_assignment(gain: torch.Tensor) -> torch.Tensor:
    """For each row the column it is matched with, int64 `[rows]` on the CPU; −1 for a row without one.

    gain: finite, `[rows, columns]`. As many rows and columns as there are of both are matched, so that the
    sum of the gains is the largest there is.

    Raises:
        ImportError: SciPy is not installed (`pip install toykern[analysis]`).

    >>> largest_assignment(torch.tensor([[1.0, 0.9], [0.8, 0.0]])).tolist()
    [1, 0]
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("matching needs SciPy: pip install 'toykern[analysis]'") from error
    rows, columns = linear_sum_assignment(gain.detach().cpu().double().numpy(), maximize=True)
    found = torch.full((len(gain),), -1, dtype=torch.int64, device="cpu")
    found[torch.as_tensor(rows, device="cpu")] = torch.as_tensor(columns, device="cpu")
    return found
