"""The losses there are, the targets that are made from an input, and how a loss is summed up: one row each,
read by the models, the ops, the trainer and the reference.

The mathematics of a loss stands in `csrc/common/loss.h` (for the kernels) and in `toykern/reference/`
(float64); its number is that of `toykern::Loss` in `csrc/include/toykern/network.h`, by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from toykern.arguments.errors import check_choice
from toykern.native.numbers import number


@dataclass(frozen=True)
class Loss:
    """What may be told of a loss.

    Attributes:
        name: as users write it.
        of: each output's part of it `[…, batch, n_outputs]`, of outputs and targets of that shape, in torch
            operations: where no kernel is asked. Their sum, weighted by importance, is the loss before it is
            divided (`Objective.divisor`).
        over: what one term is a function of: "output" (an output and its target alone), "sample" (all
            outputs of a sample) or "batch" (all outputs of all samples).
        layer: whether the fused layer and the CUDA kernels have it.
    """

    name: str
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    over: str = "output"
    layer: bool = True

    @functools.cached_property
    def number(self) -> int:
        """As the kernels know it."""
        return number("loss", self.name)


def _squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (target - output).square()


def _cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target * (output.logsumexp(-1, keepdim=True) - output)


def _batch_cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Not torch's softmax, whose float32 sums over a long row on the CPU are 1e-5 off.
    share = (target - target.flatten(-2).logsumexp(-1)[..., None, None]).exp()
    return share * (output.flatten(-2).logsumexp(-1)[..., None, None] - output)


LOSSES = {
    row.name: row
    for row in (
        Loss("squared_error", _squared_error),
        Loss("cross_entropy", _cross_entropy, over="sample", layer=False),
        Loss("batch_cross_entropy", _batch_cross_entropy, over="batch", layer=False),
    )
}

LAYER_LOSSES = tuple(name for name, row in LOSSES.items() if row.layer)
"""Those that the fused layer has."""


def _itself(x: torch.Tensor) -> torch.Tensor:
    return x


TARGETS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"identity": _itself, "abs": torch.abs}
"""What is made from the input without its noise, elementwise: by name."""

EMBEDDED = "embedding"
"""The target P x, of networks that have an embedding P and as many outputs as it has dimensions."""

GIVEN = "tensor"
"""The target that the layer alone has: a tensor that its caller gives."""

PROJECTED = "projection"
"""What the kernels call "identity" where the data has a projection T: the target T x."""

REDUCTIONS = ("mean", "sum")
"""A mean over batch and features, or the batch's mean of a sum over features."""


@dataclass(frozen=True)
class Objective:
    """What a network is trained for, whatever its size.

    Attributes:
        target: a name in `TARGETS`, "embedding", or "tensor" for one that is given.
        loss_reduction: a name in `REDUCTIONS`.
        loss: a name in `LOSSES`.

    >>> Objective(target="abs").terms(5), Objective(loss="cross_entropy").terms(5)
    (5, 1)
    """

    target: str = "identity"
    loss_reduction: str = "mean"
    loss: str = "squared_error"

    def objective(self) -> tuple[str, str, str]:
        """As the operators take it, one after the other."""
        return (self.target, self.loss_reduction, self.loss)

    def check_objective(self, layer: bool = False) -> None:
        """ValueError or TypeError for a name that is none.

        `layer`: of the fused layer, which has a target "tensor" and elementwise losses alone.
        """
        check_choice("target", self.target, (*TARGETS, GIVEN if layer else EMBEDDED))
        check_choice("loss_reduction", self.loss_reduction, REDUCTIONS)
        check_choice("loss", self.loss, LAYER_LOSSES if layer else LOSSES)

    def terms(self, n_outputs: int) -> int:
        """What a sample's sum over outputs is divided by; a cross-entropy is always that sum."""
        return n_outputs if self.loss_reduction == "mean" and LOSSES[self.loss].over == "output" else 1

    def divisor(self, samples: Any, n_outputs: int) -> Any:
        """What the sum over samples and outputs is divided by: the loss of a whole batch is that sum itself.
        `samples` is a number, or a tensor of one for each model.

        >>> Objective().divisor(8, 5), Objective(loss="batch_cross_entropy").divisor(8, 5)
        (40, 1)
        """
        return 1 if LOSSES[self.loss].over == "batch" else samples * self.terms(n_outputs)
