"""DTensors, which parameters are under FSDP2 outside of forward: refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import toykern as tk

fsdp = pytest.importorskip("torch.distributed.fsdp")
tensors = pytest.importorskip("torch.distributed.tensor")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of one process."""
    file: Path = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield tensors.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_models_and_layers_refuse_them_by_name(mesh: Any) -> None:
    data, x = tk.SparseFeatures(5, 0.3), torch.rand(4, 5)
    shared = tensors.distribute_module(tk.TiedAutoencoder(5, 2, 3), mesh)
    with pytest.raises(TypeError, match=r"^model\.weight must be a plain tensor, not a DTensor"):
        tk.evaluate(shared, data, samples=10)
    for call in (shared, shared.loss):
        with pytest.raises(TypeError, match=r"^weight must be a plain tensor, not a DTensor"):
            call(x)
    with pytest.raises(TypeError, match=r"^x must be a plain tensor, not a DTensor"):
        tk.TiedAutoencoder(5, 2).loss(tensors.distribute_tensor(x, mesh))
    layer = tensors.distribute_module(tk.SparseLinear(5, 3, 0.5), mesh)
    with pytest.raises(TypeError, match=r"^values must be a plain tensor, not a DTensor"):
        layer(x)


class Loss(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.loss(x).sum()


def test_fsdp_trains_models_whose_loss_is_a_forward_pass(mesh: Any) -> None:
    """As docs/fused_layer.md has it."""
    alone, shared, x = Loss(tk.TiedAutoencoder(5, 2, 3)), Loss(tk.TiedAutoencoder(5, 2, 3)), torch.rand(4, 5)
    fsdp.fully_shard(shared)
    for module in (alone, shared):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).backward()
            optimizer.step()
    for theirs, ours in zip(shared.parameters(), alone.parameters(), strict=True):
        assert torch.equal(theirs.full_tensor(), ours)
    with pytest.raises(TypeError, match=r"^weight must be a plain tensor, not a DTensor"):
        shared.model.loss(x)


def test_fsdp_trains_sparse_layers_and_recipes_refuse_them(mesh: Any) -> None:
    net = tk.sparsify(nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)), 0.2, seed=1)
    late = tk.SET(interval=1, end=9).attach(net, torch.optim.Adam(net.parameters()))
    x = torch.rand(4, 20)
    want = net(x)
    fsdp.fully_shard(net)
    got = net(x)
    assert torch.equal(got, want)
    got.sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    with pytest.raises(TypeError, match=r"^0\.values must be a plain tensor, not a DTensor"):
        tk.SET(interval=1, end=9).attach(net, optimizer)
    with pytest.raises(RuntimeError, match="updated by another optimizer"):
        late.step()
    layer = net[0]
    with pytest.raises(TypeError, match="not a DTensor"):
        layer.set_topology(layer.topology, torch.arange(len(layer.values)))
