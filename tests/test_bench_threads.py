"""The bench of threads: processes get the wait policy that is named, and a line has every set-up."""

from __future__ import annotations

import os

import pytest

from bench import bench_threads
from bench.workloads import Workload

TINY = Workload(n_models=2, n_features=3, n_hidden=1, batch_size=32, sparsity=0.9)


def test_processes_find_the_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bench_threads.POLICY, "active")
    with bench_threads.environment("passive"):
        assert os.environ[bench_threads.POLICY] == "passive"
    with bench_threads.environment(None):
        assert bench_threads.POLICY not in os.environ
    assert os.environ[bench_threads.POLICY] == "active"


def test_the_table_has_wall_and_processor_time_of_every_set_up() -> None:
    found = {name: [(2.0, 3.0), (4.0, 5.0), (9.0, 9.0)] for name in bench_threads.setups()}
    found["one thread"] = [(8.0, 8.0)]
    text = bench_threads.render({"workloads": [{"name": "a", "microseconds": found}]})
    assert text.splitlines()[-1] == "| a | 2.00× | 8 / 8 |" + " 4 / 5 |" * 5


@pytest.mark.slow
def test_a_line_is_measured() -> None:
    line = bench_threads.measure(TINY, repeats=1, seconds=0.0)
    assert set(line["microseconds"]) == set(bench_threads.setups())
    assert all(wall > 0 and processor > 0 for ((wall, processor),) in line["microseconds"].values())
