"""What every stack of networks says of itself, dense or sparse: its network, its tensors, its config."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import nn

from toykern.network.activations import NEGATIVE_SLOPE
from toykern.network.specification import NetworkSpec, TensorSpec


class NetworkStack(nn.Module):
    """Base of `n_models` networks of one shape, stacked. What they can do is asked of `network`.

    Attributes:
        tied, sparse: what the class is; whether an `MLP` is tied, it is told.
        n_features, n_hidden, n_outputs, n_models: the shape; only an `MLP` has other outputs than features.
        seed: int64 CPU `[models]`, the seeds that the initial weights were drawn from.
    """

    tied: bool = True
    sparse: ClassVar[bool] = False

    n_features: int
    n_hidden: int
    n_models: int
    n_embedding: int = 0
    residual: bool = False
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
    def n_outputs(self) -> int:
        """Outputs of a model: as many as features, but for an `MLP`."""
        return self.n_features

    @property
    def output_width(self) -> str:
        """What the length of the outputs is called in messages."""
        return "n_features" if self.n_outputs == self.n_features else "n_outputs"

    @property
    def network(self) -> NetworkSpec:
        """What each of the models is."""
        return self._specification(
            self.bias is not None,
            getattr(self, "hidden_bias", None) is not None,
            self._buffers.get("unembedding") is not None,
        )

    def _specification(self, bias: bool, hidden_bias: bool, unembedding: bool = False) -> NetworkSpec:
        return _specification(
            n_features=self.n_features,
            n_hidden=self.n_hidden,
            n_outputs=self.n_outputs,
            tied=self.tied,
            sparse=self.sparse,
            hidden_activation=self.hidden_activation,
            output_activation=self.output_activation,
            bias=bias,
            hidden_bias=hidden_bias,
            centered=self.centered,
            top_k=self.top_k,
            negative_slope=self.negative_slope,
            n_embedding=self.n_embedding,
            unembedding=unembedding,
            residual=self.residual,
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

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """The network's tensors that nothing trains, by name, each `[models, …]`, or `[1, …]` where all
        models share it."""
        return {}

    def shares(self, name: str) -> bool:
        """Whether all models share the fixed tensor of this name."""
        return False

    def parameter_shapes(self) -> dict[str, list[int]]:
        """What the module's own parameters must be, by name."""
        network = self.network
        return {t.name: [self.n_models, *network.shape(t)] for t in network.parameters}

    def tensor_of(self, parameter: str) -> TensorSpec:
        """The network's tensor that the module's parameter of this name holds."""
        return next(tensor for tensor in self.network.parameters if tensor.name == parameter)

    def stacked_parameters(self) -> dict[str, torch.Tensor]:
        """The network's parameters by name, detached, each `[models, …]`."""
        return {name: parameter.detach() for name, parameter in self.parameters_by_name().items()}

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """What `named_parameters()` gives, without a walk through modules where there are none within."""
        own = {name: parameter for name, parameter in self._parameters.items() if parameter is not None}
        if self._modules or len({id(parameter) for parameter in own.values()}) < len(own):
            return dict(self.named_parameters())
        return own

    def feature_weight(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """What leads from features to hidden units, `[models, n_hidden, n_features]`, with these parameters
        by name: the encoder, E P where there is an embedding."""
        encoder = parameters["weight"] if "weight" in parameters else parameters["encoder"]
        fixed = self.fixed_tensors()
        if "embedding" not in fixed:
            return encoder
        return (encoder.double() @ fixed["embedding"].double()).to(encoder.dtype)

    def trained_arrays(self) -> dict[str, torch.Tensor]:
        """All tensors of the network, `[models, …]` each: the parameters, and which connections exist."""
        return self.stacked_parameters()

    def drawn_from(self) -> dict[str, torch.Tensor]:
        """What the initial weights were drawn from, by name."""
        return {"seed": self.seed}


@functools.lru_cache(maxsize=256, typed=True)
def _specification(**fields: Any) -> NetworkSpec:
    """One object for each network, whoever asks: what follows from it is found once."""
    return NetworkSpec(**fields)
