"""The activations there are: one row each, read by the models, the ops and the trainer.

The mathematics of a row stands in `csrc/common/activation.h` (for the kernels) and in `toykern/reference.py`
(float64); its number is that of `toykern::Activation` in `csrc/include/toykern/network.h`, by its name.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from toykern.native.numbers import number


@dataclass(frozen=True)
class Activation:
    """What may be told of an activation without computing it.

    Attributes:
        name: as users write it.
        hidden, output: where a layer takes it: for its codes, for its outputs.
        fitted: whether `toykern.fit` and `toykern.evaluate` take models with it.
        cuda: which of "hidden", "output" and "fit" the CUDA kernels have too.
        option: the name of the number that it takes, an attribute of the model; or None.
    """

    name: str
    hidden: bool = True
    output: bool = True
    fitted: bool = True
    cuda: frozenset[str] = frozenset({"hidden", "output", "fit"})
    option: str | None = None

    @functools.cached_property
    def number(self) -> int:
        """As the kernels know it."""
        return number("activation", self.name)


ACTIVATIONS = {
    row.name: row
    for row in (
        Activation("none"),
        Activation("relu"),
        Activation("topk", output=False, fitted=False, option="top_k"),
        Activation("gelu"),
        Activation("leaky_relu", option="negative_slope"),
        Activation("softplus", hidden=False),
    )
}

HIDDEN_ACTIVATIONS = tuple(name for name, row in ACTIVATIONS.items() if row.hidden)
OUTPUT_ACTIVATIONS = tuple(name for name, row in ACTIVATIONS.items() if row.output)
NEGATIVE_SLOPE = 0.01
"""Of "leaky_relu", where none is given: that of PyTorch."""


def option_of(activation: str, described: Any) -> float:
    """The number that an activation of a model (or its options) takes; 0 where it takes none."""
    name = ACTIVATIONS[activation].option
    return 0.0 if name is None else float(getattr(described, name))
