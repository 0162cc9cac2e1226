"""Modular addition: the pairs of two numbers, and which output their sum is (docs/data_stream.md §13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import bounded_numbers, broadcast_seed, real_tensor
from toykern.arguments.errors import check_int, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset import Dataset
from toykern.data.dataset_checks import common_models
from toykern.data.philox import sequence
from toykern.data.sparse_batch import SparseBatch

KIND_PAIRS = 13
"""The kind of draw, in the counter; by purpose: which pairs are trained on, and what wrong labels are."""

MAX_MODULUS = 2**14


def modular_addition(
    p: int, fraction: Any = 0.3, *, noise: Any = 0.0, seed: Any = 0
) -> tuple[Dataset, Dataset]:
    """All p² sums (a + b) mod p, dealt out to train and to test on: the data of grokking (Power et al. 2022).

    Inputs are one-hot pairs: features a and p + b of n_features = 2p are 1. Labels are the sums, for models
    of p outputs. Which pairs are trained on is drawn from the seed; of one seed, a smaller fraction is a part
    of a larger one.

    Args:
        p: the modulus, 2 … 16,384; prime or not.
        fraction: of the pairs, to train on; the others are to test on. Between 0 and 1, with at least one
            pair on either side. A number, or one for each model.
        noise: the share of training labels that are wrong, 0 … 1: round(noise · training pairs) of them are
            replaced by another number, each as likely. Test labels are all right. A number, or one for each
            model.
        seed: an int, with which all models share one order of the pairs; or `[models]`.

    Returns:
        (train, test), of entries (`SparseBatch`) and labels; shared by all models, or of as many as there are
        numbers in fraction, noise or seed.

    Raises:
        ValueError, TypeError: naming the argument.
        MemoryError: so many pairs of so many models do not fit.

    Example:
        >>> train, test = modular_addition(7, fraction=0.5)
        >>> train, test
        (Dataset(25 samples of n_features=14, with labels, shared by all models), \
Dataset(24 samples of n_features=14, with labels, shared by all models))
        >>> train, test = modular_addition(7, fraction=[0.3, 0.5], noise=0.1, seed=[0, 1])
        >>> train.n_models, train.samples, test.samples
        (2, tensor([15, 25]), tensor([34, 24]))
    """
    modulus = check_int("p", p, minimum=2, maximum=MAX_MODULUS)
    pairs = modulus**2
    fractions = bounded_numbers("fraction", fraction, 1.0, "between 0 and 1").reshape(-1)
    shares = bounded_numbers("noise", noise, 1.0, "from 0 to 1").reshape(-1)
    given = real_tensor("seed", seed)
    orders = broadcast_seed("seed", seed, max(1, given.numel()))
    models = common_models({"fraction": len(fractions), "noise": len(shares), "seed": len(orders)}) or 1
    check_free_memory(
        f"the pairs of p={modulus:,} for {len(orders):,} seeds, with labels for {models:,} models",
        pairs * (60 * len(orders) + 12 * models),
        "take a smaller p or fewer models",
    )
    counts = (fractions * pairs + 0.5).floor().long()
    outside = (counts < 1) | (counts >= pairs)
    if bool(outside.any()):
        raise ValueError(
            f"fraction must leave at least one of the {pairs} pairs to train on and one to test on, not "
            f"{float(fractions[outside][0]):g} ({describe(fraction)})"
        )
    order = torch.from_numpy(np.stack([_order(int(own), pairs) for own in orders]))
    train, test = order[:, : int(counts.max())], order.flip(1)[:, : pairs - int(counts.min())]
    labels = _sums(train, modulus)
    if bool((shares > 0).any()):
        labels = _with_wrong(labels, train, modulus, orders, (shares * counts + 0.5).floor().long())
    held = None if len(counts) == 1 else counts
    rest = None if held is None else pairs - counts
    return (
        Dataset(_one_hot(train, modulus), labels=labels, samples=held),
        Dataset(_one_hot(test, modulus), labels=_sums(test, modulus), samples=rest),
    )


def _order(seed: int, pairs: int) -> np.ndarray:
    """The pairs by rising 64-bit words, int64 `[pairs]`."""
    words = sequence(np.array([seed]), 2 * pairs, kind=KIND_PAIRS)[0].astype(np.uint64)
    return np.argsort(words[0::2] << np.uint64(32) | words[1::2], kind="stable")


def _sums(order: torch.Tensor, p: int) -> torch.Tensor:
    return (order // p + order % p) % p


def _with_wrong(
    labels: torch.Tensor, order: torch.Tensor, p: int, seeds: torch.Tensor, wrong: torch.Tensor
) -> torch.Tensor:
    """Labels `[1 or models, T]` of which each model's first `wrong` `[1 or models]` are others."""
    words = torch.from_numpy(sequence(seeds.numpy(), p * p, kind=KIND_PAIRS, purpose=1).astype(np.int64))
    others = (labels + 1 + (words.gather(1, order) * (p - 1) >> 32)) % p
    place = torch.arange(labels.shape[1], dtype=torch.int64, device="cpu")
    return torch.where(place < wrong[:, None], others, labels)


def _one_hot(order: torch.Tensor, p: int) -> SparseBatch:
    models, rows = order.shape
    feature = torch.stack([order // p, order % p + p], dim=2).to(torch.int32).flatten()
    start = torch.arange(0, 2 * models * rows + 1, 2, dtype=torch.int64, device="cpu")
    value = torch.ones(feature.shape, dtype=torch.float32, device="cpu")
    return SparseBatch(start, feature, value, 2 * p, models)
