"""Weights over residues in Fourier space: power, participation, key frequencies, beside known waves."""

import math

import numpy as np
import pytest
import torch

import toykern as tk
from toykern import metrics


def _angle(p):
    return 2 * math.pi * torch.arange(p, dtype=torch.float64) / p


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("p", [2, 3, 7, 8, 97])
def test_power_by_projection_on_sines_and_cosines(p):
    weights = _random(3, 4, p)
    got = metrics.fourier_power(weights)
    assert got.shape == (3, 4, p // 2 + 1)
    for k in range(p // 2 + 1):
        waves = [torch.cos(k * _angle(p)), torch.sin(k * _angle(p))]
        units = [wave / wave.norm() for wave in waves if wave.norm() > 1e-6]
        expected = sum((weights @ unit).square() for unit in units)
        torch.testing.assert_close(got[..., k], expected)
    torch.testing.assert_close(got.sum(-1), weights.square().sum(-1))


@pytest.mark.parametrize("p", [7, 8])
def test_participation_of_single_waves_whatever_their_phase_and_mean(p):
    for k in range(1, p // 2 + 1):
        for phase in (0.0, 0.3):
            wave = 5 + 0.1 * torch.cos(k * _angle(p) + phase)
            assert metrics.inverse_participation_ratio(wave).item() == pytest.approx(1, abs=1e-10)
    spike = torch.zeros(7, dtype=torch.float64)
    spike[2] = 1.0  # the same power at all three frequencies
    assert metrics.inverse_participation_ratio(spike).item() == pytest.approx(1 / 3)


def test_participation_and_all_complex_coefficients():
    """Σ|c|⁴ / (Σ|c|²)² over all p coefficients is half of it, for an odd p and without a mean."""
    weights = _random(5, 11)
    weights -= weights.mean(-1, keepdim=True)
    power = np.abs(np.fft.fft(weights.numpy())) ** 2
    expected = 2 * (power**2).sum(-1) / power.sum(-1) ** 2
    np.testing.assert_allclose(metrics.inverse_participation_ratio(weights), expected)


def test_participation_with_the_constant():
    wave = 1 + math.sqrt(2) * torch.cos(2 * _angle(9))  # the mean has the power of the wave
    assert metrics.inverse_participation_ratio(wave, constant=True).item() == pytest.approx(0.5)
    assert metrics.inverse_participation_ratio(wave).item() == pytest.approx(1)


def test_a_constant_row_has_no_participation_but_no_harm():
    rows = torch.stack([torch.full((7,), 0.1), torch.cos(_angle(7)).float(), torch.full((7,), math.nan)])
    got = metrics.inverse_participation_ratio(rows)
    assert got.dtype == torch.float32 and got.isnan().tolist() == [True, False, True]
    assert metrics.inverse_participation_ratio(rows, constant=True)[0].item() == pytest.approx(1)
    assert metrics.inverse_participation_ratio(torch.zeros(7), constant=True).isnan()


@pytest.mark.parametrize("p", [7, 8])
def test_they_can_be_differentiated(p):
    weights = _random(2, 3, p).requires_grad_()
    assert torch.autograd.gradcheck(metrics.fourier_power, (weights,))
    assert torch.autograd.gradcheck(metrics.inverse_participation_ratio, (weights,))


def test_key_frequencies_of_known_spectra():
    """Powers 8, 4, 2 and 1 of 15 at four frequencies of two units, and a mean that does not count."""
    a = _angle(23)
    first = 50 + 8**0.5 * torch.cos(5 * a) + 2**0.5 * torch.sin(3 * a)
    second = 4**0.5 * torch.sin(9 * a) + torch.cos(11 * a + 1)
    weights = torch.stack([first, second])
    for share, wanted in [(0.5, [5]), (0.55, [5, 9]), (0.9, [3, 5, 9]), (0.95, [3, 5, 9, 11])]:
        found = metrics.key_frequencies(weights, share)
        assert found.shape == (12,) and found.nonzero().flatten().tolist() == wanted
    both = metrics.key_frequencies(torch.stack([weights, weights.flip(0), 3 * weights]))
    assert both.shape == (3, 12) and all(torch.equal(row, both[0]) for row in both)


def test_key_frequencies_of_equal_power_and_of_none():
    delta = torch.zeros(2, 8, dtype=torch.float64)
    delta[:, 3] = 1.0
    found = metrics.key_frequencies(delta, share=0.5)
    assert found.sum().item() == 2  # the powers are 2, 2, 2 and 1 of 7
    assert metrics.key_frequencies(delta, share=1.0).tolist() == [False, True, True, True, True]
    weights = torch.stack([torch.ones(2, 7), torch.full((2, 7), math.nan), _random(2, 7).float()])
    assert metrics.key_frequencies(weights).any(-1).tolist() == [False, False, True]


def test_a_published_solution_of_modular_addition():
    """Gromov 2023: a quadratic network of cosines adds modulo p; each unit has one frequency."""
    p, width = 11, 200
    random = torch.Generator().manual_seed(0)
    frequency = torch.randint(1, 6, (width, 1), generator=random)
    phases = 2 * math.pi * torch.rand(3, width, 1, generator=random, dtype=torch.float64)
    phases[2] = phases[0] + phases[1]
    waves = torch.cos(frequency * _angle(p) + phases)
    model = tk.MLP(2 * p, width, n_outputs=p, hidden_activation="square", output_activation="none",
                   dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        model.encoder.copy_(torch.cat([waves[0], waves[1]], dim=1))
        model.decoder.copy_(waves[2].T)
    _, test = tk.modular_addition(p, fraction=0.5)
    x, target = test.batch(step=0, n_outputs=p)
    assert torch.equal(model(x.to_dense().double()).argmax(-1), target.argmax(-1))
    for weights in (model.encoder[..., :p], model.encoder[..., p:], model.decoder.mT):
        weights = weights.detach()
        assert metrics.inverse_participation_ratio(weights).min().item() == pytest.approx(1)
        dominant = metrics.fourier_power(weights)[0, :, 1:].argmax(-1) + 1
        assert torch.equal(dominant, frequency[:, 0])


@pytest.mark.parametrize("function", [metrics.inverse_participation_ratio, metrics.key_frequencies])
def test_bad_weights(function):
    with pytest.raises(ValueError, match="weights must have the shape"):
        function(torch.ones(3, 1))
    with pytest.raises(TypeError, match="weights must hold floating-point numbers"):
        function(torch.ones(3, 4, dtype=torch.int32))


def test_bad_shares():
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share must be"):
            metrics.key_frequencies(torch.rand(2, 5), share)
    with pytest.raises(ValueError, match="weights must have the shape"):
        metrics.key_frequencies(torch.rand(5))
