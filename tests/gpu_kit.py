"""What the GPU tests share: cases on the device, shapes of every regime, comparisons bit for bit.

Imports nothing but what a machine that came with CUDA, PyTorch and pytest has: no hypothesis, xarray, zarr or
matplotlib (tests/test_check_of_gpus.py sees to that).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cases import FIT_ACTIVATIONS, FIT_ACTIVATIONS_LARGE, FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from kit import data_of, model_of, tensors_of

import toykern as tk

DEVICE = os.environ.get("TOYKERN_GPU_TESTS_ON", "cuda")  # cpu: tries the tests themselves, without a GPU
on_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA itself")
BY_NAME = {case.name: case for case in (*FIT_CASES, *FIT_LARGE, *FIT_LONG)}

# Of each regime (csrc/cuda/regimes.h): rare and frequent units, groups, noise, untied, momentum.
TINY = [
    BY_NAME[name]
    for name in (
        "2,1 batch 1024", "5,2 rare and frequent", "5,2 each model its own", "5,2 momentum", "3,2 batch 31",
    )
]  # fmt: skip
SMALL = [
    BY_NAME[name]
    for name in (
        "8,3 groups of all kinds", "7,3 untied relu none", "16,8", "128,1 rare", "129,1 frequent",
        "17,9 Nesterov", "20,9 each model its own", "20,9 noise, groups", "33,17 batch 33", "80,20",
    )
]  # fmt: skip
LARGE = [BY_NAME[name] for name in ("400,30 many active", "300,257 deep", "260,50 noise")]
VARIED = [*TINY, *SMALL, *LARGE]

# The other shapes that the tiny regime has kernels for; batches of which nothing is drawn, so that few
# barriers stand between what one thread writes and another reads; samples enough for the largest
# output tiles of the large regime (csrc/cuda/large/train_large.cuh), nearly all of them empty.
OTHER_TINY = [BY_NAME[name] for name in ("3,1", "4,2 batch 33", "6,2")]
NOTHING_ACTIVE = FitCase("129,1 nothing active", 129, 1, 0.0, 40, steps=20)
LARGE_TILES = FitCase("1100,33 large tiles", 1100, 33, 1e-5, 1800, n_models=1, steps=2)
# Activations that no fast loop lists, by the small and the large regime.
ACTIVATIONS = [FIT_ACTIVATIONS[2], FIT_ACTIVATIONS[8], FIT_ACTIVATIONS[11], FIT_ACTIVATIONS_LARGE]


def ids(case: FitCase) -> str:
    return case.name


def fit_on_gpu(case: FitCase, model: Any = None, data: Any = None, **options: Any) -> tk.Run:
    """`tk.fit` of a case on the device; `options` replace those of the case."""
    settings = {
        "steps": case.steps, "batch_size": case.batch_size, "optimizer": case.optimizer,
        "schedule": case.schedule, "progress": False, **case.loss,
    }  # fmt: skip
    model = model_of(case) if model is None else model
    return tk.fit(model.to(DEVICE), data_of(case) if data is None else data, **(settings | options))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, wherever they are; NaNs too."""
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def assert_same_runs(run: tk.Run, other: tk.Run, models: Any = None, other_models: Any = None) -> None:
    """All that training makes is equal bit by bit, in all models or in `models` (and `other_models`)."""
    ours, theirs = tensors_of(run), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        a, b = value.detach().cpu(), theirs[name].detach().cpu()
        a, b = (a if models is None else a[models]), (b if other_models is None else b[other_models])
        assert same_bits(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} differ"
