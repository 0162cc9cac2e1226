"""Two-layer networks with all their options, many of one shape stacked in one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import (
    check_choice,
    check_flag,
    check_number,
    check_size,
    describe,
)
from toykern.data.sparse_batch import SparseBatch
from toykern.network.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from toykern.network.losses import EMBEDDED, LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import ROLES, check_negative_slope, check_top_k
from toykern.nn.dense_stack import DenseStack
from toykern.nn.embedding import TRANSPOSE, drawn_embedding, fixed_embedding, fixed_unembedding
from toykern.nn.factory import factory_device, factory_dtype
from toykern.nn.published import names_of, published, read
from toykern.nn.two_layer import codes_of, embedded, one_hot, outputs_of, summed_loss


class MLP(DenseStack):
    """`n_models` two-layer networks y = g(Q (D f(E (e − b·centered) + c) + e·residual) + b), e = P x.

    Without an embedding P, e is x; without an un-embedding Q, the output is g(D h + e·residual + b) of codes
    h. An ordinary differentiable module, computed by batched products; `toykern.fit` trains the whole family.

    Args:
        n_features: n, the size of x.
        n_hidden: m, the size of the hidden layer.
        n_outputs: of y; None is n_features.
        n_models: how many models are stacked; each is independent of the others.
        hidden_activation: f, "relu" (default), "none", "leaky_relu", "gelu" (by erf), "softplus", "square",
            "x_exp" (z·e^z, which is what Jermyn et al. 2022 ran under the name SoLU), "solu" (z·softmax(z)
            over the codes of a sample, Elhage et al. 2022), or "topk", which keeps the `top_k` largest codes
            of a sample as they are and makes the others 0 (Gao et al. 2024).
        output_activation: g, "none" (default), or one of the above but "solu" and "topk".
        bias, hidden_bias: whether there is a b, which begins at 0, and a c.
        tied: whether D = Eᵀ, the one `weight`; the decoder gives as many numbers as the encoder sees.
        embedding: P, which is fixed: None; an int d ≤ n_features, drawn for each model from its seed as in
            Jermyn et al. 2022 (`toykern.nn.embedding.drawn_embedding`); or given, `[d, n_features]` for
            all models or `[models, d, n_features]`.
        unembedding: Q, which is fixed: None; True or "transpose" for Pᵀ; or given, `[n_outputs, d]` or
            `[models, n_outputs, d]`.
        residual: whether e is added to what the decoder gives, as in the residual networks that parameter
            decomposition takes apart (Braun et al. 2025).
        centered: whether the encoder sees e − b, as sparse autoencoders do (Bricken et al. 2023).
        top_k: for hidden_activation="topk", 1 … n_hidden.
        negative_slope: of "leaky_relu" at 0 and below, finite and ≥ 0; None is 0.01.
        init: the initial weights' standard deviation: "xavier" (of each matrix by itself), a number, or one
            for each model.
        seed: of the initial weights and of a drawn P, an int (for all models) or `[models]`; None means 0 …
            n_models−1. What a model is depends on its own seed, whatever stands beside it.
        dtype, device: of parameters, P and Q: float32, float64 or bfloat16; None is torch's default.
            `toykern.fit` and `toykern.evaluate` take float32.
        hidden_bias_init: what c begins at, a number.

    Parameters: `encoder` `[models, n_hidden, n_features or d]`, `decoder` `[models, n_outputs or d,
    n_hidden]` (d where there is a Q), or, tied, `weight` shaped as the encoder; `bias` `[models, n_outputs]`
    or None, `hidden_bias` `[models, n_hidden]` or None. Buffers: `embedding` `[models or 1, d, n_features]`,
    `unembedding` `[models or 1, n_outputs, d]`, or None. ValueError or TypeError names the argument at fault.

    >>> model = MLP(n_features=5, n_hidden=8, n_models=3, embedding=2, n_outputs=5)
    >>> model(torch.zeros(4, 5)).shape, model.encoder.shape
    (torch.Size([3, 4, 5]), torch.Size([3, 8, 2]))
    >>> MLP(5, 8, n_outputs=3).loss(torch.eye(5), target=torch.arange(5) % 3, loss="cross_entropy").shape
    torch.Size([1])
    """

    weight_names: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    _of_all_models: ClassVar[tuple[str, ...]] = (
        *DenseStack._of_all_models, "n_outputs", "n_embedding", "tied", "residual", "hidden_bias_init",
        "embedding_from", "unembedding_from",
    )  # fmt: skip

    n_outputs: int = 0
    weight: nn.Parameter
    encoder: nn.Parameter
    decoder: nn.Parameter
    embedding: torch.Tensor | None
    unembedding: torch.Tensor | None

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_outputs: int | None = None,
        n_models: int = 1,
        hidden_activation: str = "relu",
        output_activation: str = "none",
        bias: bool = True,
        hidden_bias: bool = True,
        tied: bool = False,
        embedding: Any = None,
        unembedding: Any = None,
        residual: bool = False,
        centered: bool = False,
        top_k: int | None = None,
        negative_slope: float | None = None,
        init: Any = "xavier",
        seed: Values | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        hidden_bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_features = check_size("n_features", n_features)
        self.n_hidden = check_size("n_hidden", n_hidden)
        self.n_outputs = self.n_features if n_outputs is None else check_size("n_outputs", n_outputs)
        self.n_models = check_size("n_models", n_models)
        self.hidden_activation = check_choice("hidden_activation", hidden_activation, HIDDEN_ACTIVATIONS)
        self.output_activation = check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        self.top_k = check_top_k(self.hidden_activation, top_k, self.n_hidden)
        self.negative_slope = check_negative_slope(
            self.hidden_activation, self.output_activation, negative_slope
        )
        has_bias, has_hidden_bias = check_flag("bias", bias), check_flag("hidden_bias", hidden_bias)
        self.tied, self.residual = check_flag("tied", tied), check_flag("residual", residual)
        self.centered = check_flag("centered", centered)
        self.hidden_bias_init = check_number("hidden_bias_init", hidden_bias_init)
        if self.hidden_bias_init != 0 and not has_hidden_bias:
            raise ValueError(
                f"hidden_bias_init is for hidden_bias=True only, not {describe(hidden_bias_init)} without"
            )
        if isinstance(init, str):
            check_choice("init", init, ("xavier",))
        dtype, device = factory_dtype(dtype), factory_device(device)
        p = fixed_embedding(embedding, self.n_models, self.n_features)
        q = fixed_unembedding(unembedding, self.n_models, self.n_features, self.n_outputs, p)
        self.n_embedding, self.embedding_from, self.unembedding_from = p.length, p.source, q.source
        given = {"embedding": p.given, "unembedding": q.given}
        if device.type == "meta" and any(tensor is not None for tensor in given.values()):
            raise ValueError(
                "device must be one with memory where embedding or unembedding is given as numbers, not "
                "'meta'"
            )
        network = self._specification(has_bias, has_hidden_bias, self.unembedding_from is not None)
        network.check_shape()
        self._begin(network, init, seed, dtype, device)
        for name in ("embedding", "unembedding"):
            self.register_buffer(name, None)
        for tensor in network.fixed:
            held = given[tensor.name]
            models = 1 if self.shares(tensor.name) else self.n_models
            empty = torch.empty(models, *network.shape(tensor), dtype=dtype, device=device)
            self.register_buffer(tensor.name, empty if held is None else empty.copy_(held))
        if device.type != "meta":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The parameters as they began, and P where it is drawn: see `toykern.nn.TiedAutoencoder`."""
        super().reset_parameters()
        if self.hidden_bias is not None:
            self.hidden_bias.fill_(self.hidden_bias_init)
        if self.embedding_from == "drawn":
            assert self.embedding is not None
            self.embedding.copy_(drawn_embedding(self.seed, self.n_embedding, self.n_features))
        if self.unembedding_from == TRANSPOSE:
            assert self.embedding is not None and self.unembedding is not None
            self.unembedding.copy_(self.embedding.mT)

    def _stds(self) -> list[torch.Tensor]:
        """Xavier-normal is that of each matrix."""
        if self.init != "xavier":
            return super()._stds()
        network = self.network
        return [_xavier(network.shape(tensor), self.n_models) for tensor in network.weights]

    def shares(self, name: str) -> bool:
        """Whether all models share the fixed tensor of this name."""
        if name == "unembedding" and self.unembedding_from != TRANSPOSE:
            return self.unembedding_from == "shared"
        return self.embedding_from == "shared"

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """`embedding` and `unembedding`, as far as there are some."""
        return {name: held for name, held in self._buffers.items() if held is not None}

    def config(self) -> dict[str, Any]:
        """JSON-able description: class, shape, options, where P and Q come from; not seeds and numbers."""
        network = self.network
        return {
            "class": type(self).__name__,
            "n_models": self.n_models,
            "init": self.init,
            "n_features": self.n_features,
            "n_hidden": self.n_hidden,
            "n_outputs": self.n_outputs,
            "hidden_activation": self.hidden_activation,
            "output_activation": self.output_activation,
            "bias": network.bias,
            "hidden_bias": network.hidden_bias,
            "tied": self.tied,
            "n_embedding": self.n_embedding,
            "embedding": self.embedding_from,
            "unembedding": self.unembedding_from,
            "residual": self.residual,
            "centered": self.centered,
            "hidden_bias_init": self.hidden_bias_init,
        } | {name: value for name, value in network.options().items() if name in ("top_k", "negative_slope")}

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        *,
        seed: Values | None = None,
        init: Any = None,
        device: Any = None,
        dtype: Any = None,
        embedding: Any = None,
        unembedding: Any = None,
    ) -> Self:
        """The stack that `config()` described; `embedding` and `unembedding` where these were given as
        numbers. See `toykern.nn.model_from_config`."""
        arguments = {key: value for key, value in config.items() if key != "class"}
        if set(arguments) - {"top_k", "negative_slope"} != _KEYS:
            raise ValueError(
                f"the model's config must have the keys {sorted(_KEYS)}, not {sorted(arguments)}"
            )
        if init is not None:
            arguments["init"] = init
        elif arguments["init"] == "per_model":
            raise ValueError("init was given per model: pass it, [models], to model_from_config")
        drawn = arguments.pop("n_embedding")
        for name, given in (("embedding", embedding), ("unembedding", unembedding)):
            if arguments[name] in ("shared", "per_model"):
                if given is None:
                    raise ValueError(f"{name} was given as numbers: pass it to model_from_config")
                arguments[name] = given
            elif given is not None:
                raise ValueError(f"{name} is for a model whose {name} was given, not {arguments[name]!r}")
        if arguments["embedding"] == "drawn":
            arguments["embedding"] = drawn
        return cls(**arguments, seed=seed, device=device, dtype=dtype)

    @classmethod
    def _unfilled(cls, config: dict[str, Any], seed: torch.Tensor) -> Self:
        zeros: dict[str, Any] = {}
        d, n, outputs = (int(config[name]) for name in ("n_embedding", "n_features", "n_outputs"))
        for name, shape in (("embedding", (d, n)), ("unembedding", (outputs, d))):
            if config[name] is not None:
                per_model = config[name] in ("per_model", "drawn") or (
                    config[name] == TRANSPOSE and config["embedding"] != "shared"
                )
                models = (int(config["n_models"]),) if per_model else ()
                zeros[name] = torch.zeros((*models, *shape), dtype=torch.float32, device="cpu")
        held = dict.fromkeys(zeros, "shared")
        model = cls.from_config(
            config | held, seed=seed, init=0.0, dtype=torch.float32, device="cpu", **zeros
        )
        model.embedding_from, model.unembedding_from = config["embedding"], config["unembedding"]
        return model

    @classmethod
    def from_published(
        cls,
        weights: Mapping[str, Any],
        *,
        hidden_activation: str = "relu",
        output_activation: str = "none",
        residual: bool = False,
        centered: bool = False,
        top_k: int | None = None,
        negative_slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A stack with published weights, by the names that their layout has; the others of the arguments
        are the class's.

        Args:
            weights: of an untied network, the state of two `torch.nn.Linear`, "linear1.weight" `[models,
                hidden, inputs]`, "linear1.bias", "linear2.weight" `[models, outputs, hidden]` and
                "linear2.bias"; of a tied one "weight" `[models, features, hidden]`, "bias" and
                "hidden_bias". Biases may be missing; there may be an "embedding" `[models, d, features]` and
                an "unembedding" `[models, outputs, d]`. All of them without the first dimension are one
                model. Values are copied.

        ValueError or TypeError names the entry that does not fit the others.

        >>> layer = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)
        >>> state = {f"linear{i + 1}.{k}": v for i in (0, 1) for k, v in layer[i].state_dict().items()}
        >>> MLP.from_published(state)(torch.zeros(4, 5)).shape
        torch.Size([1, 4, 3])
        """
        found, tied = read(weights)
        encoder = found["weight" if tied else "encoder"]
        n_models, n_hidden, seen = encoder.shape
        embedding, unembedding = found.pop("embedding", None), found.pop("unembedding", None)
        n_features = seen if embedding is None else embedding.shape[2]
        given = seen if tied else found["decoder"].shape[1]
        n_outputs = given if unembedding is None else unembedding.shape[1]
        model = cls(
            n_features, n_hidden, n_outputs, n_models, hidden_activation, output_activation,
            "bias" in found, "hidden_bias" in found, tied, embedding, unembedding, residual, centered, top_k,
            negative_slope, 0.0, device=device, dtype=dtype,
        )  # fmt: skip
        theirs = {ours: name for name, ours in names_of(tied).items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.shape != found[name].shape:
                    raise ValueError(
                        f"weights[{theirs[name]!r}] does not fit the others: {list(found[name].shape)} as "
                        f"[models, …], not {list(parameter.shape)}"
                    )
                parameter.copy_(found[name])
        return model

    def to_published(self, model: int | None = None) -> dict[str, torch.Tensor]:
        """The weights as `from_published` takes them, its inverse: copies, `[models, …]`; with `model` those
        of that one alone, without the first dimension, for `load_state_dict` of two `torch.nn.Linear`.

        >>> sorted(MLP(5, 8, 3).to_published(model=0))
        ['linear1.bias', 'linear1.weight', 'linear2.bias', 'linear2.weight']
        """
        fixed = {name: held.detach() for name, held in self.fixed_tensors().items()}
        return published(self.stacked_parameters(), fixed, model, self.n_models)

    if TYPE_CHECKING:  # torch.nn.Module says nothing of what a call gives

        def __call__(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
            """As `forward`, with the hooks of the module."""

    def forward(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        """Outputs `[models, batch, n_outputs]`.

        x: `[models, batch, n_features]`, or `[batch, n_features]` for all models; or a `toykern.SparseBatch`
        of as many models or of one. ValueError for another shape or device, TypeError for a dtype that is not
        the weights'.
        """
        seen = self._embedded(self._input(x))
        return self._outputs(self._codes(seen), seen)

    def encode(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        """Codes h `[models, batch, n_hidden]` of inputs as `forward` takes them."""
        return self._codes(self._embedded(self._input(x)))

    def decode(self, codes: torch.Tensor, x: torch.Tensor | SparseBatch | None = None) -> torch.Tensor:
        """Outputs `[models, batch, n_outputs]` of codes `[models, batch, n_hidden]` or `[batch, n_hidden]`.

        x: the inputs, which a residual network adds; ValueError where it is missing, or given without use.
        """
        batch = self._check_batch("codes", codes, self._autocast(), "n_hidden")
        if self.residual != (x is not None):
            raise ValueError(
                "x must be given to decode for a residual network"
                if self.residual
                else "x must be None to decode for a network that is not residual"
            )
        seen = None if x is None else self._embedded(self._input(x))
        if seen is not None and seen.shape[1] != batch.shape[1]:
            raise ValueError(f"x must have as many samples as codes ({batch.shape[1]}), not {seen.shape[1]}")
        return self._outputs(batch, seen)

    def loss(
        self,
        x: torch.Tensor | SparseBatch,
        importance: Values = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
        l1: Values = 0.0,
        loss: str = Objective.loss,
    ) -> torch.Tensor:
        """Loss of each model on a batch, `[models]`, and l1 · Σ_k |h_k|.

        Args:
            x: as `forward` takes it.
            importance: a number, `[n_outputs]`, `[models, 1]` or `[models, n_outputs]`, ≥ 0.
            target: "identity" (x) or "abs" (|x|) where there are as many outputs as features; "embedding" (P
                x) where there are as many as e has dimensions; a tensor `[models, batch, n_outputs]` or
                `[batch, n_outputs]`; or labels, int64 `[models, batch]` or `[batch]`, which are 1 at the
                output of that number and 0 at the others.
            loss_reduction: of the squared errors, "mean" over batch and outputs; "sum" over outputs and mean
                over the batch.
            l1: a number or `[models]`, ≥ 0: the weight of the hidden code's L1 norm, a mean over the batch.
            loss: with outputs y, targets t and importance I, "squared_error", Σ_j I_j (t_j − y_j)²;
                "cross_entropy", Σ_j I_j t_j (log Σ_i e^{y_i} − y_j), a mean over the batch; or
                "batch_cross_entropy", −Σ I_j s_rj log q_rj with s and q the softmax of all targets and of all
                outputs of the batch together (Jermyn & Shlegeris 2022).

        Models are independent: `loss.sum().backward()` gives every model its own gradient. float32 for
        bfloat16 weights. ValueError or TypeError for other shapes, dtypes or names.

        >>> MLP(n_features=5, n_hidden=2, n_models=3).loss(torch.ones(8, 5)).shape
        torch.Size([3])
        """
        check_choice("loss_reduction", loss_reduction, REDUCTIONS)
        check_choice("loss", loss, LOSSES)
        if LOSSES[loss].over != "output" and self.output_activation != "none":
            self.network.trained_for(Objective(loss=loss)).check_loss()  # raises
        batch = self._input(x)
        samples = batch.shape[1]
        if samples == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        seen = self._embedded(batch)
        wanted = self._target(target, batch, seen)
        weights = self._importance(importance, self.n_outputs, batch.device)
        prices = self._l1(l1, weights)
        codes = self._codes(seen)
        objective = Objective("identity", loss_reduction, loss)
        return summed_loss(codes, self._outputs(codes, seen), wanted, weights, prices, objective)

    def _input(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        """`[models or 1, batch, n_features]`, of the weights' dtype or that of autocast."""
        cast = self._autocast()
        if not isinstance(x, SparseBatch):
            return self._check_batch("x", x, cast)
        self._check_entries(x, cast)
        dense = x.to_dense()
        return dense if cast is None else dense.to(cast)

    def _embedded(self, x: torch.Tensor) -> torch.Tensor:
        """e, `[models or 1, batch, n_features or d]`."""
        return embedded(x, self._tensors())

    def _codes(self, seen: torch.Tensor) -> torch.Tensor:
        return codes_of(seen, self._tensors(), self)

    def _outputs(self, codes: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        return outputs_of(codes, seen, self._tensors(), self)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, P and Q by name, as far as there are some."""
        found = {name: getattr(self, name, None) for name in ROLES}
        return {name: held for name, held in found.items() if held is not None}

    def target_of(self, clean: torch.Tensor, target: str) -> torch.Tensor:
        """The target of this name, `[models or 1, batch, n_outputs]`, of inputs without noise."""
        self._check_target(target)
        return self._embedded(clean) if target == EMBEDDED else TARGETS[target](clean)

    def _check_target(self, name: str) -> None:
        if self.n_outputs != (self.n_embedding if name == EMBEDDED else self.n_features):
            self.network.trained_for(Objective(name)).check_target()  # raises

    def _target(self, target: Any, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """`[models or 1, batch, n_outputs]`."""
        if isinstance(target, torch.Tensor):
            wanted = (
                self._labels(target, x)
                if target.dtype == torch.int64
                else self._check_batch("target", target, self._autocast(), "n_outputs")
            )
            if wanted.shape[1] != x.shape[1]:
                raise ValueError(
                    f"target must have as many samples as x ({x.shape[1]}), not {describe(target)}"
                )
            return wanted
        name = check_choice("target", "identity" if target is None else target, (*TARGETS, EMBEDDED))
        self._check_target(name)
        return seen if name == EMBEDDED else TARGETS[name](x)

    def _labels(self, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """1 at the output of each label, else 0."""
        labels = target.unsqueeze(0) if target.ndim == 1 else target
        if labels.ndim != 2 or labels.shape[0] not in (1, self.n_models):
            raise ValueError(
                f"target must have the shape [models, batch] = [{self.n_models}, batch] or [batch] where it "
                f"holds labels (int64), not {describe(target)}"
            )
        if labels.device != x.device:
            raise ValueError(f"target must be on the device of the weights, {x.device}, not {labels.device}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = (labels < 0) | (labels >= self.n_outputs)
            if bool(outside.any()):
                raise ValueError(
                    f"target must hold labels from 0 to {self.n_outputs - 1}, not {int(labels[outside][0])}"
                )
        return one_hot(labels, self.n_outputs, x.dtype)

    def extra_repr(self) -> str:
        """Shape and options, for `repr(model)`."""
        told = self.config()
        del told["class"]
        if not told["n_embedding"]:
            del told["n_embedding"], told["embedding"], told["unembedding"]
        for name in ("tied", "residual", "centered", "hidden_bias_init"):
            if not told[name]:
                del told[name]
        return ", ".join(f"{name}={value!r}" for name, value in told.items())


_KEYS = frozenset((
    "n_models", "init", "n_features", "n_hidden", "n_outputs", "hidden_activation", "output_activation",
    "bias", "hidden_bias", "tied", "n_embedding", "embedding", "unembedding", "residual", "centered",
    "hidden_bias_init",
))  # fmt: skip
"""What every description tells."""


def _xavier(shape: tuple[int, ...], n_models: int) -> torch.Tensor:
    return torch.full((n_models,), (2 / sum(shape)) ** 0.5, dtype=torch.float64, device="cpu")
