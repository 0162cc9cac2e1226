"""Sparse layers beside dense PyTorch, torch CSR, SparseProp and SparseLab: a whole training step each.

    python -m bench.bench_sparse_linear            the table, and a record in bench/results/
    pytest bench/bench_sparse_linear.py --benchmark-only

Every contender runs in a process of its own (SparseLab brings an OpenMP runtime of its own along), on all
cores, and contenders take turns within every workload. Peers: `pip install --no-deps sparselab`, and `pip
install --no-build-isolation --no-deps sparseprop` with pybind11 and scipy present; absent ones are left out
by name.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from bench.load import Watch, add_option, mark
from bench.peers.sparse import OURS, SPARSE_CONTENDERS, SPARSE_PEERS, SparseStep, why_absent
from bench.record import head, save
from bench.sparse_workloads import SPARSE_WORKLOADS, SparseWorkload

REPEATS = 9
REPEAT_SECONDS = 0.05
WARM_SECONDS = 0.02  # before every repeat, untimed: caches are cold and other processes' threads still spin
SLOW_SECONDS = 0.25  # a contender whose step takes longer is measured three times


@pytest.mark.parametrize("contender", SPARSE_CONTENDERS)
@pytest.mark.parametrize("workload", SPARSE_WORKLOADS, ids=lambda workload: workload.key)
def bench_sparse_linear(benchmark: Any, workload: SparseWorkload, contender: str) -> None:
    if (reason := why_absent(contender)) is not None:
        pytest.skip(reason)
    benchmark.group = workload.key
    with Contender(contender) as other:
        other.build(workload)
        benchmark.pedantic(other.run, args=(1,), rounds=5, warmup_rounds=2)


class Contender:
    """A contender in a process of its own; between calls it waits for a message and uses no core."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, name), daemon=True)
        self._process.start()
        there.close()

    def build(self, workload: SparseWorkload) -> None:
        """Sets the layer up, and warms it."""
        self._ask("build", workload)

    def run(self, steps: int) -> float:
        """Seconds per training step."""
        return self._ask("run", steps)

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, what: str, argument: Any) -> Any:
        self._pipe.send((what, argument))
        failed, value = self._pipe.recv()
        if failed:
            raise RuntimeError(value)
        return value


def _serve(pipe: Connection, name: str) -> None:
    step: SparseStep | None = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            what, argument = pipe.recv()
            try:
                if what == "build":
                    step = SparseStep(name, argument)
                    step.step()
                    step.step()
                    pipe.send((False, None))
                    continue
                assert step is not None
                start = time.perf_counter()
                while time.perf_counter() - start < WARM_SECONDS:
                    step.step()
                start = time.perf_counter()
                for _ in range(argument):
                    step.step()
                pipe.send((False, (time.perf_counter() - start) / argument))
            except Exception:
                pipe.send((True, traceback.format_exc()))


def measure(contenders: dict[str, Contender], workload: SparseWorkload, repeats: int) -> dict[str, Any]:
    """Milliseconds per step of every contender: medians, and how far they spread."""
    steps = {}
    for name, contender in contenders.items():
        contender.build(workload)
        once = contender.run(1)
        steps[name] = (max(1, round(REPEAT_SECONDS / once)), repeats if once < SLOW_SECONDS else 3)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, contender in contenders.items():
            count, times = steps[name]
            if repeat < times:
                samples[name].append(contender.run(count) * 1e3)
    return {
        name: {
            "step": statistics.median(samples[name]),
            "least": min(samples[name]),
            "most": max(samples[name]),
        }
        for name in contenders
    }


def row(workload: SparseWorkload, figures: dict[str, Any], peak: float) -> list[str]:
    """A line of the table."""
    ours = figures[OURS]["step"] if OURS in figures else float("nan")
    cells = [workload.shape, f"{workload.sparsity:.0%}", f"**{ours:.3g}**"]
    peers = {name: figures[name]["step"] for name in SPARSE_PEERS if name in figures}
    best = min(peers, key=peers.__getitem__) if peers else None
    cells.append("" if best is None else f"{peers[best]:.3g} ({best})")
    asked = "" if workload.sparse_ratio is None else f" (≥ {workload.sparse_ratio:g})"
    cells.append("" if best is None else f"{peers[best] / ours:.2f}×{asked}")
    asked = "" if workload.dense_ratio is None else f" (≥ {workload.dense_ratio:g})"
    for name in ("dense", "masked"):
        cells.append(f"{figures[name]['step']:.3g}" if name in figures else "")
    cells.append(f"{figures['dense']['step'] / ours:.2f}×{asked}" if "dense" in figures else "")
    flops = 6 * workload.batch * workload.in_features * workload.out_features * (1 - workload.sparsity)
    cells.append(f"{flops / peak * 1e3:.3g}")
    cells.append(f"{flops / ours / 1e6:.0f}")
    return cells


HEADER = ["batch, in→out", "sparsity", "toykern", "best sparse peer", "ratio", "dense", "masked dense"]
HEADER += ["dense ratio", "roof", "GFLOP/s"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_sparse_linear", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--shape", help="only this one, for example 1024,768,3072")
    parser.add_argument("--sparsity", type=float, nargs="+", help="only these")
    parser.add_argument("--contenders", nargs="+", choices=SPARSE_CONTENDERS, default=SPARSE_CONTENDERS)
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    workloads = [
        w
        for w in SPARSE_WORKLOADS
        if (options.sparsity is None or w.sparsity in options.sparsity)
        and (options.shape is None or options.shape == f"{w.batch},{w.in_features},{w.out_features}")
    ]
    from toykern import _native

    peak = max(_native.measure_fma_peak(torch.get_num_threads()) for _ in range(10))
    absent = {name: reason for name in options.contenders if (reason := why_absent(name)) is not None}
    record = head(
        "sparse layers: milliseconds per training step",
        cores=torch.get_num_threads(), peak_flops=peak, absent=absent, workloads=[],
    )  # fmt: skip
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    with contextlib.ExitStack() as stack:
        contenders = {n: stack.enter_context(Contender(n)) for n in options.contenders if n not in absent}
        for workload in workloads:
            figures = measure(contenders, workload, options.repeats)
            record["workloads"].append({"key": workload.key, "contenders": figures})
            print(f"| {' | '.join(row(workload, figures, peak))} |", flush=True)
    for name, reason in absent.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        path = save(record, "sparse")
        print(f"Every figure: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
