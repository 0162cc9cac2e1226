"""What all stacked models share: construction, choosing models from a stack, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from toykern.broadcast import broadcast_importance, broadcast_seed
from toykern.devices import check_device
from toykern.errors import check_choice, check_flag, check_positive_int, describe, is_int
from toykern.nn.initialization import initial_std, initial_weights

HIDDEN_ACTIVATIONS = ("none", "relu")
OUTPUT_ACTIVATIONS = ("relu", "none")
TARGETS = ("identity", "abs")
LOSS_REDUCTIONS = ("mean", "sum")


class StackedModel(nn.Module):
    """Base of `TiedAutoencoder` and `Autoencoder`: `n_models` networks of one shape, stacked.

    Attributes:
        n_features, n_hidden, n_models: the shape.
        hidden_activation, output_activation: "none" or "relu". The derivative of ReLU at 0 is 0.
        seed: int64 CPU `[models]`, the seeds that the initial weights were drawn from.
        init: what was asked for (a name, a number or "per_model"); `init_std`: float64 CPU `[models]`, what
            came of it.
        bias: `[models, n_features]`, or None.

    `model[i]` is one model, `model[a:b]` several: views that share the stack's memory, so training a view
    trains the stack. A list or array of indices (or a boolean mask) gives a copy. `len(model)` is the
    number of models.
    """

    weight_names: ClassVar[tuple[str, ...]] = ()

    seed: torch.Tensor
    init_std: torch.Tensor
    bias: nn.Parameter | None

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
    ) -> None:
        super().__init__()
        self.n_features = check_positive_int("n_features", n_features)
        self.n_hidden = check_positive_int("n_hidden", n_hidden)
        self.n_models = check_positive_int("n_models", n_models)
        self.hidden_activation = check_choice("hidden_activation", hidden_activation, HIDDEN_ACTIVATIONS)
        self.output_activation = check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        has_bias = check_flag("bias", bias)
        device = check_device(device)
        self.init_std = initial_std(init, self.n_features, self.n_hidden, self.n_models)
        self.init: str | float = init if isinstance(init, str) else _described_std(self.init_std)
        self.seed = broadcast_seed("seed", seed, self.n_models)
        for name, value in self.initial_parameters().items():
            self.register_parameter(name, nn.Parameter(value.to(device)))
        zeros = torch.zeros(self.n_models, self.n_features, device=device)
        self.register_parameter("bias", nn.Parameter(zeros) if has_bias else None)

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each weight of one model, by the parameter's name, in the order of `weight_names`."""
        raise NotImplementedError

    def initial_parameters(self) -> dict[str, torch.Tensor]:
        """The initial weights, drawn again from `seed` and `init_std`: float32 CPU `[models, …]` by name.

        Parameter number k of `weight_names` draws from member k of the stream. Biases begin at 0.
        """
        return {
            name: initial_weights(shape, self.seed, self.init_std, member)
            for member, (name, shape) in enumerate(self.weight_shapes().items())
        }

    def config(self) -> dict[str, Any]:
        """JSON-able description: class, shape, activations, bias, init ("per_model" if models differ in it).

        `toykern.nn.model_from_config` is its inverse; the seeds and weights are not in it.
        """
        return {
            "class": type(self).__name__,
            "n_features": self.n_features,
            "n_hidden": self.n_hidden,
            "n_models": self.n_models,
            "hidden_activation": self.hidden_activation,
            "output_activation": self.output_activation,
            "bias": self.bias is not None,
            "init": self.init,
        }

    def loss(
        self,
        x: torch.Tensor,
        importance: Any = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
    ) -> torch.Tensor:
        """Loss of each model on a batch, `[models]`: Σ_i importance_i · (target_i − output_i)².

        Args:
            x: `[models, batch, n_features]`, or `[batch, n_features]` for all models alike; of the weights'
                dtype.
            importance: a number, `[n_features]`, `[models, 1]` or `[models, n_features]`, ≥ 0.
            target: "identity" (x), "abs" (|x|), or a tensor shaped as x may be (for noisy input, pass x
                without its noise).
            loss_reduction: "mean" over batch and features; "sum" over features and mean over the batch.

        Models are independent: `loss.sum().backward()` gives every model its own gradient. ValueError or
        TypeError for other shapes, dtypes or names.

        >>> from toykern.nn import TiedAutoencoder
        >>> TiedAutoencoder(n_features=5, n_hidden=2, n_models=3).loss(torch.ones(8, 5)).shape
        torch.Size([3])
        """
        check_choice("loss_reduction", loss_reduction, LOSS_REDUCTIONS)
        inputs = self._check_batch("x", x)
        if inputs.shape[1] == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        if isinstance(target, torch.Tensor):
            wanted = self._check_batch("target", target)
            if wanted.shape[1] != inputs.shape[1]:
                raise ValueError(
                    f"target must have as many samples as x ({inputs.shape[1]}), not {describe(target)}"
                )
        else:
            name = check_choice("target", "identity" if target is None else target, TARGETS)
            wanted = inputs.abs() if name == "abs" else inputs
        weights = broadcast_importance(
            importance,
            self.n_models,
            self.n_features,
            dtype=inputs.dtype,
            device=inputs.device,
            # looking at values on another device would wait for it
            check_values=inputs.device.type == "cpu" and not torch.compiler.is_compiling(),
        )
        per_feature = (wanted - self(inputs)).square().sum(dim=1)
        terms = inputs.shape[1] * (self.n_features if loss_reduction == "mean" else 1)
        return (per_feature * weights).sum(dim=1) / terms

    def extra_repr(self) -> str:
        """Shape and options, for `repr(model)`."""
        return (
            f"n_features={self.n_features}, n_hidden={self.n_hidden}, n_models={self.n_models}, "
            f"hidden_activation={self.hidden_activation!r}, output_activation={self.output_activation!r}, "
            f"bias={self.bias is not None}, init={self.init!r}"
        )

    def __len__(self) -> int:
        return self.n_models

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(self.n_models))

    def __getitem__(self, index: Any) -> Self:
        chosen = _model_index(index, self.n_models)
        part = type(self).__new__(type(self))
        nn.Module.__init__(part)
        part.n_features, part.n_hidden = self.n_features, self.n_hidden
        part.hidden_activation, part.output_activation = self.hidden_activation, self.output_activation
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

    def _check_batch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`x` as [models or 1, batch, n_features], of the weights' dtype and on their device."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {describe(x)}")
        weight = self.get_parameter(self.weight_names[0])
        batch = x.unsqueeze(0) if x.ndim == 2 else x
        if batch.ndim != 3 or batch.shape[0] not in (1, self.n_models) or batch.shape[2] != self.n_features:
            raise ValueError(
                f"{name} must have the shape [models, batch, n_features] = [{self.n_models}, batch, "
                f"{self.n_features}] or [batch, {self.n_features}], not {list(x.shape)}"
            )
        if x.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of the weights, {weight.dtype}, not {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"{name} must be on the device of the weights, {weight.device}, not {x.device}")
        return batch

    def _decode(self, hidden: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """g(hidden · decoder + b): [models, batch, n_hidden], decoder [models, n_hidden, n_features]."""
        if self.bias is None:
            output = torch.bmm(hidden, decoder)
        else:
            output = torch.baddbmm(self.bias.unsqueeze(1), hidden, decoder)
        return _ACTIVATIONS[self.output_activation](output)

    def _encode(self, x: torch.Tensor, encoder: torch.Tensor) -> torch.Tensor:
        """f(encoder · x): [models, batch, n_hidden] from encoder [models, n_hidden, n_features]."""
        return _ACTIVATIONS[self.hidden_activation](torch.matmul(x, encoder.mT))


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"none": _identity, "relu": torch.relu}


def _described_std(std: torch.Tensor) -> str | float:
    """The standard deviation where all models share it, otherwise "per_model"."""
    return float(std[0]) if bool((std == std[0]).all()) else "per_model"


def _model_index(index: Any, n_models: int) -> slice | torch.Tensor:
    """A slice (for an int or a slice) or int64 indices; IndexError outside the stack or if none is chosen."""
    if isinstance(index, torch.Tensor | np.ndarray) and index.ndim == 0 and not isinstance(index, bool):
        index = index.item()
    if is_int(index):
        if not -n_models <= index < n_models:
            raise IndexError(f"model {index} is out of range for a stack of {n_models}")
        first = int(index) % n_models
        return slice(first, first + 1)
    if isinstance(index, slice):
        start, stop, step = index.indices(n_models)
        if step < 0:
            raise ValueError(
                "a slice of models must have a positive step; for another order give a list of indices"
            )
        if stop <= start:
            raise IndexError(f"{index} chooses none of {n_models} models")
        return slice(start, stop, step)
    if not isinstance(index, list | range | torch.Tensor | np.ndarray):
        raise TypeError(
            f"models are chosen by an int, a slice, or a list or array of ints, not {describe(index)}"
        )
    chosen = index.detach().cpu() if isinstance(index, torch.Tensor) else torch.as_tensor(np.asarray(index))
    if chosen.ndim != 1:
        raise IndexError(f"an array of models must have one dimension, not {chosen.ndim}")
    if chosen.dtype == torch.bool:
        if len(chosen) != n_models:
            raise IndexError(f"a mask of models must have {n_models} entries, not {len(chosen)}")
        chosen = chosen.nonzero()[:, 0]
    if len(chosen) == 0:
        raise IndexError(f"the indices choose none of {n_models} models")
    if chosen.is_floating_point() or chosen.is_complex():
        raise TypeError(f"models are chosen by integers, not {describe(index)}")
    chosen = chosen.to(torch.int64)
    outside = (chosen < -n_models) | (chosen >= n_models)
    if bool(outside.any()):
        raise IndexError(f"model {int(chosen[outside][0])} is out of range for a stack of {n_models}")
    return chosen % n_models
