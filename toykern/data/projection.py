"""Targets that are a fixed linear map of the features: t = T x."""

from __future__ import annotations

from typing import Any

import torch

from toykern import _native
from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import describe
from toykern.data.dataset_checks import MAX_OUTPUTS
from toykern.native.address import address


class Projection:
    """T, for one model or for each.

    Attributes:
        matrix: float32 CPU `[1 or models, n_outputs, n_features]`, contiguous, and its own.
    """

    def __init__(self, given: Any, n_features: int) -> None:
        matrix = as_tensor("projection", given, torch.float32)
        if matrix.ndim not in (2, 3) or 0 in matrix.shape or matrix.shape[-1] != n_features:
            raise ValueError(
                f"projection must have the shape [n_outputs, {n_features}] or [models, n_outputs, "
                f"{n_features}], the last of them n_features, not {describe(given)}"
            )
        if matrix.shape[-2] > MAX_OUTPUTS:
            raise ValueError(f"projection must have at most 2^24 rows (n_outputs), not {describe(given)}")
        matrix = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
        if not bool(torch.isfinite(matrix).all()):
            at = (~torch.isfinite(matrix)).nonzero()[0].tolist()
            raise ValueError(
                f"projection must be finite, not {matrix[tuple(at)].item()} (model, output, feature {at})"
            )
        self.matrix = matrix.clone(memory_format=torch.contiguous_format)

    @property
    def n_outputs(self) -> int:
        """How many numbers a target has."""
        return self.matrix.shape[1]

    @property
    def n_models(self) -> int | None:
        """Of how many models it is; None where one serves any number."""
        return len(self.matrix) if len(self.matrix) > 1 else None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """T x of samples `[models, batch, n_features]`, rounded once from float64 sums: float32 `[models,
        batch, n_outputs]`."""
        return (x.double() @ self.matrix.double().mT).float()

    def row(self, i: int) -> torch.Tensor:
        """The matrix of model `i` alone, or the one of all."""
        return self.matrix if self.n_models is None else self.matrix[i : i + 1]

    def native(self) -> Any:
        """The kernels' view; valid while this object lives."""
        view = _native.TargetProjection()
        view.matrix = address("projection", self.matrix, torch.float32)
        view.per_model = self.n_models is not None
        return view
