"""Runs the CUDA kernels' own source on the host (csrc/cuda/host_twin.cpp), where there may be no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import toykern as tk
from toykern import _native
from toykern.broadcast import broadcast_seed

on_host = _native.device_source_on_host


def launch_for(data: tk.SparseFeatures, n_models: int) -> tuple[Any, list[Any]]:
    """A launch with the stream's tables of `data`, and what must be kept alive for it."""
    native = data.native()
    layout = _native.tables_layout(native)
    rows = n_models if data.probability.shape[0] > 1 else 1
    tables = np.zeros(rows * layout.bytes // 8 + 1, dtype=np.uint64)
    _native.fill_tables(native, layout, rows, tables.ctypes.data, 1)
    launch = _native.Launch()
    launch.layout = layout
    launch.tables = tables.ctypes.data
    launch.tables_stride = layout.bytes if rows > 1 else 0
    return launch, [data, tables]


def sample_on_host(
    data: tk.SparseFeatures, step: int, batch_size: int, seed: Any, *, n_models: int = 1, clean: bool = False,
    descending: bool = False, purpose: int = 0,
) -> torch.Tensor:  # fmt: skip
    """`data.sample(…)` by the device's source."""
    launch, _kept = launch_for(data, n_models)
    seeds = broadcast_seed("seed", seed, n_models)
    x = torch.full((n_models, batch_size, data.n_features), torch.nan)
    p = _native.SampleParams()
    p.data, p.n_models, p.batch_size, p.step, p.purpose = data.native(), n_models, batch_size, step, purpose
    p.seed, p.seed_stride = seeds.data_ptr(), 1
    setattr(p, "noisy" if data.noise > 0 and not clean else "clean", x.data_ptr())
    on_host.sample(p, launch, descending)
    return x
