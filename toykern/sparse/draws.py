"""Random choices of connections: counter-based, a pure function of (seed, purpose, layer, step).

Kind 9 of the random words (docs/data_stream.md §9). Nothing here touches torch's generators, and what one
model or one output neuron draws does not depend on what stands beside it.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from toykern.arguments.memory import check_free_memory
from toykern.data.philox import philox

KIND_TOPOLOGY = 9
"""The kind of all random choices about connections (docs/data_stream.md §1)."""

PURPOSES = {
    "initial": 0,
    "grow": 1,
    "prune": 2,
    "candidates": 3,
    "minimum": 4,
    "value": 5,
    "layer": 6,
    "grow_ties": 7,
    "prune_ties": 8,
    "output_ties": 9,
}
"""What a choice is for; each has sequences of its own."""

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_BLOCKS_AT_ONCE = 1 << 14  # the arrays of one pass stay in the cache
_BYTES_PER_DRAW = 64  # at most, of all arrays that stand together

Ints: TypeAlias = NDArray[np.int64]


def tag_of(purpose: str, layer: int) -> int:
    """The fourth counter word of what is drawn for a purpose, for the layer of that number."""
    return KIND_TOPOLOGY + 16 * PURPOSES[purpose] + 256 * layer


def words64(
    seeds: Ints, groups: Ints, count: int, *, purpose: str, layer: int = 0, step: int = 0
) -> NDArray[np.uint64]:
    """The first `count` 64-bit words of the sequence of every (seed, group) pair: uint64 `[pairs, count]`.

    `seeds` and `groups` are int64 `[pairs]`, groups below 2³². Word i has as its upper and lower half the
    random words 2·h and 2·h + 1, h = (i >> 4) & 1, of the Philox block with c0 = 16·(i >> 5) + (i & 15), c1 =
    group, c2 = step, c3 = 9 + 16·purpose + 256·layer: sixteen lanes make 32 words at a time.

    >>> words64(np.array([7]), np.array([0]), 3, purpose="grow").shape
    (1, 3)
    """
    seeds, groups = np.asarray(seeds, np.int64).astype(np.uint64), np.asarray(groups, np.uint64)
    lanes, chunks = min(16, count), -(-count // 32)
    words = np.empty((len(seeds), chunks, 2, lanes), dtype=np.uint64)
    rows = words.reshape(len(seeds) * chunks, 2, lanes)
    tag = tag_of(purpose, layer)
    rows_at_once = max(1, _BLOCKS_AT_ONCE // max(1, lanes))
    for start in range(0, len(rows), rows_at_once):
        row = np.arange(start, min(start + rows_at_once, len(rows)), dtype=np.uint64)
        pair = row // np.uint64(max(1, chunks))
        seed, group = seeds[pair][:, None], groups[pair][:, None]
        block = (row % np.uint64(max(1, chunks)) * np.uint64(16))[:, None] + np.arange(lanes, dtype=np.uint64)
        drawn = philox((block, group, step, tag), (seed & _LOW, seed >> _SHIFT))
        for half in range(2):
            upper, lower = drawn[2 * half].astype(np.uint64), drawn[2 * half + 1].astype(np.uint64)
            rows[start : start + len(row), half] = (upper << _SHIFT) | lower
    return words.reshape(len(seeds), chunks * 2 * lanes)[:, :count]


def scaled(words: NDArray[np.uint64], size: Ints | int) -> Ints:
    """floor(word · size / 2⁶⁴): uniform over 0 … size − 1 to a part in 2⁶⁴ / size; broadcasts.

    >>> scaled(np.array([0, 2**63, 2**64 - 1], dtype=np.uint64), 10).tolist()
    [0, 5, 9]
    """
    sizes = np.asarray(size, dtype=np.int64).astype(np.uint64)
    upper, lower = words >> _SHIFT, words & _LOW
    size_upper, size_lower = sizes >> _SHIFT, sizes & _LOW
    middle = upper * size_lower + ((lower * size_lower) >> _SHIFT)
    carried = (lower * size_upper + (middle & _LOW)) >> _SHIFT
    return (upper * size_upper + (middle >> _SHIFT) + carried).astype(np.int64)


def distinct(
    sizes: Ints,
    counts: Ints,
    seeds: Ints,
    groups: Ints,
    *,
    purpose: str,
    layer: int = 0,
    step: int = 0,
) -> tuple[Ints, Ints]:
    """For every pair g, `counts[g]` different numbers below `sizes[g]`, all sets equally likely.

    All arguments are int64 `[pairs]`; 0 ≤ counts ≤ sizes. Returns (pair, number), both int64 `[Σ counts]`,
    ordered by pair and then number. The numbers are the first `counts[g]` different ones of the sequence
    floor(word · size / 2⁶⁴); where more than half of all are asked for, those left out are chosen so.

    >>> pair, number = distinct(*map(np.array, ([10, 4], [3, 4], [0, 0], [0, 1])), purpose="initial")
    >>> pair.tolist(), number.tolist()[3:]
    ([0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3])
    """
    sizes, counts, seeds, groups = (np.asarray(a, dtype=np.int64) for a in (sizes, counts, seeds, groups))
    if np.any(counts < 0) or np.any(counts > sizes):
        raise ValueError("cannot choose more different numbers than there are")
    _check_memory(int(counts.sum()), int(counts.sum()))
    left_out = 2 * counts > sizes
    wanted = np.where(left_out, sizes - counts, counts)
    pair, number = _first_distinct(sizes, wanted, seeds, groups, purpose, layer, step)
    if not left_out.any():
        return pair, number
    # Complement, for the pairs that asked for more than half.
    inverted = left_out[pair]
    kept_pair, kept_number = pair[~inverted], number[~inverted]
    mark = np.ones(int(sizes[left_out].sum()), dtype=bool)
    start = np.cumsum(np.where(left_out, sizes, 0)) - np.where(left_out, sizes, 0)
    mark[start[pair[inverted]] + number[inverted]] = False
    place = np.flatnonzero(mark)
    owner = np.repeat(np.flatnonzero(left_out), counts[left_out])
    pair = np.concatenate([kept_pair, owner])
    number = np.concatenate([kept_number, place - start[owner]])
    order = np.argsort(pair, kind="stable")
    return pair[order], number[order]


def _check_memory(connections: int, draws: int) -> None:
    """MemoryError if what so many draws need, all together, is more than there is."""
    check_free_memory(
        f"drawing {connections:,} connections",
        _BYTES_PER_DRAW * draws,
        "a lower density, or fewer in_features, out_features or n_models, needs less",
    )


def _first_distinct(
    sizes: Ints, counts: Ints, seeds: Ints, groups: Ints, purpose: str, layer: int, step: int
) -> tuple[Ints, Ints]:
    """The first `counts` different numbers of each pair's sequence, as `distinct` returns them."""
    active = np.flatnonzero(counts > 0)
    if len(active) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    size, count = sizes[active], counts[active]
    # How many draws find `count` different ones: n ln(n / (n − c)) on average; some more for chance.
    average = size * -np.log1p(-count / (size + 1.0))
    draws = math.ceil(float((average + 4.0 * np.sqrt(average) + 4.0).max()))
    while True:
        _check_memory(int(counts.sum()), len(active) * draws)
        words = words64(seeds[active], groups[active], draws, purpose=purpose, layer=layer, step=step)
        number = scaled(words, size[:, None])
        first = _is_first(number, int(size.max()))
        taken = first & (np.cumsum(first, axis=1) <= count[:, None])
        if bool((taken.sum(axis=1) == count).all()):
            break
        draws *= 2  # a longer prefix of the same sequence
    row, column = np.nonzero(taken)
    number = number[row, column]
    order = np.lexsort((number, row)) if len(row) else row
    return active[row[order]], number[order]


def _is_first(number: Ints, size: int) -> NDArray[np.bool_]:
    """Where an entry of `number` `[pairs, draws]` is the first of its value in its row."""
    rows, draws = number.shape
    first = np.zeros(rows * draws, dtype=bool)
    key = (np.arange(rows, dtype=np.int64)[:, None] * size + number).reshape(-1)
    bits = (rows * draws - 1).bit_length()
    if (rows * size - 1).bit_length() + bits < 63:  # key and place in one word: a plain sort
        packed = np.sort((key << np.int64(bits)) | np.arange(rows * draws, dtype=np.int64))
        place, key = packed & np.int64((1 << bits) - 1), packed >> np.int64(bits)
    else:
        place = np.argsort(key, kind="stable")
        key = key[place]
    new = np.ones(len(key), dtype=bool)
    new[1:] = key[1:] != key[:-1]
    first[place[new]] = True
    return first.reshape(rows, draws)


def free_numbers(pair: Ints, rank: Ints, taken_pair: Ints, taken: Ints, n_pairs: int) -> Ints:
    """The `rank`-th number of its pair that is not among those `taken`: int64, the shape of `rank`.

    `taken` is ascending and without repeats within each pair, and `taken_pair` ascending.

    >>> zeros = np.zeros(3, dtype=np.int64)
    >>> free_numbers(zeros, np.array([0, 1, 2]), zeros[:2], np.array([0, 2]), 1).tolist()
    [1, 3, 4]
    """
    if len(taken) == 0 or len(rank) == 0:
        return rank
    start = np.searchsorted(taken_pair, np.arange(n_pairs))
    # With the i-th taken number of a pair less i, all taken numbers at or before a free one of rank r are
    # those that do not exceed r.
    below = taken - (np.arange(len(taken)) - start[taken_pair])
    width = int(max(below.max(), rank.max())) + 1
    before = np.searchsorted(taken_pair * width + below, pair * width + rank, side="right") - start[pair]
    return rank + before
