"""What a network is, told once: its activations, its tensors, its options."""

from toykern.network.activations import ACTIVATIONS, HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS, Activation
from toykern.network.specification import NetworkSpec, Options, TensorSpec

__all__ = [
    "ACTIVATIONS",
    "HIDDEN_ACTIVATIONS",
    "OUTPUT_ACTIVATIONS",
    "NetworkSpec",
    "Options",
    "TensorSpec",
    "Activation",
]
