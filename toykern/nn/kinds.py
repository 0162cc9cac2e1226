"""The kinds of stacks of networks there are, by the names that descriptions and stores have for them."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeGuard

from toykern.arguments.errors import check_choice, describe
from toykern.nn.autoencoder import Autoencoder
from toykern.nn.dense_stack import DenseStack
from toykern.nn.mlp import MLP
from toykern.nn.sparse_tied_autoencoder import SparseTiedAutoencoder
from toykern.nn.tied_autoencoder import TiedAutoencoder

AnyModel: TypeAlias = DenseStack | SparseTiedAutoencoder
"""What the kernels train and evaluate."""

KINDS: dict[str, type[AnyModel]] = {
    "TiedAutoencoder": TiedAutoencoder,
    "Autoencoder": Autoencoder,
    "SparseTiedAutoencoder": SparseTiedAutoencoder,
    "MLP": MLP,
}


def kind_of(model: Any) -> type[AnyModel] | None:
    """The kind that a module is of; None where it is of none.

    >>> kind_of(TiedAutoencoder(5, 2)).__name__
    'TiedAutoencoder'
    """
    return next((kind for kind in KINDS.values() if isinstance(model, kind)), None)


def has_connections(model: AnyModel) -> TypeGuard[SparseTiedAutoencoder]:
    """Whether only some connections of the network exist, so that a recipe may change them."""
    return model.network.sparse


def model_from_config(
    config: dict[str, Any],
    *,
    seed: Any = None,
    init: Any = None,
    device: Any = None,
    dtype: Any = None,
    embedding: Any = None,
    unembedding: Any = None,
) -> DenseStack:
    """The model that `model.config()` described, with weights drawn anew.

    `seed`, `init`, `device` and `dtype` as the classes take them; `init=None` takes the described one, which
    must not be "per_model". `embedding` and `unembedding` of an `MLP` to which they were given as numbers. To
    fill in stored weights, pass `init=0.0` (nothing is drawn) and use `load_state_dict`.

    >>> model_from_config(TiedAutoencoder(5, 2, n_models=3).config()).weight.shape
    torch.Size([3, 2, 5])
    """
    dense = {name: kind for name, kind in KINDS.items() if issubclass(kind, DenseStack)}
    kind = dense[check_choice("the model's class", _class_of(config), dense)]
    how = {"seed": seed, "init": init, "device": device, "dtype": dtype}
    if issubclass(kind, MLP):
        return kind.from_config(config, **how, embedding=embedding, unembedding=unembedding)
    for name, given in (("embedding", embedding), ("unembedding", unembedding)):
        if given is not None:
            raise ValueError(f"{name} is for an MLP, not for the config of {kind.__name__}")
    return kind.from_config(config, **how)


def model_from_state(config: dict[str, Any], state: dict[str, Any], drawn_from: dict[str, Any]) -> AnyModel:
    """The CPU stack whose `config()`, `state_dict()` and `drawn_from()` these were, of any kind."""
    kind = KINDS[check_choice("the model's class", _class_of(config), KINDS)]
    return kind.from_state(config, state, drawn_from)


def _class_of(config: Any) -> Any:
    if not isinstance(config, dict) or "class" not in config:
        raise ValueError(f"the model's config must be a dict with the key 'class', not {describe(config)}")
    return config["class"]
