"""The first samples of a stream, kept: what `SparseFeatures.dataset` makes."""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.errors import check_choice, check_size, is_int
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset import Dataset
from toykern.data.dataset_checks import check_samples
from toykern.data.projection import Projection
from toykern.data.sparse_batch import SparseBatch


def keep(
    stream: Any, samples: Any, seed: Any, n_models: int | None, normalize: str | None, purpose: str
) -> Dataset:
    """Arguments as of `SparseFeatures.dataset`, not checked yet, but `purpose`; `stream` is its own."""
    if normalize is not None:
        check_choice("normalize", normalize, ("unit",))
    counts = check_samples(samples)
    # Where models differ in how many alone, they share what there is.
    shared = is_int(seed) and stream.n_models is None
    if n_models is None and counts.numel() > 1 and not shared:
        n_models = counts.numel()
    most = check_size("samples", int(counts.max()))
    models = stream.models_of(seed, n_models)
    projection: Projection | None = stream.projection
    # A kept entry takes some 80 bytes on its way, a sample without one 16; and of a product's sums float64.
    outputs = 0 if projection is None else projection.n_outputs
    check_free_memory(
        f"a dataset of n_models={models:,}, samples={most:,}",
        int(models * most * (16 + 80 * float(stream.active_features().max()) + 12 * outputs)),
        "take fewer",
    )
    kinds: dict[str, Any] = {"seed": seed, "n_models": models, "purpose": purpose}
    own = None if counts.numel() == 1 else counts
    if stream.noise > 0.0:
        noisy, clean = (stream.sample(0, most, **kinds, clean=clean) for clean in (False, True))
        if normalize:
            noisy, clean = _unit(noisy), _unit(clean)
        return Dataset(noisy, clean if projection is None else projection.of(clean), samples=own)
    entries = stream.sample(0, most, **kinds, layout="sparse")
    if normalize:
        rows = torch.repeat_interleave(entries.row_start.diff())
        squares = torch.zeros(entries.row_start.numel() - 1, dtype=torch.float64, device="cpu")
        squares.index_add_(0, rows, entries.value.double().square())
        entries.value = (entries.value / squares.sqrt()[rows]).float()
    return Dataset(entries, None if projection is None else _projected(projection, entries), samples=own)


def _projected(projection: Projection, entries: SparseBatch) -> torch.Tensor:
    """T x of the samples that the entries are, as `Projection.of` gives it."""
    if projection.n_models is None:
        parts = [(entries, projection.matrix)]
    else:
        parts = [(entries.of_model(i), projection.row(i)) for i in range(entries.n_models)]
    products = [
        torch.nn.functional.embedding_bag(  # of an entry's column of T, its multiple is added
            part.feature.long(),
            matrix[0].double().mT.contiguous(),
            part.row_start,
            mode="sum",
            per_sample_weights=part.value.double(),
            include_last_offset=True,
        )
        for part, matrix in parts
    ]
    return torch.cat(products).float().view(entries.n_models, entries.batch_size, projection.n_outputs)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """x `[models, samples, n]` with every sample that is not all zeros scaled to length 1."""
    length = x.double().norm(dim=2, keepdim=True)
    return torch.where(length > 0, x / length, 0.0).float()
