"""One call of the autoencoder ops on CUDA: what it checks and holds, and where its kernels run."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.devices import check_kernels
from toykern.network.activations import ACTIVATIONS
from toykern.network.specification import Options
from toykern.ops.gate import check_entry_tensors
from toykern.ops.tied_autoencoder_call import Call, Optional


@cache
def _checked(device: torch.device) -> torch.device:
    """A device that the kernels run on, asked once; RuntimeError says why not."""
    return check_kernels(device)


class Kernels:
    """Where the kernels run: a device, on torch's current stream of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = _checked(device)
        self._index = self.device.index
        self._stream = torch.cuda.current_stream(self.device).cuda_stream

    def can_look(self) -> bool:
        """Whether waiting for the device is allowed."""
        return not torch.cuda.is_current_stream_capturing()

    def stacked(self, params: Any, launch: Any) -> None:
        """One launch for some of a call's models."""
        launch.device, launch.stream = self._index, self._stream
        _native.cuda.layer_stacked(params, launch)

    def tile(self, tile: Any, kernel: int) -> None:
        """What is between two products of a tile."""
        _native.cuda.layer_tile(tile, kernel, self._index, self._stream)

    def sums(self, sums: Any) -> None:
        """Sums over the blocks of a tile."""
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
    return Kernels(device)


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
        for name, place in (("hidden_activation", "hidden"), ("output_activation", "output")):
            chosen = getattr(options, name)
            if chosen in ACTIVATIONS and place not in ACTIVATIONS[chosen].cuda:
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
