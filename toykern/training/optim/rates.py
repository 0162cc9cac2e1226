"""Numbers of an optimiser that are one for all models or one for each, and betas: their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import check_number, describe, is_number

PER_MODEL = "per_model"
"""What a description says of numbers that are given per model."""

SCALES = ("lr_scale", "weight_decay_scale")
"""What is given by the names of tensors."""

Rate: TypeAlias = "float | torch.Tensor | np.ndarray | list[float]"
"""One number for all models, or `[models]`."""

Scales: TypeAlias = "Mapping[str, Rate] | None"
"""Numbers by the names of tensors."""


def check_rate(name: str, value: Any, above_zero: bool = False) -> float | torch.Tensor:
    """A float ≥ 0 (or > 0), or a float64 CPU tensor `[models]` of them (a copy)."""
    allowed = "above 0" if above_zero else "at least 0"
    if is_number(value) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0):
        number = check_number(name, value, minimum=0.0)
        if above_zero and number == 0:
            raise ValueError(f"{name} must be a finite number {allowed}, not {number}")
        return number
    tensor = as_tensor(name, value, torch.float64)
    if tensor.ndim != 1 or tensor.shape[0] == 0:
        raise ValueError(f"{name} must be one number or have one entry for each model, not {describe(value)}")
    bad = ~(torch.isfinite(tensor) & ((tensor > 0) if above_zero else (tensor >= 0)))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} must be finite and {allowed}, not {tensor[first].item()} (model {first})")
    return tensor.clone()


def check_scales(name: str, value: Any) -> dict[str, Any]:
    """Rates by the names of tensors, a dict of its own; {} for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a dict from names of tensors to numbers, such as {{'bias': 0.0}}, not "
            f"{describe(value)}"
        )
    for tensor in value:
        if not isinstance(tensor, str) or not tensor.isidentifier():
            raise TypeError(f"{name} must have names of tensors as keys, not {describe(tensor)}")
    return {tensor: check_rate(f"{name}[{tensor!r}]", rate) for tensor, rate in value.items()}


def check_betas(value: Any) -> tuple[float, float]:
    """Two numbers in [0, 1), as a tuple."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"betas must be two numbers, not {describe(value)}")
    first, second = (
        check_number(f"betas[{i}]", beta, minimum=0.0, below=1.0) for i, beta in enumerate(value)
    )
    return first, second


def described(rate: Any) -> Any:
    """A rate as a description has it."""
    return PER_MODEL if isinstance(rate, torch.Tensor) else rate


def shown(value: Any) -> str:
    """A rate, or a dict of some, as `repr` has it: without the numbers of a million models."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(of)}" for key, of in value.items()) + "}"
    return f"<per model, [{value.shape[0]}]>" if isinstance(value, torch.Tensor) else repr(value)
