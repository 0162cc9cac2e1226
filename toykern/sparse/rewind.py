"""What a lottery ticket goes back to: the weights and the optimisers' state of an earlier step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from toykern.sparse.layer import is_sparse_layer

if TYPE_CHECKING:
    from toykern.sparse.attached import AttachedTopology


def _others(attached: AttachedTopology) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the model that are not of a sparse layer's slots, by name."""
    values = {id(layer.module.values) for layer in attached.attached_layers}
    found: dict[str, torch.Tensor] = {
        name: p for name, p in attached.model.named_parameters() if id(p) not in values
    }
    for prefix, module in attached.model.named_modules():
        if is_sparse_layer(module):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def keep_weights(attached: AttachedTopology) -> None:
    """Copy all weights and states of a model and its optimisers; those of slots go to the layers, where they
    follow their connections."""
    attached.memory["weights"] = {name: t.detach().clone() for name, t in _others(attached).items()}
    attached.memory["states"] = {
        name: [_copied_state(optimizer.state.get(parameter, {})) for optimizer in attached.optimizers]
        for name, parameter in attached.model.named_parameters()
    }
    for layer in attached.attached_layers:
        values = layer.module.values
        layer.slot_memory = {"values": values.detach().clone()}
        for i, optimizer in enumerate(attached.optimizers):
            for key, entry in optimizer.state.get(values, {}).items():
                if isinstance(entry, torch.Tensor) and entry.shape == values.shape:
                    layer.slot_memory[f"{i}.{key}"] = entry.detach().clone()


def put_weights_back(attached: AttachedTopology, with_optimizer: bool) -> None:
    """Weights, and with the optimisers their state too, are again what they were when they were kept."""
    with torch.no_grad():
        for name, tensor in _others(attached).items():
            tensor.copy_(attached.memory["weights"][name])
        for layer in attached.attached_layers:
            layer.module.values.copy_(layer.slot_memory["values"])
    if not with_optimizer:
        return
    of_layer = {id(layer.module.values): layer for layer in attached.attached_layers}
    for name, parameter in attached.model.named_parameters():
        owner = of_layer.get(id(parameter))
        for i, optimizer in enumerate(attached.optimizers):
            kept = _copied_state(attached.memory["states"][name][i])
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
