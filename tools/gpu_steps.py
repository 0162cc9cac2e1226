"""A few steps of each training loop on a GPU, for compute-sanitizer to watch: `python tools/gpu_steps.py`.

Small on purpose, since a sanitizer slows kernels a hundredfold: every regime (csrc/cuda/regimes.h) with rare
and frequent features, groups and noise, then an evaluation and a batch; then sparse layers by every back end,
with updates of their topology; then the fused autoencoder layer. It exits with 1 if a result is not finite.
"""

from __future__ import annotations

import sys
import time

import torch

import toykern as tk

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


def main() -> int:
    """Trains them all and says how it went."""
    bad = 0
    for n, m, models, batch, tied in SHAPES:
        for name, p, options in (
            ("rare", 0.03, {}),
            ("rare and frequent", [0.02, *[0.4] * (n - 1)], {"noise": 0.1}),
            ("group", 1 / n, {"groups": [tk.Anticorrelated(range(n))]}),
        ):
            began = time.perf_counter()
            kind = tk.TiedAutoencoder if tied else tk.Autoencoder
            model = kind(n, m, models, device="cuda")
            data = tk.SparseFeatures(n, p, **options)
            run = tk.fit(model, data, 3, batch, tk.AdamW(lr=1e-2), record_every=2, progress=False)
            loss = tk.evaluate(model, data, batch)
            x = data.sample(1, batch, n_models=models, device="cuda")
            torch.cuda.synchronize()
            finite = all(bool(torch.isfinite(t).all()) for t in (run.loss, loss, x, *model.parameters()))
            bad += not finite
            seconds = time.perf_counter() - began
            print(f"{n} → {m}, {name}: {'finite' if finite else 'NOT FINITE'} ({seconds:.1f} s)", flush=True)
    for backend in ("dense", "slots", "groups"):
        for dtype in (torch.float32, torch.bfloat16):
            finite = sparse_steps(backend, dtype)
            bad += not finite
            print(f"sparse layer, {backend}, {dtype}: {'finite' if finite else 'NOT FINITE'}", flush=True)
    bad += layers()
    return 1 if bad else 0


def sparse_steps(backend: str, dtype: torch.dtype) -> bool:
    """A few steps of a sparse layer with updates of its topology; whether all is finite."""
    group = 8 if backend == "groups" else 1
    layer = tk.SparseLinear(
        70, 48, fan_in=9, group=group, n_models=2, activation="relu", dtype=dtype, device="cuda",
        backend=backend,
    )  # fmt: skip
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    topology = tk.RigL(interval=2, end=100).attach(layer, optimizer)
    for _ in range(4):
        x = torch.randn(2, 75, 70, device="cuda", dtype=dtype, requires_grad=True)
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        topology.step()
    torch.cuda.synchronize()
    return all(bool(torch.isfinite(t).all()) for t in (x.grad, *layer.parameters()))


def layers() -> int:
    """The layer's kernels on a batch of each kind; how many results are not finite."""
    bad = 0
    for n, m, models, batch, tied in LAYER_SHAPES:
        for sparse in (False, True):
            for network in (
                {},
                {"hidden_activation": "topk", "top_k": 1, "centered": True, "hidden_bias": True},
            ):
                kind = tk.TiedAutoencoder if tied else tk.Autoencoder
                model = kind(n, m, models, device="cuda", **network)
                x = torch.rand(models, batch, n, device="cuda").sub_(0.8).clamp_(min=0)
                given = tk.SparseBatch.from_dense(x) if sparse else x
                (given.value if sparse else given).requires_grad_()
                loss = model.loss(given, l1=0.1)
                (loss.sum() + model(given).square().sum()).backward()
                finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
                bad += not finite
                kind_of_x = "entries" if sparse else "dense"
                print(f"layer {n} → {m}, {kind_of_x}: {'finite' if finite else 'NOT FINITE'}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
