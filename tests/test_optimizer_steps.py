"""The float64 steps that `fit` is compared with: against published formulas, PyTorch's own, distributions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import stream_oracle
import torch

import toykern as tk
from toykern import reference
from toykern.training.step import langevin_noise

SHAPES = {"encoder": (4, 6), "decoder": (6, 4), "bias": (6,), "hidden_bias": (4,)}
K = 3


def draws(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(K, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def steps_of(optimizer: Any, steps: int, size: float = 1.0) -> tuple[dict, dict]:
    """Parameters and state after some steps on gradients that are drawn."""
    parameters = draws(0)
    state = reference.initial_state(optimizer, parameters)
    for step in range(steps):
        gradients = {name: size * value for name, value in draws(step + 1).items()}
        parameters, state = reference.optimizer_step(optimizer, parameters, gradients, state, step)
    return parameters, state


# LAMB


def lamb_by_hand(steps: int, form: str, clamp: float, debias: bool, decay: float, size: float) -> dict:
    """Algorithm 2 of You et al. (2020) with NumPy, and pytorch-optimizer's form of it, tensor by tensor."""
    lr, beta1, beta2, eps = 0.02, 0.8, 0.95, 1e-6
    found = {}
    for name, start in draws(0).items():
        models = []
        for k in range(K):
            x = start[k].numpy().copy()
            m, v = np.zeros_like(x), np.zeros_like(x)
            for t in range(1, steps + 1):
                g = size * draws(t)[name][k].numpy()
                m = beta1 * m + (1 - beta1) * g
                v = beta2 * v + (1 - beta2) * g * g
                left1, left2 = 1 - beta1**t, 1 - beta2**t
                if form == "paper" and debias:
                    r = (m / left1) / (np.sqrt(v / left2) + eps)
                else:
                    r = m / (np.sqrt(v) + eps)
                update = r + decay * x
                length = lr * min(np.linalg.norm(x), clamp) / np.linalg.norm(update)
                if form == "pytorch" and debias:
                    length *= math.sqrt(left2) / left1
                x = x - length * update
            models.append(torch.from_numpy(x))
        found[name] = torch.stack(models)
    return found


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize(("form", "clamp"), [("pytorch", 10.0), ("pytorch", 1.5), ("paper", math.inf)])
def test_lamb_is_that_of_the_paper_and_of_the_package(form, clamp, debias, steps):
    limit = None if math.isinf(clamp) else clamp
    optimizer = tk.LAMB(0.02, (0.8, 0.95), 1e-6, 0.3, limit, debias, form)
    trained, _ = steps_of(optimizer, steps, 0.7)
    for name, expected in lamb_by_hand(steps, form, clamp, debias, 0.3, 0.7).items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-12, atol=0)


def test_lambs_first_step_has_the_length_of_the_weights():
    """Whatever the gradient's size: ‖Δw‖ = lr · min(‖w‖, clamp), of each tensor of each model."""
    for size in (1e-3, 1.0, 1e3):
        trained, _ = steps_of(tk.LAMB(lr=0.1, clamp=2.0), 1, size)
        for name, before in draws(0).items():
            moved = (trained[name] - before).flatten(1).norm(dim=1)
            wanted = 0.1 * before.flatten(1).norm(dim=1).clamp(max=2.0)
            torch.testing.assert_close(moved, wanted, rtol=1e-12, atol=0)


def test_lambs_trust_ratio_is_one_where_a_norm_is_zero():
    optimizer = tk.LAMB(lr=0.1, betas=(0.0, 0.0), eps=0.0)
    parameters = {"bias": torch.zeros(1, 3, dtype=torch.float64)}
    gradients = {"bias": torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)}
    state = reference.initial_state(optimizer, parameters)
    moved, state = reference.optimizer_step(optimizer, parameters, gradients, state, 0)
    assert moved["bias"].tolist() == [[-0.1, 0.1, 0.0]]
    still, _ = reference.optimizer_step(optimizer, moved, {"bias": 0 * gradients["bias"]}, state, 1)
    assert torch.equal(still["bias"], moved["bias"])


# Clipping and rates per tensor


def by_torch(
    kind: Any, steps: int, size: float, groups: dict, clip: list[float] | None, **options: Any
) -> dict:
    """Every model by itself with PyTorch's optimiser, parameter groups and clip_grad_norm_."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in SHAPES}
    for k in range(K):
        leaves = {name: value[k].clone().requires_grad_() for name, value in draws(0).items()}
        own = [{"params": [leaf], **groups.get(name, {})} for name, leaf in leaves.items()]
        peer = kind(own, **options)
        for step in range(steps):
            for name, gradient in draws(step + 1).items():
                leaves[name].grad = size * gradient[k]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(list(leaves.values()), clip[k])
            peer.step()
        for name, leaf in leaves.items():
            found[name].append(leaf.detach())
    return {name: torch.stack(values) for name, values in found.items()}


PEERS = [
    (tk.SGD(lr=0.1, momentum=0.9, weight_decay=0.2), torch.optim.SGD, {"momentum": 0.9}),
    (tk.Adam(lr=0.1, weight_decay=0.2), torch.optim.Adam, {}),
    (tk.AdamW(lr=0.1, weight_decay=0.2), torch.optim.AdamW, {}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), PEERS, ids=lambda v: getattr(v, "__name__", None))
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_clipping_is_torchs(ours, theirs, options, size):
    clip = [0.05, 1.0, 1e6]
    trained, _ = steps_of(dataclasses.replace(ours, clip_norm=clip), 6, size)
    expected = by_torch(theirs, 6, size, {}, clip, lr=0.1, weight_decay=0.2, **options)
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs", "options"), PEERS, ids=lambda v: getattr(v, "__name__", None))
def test_scales_are_torchs_parameter_groups(ours, theirs, options):
    scaled = dataclasses.replace(
        ours,
        lr_scale={"encoder": 0.5, "hidden_bias": 0.0},
        weight_decay_scale={"bias": 0.0, "decoder": 3.0},
    )
    groups = {
        "encoder": {"lr": 0.05},
        "hidden_bias": {"lr": 0.0},
        "bias": {"weight_decay": 0.0},
        "decoder": {"weight_decay": 0.6},
    }
    trained, state = steps_of(scaled, 6)
    expected = by_torch(theirs, 6, 1.0, groups, None, lr=0.1, weight_decay=0.2, **options)
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-10, atol=1e-12)
    assert torch.equal(trained["hidden_bias"], draws(0)["hidden_bias"])
    assert all(bool(value.any()) for name, value in state.items() if name.startswith("hidden_bias"))


def test_scales_of_each_model():
    together, _ = steps_of(tk.SGD(lr=0.1, lr_scale={"bias": [1.0, 0.5, 2.0]}), 1)
    for k, rate in enumerate([0.1, 0.05, 0.2]):
        expected = draws(0)["bias"][k] - rate * draws(1)["bias"][k]
        torch.testing.assert_close(together["bias"][k], expected, rtol=1e-12, atol=1e-15)


# Bias decay and unit norm


def test_a_bias_decays_in_the_first_steps():
    optimizer = tk.SGD(lr=0.1, bias_decay=tk.BiasDecay([0.0, 1.0, 2.0], until=3))
    trained, _ = steps_of(optimizer, 5)
    bias = draws(0)["hidden_bias"]
    for step in range(5):
        bias = bias - 0.1 * draws(step + 1)["hidden_bias"]
        if step < 3:
            bias = bias * torch.tensor([[1.0], [0.9], [0.8]], dtype=torch.float64)
    torch.testing.assert_close(trained["hidden_bias"], bias, rtol=1e-12, atol=1e-15)
    plain, _ = steps_of(tk.SGD(lr=0.1), 5)
    assert torch.equal(trained["bias"], plain["bias"])


@pytest.mark.parametrize(("tensor", "dim"), [("decoder", -2), ("encoder", -1)])
@pytest.mark.parametrize("remove", [False, True])
def test_vectors_of_hidden_units_keep_norm_one(tensor, dim, remove):
    optimizer = tk.Adam(lr=0.1, unit_norm=tk.UnitNorm(tensor, remove))
    trained, _ = steps_of(optimizer, 4)
    norms = trained[tensor].norm(dim=dim)
    assert norms.shape == (K, 4)  # one for each hidden unit
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)
    plain, _ = steps_of(tk.Adam(lr=0.1), 4)
    other = "bias"
    assert torch.equal(trained[other], plain[other]) and not torch.equal(trained[tensor], plain[tensor])


def test_vectors_of_zeros_stay_zero():
    optimizer = tk.SGD(lr=1.0, unit_norm=tk.UnitNorm("decoder", remove_parallel=True))
    decoder = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]], dtype=torch.float64)
    trained, _ = reference.optimizer_step(optimizer, {"decoder": decoder}, {"decoder": gradient}, {}, 0)
    assert trained["decoder"].tolist() == [[[0.6, 0.0], [0.8, 0.0]]]  # the gradient was parallel


def test_what_is_parallel_is_removed_before_the_clipping():
    optimizer = tk.SGD(lr=1.0, clip_norm=1e6, unit_norm=tk.UnitNorm("decoder", remove_parallel=True))
    before, gradient = draws(0)["decoder"], draws(1)["decoder"]
    along = before / before.norm(dim=-2, keepdim=True)
    across = gradient - (gradient * along).sum(dim=-2, keepdim=True) * along
    for clip in (1e6, 0.5):
        clipped = dataclasses.replace(optimizer, clip_norm=clip)
        trained, _ = reference.optimizer_step(clipped, {"decoder": before}, {"decoder": gradient}, {}, 0)
        factor = (clip / (across.flatten(1).norm(dim=1) + 1e-6)).clamp(max=1).reshape(-1, 1, 1)
        moved = before - factor * across
        torch.testing.assert_close(trained["decoder"], moved / moved.norm(dim=-2, keepdim=True))


# SGLD


def test_the_noise_is_the_streams():
    for name in ("weight", "encoder", "decoder", "bias", "hidden_bias"):
        role = "encoder" if name == "weight" else name
        drawn = langevin_noise(name, torch.zeros(2, 70, 3), step=5, seed=[4, 2**40 + 5])
        for k, seed in enumerate((4, 2**40 + 5)):
            expected = stream_oracle.langevin_noise(seed, 5, role, np.arange(210))
            assert np.array_equal(drawn[k].flatten().numpy(), expected.astype(np.float64))


def test_the_noise_is_normal_and_every_step_and_tensor_has_its_own():
    many = 200_000
    first, later = (langevin_noise("weight", torch.zeros(1, many), step, 7)[0] for step in (0, 1))
    bias, other = (
        langevin_noise("bias", torch.zeros(1, many), 0, 7)[0],
        langevin_noise("weight", torch.zeros(1, many), 0, 8)[0],
    )
    error = 1 / math.sqrt(many)
    for draw in (first, later, bias, other):
        assert abs(draw.mean().item()) < 4.5 * error
        assert abs(draw.var().item() - 1) < 4.5 * math.sqrt(2) * error
        assert abs((draw**4).mean().item() - 3) < 4.5 * math.sqrt(96) * error
        assert abs((draw.abs() < 1).double().mean().item() - math.erf(math.sqrt(0.5))) < 4.5 * 0.47 * error
    for a, b in ((first, later), (first, bias), (first, other)):
        assert abs((a * b).mean().item()) < 4.5 * error


def test_one_step_of_sgld_is_its_formula():
    optimizer = tk.SGLD(
        lr=[0.1, 0.2, 0.3], nbeta=[1.0, 5.0, 0.0], localization=[0.0, 2.0, 3.0], weight_decay=0.7
    )
    start = draws(0)
    state = reference.initial_state(optimizer, start)
    assert all(torch.equal(state[f"{name}/initial"], value) for name, value in start.items())
    here = {name: value + 1.5 for name, value in start.items()}
    moved, after = reference.optimizer_step(optimizer, here, draws(1), state, 4, 0.5, seed=[9, 8, 7])
    for name in SHAPES:
        noise = langevin_noise(name, here[name], 4, [9, 8, 7])
        for k, (eps, nbeta, gamma) in enumerate([(0.05, 1.0, 0.0), (0.1, 5.0, 2.0), (0.15, 0.0, 3.0)]):
            force = nbeta * draws(1)[name][k] + 0.7 * here[name][k] + gamma * 1.5
            expected = here[name][k] - eps / 2 * force + math.sqrt(eps) * noise[k]
            torch.testing.assert_close(moved[name][k], expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(after[f"{name}/initial"], start[name])


def test_sgld_samples_the_tempered_localised_posterior():
    """On L = x²/2 the chain has the variance 1 / (a (1 − ε a/4)) with a = nβ + λ + γ, about γ x₀/a."""
    many, eps, a = 4000, 0.05, 4.0 + 1.0 + 3.0
    optimizer = tk.SGLD(lr=eps, nbeta=4.0, weight_decay=1.0, localization=3.0)
    x = {"bias": torch.full((1, many), 2.0, dtype=torch.float64)}
    state = reference.initial_state(optimizer, x)
    total, squares, kept = 0.0, 0.0, 0
    for step in range(150):
        x, state = reference.optimizer_step(optimizer, x, {"bias": x["bias"].clone()}, state, step, seed=1)
        if step >= 40 and step % 10 == 0:
            total, kept = total + x["bias"].mean().item(), kept + 1
            squares += (x["bias"] - 3.0 * 2.0 / a).square().mean().item()
    variance = 1 / (a * (1 - eps * a / 4))
    assert abs(total / kept - 6 / a) < 4.5 * math.sqrt(variance / (many * kept))
    assert abs(squares / kept / variance - 1) < 4.5 * math.sqrt(2 / (many * kept))
