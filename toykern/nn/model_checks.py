"""What about a module would be passed over by kernels that read its parameters and never call it.

They know the network that the classes describe. Whatever else was put into a module (a method of one's own, a
hook, a parametrisation, a parameter that is no plain tensor) has no place there, and is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_METHODS = ("forward", "loss", "__call__")
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def check_as_described(model: Any, known: type[nn.Module], trains: bool) -> None:
    """TypeError or ValueError where `model` computes something else than the class `known` says.

    With `trains`, hooks on gradients count too; without, nothing of them would be seen anyway.
    """
    for name in _METHODS:
        if name in vars(model) or getattr(type(model), name) is not getattr(known, name):
            raise ValueError(
                f"model has a method {name} of its own, which the kernels would not call; train and evaluate "
                "it in a loop of your own"
            )
    if parametrize.is_parametrized(model):
        names = ", ".join(sorted(model.parametrizations))
        raise ValueError(
            f"model has parametrizations of {names}, which the kernels would not apply; use a loop of your "
            "own, or torch.nn.utils.parametrize.remove_parametrizations"
        )
    kinds = _FORWARD_HOOKS + (_BACKWARD_HOOKS if trains else ())
    for kind in kinds:
        _refuse_hooks(model, "model", kind)
    for name, parameter in model.parameters_by_name().items():
        if type(parameter).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise TypeError(
                f"model.{name} must be a plain tensor, not a {type(parameter).__name__}, which has no memory "
                "of its own that the kernels could use"
            )
        for kind in _PARAMETER_HOOKS if trains else ():
            _refuse_hooks(parameter, f"model.{name}", kind)


def _refuse_hooks(owner: Any, name: str, kind: str) -> None:
    hooks = getattr(owner, kind, None)
    if hooks:
        first = next(iter(hooks.values()))
        described = getattr(first, "__qualname__", type(first).__qualname__)
        raise ValueError(
            f"{name} has a hook, {described} ({kind.strip('_').replace('_', ' ')}), which the kernels would "
            "not call; remove it, or use a loop of your own"
        )
