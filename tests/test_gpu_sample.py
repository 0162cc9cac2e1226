"""On a GPU: the data stream's bits are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from cases import STREAM_CASES, features_of
from gpu_kit import DEVICE, same_bits
from stream_oracle import MAGNITUDES

import toykern as tk

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", STREAM_CASES, ids=lambda case: case.name)
def test_the_device_draws_what_the_cpu_draws(case):
    data, batch = features_of(case.distribution), (case.step, case.batch_size, case.seed)
    for options in ({}, {"purpose": "evaluation"}, *([{"clean": True}] if data.noise else [])):
        x = data.sample(*batch, n_models=1, device=DEVICE, **options)
        assert x.device.type == torch.device(DEVICE).type
        assert same_bits(x, data.sample(*batch, n_models=1, **options)), options


def test_models_with_probabilities_and_seeds_of_their_own():
    p = torch.logspace(-4, 0, 3500, dtype=torch.float64).reshape(500, 7)
    seeds = torch.arange(500) * 2**40 + 3
    data = tk.SparseFeatures(7, p)
    x = data.sample(9, 300, seeds, device=DEVICE)
    assert same_bits(x, data.sample(9, 300, seeds))
    assert same_bits(x[123:124], tk.SparseFeatures(7, p[123]).sample(9, 300, int(seeds[123]), device=DEVICE))


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_many_shapes(magnitude):
    generator = torch.Generator().manual_seed(5)
    for n in (1, 2, 31, 32, 33, 100, 257):
        p = torch.rand(3, n, generator=generator, dtype=torch.float64) ** 4
        data = tk.SparseFeatures(n, p, magnitude=magnitude)
        for batch_size in (1, 31, 1024):
            x = data.sample(n, batch_size, [1, 2**62, 7], device=DEVICE)
            assert same_bits(x, data.sample(n, batch_size, [1, 2**62, 7])), (n, batch_size)
