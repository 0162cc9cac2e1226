"""Embeddings and un-embeddings that stay as they are: drawn from a model's seed, or given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import check_choice, check_int, describe, is_int
from toykern.data.philox import normal

TRANSPOSE = "transpose"


@dataclass(frozen=True)
class Fixed:
    """Where a fixed matrix of a stack comes from.

    Attributes:
        source: "drawn" from the models' seeds, "transpose" of the embedding, or given, "shared" by all models
            or "per_model"; None where there is none.
        length: d.
        given: float64 `[1 or models, rows, columns]` where it was given, else None.
    """

    source: str | None = None
    length: int = 0
    given: torch.Tensor | None = None


def fixed_embedding(embedding: Any, n_models: int, n_features: int) -> Fixed:
    """P, from what `MLP` takes as `embedding`; TypeError or ValueError by that name.

    >>> fixed_embedding(2, n_models=3, n_features=5).source
    'drawn'
    """
    if embedding is None:
        return Fixed()
    if is_int(embedding):
        return Fixed("drawn", check_int("embedding", embedding, minimum=1, maximum=n_features))
    given, source = _given("embedding", embedding, n_models, ("d", "n_features"), (None, n_features))
    return Fixed(source, given.shape[1], given)


def fixed_unembedding(
    unembedding: Any, n_models: int, n_features: int, n_outputs: int, embedding: Fixed
) -> Fixed:
    """Q, from what `MLP` takes as `unembedding`, beside this P; TypeError or ValueError by that name."""
    if unembedding is None or unembedding is False:
        return Fixed()
    if embedding.source is None:
        raise ValueError("unembedding needs an embedding, whose dimensions it reads; embedding is None")
    d = embedding.length
    if unembedding is not True and not isinstance(unembedding, str):
        given, source = _given("unembedding", unembedding, n_models, ("n_outputs", "d"), (n_outputs, d))
        return Fixed(source, d, given)
    if isinstance(unembedding, str):
        check_choice("unembedding", unembedding, (TRANSPOSE,))
    if n_outputs != n_features:
        raise ValueError(
            f"unembedding={unembedding!r} is the transpose of the embedding, which gives n_features = "
            f"{n_features} outputs, not n_outputs = {n_outputs}"
        )
    return Fixed(TRANSPOSE, d)


def _given(
    name: str, value: Any, n_models: int, dims: tuple[str, str], sizes: tuple[int | None, int]
) -> tuple[torch.Tensor, str]:
    """A matrix for all models or one for each, and which; a size that is None is free."""
    given = as_tensor(name, value, torch.float64)
    fits = given.ndim in (2, 3) and 0 not in given.shape and given.shape[-1] == sizes[1]
    fits = fits and sizes[0] in (None, given.shape[-2])
    if not fits or (given.ndim == 3 and len(given) != n_models):
        told, lengths = ", ".join(dims), f"{sizes[0] or dims[0]}, {sizes[1]}"
        raise ValueError(
            f"{name} must have the shape [{told}] = [{lengths}] or [models, {told}] = [{n_models}, "
            f"{lengths}], not {describe(value)}"
        )
    if not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name} must be finite, not {describe(value)} with numbers that are not")
    return (given, "per_model") if given.ndim == 3 else (given.unsqueeze(0), "shared")


def drawn_embedding(seed: torch.Tensor, n_embedding: int, n_features: int) -> torch.Tensor:
    """Embeddings P as Jermyn et al. 2022 draw them, float32 CPU `[models, d, n]`, each of the model's seed.

    G is d × n of normal draws (docs/data_stream.md §8), G = U S Vᵀ its thin singular value decomposition in
    double precision, largest singular value first, each row of Vᵀ with the sign that makes its entry of
    largest magnitude positive. P is Vᵀ with each column, a feature's direction, scaled to length 1. Its last
    bits are those of the machine's linear algebra.

    `seed` int64 `[models]`; n_embedding must be at most n_features.

    >>> drawn_embedding(torch.tensor([0, 1]), 2, 5).norm(dim=1).round(decimals=5).unique()
    tensor([1.])
    """
    found = np.empty((len(seed), n_embedding, n_features), dtype=np.float32)
    for model, own in enumerate(seed.numpy()):
        draws = normal(np.array([own]), n_embedding * n_features, purpose=1).astype(np.float64)
        rows = np.linalg.svd(draws.reshape(n_embedding, n_features), full_matrices=False)[2]
        largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
        rows = rows * np.sign(largest)
        found[model] = rows / np.linalg.norm(rows, axis=0)
    return torch.from_numpy(found)
