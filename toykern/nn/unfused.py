"""What the kernels compute, by torch operations, for `fused=False`: any derivative of any order.

The same mathematics in the same dtypes, from `toykern.nn.two_layer`. Memory is that of ordinary operations:
codes and outputs of the whole batch are kept, and sparse weights are dense.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.network.losses import Objective
from toykern.nn.two_layer import Tensors, codes_of, outputs_of, summed_loss


def unfused_output(x: torch.Tensor, tensors: Tensors, described: Any) -> torch.Tensor:
    """y `[models, batch, n_features]` in the dtype of x, `[models or 1, batch, n_features]`."""
    with torch.autocast(x.device.type, enabled=False):
        _, output = _codes_and_output(x, tensors, described)
        return output.to(x.dtype)


def unfused_loss(
    x: torch.Tensor,
    tensors: Tensors,
    described: Any,
    importance: torch.Tensor,
    l1: torch.Tensor | None,
    wanted: torch.Tensor,
    objective: Objective,
) -> torch.Tensor:
    """The loss of each model `[models]`, in the dtype of importance `[models or 1, n_features]`.

    `wanted` is the target, shaped as x may be.
    """
    with torch.autocast(x.device.type, enabled=False):
        codes, output = _codes_and_output(x, tensors, described)
        return summed_loss(codes, output, wanted, importance, l1, objective)


def unfused_weight(
    values: torch.Tensor, row_start: torch.Tensor, column: torch.Tensor, in_features: int
) -> torch.Tensor:
    """Sparse weights with their zeros, `[n_models, out_features, in_features]`.

    values, column: `[n_models · capacity]`, of which a model's first row_start[−1] are connections; row_start
    `[n_models, out_features + 1]`.

    >>> start, column = torch.tensor([[0, 2, 3]]), torch.tensor([0, 1, 0, 0], dtype=torch.int32)
    >>> unfused_weight(torch.tensor([1.0, 2.0, 3.0, 0.0]), start, column, 2)
    tensor([[[1., 2.],
             [3., 0.]]])
    """
    n_models, out_features = row_start.shape[0], row_start.shape[1] - 1
    slots = torch.arange(column.shape[0] // n_models, dtype=torch.int64, device=column.device)
    slots = slots.expand(n_models, -1).contiguous()
    row = torch.searchsorted(row_start[:, 1:].contiguous(), slots, right=True)  # out_features in the slack
    model = torch.arange(n_models, dtype=torch.int64, device=column.device).unsqueeze(1)
    place = (model * (out_features + 1) + row).view(-1) * in_features + column.long()
    flat = values.new_zeros(n_models * (out_features + 1) * in_features)
    dense = flat.index_put((place,), values, accumulate=True)  # an order of sums only where nothing is kept
    return dense.view(n_models, out_features + 1, in_features)[:, :out_features]


def _codes_and_output(x: torch.Tensor, tensors: Tensors, described: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype == torch.bfloat16:
        x, tensors = x.float(), {name: tensor.float() for name, tensor in tensors.items()}
    codes = codes_of(x, tensors, described)
    return codes, outputs_of(codes, None, tensors, described)
