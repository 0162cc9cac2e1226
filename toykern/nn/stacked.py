"""What all stacked models share: construction, choosing models from a stack, the loss."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from toykern.arguments.broadcast import broadcast_importance, broadcast_per_model, broadcast_seed, from_data
from toykern.arguments.errors import (
    check_choice,
    check_dense_tensor,
    check_flag,
    check_number,
    check_size,
    describe,
    is_int,
)
from toykern.arguments.memory import check_free_memory
from toykern.data.sparse_batch import SparseBatch
from toykern.native.address import spans_its_storage
from toykern.network.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from toykern.network.losses import LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import (
    ALWAYS,
    OPTIONS,
    NetworkSpec,
    Options,
    check_negative_slope,
    check_top_k,
)
from toykern.nn.factory import factory_device, factory_dtype
from toykern.nn.initialization import initial_std, initial_weights
from toykern.nn.network_stack import NetworkStack
from toykern.ops.tied_autoencoder_autograd import autoencoder_loss, autoencoder_output


class StackedModel(NetworkStack):
    """Base of `TiedAutoencoder` and `Autoencoder`: `n_models` networks of one shape, stacked.

    Attributes:
        n_features, n_hidden, n_models: the shape.
        hidden_activation, output_activation: names in `toykern.network.activations`. The derivative of ReLU
            at 0 is 0.
        top_k: how many codes of a sample "topk" keeps; otherwise 0.
        negative_slope: of "leaky_relu", at 0 and below.
        centered: whether the encoder sees x − bias.
        seed: int64 CPU `[models]`, the seeds that the initial weights were drawn from.
        init: what was asked for (a name, a number or "per_model"); `init_std`: float64 CPU `[models]`, what
            came of it.
        bias: `[models, n_features]`, or None; hidden_bias: `[models, n_hidden]`, or None.

    `model[i]` is one model, `model[a:b]` several: views that share the stack's memory, so training a view
    trains the stack. A list or array of indices (or a boolean mask) gives a copy. `len(model)` is the
    number of models. What a view is saved as, by `state_dict`, `torch.save` or pickle, is a copy of its own
    models and never the stack; so save an optimiser of its parameters by the optimiser's `state_dict`.
    """

    weight_names: ClassVar[tuple[str, ...]] = ()

    init_std: torch.Tensor

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_models: int = 1,
        hidden_activation: str = "none",
        output_activation: str = "relu",
        bias: bool = True,
        init: Any = "xavier",
        seed: Any = None,
        device: torch.device | str | None = None,
        *,
        hidden_bias: bool = False,
        centered: bool = False,
        top_k: int | None = None,
        negative_slope: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_features = check_size("n_features", n_features)
        self.n_hidden = check_size("n_hidden", n_hidden)
        self.n_models = check_size("n_models", n_models)
        self.hidden_activation = check_choice("hidden_activation", hidden_activation, HIDDEN_ACTIVATIONS)
        self.output_activation = check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        self.top_k = check_top_k(self.hidden_activation, top_k, self.n_hidden)
        self.negative_slope = check_negative_slope(
            self.hidden_activation, self.output_activation, negative_slope
        )
        has_bias, has_hidden_bias = check_flag("bias", bias), check_flag("hidden_bias", hidden_bias)
        self.centered = check_flag("centered", centered)
        if self.centered and not has_bias:
            raise ValueError("centered takes the bias off the input, so it needs bias=True, not False")
        dtype, device = factory_dtype(dtype), factory_device(device)
        network = self._specification(has_bias, has_hidden_bias)
        self._check_memory(network, dtype, device)
        self.init_std = initial_std(init, self.n_features, self.n_hidden, self.n_models)
        self.init = init if isinstance(init, str) else _described_std(self.init_std)
        self.seed = broadcast_seed("seed", seed, self.n_models)
        for tensor in network.parameters:
            empty = torch.empty(self.n_models, *network.shape(tensor), dtype=dtype, device=device)
            self.register_parameter(tensor.name, nn.Parameter(empty))
        for name in ("bias", "hidden_bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)
        if device.type != "meta":
            self.reset_parameters()

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        *,
        seed: Any = None,
        init: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> Self:
        """The stack of this class that `config()` described; see `toykern.nn.model_from_config`."""
        arguments = {key: value for key, value in config.items() if key != "class"}
        known = {"n_models", "init", *ALWAYS}
        if set(arguments) - {*OPTIONS} != known:
            raise ValueError(
                f"the model's config must have the keys {sorted(known)}, not {sorted(arguments)}"
            )
        if init is not None:
            arguments["init"] = init
        elif arguments["init"] == "per_model":
            raise ValueError("init was given per model: pass it, [models], to model_from_config")
        return cls(**arguments, seed=seed, device=device, dtype=dtype)

    @classmethod
    def from_state(
        cls, config: dict[str, Any], state: dict[str, torch.Tensor], drawn_from: dict[str, torch.Tensor]
    ) -> Self:
        """The float32 CPU stack whose `config()`, `state_dict()` and `drawn_from()` these were."""
        seed = drawn_from["seed"]
        model = cls.from_config(config, seed=seed, init=0.0, dtype=torch.float32, device="cpu")
        model.init, model.init_std = config["init"], drawn_from["std"]
        model.load_state_dict(state)
        return model

    def begun_with(self, initial: dict[str, torch.Tensor]) -> Self:
        """A float32 CPU stack as this one, with these parameters by name (`trained_arrays()`); others are
        drawn as they were."""
        model = type(self).from_config(self.config(), seed=self.seed, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in initial:
                    parameter.copy_(initial[name])
        return model

    def dense(self) -> StackedModel:
        """The same networks with all connections: the stack itself."""
        return self

    def _check_memory(self, network: NetworkSpec, dtype: torch.dtype, device: torch.device) -> None:
        """MemoryError if there is no room for the parameters and for the weights as they are drawn."""
        sizes = [math.prod(network.shape(tensor)) for tensor in network.parameters]
        needed = 16 * self.n_models  # seeds and standard deviations
        if device.type == "cpu":
            needed += self.n_models * sum(sizes) * dtype.itemsize
        if device.type != "meta":
            weights = [math.prod(network.shape(tensor)) for tensor in network.weights]
            needed += 4 * (self.n_models * sum(weights) + max(weights))  # float32, and one model's words
        check_free_memory(
            f"n_models={self.n_models:,} of n_features={self.n_features:,} and n_hidden={self.n_hidden:,}",
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
            tensor.name: initial_weights(network.shape(tensor), self.seed, self.init_std, member)
            for member, tensor in enumerate(network.weights)
        }

    def drawn_from(self) -> dict[str, torch.Tensor]:
        """What the initial weights were drawn from: `seed`, and `std`, float64 CPU `[models]`."""
        return {"seed": self.seed, "std": self.init_std}

    def forward(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        """Outputs `[models, batch, n_features]`.

        x: `[models, batch, n_features]`, or `[batch, n_features]` for all models; or a `toykern.SparseBatch`
        of as many models or of one. ValueError for another shape or device, TypeError for a dtype that is not
        the weights'; RuntimeError where there are no kernels for the device. Under autocast, computed from x
        and weights rounded to its dtype, with float32 sums.
        """
        x, entries, cast = self._input(x)
        encoder, decoder, bias, hidden_bias = self._weights(cast)
        return autoencoder_output(x, encoder, decoder, bias, hidden_bias, self._options(), **entries)

    def loss(
        self,
        x: torch.Tensor | SparseBatch,
        importance: Any = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
        l1: Any = 0.0,
        loss: str = Objective.loss,
    ) -> torch.Tensor:
        """Loss of each model on a batch, `[models]`: Σ_i importance_i · (target_i − output_i)² + l1 · Σ_k
        |h_k|.

        Args:
            x: as `forward` takes it.
            importance: a number, `[n_features]`, `[models, 1]` or `[models, n_features]`, ≥ 0.
            target: "identity" (x), "abs" (|x|), or a tensor shaped as x may be (for noisy input, pass x
                without its noise).
            loss_reduction: of the squared errors, "mean" over batch and features; "sum" over features and
                mean over the batch.
            l1: a number or `[models]`, ≥ 0: the weight of the hidden code's L1 norm, a mean over the batch.
            loss: of an output's error; "squared_error" is the only one so far.

        `importance` and `l1` may be tensors that require a gradient, at the cost of another forward pass
        each. Else the output is never stored, and gradients are computed along with the loss. Models are
        independent: `loss.sum().backward()` gives every model its own gradient. float32 for bfloat16 weights.
        ValueError or TypeError for other shapes, dtypes or names; RuntimeError for a second derivative.

        >>> from toykern.nn import TiedAutoencoder
        >>> TiedAutoencoder(n_features=5, n_hidden=2, n_models=3).loss(torch.ones(8, 5)).shape
        torch.Size([3])
        """
        check_choice("loss_reduction", loss_reduction, REDUCTIONS)
        check_choice("loss", loss, LOSSES)
        values, entries, cast = self._input(x)
        samples = entries["batch"] if entries else values.shape[1]
        if samples == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        if isinstance(target, torch.Tensor):
            values_wanted = self._check_batch("target", target, cast)
            wanted: torch.Tensor | str = values_wanted
            if values_wanted.shape[1] != samples:
                raise ValueError(f"target must have as many samples as x ({samples}), not {describe(target)}")
        else:
            wanted = check_choice("target", "identity" if target is None else target, TARGETS)
        encoder, decoder, bias, hidden_bias = self._weights(cast)
        weights = broadcast_importance(
            importance,
            self.n_models,
            self.n_features,
            dtype=torch.float64 if encoder.dtype == torch.float64 else torch.float32,
            device=values.device,
            # looking at values on another device would wait for it
            check_values=values.device.type == "cpu" and not torch.compiler.is_compiling(),
            detach=False,
        )
        return autoencoder_loss(
            values,
            encoder,
            decoder,
            bias,
            hidden_bias,
            self._options(),
            importance=weights,
            l1=self._l1(l1, weights),
            target=wanted,
            reduction=loss_reduction,
            loss=loss,
            **entries,
        )

    def _options(self) -> Options:
        activations = self.hidden_activation, self.output_activation
        chosen = (*activations, self.top_k, self.centered, self.negative_slope)
        return Options(*chosen) if torch.compiler.is_compiling() else _options_of(*chosen)

    def _weights(
        self, cast: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Encoder, decoder (None when tied), bias and hidden bias, in autocast's dtype where that is on."""
        found = [getattr(self, name) for name in self.weight_names]
        decoder = found[1] if len(found) > 1 else None
        if cast is None:
            return found[0], decoder, self.bias, self.hidden_bias
        others = [None if t is None else t.to(cast) for t in (decoder, self.bias, self.hidden_bias)]
        return found[0].to(cast), others[0], others[1], others[2]

    def _l1(self, l1: Any, like: torch.Tensor) -> torch.Tensor | None:
        if isinstance(l1, int | float) and not isinstance(l1, bool):
            if not 0 <= l1 <= torch.finfo(torch.float64).max:  # a comparison is what torch.compile can follow
                check_number("l1", l1, minimum=0.0)
            return None if l1 == 0 else torch.full((1,), float(l1), dtype=like.dtype, device=like.device)
        unseen = like.device.type != "cpu" or torch.compiler.is_compiling()
        if isinstance(l1, torch.Tensor) and l1.device == like.device and unseen:
            # looking at its values would wait for the device, or break the graph
            if l1.shape not in ((), (1,), (self.n_models,)):
                raise ValueError(f"l1 must be a number or [models] = [{self.n_models}], not {describe(l1)}")
            return l1.reshape(-1).to(like.dtype)
        weights = broadcast_per_model("l1", l1, self.n_models, detach=False)
        if bool((weights < 0).any()):
            raise ValueError(f"l1 must be at least 0, not {describe(l1)}")
        return weights.to(like)

    def _input(
        self, x: torch.Tensor | SparseBatch
    ) -> tuple[torch.Tensor, dict[str, Any], torch.dtype | None]:
        """(x or its entries' values, what else describes entries, the dtype that autocast asks for)."""
        weight = getattr(self, self.weight_names[0])
        kind = weight.device.type
        cast = None
        if kind in ("cpu", "cuda") and weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            cast = torch.get_autocast_dtype(kind)
        if not isinstance(x, SparseBatch):
            return self._check_batch("x", x, cast), {}, cast
        if x.n_models not in (1, self.n_models) or x.n_features != self.n_features:
            raise ValueError(
                f"x must be a SparseBatch of {self.n_models} models (or 1) and {self.n_features} features, "
                f"not {x!r}"
            )
        values = self._check_like("x", x.value, cast)
        return values, {"row_start": x.row_start, "feature": x.feature, "batch": x.batch_size}, cast

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
        part.n_features, part.n_hidden = self.n_features, self.n_hidden
        part.hidden_activation, part.output_activation = self.hidden_activation, self.output_activation
        part.top_k, part.centered, part.negative_slope = self.top_k, self.centered, self.negative_slope
        part.seed, part.init_std = self.seed[chosen].clone(), self.init_std[chosen].clone()
        part.n_models = len(part.seed)
        # the stacked initialisations depend on the number of models of the whole stack
        part.init = self.init if self.init == "xavier" else _described_std(part.init_std)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                value = parameter.detach()[chosen]
                parameter = nn.Parameter(value, requires_grad=parameter.requires_grad)
            part.register_parameter(name, parameter)
        return part.train(self.training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            for name in self._parameters:
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
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Not by way of __getstate__: an optimiser copied along has to find the same parameters.
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _check_batch(self, name: str, x: torch.Tensor, cast: torch.dtype | None = None) -> torch.Tensor:
        """`x` as [models or 1, batch, n_features], of the weights' dtype (or `cast`) and on their device."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {describe(x)}")
        batch = x.unsqueeze(0) if x.ndim == 2 else x
        if batch.ndim != 3 or batch.shape[0] not in (1, self.n_models) or batch.shape[2] != self.n_features:
            raise ValueError(
                f"{name} must have the shape [models, batch, n_features] = [{self.n_models}, batch, "
                f"{self.n_features}] or [batch, {self.n_features}], not {list(x.shape)}"
            )
        return self._check_like(name, batch, cast)

    def _check_like(self, name: str, x: torch.Tensor, cast: torch.dtype | None) -> torch.Tensor:
        weight = getattr(self, self.weight_names[0])
        if x.device != weight.device:
            raise ValueError(f"{name} must be on the device of the weights, {weight.device}, not {x.device}")
        if cast is not None and x.is_floating_point():
            return x.to(cast)
        if x.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of the weights, {weight.dtype}, not {x.dtype}")
        return x


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it is a part of a larger storage, which would be saved with it.

    >>> compact(torch.zeros(100)[:3]).untyped_storage().nbytes()
    12
    """
    return tensor if spans_its_storage(tensor) else tensor.clone(memory_format=torch.contiguous_format)


@functools.cache
def _options_of(
    hidden_activation: str, output_activation: str, top_k: int, centered: bool, negative_slope: float
) -> Options:
    """One object for each choice: making it anew would cost a small stack a twentieth of its time."""
    return Options(hidden_activation, output_activation, top_k, centered, negative_slope)


def _described_std(std: torch.Tensor) -> str | float:
    """The standard deviation where all models share it, otherwise "per_model"."""
    return float(std[0]) if bool((std == std[0]).all()) else "per_model"


def model_index(index: Any, n_models: int) -> slice | torch.Tensor:
    """A slice (for an int or a slice) or int64 indices; IndexError outside the stack or if none is chosen."""
    if isinstance(index, torch.Tensor | np.ndarray) and index.ndim == 0:
        index = index.item()
    if is_int(index):
        if not -n_models <= index < n_models:
            raise IndexError(f"index must be from {-n_models} to {n_models - 1}, not {describe(index)}")
        first = int(index) % n_models
        return slice(first, first + 1)
    if isinstance(index, slice):
        start, stop, step = index.indices(n_models)
        if step < 0:
            raise ValueError(
                "index must be a slice with a positive step; for another order give a list of indices"
            )
        if stop <= start:
            raise IndexError(f"index {index} chooses none of {n_models} models")
        return slice(start, stop, step)
    if not isinstance(index, list | range | torch.Tensor | np.ndarray):
        raise TypeError(
            f"index must be an int, a slice, or a list or array of ints or bools, not {describe(index)}"
        )
    if isinstance(index, torch.Tensor):
        check_dense_tensor("index", index)
    try:
        chosen = from_data(index).detach().cpu()
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"index must be an int, a slice, or a list or array of ints or bools, not {describe(index)}"
        ) from None
    if chosen.ndim != 1:
        raise IndexError(f"index must have one dimension where it is an array, not be {describe(index)}")
    if chosen.dtype == torch.bool:
        if len(chosen) != n_models:
            raise IndexError(f"index must have {n_models} entries where it is a mask, not {len(chosen)}")
        chosen = chosen.nonzero()[:, 0]
    if len(chosen) == 0:
        raise IndexError(f"index {describe(index)} chooses none of {n_models} models")
    if chosen.is_floating_point() or chosen.is_complex():
        raise TypeError(f"index must hold integers or bools, not {describe(index)}")
    chosen = chosen.to(torch.int64)
    outside = (chosen < -n_models) | (chosen >= n_models)
    if bool(outside.any()):
        raise IndexError(f"index must be from {-n_models} to {n_models - 1}, not {int(chosen[outside][0])}")
    return chosen % n_models
