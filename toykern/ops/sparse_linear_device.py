"""Sparse layers on a GPU: ops for torch, gradients, and the choice of a back end.

`toykern.ops.sparse_linear.sparse_linear` comes here with tensors on a CUDA device. Two ops, beside those of
the CPU because they carry the back end and the groups:

    sparse_linear_device_forward(x, values, bias, row_start, column, column_start, row, slot, relu, backend,
        group, width) -> y
    sparse_linear_device_backward(dy, x, values, y, …, relu, backend, group, width, wanted, capture)
        -> (dx, dvalues, dbias); those not wanted are empty

Both also take tensors on the CPU, for the tests: toykern.ops.sparse_backends says how.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.native.devices import check_kernels
from toykern.ops import sparse_backends
from toykern.ops.backend_choice import choose
from toykern.ops.sparse_backends import BACKENDS, Connections
from toykern.ops.sparse_index import SparseIndex, check_contents
from toykern.ops.sparse_linear_schema import CAPTURES, LIBRARY, check_backward, check_forward

_SHARED = (
    "Tensor row_start, Tensor column, Tensor column_start, Tensor row, Tensor slot, bool relu, str backend"
)
LIBRARY.define(
    f"sparse_linear_device_forward(Tensor x, Tensor values, Tensor? bias, {_SHARED}, int group, int width) "
    "-> Tensor"
)
LIBRARY.define(
    f"sparse_linear_device_backward(Tensor dy, Tensor x, Tensor values, Tensor? y, {_SHARED}, int group, "
    "int width, bool[3] wanted, int capture) -> (Tensor, Tensor, Tensor)"
)


def sparse_linear_on_device(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    index: SparseIndex,
    relu: bool,
    capture: int,
    backend: str,
    group: int,
    width: int,
) -> torch.Tensor:
    """`toykern.ops.sparse_linear.sparse_linear` behind its cast for autocast, by the ops of this file."""
    if backend not in ("auto", *BACKENDS):
        allowed = ", ".join(map(repr, ("auto", *BACKENDS)))
        raise ValueError(f"backend must be one of {allowed}, not {backend!r}")
    if backend == "groups" and (group < 2 or width < 1):
        raise ValueError("backend='groups' needs rows that share their inputs: make the layer with group=…")
    if bias is not None and bias.ndim == 1 and index.row_start.shape[0] == 1:
        bias = bias.unsqueeze(0)
    needed = x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    stacked, rest = _stacked(x, index.row_start), (values, bias, *index[1:], relu, backend, group, width)
    if torch.is_grad_enabled() and needed:
        y = _SparseLinearOnDevice.apply(stacked, *rest, capture)
    else:
        y = torch.ops.toykern.sparse_linear_device_forward(stacked, *rest)
    return y if stacked is x else y.reshape(*x.shape[:-1], y.shape[-1])


def _stacked(x: torch.Tensor, row_start: torch.Tensor) -> torch.Tensor:
    """`[1, batch, in_features]` where one model takes x of any shape, else x itself."""
    if row_start.shape[0] > 1 or x.ndim < 1 or (x.ndim == 3 and x.shape[0] == 1):
        return x
    return x.reshape(1, -1, x.shape[-1])


class _SparseLinearOnDevice(torch.autograd.Function):
    """The gradients; a second derivative is refused."""

    @staticmethod
    def forward(ctx: Any, x: Any, values: Any, bias: Any, *rest: Any) -> torch.Tensor:
        index, (relu, backend, group, width, capture) = rest[:5], rest[5:]
        y = torch.ops.toykern.sparse_linear_device_forward(
            x, values, bias, *index, relu, backend, group, width
        )
        ctx.save_for_backward(x, values, y if relu else None, *index)
        ctx.options, ctx.capture = (relu, backend, group, width), capture
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, y, *index = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        made = torch.ops.toykern.sparse_linear_device_backward(
            dy, x, values, y, *index, *ctx.options, wanted, ctx.capture
        )
        return (*(g if want else None for g, want in zip(made, wanted, strict=True)), *[None] * 10)


def _forward(
    x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, column_start: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, relu: bool,
    backend: str, group: int, width: int,
) -> torch.Tensor:  # fmt: skip
    _check_stack(x)
    check_forward(x, values, bias, row_start, column)
    c = _connections(x, row_start, column, column_start, row, slot, group, width)
    x, values = x.contiguous(), values.contiguous()
    name = choose(x, values, c) if backend == "auto" else backend
    return sparse_backends.forward(name, x, values, None if bias is None else bias.contiguous(), c, relu)


def _backward(
    dy: torch.Tensor, x: torch.Tensor, values: torch.Tensor, y: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, column_start: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, relu: bool,
    backend: str, group: int, width: int, wanted: list[bool], capture: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    _check_stack(x)
    check_forward(x, values, None, row_start, column)
    check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    c = _connections(x, row_start, column, column_start, row, slot, group, width)
    want_x, want_values, want_bias = wanted
    dy = (dy if y is None or not relu else torch.where(y == 0, 0, dy)).contiguous()
    x, values = x.contiguous(), values.contiguous()
    name = choose(x, values, c) if backend == "auto" else backend
    dx, dvalues, dense = sparse_backends.backward(name, dy, x, values, c, want_x, want_values)
    if dx is not None and x.shape[0] != c.n_models:  # one batch served all models
        dx = dx.sum(dim=0, keepdim=True)
    collector = CAPTURES.get(capture)
    if collector is not None:
        if dense is not None:  # there already, for growth criteria to look at
            collector.dense.append(dense)
        else:
            collector.passes.append((x.detach(), dy.detach()))
    return (
        x.new_empty(0) if dx is None else dx,
        values.new_empty(0) if dvalues is None else dvalues,
        dy.sum(dim=1) if want_bias else x.new_empty(0),
    )


def _check_stack(x: torch.Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must have the shape [n_models, batch, in_features], not {list(x.shape)}")


# --- the ops of the CPU, for tensors on a GPU -------------------------------------------------------------


def _plain_forward(
    x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, relu: bool,
) -> torch.Tensor:  # fmt: skip
    """The op that carries no index by column: by slots."""
    _, out_features = check_forward(x, values, bias, row_start, column)
    check_kernels(x.device)
    stacked = _stacked(x, row_start)
    check_contents(row_start, column, x.shape[-1], "column")
    c = Connections(x.shape[-1], row_start.contiguous(), column.contiguous())
    y = sparse_backends.forward(
        "slots", stacked.contiguous(), values.contiguous(), None if bias is None else bias.contiguous(), c,
        relu,
    )  # fmt: skip
    return y if stacked is x else y.reshape(*x.shape[:-1], out_features)


def _plain_backward(
    dy: torch.Tensor, x: torch.Tensor, values: torch.Tensor, y: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, column_start: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, relu: bool,
    wanted: list[bool], capture: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    stacked = _stacked(x, row_start)
    dx, dvalues, dbias = _backward(
        _stacked(dy, row_start), stacked, values, None if y is None else _stacked(y, row_start), row_start,
        column, column_start, row, slot, relu, "slots", 1, 0, wanted, capture,
    )  # fmt: skip
    return dx if stacked is x or not wanted[0] else dx.reshape(x.shape), dvalues, dbias


# --- what they are given ----------------------------------------------------------------------------------

_USABLE: set[int | None] = set()  # GPUs that the kernels are known to run on


def _connections(
    x: torch.Tensor, row_start: torch.Tensor, column: torch.Tensor, column_start: torch.Tensor,
    row: torch.Tensor, slot: torch.Tensor, group: int, width: int,
) -> Connections:  # fmt: skip
    """The index with its numbers checked, where these tensors have not been already."""
    if x.device.type == "cuda" and x.device.index not in _USABLE:
        check_kernels(x.device)
        _USABLE.add(x.device.index)
    n_models, out_features, in_features = row_start.shape[0], row_start.shape[1] - 1, x.shape[2]
    for name, tensor, shape in (
        ("column_start", column_start, [n_models, in_features + 1]),
        ("row", row, list(column.shape)),
        ("slot", slot, list(column.shape)),
    ):
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {list(tensor.shape)}")
    check_contents(row_start, column, in_features, "column")
    check_contents(column_start, row, out_features, "row")
    check_contents(column_start, slot, column.shape[0] // n_models, "slot")
    row_start, column, column_start, row, slot = (
        t.contiguous() for t in (row_start, column, column_start, row, slot)
    )
    return Connections(in_features, row_start, column, column_start, row, slot, group, width)


# --- shapes without numbers, for torch.compile ------------------------------------------------------------


def _forward_fake(
    x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, column_start: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, relu: bool,
    backend: str, group: int, width: int,
) -> torch.Tensor:  # fmt: skip
    n_models, out_features = check_forward(x, values, bias, row_start, column)
    return x.new_empty(n_models, x.shape[1], out_features)


def _backward_fake(
    dy: torch.Tensor, x: torch.Tensor, values: torch.Tensor, y: torch.Tensor | None, row_start: torch.Tensor,
    column: torch.Tensor, column_start: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, relu: bool,
    backend: str, group: int, width: int, wanted: list[bool], capture: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    n_models, out_features = check_forward(x, values, None, row_start, column)
    check_backward(dy, x, y, row_start, column, column_start, row, slot, relu)
    return (
        x.new_empty(x.shape if wanted[0] else [0]),
        values.new_empty(values.shape if wanted[1] else [0]),
        x.new_empty([n_models, out_features] if wanted[2] else [0]),
    )


for _device in ("CUDA", "CPU"):
    LIBRARY.impl("sparse_linear_device_forward", _forward, _device)
    LIBRARY.impl("sparse_linear_device_backward", _backward, _device)
LIBRARY.impl("sparse_linear_forward", _plain_forward, "CUDA")
LIBRARY.impl("sparse_linear_backward", _plain_backward, "CUDA")
torch.library.register_fake("toykern::sparse_linear_device_forward", _forward_fake)
torch.library.register_fake("toykern::sparse_linear_device_backward", _backward_fake)
