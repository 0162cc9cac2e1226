"""What a lottery ticket goes back to: the weights and the optimisers' state of an earlier step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from toykern.sparse.layer import AttachedLayer, is_sparse_layer


def _others(model: nn.Module, layers: Sequence[AttachedLayer]) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the model that are not of a sparse layer's slots, by name."""
    values = {id(layer.module.values) for layer in layers}
    found: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if id(p) not in values}
    for prefix, module in model.named_modules():
        if is_sparse_layer(module):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def keep_weights(
    model: nn.Module, optimizers: Sequence[Any], layers: Sequence[AttachedLayer]
) -> dict[str, Any]:
    """Copies of all weights and states of a model and its optimisers, by "weights" and "states"; those of
    slots go to the layers, where they follow their connections."""
    kept = {
        "weights": {name: t.detach().clone() for name, t in _others(model, layers).items()},
        "states": {
            name: [_copied_state(optimizer.state.get(parameter, {})) for optimizer in optimizers]
            for name, parameter in model.named_parameters()
        },
    }
    for layer in layers:
        values = layer.module.values
        layer.slot_memory = {"values": values.detach().clone()}
        for i, optimizer in enumerate(optimizers):
            for key, entry in optimizer.state.get(values, {}).items():
                if isinstance(entry, torch.Tensor) and entry.shape == values.shape:
                    layer.slot_memory[f"{i}.{key}"] = entry.detach().clone()
    return kept


def put_weights_back(
    memory: dict[str, Any],
    model: nn.Module,
    optimizers: Sequence[Any],
    layers: Sequence[AttachedLayer],
    with_optimizer: bool,
) -> None:
    """Weights, and with the optimisers their state too, are again what they were when they were kept."""
    with torch.no_grad():
        for name, tensor in _others(model, layers).items():
            tensor.copy_(memory["weights"][name])
        for layer in layers:
            layer.module.values.copy_(layer.slot_memory["values"])
    if not with_optimizer:
        return
    of_layer = {id(layer.module.values): layer for layer in layers}
    for name, parameter in model.named_parameters():
        owner = of_layer.get(id(parameter))
        for i, optimizer in enumerate(optimizers):
            kept = _copied_state(memory["states"][name][i])
            if owner is not None:
                prefix = f"{i}."
                for key, tensor in owner.slot_memory.items():
                    if key.startswith(prefix):
                        kept[key.removeprefix(prefix)] = tensor.clone()
            for (
                key,
                entry,
            ) in kept.items():  # kept on the CPU where a checkpoint was loaded there; a step's count may stay
                if isinstance(entry, torch.Tensor) and entry.shape == parameter.shape:
                    kept[key] = entry.to(parameter.device)
            if kept:
                optimizer.state[parameter] = kept
            else:
                optimizer.state.pop(parameter, None)


def _copied_state(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: entry.detach().clone() if isinstance(entry, torch.Tensor) else entry
        for key, entry in state.items()
    }
