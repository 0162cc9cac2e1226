"""The fused layer and its peers under pytest-benchmark.

`pytest bench/bench_tied_autoencoder.py --benchmark-only`.

`python -m bench.layer` measures the same contenders interleaved and prints the comparison.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.layer.contenders import OURS, PEERS, contenders
from bench.layer.workloads import LAYER_WORKLOADS, LayerWorkload


@pytest.mark.parametrize("contender", [*OURS, *PEERS])
@pytest.mark.parametrize("workload", LAYER_WORKLOADS, ids=lambda workload: workload.key)
def bench_tied_autoencoder(benchmark: BenchmarkFixture, workload: LayerWorkload, contender: str) -> None:
    model, share = workload.model()
    step = contenders(model, workload.batch(seed=0))[contender]
    benchmark.group = workload.name
    benchmark.extra_info.update(active_share=share)
    benchmark.pedantic(step, rounds=9, warmup_rounds=2)
