"""What the measures share: stacks of models, checked, and sums whose order follows from one model's shape.

A batched product or a reduction takes other loops for another number of models, threads or addresses, and
adds up in another order. The last bits then depend on what stands beside a model, and where sums cancel, as
they do in the superposition of features that are nearly orthogonal, many digits do. Products and additions
element by element are rounded the same wherever they are done. Models are the last dimension, so that there
are long rows to work on.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.broadcast import real_tensor
from toykern.arguments.errors import describe

CACHED = 1 << 16
"""Numbers (half a megabyte of doubles) that are worked on at a time where they are read again and again."""


def check_stack(name: str, value: Any, dims: tuple[str, ...]) -> torch.Tensor:
    """`value` as a tensor of floating-point numbers `[models, *dims]` or `[*dims]`, none of them empty."""
    tensor = real_tensor(name, value, detach=False)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, not {describe(value)}")
    if tensor.ndim not in (len(dims), len(dims) + 1) or 0 in tensor.shape:
        one = ", ".join(dims)
        raise ValueError(f"{name} must have the shape [models, {one}] or [{one}], not {describe(value)}")
    return tensor


def models_last(stack: torch.Tensor, ndim: int = 2) -> torch.Tensor:
    """float64 `[…, models]`, contiguous, of `[models, …]` or of one model's `[…]` with `ndim` dimensions."""
    stacked = stack if stack.ndim == ndim + 1 else stack.unsqueeze(0)
    return stacked.double().movedim(0, -1).contiguous()


def models_first(value: torch.Tensor, stack: torch.Tensor, ndim: int = 2) -> torch.Tensor:
    """A result `[…, models]` as `[models, …]`, or `[…]` of one model, in the dtype of the stack."""
    result = value.movedim(-1, 0).to(stack.dtype).contiguous()
    return result if stack.ndim == ndim + 1 else result[0]


def total(terms: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension: the halves are added to each other until one is left."""
    while len(terms) > 1:
        half = len(terms) // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = folded if len(terms) == 2 * half else torch.cat([folded, terms[-1:]])
    return terms[0]


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix products `[a, c, models]`, `[c, b, models]`: `[a, b, models]`, added in the order of c."""
    product = left[:, :1] * right[:1]
    for k in range(1, len(right)):
        product = product + left[:, k : k + 1] * right[k : k + 1]
    return product
