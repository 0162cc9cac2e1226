"""What the GPU tests share: cases on the device, shapes of every regime, comparisons bit for bit.

Imports nothing but what a machine that came with CUDA, PyTorch and pytest has: no hypothesis, xarray, zarr or
matplotlib (tests/test_check_of_gpus.py sees to that).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    FIT_ACTIVATIONS,
    FIT_ACTIVATIONS_LARGE,
    FIT_CASES,
    FIT_LARGE,
    FIT_LONG,
    MAGNITUDES,
    FitCase,
)
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
# And by activations that are no floor: outputs and their errors then go by kernels of their own.
LARGE_TILES_CALLED = FitCase(
    "1100,33 large tiles, softplus",
    1100,
    33,
    1e-5,
    1800,
    n_models=1,
    steps=2,
    network={"hidden_activation": "gelu", "output_activation": "softplus"},
)
# The same tiles full of rows, and those of the weights' products, which one model fills only if it is large.
LONGEST = [
    FitCase("1100,33 longest, noise", 1100, 33, 0.02, 1800, n_models=1, features={"noise": 0.05}),
    FitCase("1100,33 longest", 1100, 33, 0.005, 1800, n_models=1),
    FitCase(
        "4300,257 longest", 4300, 257, 0.03, 12, n_models=1, tied=False,
        network={"hidden_activation": "relu", "output_activation": "none"},
        optimizer=tk.SGD(lr=0.01, momentum=0.9),
    ),
    FitCase("700,30 longest", 700, 30, 0.01, 40, n_models=1, optimizer=tk.SGD(lr=0.01, momentum=0.9)),
]  # fmt: skip
# Of the small regime, every size of the pieces that the decoder's gradient is cut into
# (csrc/cuda/small/shape.h): 2 to 4 features by 5 to 8 hidden rows, most of them with a piece that is not
# full; by both kinds of activation.
PIECES = [
    FitCase(
        f"{n},{m} pieces {hidden}", n, m, 0.1, 33, n_models=1, steps=3,
        network={"hidden_activation": hidden},
    )
    for hidden in ("relu", "gelu")
    for n, m in (
        (18, 9), (13, 10), (15, 12), (19, 14), (131, 9), (130, 10), (86, 18), (52, 35), (194, 9), (195, 10),
        (256, 18), (127, 42),
    )
]  # fmt: skip


# Of the tiny regime, every shape by every way to draw and every magnitude; of the small one, every m that
# has a kernel of its own, by rows that several warps share and by columns of more entries than the list
# takes.
def _falling(n: int, first: float, last: float) -> np.ndarray:
    """Probabilities of three models: of all features, of all but the last, of the first half of them."""
    p = np.linspace(first, last, n) * np.ones((3, 1))
    p[1, n - 1 :] = p[2, (n + 1) // 2 :] = 0
    return p


_DRAWS = (
    ("rare", lambda n: 0.05, "constant", {"hidden_activation": "relu", "bias": False}),
    ("rare, each its own", lambda n: _falling(n, 0.12, 0.004), "symmetric", {"output_activation": "none"}),
    (
        "rare half-normal",
        lambda n: np.outer((1, 0.03, 0.001), np.linspace(0.03, 0.1, n)),
        "half_normal",
        {},
    ),
    ("frequent", lambda n: 0.4, "constant", {"hidden_activation": "relu", "bias": False}),
    ("frequent, each its own", lambda n: _falling(n, 1.0, 0.2), "symmetric", {"output_activation": "none"}),
    ("frequent half-normal", lambda n: np.linspace(0.9, 0.13, n), "half_normal", {}),
)
EVERY_TINY = [
    FitCase(
        f"{n},{m} {name}", n, m, p(n), 601, steps=9, features={"magnitude": magnitude}, network=network,
        loss={"target": "abs"},
        optimizer=tk.SGD(lr=0.01, momentum=0.9) if "own" in name else tk.AdamW(lr=3e-3),
    )
    for n, m in ((2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (6, 2))
    for name, p, magnitude, network in _DRAWS
]  # fmt: skip
EVERY_SMALL = [
    FitCase(f"{n},{m} {name}", n, m, p(n), batch, n_models=2, steps=3, network={"hidden_activation": "relu"})
    for m in range(1, 9)
    for name, n, p, batch in (
        ("by rows", 83, lambda n: np.linspace(0.3, 0.9, n), 70),
        ("by columns", 41, lambda n: np.linspace(0.02, 0.12, n), 700),
    )
]  # fmt: skip
# Of the Gram form (csrc/cuda/gram/shape.h) what a device gives it: one to six samples at a time, a list
# that is filled again, features that are no multiple of four; and models beside them that it leaves.
GRAM = [
    FitCase("gram 29,11", 29, 11, np.linspace(0.01, 0.06, 29), 900, n_models=3, steps=3),
    FitCase("gram 43,4 symmetric", 43, 4, 0.02, 600, n_models=2, steps=3,
            features={"magnitude": "symmetric"}),
    FitCase("gram 90,21 |x|", 90, 21, 0.02, 500, n_models=2, steps=3, loss={"target": "abs"},
            network={"output_activation": "none"}, features={"magnitude": "symmetric"}),
    FitCase("gram 20,5 and others", 20, 5, [[0.02], [0.5], [0.0], [1e-5], [0.05]], 1024, n_models=5, steps=3),
]  # fmt: skip
# Of networks with other activations the same two, evaluated too; exclusive members of unequal probability.
SHARED_BY_WARPS = [
    FitCase(
        "83,20 gelu by rows", 83, 20, 0.5, 40, n_models=1, steps=3, network={"hidden_activation": "gelu"}
    ),
    FitCase(
        "83,20 softplus by columns", 83, 20, 0.02, 90, n_models=1, steps=3,
        network={"output_activation": "softplus"},
    ),
    *(
        FitCase(
            f"20,9 unequal {magnitude}", 20, 9, np.resize((0.02, 0.3, 0.2, 0.25, 0.04), 20), 60, steps=3,
            anticorrelated=((0, 1, 2), (5, 8, 9, 10)), features={"magnitude": magnitude},
        )
        for magnitude in MAGNITUDES
    ),
]  # fmt: skip
_GELU = {"hidden_activation": "gelu", "output_activation": "gelu"}
_LEAKY = {"hidden_activation": "leaky_relu", "output_activation": "softplus", "negative_slope": 0.25}
# Of the large regime, what the draw knows: groups, exclusive ones of unequal members, rare and frequent
# features.
LARGE_DATA = [
    FitCase(
        f"280,60 {name}", 280, 60, np.resize(p, 280), 70, n_models=2,
        features={"magnitude": magnitude}, **groups,
    )
    for name, p, magnitude, groups in (
        ("groups", (0.03, 0.4, 0.02, 0.4, 0.03, 0.02, 0.001, 0.2), "half_normal",
         {"correlated": ((0, 4), (1, 3)), "anticorrelated": ((2, 5),), "network": _GELU}),
        ("groups, rare", (0.003, 0.004, 0.002, 0.004, 0.003, 0.002), "symmetric",
         {"correlated": ((0, 6), (1, 7, 13)), "anticorrelated": ((2, 3, 5), (4, 10)), "network": _LEAKY}),
        ("rare and frequent", (0.001, 0.3, 0.05, 1.0), "constant",
         {"optimizer": tk.SGD(lr=0.01, momentum=0.9, nesterov=True)}),
        ("rare, each its own", (0.001, 0.02, 0.05, 0.0), "half_normal", {"tied": False}),
    )
]  # fmt: skip
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
