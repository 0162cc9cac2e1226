"""The random words of the stream and normal draws from them, in NumPy (docs/data_stream.md §1 and §6).

The kernels draw training data natively; this module serves what is drawn once, the initial weights, and
needs no compiled code. Its bits are the same as theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toykern.data.stream_tables import HALF_NORMAL_TABLE

MAX_STEP = 2**32 - 1
"""The last step that a counter has a word for."""

KIND_INIT = 8
"""The kind of the initial weights (docs/data_stream.md §1)."""

KIND_LANGEVIN = 12
"""That of the noise of Langevin dynamics."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_BLOCKS_AT_ONCE = 1 << 14  # the arrays of one pass stay in the cache


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[NDArray[np.uint32], ...]:
    """Philox 4×32-10 (Salmon et al. 2011): four arrays of random words for arrays of counters and keys.

    All six arguments hold 32-bit words and broadcast against each other; the results have their common shape.

    >>> [hex(int(word)) for word in philox((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*(np.asarray(a, dtype=np.uint64) for a in (*counter, *key)))
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def sequence(
    seeds: NDArray[np.int64],
    count: int,
    *,
    kind: int,
    purpose: int = 0,
    member: int = 0,
    step: int = 0,
    slice_index: int = 0,
) -> NDArray[np.uint32]:
    """The first `count` words of one sequence for each of the `seeds` `[models]`: uint32 `[models, count]`.

    Word i is word ((i >> 4) & 3) of the block with c0 = 16·(i >> 6) + (i & 15); c1 = `slice_index`, c2 =
    `step`, c3 = `kind` + 16·`purpose` + 256·`member`.

    >>> sequence(np.array([0, 1]), 3, kind=KIND_INIT).shape
    (2, 3)
    """
    seeds = np.asarray(seeds, dtype=np.int64).astype(np.uint64)
    lanes, groups = min(16, count), -(-count // 64)
    words = np.empty((len(seeds), groups, 4, lanes), dtype=np.uint32)
    rows = words.reshape(len(seeds) * groups, 4, lanes)  # one row for each seed and group of 64 words
    tag = kind + 16 * purpose + 256 * member
    rows_at_once = max(1, _BLOCKS_AT_ONCE // max(1, lanes))
    for start in range(0, len(rows), rows_at_once):
        row = np.arange(start, min(start + rows_at_once, len(rows)), dtype=np.uint64)
        seed = seeds[row // np.uint64(groups)][:, None]
        block = (row % np.uint64(groups) * np.uint64(16))[:, None] + np.arange(lanes, dtype=np.uint64)
        drawn = philox((block, slice_index, step, tag), (seed & _LOW, seed >> np.uint64(32)))
        for position, word in enumerate(drawn):
            rows[start : start + len(row), position] = word
    return words.reshape(len(seeds), groups * 4 * lanes)[:, :count]


def half_normal(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """|N(0, 1)| from uniform words, float32 of the same shape; the upper tail probability is (w | 1)/2³².

    >>> half_normal(np.array([2**31], dtype=np.uint32))
    array([0.6744897], dtype=float32)
    """
    tail = np.asarray(words, dtype=np.uint32) | np.uint32(1)
    leading_zeros = (32 - np.frexp(tail.astype(np.float64))[1]).astype(np.uint32)
    x = (tail << leading_zeros) << np.uint32(1)
    row = 4 * leading_zeros + (x >> np.uint32(30))
    t = ((x >> np.uint32(6)) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
    a0, a1, a2, a3, a4 = HALF_NORMAL_TABLE.T[:, row]
    return np.maximum((((a4 * t + a3) * t + a2) * t + a1) * t + a0, np.float32(2.0**-32))


def normal(
    seeds: NDArray[np.int64],
    count: int,
    *,
    member: int = 0,
    purpose: int = 0,
    kind: int = KIND_INIT,
    step: int = 0,
) -> NDArray[np.float32]:
    """Standard normal draws for initial weights (docs/data_stream.md §8), float32 `[models, count]`.

    `member` is the number of the parameter tensor; `purpose` 1 is for embeddings, which are fixed; with
    another `kind`, the draws are others, of a `step`. A draw is negative where its word is odd, and never 0.

    >>> normal(np.array([3]), 4).dtype
    dtype('float32')
    """
    draws = np.empty((len(seeds), count), dtype=np.float32)
    models_at_once = max(1, 4 * _BLOCKS_AT_ONCE // max(1, count))
    for start in range(0, len(seeds), models_at_once):
        own = seeds[start : start + models_at_once]
        words = sequence(own, count, kind=kind, member=member, purpose=purpose, step=step)
        for first in range(0, count, 4 * _BLOCKS_AT_ONCE):  # what a large model needs beside its words
            part = words[:, first : first + 4 * _BLOCKS_AT_ONCE]
            size = half_normal(part)
            signed = np.where(part & np.uint32(1), -size, size)
            draws[start : start + models_at_once, first : first + 4 * _BLOCKS_AT_ONCE] = signed
    return draws
