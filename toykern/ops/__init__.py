"""Kernels as PyTorch operators: schema, implementation per device, fake, autograd. One file per kernel."""

from toykern.network.specification import Options
from toykern.ops import tied_autoencoder as _tied_autoencoder  # noqa: F401  registers itself
from toykern.ops import tied_autoencoder_cuda as _tied_autoencoder_cuda  # noqa: F401  registers itself
from toykern.ops import tied_autoencoder_vmap as _tied_autoencoder_vmap  # noqa: F401  registers itself
from toykern.ops.tied_autoencoder_autograd import autoencoder_loss, autoencoder_output

__all__ = ["Options", "autoencoder_loss", "autoencoder_output"]
