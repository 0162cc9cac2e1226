"""A few steps of each training loop on a GPU, for compute-sanitizer to watch: `python tools/gpu_steps.py`.

Small on purpose, since a sanitizer slows kernels a hundredfold: every regime (csrc/cuda/regimes.h) with rare
and frequent features, groups and noise, then an evaluation and a batch; sparse models and sparse layers by
every back end, with updates of their topology; the fused autoencoder layer. What covers most comes first;
with `--until` it ends in time for the sanitizer to say what it found. It exits with 1 if a result is not
finite.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch

import toykern as tk
from toykern.ops import tied_autoencoder_large

# n, m, models, batch, tied
SHAPES = [
    (2, 1, 5, 100, True),
    (5, 2, 40, 33, True),
    (20, 5, 3, 64, True),
    (9, 4, 2, 31, False),
    (80, 20, 2, 40, True),
    (400, 30, 2, 16, True),
    (150, 90, 1, 20, False),
]
LAYER_SHAPES = [(5, 2, 40, 33, True), (9, 4, 2, 31, False), (300, 70, 2, 40, True), (300, 70, 1, 40, False)]
TOP_K = {"hidden_activation": "topk", "top_k": 1, "centered": True, "hidden_bias": True}

Step = tuple[str, Callable[[str], bool]]


def steps() -> list[Step]:
    """All of them: (what it is, what does it on a device and says whether all results are finite)."""

    def distributions(n: int) -> dict[str, tuple[Any, dict[str, Any]]]:
        return {
            "rare": (0.03, {}),
            "frequent": (0.4, {}),
            "rare, frequent and noise": ([0.02, *[0.4] * (n - 1)], {"noise": 0.1}),
            "group": (1 / n, {"groups": [tk.Anticorrelated(range(n))]}),
        }

    found: list[Step] = []
    for kind in ("rare", "rare, frequent and noise"):
        found += [
            (f"{s[0]} → {s[1]}, {kind}", partial(trained, s, *distributions(s[0])[kind])) for s in SHAPES
        ]
    # The ring of magnitudes goes round, and chunks and slices follow one another.
    found.append(("2 → 1, frequent, a long batch", partial(trained, (2, 1, 3, 2100, True), 0.6, {})))
    for shape in ((5, 2), (60, 17)):
        found.append((f"sparse models {shape[0]} → {shape[1]}", partial(sparse_models, shape)))
    for backend in ("dense", "slots", "groups"):
        found.append((f"sparse layer, {backend}", partial(sparse_layer, backend, torch.float32)))
    for shape in LAYER_SHAPES:
        for sparse in (False, True):
            name = f"layer {shape[0]} → {shape[1]}, {'entries' if sparse else 'dense'}"
            found.append((name, partial(layer, shape, sparse, {}, torch.float32)))
    for shape in LAYER_SHAPES:
        for sparse in (False, True):
            name = f"layer {shape[0]} → {shape[1]}, {'entries' if sparse else 'dense'}, top-k, bfloat16"
            found.append((name, partial(layer, shape, sparse, TOP_K, torch.bfloat16)))
    for kind in ("frequent", "group"):
        found += [
            (f"{s[0]} → {s[1]}, {kind}", partial(trained, s, *distributions(s[0])[kind])) for s in SHAPES
        ]
    for backend in ("dense", "slots", "groups"):
        found.append((f"sparse layer, {backend}, bfloat16", partial(sparse_layer, backend, torch.bfloat16)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes them all, or those that there is time for, and says how it went."""
    parser = argparse.ArgumentParser(prog="python tools/gpu_steps.py", description=__doc__.splitlines()[0])
    parser.add_argument("--until", type=float, default=float("inf"), help="no step begins after (Unix time)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the steps")
    options = parser.parse_args(arguments)
    wanted, bad, taken = steps(), 0, 0
    for name, step in wanted:
        began = time.time()
        if began >= options.until:
            break
        finite = step(options.device)
        bad, taken = bad + (not finite), taken + 1
        print(f"{name}: {'finite' if finite else 'NOT FINITE'} ({time.time() - began:.1f} s)", flush=True)
    print(f"{taken} of {len(wanted)} steps, {bad} not finite", flush=True)
    return 1 if bad else 0


def all_finite(device: str, *tensors: torch.Tensor | None) -> bool:
    """Whether all numbers of those that there are are finite; kernels that failed raise here."""
    if device == "cuda":
        torch.cuda.synchronize()
    return all(bool(torch.isfinite(t).all()) for t in tensors if t is not None)


def trained(shape: tuple[int, int, int, int, bool], p: Any, options: dict[str, Any], device: str) -> bool:
    """A short run, an evaluation and a batch."""
    n, m, models, batch, tied = shape
    kind = tk.TiedAutoencoder if tied else tk.Autoencoder
    model, data = kind(n, m, models, device=device), tk.SparseFeatures(n, p, **options)
    run = tk.fit(model, data, 3, batch, tk.AdamW(lr=1e-2), record_every=2, progress=False)
    loss = tk.evaluate(model, data, batch)
    return all_finite(
        device, run.loss, loss, data.sample(1, batch, n_models=models, device=device), *model.parameters()
    )


def sparse_models(shape: tuple[int, int], device: str) -> bool:
    """A short run with updates of the topology."""
    model = tk.SparseTiedAutoencoder(*shape, density=[0.3, 0.8], n_models=2, device=device)
    recipe = tk.RigL(interval=2, end=100)
    run = tk.fit(model, tk.SparseFeatures(shape[0], 0.1), 5, 40, progress=False, topology=recipe)
    return all_finite(device, run.loss, *model.parameters())


def sparse_layer(backend: str, dtype: torch.dtype, device: str) -> bool:
    """A few steps of a sparse layer with updates of its topology."""
    group = 8 if backend == "groups" else 1
    module = tk.SparseLinear(
        70, 48, fan_in=9, group=group, n_models=2, activation="relu", dtype=dtype, device=device,
        backend=backend,
    )  # fmt: skip
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    topology = tk.RigL(interval=2, end=100).attach(module, optimizer)
    for _ in range(4):
        x = torch.randn(2, 75, 70, device=device, dtype=dtype, requires_grad=True)
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        topology.step()
    return all_finite(device, x.grad, *module.parameters())


def layer(
    shape: tuple[int, int, int, int, bool], sparse: bool, network: dict[str, Any], dtype: torch.dtype,
    device: str,
) -> bool:  # fmt: skip
    """The layer's kernels on a batch: products, then outputs with a gradient taken one by one."""
    n, m, models, batch, tied = shape
    kind = tk.TiedAutoencoder if tied else tk.Autoencoder
    model = kind(n, m, models, device=device, **network).to(dtype)
    x = torch.rand(models, batch, n, device=device).sub_(0.8).clamp_(min=0).to(dtype)
    given: Any = tk.SparseBatch.from_dense(x) if sparse else x
    leaf = (given.value if sparse else given).requires_grad_()
    good = True
    for share in (-1.0, 1.0):
        shares = dict.fromkeys(tied_autoencoder_large.ACTIVE_SHARE, share)
        with (
            mock.patch.object(tied_autoencoder_large, "ACTIVE_SHARE", shares),
            mock.patch.object(tied_autoencoder_large, "ACTIVE_WORK", 0),
        ):
            model.zero_grad()
            leaf.grad = None
            (model.loss(given, l1=0.1).sum() + model(given).square().sum()).backward()
            good &= all_finite(device, leaf.grad, *(p.grad for p in model.parameters()))
    return good


if __name__ == "__main__":
    sys.exit(main())
