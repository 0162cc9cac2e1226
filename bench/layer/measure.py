"""Times contenders in turn, and the most memory that one call takes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bench.layer.contenders import Step
from bench.layer.workloads import LayerWorkload
from toykern.nn import TiedAutoencoder


def interleaved(steps: Mapping[str, Step], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every repeat of every contender: a, b, c, a, b, c, …, equally disturbed."""
    for step in steps.values():
        step()
        step()
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return samples


def gflops(workload: LayerWorkload, x: torch.Tensor, share: float) -> float:
    """Operations that cannot be avoided, a multiply-add counted as two.

    One dense product for the outputs, two over the non-zero inputs, two over the active outputs.
    """
    m, entries = workload.n_hidden, int((x != 0).sum())
    rows = int((x != 0).any(dim=2).sum())
    dense = rows * workload.n_features * m
    return 2.0 * (dense + 2 * entries * m + 2 * share * rows * workload.n_features * m) / 1e9


def peak_bytes(step: Step) -> int:
    """The most memory that a call takes beyond what the process holds before it (Linux)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if (
        trim is not None
    ):  # what earlier calls freed into glibc's heap would be taken again without being counted
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def large_model_memory(n_features: int = 262_144, n_hidden: int = 512, batch: int = 1024) -> dict[str, float]:
    """MiB that forward + loss + backward takes beyond weights, gradients and input, and MiB of the output."""
    workload = LayerWorkload(1, n_features, n_hidden, batch, 0.999)
    x = workload.batch(seed=0)
    model = TiedAutoencoder(n_features, n_hidden, init=0.01)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())

    def step() -> None:
        model.loss(x).sum().backward()

    taken = peak_bytes(step)
    return {"beyond_mib": (taken - gradients) / 2**20, "output_mib": x.numel() * 4 / 2**20}


def median(samples: list[float]) -> float:
    return float(np.median(samples))
