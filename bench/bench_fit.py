"""`tk.fit` and its peers under pytest-benchmark: `pytest bench/ --benchmark-only`.

Each figure is a whole `run` of half a second or more, by the fastest of the contender's set-ups. `python -m
bench` measures the same contenders interleaved and prints the comparison.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measure import best_session
from bench.peers import CONTENDERS, why_absent
from bench.workloads import WORKLOADS, Workload


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)
def bench_fit(benchmark: BenchmarkFixture, workload: Workload, contender: str) -> None:
    if (reason := why_absent(contender)) is not None:
        pytest.skip(reason)
    benchmark.group = workload.name
    with best_session(contender, workload) as (session, steps, tried):
        benchmark.pedantic(session.run, args=(steps,), rounds=5)
        benchmark.extra_info.update(steps=steps, setup=session.variant.label, tried=tried)
        if benchmark.stats is not None:  # None where benchmarks are switched off
            seconds = benchmark.stats.stats.median / steps / workload.n_models
            benchmark.extra_info["microseconds_per_model_step"] = seconds * 1e6
