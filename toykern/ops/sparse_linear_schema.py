"""What the sparse products' ops are on every device: schemas, what they check, what a backward pass leaves.

The ops that the CPU has, and that a GPU has too where no back end is named:

    sparse_linear_forward(x, values, bias, row_start, column, relu) -> y
    sparse_linear_backward(dy, x, values, y, row_start, column, column_start, row, slot, relu, wanted,
        capture) -> (dx, dvalues, dbias); those not wanted are empty
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field

import torch

from toykern.arguments.errors import describe
from toykern.ops.sparse_index import check_rows

SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
"""The dtypes there are kernels for, with their numbers in csrc/include/toykern/sparse.h."""

LIBRARY = torch.library.Library("toykern", "FRAGMENT")
LIBRARY.define(
    "sparse_linear_forward(Tensor x, Tensor values, Tensor? bias, Tensor row_start, Tensor column, "
    "bool relu) -> Tensor"
)
LIBRARY.define(
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor? y, Tensor row_start, Tensor column, "
    "Tensor column_start, Tensor row, Tensor slot, bool relu, bool[3] wanted, int capture) "
    "-> (Tensor, Tensor, Tensor)"
)


@dataclass(eq=False)
class GradientCapture:
    """Keeps the inputs and output gradients that pass through a layer's backward.

    Attributes:
        passes: (x `[n_models | 1, batch, in]`, dy `[n_models, batch, out]`), dy behind the activation.
        dense: instead of a pass the gradient of all of W, `[n_models, out, in]`, where backward computed it.
        number: how the backward op names this object; it is not kept alive by the op.
    """

    passes: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    dense: list[torch.Tensor] = field(default_factory=list)
    number: int = field(default_factory=itertools.count(1).__next__)

    def clear(self) -> None:
        """Lets go of all of them."""
        self.passes.clear()
        self.dense.clear()

    def __post_init__(self) -> None:
        CAPTURES[self.number] = self

    def __reduce__(self) -> tuple[type[GradientCapture], tuple[()]]:
        return GradientCapture, ()  # a copy starts empty, with a number of its own


CAPTURES: weakref.WeakValueDictionary[int, GradientCapture] = weakref.WeakValueDictionary()


def check_forward(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
) -> tuple[int, int]:
    """(n_models, out_features), after everything that can be seen without looking at the numbers."""
    n_models, out_features = check_rows(row_start, column)
    if x.dtype not in SCALARS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in SCALARS)
        raise TypeError(f"x must be of one of the dtypes {allowed}, not {describe(x)}")
    if n_models == 1:
        if x.ndim < 1 or x.shape[-1] < 1:
            raise ValueError(f"x must have the shape [..., in_features], not {list(x.shape)}")
    elif x.ndim != 3 or x.shape[0] not in (1, n_models) or x.shape[2] < 1:
        raise ValueError(
            f"x must have the shape [n_models, batch, in_features] with n_models = {n_models} (or 1), "
            f"not {list(x.shape)}"
        )
    if values.shape != column.shape:
        raise ValueError(
            f"values must have one entry for each slot, {list(column.shape)}, not {list(values.shape)}"
        )
    if bias is not None and list(bias.shape) != [n_models, out_features]:
        raise ValueError(
            f"bias must have the shape [n_models, out_features] = [{n_models}, {out_features}], "
            f"not {list(bias.shape)}"
        )
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, not {tensor.dtype}")
    for name, tensor in (("values", values), ("bias", bias), ("row_start", row_start), ("column", column)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, not {tensor.device}")
    return n_models, out_features


def shape_of_y(x: torch.Tensor, n_models: int, out_features: int) -> list[int]:
    """What a stack makes of x; one model takes any shape, as `nn.Linear` does."""
    return [*x.shape[:-1], out_features] if n_models == 1 else [n_models, x.shape[1], out_features]


def check_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    column_start: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    relu: bool,
) -> None:
    """What backward is given beside forward's inputs."""
    n_models, out_features = row_start.shape[0], row_start.shape[1] - 1
    shape = shape_of_y(x, n_models, out_features)
    for name, tensor in (("dy", dy), ("y", y)):
        if tensor is not None and (list(tensor.shape) != shape or tensor.dtype != x.dtype):
            raise ValueError(f"{name} must be a {x.dtype} tensor of shape {shape}, not {describe(tensor)}")
    if relu and y is None:
        raise ValueError("y must be given where relu is True: the derivative of ReLU is read from it")
    if column_start.dtype != torch.int64 or list(column_start.shape) != [n_models, x.shape[-1] + 1]:
        raise ValueError(
            f"column_start must be an int64 tensor of shape {[n_models, x.shape[-1] + 1]}, "
            f"not {describe(column_start)}"
        )
    for name, tensor in (("row", row), ("slot", slot)):
        if tensor.dtype != torch.int32 or tensor.shape != column.shape:
            raise ValueError(
                f"{name} must be an int32 tensor of shape {list(column.shape)}, not {describe(tensor)}"
            )
    for name, tensor in (("dy", dy), ("column_start", column_start), ("row", row), ("slot", slot)):
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, not {tensor.device}")
