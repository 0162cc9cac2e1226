"""What a network is: one frozen description, and the table of its tensors.

Everything else that must know takes it from here: what modules say of themselves (`config()`), what is
refused by name, the reference's network, the operators' options, shapes of parameters and of what optimisers
keep beside them, the names of dimensions in runs and stores, and what the kernels are told.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from toykern.arguments.errors import check_choice, check_flag, check_int, check_number
from toykern.network.activations import ACTIVATIONS, HIDDEN_ACTIVATIONS, NEGATIVE_SLOPE, OUTPUT_ACTIVATIONS
from toykern.network.losses import Objective


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a network.

    Attributes:
        name: as modules, runs and stores call it.
        dims: the names of its dimensions, without the models'.
        role: what it is to the mathematics: "encoder" E, "decoder" D, "bias" b, "hidden_bias" c; or
            "connections", which of E's entries exist.
    """

    name: str
    dims: tuple[str, ...]
    role: str


TENSORS = (
    TensorSpec("weight", ("hidden", "feature"), "encoder"),  # E where D = Eᵀ
    TensorSpec("encoder", ("hidden", "feature"), "encoder"),
    TensorSpec("decoder", ("feature", "hidden"), "decoder"),
    TensorSpec("bias", ("feature",), "bias"),
    TensorSpec("hidden_bias", ("hidden",), "hidden_bias"),
    TensorSpec("connections", ("hidden", "feature"), "connections"),
)
"""Of all kinds of network; which of them one has, it says itself (`NetworkSpec.tensors`)."""


@dataclass(frozen=True)
class Options:
    """The functions of a network, whatever its size: f, g, and what the encoder sees.

    Attributes:
        hidden_activation: a name in `toykern.network.activations`; "topk": the `top_k` largest codes of a
            sample stay as they are, the others become 0 (Gao et al. 2024).
        output_activation: a name there.
        top_k: for "topk"; else 0.
        centered: the encoder sees x − b, as sparse autoencoders do (Bricken et al. 2023).
        negative_slope: of "leaky_relu", at 0 and below; finite, ≥ 0.

    >>> Options(hidden_activation="relu").output_activation
    'relu'
    """

    hidden_activation: str = "none"
    output_activation: str = "relu"
    top_k: int = 0
    centered: bool = False
    negative_slope: float = NEGATIVE_SLOPE

    def arguments(self) -> tuple[str, str, int, bool, float]:
        """As the operators take them, one after the other."""
        return (
            self.hidden_activation,
            self.output_activation,
            self.top_k,
            self.centered,
            self.negative_slope,
        )

    def check(self, n_hidden: int) -> None:
        """ValueError or TypeError for a name that is none, or a top_k that does not fit."""
        check_choice("hidden_activation", self.hidden_activation, HIDDEN_ACTIVATIONS)
        check_choice("output_activation", self.output_activation, OUTPUT_ACTIVATIONS)
        check_flag("centered", self.centered)
        check_top_k(self.hidden_activation, self.top_k, n_hidden)
        check_number("negative_slope", self.negative_slope, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Options, Objective):
    """One network y = g(D f(E x + c) + b), without its weights, and what it is trained for.

    Attributes:
        n_features, n_hidden: the shape.
        tied: whether D = Eᵀ, the one "weight".
        sparse: whether only some connections of E exist.
        bias, hidden_bias: whether there is a b, a c.

    The others are those of `Options` and of `Objective`, which a module does not have: whoever trains or
    evaluates it says so (`trained_for`).

    >>> spec = NetworkSpec(n_features=5, n_hidden=2, tied=False)
    >>> {tensor.name: spec.shape(tensor) for tensor in spec.tensors}
    {'encoder': (2, 5), 'decoder': (5, 2), 'bias': (5,)}
    """

    n_features: int
    n_hidden: int
    tied: bool = True
    sparse: bool = False
    bias: bool = True
    hidden_bias: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each dimension by its name."""
        return {"feature": self.n_features, "hidden": self.n_hidden}

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Those that the network has, in order: weights, biases, and what is no parameter."""
        there = {
            "weight": self.tied,
            "encoder": not self.tied,
            "decoder": not self.tied,
            "bias": self.bias,
            "hidden_bias": self.hidden_bias,
            "connections": self.sparse,
        }
        return tuple(tensor for tensor in TENSORS if there[tensor.name])

    @property
    def parameters(self) -> tuple[TensorSpec, ...]:
        """Those that are trained."""
        return tuple(tensor for tensor in self.tensors if tensor.role != "connections")

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """The matrices among them."""
        return tuple(tensor for tensor in self.parameters if len(tensor.dims) == 2)

    def shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Of one model's."""
        return tuple(self.sizes[dim] for dim in tensor.dims)

    def views(self) -> dict[str, tuple[int, int, int]]:
        """Rows, columns and offset of each parameter by its role, as the kernels' table of tensors has them.

        A vector is a row; the offset counts the elements of one model's parameters that stand before it.

        >>> NetworkSpec(n_features=5, n_hidden=2, tied=False).views()
        {'encoder': (2, 5, 0), 'decoder': (5, 2, 10), 'bias': (1, 5, 20)}
        """
        found, offset = {}, 0
        for tensor in self.parameters:
            rows, columns = (1, *self.shape(tensor))[-2:]
            found[tensor.role] = (rows, columns, offset)
            offset += rows * columns
        return found

    def trained_for(self, objective: Objective) -> NetworkSpec:
        """The same network with another objective."""
        named = {field.name: getattr(objective, field.name) for field in dataclasses.fields(Objective)}
        return dataclasses.replace(self, **named)

    def options(self) -> dict[str, Any]:
        """The options that are used, or differ from what they are where nobody gives them, by name."""
        rows = (ACTIVATIONS.get(name) for name in (self.hidden_activation, self.output_activation))
        taken = {row.option for row in rows if row is not None}
        return {
            name: getattr(self, name)
            for name in OPTIONS
            if name in taken or getattr(self, name) != _DEFAULTS[name]
        }

    def unfitted(self) -> dict[str, Any]:
        """What `toykern.fit` does not know of it: activations and options that only the layer has, by name.

        >>> NetworkSpec(n_features=5, n_hidden=3, hidden_activation="topk", top_k=2).unfitted()
        {'hidden_activation': 'topk', 'top_k': 2}
        """
        found: dict[str, Any] = {}
        for name in ("hidden_activation", "output_activation"):
            row = ACTIVATIONS.get(getattr(self, name))
            if row is None or not row.fitted:
                found[name] = getattr(self, name)
        known = {row.option for row in ACTIVATIONS.values() if row.fitted}
        return found | {name: value for name, value in self.options().items() if name not in known}

    def config(self) -> dict[str, Any]:
        """JSON-able: what is always told, and the options that are used. Its class says the rest."""
        return {name: getattr(self, name) for name in ALWAYS} | self.options()


ALWAYS = ("n_features", "n_hidden", "hidden_activation", "output_activation", "bias")
"""What every description of a network tells."""

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(NetworkSpec)}

OPTIONS = ("negative_slope", "hidden_bias", "centered", "top_k")
"""What it tells where it is used."""


def check_top_k(hidden_activation: str, top_k: Any, n_hidden: int) -> int:
    """`top_k`, 1 … n_hidden with "topk" and 0 otherwise; ValueError or TypeError names it."""
    if hidden_activation != "topk":
        if top_k is not None and check_int("top_k", top_k) != 0:
            raise ValueError(f"top_k is for hidden_activation='topk' only, not {hidden_activation!r}")
        return 0
    if top_k is None:
        raise ValueError(f"top_k must be given with hidden_activation='topk': 1 … {n_hidden}")
    return check_int("top_k", top_k, minimum=1, maximum=n_hidden)


def check_negative_slope(hidden_activation: str, output_activation: str, slope: Any) -> float:
    """The slope of "leaky_relu" below 0; TypeError or ValueError names it, also where there is no such."""
    if slope is None:
        return NEGATIVE_SLOPE
    if "leaky_relu" not in (hidden_activation, output_activation):
        raise ValueError(
            "negative_slope is for hidden_activation='leaky_relu' or output_activation='leaky_relu' only, "
            f"not {hidden_activation!r} and {output_activation!r}"
        )
    return check_number("negative_slope", slope, minimum=0.0)
