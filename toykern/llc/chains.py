"""Every model several times, with seeds of their own: models × chains as one stack."""

from __future__ import annotations

import numpy as np
import torch

from toykern.data.dataset import Dataset
from toykern.data.philox import KIND_LANGEVIN, sequence
from toykern.data.sparse_batch import SparseBatch


def chain_seeds(seed: torch.Tensor, chains: int) -> torch.Tensor:
    """The seed of each chain, int64 `[models · chains]`, of the models' seeds `[models]`.

    That of chain c is the upper 63 bits of words 2c and 2c + 1 of the model's sequence of kind 12, purpose 1
    (docs/data_stream.md §12): more chains leave those that were there as they are.

    >>> few, more = (chain_seeds(torch.tensor([7]), chains) for chains in (2, 3))
    >>> torch.equal(few, more[:2])
    True
    """
    words = sequence(seed.numpy(), 2 * chains, kind=KIND_LANGEVIN, purpose=1).astype(np.uint64)
    drawn = ((words[:, 0::2] << np.uint64(32)) | words[:, 1::2]) >> np.uint64(1)
    return torch.from_numpy(drawn.astype(np.int64).reshape(-1))


def repeated_rows(values: torch.Tensor, chains: int) -> torch.Tensor:
    """`[models, …]` with every row `chains` times; what all models share, `[1, …]`, stays one row."""
    return values if len(values) == 1 else values.repeat_interleave(chains, dim=0)


def repeated_dataset(data: Dataset, chains: int) -> Dataset:
    """The dataset of models × chains; the same one where all models share it."""
    if data.n_models is None:
        return data
    inputs = data.input if data.entries is None else _repeated_entries(data.entries, chains)
    if data.input is not None:
        inputs = repeated_rows(data.input, chains)
    target, label, samples = (
        None if held is None else repeated_rows(held, chains)
        for held in (data.target, data.label, data.samples)
    )
    return Dataset(inputs, target, labels=label, samples=samples)


def bytes_of_models(data: Dataset) -> int:
    """What a dataset has of each model rather than of all of them, in bytes."""
    if data.n_models is None:
        return 0
    held = [tensor for tensor in (data.input, data.target, data.label, data.samples) if tensor is not None]
    found = sum(tensor.nbytes for tensor in held if len(tensor) > 1)
    if data.entries is not None and data.entries.n_models > 1:
        # entries, and where each of them was
        found += data.entries.row_start.nbytes + data.entries.value.numel() * (4 + 4 + 8)
    return found


def _repeated_entries(entries: SparseBatch, chains: int) -> SparseBatch:
    models = entries.n_models
    if models == 1:
        return entries
    counts = entries.row_start.diff().reshape(models, -1).repeat_interleave(chains, dim=0)
    start = torch.zeros(counts.numel() + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(counts.reshape(-1), dim=0, out=start[1:])
    ends = entries.row_start[:: entries.batch_size].tolist()
    own = [torch.arange(ends[i], ends[i + 1], dtype=torch.int64, device="cpu") for i in range(models)]
    place = torch.cat([rows for rows in own for _ in range(chains)])
    return SparseBatch(
        start, entries.feature[place], entries.value[place], entries.n_features, models * chains
    )
