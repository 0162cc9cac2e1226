"""The stacks that the fused layer computes: construction, output and loss."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_choice, check_flag, check_size, describe
from toykern.data.sparse_batch import SparseBatch
from toykern.network.activations import LAYER_HIDDEN_ACTIVATIONS, LAYER_OUTPUT_ACTIVATIONS
from toykern.network.losses import LAYER_LOSSES, REDUCTIONS, TARGETS, Objective
from toykern.network.specification import (
    ALWAYS,
    LAYER_OPTIONS,
    Options,
    check_negative_slope,
    check_top_k,
)
from toykern.nn.dense_stack import DenseStack
from toykern.nn.factory import factory_device, factory_dtype
from toykern.nn.unfused import unfused_loss, unfused_output
from toykern.ops.gate import check_entries
from toykern.ops.tied_autoencoder_autograd import autoencoder_loss, autoencoder_output
from toykern.ops.tied_autoencoder_plain import plain_loss, plain_output


class StackedModel(DenseStack):
    """Base of `TiedAutoencoder` and `Autoencoder`: `n_models` networks of one shape, stacked, with the fused
    layer's kernels.

    Attributes:
        n_features, n_hidden, n_models: the shape.
        hidden_activation, output_activation: names in `toykern.network.activations`. The derivative of ReLU
            at 0 is 0.
        top_k: how many codes of a sample "topk" keeps; otherwise 0.
        negative_slope: of "leaky_relu", at 0 and below.
        centered: whether the encoder sees x − bias.
        seed, init, init_std: as for all dense stacks (`toykern.nn.dense_stack.DenseStack`).
        bias: `[models, n_features]`, or None; hidden_bias: `[models, n_hidden]`, or None.

    `model[i]` is one model, `model[a:b]` several: views that share the stack's memory, so training a view
    trains the stack. A list or array of indices (or a boolean mask) gives a copy. `len(model)` is the
    number of models. What a view is saved as, by `state_dict`, `torch.save` or pickle, is a copy of its own
    models and never the stack; so save an optimiser of its parameters by the optimiser's `state_dict`.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_models: int = 1,
        hidden_activation: str = "none",
        output_activation: str = "relu",
        bias: bool = True,
        init: Any = "xavier",
        seed: Values | None = None,
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
        self.hidden_activation = check_choice(
            "hidden_activation", hidden_activation, LAYER_HIDDEN_ACTIVATIONS
        )
        self.output_activation = check_choice(
            "output_activation", output_activation, LAYER_OUTPUT_ACTIVATIONS
        )
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
        self._begin(network, init, seed, dtype, device)
        if device.type != "meta":
            self.reset_parameters()

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
        arguments = {key: value for key, value in config.items() if key != "class"}
        known = {"n_models", "init", *ALWAYS}
        if set(arguments) - {*LAYER_OPTIONS} != known:
            raise ValueError(
                f"the model's config must have the keys {sorted(known)}, not {sorted(arguments)}"
            )
        if init is not None:
            arguments["init"] = init
        elif arguments["init"] == "per_model":
            raise ValueError("init was given per model: pass it, [models], to model_from_config")
        return cls(**arguments, seed=seed, device=device, dtype=dtype)

    if TYPE_CHECKING:  # torch.nn.Module says nothing of what a call gives

        def __call__(self, x: torch.Tensor | SparseBatch, *, fused: bool = True) -> torch.Tensor:
            """As `forward`, with the hooks of the module."""

    def forward(self, x: torch.Tensor | SparseBatch, *, fused: bool = True) -> torch.Tensor:
        """Outputs `[models, batch, n_features]`.

        x: `[models, batch, n_features]`, or `[batch, n_features]` for all models; or a `toykern.SparseBatch`
        of as many models or of one. ValueError for another shape or device, TypeError for a dtype that is not
        the weights'; RuntimeError where there are no kernels for the device. Under autocast, computed from x
        and weights rounded to its dtype, with float32 sums.

        fused=False computes the same by torch operations, for derivatives in forward mode and of second order
        (docs/fused_layer.md): slower, and with the memory of ordinary layers.
        """
        if fused is True:
            found = self._plain(plain_output, x)
            if found is not None:
                return found
        elif not check_flag("fused", fused):
            values, tensors, _ = self._without_kernels(x)
            return unfused_output(values, tensors, self)
        x, entries, cast = self._input(x)
        encoder, decoder, bias, hidden_bias = self._weights(cast)
        return autoencoder_output(x, encoder, decoder, bias, hidden_bias, self._options(), **entries)

    def loss(
        self,
        x: torch.Tensor | SparseBatch,
        importance: Values = 1.0,
        target: str | torch.Tensor | None = "identity",
        loss_reduction: str = "mean",
        l1: Values = 0.0,
        loss: str = Objective.loss,
        *,
        fused: bool = True,
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
            fused: False computes the same by torch operations, as in `forward`.

        `importance` and `l1` may be tensors that require a gradient, at the cost of another forward pass
        each. Else the output is never stored, and gradients are computed along with the loss. Models are
        independent: `loss.sum().backward()` gives every model its own gradient. float32 for bfloat16 weights.
        ValueError or TypeError for other shapes, dtypes or names; RuntimeError for a second derivative.

        >>> from toykern.nn import TiedAutoencoder
        >>> TiedAutoencoder(n_features=5, n_hidden=2, n_models=3).loss(torch.ones(8, 5)).shape
        torch.Size([3])
        """
        if fused is True:
            objective = ("identity" if target is None else target, loss_reduction, loss)
            found = self._plain(plain_loss, x, objective, importance, l1)
            if found is not None:
                return found
        check_choice("loss_reduction", loss_reduction, REDUCTIONS)
        check_choice("loss", loss, LAYER_LOSSES)
        if not check_flag("fused", fused):
            return self._unfused_loss(x, importance, target, Objective("identity", loss_reduction, loss), l1)
        values, entries, cast = self._input(x)
        wanted = self._target(target, entries["batch"] if entries else values.shape[1], cast)
        encoder, decoder, bias, hidden_bias = self._weights(cast)
        weights = self._importance(importance, self.n_features, values.device)
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

    def _plain(self, way: Any, x: Any, *others: Any) -> torch.Tensor | None:
        """What `way` makes of a plain call (`toykern.ops.tied_autoencoder_plain`); None: do it as ever.

        Parameters are taken from where a module registers them: one that is made anew at every access, as by
        a parametrisation, is not there, and the call is not plain.
        """
        if torch.compiler.is_compiling():
            return None
        row_start = feature = None
        held = self._parameters
        try:
            if type(x) is SparseBatch:
                if x.n_features != self.n_features or x.n_models not in (1, self.n_models):
                    return None
                batch = x.batch_size
                if _is_whole(x):
                    x = x.value.view(x.shape)
                else:
                    row_start, feature, x = x.row_start, x.feature, x.value
            elif isinstance(x, torch.Tensor):
                batch = x.shape[-2]
            else:
                return None
            encoder = held[self.weight_names[0]]
            decoder = held[self.weight_names[1]] if len(self.weight_names) > 1 else None
            tensors = encoder, decoder, held["bias"], held["hidden_bias"]
        except (KeyError, AttributeError, IndexError, TypeError):
            return None
        options = (
            self.hidden_activation, self.output_activation, self.top_k, self.centered, self.negative_slope,
        )  # fmt: skip
        sizes = self.n_models, self.n_features
        found: torch.Tensor | None = way(tensors, x, row_start, feature, batch, sizes, options, *others)
        return found

    def _target(
        self, target: str | torch.Tensor | None, samples: int, cast: torch.dtype | None
    ) -> torch.Tensor | str:
        """What the loss compares with: a name, or a tensor that fits x."""
        if samples == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        if not isinstance(target, torch.Tensor):
            return check_choice("target", "identity" if target is None else target, TARGETS)
        wanted = self._check_batch("target", target, cast)
        if wanted.shape[1] != samples:
            raise ValueError(f"target must have as many samples as x ({samples}), not {describe(target)}")
        return wanted

    def _unfused_loss(
        self,
        x: torch.Tensor | SparseBatch,
        importance: Any,
        target: str | torch.Tensor | None,
        objective: Objective,
        l1: Any,
    ) -> torch.Tensor:
        values, tensors, cast = self._without_kernels(x)
        wanted = self._target(target, values.shape[1], cast)
        if not isinstance(wanted, torch.Tensor):
            wanted = TARGETS[wanted](values)
        weights = self._importance(importance, self.n_features, values.device)
        return unfused_loss(values, tensors, self, weights, self._l1(l1, weights), wanted, objective)

    def _without_kernels(
        self, x: torch.Tensor | SparseBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.dtype | None]:
        """(x dense, the network's tensors by name, the dtype that autocast asks for)."""
        values, _, cast = self._input(x)
        if isinstance(x, SparseBatch):
            values = (x if cast is None else x.to(cast)).to_dense()
        tensors = {
            name: tensor if cast is None else tensor.to(cast)
            for name in (*self.weight_names, "bias", "hidden_bias")
            if (tensor := getattr(self, name)) is not None
        }
        return values, tensors, cast

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

    def _input(
        self, x: torch.Tensor | SparseBatch
    ) -> tuple[torch.Tensor, dict[str, Any], torch.dtype | None]:
        """(x or its entries' values, what else describes entries, the dtype that autocast asks for)."""
        cast = self._autocast()
        if not isinstance(x, SparseBatch):
            return self._check_batch("x", x, cast), {}, cast
        values = self._check_entries(x, cast)
        if _is_whole(x):  # numbers in a row are cheaper than entries
            return values.view(x.shape), {}, cast
        return values, {"row_start": x.row_start, "feature": x.feature, "batch": x.batch_size}, cast


def _is_whole(batch: SparseBatch) -> bool:
    """Whether the values are the dense batch, on a CPU: nothing is left out, and entries are still in order.
    Where they were changed since, the operators say or show it."""
    if not batch.leaves_nothing_out or batch.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    rows = batch.n_models * batch.batch_size
    try:
        check_entries(batch.row_start, batch.feature, batch.value, rows, batch.n_features)
    except (ValueError, TypeError):
        return False
    return True


@functools.cache
def _options_of(
    hidden_activation: str, output_activation: str, top_k: int, centered: bool, negative_slope: float
) -> Options:
    """One object for each choice: making it anew would cost a small stack a twentieth of its time."""
    return Options(hidden_activation, output_activation, top_k, centered, negative_slope)
