"""The bench of learning coefficients at a tiny size: contenders do the same work, by the same formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import toykern as tk
from bench import bench_llc

CHAINS, STEPS = 2, 6


@pytest.fixture(scope="module")
def small() -> tuple[tk.TiedAutoencoder, tk.Dataset]:
    return bench_llc.trained(models=2, samples=16, steps=20)


def test_every_contender_counts_its_steps(small: Any) -> None:
    model, data = small
    x = data.batch(0)[0][0]
    assert bench_llc.ours(model, data, CHAINS)(STEPS) == 2 * CHAINS * STEPS
    assert bench_llc.batched_contender(model, x, CHAINS)(STEPS) == 2 * CHAINS * STEPS
    if bench_llc.why_no_devinterp() is None:
        assert bench_llc.devinterp_contender(model, x, True)(STEPS) == STEPS


def test_a_line_has_the_contenders_that_are_here(small: Any) -> None:
    line = bench_llc.measure(*small, chains=CHAINS, steps=STEPS, repeats=1)
    names = set(line["medians"])
    here = {"devinterp", "devinterp, one batch"} if not line["absent"] else set()
    assert names == {"toykern", "torch, batched"} | here
    assert line["ratios"]["toykern"] == {"wall": 1.0, "processor": 1.0}
    text = bench_llc.table(line)
    assert text.count("\n") == 1 + len(names) + len(line["absent"])
    assert all(f"| {name} |" in text for name in names) and all(
        why in text for why in line["absent"].values()
    )


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, says in (("2.0.1", "token models alone"), (None, "not installed")):

        def told(name: str, version: str | None = version) -> str:
            if version is None:
                raise bench_llc.importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(bench_llc.importlib.metadata, "version", told)
        assert says in str(bench_llc.why_no_devinterp())


def test_the_batched_peer_takes_the_same_steps(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, both descend to the same weights."""
    model, data = small
    x, before = data.batch(0)[0][0], [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    kept: list[torch.Tensor] = []
    plain = torch.autograd.grad

    def grad(loss: torch.Tensor, here: Any) -> Any:
        kept.append(loss.detach())
        return plain(loss, here)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    bench_llc.batched_contender(model, x, CHAINS)(3)
    nbeta, told = len(x) / math.log(len(x)), bench_llc.TOLD
    weight, bias = (p.double() for p in before)
    losses = []
    for _ in range(3):
        w, b = (p.detach().requires_grad_() for p in (weight, bias))
        output = torch.relu(x.double() @ w.mT @ w + b.unsqueeze(1))
        loss = (output - x.double()).square().sum(2).mean(1)
        losses.append(float(loss.sum().detach()))
        gradients = plain(loss.sum(), (w, b))
        weight, bias = (
            p - told["lr"] / 2 * (nbeta * g + told["localization"] * (p - start.double()))
            for p, g, start in zip((weight, bias), gradients, before, strict=True)
        )
    assert [float(loss) for loss in kept] == pytest.approx([CHAINS * loss for loss in losses], rel=1e-5)
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), before, strict=True))
