"""Networks as ordinary `nn.Module`s, many of one shape stacked in one."""

from toykern.nn.autoencoder import Autoencoder
from toykern.nn.conversion import layer_densities, sparsify
from toykern.nn.initialization import INITIALIZATIONS, initial_std
from toykern.nn.kinds import model_from_config
from toykern.nn.mlp import MLP
from toykern.nn.sparse_initialization import SPARSE_INITIALIZATIONS
from toykern.nn.sparse_linear import SparseLinear
from toykern.nn.sparse_tied_autoencoder import SparseTiedAutoencoder
from toykern.nn.stacked import StackedModel
from toykern.nn.tied_autoencoder import TiedAutoencoder

__all__ = [
    "INITIALIZATIONS",
    "MLP",
    "SPARSE_INITIALIZATIONS",
    "Autoencoder",
    "SparseLinear",
    "SparseTiedAutoencoder",
    "StackedModel",
    "TiedAutoencoder",
    "initial_std",
    "layer_densities",
    "model_from_config",
    "sparsify",
]
