"""Options and arguments of the autoencoder ops, the same for the kernels of every device.

`Call` takes the arguments through the gate and keeps them alive, allocates results, and fills the kernels'
parameters. tied_autoencoder.py and tied_autoencoder_cuda.py add what their kernels want beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from toykern import _native
from toykern.native.address import address
from toykern.native.numbers import number
from toykern.network.activations import ACTIVATIONS, option_of
from toykern.network.losses import GIVEN, LOSSES, Objective
from toykern.network.specification import Options
from toykern.ops.gate import check_like, check_shape, shared_over_models

TASKS = {"forward": 0, "loss": 1, "backward": 2}

Optional = torch.Tensor | None
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


PLAIN = Options()
"""h = E x, y = ReLU(D h + b): the network of Toy Models of Superposition."""


def schema_of(described: type) -> str:
    """The fields of a description as arguments of an operator's schema, in their order: what the network is
    told in is told once, there.

    >>> schema_of(Objective)
    'str target, str loss_reduction, str loss'
    """
    return ", ".join(f"{field.type} {field.name}" for field in dataclasses.fields(described))


def options_of(arguments: Sequence[Any]) -> tuple[Options, Sequence[Any]]:
    """The options that a row of an operator's arguments begins with, and what comes after them."""
    many = len(dataclasses.fields(Options))
    return Options(*arguments[:many]), arguments[many:]


class Call:
    """One call of an op: arguments through the gate and kept alive, outputs allocated.

    Args:
        task: "forward", "loss" or "backward".
        work: dtype that weights, inputs and gradients are handed over in.
        floats: dtype of importance and l1.
        The others are the op's.
    """

    zeroed_input_grad = False  # whether kernels expect zeros in the gradient of a dense x

    def __init__(
        self, task: str, x: torch.Tensor, row_start: Optional, feature: Optional, batch: int,
        weight: torch.Tensor, decoder: Optional, bias: Optional, hidden_bias: Optional, options: Options,
        work: torch.dtype, floats: torch.dtype,
    ) -> None:  # fmt: skip
        self.dtype, self.device, self.work, self._floats = weight.dtype, weight.device, work, floats
        check_shape("weight", weight, [None, None, None])
        models, m, n = (int(size) for size in weight.shape)
        if m < 1 or n < 1:
            raise ValueError(
                "weight must have the shape [models, n_hidden, n_features] with at least one hidden unit and "
                f"one feature, not {[models, m, n]}"
            )
        self.models, self.hidden, self.features, self.batch = models, m, n, int(batch)
        self.task, self.tied = task, decoder is None
        options.check_layer(m)
        self.kept: list[torch.Tensor] = []
        self._likeness = weight
        self.params = p = _native.LayerParams()
        p.task, p.tied, p.top_k = TASKS[task], self.tied, options.top_k
        p.n_models, p.batch, p.n_features, p.n_hidden = models, self.batch, n, m
        p.hidden_activation = ACTIVATIONS[options.hidden_activation].number
        p.output_activation = ACTIVATIONS[options.output_activation].number
        p.hidden_option = option_of(options.hidden_activation, options)
        p.output_option = option_of(options.output_activation, options)
        self.weight = self.take("weight", weight)
        p.encoder = self.at("weight", self.weight)
        self.decoder = self._take_if("decoder", decoder, [models, n, m])
        self.bias = self._take_if("bias", bias, [models, n])
        self.hidden_bias = self._take_if("hidden_bias", hidden_bias, [models, m])
        self.centered = options.centered and self.bias is not None
        self.x: Optional = None
        self.row_start, self.feature, self.entries = row_start, feature, 0
        self._take_input(x, row_start, feature)
        self.encoder_grad: Optional = None
        self.decoder_grad: Optional = None
        self.bias_grad: Optional = None
        self.hidden_grad: Optional = None
        self.input_grad: Optional = None
        self.target_grad: Optional = None
        self.l1: Optional = None

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, alive as long as the call."""
        self.kept.append(tensor)
        return tensor

    def at(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
        """Its address; TypeError unless it is on the call's device and of that dtype, None for the work's."""
        return address(name, tensor, dtype or self.work, self.device)

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Contiguous, in the dtype of the work, kept; refused unless it is like the weights.

        On a GPU the call may be over before the kernels are: torch's allocator gives memory that is freed to
        later work of the same stream only.
        """
        check_like(name, tensor, self._likeness, "the weights")
        if tensor.dtype != self.work or not tensor.is_contiguous():
            tensor = tensor.detach().to(self.work).contiguous()
        return self.keep(tensor)

    def _take_if(self, name: str, tensor: Optional, shape: list[int]) -> Optional:
        """Into the parameter of that name, where there is one."""
        if tensor is None:
            return None
        check_shape(name, tensor, shape)
        taken = self.take(name, tensor)
        setattr(self.params, name, self.at(name, taken))
        return taken

    def _take_floats(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device != self.device:
            raise ValueError(
                f"{name} must be on the device of the weights, {self.device}, not {tensor.device}"
            )
        return self.keep(tensor.detach().to(self._floats).contiguous())

    def _take_input(self, x: torch.Tensor, row_start: Optional, feature: Optional) -> None:
        p, models, batch, n = self.params, self.models, self.batch, self.features
        if row_start is None or feature is None:
            check_shape("x", x, [models, batch, n], [1, batch, n])
            self.x = self.take("x", shared_over_models(x))
            p.x, p.x_stride = self.at("x", self.x), batch * n if self.x.shape[0] > 1 else 0
            return
        stacks = (row_start.numel() - 1) // batch if batch else models
        if stacks not in (1, models):
            raise ValueError(f"row_start must be for {models} models or 1, of {batch} samples, not {stacks}")
        check_like("value", x, self._likeness, "the weights")
        self._check_entries(row_start, feature, x, stacks * batch)
        values = self.take("value", x)
        self.keep(row_start), self.keep(feature)
        self.entries, shared = x.numel(), stacks == 1
        p.value = self.at("value", values)
        p.row_start = self.at("row_start", row_start, torch.int64)
        p.feature = self.at("feature", feature, torch.int32)
        p.row_stride = 0 if shared else batch
        p.value_grad_stride = values.numel() if shared and models > 1 else 0

    def _check_entries(
        self, row_start: torch.Tensor, feature: torch.Tensor, value: torch.Tensor, rows: int
    ) -> None:
        """Refuses entries that the kernels could not take."""
        raise NotImplementedError

    def new(self, *shape: int, dtype: torch.dtype | None = None, zero: bool = False) -> torch.Tensor:
        """A tensor of the work's dtype or another, kept; a MemoryError says what was asked."""
        make = torch.zeros if zero else torch.empty
        try:
            return self.keep(make(shape, dtype=dtype or self.work, device=self.device))
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            size = torch.Size(shape).numel() * (dtype or self.work).itemsize / 2**20
            raise MemoryError(
                f"{size:.0f} MiB are needed on {str(self.device)!r} for a tensor of shape {list(shape)}, in "
                f"a call with {self.models} models, {self.batch} samples, {self.features} features and "
                f"{self.hidden} hidden units"
            ) from error

    def want_gradients(self, weights_wanted: bool, x_wanted: bool) -> None:
        """Allocates what the kernels write them to."""
        p, models, n, m = self.params, self.models, self.features, self.hidden
        if weights_wanted:
            self.encoder_grad = self.new(models, m, n)
            p.encoder_grad = self.at("encoder_grad", self.encoder_grad)
            if not self.tied:
                self.decoder_grad = self.new(models, n, m)
                p.decoder_grad = self.at("decoder_grad", self.decoder_grad)
            if self.bias is not None:
                self.bias_grad = self.new(models, n)
                p.bias_grad = self.at("bias_grad", self.bias_grad)
            if p.hidden_bias:
                self.hidden_grad = self.new(models, m)
                p.hidden_bias_grad = self.at("hidden_grad", self.hidden_grad)
        if x_wanted and self.x is not None:
            self.input_grad = self.new(models, self.batch, n, zero=self.zeroed_input_grad)
            p.x_grad = self.at("input_grad", self.input_grad)
        elif x_wanted:
            stacked = (models,) if p.value_grad_stride else ()
            # What no row holds keeps a gradient of 0.
            self.input_grad = self.new(*stacked, self.entries, zero=True)
            p.value_grad = self.at("input_grad", self.input_grad)

    def want_loss(
        self, importance: torch.Tensor, l1: Optional, given: Optional, objective: Objective,
        target_wanted: bool,
    ) -> None:  # fmt: skip
        """Takes what the loss is made of. There must be a sample."""
        p, models, n = self.params, self.models, self.features
        if self.batch == 0:
            raise ValueError("x must hold at least one sample for a loss, not 0")
        check_shape("importance", importance, [models, n], [1, n])
        rows = self._take_floats("importance", shared_over_models(importance))
        p.importance = self.at("importance", rows, self._floats)
        p.importance_stride = n if rows.shape[0] > 1 else 0
        if l1 is not None:
            check_shape("l1", l1, [models], [1])
            self.l1 = self._take_floats("l1", l1)
            p.l1, p.l1_stride = self.at("l1", self.l1, self._floats), 1 if self.l1.shape[0] > 1 else 0
        objective.check_objective(layer=True)
        p.target, p.loss_function = number("target", objective.target), LOSSES[objective.loss].number
        if objective.target == GIVEN:
            if given is None:
                raise ValueError(f"given must be a tensor with target={GIVEN!r}, not None")
            check_shape("target", given, [models, self.batch, n], [1, self.batch, n])
            wanted = self.take("target", shared_over_models(given))
            p.target_values = self.at("target", wanted)
            p.target_stride = self.batch * n if wanted.shape[0] > 1 else 0
            if target_wanted:
                self.target_grad = self.new(models, self.batch, n)
                p.target_grad = self.at("target_grad", self.target_grad)
        p.loss_scale, p.l1_scale = 1.0 / (self.batch * objective.terms(n)), 1.0 / self.batch

    def want_output_gradient(self, grad: torch.Tensor, output: Optional) -> None:
        """Takes the gradient at the output, and the output where it was kept."""
        shape = [self.models, self.batch, self.features]
        check_shape("grad", grad, shape)
        self.params.output_grad = self.at("grad", self.take("grad", grad))
        self._take_if("output", output, shape)

    def gradients(self) -> Gradients:
        """Of encoder, decoder, bias, hidden bias and input, in the caller's dtype; empty where not wanted."""
        found = [self.encoder_grad, self.decoder_grad, self.bias_grad, self.hidden_grad, self.input_grad]
        encoder, decoder, bias, hidden, x = (self.given_back(tensor) for tensor in found)
        return encoder, decoder, bias, hidden, x

    def given_back(self, tensor: Optional) -> torch.Tensor:
        """In the caller's dtype; an empty tensor stands for one that is not wanted."""
        if tensor is None:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        return tensor.to(self.dtype)
