"""The activations there are: one row each, read by the models, the ops and the trainer.

The mathematics of a row stands in `csrc/common/activation.h` (for the kernels) and in `toykern/reference/`
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
        hidden, output: where a network may have it: for its codes, for its outputs.
        layer: of these, where the fused layer has it, and so `TiedAutoencoder` and `Autoencoder`; an `MLP`
            has all of them.
        cuda: which of "hidden", "output" and "fit" the CUDA kernels have too; what these lack, `toykern.fit`
            and `toykern.evaluate` do by batched products. The CPU's kernels take every network.
        option: the name of the number that it takes, an attribute of the model; or None.
    """

    name: str
    hidden: bool = True
    output: bool = True
    layer: frozenset[str] = frozenset({"hidden", "output"})
    cuda: frozenset[str] = frozenset({"hidden", "output", "fit"})
    option: str | None = None

    @functools.cached_property
    def number(self) -> int:
        """As the kernels know it."""
        return number("activation", self.name)


_NOWHERE: frozenset[str] = frozenset()

ACTIVATIONS = {
    row.name: row
    for row in (
        Activation("none"),
        Activation("relu"),
        Activation("topk", output=False, cuda=frozenset({"hidden"}), option="top_k"),
        Activation("gelu"),
        Activation("leaky_relu", option="negative_slope"),
        Activation("softplus", layer=frozenset({"output"}), cuda=frozenset({"output", "fit"})),
        Activation("square", layer=_NOWHERE, cuda=_NOWHERE),
        Activation("x_exp", layer=_NOWHERE, cuda=_NOWHERE),
        Activation("solu", output=False, layer=_NOWHERE, cuda=_NOWHERE),
    )
}

HIDDEN_ACTIVATIONS = tuple(name for name, row in ACTIVATIONS.items() if row.hidden)
OUTPUT_ACTIVATIONS = tuple(name for name, row in ACTIVATIONS.items() if row.output)
LAYER_HIDDEN_ACTIVATIONS = tuple(name for name in HIDDEN_ACTIVATIONS if "hidden" in ACTIVATIONS[name].layer)
LAYER_OUTPUT_ACTIVATIONS = tuple(name for name in OUTPUT_ACTIVATIONS if "output" in ACTIVATIONS[name].layer)
"""Those that the fused layer has."""

NEGATIVE_SLOPE = 0.01
"""Of "leaky_relu", where none is given: that of PyTorch."""


def option_of(activation: str, described: Any) -> float:
    """The number that an activation of a model (or its options) takes; 0 where it takes none."""
    name = ACTIVATIONS[activation].option
    return 0.0 if name is None else float(getattr(described, name))
