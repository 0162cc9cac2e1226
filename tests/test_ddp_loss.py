"""What synchronises gradients between ranks, as docs/sparse_layers.md says: two processes with gloo."""

import datetime

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import toykern as tk


class _Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.loss(x).sum()


def _same_on_all_ranks(tensor):
    found = [torch.zeros_like(tensor) for _ in range(2)]
    distributed.all_gather(found, tensor.contiguous())
    return torch.equal(found[0], found[1])


def _rank(rank, store):
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(store, 2),
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=10),
    )
    torch.set_num_threads(1)
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(rank))
    for make in (tk.TiedAutoencoder, tk.SparseTiedAutoencoder):
        options = {} if make is tk.TiedAutoencoder else {"density": 0.5}
        for way, synchronised in (("past", False), ("wrapped", True), ("forward", True)):
            model = make(6, 3, n_models=2, **options)
            ddp = DistributedDataParallel(_Loss(model) if way == "wrapped" else model)
            if way == "past":
                loss = ddp.module.loss(x).sum()
            else:
                loss = ddp(x) if way == "wrapped" else (x - ddp(x)).square().mean()
            loss.backward()
            assert _same_on_all_ranks(next(ddp.parameters()).grad) == synchronised, (make, way)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_loss_of_the_module_goes_past_ddp(tmp_path):
    multiprocessing.spawn(_rank, (str(tmp_path / "store"),), nprocs=2)
