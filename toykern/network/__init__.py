"""What a network is, told once: its activations, its tensors, its options, and what it is trained for."""

from toykern.network.activations import (
    ACTIVATIONS,
    HIDDEN_ACTIVATIONS,
    LAYER_HIDDEN_ACTIVATIONS,
    LAYER_OUTPUT_ACTIVATIONS,
    OUTPUT_ACTIVATIONS,
    Activation,
)
from toykern.network.losses import EMBEDDED, LAYER_LOSSES, LOSSES, REDUCTIONS, TARGETS, Loss, Objective
from toykern.network.specification import NetworkSpec, Options, TensorSpec

__all__ = [
    "ACTIVATIONS",
    "EMBEDDED",
    "HIDDEN_ACTIVATIONS",
    "LAYER_HIDDEN_ACTIVATIONS",
    "LAYER_LOSSES",
    "LAYER_OUTPUT_ACTIVATIONS",
    "LOSSES",
    "OUTPUT_ACTIVATIONS",
    "REDUCTIONS",
    "TARGETS",
    "Activation",
    "Loss",
    "NetworkSpec",
    "Objective",
    "Options",
    "TensorSpec",
]
