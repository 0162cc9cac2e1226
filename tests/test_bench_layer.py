"""The layer's bench: contenders do the same work, figures are complete, memory is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from bench.layer.contenders import OURS, PEERS, READ, contenders
from bench.layer.measure import gflops, interleaved, peak_bytes
from bench.layer.workloads import LAYER_WORKLOADS, LayerWorkload, active_share

SMALL = LayerWorkload(2, 30, 6, 40, 0.9)


def test_contenders_find_the_same_gradients():
    model, share = SMALL.model()
    assert 0 < share < 1
    steps = contenders(model, SMALL.batch(seed=0))
    assert set(steps) == {*OURS, *PEERS, READ}
    found = {}
    for name in (*OURS, "eager"):
        steps[name]()
        found[name] = [parameter.grad.clone() for parameter in model.parameters()]
    for gradients in found.values():
        for gradient, expected in zip(gradients, found["eager"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_contenders_are_timed_in_turn():
    order = []
    samples = interleaved({name: lambda name=name: order.append(name) for name in ("a", "b")}, repeats=3)
    assert order == ["a", "a", "b", "b", *"ab" * 3]
    assert [len(values) for values in samples.values()] == [3, 3]


def test_training_stops_when_few_outputs_are_active():
    workload = LayerWorkload(1, 100, 20, 256, 0.998, trained=True)
    model, share = workload.model()
    assert share <= 0.02
    assert share == active_share(model, workload.batch(seed=0))


def test_batches_have_the_density():
    x = replace(SMALL, batch_size=4000).batch(seed=3)
    assert abs(float((x != 0).float().mean()) - 0.1) < 0.01
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    assert bool((replace(SMALL, sparsity=0.0).batch(seed=3) > 0).all())


def test_operations_are_counted_by_hand():
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]])
    workload = LayerWorkload(1, 2, 5, 3, 0.5)
    # two rows that are not empty, three entries, half of the outputs active
    dense, entries, active = 2 * 2 * 5, 2 * 3 * 5, 2 * 2 * 2 * 5 * 0.5
    assert gflops(workload, x, 0.5) == pytest.approx(2e-9 * (dense + entries + active))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc")
def test_peak_memory_sees_an_allocation():
    # First 100 MiB of blocks on the heap, freed again under one that lives: the heap cannot shrink by itself,
    # and the tensor would fit into it. A freed block of 28 MiB is what makes malloc put smaller ones there.
    torch.ones(7 * 2**20)
    blocks = [torch.ones(2**18 - 64) for _ in range(101)]
    del blocks[:-1]
    taken = peak_bytes(lambda: torch.ones(2**24))  # 64 MiB
    assert taken >= 60 * 2**20


def test_workloads_are_named_apart():
    assert len({workload.key for workload in LAYER_WORKLOADS}) == len(LAYER_WORKLOADS)
