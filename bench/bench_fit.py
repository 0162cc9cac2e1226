"""`tk.fit` and its peers under pytest-benchmark: `pytest bench/ --benchmark-only`.

Each figure is the time per model-step of a whole `run` of half a second or more, by the fastest of the
contender's set-ups. `python -m bench` measures the same contenders interleaved and prints the comparison.
"""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measure import best_session
from bench.peers import CONTENDERS, why_absent
from bench.workloads import WORKLOADS, Workload


class ModelStepClock:
    """A clock whose differences are seconds per model-step, when `model_steps` of them are done in between.

    Contenders run different numbers of steps in their half second; this makes pytest-benchmark's figures
    comparable.
    """

    model_steps = 1

    def __call__(self) -> float:
        return time.perf_counter() / self.model_steps


CLOCK = ModelStepClock()


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)
def bench_fit(benchmark: BenchmarkFixture, workload: Workload, contender: str) -> None:
    if (reason := why_absent(contender)) is not None:
        pytest.skip(reason)
    benchmark.group = workload.name
    with best_session(contender, workload) as (session, steps, tried):
        CLOCK.model_steps = steps * workload.n_models
        try:
            benchmark.pedantic(session.run, args=(steps,), rounds=5)
        finally:
            CLOCK.model_steps = 1
        benchmark.extra_info.update(steps=steps, setup=session.variant.label, tried=tried)
