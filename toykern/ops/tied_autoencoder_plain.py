"""Plain calls of the autoencoder layer on the CPU: straight into the kernels, past PyTorch's dispatcher.

The step of one tiny model is a few microseconds of arithmetic; what it costs is Python and the dispatcher
around it. So what follows from a call's shapes, dtypes and options is found once and kept, a plan, and a call
takes addresses, makes room for its results and goes: one native call, one node of autograd.

A call is *plain* where nothing has to see the operator (a trace, a mode, a transform, autocast), x takes no
gradient, no other tensor but the parameters does, and each is what the kernels read: contiguous, on the CPU, of
the weights' dtype. Whatever is not plain is answered by None and goes by way of the operators
(tied_autoencoder_autograd.py), which take all that the layer takes and say what is wrong with the rest. No check
is left out: sizes are those of the plan, or there is none; every tensor goes through the gate of all addresses
(toykern/native/address.py); entries are looked at. Both ways call the same kernels, so the bits are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from toykern import _native
from toykern.native.address import usual_address
from toykern.native.threads import kernel_threads
from toykern.network.activations import ACTIVATIONS, option_of
from toykern.network.losses import LAYER_LOSSES, LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import Options
from toykern.ops.gate import FLOAT_DTYPES
from toykern.ops.tied_autoencoder_autograd import SLOPE_FROM_OUTPUT, are_ones, once, scaled
from toykern.ops.tied_autoencoder_call import TASKS, Optional

Tensors = tuple[Optional, Optional, Optional, Optional]
"""Encoder, decoder (None when tied), bias and hidden bias."""

_HELD_PLANS = 1024
_HELD_NUMBERS = 64  # of importance and of l1, whose tensors are kept,
_LONGEST_ROW = 4096  # where they are no longer than this
_NAMES = [str, str, str]


def _seen() -> bool:
    """Whether something is at work that has to see operators: a transform, a mode, a trace, autocast."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
    )


@functools.lru_cache(maxsize=_HELD_PLANS, typed=True)
def _plan(
    task: str, dtype: torch.dtype, x: torch.Size, row_start: torch.Size | None, batch: int, encoder: torch.Size,
    decoder: torch.Size | None, bias: torch.Size | None, hidden_bias: torch.Size | None, n_models: int,
    n_features: int, options: tuple[Any, ...], objective: tuple[Any, ...] | None,
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


def _weights(value: Any, models: int, n: int, work: torch.dtype) -> tuple[torch.Tensor, int] | None:
    """Importance as the kernels take it, and its stride; None where it is anything but a number or a tensor
    of the work's dtype, one row or a row for each model, or where a number in it is negative or not finite."""
    kind = type(value)
    if kind is float or kind is int:
        found = _filled(value, n, work) if n <= _LONGEST_ROW else None
        return None if found is None else (found, 0)
    if not usual_address(value, work) or value.requires_grad:
        return None
    shape = value.shape
    if shape != (n,) and shape != (1, n) and shape != (models, n):
        return None
    if not _native.are_weights(value.data_ptr(), value.numel(), work == torch.float64):
        return None
    return value, n if models > 1 and shape == (models, n) else 0


def _taken(tensors: Sequence[Optional], dtype: torch.dtype, kept: list[torch.Tensor]) -> list[int] | None:
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
            at = kept[-1].data_ptr()
        if not at:
            return None
        found.append(at)
    return found


def _entries(
    value: torch.Tensor, row_start: torch.Tensor, feature: torch.Tensor, rows: int, n: int, threads: int
) -> tuple[int, int] | None:
    """Addresses of entries' rows and features, of as many entries as there are values; None where they are
    not what kernels read or do not hold."""
    starts, features = usual_address(row_start, torch.int64), usual_address(feature, torch.int32)
    if not starts or not features or value.ndim != 1 or feature.shape != value.shape:
        return None
    if _native.check_entries(starts, rows, features, feature.numel(), n, threads)[0]:
        return None
    return starts, features


def _wanted(tensors: Tensors) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


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
        row_start, feature: of entries, else None; batch: samples of a model.
        sizes: the module's n_models and n_features.
        options: the fields of `Options`; objective: those of `Objective`.
        importance, l1: as the module's loss was given them.
    """
    if _seen() or (x.requires_grad and torch.is_grad_enabled()):
        return None
    if [type(name) for name in objective] != _NAMES:
        return None
    encoder = tensors[0]
    try:
        dtype, shapes = encoder.dtype, [None if t is None else t.shape for t in tensors]
        rows = None if row_start is None else row_start.shape
        plan = _plan("loss", dtype, x.shape, rows, batch, *shapes, *sizes, options, objective)
    except (AttributeError, TypeError, ValueError):
        return None  # no tensors, or no names: the operators' gate says which
    if plan is None:
        return None
    kept: list[torch.Tensor] = []
    found = _taken((*tensors, x), dtype, kept)
    work = torch.float32 if dtype is torch.bfloat16 else dtype
    weights = _weights(importance, *sizes, work)
    if found is None or weights is None:
        return None
    rate = 0
    if type(l1) is not float or l1 != 0.0:
        price = _filled(l1, 1, work) if type(l1) in (float, int) else None
        if price is None:
            return None
        rate = price.data_ptr() if l1 else 0
    threads, starts = kernel_threads(), (0, 0)
    if rows is not None:
        starts = _entries(x, row_start, feature, rows[0] - 1, sizes[1], threads)
        if starts is None:
            return None
    wanted = _wanted(tensors)
    try:
        loss = encoder.new_empty(sizes[:1], dtype=work)
        gradients = [t if t is None else torch.empty_like(t, dtype=work) for t in tensors] if wanted else []
    except RuntimeError:  # of memory, which the operators tell
        return None
    _native.run_planned_layer(
        plan, threads, *found[:4], *((found[4], 0) if rows is None else (0, found[4])), *starts,
        weights[0].data_ptr(), weights[1], rate, loss.data_ptr(), 0, 0,
        *([0 if t is None else t.data_ptr() for t in gradients] if wanted else (0, 0, 0, 0)),
    )  # fmt: skip
    if not wanted:
        return loss
    if work is not dtype:
        gradients = [t if t is None else t.to(dtype) for t in gradients]
    return _attach_loss((loss, gradients), *tensors)


class _PlainLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: tuple[torch.Tensor, list[Optional]], encoder: torch.Tensor, decoder: Optional,
        bias: Optional, hidden_bias: Optional,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(encoder, *made[1])
        return made[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        encoder, *gradients = ctx.saved_tensors
        if are_ones(grads[0], gradients[0]):
            if not torch.is_grad_enabled():
                return None, *gradients
            return None, *[once(g, encoder) for g in gradients]
        return None, *[g if g is None else once(scaled(g, grads[0]), encoder) for g in gradients]


class _PlainOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, made: tuple[Any, ...], encoder: torch.Tensor, decoder: Optional, bias: Optional,
        hidden_bias: Optional,
    ) -> torch.Tensor:  # fmt: skip
        output, x, row_start, feature, ctx.batch, ctx.options, ctx.plan = made
        # Where the slope does not follow from the output, the output is computed again.
        saved = output if ctx.options[1] in SLOPE_FROM_OUTPUT else None
        ctx.save_for_backward(x, row_start, feature, encoder, decoder, bias, hidden_bias, saved)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, row_start, feature, *tensors, output = ctx.saved_tensors
        gradients = _output_gradients(ctx, grads[0], x, row_start, feature, tensors, output)
        if gradients is None:
            network = (x, row_start, feature, ctx.batch, *tensors, *ctx.options)
            found = torch.ops.toykern.tied_autoencoder_backward(grads[0], output, *network, True, False)
            gradients = [g if there is not None else None for g, there in zip(found, tensors, strict=False)]
        return None, *[once(g, tensors[0]) for g in gradients]


def _output_gradients(
    ctx: Any, grad: torch.Tensor, x: torch.Tensor, row_start: Optional, feature: Optional, tensors: Any,
    output: Optional,
) -> list[Optional] | None:  # fmt: skip
    """Of the parameters, from that of the output; None where the operator is to do it."""
    if torch.compiler.is_compiling() or _seen():
        return None
    dtype = tensors[0].dtype
    kept: list[torch.Tensor] = []
    if not grad.is_contiguous():  # that of a sum is one number, expanded
        kept.append(grad := grad.contiguous())
    found = _taken((*tensors, x, output, grad), dtype, kept)
    starts, threads = (0, 0), kernel_threads()
    if found is None:
        return None
    if row_start is not None:
        starts = _entries(x, row_start, feature, row_start.numel() - 1, tensors[0].shape[2], threads)
        if starts is None:
            return None
    work = torch.float32 if dtype is torch.bfloat16 else dtype
    try:
        made = [t if t is None else torch.empty_like(t, dtype=work) for t in tensors]
    except RuntimeError:
        return None
    _native.run_planned_layer(
        ctx.plan, threads, *found[:4], *((found[4], 0) if row_start is None else (0, found[4])), *starts,
        0, 0, 0, 0, found[5], found[6], *[0 if t is None else t.data_ptr() for t in made],
    )  # fmt: skip
    return made if work is dtype else [t if t is None else t.to(dtype) for t in made]


_attach_loss = super(torch.autograd.Function, _PlainLoss).apply
_attach_output = super(torch.autograd.Function, _PlainOutput).apply


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
    encoder = tensors[0]
    try:
        dtype, shapes = encoder.dtype, [None if t is None else t.shape for t in tensors]
        rows = None if row_start is None else row_start.shape
        same = (dtype, x.shape, rows, batch, *shapes, *sizes, options, None)
        plan = _plan("forward", *same)
    except (AttributeError, TypeError, ValueError):
        return None  # no tensors, or no names: the operators' gate says which
    if plan is None:
        return None
    kept: list[torch.Tensor] = []
    found = _taken((*tensors, x), dtype, kept)
    if found is None:
        return None
    threads, starts = kernel_threads(), (0, 0)
    if rows is not None:
        starts = _entries(x, row_start, feature, rows[0] - 1, sizes[1], threads)
        if starts is None:
            return None
    try:
        output = encoder.new_empty(
            (sizes[0], batch, sizes[1]), dtype=torch.float32 if dtype is torch.bfloat16 else dtype
        )
    except RuntimeError:  # of memory, which the operators tell
        return None
    _native.run_planned_layer(
        plan, threads, *found[:4], *((found[4], 0) if rows is None else (0, found[4])), *starts,
        0, 0, 0, 0, output.data_ptr(), 0, 0, 0, 0, 0,
    )  # fmt: skip
    if dtype is torch.bfloat16:
        output = output.to(dtype)
    if not _wanted(tensors):
        return output
    made = (output, x, row_start, feature, batch, options, _plan("backward", *same))
    return _attach_output(made, *tensors)
