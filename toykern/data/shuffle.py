"""The order in which a finite dataset is gone through (docs/data_stream.md §11), in NumPy."""

from __future__ import annotations

import numpy as np

from toykern.data.philox import philox

ROUNDS = 12
_LOW = 0xFFFFFFFF
_SHUFFLE = 15  # the kind of draw, in the counter


def permutation(seed: int, epoch: int, rows: int, places: np.ndarray) -> np.ndarray:
    """Rows at these places of an epoch's order, int64; as `csrc/common/stream/shuffle.h`.

    >>> sorted(permutation(seed=1, epoch=0, rows=5, places=np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max(1, (rows - 1).bit_length())
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    counter = (np.arange(2 * ROUNDS // 4), epoch >> 32, epoch & _LOW, _SHUFFLE)
    blocks = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    keys = np.stack(blocks, axis=1).reshape(-1).astype(np.uint64)
    x = np.asarray(places, dtype=np.uint64).copy()
    outside = np.ones(x.shape, dtype=bool)
    while outside.any():
        y = x[outside]
        for r in range(ROUNDS):
            y = (y * (keys[2 * r] | np.uint64(1)) + keys[2 * r + 1]) & mask
            y ^= y >> shift
        x[outside] = y
        outside = x >= np.uint64(rows)
    return x.astype(np.int64)


def shuffled_rows(seed: int, step: int, batch_size: int, rows: int) -> np.ndarray:
    """The rows that a step sees, int64 `[batch_size]`: epochs laid end to end, cut into batches."""
    at = np.arange(batch_size, dtype=np.uint64) + np.uint64(step) * np.uint64(batch_size)
    epochs, places = at // np.uint64(rows), at % np.uint64(rows)
    found = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        found[of_epoch] = permutation(seed, int(epoch), rows, places[of_epoch])
    return found
