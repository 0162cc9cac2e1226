"""Matrix factorisation by gradient descent (Jermyn and Shlegeris 2022) against closed forms of gradient flow.

A two-layer linear network on the identity dataset, full batch, is y = D E x for x = e_1 … e_n, so its loss
with summed outputs is L = ‖D E − Cᵀ‖² / n for targets C. Under gradient flow, θ' = −∂L/∂θ:

* E Eᵀ − Dᵀ D does not change (Saxe et al. 2014, Du et al. 2018). A step of gradient descent changes it by
  lr² (∂E ∂Eᵀ − ∂Dᵀ ∂D), so over a given time lr · steps it changes in proportion to lr.
* With C = s v uᵀ and E = √a r vᵀ, D = √a u rᵀ of unit vectors, a' = (4/n) a (s − a): a logistic curve,
  a = s / (1 + (s/a₀ − 1) e^{−4 s t/n}), at s/2 after t = n/(4 s) · log(s/a₀ − 1).
"""

from __future__ import annotations

import math

import pytest
import torch

import toykern as tk

N, HIDDEN = 12, 7


def linear(n_models: int, init: float) -> tk.Autoencoder:
    return tk.Autoencoder(
        N,
        HIDDEN,
        n_models,
        hidden_activation="none",
        output_activation="none",
        bias=False,
        init=init,
    )


def trained(model: tk.Autoencoder, targets: torch.Tensor, lr: float, steps: int) -> tk.Run:
    data = tk.Dataset(torch.eye(N), targets)
    settings = {"loss_reduction": "sum", "record_every": 1, "progress": False}
    return tk.fit(model, data, steps, optimizer=tk.SGD(lr=lr), **settings)


def imbalance(model: tk.Autoencoder) -> torch.Tensor:
    encoder, decoder = model.encoder.detach().double(), model.decoder.detach().double()
    return encoder @ encoder.mT - decoder.mT @ decoder


def unit(*shape: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("rank", [1, 2, N])
def test_what_is_balanced_stays_so_in_proportion_to_the_learning_rate(rank: int) -> None:
    models, time = 4, 3.0
    generator = torch.Generator().manual_seed(rank)
    targets = (
        torch.randn(models, N, rank, generator=generator) @ torch.randn(models, rank, N, generator=generator)
    ) / math.sqrt(rank)
    changes = []
    for steps in (400, 800, 1600):
        model = linear(models, init=0.3)
        before, grown = imbalance(model), model.encoder.detach().norm(dim=(1, 2))
        run = trained(model, targets, time / steps, steps)
        assert bool((run.loss[:, -1] < 0.6 * run.loss[:, 0]).all())  # there is something to be conserved
        assert bool(((model.encoder.detach().norm(dim=(1, 2)) / grown - 1).abs() > 0.1).all())
        changes.append((imbalance(model) - before).norm(dim=(1, 2)))
    for larger, smaller in zip(changes, changes[1:], strict=False):
        torch.testing.assert_close(larger / smaller, torch.full_like(larger, 2.0), rtol=0.03, atol=0.0)
    size = imbalance(linear(models, init=0.3)).norm(dim=(1, 2))
    assert bool((changes[-1] < 0.01 * size).all())


@pytest.mark.parametrize("entries", [False, True])
def test_a_mode_of_rank_one_grows_by_the_logistic_curve(entries: bool) -> None:
    strength = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    models, begun = len(strength), 1e-3
    left, right, hidden = (unit(models, size, seed=i) for i, size in enumerate((N, N, HIDDEN)))
    targets = strength[:, None, None] * right[:, :, None] * left[:, None, :]

    def errors(rate: float) -> torch.Tensor:
        """How far, relative, each model's half-time is from that of gradient flow; lr = rate · n / (4 s)."""
        model = linear(models, init=0.0)
        lr = rate * N / (4 * strength)
        with torch.no_grad():
            model.encoder.copy_(math.sqrt(begun) * hidden[:, :, None] * right[:, None, :])
            model.decoder.copy_(math.sqrt(begun) * left[:, :, None] * hidden[:, None, :])
        x = torch.eye(N)
        data = tk.Dataset(tk.SparseBatch.from_dense(x) if entries else x, targets.float())
        steps = int(1.5 * math.log(float(strength.max()) / begun) / rate)
        run = tk.fit(
            model, data, steps, optimizer=tk.SGD(lr=lr), loss_reduction="sum", record_every=1, progress=False
        )
        loss = run.loss.double()
        time = rate * torch.arange(steps, dtype=torch.float64)  # in units of n / (4 s)
        reached = strength[:, None] / (1 + (strength[:, None] / begun - 1) * torch.exp(-time))
        curve = (strength[:, None] - reached).square() / N
        assert bool(((loss - curve).abs() < 1.5 * rate * strength[:, None].square() / N).all())
        assert bool((loss[:, -1] < 1e-3 * loss[:, 0]).all())
        half = (strength / 2).square() / N
        after = (loss < half[:, None]).double().argmax(1)
        above, below = (loss.gather(1, i[:, None])[:, 0] for i in (after - 1, after))
        crossed = rate * (after - 1 + (above - half) / (above - below))
        return crossed / torch.log(strength / begun - 1) - 1

    coarse, fine = errors(0.04), errors(0.02)
    assert bool((fine.abs() < 0.015).all()), fine
    torch.testing.assert_close(coarse / fine, torch.full_like(fine, 2.0), rtol=0.1, atol=0.0)
