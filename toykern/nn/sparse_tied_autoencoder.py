"""The tied-weight autoencoder of Toy Models of Superposition with a sparse W, many stacked in one module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from toykern.arguments.broadcast import Values, broadcast_importance, broadcast_seed
from toykern.arguments.errors import check_choice, check_flag, check_size, describe
from toykern.network.losses import LOSSES, TARGETS, Objective
from toykern.network.specification import TensorSpec
from toykern.nn.factory import factory_device_of_connections
from toykern.nn.indexing import model_index
from toykern.nn.network_stack import NetworkStack
from toykern.nn.sparse_initialization import initial_values, random_topology
from toykern.nn.sparse_weights import SparseWeights
from toykern.nn.tied_autoencoder import TiedAutoencoder
from toykern.nn.unfused import unfused_output
from toykern.ops.sparse_linear import by_column, sparse_linear
from toykern.ops.sparse_linear_schema import GradientCapture
from toykern.ops.transforms import transforming
from toykern.sparse.topology import Topology

_ACTIVATIONS = ("none", "relu")  # of those that dense stacks have


class SparseTiedAutoencoder(NetworkStack, SparseWeights):
    """`n_models` autoencoders out = g(Wᵀ f(W x) + b) with a sparse W `[n_hidden, n_features]` used twice.

    Args:
        n_features, n_hidden, n_models: the shape.
        density, fan_in or topology, minimum_fan_in, capacity: as for `SparseLinear`; W has n_hidden rows.
        hidden_activation: f, "none" (default) or "relu".
        output_activation: g, "relu" (default) or "none".
        bias: whether there is a b; it begins at 0.
        init: "xavier" (default), "linear", "kaiming", a standard deviation or one for each model; the named
            ones follow the connections there are (`toykern.nn.sparse_initialization.initial_values`).
        seed: of connections and weights, an int (for all models) or `[models]`; None means 0 … n_models−1, as
            for `TiedAutoencoder`.
        dtype, device, backend: as for `SparseLinear`; there are no groups.

    Parameters: `values` `[n_models · capacity]`, `bias` `[n_models, n_features]` or None. `weight` is W with
    its zeros, for `toykern.metrics`. `seed` int64 `[models]` and `init` are what was asked for. `model[i]` is
    a copy of one model, `model[a:b]` of several, each with its connections. `toykern.fit` trains the stack.
    ValueError or TypeError names the argument at fault.

    >>> model = SparseTiedAutoencoder(n_features=20, n_hidden=10, density=0.3, n_models=3)
    >>> model(torch.zeros(8, 20)).shape, model.loss(torch.ones(8, 20)).shape
    (torch.Size([3, 8, 20]), torch.Size([3]))
    """

    sparse: ClassVar[bool] = True
    place: torch.Tensor

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        density: Values | None = None,
        *,
        fan_in: Values | None = None,
        topology: Topology | None = None,
        minimum_fan_in: int = 0,
        capacity: int | None = None,
        n_models: int = 1,
        hidden_activation: str = "none",
        output_activation: str = "relu",
        bias: bool = True,
        init: Any = "xavier",
        seed: Values | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> None:
        n_features = check_size("n_features", n_features)
        n_hidden = check_size("n_hidden", n_hidden)
        n_models = check_size("n_models", n_models)
        check_choice("hidden_activation", hidden_activation, _ACTIVATIONS)
        check_choice("output_activation", output_activation, _ACTIVATIONS)
        has_bias = check_flag("bias", bias)
        device = factory_device_of_connections(device)
        seeds = broadcast_seed("seed", seed, n_models)
        try:
            chosen = random_topology(
                n_features,
                n_hidden,
                density,
                fan_in,
                topology,
                n_models,
                seeds,
                capacity,
                minimum_fan_in=minimum_fan_in,
            )
            values = initial_values(chosen, seeds, init)
        except MemoryError as error:  # it speaks of a layer; in_features are n_features here
            raise MemoryError(f"n_features={n_features:,}, n_hidden={n_hidden:,}: {error}") from None
        super().__init__(chosen, dtype, device)
        self.backend = backend
        self.n_features, self.n_hidden = n_features, n_hidden
        self.hidden_activation, self.output_activation = hidden_activation, output_activation
        zeros = torch.zeros(n_models, n_features, dtype=self.values.dtype, device=device)
        self.register_parameter("bias", nn.Parameter(zeros) if has_bias else None)
        with torch.no_grad():
            self.values.copy_(values)
        self.seed = seeds
        self.init = _described(init)
        self._encoding, self._decoding = GradientCapture(), GradientCapture()

    @property
    def weight(self) -> torch.Tensor:
        """W with its zeros, `[n_models, n_hidden, n_features]`; differentiable, and a copy."""
        return self.to_dense()

    def stacked_parameters(self) -> dict[str, torch.Tensor]:
        """`weight` (W with its zeros, a copy) and `bias` if there is one, detached, each `[models, …]`."""
        parameters = {"weight": self.weight.detach()}
        return parameters if self.bias is None else parameters | {"bias": self.bias.detach()}

    def trained_arrays(self) -> dict[str, torch.Tensor]:
        """The same, and "connections", bool `[models, n_hidden, n_features]`: which exist."""
        return self.stacked_parameters() | {"connections": self.topology.to_mask()}

    def parameter_shapes(self) -> dict[str, list[int]]:
        """What the module's own parameters must be, by name: W is kept by its connections."""
        shapes = super().parameter_shapes()
        del shapes["weight"]
        return {"values": [len(self.topology.column)], **shapes}

    def tensor_of(self, parameter: str) -> TensorSpec:
        """`values` are the weight's."""
        return super().tensor_of("weight" if parameter == "values" else parameter)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        topology: Topology,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        seed: Values,
    ) -> Self:
        """The CPU stack that `config()` described, with these connections, weights, their dtype, and seeds.

        `weight` is `[models, n_hidden, n_features]`, of which the values at connections are taken; `bias`
        `[models, n_features]` or None. ValueError where they do not fit.
        """
        arguments = {name: value for name, value in config.items() if name not in ("class", "init")}
        model = cls(**arguments, topology=topology, init=0.0, seed=seed, dtype=weight.dtype, device="cpu")
        model.init = config["init"]
        if list(weight.shape) != [model.n_models, model.n_hidden, model.n_features]:
            raise ValueError(f"weight must have the shape of the stack, not {describe(weight)}")
        with torch.no_grad():
            model.values[topology.occupied_slots()] = weight.reshape(-1)[topology.keys()]
            if model.bias is not None:
                assert bias is not None  # of the same config
                model.bias.copy_(bias)
        return model

    @classmethod
    def from_state(
        cls, config: dict[str, Any], state: dict[str, torch.Tensor], drawn_from: dict[str, torch.Tensor]
    ) -> Self:
        """The CPU stack whose `config()`, `state_dict()` and `drawn_from()` these were."""
        topology = Topology(config["n_features"], config["n_hidden"], state["row_start"], state["column"])
        weight = topology.to_dense(state["values"])
        return cls.from_config(config, topology, weight, state.get("bias"), drawn_from["seed"])

    def begun_with(self, initial: dict[str, torch.Tensor]) -> Self:
        """A CPU stack as this one, with these tensors by name (`trained_arrays()`)."""
        topology, bias = Topology.from_mask(initial["connections"]), initial.get("bias")
        return type(self).from_config(self.config(), topology, initial["weight"], bias, self.seed)

    def dense(self) -> TiedAutoencoder:
        """The same networks with all connections, which are 0 where this one has none; a copy, float32."""
        parameters = self.stacked_parameters()
        return TiedAutoencoder.from_published(
            parameters["weight"].mT,
            parameters.get("bias"),
            hidden_activation=self.hidden_activation,
            output_activation=self.output_activation,
            dtype=torch.float32,
            device=parameters["weight"].device,
        )

    def __getitem__(self, index: Any) -> Self:
        chosen = model_index(index, self.n_models)
        parameters = {name: value.cpu()[chosen] for name, value in self.stacked_parameters().items()}
        topology = Topology.from_mask(self.topology.to_mask().cpu()[chosen])
        config = self.config() | {"n_models": topology.n_models}
        weight, bias = parameters["weight"], parameters.get("bias")
        part = type(self).from_config(config, topology, weight, bias, self.seed[chosen])
        return part.to(self.values.device).train(self.training)

    if TYPE_CHECKING:  # torch.nn.Module says nothing of what a call gives

        def __call__(self, x: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
            """As `forward`, with the hooks of the module."""

    def forward(self, x: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
        """Outputs `[models, batch, n_features]` for x of that shape, or `[batch, n_features]` for all models.

        fused=False computes the same with the dense weights by torch operations, for derivatives in forward
        mode and of second order and for `torch.vmap` (docs/fused_layer.md).

        ValueError for another shape, TypeError for what is no tensor or has another dtype than the weights.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a tensor, not {describe(x)}")
        stacked = x.unsqueeze(0) if x.ndim == 2 else x
        if (
            stacked.ndim != 3
            or stacked.shape[0] not in (1, self.n_models)
            or stacked.shape[2] != self.n_features
        ):
            raise ValueError(
                f"x must have the shape [models, batch, n_features] = [{self.n_models}, batch, "
                f"{self.n_features}] or [batch, {self.n_features}], not {list(x.shape)}"
            )
        if not check_flag("fused", fused):
            tensors = {"weight": self._unfused_weight()} | ({} if self.bias is None else {"bias": self.bias})
            return unfused_output(stacked, tensors, self)
        encoding, decoding = (
            capture.number if self._capturing else 0 for capture in (self._encoding, self._decoding)
        )
        index = self.index
        transposed = index.transposed(self.place)
        hidden = sparse_linear(
            stacked,
            self.values,
            None,
            index,
            relu=self.hidden_activation == "relu",
            capture=encoding,
            backend=self.backend,
        )
        return sparse_linear(
            hidden,
            by_column(self.values, index, transposed),
            self.bias,
            transposed,
            relu=self.output_activation == "relu",
            capture=decoding,
            backend=self.backend,
        )

    def loss(
        self,
        x: torch.Tensor,
        importance: Values = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
        loss: str = Objective.loss,
        *,
        fused: bool = True,
    ) -> torch.Tensor:
        """Loss of each model on a batch, `[models]`: Σ_i importance_i · (target_i − output_i)².

        Arguments as for `TiedAutoencoder.loss`. Models are independent: `loss.sum().backward()` gives every
        model its own gradient.
        """
        named = "identity" if target is None or isinstance(target, torch.Tensor) else target
        objective = Objective(check_choice("target", named, TARGETS), loss_reduction, loss)
        objective.check_objective(layer=True)
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, not {describe(x)}")
        if not x.numel():
            raise ValueError(f"x must hold at least one sample for a loss, not {describe(x)}")
        if isinstance(target, torch.Tensor):
            if target.shape[-2:] != x.shape[-2:]:
                raise ValueError(
                    f"target must have the samples and features of x, {list(x.shape)}, not {describe(target)}"
                )
            wanted = target
        else:
            wanted = TARGETS[objective.target](x)
        weights = broadcast_importance(
            importance,
            self.n_models,
            self.n_features,
            dtype=x.dtype,
            device=x.device,
            check_values=x.device.type == "cpu" and not torch.compiler.is_compiling() and not transforming(),
            detach=False,
        )
        per_feature = LOSSES[objective.loss].of(self(x, fused=fused), wanted).sum(dim=1)
        terms = x.shape[-2] * objective.terms(self.n_features)
        return (per_feature * weights).sum(dim=1) / terms

    def extra_repr(self) -> str:
        """Shape and options, for `repr(model)`."""
        density = self.topology.density
        least, most = float(density.min()), float(density.max())
        text = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        return (
            f"n_features={self.n_features}, n_hidden={self.n_hidden}, n_models={self.n_models}, "
            f"density={text}, hidden_activation={self.hidden_activation!r}, "
            f"output_activation={self.output_activation!r}, "
            f"bias={self.bias is not None}"
        )

    def _index_taken(self) -> None:
        super()._index_taken()
        place = self.index.places()
        if "place" in self._buffers and self.place.shape == place.shape and self.place.device == place.device:
            self.place.copy_(place)
        else:
            self.register_buffer("place", place, persistent=False)

    def _captures(self) -> list[GradientCapture]:
        return [self._encoding, self._decoding]

    def _captured(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
        super()._captured()  # raises where there is none
        # Decoding multiplies by Wᵀ: what went in there is W's output side.
        passes = [*self._encoding.passes, *((dy, hidden) for hidden, dy in self._decoding.passes)]
        return passes, [*self._encoding.dense, *(gradient.mT for gradient in self._decoding.dense)]


def _described(init: Any) -> str | float:
    """The name or the standard deviation; "per_model" where models differ in it."""
    if isinstance(init, str):
        return init
    stds = torch.as_tensor(init, dtype=torch.float64, device="cpu").reshape(-1)
    return float(stds[0]) if bool((stds == stds[0]).all()) else "per_model"
