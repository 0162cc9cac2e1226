"""What a network is: one frozen description, and the table of its tensors.

Everything else that must know takes it from here: what modules say of themselves (`config()`), what is
refused by name, the reference's network, the operators' options, shapes of parameters and of what optimisers
keep beside them, the names of dimensions in runs and stores, and what the kernels are told.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from toykern.arguments.errors import check_choice, check_flag, check_int, check_number
from toykern.network.activations import (
    ACTIVATIONS,
    LAYER_HIDDEN_ACTIVATIONS,
    LAYER_OUTPUT_ACTIVATIONS,
    NEGATIVE_SLOPE,
)
from toykern.network.losses import EMBEDDED, LOSSES, Objective


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a network.

    Attributes:
        name: as modules, runs and stores call it.
        dims: the names of its dimensions, without the models'.
        role: what it is to the mathematics: "encoder" E, "decoder" D, "bias" b, "hidden_bias" c; "embedding"
            P and "unembedding" Q, which are fixed; or "connections", which of E's entries exist.
    """

    name: str
    dims: tuple[str, ...]
    role: str


ROLES = {
    "weight": "encoder",  # E where D = Eᵀ
    "encoder": "encoder",
    "decoder": "decoder",
    "bias": "bias",
    "hidden_bias": "hidden_bias",
    "connections": "connections",
    "embedding": "embedding",
    "unembedding": "unembedding",
}
"""What a tensor of any network is, by its name."""


@dataclass(frozen=True)
class Options:
    """The functions of a network, whatever its size: f, g, and what the encoder sees.

    Attributes:
        hidden_activation: a name in `toykern.network.activations`; "topk": the `top_k` largest codes of a
            sample stay as they are, the others become 0 (Gao et al. 2024).
        output_activation: a name there.
        top_k: for "topk"; else 0.
        centered: the encoder sees e − b, as sparse autoencoders do (Bricken et al. 2023).
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

    def check_layer(self, n_hidden: int) -> None:
        """ValueError or TypeError for what the fused layer does not have, or a top_k that does not fit."""
        check_choice("hidden_activation", self.hidden_activation, LAYER_HIDDEN_ACTIVATIONS)
        check_choice("output_activation", self.output_activation, LAYER_OUTPUT_ACTIVATIONS)
        check_flag("centered", self.centered)
        check_top_k(self.hidden_activation, self.top_k, n_hidden)
        check_number("negative_slope", self.negative_slope, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Options, Objective):
    """One network y = g(Q (D f(E (e − b·centered) + c) + e·residual) + b) with e = P x, without its weights,
    and what it is trained for. Without P and Q, which are fixed, e is x and the output D h + b.

    Attributes:
        n_features, n_hidden, n_outputs: the shape; n_outputs 0 stands for n_features.
        tied: whether D = Eᵀ, the one "weight".
        sparse: whether only some connections of E exist.
        bias, hidden_bias: whether there is a b, a c.
        n_embedding: d, the length of e where there is a P; else 0.
        unembedding: whether there is a Q.
        residual: whether e is added to what the decoder gives.

    The others are those of `Options` and of `Objective`, which a module does not have: whoever trains or
    evaluates it says so (`trained_for`).

    >>> spec = NetworkSpec(n_features=5, n_hidden=2, tied=False)
    >>> {tensor.name: spec.shape(tensor) for tensor in spec.tensors}
    {'encoder': (2, 5), 'decoder': (5, 2), 'bias': (5,)}
    """

    n_features: int
    n_hidden: int
    n_outputs: int = 0
    tied: bool = True
    sparse: bool = False
    bias: bool = True
    hidden_bias: bool = False
    n_embedding: int = 0
    unembedding: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        if self.n_outputs == 0:
            object.__setattr__(self, "n_outputs", self.n_features)

    def check_shape(self) -> None:
        """ValueError for options that do not go together, by the name of the one that needs another."""
        if self.unembedding and not self.n_embedding:
            raise ValueError("unembedding needs an embedding, whose dimensions it reads")
        if self.centered and not self.bias:
            raise ValueError("centered takes the bias off the input, so it needs bias=True, not False")
        if self.centered and self.unembedding:
            raise ValueError(
                "centered takes the bias off the input, so it needs a bias of its length: none "
                "where there is an unembedding"
            )
        seen, given = self.sizes[self._seen], self.sizes[self._given]
        for name in ("tied", "residual", "centered"):
            if getattr(self, name) and seen != given:
                what = "n_embedding" if self.n_embedding else "n_features"
                raise ValueError(
                    f"{name} needs as many outputs before the unembedding as the encoder has inputs "
                    f"({what} = {seen}), not {given}"
                    if self.unembedding
                    else f"{name} needs n_outputs = {what} = {seen}, not {given}"
                )

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """The length of each dimension by its name."""
        found = {"feature": self.n_features, "hidden": self.n_hidden}
        if self.n_outputs != self.n_features:
            found["output"] = self.n_outputs
        return found | ({"embedding": self.n_embedding} if self.n_embedding else {})

    @property
    def output_dim(self) -> str:
        """The dimension of the outputs: the features', where there are as many."""
        return "output" if self.n_outputs != self.n_features else "feature"

    @property
    def _seen(self) -> str:
        """The dimension of what the encoder sees."""
        return "embedding" if self.n_embedding else "feature"

    @property
    def _given(self) -> str:
        """The dimension of what the decoder gives."""
        return "embedding" if self.unembedding else self.output_dim

    @functools.cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Those that training changes, in order: weights, biases, and what is no parameter."""
        dims = {
            "weight": ("hidden", self._seen),
            "encoder": ("hidden", self._seen),
            "decoder": (self._given, "hidden"),
            "bias": (self.output_dim,),
            "hidden_bias": ("hidden",),
            "connections": ("hidden", "feature"),
        }
        there = {
            "weight": self.tied,
            "encoder": not self.tied,
            "decoder": not self.tied,
            "bias": self.bias,
            "hidden_bias": self.hidden_bias,
            "connections": self.sparse,
        }
        return tuple(TensorSpec(name, dims[name], ROLES[name]) for name, has in there.items() if has)

    @functools.cached_property
    def fixed(self) -> tuple[TensorSpec, ...]:
        """Those that nothing trains, of each model or one for all: P and Q.

        >>> spec = NetworkSpec(n_features=5, n_hidden=4, n_outputs=7, n_embedding=3, unembedding=True)
        >>> {tensor.name: spec.shape(tensor) for tensor in spec.fixed}
        {'embedding': (3, 5), 'unembedding': (7, 3)}
        """
        there = (
            (self.n_embedding > 0, TensorSpec("embedding", ("embedding", "feature"), "embedding")),
            (self.unembedding, TensorSpec("unembedding", (self.output_dim, "embedding"), "unembedding")),
        )
        return tuple(tensor for has, tensor in there if has)

    @functools.cached_property
    def parameters(self) -> tuple[TensorSpec, ...]:
        """Those that are trained."""
        return tuple(tensor for tensor in self.tensors if tensor.role != "connections")

    @functools.cached_property
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
        return _trained_for(self, objective)

    def options(self) -> dict[str, Any]:
        """The options that are used, or differ from what they are where nobody gives them, by name."""
        rows = (ACTIVATIONS.get(name) for name in (self.hidden_activation, self.output_activation))
        taken = {row.option for row in rows if row is not None}
        plain = _DEFAULTS | {"n_outputs": self.n_features}
        return {
            name: getattr(self, name)
            for name in OPTIONS
            if name in taken or getattr(self, name) != plain[name]
        }

    def without_kernels(self, l1: bool = False) -> dict[str, Any]:
        """What of it, of its objective, and of `l1` ≠ 0 no CUDA kernel of ours trains or evaluates, by name:
        they have autoencoders of the features without a hidden bias.

        >>> NetworkSpec(n_features=5, n_hidden=3, hidden_activation="topk", top_k=2).without_kernels()
        {'hidden_activation': 'topk', 'top_k': 2}
        """
        found: dict[str, Any] = {}
        known = set()
        for place, name in (("hidden", "hidden_activation"), ("output", "output_activation")):
            row = ACTIVATIONS[getattr(self, name)]
            if {place, "fit"} <= row.cuda:
                known.add(row.option)
            else:
                found[name] = getattr(self, name)
        found |= {name: value for name, value in self.options().items() if name not in known}
        return found | self._beyond_squares(l1)

    def untrained(self, l1: bool) -> dict[str, Any]:
        """What of the objective, and of `l1` ≠ 0, this network cannot be trained for, by name: dense ones can
        for all.

        >>> NetworkSpec(n_features=5, n_hidden=3, sparse=True, loss="cross_entropy").untrained(False)
        {'loss': 'cross_entropy'}
        """
        return self._beyond_squares(l1) if self.sparse else {}

    def _beyond_squares(self, l1: bool) -> dict[str, Any]:
        """What of the objective is more than the squared error of features, or their magnitudes."""
        found: dict[str, Any] = {} if LOSSES[self.loss].layer else {"loss": self.loss}
        found |= {"target": self.target} if self.target == EMBEDDED else {}
        return found | ({"l1": "other than 0"} if l1 else {})

    def config(self) -> dict[str, Any]:
        """JSON-able: what is always told, and the options that are used. Its class says the rest."""
        return {name: getattr(self, name) for name in ALWAYS} | self.options()

    def check_loss(self) -> None:
        """ValueError where the loss is not one of outputs with this activation: a cross-entropy has a softmax
        of its own."""
        if LOSSES[self.loss].over != "output" and self.output_activation != "none":
            raise ValueError(
                f"loss={self.loss!r} is of outputs without an activation: output_activation must be 'none', "
                f"not {self.output_activation!r}"
            )

    def check_target(self, width: int | None = None) -> None:
        """ValueError where the target does not have a number for each output.

        `width`: of what it is made from where that are not the features, as the targets of a dataset.
        """
        if self.target == EMBEDDED:
            if not self.n_embedding:
                raise ValueError("target='embedding' is for a model with an embedding, which this one lacks")
            if width is not None:
                raise ValueError("target='embedding' is made of the features, but the data has own targets")
            width = self.n_embedding
            made_of = f"n_embedding = {width}"
        else:
            made_of = f"n_features = {self.n_features}" if width is None else f"the data's {width}"
            width = self.n_features if width is None else width
        if width != self.n_outputs:
            raise ValueError(
                f"target={self.target!r} has as many numbers as {made_of}, but the model has n_outputs = "
                f"{self.n_outputs}"
            )


@functools.lru_cache(maxsize=256)
def _trained_for(network: NetworkSpec, objective: Objective) -> NetworkSpec:
    """One object for each: what follows from a network (`tensors`, `sizes`, …) is found once for it."""
    named = {field.name: getattr(objective, field.name) for field in dataclasses.fields(Objective)}
    return dataclasses.replace(network, **named)


ALWAYS = ("n_features", "n_hidden", "hidden_activation", "output_activation", "bias")
"""What every description of a network tells."""

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(NetworkSpec)}

LAYER_OPTIONS = ("negative_slope", "hidden_bias", "centered", "top_k")
OPTIONS = (*LAYER_OPTIONS, "n_outputs", "n_embedding", "unembedding", "residual")
"""What it tells where it is used; the first of them are those that the fused layer has."""


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
