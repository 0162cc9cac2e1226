"""The CUDA layer's own source and driver on the host (csrc/cuda/warp.h), and what both GPU tests compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from kit import largest_error, layer_batch, layer_loss_options, layer_of, layer_reference

import toykern as tk
from toykern import _native
from toykern.ops import tied_autoencoder_cuda as cuda
from toykern.ops import tied_autoencoder_cuda_call

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8}
"""Small models compute in float32 and round results once."""
LARGE_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-6}
"""Codes and gradients of large ones are rounded to bfloat16 for the products, as a bfloat16 PyTorch's are."""


class HostKernels:
    """In the place of a device's kernels; products by torch on the CPU, float32 sums for bfloat16."""

    def __init__(self, descending: bool = False) -> None:
        self.device, self._descending = torch.device("cpu"), descending
        self.called: list[str] = []

    def can_look(self) -> bool:
        return True

    def stacked(self, params: Any, launch: Any) -> None:
        self.called.append("stacked")
        _native.device_source_on_host.layer_stacked(params, launch, self._descending)

    def tile(self, tile: Any, kernel: int) -> None:
        self.called.append(f"tile {kernel}")
        _native.device_source_on_host.layer_tile(tile, kernel, self._descending)

    def sums(self, sums: Any) -> None:
        _native.device_source_on_host.layer_sums(sums, self._descending)

    def product(self, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
        found = a.float() @ b.float()
        out.copy_(out.float() + found if add else found)


def _never_plain(*call: Any) -> None:
    return None


@contextmanager
def device_layer(descending: bool = False, large: bool = False) -> Iterator[HostKernels]:
    """Modules on the CPU run the CUDA ops' own code, within; `large` sends small networks the large way."""
    kernels = HostKernels(descending)
    ops = {"tied_autoencoder": cuda.output, "tied_autoencoder_backward": cuda.backward}
    ops["tied_autoencoder_loss"] = cuda.loss
    stacked = _native.layer_is_stacked
    plain = {"plain_loss": _never_plain, "plain_output": _never_plain}
    with (
        mock.patch.object(tied_autoencoder_cuda_call, "kernels_of", lambda device: kernels),
        mock.patch.object(_native, "layer_is_stacked", lambda *shape: not large and stacked(*shape)),
        mock.patch.multiple(torch.ops.toykern, **ops),
        mock.patch.multiple("toykern.nn.stacked", **plain),  # which would go past the ops
    ):
        yield kernels


def case_errors(
    case: Any, dtype: torch.dtype, *, sparse: bool = False, inputs: bool = True, device: str = "cpu"
) -> dict[str, float]:
    """Of the loss and every gradient of a case, against the oracle: the largest error of each."""
    _, expected_loss, expected = layer_reference(case)
    model = layer_of(case, dtype).to(device)
    batch = {name: value.to(device) for name, value in layer_batch(case, dtype).items()}
    x, target = batch["x"].requires_grad_(inputs), batch.get("target")
    given: Any = x
    if sparse:
        given = tk.SparseBatch.from_dense(x.detach())
        given.value.requires_grad_(inputs)
    options = layer_loss_options(case)
    if "importance" in options:
        options["importance"] = options["importance"].to(device)
    if target is not None:
        options["target"] = target.requires_grad_(inputs)
    loss = model.loss(given, **options)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    if inputs:
        found["x"] = given.value.grad if sparse else x.grad
        if target is not None:
            found["target"] = target.grad
    assert set(found) >= set(expected) - {"x", "target"}
    errors = {"loss": largest_error(loss.detach().cpu(), expected_loss)}
    for name, gradient in found.items():
        wanted = expected[name]
        if name == "x" and sparse:
            wanted = wanted[layer_batch(case)["x"] != 0]
        assert gradient.dtype == dtype
        errors[name] = largest_error(gradient.cpu(), wanted)
    return errors
