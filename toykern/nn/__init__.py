"""Networks as ordinary `nn.Module`s, many of one shape stacked in one."""

from typing import Any

from toykern.arguments.errors import check_choice, describe
from toykern.network.specification import ALWAYS, OPTIONS
from toykern.nn.autoencoder import Autoencoder
from toykern.nn.conversion import layer_densities, sparsify
from toykern.nn.initialization import INITIALIZATIONS, initial_std
from toykern.nn.sparse_initialization import SPARSE_INITIALIZATIONS
from toykern.nn.sparse_linear import SparseLinear
from toykern.nn.sparse_tied_autoencoder import SparseTiedAutoencoder
from toykern.nn.stacked import StackedModel
from toykern.nn.tied_autoencoder import TiedAutoencoder

__all__ = [
    "INITIALIZATIONS",
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

_CLASSES: dict[str, type[StackedModel]] = {"TiedAutoencoder": TiedAutoencoder, "Autoencoder": Autoencoder}


def model_from_config(
    config: dict[str, Any], *, seed: Any = None, init: Any = None, device: Any = None, dtype: Any = None
) -> StackedModel:
    """The model that `model.config()` described, with weights drawn anew.

    `seed`, `init`, `device` and `dtype` as the classes take them; `init=None` takes the described one, which
    must not be "per_model". To fill in stored weights, pass `init=0.0` (nothing is drawn) and use
    `load_state_dict`.

    >>> model_from_config(TiedAutoencoder(5, 2, n_models=3).config()).weight.shape
    torch.Size([3, 2, 5])
    """
    if not isinstance(config, dict) or "class" not in config:
        raise ValueError(f"the model's config must be a dict with the key 'class', not {describe(config)}")
    kind = _CLASSES[check_choice("the model's class", config["class"], _CLASSES)]
    arguments = {key: value for key, value in config.items() if key != "class"}
    known = {"n_models", "init", *ALWAYS}
    if set(arguments) - {*OPTIONS} != known:
        raise ValueError(f"the model's config must have the keys {sorted(known)}, not {sorted(arguments)}")
    if init is not None:
        arguments["init"] = init
    elif arguments["init"] == "per_model":
        raise ValueError("init was given per model: pass it, [models], to model_from_config")
    return kind(**arguments, seed=seed, device=device, dtype=dtype)
