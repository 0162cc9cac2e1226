"""What ops with gradients of their own do under torch.func (grad, vjp, jacrev, vmap) and in forward mode.

Kernels give one derivative, in reverse. `torch.func.grad` and what is made of it take it from an
`autograd.Function` with a `setup_context` and a `jvp`. Applying one with fifteen arguments costs 100 µs more
than one without (measured), and torch.compile takes none with a `jvp`; so ops keep it apart from the one of
ordinary calls, and `transforming` tells which is wanted. Forward mode and second derivatives are errors that
say what to do instead.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

_INSTEAD = "Give fused=False, which computes the same by torch operations"


def transforming() -> bool:
    """Whether a transform of torch.func or forward mode is at work; torch.compile looks after its own.

    >>> torch.func.vmap(lambda x: x + transforming())(torch.zeros(2))
    tensor([1., 1.])
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def requires_grad(tensor: torch.Tensor) -> bool:
    """Whether the tensor, or one that a transform's stands for, requires a gradient.

    A tensor of `vmap` says no, although what it is a batch of may be differentiated.
    """
    functorch = torch._C._functorch
    while not tensor.requires_grad and functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def once(gradient: torch.Tensor | None, *sources: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient, whose own derivative with respect to any of the sources is an error.

    Where autograd cannot ask for one, it is the gradient itself.
    """
    if gradient is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient
    found: torch.Tensor = _FirstDerivative.apply(gradient, *(s for s in sources if s is not None))
    return found


def no_forward_mode(ctx: Any, *grad_inputs: Any) -> Any:
    """The `jvp` of an op without one."""
    raise RuntimeError(
        "the fused layers have no derivative in forward mode (torch.func.jvp, jacfwd, hessian): their "
        f"kernels give gradients, in reverse. {_INSTEAD}"
    )


def not_transformed(where: str) -> RuntimeError:
    """For sparse layers, which have kernels for some transforms only."""
    return RuntimeError(f"sparse layers have no kernels {where}. {_INSTEAD}; stacks of layers are n_models=…")


class _FirstDerivative(torch.autograd.Function):
    """The identity, for gradients that are not differentiable themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            "the fused layers have no second derivative: their kernels give the gradient only. "
            f"{_INSTEAD}, where you need one"
        )

    jvp = staticmethod(no_forward_mode)
