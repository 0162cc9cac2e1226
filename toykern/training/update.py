"""What the kernels are told of an optimiser: options, states, and numbers per model and per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toykern.data.philox import MAX_STEP
from toykern.native.address import address
from toykern.native.numbers import number
from toykern.network.specification import NetworkSpec
from toykern.training.optim import Optimizer, UnitNorm


def set_update(
    params: Any,
    optimizer: Optimizer,
    network: NetworkSpec,
    rates: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    device: torch.device,
) -> None:
    """Tell `params` (a native TrainParams) what a step of `optimizer` is.

    `rates` holds what `optimizer.rates()` names, float64 `[models]`, and `state` each "<tensor>/<state>";
    both on `device`, where they must live as long as the kernels are called.
    """
    params.optimizer = number("optimizer", optimizer.name)
    for name, value in optimizer.kernel_options().items():
        setattr(params, name, value)
    roles = {tensor.name: tensor.role for tensor in network.parameters}
    for tensor, role in roles.items():
        for name in optimizer.state_names:
            found = address(f"{tensor}/{name}", state[f"{tensor}/{name}"], torch.float32, device)
            params.set_state(role, name, found)
    for name, values in rates.items():
        found = address(name, values, torch.float64, device)
        kind, _, tensor = name.partition("/")
        if tensor:
            params.set_rate(roles[tensor], kind, found)
        elif kind == "bias_decay":
            assert optimizer.bias_decay is not None
            params.set_rate(roles[optimizer.bias_decay.tensor], "shrink", found)
            until = optimizer.bias_decay.until
            params.shrink_until = MAX_STEP if until is None else min(until, MAX_STEP)
        elif kind != "localization" or optimizer.state_names:
            setattr(params, kind, found)
    if isinstance(optimizer.unit_norm, UnitNorm):
        params.set_unit_norm(roles[optimizer.unit_norm.tensor])
        params.remove_parallel = optimizer.unit_norm.remove_parallel
