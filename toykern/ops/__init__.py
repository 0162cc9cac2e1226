"""Kernels as PyTorch operators: schema, implementation per device, fake, autograd. One file per kernel."""

from toykern.ops.tied_autoencoder import Options
from toykern.ops.tied_autoencoder_autograd import autoencoder_loss, autoencoder_output

__all__ = ["Options", "autoencoder_loss", "autoencoder_output"]
