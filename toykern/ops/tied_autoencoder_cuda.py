"""The autoencoder ops on CUDA: one launch for many small models, torch's products between kernels for large.

    small   weights and gradients within a block's shared memory: csrc/cuda/layer_stacked.cuh
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
from toykern.devices import check_kernels
from toykern.errors import check_choice, describe
from toykern.ops.gate import check_like, check_shape, shared_over_models
from toykern.ops.tied_autoencoder import HIDDEN, OUTPUT, REDUCTIONS, TARGETS, Gradients, Optional, Options
from toykern.ops.tied_autoencoder_large import Large

_TASKS = {"forward": 0, "loss": 1, "backward": 2}
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


class Call:
    """One call: arguments through the gate and kept alive, outputs allocated, kernels chosen by the shape."""

    def __init__(
        self, task: str, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
        weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options,
    ) -> None:  # fmt: skip
        self.kernels = kernels_of(weight.device)
        self.dtype = weight.dtype
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                "weight must be float32 or bfloat16 on CUDA (float64 runs on the CPU), "
                f"not {describe(weight)}"
            )
        check_shape("weight", weight, [None, None, None])
        models, m, n = (int(size) for size in weight.shape)
        self.models, self.hidden, self.features, self.batch = models, m, n, int(batch)
        self.task, self.options, self.tied = task, options, decoder is None
        self.device, self.bf16 = weight.device, self.dtype == torch.bfloat16
        options.check(m)
        self.params = p = _native.LayerParams()
        self.kept: list[torch.Tensor] = []
        self._likeness = weight
        p.task, p.tied, p.top_k = _TASKS[task], self.tied, options.top_k
        p.n_models, p.batch, p.n_features, p.n_hidden = models, self.batch, n, m
        p.hidden_activation = HIDDEN.index(options.hidden_activation)
        p.output_activation = OUTPUT.index(options.output_activation)
        self.weight = self.take("weight", weight)
        p.encoder = self.weight.data_ptr()
        self.decoder: Optional = None
        if decoder is not None:
            check_shape("decoder", decoder, [models, n, m])
            self.decoder = self.take("decoder", decoder)
            p.decoder = self.decoder.data_ptr()
        self.bias: Optional = None
        if bias is not None:
            check_shape("bias", bias, [models, n])
            self.bias = self.take("bias", bias)
            p.bias = self.bias.data_ptr()
        self.hidden_bias: Optional = None
        if hidden_bias is not None:
            check_shape("hidden_bias", hidden_bias, [models, m])
            self.hidden_bias = self.take("hidden_bias", hidden_bias)
            p.hidden_bias = self.hidden_bias.data_ptr()
        self.centered = options.centered and self.bias is not None
        self.x: Optional = None
        self.row_start, self.feature, self.entries = row_start, feature, 0
        self._take_input(x, row_start, feature)
        self.encoder_grad: Optional = None
        self.decoder_grad: Optional = None
        self.bias_grad: Optional = None
        self.hidden_grad: Optional = None
        self.input_grad: Optional = None
        self.target_grad: Optional = None
        self.loss: Optional = None
        self.l1: Optional = None

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, alive until the kernels are launched."""
        self.kept.append(tensor)
        return tensor

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Contiguous, of the weights' dtype and device, alive until the kernels are launched.

        torch's allocator gives memory that is freed afterwards only to later work of the same stream.
        """
        check_like(name, tensor, self._likeness, "the weights")
        return self.keep(tensor.detach().contiguous())

    def take_floats(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """As float32, from the weights' device."""
        if tensor.device != self.device:
            raise ValueError(
                f"{name} must be on the device of the weights, {self.device}, not {tensor.device}"
            )
        return self.keep(tensor.detach().to(torch.float32).contiguous())

    def _take_input(self, x: torch.Tensor, row_start: Optional, feature: Optional) -> None:
        p, models, batch, n = self.params, self.models, self.batch, self.features
        if row_start is None or feature is None:
            check_shape("x", x, [models, batch, n], [1, batch, n])
            self.x = self.take("x", shared_over_models(x))
            p.x, p.x_stride = self.x.data_ptr(), batch * n if self.x.shape[0] > 1 else 0
            return
        for name, tensor, dtype in (("row_start", row_start, torch.int64), ("feature", feature, torch.int32)):
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, not {describe(tensor)}")
            if tensor.device != self.device or not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous and on the device of the weights, {self.device}")
        check_shape("row_start", row_start, [models * batch + 1], [batch + 1])
        check_shape("feature", feature, [x.numel()])
        check_shape("value", x, [feature.numel()])
        values = self.take("value", x)
        shared = row_start.numel() - 1 == batch
        self.entries, self.values = x.numel(), values
        self.keep(row_start), self.keep(feature)
        p.value, p.row_start, p.feature = values.data_ptr(), row_start.data_ptr(), feature.data_ptr()
        p.row_stride = 0 if shared else batch
        p.value_grad_stride = values.numel() if shared and models > 1 else 0

    def new(
        self, *shape: int, dtype: torch.dtype | None = None, zero: bool = False, like: Optional = None
    ) -> torch.Tensor:
        """A tensor on the device, kept alive; a MemoryError says what was asked."""
        make = torch.zeros if zero else torch.empty
        try:
            return self.keep(make(shape, dtype=dtype or self.dtype, device=self.device))
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            size = torch.Size(shape).numel() * (dtype or self.dtype).itemsize / 2**20
            raise MemoryError(
                f"{size:.0f} MiB are needed on {str(self.device)!r} for a tensor of shape {list(shape)}, in "
                f"a call with {self.models} models, {self.batch} samples, {self.features} features and "
                f"{self.hidden} hidden units"
            ) from error

    def want_gradients(self, weights_wanted: bool, x_wanted: bool) -> None:
        """Allocates what the kernels write them to."""
        p, models, n, m = self.params, self.models, self.features, self.hidden
        if weights_wanted:
            self.encoder_grad = self.new(models, m, n)
            p.encoder_grad = self.encoder_grad.data_ptr()
            if not self.tied:
                self.decoder_grad = self.new(models, n, m)
                p.decoder_grad = self.decoder_grad.data_ptr()
            if self.bias is not None:
                self.bias_grad = self.new(models, n)
                p.bias_grad = self.bias_grad.data_ptr()
            if self.hidden_bias is not None:
                self.hidden_grad = self.new(models, m)
                p.hidden_bias_grad = self.hidden_grad.data_ptr()
        if x_wanted and self.x is not None:
            self.input_grad = self.new(models, self.batch, n)
            p.x_grad = self.input_grad.data_ptr()
        elif x_wanted:
            stacked = (models,) if p.value_grad_stride else ()
            # What no row holds keeps a gradient of 0.
            self.input_grad = self.new(*stacked, self.entries, zero=True)
            p.value_grad = self.input_grad.data_ptr()

    def want_loss(
        self, importance: torch.Tensor, l1: Optional, target: Optional, target_kind: str, reduction: str,
        target_wanted: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Takes what the loss is made of; returns where it will be, `[models]`, zeros at first."""
        p, models, n = self.params, self.models, self.features
        check_shape("importance", importance, [models, n], [1, n])
        rows = self.take_floats("importance", shared_over_models(importance))
        p.importance, p.importance_stride = rows.data_ptr(), n if rows.shape[0] > 1 else 0
        if l1 is not None:
            check_shape("l1", l1, [models], [1])
            self.l1 = self.take_floats("l1", l1)
            p.l1, p.l1_stride = self.l1.data_ptr(), 1 if self.l1.shape[0] > 1 else 0
        p.target = TARGETS.index(check_choice("target_kind", target_kind, TARGETS))
        if target_kind == "tensor":
            if target is None:
                raise ValueError("target must be a tensor with target_kind='tensor', not None")
            check_shape("target", target, [models, self.batch, n], [1, self.batch, n])
            wanted = self.take("target", shared_over_models(target))
            p.target_values = wanted.data_ptr()
            p.target_stride = self.batch * n if wanted.shape[0] > 1 else 0
            if target_wanted:
                self.target_grad = self.new(models, self.batch, n)
                p.target_grad = self.target_grad.data_ptr()
        per_sample = n if check_choice("reduction", reduction, REDUCTIONS) == "mean" else 1
        p.loss_scale, p.l1_scale = 1.0 / (self.batch * per_sample), 1.0 / self.batch
        self.loss = self.new(models, dtype=torch.float32, zero=True)
        return self.loss

    def gradients(self) -> Gradients:
        """Of encoder, decoder, bias, hidden bias and input; empty tensors where not wanted."""
        found = [self.encoder_grad, self.decoder_grad, self.bias_grad, self.hidden_grad, self.input_grad]
        encoder, decoder, bias, hidden, x = (self._or_nothing(tensor) for tensor in found)
        return encoder, decoder, bias, hidden, x

    def _or_nothing(self, tensor: Optional) -> torch.Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device) if tensor is None else tensor

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
        launch.loss = 0 if self.loss is None else self.loss.data_ptr()
        floats = _native.stacked_partial_floats(self.params)
        group = self.models
        if floats:
            group = max(1, min(group, _PARTIAL_BYTES // (4 * floats)))
            launch.partial = self.new(group * floats, dtype=torch.float32).data_ptr()
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
        call = Call("forward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        found = call.new(call.models, call.batch, call.features)
        call.params.output = found.data_ptr()
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
        call = Call("backward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        shape = [call.models, call.batch, call.features]
        check_shape("grad", grad, shape)
        call.params.output_grad = call.take("grad", grad).data_ptr()
        if output is not None:
            check_shape("output", output, shape)
            call.params.output = call.take("output", output).data_ptr()
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
        call = Call("loss", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        if call.batch == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        found = call.want_loss(importance, l1, target, target_kind, reduction, target_wanted)
        call.want_gradients(weights_wanted, x_wanted)
        call.run()
        return found, *call.gradients(), call._or_nothing(call.target_grad)


_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
_LIBRARY.impl("tied_autoencoder", output, "CUDA")
_LIBRARY.impl("tied_autoencoder_backward", backward, "CUDA")
_LIBRARY.impl("tied_autoencoder_loss", loss, "CUDA")
