"""The tied-weight autoencoder of Toy Models of Superposition, many of one shape stacked in one module."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import nn

from toykern.arguments.broadcast import Values, as_tensor
from toykern.arguments.errors import describe
from toykern.nn.published import published
from toykern.nn.stacked import StackedModel


class TiedAutoencoder(StackedModel):
    """`n_models` autoencoders out = g(Wᵀ f(W x) + b) with tied weights (Elhage et al. 2022).

    Args:
        n_features: n, the size of input and output.
        n_hidden: m, the size of the hidden layer.
        n_models: how many models are stacked; each is independent of the others.
        hidden_activation: f, "none" (default), "relu", "leaky_relu", "gelu" (by erf), or "topk", which keeps
            the `top_k` largest codes of a sample as they are and makes the others 0 (Gao et al. 2024).
        output_activation: g, "relu" (default), "none" (the linear model; the bias stays), "leaky_relu",
            "gelu" (by erf) or "softplus", log(1 + e^z).
        bias: whether there is a b; it begins at 0.
        init: the initial weights' standard deviation: "xavier", "xavier_stacked_features_hidden",
            "xavier_stacked_hidden_features", a number, or one for each model (`toykern.nn.initial_std`).
        seed: of the initial weights, an int (for all models) or `[models]`; None means 0 … n_models−1. A
            model's weights depend on its own seed, whatever stands beside it (the two stacked inits aside).
        dtype, device: of the parameters: float32, float64 or bfloat16, on the CPU or a GPU; None is torch's
            default. `toykern.fit` and `toykern.evaluate` take float32.
        hidden_bias: whether there is a c, h = f(W x + c); it begins at 0.
        centered: h = f(W (x − b) + c), as sparse autoencoders have it (Bricken et al. 2023).
        top_k: for hidden_activation="topk", 1 … n_hidden.
        negative_slope: of "leaky_relu" at 0 and below, finite and ≥ 0; None is 0.01.

    On a CUDA device `toykern.fit` has no kernels for `hidden_bias`, `centered` and "topk": batched products
    train such models there.

    Parameters: `weight` `[models, n_hidden, n_features]`, `bias` `[models, n_features]` or None,
    and `hidden_bias` `[models, n_hidden]` or None.
    ValueError or TypeError names the argument at fault.

    >>> model = TiedAutoencoder(n_features=5, n_hidden=2, n_models=3)
    >>> model(torch.zeros(8, 5)).shape
    torch.Size([3, 8, 5])
    >>> model[1]
    TiedAutoencoder(n_features=5, n_hidden=2, n_models=1, hidden_activation='none', \
output_activation='relu', bias=True, init='xavier')
    """

    weight_names: ClassVar[tuple[str, ...]] = ("weight",)
    weight: nn.Parameter

    @classmethod
    def from_published(
        cls,
        weight: Values,
        bias: Values | None = None,
        *,
        hidden_activation: str = "none",
        output_activation: str = "relu",
        negative_slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A stack with the weights of a published notebook, which are laid out `[models, features, hidden]`.

        `weight` may also be `[features, hidden]`, one model. `bias` is `[models, features]` (or
        `[features]`); None means zeros. Values are copied; `dtype` and `device` as for the class. ValueError
        for other shapes.

        >>> TiedAutoencoder.from_published(torch.ones(10, 5, 2)).weight.shape
        torch.Size([10, 2, 5])
        """
        given = as_tensor("weight", weight, torch.float64)
        if given.ndim == 2:
            given = given.unsqueeze(0)
        if given.ndim != 3 or 0 in given.shape:
            raise ValueError(f"weight must have the shape [models, features, hidden], not {describe(weight)}")
        n_models, n_features, n_hidden = given.shape
        model = cls(
            n_features,
            n_hidden,
            n_models,
            hidden_activation=hidden_activation,
            output_activation=output_activation,
            negative_slope=negative_slope,
            init=0.0,
            device=device,
            dtype=dtype,
        )
        with torch.no_grad():
            model.weight.copy_(given.mT)
            if bias is not None:
                values = as_tensor("bias", bias, torch.float64)
                if list(values.shape) not in ([n_models, n_features], [n_features]):
                    raise ValueError(
                        f"bias must have the shape [models, features] = [{n_models}, {n_features}], "
                        f"not {describe(bias)}"
                    )
                assert model.bias is not None
                model.bias.copy_(values)
        return model

    def to_published(self, model: int | None = None) -> dict[str, torch.Tensor]:
        """The weights laid out as published notebooks have them: the inverse of `from_published`.

        {"weight" `[models, features, hidden]`, "bias" `[models, features]`}, copies; with `model` those of
        that one alone, without the first dimension. "bias" is missing where there is none, and so is
        "hidden_bias", for which that layout has no place but an `MLP` has.

        >>> model = TiedAutoencoder(10, 2, n_models=3)
        >>> torch.equal(TiedAutoencoder.from_published(**model.to_published()).weight, model.weight)
        True
        """
        return published(self.stacked_parameters(), {}, model, self.n_models)
