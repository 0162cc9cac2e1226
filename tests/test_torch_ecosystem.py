"""The layers in what torch offers around modules: export, the meta device, default dtype and device."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

import toykern as tk


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.loss(x)


MODULES: dict[str, Any] = {
    "tied": lambda **o: tk.TiedAutoencoder(5, 3, 2, **o),
    "untied": lambda **o: tk.Autoencoder(
        5, 3, 2, hidden_activation="relu", hidden_bias=True, centered=True, **o
    ),
    "loss": lambda **o: Loss(tk.TiedAutoencoder(5, 3, 2, **o)),
    "mlp": lambda **o: tk.MLP(5, 3, n_models=2, **o),
    "sparse": lambda **o: tk.SparseLinear(5, 4, 0.5, seed=0, **o),
    "sparse autoencoder": lambda **o: tk.SparseTiedAutoencoder(5, 3, 0.5, n_models=2, **o),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_batch(kind: str, strict: bool) -> None:
    module = MODULES[kind]()
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(
        module, (torch.rand(6, 5),), dynamic_shapes=((({0: batch}),)), strict=strict
    )
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for samples in (2, 9):
        x = torch.rand(samples, 5)
        assert torch.equal(loaded(x), module(x))


@pytest.mark.parametrize("kind", [name for name in MODULES if "sparse" not in name])
def test_on_the_meta_device_there_are_shapes(kind: str) -> None:
    module = MODULES[kind]()
    with torch.device("meta"):
        shapes, x = MODULES[kind](), torch.rand(6, 5)
    got = shapes(x)
    assert got.is_meta and got.shape == module(torch.rand(6, 5)).shape
    got.sum().backward()
    for name, parameter in shapes.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("kind", MODULES)
def test_the_default_dtype_is_that_of_modules_and_results(kind: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        module, x = MODULES[kind](), torch.rand(6, 5)
        got = module(x)
        got.sum().backward()
        assert got.dtype == torch.float64
        assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float64}
        narrow = MODULES[kind](dtype=torch.float32)
        assert narrow(x.float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
