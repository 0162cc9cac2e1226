"""Autograd around the autoencoder ops: the functions that modules call.

An `autograd.Function` around plain operators, not `register_autograd`: forward and backward of one call cost
38 µs against 65 µs (measured, two cores), and it traces into one graph under `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern import _native
from toykern.native.address import refuse_distributed
from toykern.network.activations import ACTIVATIONS
from toykern.network.losses import GIVEN, LOSSES, TARGETS, Objective
from toykern.network.specification import Options
from toykern.ops.tied_autoencoder_call import PLAIN, Optional
from toykern.ops.transforms import no_forward_mode, once, requires_grad, transforming

# Asked of the kernels once, at import: a compiled graph cannot call the native module while it is traced.
SLOPE_FROM_OUTPUT = frozenset(
    name for name, row in ACTIVATIONS.items() if _native.slope_from_output(row.number)
)


def scaled(gradient: torch.Tensor, scale: Optional) -> torch.Tensor:
    """Each model's gradient times its scale, never in place; the gradient itself for scales of 1 (None)."""
    if scale is None:
        return gradient
    return gradient * scale.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1))


def _sum_over_models(gradient: torch.Tensor, models: int) -> torch.Tensor:
    return gradient if gradient.shape[0] == models else gradient.sum(0, keepdim=True)


def are_ones(grad: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether the saved gradients are to be scaled by 1, as far as looking costs less than scaling.

    On a GPU it means waiting for it: worth while for large gradients alone, and impossible in a capture.
    """
    if torch.compiler.is_compiling() or transforming():
        return False
    if grad.device.type != "cpu":
        small = gradient.numel() * gradient.itemsize < _LOOK_BYTES
        if small or grad.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return False
    if grad.numel() == 1:
        return bool(grad.item() == 1)
    if grad.ndim == 1 and grad.stride(0) == 0 and grad.shape[0] > 0:  # what sum() and mean() hand down
        return bool(grad[0].item() == 1)
    return bool((grad == 1).all())


_LOOK_BYTES = 64 << 20


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
        decoder: Optional, bias: Optional, hidden_bias: Optional, importance: torch.Tensor, l1: Optional,
        given: Optional, objective: Objective, options: Options, wanted: tuple[bool, bool, bool],
        prices_wanted: tuple[bool, bool],
    ) -> torch.Tensor:  # fmt: skip
        loss, *gradients = torch.ops.toykern.tied_autoencoder_loss(
            x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
            importance, l1, given, *objective.objective(), *wanted,
        )  # fmt: skip
        network = (x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        d_importance = d_l1 = None
        if prices_wanted[0]:
            d_importance = _losses_of_features(*network, given, objective)
        if prices_wanted[1]:
            d_l1 = _code_norms(*network)
        sources = _differentiable(x, weight, decoder, bias, hidden_bias, given)
        ctx.save_for_backward(row_start, importance, l1, d_importance, d_l1, *gradients, *sources)
        ctx.sparse, ctx.batch = row_start is not None, batch
        ctx.x_models = x.shape[0] if row_start is None else 0
        ctx.target_models = 0 if given is None else given.shape[0]
        ctx.presence = (decoder is not None, bias is not None, hidden_bias is not None)
        ctx.wanted = wanted
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        row_start, importance, l1, d_importance, d_l1, *gradients = ctx.saved_tensors
        d_weight, d_decoder, d_bias, d_hidden, d_x, d_target, *sources = gradients
        grad = grads[0]
        scale = None if are_ones(grad, d_weight) else grad
        weights_wanted, x_wanted, target_wanted = ctx.wanted
        has_decoder, has_bias, has_hidden = ctx.presence
        found: list[Optional] = [None] * 15
        if weights_wanted:
            found[4] = scaled(d_weight, scale)
            found[5] = scaled(d_decoder, scale) if has_decoder else None
            found[6] = scaled(d_bias, scale) if has_bias else None
            found[7] = scaled(d_hidden, scale) if has_hidden else None
        if x_wanted and ctx.sparse:
            found[0] = _scaled_values(d_x, scale, row_start, ctx.batch)
        elif x_wanted:
            found[0] = _sum_over_models(scaled(d_x, scale), ctx.x_models)
        if target_wanted:
            found[10] = _sum_over_models(scaled(d_target, scale), ctx.target_models)
        for place, given, gradient in ((8, importance, d_importance), (9, l1, d_l1)):
            if gradient is not None:
                found[place] = _sum_over_models(scaled(gradient, scale), given.shape[0]).to(given.dtype)
        needs = ctx.needs_input_grad
        sources += (grad, importance, l1)
        return tuple(once(gradient, *sources) if needs[i] else None for i, gradient in enumerate(found))


def _scaled_values(
    gradient: torch.Tensor, scale: Optional, row_start: torch.Tensor, batch: int
) -> torch.Tensor:
    """Gradient of entries `[entries]`; from `[models, entries]` where models share them."""
    if gradient.ndim == 2:
        return scaled(gradient, scale).sum(0)
    if scale is None:
        return gradient
    if scale.shape[0] == 1:
        return gradient * scale.to(gradient.dtype)
    entries = row_start[::batch].diff()
    return gradient * scale.to(gradient.dtype).repeat_interleave(entries, output_size=gradient.shape[0])


def _losses_of_features(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options, target: Optional,
    objective: Objective,
) -> torch.Tensor:  # fmt: skip
    """∂loss/∂importance `[models, n_features]`, each feature's own loss, by a pass with the output."""
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32
    x, weight = x.to(work), weight.to(work)
    decoder, bias, hidden_bias, target = (
        None if t is None else t.to(work) for t in (decoder, bias, hidden_bias, target)
    )
    output = torch.ops.toykern.tied_autoencoder(
        x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
    )  # fmt: skip
    n = output.shape[2]
    if target is None:
        target = x
        if row_start is not None and feature is not None:
            samples = torch.arange(row_start.shape[0] - 1, dtype=torch.int64, device=x.device)
            sample = samples.repeat_interleave(row_start.diff(), output_size=x.shape[0])
            flat = x.new_zeros((row_start.shape[0] - 1) * n).index_put((sample * n + feature,), x)
            target = flat.view(-1, batch, n)
        target = TARGETS[objective.target](target)
    return LOSSES[objective.loss].of(output, target).sum(1) / (batch * objective.terms(n))


def _code_norms(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options,
) -> torch.Tensor:  # fmt: skip
    """∂loss/∂l1 `[models]`: Σ_k |h_k|, a mean over samples, which is the loss where errors cost nothing."""
    floats = torch.float64 if weight.dtype == torch.float64 else torch.float32
    nothing = torch.zeros(1, weight.shape[2], dtype=floats, device=weight.device)
    one = torch.ones(1, dtype=floats, device=weight.device)
    norms: torch.Tensor = torch.ops.toykern.tied_autoencoder_loss(
        x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
        nothing, one, None, *Objective(loss_reduction="sum").objective(), False, False, False,
    )[0]  # fmt: skip
    return norms


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
        decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options, wanted: tuple[bool, bool],
    ) -> torch.Tensor:  # fmt: skip
        output = torch.ops.toykern.tied_autoencoder(
            x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
        )  # fmt: skip
        # Where the slope does not follow from the output, the output is computed again.
        saved = output if options.output_activation in SLOPE_FROM_OUTPUT else None
        ctx.save_for_backward(x, row_start, feature, weight, decoder, bias, hidden_bias, saved)
        ctx.batch, ctx.options, ctx.wanted = batch, options, wanted
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, row_start, feature, weight, decoder, bias, hidden_bias, saved = ctx.saved_tensors
        options = ctx.options
        weights_wanted, x_wanted = ctx.wanted
        d_weight, d_decoder, d_bias, d_hidden, d_x = torch.ops.toykern.tied_autoencoder_backward(
            grads[0], saved, x, row_start, feature, ctx.batch, weight, decoder, bias, hidden_bias,
            *options.arguments(),
            weights_wanted, x_wanted,
        )  # fmt: skip
        found: list[Optional] = [None] * 10
        if weights_wanted:
            found[4] = d_weight
            found[5] = d_decoder if decoder is not None else None
            found[6] = d_bias if bias is not None else None
            found[7] = d_hidden if hidden_bias is not None else None
        if x_wanted and row_start is not None:
            found[0] = d_x.sum(0) if d_x.ndim == 2 else d_x
        elif x_wanted:
            found[0] = _sum_over_models(d_x, x.shape[0])
        needs = ctx.needs_input_grad
        sources = (grads[0], x, weight, decoder, bias, hidden_bias)
        return tuple(once(g, *sources) if needs[i] else None for i, g in enumerate(found))


# ---- the same under torch.func -----------------------------------------------------------------------------


class _LossInTransforms(_Loss):
    """Its gradients are results beside the loss: transforms keep track of inputs and results alone."""

    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(  # type: ignore[override]
        x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
        decoder: Optional, bias: Optional, hidden_bias: Optional, importance: torch.Tensor, l1: Optional,
        given: Optional, objective: Objective, options: Options, wanted: tuple[bool, bool, bool],
        prices_wanted: tuple[bool, bool],
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        loss, *gradients = torch.ops.toykern.tied_autoencoder_loss(
            x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
            importance, l1, given, *objective.objective(), *wanted,
        )  # fmt: skip
        network = (x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        prices = [
            _losses_of_features(*network, given, objective) if prices_wanted[0] else loss.new_empty(0),
            _code_norms(*network) if prices_wanted[1] else loss.new_empty(0),
        ]
        return loss, *prices, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        (
            x, row_start, _, ctx.batch, weight, decoder, bias, hidden_bias, importance, l1, given,
            _, _, ctx.wanted, prices_wanted,
        ) = inputs  # fmt: skip
        _, *gradients = output
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        prices = (g if want else None for g, want in zip(gradients, prices_wanted, strict=False))
        sources = (x, weight, decoder, bias, hidden_bias, given)
        ctx.save_for_backward(row_start, importance, l1, *prices, *gradients[2:], *sources)
        ctx.sparse = row_start is not None
        ctx.x_models = x.shape[0] if row_start is None else 0
        ctx.target_models = 0 if given is None else given.shape[0]
        ctx.presence = (decoder is not None, bias is not None, hidden_bias is not None)


class _OutputInTransforms(_Output):
    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(  # type: ignore[override]
        x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
        decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options, wanted: tuple[bool, bool],
    ) -> torch.Tensor:  # fmt: skip
        output: torch.Tensor = torch.ops.toykern.tied_autoencoder(
            x, row_start, feature, batch, weight, decoder, bias, hidden_bias, *options.arguments(),
        )  # fmt: skip
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, row_start, feature, ctx.batch, weight, decoder, bias, hidden_bias, ctx.options, ctx.wanted = inputs
        saved = output if ctx.options.output_activation in SLOPE_FROM_OUTPUT else None
        ctx.save_for_backward(x, row_start, feature, weight, decoder, bias, hidden_bias, saved)


def _differentiable(*tensors: Optional) -> list[torch.Tensor]:
    return [t for t in tensors if t is not None and t.requires_grad]


def _wants(*tensors: Optional) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _wants_in_transforms(*tensors: Optional) -> bool:
    return any(t is not None and requires_grad(t) for t in tensors)


def autoencoder_output(
    x: torch.Tensor,
    weight: torch.Tensor,
    decoder: Optional = None,
    bias: Optional = None,
    hidden_bias: Optional = None,
    options: Options = PLAIN,
    *,
    row_start: Optional = None,
    feature: Optional = None,
    batch: int | None = None,
) -> torch.Tensor:
    """y `[models, batch, n_features]`, with gradients to x, the weights and the biases.

    Args:
        x: `[models or 1, batch, n_features]`, or with `row_start`, `feature` and `batch` the values of
            entries.
        weight: the encoder `[models, n_hidden, n_features]`; without `decoder`, its transpose decodes.
        decoder: `[models, n_features, n_hidden]`.
        bias: `[models, n_features]`, of the output.
        hidden_bias: `[models, n_hidden]`.
        options: activations, top-k, centering.

    ValueError or TypeError names the argument; RuntimeError where the device has no kernels.

    >>> autoencoder_output(torch.ones(1, 4, 3), torch.ones(2, 1, 3)).shape
    torch.Size([2, 4, 3])
    """
    refuse_distributed(x=x, weight=weight)
    samples = x.shape[1] if batch is None else batch
    function, wants = (_OutputInTransforms, _wants_in_transforms) if transforming() else (_Output, _wants)
    wanted = (wants(weight, decoder, bias, hidden_bias), wants(x))
    return function.apply(x, row_start, feature, samples, weight, decoder, bias, hidden_bias, options, wanted)


def autoencoder_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    decoder: Optional = None,
    bias: Optional = None,
    hidden_bias: Optional = None,
    options: Options = PLAIN,
    *,
    importance: torch.Tensor,
    l1: Optional = None,
    target: torch.Tensor | str = "identity",
    reduction: str = "mean",
    loss: str = "squared_error",
    row_start: Optional = None,
    feature: Optional = None,
    batch: int | None = None,
) -> torch.Tensor:
    """The loss of each model, `[models]` (float32 for bfloat16 weights); arguments as in
    `autoencoder_output`.

    Args:
        importance: `[models or 1, n_features]`.
        l1: `[models or 1]`, the weight of Σ_k |h_k|, a mean over samples.
        target: "identity" (x), "abs" (|x|), or a tensor shaped as dense x is.
        reduction: "mean" over batch and features, or "sum" over features and mean over the batch.
        loss: a name in `toykern.network.losses`.

    Gradients are computed in this forward pass, those of weights and biases, x and target as they require
    them; the backward pass only scales them. Those of importance and l1 cost another forward pass each, and
    that of importance the memory of an output.

    >>> x, weight = torch.eye(3).unsqueeze(0), torch.ones(2, 1, 3)
    >>> autoencoder_loss(x, weight, importance=torch.ones(1, 3), reduction="sum")
    tensor([2., 2.])
    """
    refuse_distributed(x=x, weight=weight)
    samples = x.shape[1] if batch is None else batch
    given = target if isinstance(target, torch.Tensor) else None
    objective = Objective(GIVEN if isinstance(target, torch.Tensor) else target, reduction, loss)
    in_transforms = transforming()
    wants = _wants_in_transforms if in_transforms else _wants
    wanted = (wants(weight, decoder, bias, hidden_bias), wants(x), wants(given))
    arguments = (
        x, row_start, feature, samples, weight, decoder, bias, hidden_bias, importance, l1, given,
        objective, options, wanted, (wants(importance), wants(l1)),
    )  # fmt: skip
    if in_transforms:
        found: torch.Tensor = _LossInTransforms.apply(*arguments)[0]
        return found
    return _Loss.apply(*arguments)
