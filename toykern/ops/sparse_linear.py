"""y = act(x Wᵀ + b) with a sparse W, for stacks of layers: the front that layers call, and the CPU's ops.

`sparse_linear` is what layers call. Below it are ops that torch knows (`torch.ops.toykern`), so that
`torch.compile` takes them as they are. Those of `toykern.ops.sparse_linear_schema` are implemented for the
CPU here (csrc/cpu/sparse); tensors on a GPU go to the ops of `toykern.ops.sparse_linear_device`, which choose
among three back ends.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from toykern import _native
from toykern.native.address import address, refuse_distributed
from toykern.native.threads import kernel_threads
from toykern.ops.sparse_index import SparseIndex
from toykern.ops.sparse_linear_device import sparse_linear_on_device
from toykern.ops.sparse_linear_schema import (
    CAPTURES,
    LIBRARY,
    SCALARS,
    check_backward,
    check_forward,
    shape_of_y,
)
from toykern.ops.transforms import no_forward_mode, not_transformed, once, transforming


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
        backend: on a GPU "dense", "slots", "groups" or "auto" (`toykern.ops.backend_choice`): a CPU has one.
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
    in_transforms = transforming()
    if kind == "cuda":
        if in_transforms:
            raise not_transformed("on a GPU under torch.func")
        return sparse_linear_on_device(x, values, bias, index, relu, capture, backend, group, width)
    if in_transforms or (
        torch.is_grad_enabled()
        and (x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad))
    ):
        function = _SparseLinearInTransforms if in_transforms else _SparseLinear
        return function.apply(
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
    function = _ReorderedInTransforms if transforming() else _Reordered
    return function.apply(values, index.slot, transposed.slot, index.row_start)


class _Reordered(torch.autograd.Function):
    """to[i] = values[slot[i]] within each model; its gradient comes back through the inverse."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, slot: torch.Tensor, place: torch.Tensor, row_start: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(place, row_start)
        return _taken(values, slot, row_start.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        place, row_start = ctx.saved_tensors
        taken = _taken(gradient, place, row_start.shape[0]).reshape(row_start.shape[0], -1)
        here = torch.arange(taken.shape[1], dtype=torch.int64, device=taken.device)
        return torch.where(here < row_start[:, -1:], taken, 0).reshape(-1), None, None, None


class _ReorderedInTransforms(_Reordered):
    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(  # type: ignore[override]
        values: torch.Tensor, slot: torch.Tensor, place: torch.Tensor, row_start: torch.Tensor
    ) -> torch.Tensor:
        return _taken(values, slot, row_start.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[2:])


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
        found = (once(g, dy, x, values) if want else None for g, want in zip(made, wanted, strict=True))
        return (*found, *[None] * 7)


class _SparseLinearInTransforms(_SparseLinear):
    """The same under torch.func, but for vmap."""

    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(  # type: ignore[override]
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
        rows = bias.unsqueeze(0) if bias is not None and bias.ndim == 1 else bias
        y: torch.Tensor = torch.ops.toykern.sparse_linear_forward(x, values, rows, row_start, column, relu)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, values, bias, row_start, column, column_start, row, slot, ctx.relu, ctx.capture = inputs
        ctx.flat = bias is not None and bias.ndim == 1 and row_start.shape[0] == 1
        y = output if ctx.relu else None
        ctx.save_for_backward(x, values, y, row_start, column, column_start, row, slot)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> NoReturn:
        raise not_transformed("under torch.vmap (and jacrev, which is made of it)")


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
    n_models, out_features = check_forward(x, values, bias, row_start, column)
    x, values, row_start, column = (t.contiguous() for t in (x, values, row_start, column))
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(shape_of_y(x, n_models, out_features))
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
    n_models, out_features = check_forward(x, values, None, row_start, column)
    check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
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
    collector = CAPTURES.get(capture)
    if collector is not None:
        behind = dy.detach() if y is None else torch.where(y == 0, 0, dy)
        stacked = x.detach() if n_models > 1 else x.detach().reshape(1, -1, x.shape[-1])
        collector.passes.append((stacked, behind.reshape(n_models, -1, out_features)))
    if want_x and shared:
        dx = dx.sum(dim=0, keepdim=True)
    return dx, dvalues, dbias


LIBRARY.impl("sparse_linear_forward", _forward_cpu, "CPU")
LIBRARY.impl("sparse_linear_backward", _backward_cpu, "CPU")


# --- shapes without numbers, for torch.compile ------------------------------------------------------------


def _forward_fake(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    row_start: torch.Tensor,
    column: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    n_models, out_features = check_forward(x, values, bias, row_start, column)
    return x.new_empty(shape_of_y(x, n_models, out_features))


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
    n_models, out_features = check_forward(x, values, None, row_start, column)
    check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    dx = x.new_empty(x.shape if wanted[0] else [0])
    dvalues = values.new_empty(values.shape if wanted[1] else [0])
    dbias = x.new_empty([n_models, out_features] if wanted[2] else [0])
    return dx, dvalues, dbias


torch.library.register_fake("toykern::sparse_linear_forward", _forward_fake)
torch.library.register_fake("toykern::sparse_linear_backward", _backward_fake)
