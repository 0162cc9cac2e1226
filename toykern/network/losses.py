"""The losses there are, the targets that are made from an input, and how a loss is summed up: one row each,
read by the models, the ops, the trainer and the reference.

The mathematics of a loss stands in `csrc/common/loss.h` (for the kernels) and in `toykern/reference.py`
(float64); its number is that of `toykern::Loss` in `csrc/include/toykern/network.h`, by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from toykern.arguments.errors import check_choice
from toykern.native.numbers import number


@dataclass(frozen=True)
class Loss:
    """What may be told of a loss. Every loop of both backends has it, since all of them call the same struct.

    Attributes:
        name: as users write it.
        of: ρ of outputs and targets, elementwise, in torch operations: where no kernel is asked.
    """

    name: str
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @functools.cached_property
    def number(self) -> int:
        """As the kernels know it."""
        return number("loss", self.name)


def _squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (target - output).square()


LOSSES = {row.name: row for row in (Loss("squared_error", _squared_error),)}


def _itself(x: torch.Tensor) -> torch.Tensor:
    return x


TARGETS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"identity": _itself, "abs": torch.abs}
"""What is made from the input without its noise, elementwise: by name."""

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
        target: a name in `TARGETS`, or "tensor" for one that is given.
        loss_reduction: a name in `REDUCTIONS`.
        loss: a name in `LOSSES`.

    >>> Objective(target="abs").terms(5)
    5
    """

    target: str = "identity"
    loss_reduction: str = "mean"
    loss: str = "squared_error"

    def objective(self) -> tuple[str, str, str]:
        """As the operators take it, one after the other."""
        return (self.target, self.loss_reduction, self.loss)

    def check_objective(self, given: bool = False) -> None:
        """ValueError or TypeError for a name that is none; `given`: whether "tensor" is one."""
        check_choice("target", self.target, (*TARGETS, GIVEN) if given else TARGETS)
        check_choice("loss_reduction", self.loss_reduction, REDUCTIONS)
        check_choice("loss", self.loss, LOSSES)

    def terms(self, n_features: int) -> int:
        """What a sample's sum over features is divided by."""
        return n_features if self.loss_reduction == "mean" else 1
