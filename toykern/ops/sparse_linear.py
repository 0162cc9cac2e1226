"""y = act(x Wᵀ + b) with a sparse W, for stacks of layers: the ops, what they check, and their gradients.

`sparse_linear` is what layers call. Below it are two ops that torch knows (`torch.ops.toykern`), so that
`torch.compile` takes them as they are:

    sparse_linear_forward(x, values, bias, row_start, column, relu) -> y
    sparse_linear_backward(dy, x, values, y, row_start, column, column_start, row, slot, relu, wanted,
        capture) -> (dx, dvalues, dbias); those not wanted are empty

Both are implemented for the CPU here (csrc/cpu/sparse_*). On a GPU `sparse_linear` goes to the ops of
`toykern.ops.sparse_linear_device`, which choose among three back ends.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.address import address, refuse_distributed
from toykern.native.threads import kernel_threads
from toykern.ops.gate import check_device_of_kernels

SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
"""The dtypes there are kernels for, with their numbers in csrc/include/toykern/sparse.h."""

_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
_LIBRARY.define(
    "sparse_linear_forward(Tensor x, Tensor values, Tensor? bias, Tensor row_start, Tensor column, "
    "bool relu) -> Tensor"
)
_LIBRARY.define(
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor? y, Tensor row_start, Tensor column, "
    "Tensor column_start, Tensor row, Tensor slot, bool relu, bool[3] wanted, int capture) "
    "-> (Tensor, Tensor, Tensor)"
)


class SparseIndex(NamedTuple):
    """A topology as the kernels take it: by row, and the same connections by column.

    Attributes:
        in_features: columns of each matrix; `row_start` knows the rows and the models.
        row_start, column: as in `toykern.sparse.Topology`.
        column_start: int64 `[n_models, in_features + 1]`; the places of each column, counted from the model's
            first.
        row, slot: int32 `[n_models · capacity]` by place, the connection's row and its slot counted from the
            model's first; 0 beyond the connections.

    `SparseIndex.of` makes one. The kernels check every number in it at every call.
    """

    in_features: int
    row_start: torch.Tensor
    column: torch.Tensor
    column_start: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor

    @classmethod
    def of(
        cls,
        in_features: int,
        row_start: torch.Tensor,
        column: torch.Tensor,
        into: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> SparseIndex:
        """With the index by column made by counting sort, O(connections + in_features).

        `into` are contiguous CPU tensors (column_start, row, slot) to write it to, in memory of their own;
        None makes new ones. ValueError, and nothing is written, where row_start or column is no topology.

        >>> SparseIndex.of(3, torch.tensor([[0, 2, 3]]), torch.tensor([0, 2, 2], dtype=torch.int32)).row
        tensor([0, 0, 1], dtype=torch.int32)
        """
        n_models, out_features = _check_rows(row_start, column)
        if column.shape[0] // n_models >= 2**31:
            raise ValueError(f"a model must have fewer than 2³¹ slots, not {column.shape[0] // n_models}")
        row_start, column = row_start.contiguous(), column.contiguous()
        if row_start.device.type == "cuda":
            _device.check_contents(row_start, column, in_features, "column")
            return cls(
                in_features, row_start, column, *_device.transposed_index(in_features, row_start, column)
            )
        check_device_of_kernels("sparse_linear_forward", row_start.device)
        if into is None:
            column_start = torch.empty(n_models, in_features + 1, dtype=torch.int64, device="cpu")
            row, slot = torch.empty_like(column), torch.empty_like(column)
        else:
            column_start, row, slot = into
            if list(column_start.shape) != [n_models, in_features + 1] or {row.shape, slot.shape} != {
                column.shape
            }:
                raise ValueError("into must have the shapes of the index by column of this topology")
        _native.sparse_transpose(
            n_models,
            out_features,
            in_features,
            column.shape[0] // n_models,
            address("row_start", row_start, torch.int64),
            address("column", column, torch.int32),
            address("column_start", column_start, torch.int64),
            address("row", row, torch.int32),
            address("slot", slot, torch.int32),
            kernel_threads(),
        )
        return cls(in_features, row_start, column, column_start, row, slot)

    def places(self) -> torch.Tensor:
        """The inverse of `slot`: the place of each slot, int32 `[n_models · capacity]`, 0 in the slack."""
        n_models = self.row_start.shape[0]
        slot = self.slot.reshape(n_models, -1).long()
        capacity = slot.shape[1]
        here = torch.arange(capacity, dtype=torch.int32, device=slot.device)
        # What lies beyond the connections is sent past the end, and cut off.
        slot = torch.where(here < self.row_start[:, -1:], slot, capacity)
        place = self.slot.new_zeros(n_models, capacity + 1).scatter_(1, slot, here.expand(n_models, -1))
        return place[:, :capacity].reshape(-1)

    def transposed(self, places: torch.Tensor | None = None) -> SparseIndex:
        """The same connections of the matrix transposed; its values are `by_column(values, index)`.

        `places` is what `places()` gives, where that is at hand.
        """
        place = self.places() if places is None else places
        out_features = self.row_start.shape[1] - 1
        return SparseIndex(out_features, self.column_start, self.row, self.row_start, self.column, place)


def check_index(in_features: int, row_start: torch.Tensor, column: torch.Tensor) -> None:
    """ValueError unless the arrays, on the CPU, are a topology that `SparseIndex.of` can make an index of.

    >>> check_index(3, torch.tensor([[0, 1]]), torch.tensor([2], dtype=torch.int32))
    """
    n_models, out_features = _check_rows(row_start, column)
    row_start, column = row_start.contiguous(), column.contiguous()
    _native.sparse_check_index(
        n_models,
        out_features,
        in_features,
        column.shape[0] // n_models,
        address("row_start", row_start, torch.int64),
        address("column", column, torch.int32),
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
        _CAPTURES[self.number] = self

    def __reduce__(self) -> tuple[type[GradientCapture], tuple[()]]:
        return GradientCapture, ()  # a copy starts empty, with a number of its own


_CAPTURES: weakref.WeakValueDictionary[int, GradientCapture] = weakref.WeakValueDictionary()


def sparse_linear(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    index: SparseIndex,
    *,
    relu: bool = False,
    capture: int = 0,
    backend: str = "auto",
    group: int = 1,
    width: int = 0,
) -> torch.Tensor:
    """y = act(x Wᵀ + b) for a stack of sparse matrices W, differentiable in x, values and bias.

    Args:
        x: `[n_models, batch, in_features]`, or `[1, batch, in_features]` for all models alike; where there is
            one model `[…, in_features]`, as for `nn.Linear`.
        values: `[n_models · capacity]`, of the dtype of x: float32, bfloat16 (sums in float32) or float64.
        bias: `[n_models, out_features]`, for one model also `[out_features]`, or None.
        index: which connections exist.
        relu: whether act is ReLU (its derivative at 0 is 0) or nothing.
        capture: the `number` of a `GradientCapture` that keeps x and dy, or 0.
        backend: on a GPU "dense", "slots", "groups" or "auto" (`toykern.ops.sparse_choice`); the CPU has one.
        group, width: that many neighbouring rows have the same columns, at most `width` of them (1, 0: not).

    Returns y `[n_models, batch, out_features]`; for one model of the shape of x but for the last. Under
    autocast all three are cast as `nn.Linear` casts its own. The bits depend on shapes, values and the
    instruction-set level, never on threads or other models.
    ValueError or TypeError for other shapes, dtypes or indices; RuntimeError for other devices.

    >>> index = SparseIndex.of(2, torch.tensor([[0, 1]]), torch.tensor([1], dtype=torch.int32))
    >>> sparse_linear(torch.tensor([[[3.0, 4.0]]]), torch.tensor([2.0]), None, index)
    tensor([[[8.]]])
    """
    refuse_distributed(x=x, values=values)
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    flat = bias is not None and bias.ndim == 1 and index.row_start.shape[0] == 1
    if kind == "cuda":
        return _device.sparse_linear_on_device(x, values, bias, index, relu, capture, backend, group, width)
    if torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _SparseLinear.apply(
            x,
            values,
            bias,
            index.row_start,
            index.column,
            index.column_start,
            index.row,
            index.slot,
            relu,
            capture,
        )
    rows = bias.unsqueeze(0) if flat else bias  # type: ignore[union-attr]
    return torch.ops.toykern.sparse_linear_forward(x, values, rows, index.row_start, index.column, relu)


def by_column(values: torch.Tensor, index: SparseIndex, transposed: SparseIndex) -> torch.Tensor:
    """The values in the order of the transposed matrix's slots, differentiable; slack may hold anything, and
    its gradient is 0.

    >>> index = SparseIndex.of(2, torch.tensor([[0, 2, 3]]), torch.tensor([0, 1, 0], dtype=torch.int32))
    >>> by_column(torch.tensor([1.0, 2.0, 3.0]), index, index.transposed())
    tensor([1., 3., 2.])
    """
    return _Reordered.apply(values, index.slot, transposed.slot, index.row_start)


class _Reordered(torch.autograd.Function):
    """to[i] = values[slot[i]] within each model; its gradient comes back through the inverse."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, slot: torch.Tensor, place: torch.Tensor, row_start: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(place, row_start)
        return _taken(values, slot, row_start.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        place, row_start = ctx.saved_tensors
        taken = _taken(gradient, place, row_start.shape[0]).reshape(row_start.shape[0], -1)
        here = torch.arange(taken.shape[1], dtype=torch.int64, device=taken.device)
        return torch.where(here < row_start[:, -1:], taken, 0).reshape(-1), None, None, None


def _taken(values: torch.Tensor, slot: torch.Tensor, n_models: int) -> torch.Tensor:
    if n_models == 1:
        return values.index_select(0, slot)
    return values.reshape(n_models, -1).gather(1, slot.reshape(n_models, -1).long()).reshape(-1)


class _SparseLinear(torch.autograd.Function):
    """The gradients; a second derivative is refused."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        row_start: torch.Tensor,
        column: torch.Tensor,
        column_start: torch.Tensor,
        row: torch.Tensor,
        slot: torch.Tensor,
        relu: bool,
        capture: int,
    ) -> torch.Tensor:
        # One model's bias is a vector, made a row here, where autograd follows no view.
        ctx.flat = bias is not None and bias.ndim == 1 and row_start.shape[0] == 1
        rows = bias.unsqueeze(0) if ctx.flat else bias  # type: ignore[union-attr]
        y = torch.ops.toykern.sparse_linear_forward(x, values, rows, row_start, column, relu)
        ctx.save_for_backward(x, values, y if relu else None, row_start, column, column_start, row, slot)
        ctx.relu, ctx.capture = relu, capture
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, y, row_start, column, column_start, row, slot = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        made = torch.ops.toykern.sparse_linear_backward(
            dy,
            x,
            values,
            y,
            row_start,
            column,
            column_start,
            row,
            slot,
            ctx.relu,
            wanted,
            ctx.capture,
        )
        if ctx.flat:
            made = (*made[:2], made[2].reshape(-1))
        return (*(g if want else None for g, want in zip(made, wanted, strict=True)), *[None] * 7)


# --- shapes -----------------------------------------------------------------------------------------------


def _check_rows(row_start: torch.Tensor, column: torch.Tensor) -> tuple[int, int]:
    """(n_models, out_features); ValueError or TypeError where the two cannot be a topology."""
    if (
        row_start.dtype != torch.int64
        or row_start.ndim != 2
        or row_start.shape[0] < 1
        or row_start.shape[1] < 2
    ):
        raise ValueError(
            "row_start must be an int64 tensor of shape [n_models, out_features + 1], "
            f"not {describe(row_start)}"
        )
    n_models, out_features = row_start.shape[0], row_start.shape[1] - 1
    if column.dtype != torch.int32 or column.ndim != 1 or column.shape[0] % n_models:
        raise ValueError(
            f"column must be an int32 tensor of shape [n_models · capacity] with n_models = {n_models}, "
            f"not {describe(column)}"
        )
    return n_models, out_features


def _check_forward(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
) -> tuple[int, int]:
    """(n_models, out_features), after everything that can be seen without looking at the numbers."""
    n_models, out_features = _check_rows(row_start, column)
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


def _shape_of_y(x: torch.Tensor, n_models: int, out_features: int) -> list[int]:
    """What a stack makes of x; one model takes any shape, as `nn.Linear` does."""
    return [*x.shape[:-1], out_features] if n_models == 1 else [n_models, x.shape[1], out_features]


def _check_backward(
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
    shape = _shape_of_y(x, n_models, out_features)
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


# --- the CPU ----------------------------------------------------------------------------------------------


def _params(
    x: torch.Tensor, values: torch.Tensor, row_start: torch.Tensor, column: torch.Tensor, relu: bool
) -> Any:
    """The kernels' parameters; what they point to must outlive the call. All tensors contiguous."""
    n_models, in_features = row_start.shape[0], x.shape[-1]
    batch = x.shape[1] if n_models > 1 else x.shape[:-1].numel()
    p = _native.SparseLinearParams(
        n_models,
        row_start.shape[1] - 1,
        in_features,
        column.shape[0] // n_models,
        batch,
        SCALARS[x.dtype],
        kernel_threads(),
    )
    p.x_model_stride = batch * in_features if n_models > 1 and x.shape[0] == n_models else 0
    p.x, p.values, p.relu = address("x", x, x.dtype), address("values", values, x.dtype), relu
    p.row_start = address("row_start", row_start, torch.int64)
    p.column = address("column", column, torch.int32)
    return p


def _forward_cpu(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    n_models, out_features = _check_forward(x, values, bias, row_start, column)
    x, values, row_start, column = (t.contiguous() for t in (x, values, row_start, column))
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(_shape_of_y(x, n_models, out_features))
    p = _params(x, values, row_start, column, relu)
    p.bias = 0 if bias is None else address("bias", bias, x.dtype)
    p.y = address("y", y, x.dtype)
    _native.sparse_linear_forward(p)
    return y


def _backward_cpu(
    dy: torch.Tensor,
    x: torch.Tensor,
    values: torch.Tensor,
    y: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    column_start: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    relu: bool,
    wanted: list[bool],
    capture: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_models, out_features = _check_forward(x, values, None, row_start, column)
    _check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    dy, x, values, row_start, column = (t.contiguous() for t in (dy, x, values, row_start, column))
    column_start, row, slot = (t.contiguous() for t in (column_start, row, slot))
    y = y.contiguous() if y is not None and relu else None
    want_x, want_values, want_bias = wanted
    shared = n_models > 1 and x.shape[0] != n_models  # one batch serves all models
    dx = x.new_empty([n_models, *x.shape[1:]] if shared else x.shape) if want_x else x.new_empty(0)
    dvalues = torch.empty_like(values) if want_values else values.new_empty(0)
    dbias = x.new_empty(n_models, out_features) if want_bias else x.new_empty(0)
    p = _params(x, values, row_start, column, relu)
    p.column_start = address("column_start", column_start, torch.int64)
    p.row, p.slot = address("row", row, torch.int32), address("slot", slot, torch.int32)
    p.dy, p.y = address("dy", dy, x.dtype), 0 if y is None else address("y", y, x.dtype)
    p.dx = address("dx", dx, x.dtype) if want_x else 0
    p.dvalues = address("dvalues", dvalues, x.dtype) if want_values else 0
    p.dbias = address("dbias", dbias, x.dtype) if want_bias else 0
    _native.sparse_linear_backward(p)
    collector = _CAPTURES.get(capture)
    if collector is not None:
        behind = dy.detach() if y is None else torch.where(y == 0, 0, dy)
        stacked = x.detach() if n_models > 1 else x.detach().reshape(1, -1, x.shape[-1])
        collector.passes.append((stacked, behind.reshape(n_models, -1, out_features)))
    if want_x and shared:
        dx = dx.sum(dim=0, keepdim=True)
    return dx, dvalues, dbias


_LIBRARY.impl("sparse_linear_forward", _forward_cpu, "CPU")
_LIBRARY.impl("sparse_linear_backward", _backward_cpu, "CPU")


# --- shapes without numbers, for torch.compile ------------------------------------------------------------


def _forward_fake(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    n_models, out_features = _check_forward(x, values, bias, row_start, column)
    return x.new_empty(_shape_of_y(x, n_models, out_features))


def _backward_fake(
    dy: torch.Tensor,
    x: torch.Tensor,
    values: torch.Tensor,
    y: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    column_start: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    relu: bool,
    wanted: list[bool],
    capture: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_models, out_features = _check_forward(x, values, None, row_start, column)
    _check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    dx = x.new_empty(x.shape if wanted[0] else [0])
    dvalues = values.new_empty(values.shape if wanted[1] else [0])
    dbias = x.new_empty([n_models, out_features] if wanted[2] else [0])
    return dx, dvalues, dbias


torch.library.register_fake("toykern::sparse_linear_forward", _forward_fake)
torch.library.register_fake("toykern::sparse_linear_backward", _backward_fake)

# Last, because it builds on all of the above.
from toykern.ops import sparse_linear_device as _device  # noqa: E402
