"""Monosemanticity of hidden units, and the activations of single features, by hand."""

import math

import pytest
import torch

import toykern as tk
from toykern import metrics


def test_rules_of_monosemanticity():
    """One feature; two alike; one and a negative one; only negative ones; none."""
    activations = torch.tensor(
        [[3.0, 2.0, 5.0, -1.0, 0.0], [0.0, 2.0, -4.0, -2.0, 0.0], [0.0, 0.0, 0.0, -3.0, 0.0]]
    )
    assert metrics.monosemanticity(activations).tolist() == [1.0, 0.5, 1.0, 0.0, 0.0]
    assert metrics.monosemantic_share(activations).item() == pytest.approx(2 / 5)
    dead = metrics.monosemanticity(activations) == 0
    alive = metrics.monosemantic_share(activations) / (1 - dead.double().mean(-1))
    assert alive.item() == pytest.approx(2 / 3)


def test_max_over_sum():
    activations = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    activations[:, 0].abs_()  # none is dead
    positive = activations.clamp(min=0)
    expected = positive.amax(1) / positive.sum(1)
    got = metrics.monosemanticity(activations)
    torch.testing.assert_close(got, expected)
    assert torch.equal(metrics.monosemanticity(activations[2]), got[2])
    torch.testing.assert_close(metrics.monosemanticity(1e-300 * activations), expected)
    torch.testing.assert_close(metrics.monosemanticity(1e307 * activations), expected)
    share = metrics.monosemantic_share(activations, threshold=0.5)
    torch.testing.assert_close(share, (expected > 0.5).double().mean(-1))


def test_the_threshold():
    activations = torch.tensor([[1.0, 1.0], [0.0005, 0.002]])
    assert metrics.monosemantic_share(activations).item() == 0.5


def test_what_is_not_finite():
    activations = torch.tensor([[[1.0, math.nan]], [[math.inf, 1.0]], [[1.0, 1.0]]])
    assert metrics.monosemanticity(activations).isnan().tolist() == [
        [False, True],
        [True, False],
        [False] * 2,
    ]
    assert metrics.monosemantic_share(activations).isnan().tolist() == [True, True, False]


def test_monosemanticity_can_be_differentiated():
    activations = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(metrics.monosemanticity, (activations.requires_grad_(),))
    zeros = torch.zeros(2, 2, requires_grad=True)
    metrics.monosemanticity(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_of_single_features(dtype):
    model = tk.MLP(5, 3, n_models=2, hidden_activation="relu", hidden_bias=True, dtype=dtype)
    with torch.no_grad():
        model.hidden_bias += 0.1
    got = metrics.single_feature_activations(model, magnitude=2.0)
    assert got.shape == (2, 5, 3) and got.dtype == dtype
    for i in range(5):
        expected = (2 * model.encoder[:, :, i] + model.hidden_bias).clamp(min=0)
        torch.testing.assert_close(got[:, i], expected)
    assert got.requires_grad


def test_models_without_codes_are_refused():
    for model in (tk.TiedAutoencoder(3, 2), "a model", None, torch.nn.Linear(3, 2)):
        with pytest.raises(TypeError, match="model must have encode and n_features"):
            metrics.single_feature_activations(model)
