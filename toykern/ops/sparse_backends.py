"""The three ways to multiply by a sparse matrix on a device, as plain functions of tensors.

| back end | forward | gradient of x | gradient of the values |
|---|---|---|---|
| dense | values scattered into a dense W, a product | dy times that W | dyᵀx, gathered at the connections |
| slots | our kernel over the connections | the same, by column | the same connections alone |
| groups | shared inputs gathered, a product for each group | products, scattered back | products, picked |

Products are torch's (cuBLAS, at the precision that torch is set to); what is around them are the kernels of
csrc/cuda/sparse_*. None uses atomics on floats, waits for the device or copies to the host; shapes of all
that is allocated follow from the arguments' shapes, so that a CUDA graph can hold them.

Tensors on the CPU run the same device source in lock step on the host (csrc/cuda/warp.h). That is how the
tests see these functions without a GPU; it is slow, and layers on the CPU use other kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toykern import _native
from toykern.native.address import address

BACKENDS = ("dense", "slots", "groups")
"""What `backend` may be, beside "auto"."""

SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}

_host_descending = False  # tests run the host's lanes from the last to the first


@dataclass(frozen=True)
class Connections:
    """A stack of sparse matrices `[n_models, out_features, in_features]`; tensors contiguous, on one device.

    Attributes:
        row_start, column, column_start, row, slot: as in `toykern.ops.sparse_index.SparseIndex`. The last
            three may be None where no gradient of x is asked of the slots back end.
        group: that many neighbouring rows share their columns; it divides out_features.
        width: for the groups back end, at least the connections of any row.
    """

    in_features: int
    row_start: torch.Tensor
    column: torch.Tensor
    column_start: torch.Tensor | None = None
    row: torch.Tensor | None = None
    slot: torch.Tensor | None = None
    group: int = 1
    width: int = 0

    @property
    def n_models(self) -> int:
        """How many matrices."""
        return self.row_start.shape[0]

    @property
    def out_features(self) -> int:
        """Rows of each."""
        return self.row_start.shape[1] - 1

    @property
    def capacity(self) -> int:
        """Slots of each."""
        return self.column.shape[0] // self.n_models


def forward(
    backend: str, x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, c: Connections, relu: bool
) -> torch.Tensor:
    """y = act(x Wᵀ + b), `[n_models, batch, out]`; x `[n_models | 1, batch, in]`. All contiguous."""
    if backend == "slots":
        y = x.new_empty(c.n_models, x.shape[1], c.out_features)
        task = _linear_task(x, values, c)
        task.bias = 0 if bias is None else address("bias", bias, x.dtype, x.device)
        task.relu, task.y = relu, address("y", y, x.dtype, x.device)
        _call("sparse_slots_forward", task, x.device)
        return y
    if backend == "dense":
        weight, inputs = scattered(values, c), x.expand(c.n_models, -1, -1)
        if bias is None:
            y = torch.bmm(inputs, weight.mT)
        elif c.n_models == 1:
            y = torch.addmm(bias[0], inputs[0], weight[0].t()).unsqueeze(0)
        else:
            y = torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)
    else:
        _check_groups(c)
        y = _group_products(_gathered(x, c), _group_weights(values, c).mT, c)
        if bias is not None:
            y.add_(bias.unsqueeze(1))
    return y.relu_() if relu else y


def backward(
    backend: str,
    dy: torch.Tensor,
    x: torch.Tensor,
    values: torch.Tensor,
    c: Connections,
    want_x: bool,
    want_values: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx `[n_models, batch, in]`, dvalues, the dense gradient of W where it came about), None if not wanted.

    dy is the gradient behind the activation. The slack of dvalues is 0.
    """
    if backend == "slots":
        return _slots_backward(dy, x, values, c, want_x, want_values)
    dx = dvalues = dense = None
    if backend == "dense":
        if want_x:
            dx = torch.bmm(dy, scattered(values, c))
        if want_values:
            dense = torch.bmm(dy.mT, x.expand(c.n_models, -1, -1))
            dvalues = gathered_at(dense, c)
        return dx, dvalues, dense
    _check_groups(c)
    by_group = _by_group(dy, c)
    if want_x:
        inputs = torch.bmm(by_group, _group_weights(values, c))
        dx = x.new_empty(c.n_models, *x.shape[1:])
        _call("sparse_group_inputs_gradient", _groups_task(inputs, dx, x, c), x.device)
    if want_values:
        gradient = torch.bmm(by_group.mT, _gathered(x, c))
        dvalues = gathered_at(gradient.view(c.n_models, c.out_features, c.width), c, packed=True)
    return dx, dvalues, None


def scattered(values: torch.Tensor, c: Connections, *, packed: bool = False) -> torch.Tensor:
    """W with its zeros, `[n_models, out, in]`; `packed`: `[n_models, out, width]`, rows from the left."""
    dense = values.new_empty(c.n_models, c.out_features, c.width if packed else c.in_features)
    _call("sparse_scatter", _dense_task(values, dense, dense, c, packed), values.device)
    return dense


def gathered_at(dense: torch.Tensor, c: Connections, *, packed: bool = False) -> torch.Tensor:
    """The numbers of such a tensor at the connections, `[n_models · capacity]`, 0 in the slack."""
    values = dense.new_empty(c.column.shape[0])
    dense = dense.contiguous()
    _call("sparse_gather", _dense_task(dense, values, dense, c, packed), dense.device)
    return values


# --- slots ------------------------------------------------------------------------------------------------


def _slots_backward(
    dy: torch.Tensor, x: torch.Tensor, values: torch.Tensor, c: Connections, want_x: bool, want_values: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
    dx = dvalues = None
    task = _linear_task(x, values, c)
    task.dy = address("dy", dy, x.dtype, x.device)
    if want_x:
        if c.column_start is None or c.row is None or c.slot is None:
            raise ValueError("the gradient of x needs the connections by column too")
        dx = x.new_empty(c.n_models, *x.shape[1:])
        task.column_start = address("column_start", c.column_start, torch.int64, x.device)
        task.row = address("row", c.row, torch.int32, x.device)
        task.slot = address("slot", c.slot, torch.int32, x.device)
        task.dx = address("dx", dx, x.dtype, x.device)
        _call("sparse_slots_input_gradient", task, x.device)
    if want_values:
        dvalues = torch.empty_like(values)
        task.dvalues = address("dvalues", dvalues, x.dtype, x.device)
        size = _native.sparse_slots_workspace(task)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        _call("sparse_slots_values_gradient", task, x.device, workspace)
    return dx, dvalues, None


def _linear_task(x: torch.Tensor, values: torch.Tensor, c: Connections) -> Any:
    batch = x.shape[1]
    task = _native.SparseLinearParams(
        c.n_models, c.out_features, c.in_features, c.capacity, batch, SCALARS[x.dtype], 1
    )
    task.x_model_stride = batch * c.in_features if x.shape[0] == c.n_models else 0
    task.x = address("x", x, x.dtype, x.device)
    task.values = address("values", values, x.dtype, x.device)
    task.row_start = address("row_start", c.row_start, torch.int64, x.device)
    task.column = address("column", c.column, torch.int32, x.device)
    return task


# --- groups -----------------------------------------------------------------------------------------------


def _check_groups(c: Connections) -> None:
    if c.group < 1 or c.out_features % c.group or c.width < 1:
        raise ValueError(
            f"the groups back end needs a group that divides out_features ({c.out_features}) and a width, "
            f"not group={c.group} and width={c.width}"
        )


def _groups_task(source: torch.Tensor, target: torch.Tensor, x: torch.Tensor, c: Connections) -> Any:
    batch = x.shape[1]
    task = _native.SparseGroups(
        c.n_models, c.out_features, c.in_features, c.capacity, batch, c.group, c.width, SCALARS[x.dtype]
    )
    task.x_model_stride = batch * c.in_features if x.shape[0] == c.n_models else 0
    task.row_start = address("row_start", c.row_start, torch.int64, x.device)
    task.column = address("column", c.column, torch.int32, x.device)
    task.source = address("source", source, x.dtype, x.device)
    task.target = address("target", target, x.dtype, x.device)
    return task


def _gathered(x: torch.Tensor, c: Connections) -> torch.Tensor:
    """The inputs of every group, `[n_models · groups, batch, width]`."""
    out = x.new_empty(c.n_models * (c.out_features // c.group), x.shape[1], c.width)
    _call("sparse_group_inputs", _groups_task(x, out, x, c), x.device)
    return out


def _group_weights(values: torch.Tensor, c: Connections) -> torch.Tensor:
    """The weights of every group, `[n_models · groups, group, width]`."""
    return scattered(values, c, packed=True).view(c.n_models * c.out_features // c.group, c.group, c.width)


def _by_group(dy: torch.Tensor, c: Connections) -> torch.Tensor:
    """`[n_models, batch, out]` as `[n_models · groups, batch, group]`; a view where there is one model."""
    groups = c.out_features // c.group
    parts = dy.view(c.n_models, dy.shape[1], groups, c.group).transpose(1, 2)
    return parts.reshape(c.n_models * groups, dy.shape[1], c.group) if c.n_models > 1 else parts[0]


def _group_products(inputs: torch.Tensor, weights: torch.Tensor, c: Connections) -> torch.Tensor:
    """Every group's product, put side by side: `[n_models, batch, out]`."""
    batch = inputs.shape[1]
    y = inputs.new_empty(c.n_models, batch, c.out_features)
    parts = y.view(c.n_models, batch, c.out_features // c.group, c.group).transpose(1, 2)
    if c.n_models == 1:  # cuBLAS writes to the columns of y
        torch.bmm(inputs, weights, out=parts[0])
    else:
        parts.copy_(torch.bmm(inputs, weights).view(parts.shape))
    return y


# --- the kernels ------------------------------------------------------------------------------------------


def _dense_task(
    source: torch.Tensor, target: torch.Tensor, dense: torch.Tensor, c: Connections, packed: bool
) -> Any:
    task = _native.SparseDense(c.n_models, c.out_features, dense.shape[2], c.capacity, source.element_size())
    dtype, device = source.dtype, source.device
    task.row_start = address("row_start", c.row_start, torch.int64, device)
    task.column = 0 if packed else address("column", c.column, torch.int32, device)
    task.source = address("source", source, dtype, device)
    task.target = address("target", target, dtype, device)
    return task


def _call(name: str, task: Any, device: torch.device, workspace: torch.Tensor | None = None) -> None:
    """The kernel on torch's current stream of the device, or on the host for tensors there."""
    if device.type == "cuda":
        launch = _native.SparseLaunch(device.index, torch.cuda.current_stream(device).cuda_stream)
        if workspace is not None:
            launch.workspace = address("workspace", workspace, torch.uint8, device)
        getattr(_native.cuda, name)(task, launch)
        return
    launch = _native.SparseLaunch(-1, 0)
    if workspace is not None:
        launch.workspace = address("workspace", workspace, torch.uint8, device)
    getattr(_native.device_source_on_host, name)(task, launch, _host_descending)
