"""Recipes under DistributedDataParallel: all ranks keep one topology, and it is that of one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from masked_dense import MaskedLayer, Mixed, batch, loss_of
from topology_kit import REAL_RECIPES, everything
from torch import nn

from toykern import sparse


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


DDP_STEPS = 12
DDP_RECIPES = (
    sparse.RigL(interval=3, end=50, accumulate=2),
    sparse.SET(interval=3),
    sparse.GSE(interval=3, end=50),
)


class MaskedModel(nn.Module):
    """One float32 layer inside another module, as DistributedDataParallel wants it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = MaskedLayer(sparse.Topology.random(9, 7, 0.4, seed=seed), dtype=torch.float32)

    def forward(self, x):
        return self.layer(x)


def trained_on_halves(rank, recipe):
    """On every rank half of each batch; what one process gets is in `rank` None."""
    model = MaskedModel(0) if rank is None else nn.parallel.DistributedDataParallel(MaskedModel(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    topology = recipe.attach(model, optimizer)
    for step in range(DDP_STEPS):
        x = batch(step, 9, size=16, dtype=torch.float32)
        x = x if rank is None else x[:, rank * 8 : rank * 8 + 8]
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()
        topology.step()
    (layer,) = topology.layers.values()
    return layer.topology.column.tolist(), layer.values.tolist(), topology.updates


def real_on_halves(rank, name):
    """The same with two real sparse layers, a sparse autoencoder and a dense layer, in double precision.

    All tensors of model, optimiser and recipe as arrays, the number of updates, and what they did.
    """
    model = Mixed(2)
    parallel = model if rank is None else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.01)
    topology = REAL_RECIPES[name].attach(parallel, optimizer)
    for step in range(27):
        x = batch(step, 9, 2)
        x = x if rank is None else x[:, rank * 8 : rank * 8 + 8]
        optimizer.zero_grad()
        loss_of(parallel(x), x).backward()
        optimizer.step()
        topology.step()
    found = everything(model, optimizer, topology)
    # What each rank saw of its own half is not the whole's.
    arrays = {
        key.replace("module.", ""): value.numpy() for key, value in found.items() if ".memory." not in key
    }
    reports = [
        {part.replace("module.", ""): report.dropped.tolist() for part, report in update.layers.items()}
        for update in topology.history
    ]
    return arrays, topology.updates, reports


def zero_is_refused():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(Mixed(2))
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)
    try:
        sparse.SET().attach(model, zero)
    except ValueError as error:
        return str(error)
    return "nothing"


def on_a_rank(rank, folder, queue):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = [trained_on_halves(rank, recipe) for recipe in DDP_RECIPES]
    real = {name: real_on_halves(rank, name) for name in REAL_RECIPES}
    try:
        model = MaskedModel(seed=rank)
        sparse.SET().attach(model, torch.optim.Adam(model.parameters()))
        refused = "nothing"
    except RuntimeError as error:
        refused = str(error)
    queue.put((rank, results, real, refused, zero_is_refused()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_keep_one_topology(tmp_path):
    """Each rank sees half of every batch; both end with what one process makes of the whole batches."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=on_a_rank, args=(rank, tmp_path, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    ranks = sorted((queue.get(timeout=1800) for _ in processes), key=lambda result: result[0])
    (_, first, real, refused, zero), (_, second, also_real, also_refused, _) = ranks
    for process in processes:
        process.join(timeout=1800)
    for recipe, ours, theirs in zip(DDP_RECIPES, first, second, strict=True):
        assert ours == theirs
        column, values, updates = trained_on_halves(None, recipe)
        assert ours[0] == column and ours[2] == updates == 4
        assert torch.allclose(torch.tensor(ours[1]), torch.tensor(values), atol=1e-5)
    for message in (refused, also_refused):
        assert "the ranks have different topologies when the recipe is attached" in message
    assert "ZeroRedundancyOptimizer keeps each parameter's state on one rank alone" in zero
    for name in REAL_RECIPES:
        expected, updates, reports = real_on_halves(None, name)
        for found in (real[name], also_real[name]):
            assert found[1:] == (updates, reports), name
            assert found[0].keys() == expected.keys()
        for key, array in real[name][0].items():  # of the two ranks the same bits
            assert array.tobytes() == also_real[name][0][key].tobytes(), (name, key)
            assert np.allclose(array, expected[key], rtol=1e-8, atol=1e-11), (name, key)
