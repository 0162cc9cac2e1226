"""What kernels that never call the module would pass over is refused by name: methods, hooks, parametrised
weights, and parameters without memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import toykern as tk
from toykern.nn import sparse_tied_autoencoder as stacked_sparse
from toykern.nn import stacked


class Halved(tk.TiedAutoencoder):
    def forward(self, x: Any) -> torch.Tensor:
        return super().forward(x) / 2


class Penalised(tk.Autoencoder):
    def loss(self, *args: Any, **options: Any) -> torch.Tensor:
        return super().loss(*args, **options) + self.encoder.abs().sum(dim=(1, 2))


class SparseHalved(tk.SparseTiedAutoencoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Named(tk.TiedAutoencoder):
    """A subclass that computes what its base does."""

    def name(self) -> str:
        return "mine"


class Absolute(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


class Elsewhere(torch.Tensor):
    """A tensor of the right shape without numbers at its address, as a DTensor is."""

    @staticmethod
    def __new__(cls) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(cls, (3, 2, 5), dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls()


def tied() -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(5, 2, 3)


def hooked(register: Callable[[Any], Any], make: Callable[[], Any] = tied) -> Any:
    model = make()
    register(model)
    return model


def nothing(*args: Any) -> None:
    """The hook of these tests."""


def parametrized() -> tk.TiedAutoencoder:
    model = tied()
    parametrize.register_parametrization(model, "weight", Absolute())
    return model


def replaced(parameter: Any) -> tk.TiedAutoencoder:
    model = tied()
    model.weight = parameter
    return model


def own_loss() -> tk.TiedAutoencoder:
    model = tied()
    model.loss = lambda x: x.sum()  # type: ignore[method-assign]
    return model


SPARSE = {"density": 0.5, "n_models": 3}
# What the model is, and what the message names; both in fit and in evaluate.
REFUSED = [
    (lambda: Halved(5, 2, 3), ValueError, "method forward of its own"),
    (lambda: Penalised(5, 2, 3), ValueError, "method loss of its own"),
    (lambda: SparseHalved(5, 2, **SPARSE), ValueError, "method forward of its own"),
    (own_loss, ValueError, "method loss of its own"),
    (parametrized, ValueError, "parametrizations of weight"),
    (lambda: hooked(lambda m: m.register_forward_hook(nothing)), ValueError, "hook, nothing (forward hooks)"),
    (
        lambda: hooked(lambda m: m.register_forward_pre_hook(nothing)),
        ValueError,
        "nothing (forward pre hooks)",
    ),
    (
        lambda: replaced(nn.Parameter(Elsewhere())),
        TypeError,
        "model.weight must be a plain tensor, not a Elsewhere",
    ),
    (lambda: tied().to("meta"), RuntimeError, "device 'meta'"),
    (lambda: replaced(nn.Parameter(torch.zeros(3, 2, 5, device="meta"))), ValueError, "weight on 'meta'"),
]
# What only training would pass over.
REFUSED_BY_FIT = [
    (lambda: hooked(lambda m: m.register_full_backward_hook(nothing)), "nothing (backward hooks)"),
    (lambda: hooked(lambda m: m.register_full_backward_pre_hook(nothing)), "nothing (backward pre hooks)"),
    (
        lambda: hooked(lambda m: m.weight.register_hook(nothing)),
        "model.weight has a hook, nothing (backward hooks)",
    ),
    (
        lambda: hooked(lambda m: m.bias.register_post_accumulate_grad_hook(nothing)),
        "model.bias has a hook, nothing (post accumulate grad hooks)",
    ),
    (
        lambda: hooked(
            lambda m: m.values.register_hook(nothing), lambda: tk.SparseTiedAutoencoder(5, 2, **SPARSE)
        ),
        "model.values has a hook",
    ),
]


@pytest.mark.parametrize(("make", "error", "text"), REFUSED, ids=[row[2] for row in REFUSED])
def test_fit_and_evaluate_refuse(make, error, text):
    for call in (lambda m: tk.fit(m, tk.SparseFeatures(5, 0.1), 2, 8), evaluated):
        with pytest.raises(error, match=re.escape(text)):
            call(make())


def evaluated(model: Any) -> torch.Tensor:
    return tk.evaluate(model, tk.SparseFeatures(5, 0.1), 10)


@pytest.mark.parametrize(("make", "text"), REFUSED_BY_FIT, ids=[row[1] for row in REFUSED_BY_FIT])
def test_fit_refuses_hooks_on_gradients_which_evaluate_would_not_see(make, text):
    model = make()
    with pytest.raises(ValueError, match=re.escape(text)):
        tk.fit(model, tk.SparseFeatures(5, 0.1), 2, 8, progress=False)
    assert evaluated(model).isfinite().all()


def test_a_removed_hook_and_a_subclass_that_adds_to_its_base_are_fine():
    plain, named, hook = tied(), Named(5, 2, 3), tied()
    hook.register_forward_hook(nothing).remove()
    hook.weight.register_hook(nothing).remove()
    data = tk.SparseFeatures(5, 0.1)
    losses = [tk.fit(model, data, 4, 8, progress=False).loss for model in (plain, named, hook)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("which", ["hidden_activation", "output_activation"])
def test_an_activation_that_someone_adds_to_a_list_is_not_trained_as_another(which, monkeypatch):
    for module, names in (
        (stacked, ("LAYER_HIDDEN_ACTIVATIONS", "LAYER_OUTPUT_ACTIVATIONS")),
        (stacked_sparse, ("_ACTIVATIONS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, (*getattr(module, name), "tanh"))
    for model in (
        tk.TiedAutoencoder(5, 2, 3, **{which: "tanh"}),
        tk.Autoencoder(5, 2, 3, **{which: "tanh"}),
        tk.SparseTiedAutoencoder(5, 2, **SPARSE, **{which: "tanh"}),
    ):
        for call in (lambda m: tk.fit(m, tk.SparseFeatures(5, 0.1), 2, 8), evaluated):
            with pytest.raises(ValueError, match=f"{which}='tanh'"):
                call(model)
