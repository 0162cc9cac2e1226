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
from typing import Any

import torch

from toykern import _native
from toykern.native.devices import shared_limit
from toykern.network.losses import Objective
from toykern.ops.tied_autoencoder_call import Gradients, Optional, options_of
from toykern.ops.tied_autoencoder_cuda_call import CudaCall
from toykern.ops.tied_autoencoder_large import Large

_PARTIAL_BYTES = 128 << 20


def _run(call: CudaCall) -> None:
    """Launches the kernels; for no samples or models there are none, and gradients are 0."""
    if call.batch == 0 or call.models == 0:
        for tensor in (call.encoder_grad, call.decoder_grad, call.bias_grad, call.hidden_grad):
            if tensor is not None:
                tensor.zero_()
        return
    p = call.params
    given = bool(p.output_grad or p.target_values)
    direct = call.input_grad is not None or call.target_grad is not None
    shape = (
        call.features,
        call.hidden,
        call.tied,
        given,
        direct,
        p.hidden_activation,
        shared_limit(call.device),
    )
    if _native.layer_is_stacked(*shape):
        _run_stacked(call)
    else:
        Large(call).run()


def _run_stacked(call: CudaCall) -> None:
    launch = _native.LayerLaunch()
    launch.bf16, launch.centered, launch.entries = call.bf16, call.centered, call.entries
    launch.loss = 0 if call.loss is None else call.at("loss", call.loss, torch.float32)
    floats = _native.stacked_partial_floats(call.params)
    group = call.models
    if floats:
        group = max(1, min(group, _PARTIAL_BYTES // (4 * floats)))
        partial = call.new(group * floats, dtype=torch.float32)
        launch.partial = call.at("partial", partial, torch.float32)
    for first in range(0, call.models, group):
        launch.first_model, launch.models = first, min(group, call.models - first)
        call.kernels.stacked(call.params, launch)


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """Products as they are written: autocast has been obeyed by whoever cast the arguments."""
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        yield


def output(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> torch.Tensor:  # fmt: skip
    """`tied_autoencoder` on CUDA."""
    options, _ = options_of(arguments)
    with _plainly(weight.device):
        call = CudaCall("forward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        found = call.new(call.models, call.batch, call.features)
        call.params.output = call.at("output", found)
        _run(call)
    return found


def backward(
    grad: torch.Tensor, output: Optional, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
    weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> Gradients:  # fmt: skip
    """`tied_autoencoder_backward` on CUDA."""
    options, (weights_wanted, x_wanted) = options_of(arguments)
    with _plainly(weight.device):
        call = CudaCall("backward", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        call.want_output_gradient(grad, output)
        call.want_gradients(weights_wanted, x_wanted)
        if weights_wanted or x_wanted:
            _run(call)
        return call.gradients()


def loss(
    x: torch.Tensor, row_start: Optional, feature: Optional, batch: int, weight: torch.Tensor,
    decoder: Optional, bias: Optional, hidden_bias: Optional, *arguments: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`tied_autoencoder_loss` on CUDA."""
    options, rest = options_of(arguments)
    importance, l1, given, *named, weights_wanted, x_wanted, target_wanted = rest
    with _plainly(weight.device):
        call = CudaCall("loss", x, row_start, feature, batch, weight, decoder, bias, hidden_bias, options)
        call.want_loss(importance, l1, given, Objective(*named), target_wanted)
        call.want_gradients(weights_wanted, x_wanted)
        call.loss = found = call.new(call.models, dtype=torch.float32, zero=True)
        _run(call)
        return found, *call.gradients(), call.given_back(call.target_grad)


_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
_LIBRARY.impl("tied_autoencoder", output, "CUDA")
_LIBRARY.impl("tied_autoencoder_backward", backward, "CUDA")
_LIBRARY.impl("tied_autoencoder_loss", loss, "CUDA")
