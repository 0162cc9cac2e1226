"""`python -m bench.gpu.layer`: the fused layer on a GPU beside eager PyTorch and torch.compile.

Where it is installed, a public fused sparse autoencoder takes part. Contenders are timed in turn, the device
idle before and after.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu.__main__ import write
from bench.gpu.layer_contenders import OURS, PEERS, PUBLIC, Step, contender, why_absent
from bench.gpu.layer_workloads import GPU_LAYER_WORKLOADS, GpuLayerWorkload
from bench.load import Watch, mark

REPEAT_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.layer", description=__doc__)
    parser.add_argument("--budget", type=int, default=300, help="seconds in all (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each figure (default %(default)s)")
    keys = [w.key for w in GPU_LAYER_WORKLOADS]
    parser.add_argument("--only", nargs="+", choices=keys, help="only these workloads")
    parser.add_argument("--out", type=Path, help="a JSON file for every figure, written as they come")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the bench")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    from toykern.native.devices import check_kernels

    device = options.device
    check_kernels(device)
    chosen = [w for w in GPU_LAYER_WORKLOADS if options.only is None or w.key in options.only]
    watch = Watch.begin(insist=True)  # marked, not refused, as in bench.gpu
    end = time.monotonic() + options.budget
    figures: dict[str, Any] = {
        "bench": "layer on a GPU", "torch": torch.__version__,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(0),
        "repeats": options.repeats, "matrix_peak": {}, "workloads": [],
    }  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        size = 256 if device == "cpu" else 8192
        figures["matrix_peak"][dtype] = matrix_peak(getattr(torch, dtype), device, size)
    print(HEADER)
    for workload in chosen:
        if time.monotonic() > end:
            figures["workloads"].append({"key": workload.key, "failed": "no time was left"})
            continue
        found = entry(workload, options.repeats, device, figures["matrix_peak"], end)
        figures["workloads"].append(found)
        print(row(found), flush=True)
        write(figures, options.out)
    figures["load"] = watch.end()
    print(mark(figures))
    write(figures, options.out)
    return 0 if all("ours" in found for found in figures["workloads"]) else 1


HEADER = (
    "| workload | outputs active | toykern, ms | best peer, ms | ratio | asked | of the matrix peak | beyond "
    "weights and gradients |\n|---|---:|---:|---:|---:|---:|---:|---:|"
)


def entry(
    workload: GpuLayerWorkload, repeats: int, device: str, peaks: dict[str, float], end: float = float("inf")
) -> dict[str, Any]:
    """One workload of a record; a contender that fails says why."""
    found: dict[str, Any] = {"name": workload.name, **asdict(workload), "contenders": {}}
    try:
        model, share = workload.model(device)
        x = workload.batch(0, device)
    except (RuntimeError, MemoryError) as error:
        return found | {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    found["active_share"] = share
    steps: dict[str, tuple[Step, int]] = {}
    for name in (*OURS, *PEERS, *PUBLIC):
        why = why_absent(name, workload, device)
        if why is None and time.monotonic() > end:
            why = "no time was left"
        if why is not None:
            found["contenders"][name] = {"absent": why}
            continue
        try:
            step = contender(name, workload, model, x)
            for _ in range(3):
                timed(step, 1, device)
            once = timed(step, 1, device)
            steps[name] = (step, max(1, int(REPEAT_SECONDS / max(once, 1e-6))))
            found["contenders"][name] = {"samples": [], "extra_mib": extra_mib(step, model, device)}
        except Exception as error:  # out of memory, or what this version cannot run
            found["contenders"][name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    for _ in range(repeats):
        for name, (step, calls) in steps.items():
            found["contenders"][name]["samples"].append(1e3 * timed(step, calls, device) / calls)
    return conclude(found, workload, peaks)


def conclude(found: dict[str, Any], workload: GpuLayerWorkload, peaks: dict[str, float]) -> dict[str, Any]:
    """Medians in ms, the best of ours and of the peers, their ratio, the share of the matrix peak."""
    medians = {
        name: float(np.median(entry["samples"]))
        for name, entry in found["contenders"].items()
        if entry.get("samples")
    }
    found["milliseconds"] = medians
    for group, names in (("ours", OURS), ("peer", (*PEERS, *PUBLIC))):
        there = [name for name in names if name in medians]
        if there:
            found[group] = min(there, key=medians.__getitem__)
    if "ours" in found and "peer" in found:
        found["ratio"] = medians[found["peer"]] / medians[found["ours"]]
    if "ours" in found and peaks.get(workload.dtype):
        seconds = 1e-3 * medians[found["ours"]]
        found["matrix_share"] = products(workload, found["ours"]) / seconds / peaks[workload.dtype]
    return found


def products(workload: GpuLayerWorkload, ours: str) -> float:
    """Operations of the dense products that remain: D h, dz D and dzᵀ h, and with a dense x two more."""
    dense_input = workload.sparsity is None or ours == "toykern"
    each = 2.0 * workload.n_models * workload.batch_size * workload.n_features * workload.n_hidden
    return each * (5 if dense_input else 3)


def timed(step: Step, calls: int, device: str) -> float:
    """Seconds of so many calls."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        step()
    _wait(device)
    return time.perf_counter() - began


def extra_mib(step: Step, model: torch.nn.Module, device: str) -> float | None:
    """MiB at the peak of a call beyond what was there before it and the gradients."""
    if device == "cpu":
        return None
    for parameter in model.parameters():
        parameter.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    _wait(device)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20


def matrix_peak(dtype: torch.dtype, device: str, size: int) -> float:
    """Operations per second of a square product, the best of ten."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(timed(lambda: a @ a, 1, device) for _ in range(10))
    return 2.0 * size**3 / best


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    if "ours" not in found:
        return f"| {found['name']} | failed: {found.get('failed', found['contenders'])} |"
    ms, ours, peer = found["milliseconds"], found["ours"], found.get("peer")
    extra = found["contenders"][ours]["extra_mib"]
    cells = [
        found["name"],
        f"{100 * found['active_share']:.2g}%",
        f"{ms[ours]:.3g} ({ours})",
        f"{ms[peer]:.3g} ({peer})" if peer else "none ran",
        f"{found['ratio']:.3g}×" if peer else "",
        f"{found['required_ratio']:g}×" if found["required_ratio"] else "",
        f"{found['matrix_share']:.0%}" if "matrix_share" in found else "",
        f"{extra:.0f} MiB" if extra is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
