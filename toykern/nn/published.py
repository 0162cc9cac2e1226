"""Layouts that others publish weights in, to and from the stacks of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import check_int, describe

LINEAR = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
"""An untied network as two `torch.nn.Linear`, by the names of their state."""

TIED = ("weight", "bias", "hidden_bias")
"""A tied one as the notebooks of Toy Models of Superposition have it, with `weight` [features, hidden]."""

FIXED = ("embedding", "unembedding")


def published(
    parameters: Mapping[str, torch.Tensor], fixed: Mapping[str, torch.Tensor], model: Any, n_models: int
) -> dict[str, torch.Tensor]:
    """The published layout of a stack's tensors by name: copies, `[models, …]`, or of one model alone.

    Tensors that a network does not have are left out.
    """
    names = {
        "encoder": "linear1.weight",
        "hidden_bias": "linear1.bias",
        "decoder": "linear2.weight",
        "bias": "linear2.bias",
    }
    if "weight" in parameters:
        found = {name: parameters[name] for name in TIED if name in parameters}
        found["weight"] = found["weight"].mT
    else:
        found = {names[name]: value for name, value in parameters.items()}
        found = {name: found[name] for name in LINEAR if name in found}
    found |= {name: held.expand(n_models, -1, -1) for name, held in fixed.items()}
    if model is not None:
        at = check_int("model", model, minimum=0, maximum=n_models - 1)
        found = {name: value[at] for name, value in found.items()}
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in found.items()
    }


def read(weights: Any) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors by our own names, float64 `[models, …]`, and whether the network is tied, of a dictionary in
    one of the layouts, stacked or of one model.

    Raises:
        TypeError, ValueError: it is none, or its shapes do not fit together; by the name of the entry.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dictionary of tensors, not {describe(weights)}")
    tied = "weight" in weights
    allowed = (*(TIED if tied else LINEAR), *FIXED)
    needed = {"weight"} if tied else {"linear1.weight", "linear2.weight"}
    if not needed <= weights.keys() or not weights.keys() <= set(allowed):
        raise ValueError(
            f"weights must have the entries {', '.join(sorted(needed))} and may have others of "
            f"{', '.join(allowed)}, not {', '.join(map(str, weights)) or 'none'}"
        )
    tensors = {name: as_tensor(f"weights[{name!r}]", value, torch.float64) for name, value in weights.items()}
    first = "weight" if tied else "linear1.weight"
    stacked = tensors[first].ndim == 3
    found, names = {}, names_of(tied)
    for name, tensor in tensors.items():
        wanted = (1 if name.endswith("bias") else 2) + stacked
        if tensor.ndim != wanted or 0 in tensor.shape:
            raise ValueError(
                f"weights[{name!r}] must have {wanted} dimensions, none of them empty, since "
                f"weights[{first!r}] has {tensors[first].ndim}, not the shape {list(tensor.shape)}"
            )
        found[names[name]] = tensor if stacked else tensor.unsqueeze(0)
    if tied:
        found["weight"] = found["weight"].mT
    return found, tied


def names_of(tied: bool) -> dict[str, str]:
    """Our own names by the published ones."""
    ours = TIED if tied else ("encoder", "hidden_bias", "decoder", "bias")
    return dict(zip((*(TIED if tied else LINEAR), *FIXED), (*ours, *FIXED), strict=True))
