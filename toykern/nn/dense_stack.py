"""What all dense stacks share: initial weights, choosing models from a stack, copies, checks of inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import nn

from toykern.arguments.broadcast import Values, broadcast_importance, broadcast_per_model, broadcast_seed
from toykern.arguments.errors import check_number, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.sparse_batch import SparseBatch
from toykern.native.address import spans_its_storage
from toykern.network.losses import TARGETS, Objective
from toykern.network.specification import NetworkSpec
from toykern.nn.indexing import model_index
from toykern.nn.initialization import initial_std, initial_weights
from toykern.nn.network_stack import NetworkStack
from toykern.ops.transforms import transforming


class DenseStack(NetworkStack):
    """Base of the stacks whose networks have all their connections: `n_models` of one shape.

    Attributes:
        seed: int64 CPU `[models]`, the seeds that the initial weights were drawn from.
        init: what was asked for (a name, a number or "per_model"); `init_std`: float64 CPU `[models]`, what
            came of it.

    `model[i]` is one model, `model[a:b]` several: views that share the stack's memory, so training a view
    trains the stack. A list or array of indices (or a boolean mask) gives a copy. `len(model)` is the
    number of models. What a view is saved as, by `state_dict`, `torch.save` or pickle, is a copy of its own
    models and never the stack; so save an optimiser of its parameters by the optimiser's `state_dict`.
    """

    weight_names: ClassVar[tuple[str, ...]] = ()
    _of_all_models: ClassVar[tuple[str, ...]] = (
        "n_features", "n_hidden", "hidden_activation", "output_activation", "top_k", "centered",
        "negative_slope",
    )  # fmt: skip

    init_std: torch.Tensor

    def _begin(
        self, network: NetworkSpec, init: Any, seed: Values | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Parameters of the network's shapes, and what they are drawn from; nothing is drawn."""
        self._check_memory(network, dtype, device)
        seen = network.n_embedding or network.n_features
        self.init_std = initial_std(init, seen, self.n_hidden, self.n_models)
        self.init = init if isinstance(init, str) else _described_std(self.init_std)
        self.seed = broadcast_seed("seed", seed, self.n_models)
        for tensor in network.parameters:
            empty = torch.empty(self.n_models, *network.shape(tensor), dtype=dtype, device=device)
            self.register_parameter(tensor.name, nn.Parameter(empty))
        for name in ("bias", "hidden_bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        *,
        seed: Values | None = None,
        init: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> Self:
        """The stack of this class that `config()` described; see `toykern.nn.model_from_config`."""
        raise NotImplementedError

    @classmethod
    def from_state(
        cls, config: dict[str, Any], state: dict[str, torch.Tensor], drawn_from: dict[str, torch.Tensor]
    ) -> Self:
        """The float32 CPU stack whose `config()`, `state_dict()` and `drawn_from()` these were."""
        model = cls._unfilled(config, drawn_from["seed"])
        model.init, model.init_std = config["init"], drawn_from["std"]
        model.load_state_dict(state)
        return model

    @classmethod
    def _unfilled(cls, config: dict[str, Any], seed: torch.Tensor) -> Self:
        """A float32 CPU stack that `config()` described, for which nothing is drawn."""
        return cls.from_config(config, seed=seed, init=0.0, dtype=torch.float32, device="cpu")

    def begun_with(self, initial: dict[str, torch.Tensor]) -> Self:
        """A float32 CPU stack as this one, with these parameters by name (`trained_arrays()`); others are
        drawn as they were."""
        model = self._unfilled(self.config(), self.seed)
        model.init, model.init_std = self.init, self.init_std.clone()
        parameters = dict(model.named_parameters())
        if parameters.keys() - initial.keys():
            model.reset_parameters()
        with torch.no_grad():
            for name in parameters.keys() & initial.keys():
                parameters[name].copy_(initial[name])
            for name, held in model.fixed_tensors().items():
                held.copy_(self.fixed_tensors()[name])
        return model

    def loss(
        self,
        x: torch.Tensor | SparseBatch,
        importance: Values = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
        l1: Values = 0.0,
        loss: str = Objective.loss,
    ) -> torch.Tensor:
        """Loss of each model on a batch, `[models]`."""
        raise NotImplementedError

    def target_of(self, clean: torch.Tensor, target: str) -> torch.Tensor:
        """The target of this name, `[models or 1, batch, n_outputs]`, of inputs without noise."""
        return TARGETS[target](clean)

    def dense(self) -> Self:
        """The same networks with all connections: the stack itself."""
        return self

    def _check_memory(self, network: NetworkSpec, dtype: torch.dtype, device: torch.device) -> None:
        """MemoryError if there is no room for the parameters and for the weights as they are drawn."""
        sizes = [math.prod(network.shape(tensor)) for tensor in (*network.parameters, *network.fixed)]
        needed = 16 * self.n_models  # seeds and standard deviations
        if device.type == "cpu":
            needed += self.n_models * sum(sizes) * dtype.itemsize
        if device.type != "meta":
            weights = [math.prod(network.shape(tensor)) for tensor in network.weights]
            needed += 4 * (self.n_models * sum(weights) + max(weights))  # float32, and one model's words
        check_free_memory(
            f"n_models={self.n_models:,} of n_features={self.n_features:,} and n_hidden={self.n_hidden:,}"
            + (f" and n_outputs={self.n_outputs:,}" if self.n_outputs != self.n_features else ""),
            needed,
            "take fewer or smaller models",
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The parameters as they began: weights drawn from `seed` and `init_std`, biases 0.

        A model made on the meta device has none until `model.to_empty(device=…)` and this.

        >>> from toykern.nn import TiedAutoencoder
        >>> model = TiedAutoencoder(5, 2, device="meta").to_empty(device="cpu")
        >>> model.reset_parameters()
        >>> torch.equal(model.weight, TiedAutoencoder(5, 2).weight)
        True
        """
        initial = self.initial_parameters()
        for name, parameter in self._parameters.items():
            if parameter is not None:
                parameter.copy_(initial[name]) if name in initial else parameter.zero_()

    def initial_parameters(self) -> dict[str, torch.Tensor]:
        """The initial weights, drawn again from `seed` and `init_std`: float32 CPU `[models, …]` by name.

        Parameter number k of `weight_names` draws from member k of the stream. Biases begin at 0.
        """
        network = self.network
        return {
            tensor.name: initial_weights(network.shape(tensor), self.seed, std, member)
            for member, (tensor, std) in enumerate(zip(network.weights, self._stds(), strict=True))
        }

    def _stds(self) -> list[torch.Tensor]:
        """The standard deviation of each weight, `[models]`: that of all of them."""
        return [self.init_std] * len(self.network.weights)

    def drawn_from(self) -> dict[str, torch.Tensor]:
        """What the initial weights were drawn from: `seed`, and `std`, float64 CPU `[models]`."""
        return {"seed": self.seed, "std": self.init_std}

    @property
    def _encoder(self) -> torch.Tensor:
        """The matrix that all dtypes and devices follow."""
        found: torch.Tensor = self._parameters["weight" if "weight" in self._parameters else "encoder"]  # type: ignore[assignment]
        return found

    def _importance(self, importance: Values, n_outputs: int, device: torch.device) -> torch.Tensor:
        """`[1 or models, n_outputs]`, float64 of float64 models and else float32, with its gradient."""
        return broadcast_importance(
            importance,
            self.n_models,
            n_outputs,
            dtype=torch.float64 if self._encoder.dtype == torch.float64 else torch.float32,
            device=device,
            # looking at values on another device would wait for it
            check_values=device.type == "cpu" and not torch.compiler.is_compiling() and not transforming(),
            detach=False,
            width=self.output_width,
        )

    def _l1(self, l1: Values, like: torch.Tensor) -> torch.Tensor | None:
        if isinstance(l1, int | float) and not isinstance(l1, bool):
            if not 0 <= l1 <= torch.finfo(torch.float64).max:  # a comparison is what torch.compile can follow
                check_number("l1", l1, minimum=0.0)
            return None if l1 == 0 else torch.full((1,), float(l1), dtype=like.dtype, device=like.device)
        unseen = like.device.type != "cpu" or torch.compiler.is_compiling() or transforming()
        if isinstance(l1, torch.Tensor) and l1.device == like.device and unseen:
            # looking at its values would wait for the device, or break the graph
            if l1.shape not in ((), (1,), (self.n_models,)):
                raise ValueError(f"l1 must be a number or [models] = [{self.n_models}], not {describe(l1)}")
            return l1.reshape(-1).to(like.dtype)
        weights = broadcast_per_model("l1", l1, self.n_models, detach=False)
        if bool((weights < 0).any()):
            raise ValueError(f"l1 must be at least 0, not {describe(l1)}")
        return weights.to(like)

    def _autocast(self) -> torch.dtype | None:
        """The dtype that autocast asks for, where it is on and has a say."""
        weight = self._encoder
        kind = weight.device.type
        if kind in ("cpu", "cuda") and weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return None

    def _check_entries(self, x: SparseBatch, cast: torch.dtype | None) -> torch.Tensor:
        """The values of entries that fit, of the weights' dtype (or `cast`) and on their device."""
        if x.n_models not in (1, self.n_models) or x.n_features != self.n_features:
            raise ValueError(
                f"x must be a SparseBatch of {self.n_models} models (or 1) and {self.n_features} features, "
                f"not {x!r}"
            )
        return self._check_like("x", x.value, cast)

    def _check_batch(
        self, name: str, x: torch.Tensor, cast: torch.dtype | None = None, width: str = "n_features"
    ) -> torch.Tensor:
        """`x` as [models or 1, batch, width], of the weights' dtype (or `cast`) and on their device; `width`
        is the name of an attribute."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {describe(x)}")
        length = getattr(self, width)
        batch = x.unsqueeze(0) if x.ndim == 2 else x
        if batch.ndim != 3 or batch.shape[0] not in (1, self.n_models) or batch.shape[2] != length:
            raise ValueError(
                f"{name} must have the shape [models, batch, {width}] = [{self.n_models}, batch, "
                f"{length}] or [batch, {length}], not {list(x.shape)}"
            )
        return self._check_like(name, batch, cast)

    def _check_like(self, name: str, x: torch.Tensor, cast: torch.dtype | None) -> torch.Tensor:
        weight = self._encoder
        if x.device != weight.device:
            raise ValueError(f"{name} must be on the device of the weights, {weight.device}, not {x.device}")
        if cast is not None and x.is_floating_point():
            return x.to(cast)
        if x.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of the weights, {weight.dtype}, not {x.dtype}")
        return x

    def extra_repr(self) -> str:
        """Shape and options, for `repr(model)`."""
        return (
            f"n_features={self.n_features}, n_hidden={self.n_hidden}, n_models={self.n_models}, "
            f"hidden_activation={self.hidden_activation!r}, output_activation={self.output_activation!r}, "
            f"bias={self.bias is not None}, init={self.init!r}"
            + "".join(f", {name}={value!r}" for name, value in self.network.options().items())
        )

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(self.n_models))

    def __getitem__(self, index: Any) -> Self:
        chosen = model_index(index, self.n_models)
        part = type(self).__new__(type(self))
        nn.Module.__init__(part)
        for name in self._of_all_models:
            setattr(part, name, getattr(self, name))
        part.seed, part.init_std = self.seed[chosen].clone(), self.init_std[chosen].clone()
        part.n_models = len(part.seed)
        # the stacked initialisations depend on the number of models of the whole stack
        part.init = self.init if self.init == "xavier" else _described_std(part.init_std)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                value = parameter.detach()[chosen]
                parameter = nn.Parameter(value, requires_grad=parameter.requires_grad)
            part.register_parameter(name, parameter)
        for name, held in self._buffers.items():
            own = held is not None and not self.shares(name)
            part.register_buffer(name, held[chosen] if own else held)  # type: ignore[index]
        return part.train(self.training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            for name in (*self._parameters, *self._buffers):
                if prefix + name in destination:
                    destination[prefix + name] = compact(destination[prefix + name])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_parameters"] = {
            name: parameter
            if parameter is None or spans_its_storage(parameter)
            else nn.Parameter(compact(parameter.detach()), parameter.requires_grad)
            for name, parameter in self._parameters.items()
        }
        state["_buffers"] = {
            name: None if held is None else compact(held) for name, held in self._buffers.items()
        }
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Not by way of __getstate__: an optimiser copied along has to find the same parameters.
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it is a part of a larger storage, which would be saved with it.

    >>> compact(torch.zeros(100)[:3]).untyped_storage().nbytes()
    12
    """
    return tensor if spans_its_storage(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _described_std(std: torch.Tensor) -> str | float:
    """The standard deviation where all models share it, otherwise "per_model"."""
    return float(std[0]) if bool((std == std[0]).all()) else "per_model"
