"""The autoencoder ops on CUDA: one launch for many small models, torch's products between kernels for large.

    small   weights and gradients within a block's shared memory: csrc/cuda/layer/stacked.cuh
    large   tiles of features: tied_autoencoder_large.py

Work goes to torch's current stream of the tensors' device, memory comes from torch. Nothing here waits for
the device, so that calls can be captured in CUDA graphs; tied_autoencoder_large.py has the one exception.
The indices of entries are checked where a `SparseBatch` is made, not here; whatever they say, the kernels
read and write nothing out of bounds, and a sample with an entry out of range is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.devices import check_kernels
from toykern.network.activations import ACTIVATIONS
from toykern.ops.gate import check_entry_tensors
from toykern.ops.tied_autoencoder_call import Call, Gradients, Optional, Options
from toykern.ops.tied_autoencoder_large import Large

_PARTIAL_BYTES = 128 << 20


@cache
def _checked(device: torch.device) -> torch.device:
    """A device that the kernels run on, asked once; RuntimeError says why not."""
    return check_kernels(device)


class _Kernels:
    """Where the kernels run: a device, on torch's current stream of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = _checked(device)
        self._index = self.device.index
        self._stream = torch.cuda.current_stream(self.device).cuda_stream

    def can_look(self) -> bool:
        """Whether waiting for the device is allowed."""
        return not torch.cuda.is_current_stream_capturing()

    def stacked(self, params: Any, launch: Any) -> None:
        launch.device, launch.stream = self._index, self._stream
        _native.cuda.layer_stacked(params, launch)

    def tile(self, tile: Any, kernel: int) -> None:
        _native.cuda.layer_tile(tile, kernel, self._index, self._stream)

    def sums(self, sums: Any) -> None:
        _native.cuda.layer_sums(sums, self._index, self._stream)

    def product(self, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
        """out (+)= a b for stacks of matrices; sums in float32 where out is that and a and b are bfloat16."""
        one = out.shape[0] == 1
        if one:
            out, a, b = out[0], a[0], b[0]
        if out.dtype == a.dtype:
            if one:
                torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
            else:
                torch.baddbmm(out, a, b, out=out) if add else torch.bmm(a, b, out=out)
        elif one:
            if add:
                torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
            else:
                torch.mm(a, b, out_dtype=out.dtype, out=out)
        elif add:
            out.add_(torch.bmm(a, b, out_dtype=out.dtype))
        else:
            torch.bmm(a, b, out_dtype=out.dtype, out=out)


def kernels_of(device: torch.device) -> Any:
    """The kernels of a device; the tests put the device's source on the host in its place."""
    return _Kernels(device)


class CudaCall(Call):
    """What the CUDA kernels want beside: bfloat16 as it is, sums in float32; kernels chosen by the shape."""

    def __init__(
        self, task: str, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
        weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options,
    ) -> None:  # fmt: skip
        self.kernels = kernels_of(weight.device)
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                "weight must be float32 or bfloat16 on CUDA (float64 runs on the CPU), "
                f"not {describe(weight)}"
            )
        for name, layer in (("hidden_activation", "hidden"), ("output_activation", "output")):
            chosen = getattr(options, name)
            if chosen in ACTIVATIONS and layer not in ACTIVATIONS[chosen].cuda:
                raise ValueError(f"{name}={chosen!r} has no CUDA kernels yet; use model.cpu()")
        self.bf16 = weight.dtype == torch.bfloat16
        super().__init__(
            task, x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options, weight.dtype,
            torch.float32,
        )  # fmt: skip
        self.loss: Optional = None

    def _check_entries(
        self, row_start: torch.Tensor, feature: torch.Tensor, value: torch.Tensor, rows: int
    ) -> None:
        check_entry_tensors(row_start, feature, value, rows)  # their numbers stay where they are

    def run(self) -> None:
        """Launches the kernels; for no samples or models there are none, and gradients are 0."""
        if self.batch == 0 or self.models == 0:
            for tensor in (self.encoder_grad, self.decoder_grad, self.bias_grad, self.hidden_grad):
                if tensor is not None:
                    tensor.zero_()
            return
        p = self.params
        given = bool(p.output_grad or p.target_values)
        direct = self.input_grad is not None or self.target_grad is not None
        if _native.layer_is_stacked(self.features, self.hidden, self.tied, given, direct):
            self._run_stacked()
        else:
            Large(self).run()

    def _run_stacked(self) -> None:
        launch = _native.LayerLaunch()
        launch.bf16, launch.centered, launch.entries = self.bf16, self.centered, self.entries
        launch.loss = 0 if self.loss is None else self.at("loss", self.loss, torch.float32)
        floats = _native.stacked_partial_floats(self.params)
        group = self.models
        if floats:
            group = max(1, min(group, _PARTIAL_BYTES // (4 * floats)))
            partial = self.new(group * floats, dtype=torch.float32)
            launch.partial = self.at("partial", partial, torch.float32)
        for first in range(0, self.models, group):
            launch.first_model, launch.models = first, min(group, self.models - first)
            self.kernels.stacked(self.params, launch)


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """Products as they are written: autocast has been obeyed by whoever cast the arguments."""
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        yield


def output(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, hidden_activation: str, output_activation: str,
    top_k: int, centered: bool,
) -> torch.Tensor:  # fmt: skip
    """`tied_autoencoder` on CUDA."""
    options = Options(hidden_activation, output_activation, top_k, centered)
    with _plainly(weight.device):
        call = CudaCall("forward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        found = call.new(call.models, call.batch, call.features)
        call.params.output = call.at("output", found)
        call.run()
    return found


def backward(
    grad: torch.Tensor, output: Optional, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
    weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, hidden_activation: str,
    output_activation: str, top_k: int, centered: bool, weights_wanted: bool, x_wanted: bool,
) -> Gradients:  # fmt: skip
    """`tied_autoencoder_backward` on CUDA."""
    options = Options(hidden_activation, output_activation, top_k, centered)
    with _plainly(weight.device):
        call = CudaCall("backward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        call.want_output_gradient(grad, output)
        call.want_gradients(weights_wanted, x_wanted)
        if weights_wanted or x_wanted:
            call.run()
        return call.gradients()


def loss(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, hidden_activation: str, output_activation: str,
    top_k: int, centered: bool, importance: torch.Tensor, l1: Optional, target: Optional, target_kind: str,
    reduction: str, weights_wanted: bool, x_wanted: bool, target_wanted: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`tied_autoencoder_loss` on CUDA."""
    options = Options(hidden_activation, output_activation, top_k, centered)
    with _plainly(weight.device):
        call = CudaCall("loss", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        call.want_loss(importance, l1, target, target_kind, reduction, target_wanted)
        call.want_gradients(weights_wanted, x_wanted)
        call.loss = found = call.new(call.models, dtype=torch.float32, zero=True)
        call.run()
        return found, *call.gradients(), call.given_back(call.target_grad)


_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
_LIBRARY.impl("tied_autoencoder", output, "CUDA")
_LIBRARY.impl("tied_autoencoder_backward", backward, "CUDA")
_LIBRARY.impl("tied_autoencoder_loss", loss, "CUDA")
