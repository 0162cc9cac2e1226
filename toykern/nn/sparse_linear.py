"""A linear layer that has only some of its connections, many of one shape stacked in one module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toykern.arguments.broadcast import Values, broadcast_seed
from toykern.arguments.errors import check_choice, check_flag, check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.nn.factory import factory_device_of_connections
from toykern.nn.sparse_initialization import initial_bias, initial_values, random_topology
from toykern.nn.sparse_weights import SparseWeights
from toykern.ops.sparse_linear import sparse_linear
from toykern.ops.sparse_linear_schema import GradientCapture
from toykern.sparse.topology import Topology

ACTIVATIONS = ("none", "relu")


class SparseLinear(SparseWeights):
    """y = act(W x + b) with a sparse W: memory and time follow the connections that exist.

    Args:
        in_features, out_features: the shape, as for `torch.nn.Linear`.
        density: the fraction of connections, in (0, 1], one or `[n_models]`; or
        fan_in: how many inputs every output has, one or `[n_models]`; or
        topology: a `toykern.sparse.Topology`. Exactly one of the three.
        group: that many neighbouring outputs have the same inputs, for tensor cores (docs/sparse_layers.md);
            a divisor of out_features, for fan_in or topology. Recipes keep groups together.
        backend: how it is computed on a GPU: "auto", "dense", "slots" or "groups" (`SparseWeights`).
        minimum_fan_in: with density, every output gets at least that many inputs, at random.
        capacity: slots of each model, for recipes that grow more than they drop; None: just enough.
        n_models: how many layers are stacked, each with connections and weights of its own.
        bias: whether there is a b.
        activation: "none" or "relu", fused into the product.
        init: "linear" (as `torch.nn.Linear`, by the actual fan-in), "kaiming", "xavier", a standard deviation
            or one for each model (`toykern.nn.sparse_initialization.initial_values`).
        seed: of connections and weights, one for all models or `[n_models]`. None takes seeds from torch's
            generator, so `torch.manual_seed` decides, as for any other layer.
        dtype, device: float32, bfloat16 (summed in float32) or float64, on the CPU or a GPU; None is torch's
            default.

    Parameters: `values` `[n_models · capacity]`, `bias` `[out_features]` for one model, `[n_models,
    out_features]` for several, or None. Any torch optimiser takes them; docs/sparse_layers.md says which to
    decay. ValueError or TypeError names the argument at fault.

    >>> layer = SparseLinear(64, 32, density=0.1)
    >>> layer(torch.zeros(8, 64)).shape
    torch.Size([8, 32])
    >>> SparseLinear(64, 32, fan_in=6, n_models=1000)(torch.zeros(8, 64)).shape
    torch.Size([1000, 8, 32])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: Values | None = None,
        *,
        fan_in: Values | None = None,
        topology: Topology | None = None,
        minimum_fan_in: int = 0,
        capacity: int | None = None,
        group: int = 1,
        n_models: int = 1,
        bias: bool = True,
        activation: str = "none",
        init: Any = "linear",
        seed: Values | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> None:
        in_features = check_size("in_features", in_features)
        out_features = check_size("out_features", out_features)
        n_models = check_size("n_models", n_models)
        group = check_size("group", group)
        has_bias = check_flag("bias", bias)
        check_choice("activation", activation, ACTIVATIONS)
        device = factory_device_of_connections(device)
        if seed is None:
            check_free_memory(f"seeds of n_models={n_models:,}", 8 * n_models, "take fewer models")
            seeds = torch.randint(2**63 - 1, (n_models,), dtype=torch.int64, device="cpu")
        else:
            seeds = broadcast_seed("seed", seed, n_models)
        chosen = random_topology(
            in_features,
            out_features,
            density,
            fan_in,
            topology,
            n_models,
            seeds,
            capacity,
            group,
            minimum_fan_in,
        )
        values = initial_values(chosen, seeds, init)
        super().__init__(chosen, dtype, device, group)
        self.backend = backend
        self.activation = activation
        self.register_parameter("bias", None)
        if has_bias:
            start = initial_bias(chosen, seeds, init)
            start = start[0] if n_models == 1 else start
            self.bias = nn.Parameter(start.to(device=device, dtype=self.values.dtype))
        with torch.no_grad():
            self.values.copy_(values)
        self._capture = GradientCapture()

    if TYPE_CHECKING:  # torch.nn.Module says nothing of what a call gives

        def __call__(self, x: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
            """As `forward`, with the hooks of the module."""

    def forward(self, x: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
        """Outputs of every model.

        One model: x `[…, in_features]` to `[…, out_features]`, as `torch.nn.Linear`. Several: x `[n_models,
        batch, in_features]`, or `[batch, in_features]` for all of them, to `[n_models, batch, out_features]`.
        ValueError for another shape, TypeError for a dtype that is not the weights' (autocast aside).

        fused=False computes the same with the dense weights by torch operations, for derivatives in forward
        mode and of second order and for `torch.vmap` (docs/fused_layer.md).
        """
        capture = self._capture.number if self._capturing else 0
        relu = self.activation == "relu"
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a tensor, not {describe(x)}")
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x must have the shape [..., in_features] with in_features = {self.in_features}, "
                f"not {list(x.shape)}"
            )
        check_flag("fused", fused)
        if self.n_models == 1:
            return self._product(x, relu, capture) if fused else self._dense_product(x, relu)
        if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[0] not in (1, self.n_models)):
            raise ValueError(
                f"x must have the shape [n_models, batch, in_features] = [{self.n_models}, batch, "
                f"{self.in_features}] or [batch, {self.in_features}], not {list(x.shape)}"
            )
        stacked = x.unsqueeze(0) if x.ndim == 2 else x
        return self._product(stacked, relu, capture) if fused else self._dense_product(stacked, relu)

    def _product(self, x: torch.Tensor, relu: bool, capture: int) -> torch.Tensor:
        return sparse_linear(
            x,
            self.values,
            self.bias,
            self.index,
            relu=relu,
            capture=capture,
            backend=self._backend,
            group=self.group,
            width=self._width,
        )

    def _dense_product(self, x: torch.Tensor, relu: bool) -> torch.Tensor:
        weight = self._unfused_weight()
        if self.n_models == 1:
            y = torch.nn.functional.linear(x, weight[0], self.bias)
        else:
            y = torch.matmul(x, weight.mT)
            y = y if self.bias is None else y + self.bias.unsqueeze(1)
        return y.relu() if relu else y

    @classmethod
    def from_linear(cls, linear: nn.Linear, topology: Topology) -> SparseLinear:
        """The connections `topology` (of one model) of a dense layer, with its weights, bias, dtype and mode.

        >>> dense = nn.Linear(3, 2)
        >>> full = Topology.from_largest(dense.weight, 1.0)
        >>> bool(torch.equal(SparseLinear.from_linear(dense, full).to_dense()[0], dense.weight))
        True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, not {describe(linear)}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            topology=topology,
            bias=linear.bias is not None,
            init=0.0,
            seed=0,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
        )
        with torch.no_grad():
            slot = topology.occupied_slots()
            _, row, column = topology.places()
            layer.values[slot] = linear.weight[row, column]
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
                layer.bias.requires_grad_(linear.bias.requires_grad)
        layer.values.requires_grad_(linear.weight.requires_grad)
        return layer.train(linear.training)

    def to_linear(self, model: int = 0) -> nn.Linear:
        """One model as a dense `torch.nn.Linear` (a copy; the activation is not in it)."""
        model = check_int("model", model)
        if not -self.n_models <= model < self.n_models:
            raise IndexError(f"model must be from {-self.n_models} to {self.n_models - 1}, not {model}")
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            dtype=self.values.dtype,
            device=self.values.device,
        )
        with torch.no_grad():
            linear.weight.copy_(self.to_dense()[model])
            if self.bias is not None:
                linear.bias.copy_(self.bias if self.n_models == 1 else self.bias[model])
        return linear.train(self.training)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        given = state_dict.get(f"{prefix}bias")
        if self.n_models == 1 and isinstance(given, torch.Tensor) and given.shape == (1, self.out_features):
            # What was saved when the bias of one model was a row.
            state_dict = {**state_dict, f"{prefix}bias": given[0]}
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """Shape and options, for `repr(layer)`."""
        density = self.topology.density
        least, most = float(density.min()), float(density.max())
        text = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, density={text}"]
        parts += [f"n_models={self.n_models}"] if self.n_models > 1 else []
        parts += [f"group={self.group}"] if self.group > 1 else []
        parts += [f"bias={self.bias is not None}"]
        parts += [f"activation={self.activation!r}"] if self.activation != "none" else []
        parts += [f"backend={self.backend!r}"] if self.backend != "auto" else []
        return ", ".join(parts)

    def _captures(self) -> list[GradientCapture]:
        return [self._capture]
