"""The untied autoencoder (needed for |x|), many of one shape stacked in one module."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from toykern.nn.stacked import StackedModel


class Autoencoder(StackedModel):
    """`n_models` autoencoders out = g(D f(E x) + b) with a decoder of their own.

    The absolute-value model of Elhage et al. 2022 is `Autoencoder(n, m, hidden_activation="relu")` with
    features in [−1, 1] and `target="abs"`. Arguments as for `TiedAutoencoder`; both weights are drawn with
    the same standard deviation.

    Parameters: `encoder` `[models, n_hidden, n_features]`, `decoder` `[models, n_features,
    n_hidden]`, `bias` `[models, n_features]` or None, `hidden_bias` `[models, n_hidden]` or None. ValueError
    or TypeError names the argument at fault.

    >>> import torch
    >>> model = Autoencoder(n_features=3, n_hidden=6, n_models=2, hidden_activation="relu")
    >>> model.loss(-torch.ones(4, 3), target="abs").shape
    torch.Size([2])
    """

    tied = False
    weight_names: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    encoder: nn.Parameter
    decoder: nn.Parameter
