"""The autoencoder ops: output and loss of stacked models, tied or not, with their gradients.

    a = E (x − b·centered) + c,  h = f(a),  z = D h + b,  y = g(z)        E [m, n], D = Eᵀ when tied
    loss = (1/N) Σ_samples Σ_j I_j ρ(y_j − t_j) + l1 · mean over samples of Σ_k |h_k|

Operators, all in the library `toykern`; a stack of K models, B samples, n features, m hidden units:

    tied_autoencoder            → y [K, B, n]
    tied_autoencoder_backward   → the gradients behind y
    tied_autoencoder_loss       → the loss [K] and, as far as they are wanted, the gradients of the sum of the
                                  losses: the output never exists, and a backward pass only scales

A `decoder` makes them untied. x is dense, `[K or 1, B, n]`, or the values of entries with `row_start` and
`feature` (see `toykern.SparseBatch`). `Options` says what the network is, `Objective` what its loss is; the
schemas list their fields. float32, float64;
bfloat16 is computed in float32. The operators take no gradient themselves: `autoencoder_output` and
`autoencoder_loss` in tied_autoencoder_autograd.py wrap them.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern import _native
from toykern.native.threads import kernel_threads
from toykern.network.losses import Objective
from toykern.network.specification import Options
from toykern.ops.gate import check_device_of_kernels, check_entries, check_float_dtype
from toykern.ops.tied_autoencoder_call import Call, Gradients, Optional, options_of, schema_of

# ---- schemas -----------------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
_NETWORK = (
    "Tensor x, Tensor? row_start, Tensor? feature, SymInt batch, Tensor weight, Tensor? decoder, "
    f"Tensor? bias, Tensor? hidden_bias, {schema_of(Options)}"
)
_LIBRARY.define(f"tied_autoencoder({_NETWORK}) -> Tensor")
_LIBRARY.define(
    f"tied_autoencoder_backward(Tensor grad, Tensor? output, {_NETWORK}, bool weights_wanted, bool x_wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"tied_autoencoder_loss({_NETWORK}, Tensor importance, Tensor? l1, Tensor? given, "
    f"{schema_of(Objective)}, bool weights_wanted, bool x_wanted, bool target_wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


# ---- the call into the kernels -----------------------------------------------------------------------------


class _Call(Call):
    """What the CPU's kernels want beside: float64 or float32, c − E b in the place of c where x is centred.

    They add to the gradient of x.
    """

    zeroed_input_grad = True

    def __init__(
        self, op: str, task: str, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
        weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options,
    ) -> None:  # fmt: skip
        check_device_of_kernels(op, weight.device)
        dtype = check_float_dtype("weight", weight)
        work = torch.float32 if dtype == torch.bfloat16 else dtype
        super().__init__(
            task, x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options, work, work
        )
        self.params.is_double, self.params.threads = work == torch.float64, kernel_threads()
        if self.centered:  # E (x − b) + c = E x + (c − E b)
            assert self.bias is not None
            with torch.autocast(weight.device.type, enabled=False):
                shift = -torch.bmm(self.weight, self.bias.unsqueeze(2)).squeeze(2)
            code_bias = self.keep(shift if self.hidden_bias is None else shift + self.hidden_bias)
            self.params.hidden_bias = self.at("hidden_bias", code_bias)

    def _check_entries(
        self, row_start: torch.Tensor, feature: torch.Tensor, value: torch.Tensor, rows: int
    ) -> None:
        check_entries(row_start, feature, value, rows, self.features)

    def run(self) -> None:
        """The kernel itself; without samples nothing is launched, and gradients are 0."""
        if self.batch > 0:
            _native.run_layer(self.params)
            return
        for tensor in (self.encoder_grad, self.decoder_grad, self.bias_grad, self.hidden_grad):
            if tensor is not None:
                tensor.zero_()

    def gradients(self) -> Gradients:
        """Those of the call, through the centring."""
        if self.centered and self.encoder_grad is not None:
            assert self.bias is not None and self.bias_grad is not None and self.hidden_grad is not None
            # dE = da (x − b)ᵀ: what the kernel made is da xᵀ; db gains −Eᵀ da
            with torch.autocast(self.device.type, enabled=False):
                self.encoder_grad.baddbmm_(self.hidden_grad.unsqueeze(2), self.bias.unsqueeze(1), alpha=-1)
                self.bias_grad.sub_(torch.bmm(self.hidden_grad.unsqueeze(1), self.weight).squeeze(1))
        if self.hidden_bias is None:  # made for the centring alone
            self.hidden_grad = None
        return super().gradients()


def _output_impl(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> torch.Tensor:  # fmt: skip
    options, _ = options_of(arguments)
    op = "tied_autoencoder"
    call = _Call(op, "forward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
    output = call.new(call.models, call.batch, call.features)
    call.params.output = call.at("output", output)
    call.run()
    return output.to(call.dtype)


def _backward_impl(
    grad: torch.Tensor, output: Optional, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
    weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> Gradients:  # fmt: skip
    options, (weights_wanted, x_wanted) = options_of(arguments)
    op = "tied_autoencoder_backward"
    call = _Call(op, "backward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
    call.want_output_gradient(grad, output)
    call.want_gradients(weights_wanted, x_wanted)
    call.run()
    return call.gradients()


def _loss_impl(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    options, rest = options_of(arguments)
    importance, l1, given, *named, weights_wanted, x_wanted, target_wanted = rest
    op = "tied_autoencoder_loss"
    call = _Call(op, "loss", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
    call.want_loss(importance, l1, given, Objective(*named), target_wanted)
    call.want_gradients(weights_wanted, x_wanted)
    loss = call.new(call.models)
    call.params.loss = call.at("loss", loss)
    call.run()
    return loss, *call.gradients(), call.given_back(call.target_grad)


_LIBRARY.impl("tied_autoencoder", _output_impl, "CPU")
_LIBRARY.impl("tied_autoencoder_backward", _backward_impl, "CPU")
_LIBRARY.impl("tied_autoencoder_loss", _loss_impl, "CPU")


# CUDA's are in tied_autoencoder_cuda.py.


# ---- fakes: shapes alone -----------------------------------------------------------------------------------


def _fake_gradients(
    x: torch.Tensor, row_start: Optional, batch: int, weight: torch.Tensor, decoder: Optional, bias: Optional,
    hidden_bias: Optional, weights_wanted: bool, x_wanted: bool,
) -> Gradients:  # fmt: skip
    models, m, n = weight.shape
    none = weight.new_empty(0)
    encoder = other = b = c = dx = none
    if weights_wanted:
        encoder = weight.new_empty(models, m, n)
        other = none if decoder is None else weight.new_empty(models, n, m)
        b = none if bias is None else weight.new_empty(models, n)
        c = none if hidden_bias is None else weight.new_empty(models, m)
    if x_wanted:
        if row_start is None:
            dx = weight.new_empty(models, batch, n)
        elif models > 1 and row_start.shape[0] - 1 == batch:
            dx = weight.new_empty(models, x.shape[0])
        else:
            dx = weight.new_empty(x.shape[0])
    return encoder, _apart(other, none), _apart(b, none), _apart(c, none), _apart(dx, none)


def _apart(tensor: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
    """No two results of an operator may be one tensor."""
    return none.new_empty(0) if tensor is none else tensor


def _output_fake(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor, *others: Any
) -> torch.Tensor:  # fmt: skip
    return weight.new_empty(weight.shape[0], batch, weight.shape[2])


def _backward_fake(
    grad: torch.Tensor, output: Optional, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
    weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> Gradients:  # fmt: skip
    _, (weights_wanted, x_wanted) = options_of(arguments)
    return _fake_gradients(x, row_start, batch, weight, decoder, bias, hidden_bias, weights_wanted, x_wanted)


def _loss_fake(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    _, (_, _, given, *_, weights_wanted, x_wanted, target_wanted) = options_of(arguments)
    work = torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype
    models, _, n = weight.shape
    gradients = _fake_gradients(
        x, row_start, batch, weight, decoder, bias, hidden_bias, weights_wanted, x_wanted
    )
    wanted = target_wanted and given is not None
    last = weight.new_empty(models, batch, n) if wanted else weight.new_empty(0)
    return weight.new_empty(models, dtype=work), *gradients, last


torch.library.register_fake("toykern::tied_autoencoder", _output_fake, lib=_LIBRARY)
torch.library.register_fake("toykern::tied_autoencoder_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_fake("toykern::tied_autoencoder_loss", _loss_fake, lib=_LIBRARY)
