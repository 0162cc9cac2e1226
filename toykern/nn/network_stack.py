"""What every stack of networks says of itself, dense or sparse: its network, its tensors, its config."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from toykern.network.activations import NEGATIVE_SLOPE
from toykern.network.specification import NetworkSpec, TensorSpec


class NetworkStack(nn.Module):
    """Base of `n_models` networks of one shape, stacked. What they can do is asked of `network`.

    Attributes:
        tied, sparse: what the class is.
        n_features, n_hidden, n_models: the shape.
        seed: int64 CPU `[models]`, the seeds that the initial weights were drawn from.
    """

    tied: ClassVar[bool] = True
    sparse: ClassVar[bool] = False

    n_features: int
    n_hidden: int
    n_models: int
    hidden_activation: str
    output_activation: str
    top_k: int = 0
    centered: bool = False
    negative_slope: float = NEGATIVE_SLOPE
    init: str | float
    seed: torch.Tensor
    bias: nn.Parameter | None
    hidden_bias: nn.Parameter | None

    @property
    def network(self) -> NetworkSpec:
        """What each of the models is."""
        return self._specification(self.bias is not None, getattr(self, "hidden_bias", None) is not None)

    def _specification(self, bias: bool, hidden_bias: bool) -> NetworkSpec:
        return NetworkSpec(
            n_features=self.n_features,
            n_hidden=self.n_hidden,
            tied=self.tied,
            sparse=self.sparse,
            hidden_activation=self.hidden_activation,
            output_activation=self.output_activation,
            bias=bias,
            hidden_bias=hidden_bias,
            centered=self.centered,
            top_k=self.top_k,
            negative_slope=self.negative_slope,
        )

    def __len__(self) -> int:
        return self.n_models

    def config(self) -> dict[str, Any]:
        """JSON-able description: class, shape, activations, bias, init ("per_model" if models differ in it).

        Options are in it where they are used; seeds, weights and connections are not.
        `toykern.nn.model_from_config` is the inverse of that of dense stacks.
        """
        described = {"class": type(self).__name__, "n_models": self.n_models, "init": self.init}
        return described | self.network.config()

    def unfitted_options(self) -> dict[str, Any]:
        """What keeps the resident trainer from running this model: options that only the layer has, by name.

        >>> from toykern.nn import TiedAutoencoder
        >>> TiedAutoencoder(5, 3, hidden_activation="topk", top_k=2).unfitted_options()
        {'hidden_activation': 'topk', 'top_k': 2}
        """
        return self.network.unfitted()

    def parameter_shapes(self) -> dict[str, list[int]]:
        """What the module's own parameters must be, by name."""
        network = self.network
        return {t.name: [self.n_models, *network.shape(t)] for t in network.parameters}

    def tensor_of(self, parameter: str) -> TensorSpec:
        """The network's tensor that the module's parameter of this name holds."""
        return next(tensor for tensor in self.network.parameters if tensor.name == parameter)

    def stacked_parameters(self) -> dict[str, torch.Tensor]:
        """The network's parameters by name, detached, each `[models, …]`."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def trained_arrays(self) -> dict[str, torch.Tensor]:
        """All tensors of the network, `[models, …]` each: the parameters, and which connections exist."""
        return self.stacked_parameters()

    def drawn_from(self) -> dict[str, torch.Tensor]:
        """What the initial weights were drawn from, by name."""
        return {"seed": self.seed}
