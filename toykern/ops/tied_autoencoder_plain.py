"""Plain calls of the autoencoder layer on the CPU: straight into the kernels, past PyTorch's dispatcher.

The step of one tiny model is a few microseconds of arithmetic; what it costs is Python and the dispatcher
around it. So what follows from a call's shapes, dtypes and options is found once and kept, a plan, and a call
takes addresses, makes room for its results and goes: one native call, one node of autograd.

A call is *plain* where nothing has to see the operator (a trace, a mode, a transform, autocast), x takes no
gradient, no other tensor but the parameters does, and each is what the kernels read: contiguous, on the CPU,
of the weights' dtype. Whatever is not plain is answered by None and goes by way of the operators
(tied_autoencoder_autograd.py), which take all that the layer takes and say what is wrong with the rest. No
check is left out: sizes are those of the plan, or there is none; every tensor goes through the gate of all
addresses (toykern/native/address.py); entries are looked at. Both ways call the same kernels, so the bits are
the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from toykern import _native
from toykern.native.address import address_of_own, usual_address
from toykern.native.threads import kernel_threads
from toykern.network.activations import ACTIVATIONS, option_of
from toykern.network.losses import LAYER_LOSSES, LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import Options
from toykern.ops.gate import FLOAT_DTYPES
from toykern.ops.tied_autoencoder_autograd import SLOPE_FROM_OUTPUT, are_ones, scaled
from toykern.ops.tied_autoencoder_call import TASKS, Optional
from toykern.ops.transforms import once, transforming

Tensors = Sequence[Optional]
"""Encoder, decoder (None when tied), bias and hidden bias."""

_HELD_PLANS = 1024
_HELD_NUMBERS = 64  # of importance and of l1, whose tensors are kept,
_LONGEST_ROW = 4096  # where they are no longer than this
_NAMES = [str, str, str]


def _seen() -> bool:
    """Whether something is at work that has to see operators: a transform, a mode, a trace, autocast."""
    return bool(
        transforming()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
    )


@functools.lru_cache(maxsize=_HELD_PLANS, typed=True)
def _plan(
    task: str, dtype: torch.dtype, x: torch.Size, row_start: torch.Size | None, batch: int,
    encoder: torch.Size, decoder: torch.Size | None, bias: torch.Size | None, hidden_bias: torch.Size | None,
    n_models: int, n_features: int, options: tuple[Any, ...], objective: tuple[Any, ...] | None,
) -> Any:  # fmt: skip
    """Sizes and options of a call with tensors of these shapes, as the kernels take them, without addresses;
    None where they are not what the layer takes, or the kernels alone do not do it."""
    if dtype not in FLOAT_DTYPES or batch < 1 or len(encoder) != 3:
        return None
    chosen = Options(*options)
    models, m, n = encoder
    if chosen.centered is not False or (models, n) != (n_models, n_features) or m < 1 or n < 1:
        return None
    chosen.check_layer(m)
    for found, wanted in ((decoder, (models, n, m)), (bias, (models, n)), (hidden_bias, (models, m))):
        if found is not None and found != wanted:
            return None
    p = _native.LayerParams()
    p.task, p.tied, p.top_k, p.is_double = TASKS[task], decoder is None, chosen.top_k, dtype == torch.float64
    p.n_models, p.batch, p.n_features, p.n_hidden = models, batch, n, m
    p.hidden_activation = ACTIVATIONS[chosen.hidden_activation].number
    p.output_activation = ACTIVATIONS[chosen.output_activation].number
    p.hidden_option = option_of(chosen.hidden_activation, chosen)
    p.output_option = option_of(chosen.output_activation, chosen)
    if row_start is None:
        if x not in ((batch, n), (1, batch, n), (models, batch, n)):
            return None
        p.x_stride = batch * n if models > 1 and x == (models, batch, n) else 0
    else:
        if row_start not in ((batch + 1,), (models * batch + 1,)):
            return None
        p.row_stride = batch if models > 1 and row_start == (models * batch + 1,) else 0
    if objective is not None:
        target, reduction, loss = objective
        if target not in TARGETS or reduction not in REDUCTIONS or loss not in LAYER_LOSSES:
            return None
        asked = Objective(target, reduction, loss)
        p.target, p.loss_function = _native.numbers["target"][target], LOSSES[loss].number
        p.loss_scale, p.l1_scale = 1.0 / (batch * asked.terms(n)), 1.0 / batch
    return p


@functools.lru_cache(maxsize=_HELD_NUMBERS)
def _filled(value: float, length: int, dtype: torch.dtype) -> Optional:
    """`[length]` of a number that is finite and at least 0; None for others."""
    if not 0 <= value <= torch.finfo(dtype).max:
        return None
    return torch.full((length,), value, dtype=dtype, device="cpu")


def _weights(
    value: Any, models: int, n: int, work: torch.dtype, kept: list[torch.Tensor]
) -> tuple[int, int] | None:
    """Address and stride of importance; what it lies in is `kept`. None where it is anything but a number or
    a tensor of the work's dtype, one row or a row for each model, or a number in it is none for a weight."""
    kind = type(value)
    if kind is float or kind is int:
        found = _filled(value, n, work) if n <= _LONGEST_ROW else None
        if found is None:
            return None
        kept.append(found)
        return address_of_own(found), 0
    at = usual_address(value, work)
    if not at or value.requires_grad:
        return None
    shape = value.shape
    if shape != (n,) and shape != (1, n) and shape != (models, n):
        return None
    if not _native.are_weights(at, value.numel(), work == torch.float64):
        return None
    return at, n if models > 1 and shape == (models, n) else 0


def _price(value: Any, work: torch.dtype, kept: list[torch.Tensor]) -> int | None:
    """Address of l1, 0 where it is 0; None where it is no number for it."""
    if type(value) is not float and type(value) is not int:
        return None
    if value == 0:
        return 0
    found = _filled(value, 1, work)
    if found is None:
        return None
    kept.append(found)
    return address_of_own(found)


def _taken(tensors: Tensors, dtype: torch.dtype, kept: list[torch.Tensor]) -> list[int] | None:
    """Addresses in the work's dtype, 0 where there is no tensor; None where one is not what kernels read.

    What was converted is `kept`.
    """
    found = []
    for tensor in tensors:
        if tensor is None:
            found.append(0)
            continue
        at = usual_address(tensor, dtype)
        if at and dtype is torch.bfloat16:
            kept.append(tensor.detach().float())
            at = address_of_own(kept[-1])
        if not at:
            return None
        found.append(at)
    return found


def _inputs(
    tensors: Tensors,
    x: torch.Tensor,
    row_start: Optional,
    feature: Optional,
    dtype: torch.dtype,
    kept: list[torch.Tensor],
) -> list[int] | None:
    """Addresses of the parameters, dense x, values, rows and features of entries, as the kernels take them;
    None where one is not what they read, or the entries are not in order."""
    found = _taken((*tensors, x), dtype, kept)
    if found is None or row_start is None:
        return None if found is None else [*found, 0, 0, 0]
    starts, features = usual_address(row_start, torch.int64), usual_address(feature, torch.int32)
    if not starts or not features or feature is None or x.ndim != 1 or feature.shape != x.shape:
        return None
    rows, n, threads = row_start.numel() - 1, tensors[0].shape[2], kernel_threads()  # type: ignore[union-attr]
    if _native.check_entries(starts, rows, features, feature.numel(), n, threads)[0]:
        return None
    value = found.pop()
    return [*found, 0, value, starts, features]


def _wants_gradients(tensors: Tensors) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _like(tensors: Tensors, work: torch.dtype) -> list[Optional]:
    return [None if t is None else torch.empty_like(t, dtype=work) for t in tensors]


def _addresses(made: Sequence[Optional]) -> list[int]:
    return [address_of_own(tensor) for tensor in made]


def _back(made: Sequence[Optional], dtype: torch.dtype) -> list[Optional]:
    """In the caller's dtype."""
    return [None if t is None else t.to(dtype) for t in made]


class _PlainLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: tuple[torch.Tensor, list[Optional]], encoder: torch.Tensor, decoder: Optional,
        bias: Optional, hidden_bias: Optional,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(encoder, decoder, bias, hidden_bias, *made[1])
        return made[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        tensors, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if not are_ones(grads[0], gradients[0]):
            gradients = [g if g is None else scaled(g, grads[0]) for g in gradients]
        return None, *[once(gradient, *tensors, grads[0]) for gradient in gradients]


class _PlainOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: tuple[Any, ...], encoder: torch.Tensor, decoder: Optional, bias: Optional,
        hidden_bias: Optional,
    ) -> torch.Tensor:  # fmt: skip
        output, x, row_start, feature, ctx.batch, ctx.sizes, ctx.options = made
        # Where the slope does not follow from the output, the output is computed again.
        saved = output if ctx.options[1] in SLOPE_FROM_OUTPUT else None
        ctx.save_for_backward(x, row_start, feature, encoder, decoder, bias, hidden_bias, saved)
        found: torch.Tensor = output
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, row_start, feature, *tensors, output = ctx.saved_tensors
        gradients = _output_gradients(ctx, grads[0], x, row_start, feature, tensors, output)
        if gradients is None:
            network = (x, row_start, feature, ctx.batch, *tensors, *ctx.options)
            found = torch.ops.toykern.tied_autoencoder_backward(grads[0], output, *network, True, False)
            gradients = [g if there is not None else None for g, there in zip(found, tensors, strict=False)]
        return None, *[once(gradient, *tensors, grads[0]) for gradient in gradients]


def _output_gradients(
    ctx: Any, grad: torch.Tensor, x: torch.Tensor, row_start: Optional, feature: Optional,
    tensors: list[torch.Tensor], output: Optional,
) -> list[Optional] | None:  # fmt: skip
    """Of the parameters, from that of the output; None where the operator is to find them."""
    if torch.compiler.is_compiling() or _seen():
        return None
    dtype, shape = tensors[0].dtype, grad.shape
    # Once more by shapes: what was saved may have been given other data since.
    shapes = [None if t is None else t.shape for t in tensors]
    rows = None if row_start is None else row_start.shape
    plan = _plan("backward", dtype, x.shape, rows, ctx.batch, *shapes, *ctx.sizes, ctx.options, None)
    if plan is None or shape != (ctx.sizes[0], ctx.batch, ctx.sizes[1]):
        return None
    if output is not None and output.shape != shape:
        return None
    kept: list[torch.Tensor] = []
    if not grad.is_contiguous():  # that of a sum is one number, expanded
        grad = grad.contiguous()
    inputs = _inputs(tensors, x, row_start, feature, dtype, kept)
    others = _taken((output, grad), dtype, kept)
    if inputs is None or others is None:
        return None
    work = torch.float32 if dtype is torch.bfloat16 else dtype
    try:
        made = _like(tensors, work)
    except RuntimeError:
        return None
    _native.run_planned_layer(plan, kernel_threads(), *inputs, 0, 0, 0, 0, *others, *_addresses(made))
    return made if work is dtype else _back(made, dtype)


# Without what `Function.apply` does for transforms, of which none is at work in a plain call.
_attach_loss = super(torch.autograd.Function, _PlainLoss).apply
_attach_output = super(torch.autograd.Function, _PlainOutput).apply


def plain_loss(
    tensors: Tensors,
    x: torch.Tensor,
    row_start: Optional,
    feature: Optional,
    batch: int,
    sizes: tuple[int, int],
    options: tuple[Any, ...],
    objective: tuple[Any, Any, Any],
    importance: Any,
    l1: Any,
) -> Optional:
    """The loss of each model `[models]`, with gradients to its parameters; None where the call is not plain.

    Args:
        tensors: encoder, decoder, bias and hidden bias as a module holds them.
        x: `[batch, n_features]`, `[1 or models, batch, n_features]`, or the values of entries.
        row_start, feature: of entries, else None.
        batch: samples of a model.
        sizes: the module's n_models and n_features.
        options: the fields of `Options`, in order; objective: those of `Objective`.
        importance, l1: as the module's loss was given them.
    """
    if (
        [type(name) for name in objective] != _NAMES
        or _seen()
        or (x.requires_grad and torch.is_grad_enabled())
    ):
        return None
    encoder: Any = tensors[0]
    try:
        dtype, shapes = encoder.dtype, [None if t is None else t.shape for t in tensors]
        rows = None if row_start is None else row_start.shape
        plan = _plan("loss", dtype, x.shape, rows, batch, *shapes, *sizes, options, objective)
    except (AttributeError, TypeError, ValueError):
        return None  # no tensors, or no names: the operators' gate says which
    if plan is None:
        return None
    work = torch.float32 if dtype is torch.bfloat16 else dtype
    kept: list[torch.Tensor] = []
    inputs = _inputs(tensors, x, row_start, feature, dtype, kept)
    weights = _weights(importance, *sizes, work, kept)
    price = _price(l1, work, kept)
    if inputs is None or weights is None or price is None:
        return None
    wanted = _wants_gradients(tensors)
    try:
        loss = encoder.new_empty(sizes[:1], dtype=work)
        gradients = _like(tensors, work) if wanted else [None] * 4
    except RuntimeError:  # of memory, which the operators tell
        return None
    _native.run_planned_layer(
        plan, kernel_threads(), *inputs, *weights, price, address_of_own(loss), 0, 0, *_addresses(gradients)
    )
    if not wanted:
        return loss
    return _attach_loss((loss, gradients if work is dtype else _back(gradients, dtype)), *tensors)


def plain_output(
    tensors: Tensors,
    x: torch.Tensor,
    row_start: Optional,
    feature: Optional,
    batch: int,
    sizes: tuple[int, int],
    options: tuple[Any, ...],
) -> Optional:
    """y `[models, batch, n_features]`, with gradients to the parameters; None where the call is not plain.
    Arguments as for `plain_loss`."""
    if _seen() or (x.requires_grad and torch.is_grad_enabled()):
        return None
    encoder: Any = tensors[0]
    try:
        dtype, shapes = encoder.dtype, [None if t is None else t.shape for t in tensors]
        rows = None if row_start is None else row_start.shape
        plan = _plan("forward", dtype, x.shape, rows, batch, *shapes, *sizes, options, None)
    except (AttributeError, TypeError, ValueError):
        return None  # no tensors, or no names: the operators' gate says which
    if plan is None:
        return None
    kept: list[torch.Tensor] = []
    inputs = _inputs(tensors, x, row_start, feature, dtype, kept)
    if inputs is None:
        return None
    work = torch.float32 if dtype is torch.bfloat16 else dtype
    try:
        output = encoder.new_empty((sizes[0], batch, sizes[1]), dtype=work)
    except RuntimeError:  # of memory, which the operators tell
        return None
    _native.run_planned_layer(
        plan, kernel_threads(), *inputs, 0, 0, 0, 0, address_of_own(output), 0, 0, 0, 0, 0
    )
    output = output if work is dtype else output.to(dtype)
    if not _wants_gradients(tensors):
        return output
    return _attach_output((output, x, row_start, feature, batch, sizes, options), *tensors)
