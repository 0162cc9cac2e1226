"""Which of equal scores are chosen where not all can be: those with the smallest random words.

The words are a pure function of a seed, the number of the update and the entry's place in its model
(docs/data_stream.md §9), so the choice is the same on every device, on every rank, for any number of threads,
and whether the model stands alone or in a stack. They are drawn for entries at the edge of a choice alone:
where scores differ there, they decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from toykern.native.address import address

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

NativeTies = tuple[int, int, int, int, int]
"""What the kernels take: (address of the seeds or 0, size, first, tag, step)."""

BY_INDEX: NativeTies = (0, 1, 0, 0, 0)
"""Of equal scores the first ones."""


@dataclass(frozen=True)
class Ties:
    """The random words of the entries of several models.

    Args:
        seeds: int64 CPU `[n_models]`.
        size: entries of each model: entry i of all is entry i % size of model i // size.
        tag, step: the fourth and the third counter word.
        first: which of all entries the first one given is.

    >>> ties = Ties(torch.tensor([3, 4]), size=10, tag=121, step=1)
    >>> bool((ties.words(torch.arange(20)) >= 0).all())
    True
    """

    seeds: torch.Tensor
    size: int
    tag: int
    step: int
    first: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", self.seeds.to("cpu", torch.int64).contiguous())

    def from_entry(self, first: int) -> Ties:
        """The same for entries that begin with another one."""
        return replace(self, first=first)

    def native(self, entries: int) -> NativeTies:
        """For the kernels; ValueError where there are more entries than models have."""
        if self.first + entries > len(self.seeds) * self.size:
            raise ValueError(
                f"ties are of {len(self.seeds)} x {self.size} entries, fewer than {self.first + entries}"
            )
        return address("seeds", self.seeds, torch.int64), max(1, self.size), self.first, self.tag, self.step

    def words(self, entry: torch.Tensor) -> torch.Tensor:
        """The words of entries (int64, any shape), less their lowest bit: int64 ≥ 0, where `entry` is.

        Philox 4×32-10 in int64 arithmetic, whose products wrap to the right bits.
        """
        entry = entry + self.first
        seed = self.seeds.to(entry.device)[entry // self.size]
        place = entry % self.size
        within = place & _LOW
        c0, c1 = ((within >> 5) << 4) | (within & 15), place >> 32
        c2, c3 = torch.full_like(entry, self.step), torch.full_like(entry, self.tag)
        k0, k1 = seed & _LOW, (seed >> 32) & _LOW
        for _ in range(_ROUNDS):
            product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
            c0, c1 = ((product1 >> 32) & _LOW) ^ c1 ^ k0, product1 & _LOW
            c2, c3 = ((product0 >> 32) & _LOW) ^ c3 ^ k1, product0 & _LOW
            k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
        odd = ((within >> 4) & 1).bool()
        upper, lower = torch.where(odd, c2, c0), torch.where(odd, c3, c1)
        return (upper << 31) | (lower >> 1)


def first_of_ties(group: torch.Tensor, word: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The `counts[g]` entries of smallest word of every group g, of equal words the first: bool `[n]`.

    `group` and `word` are int64 `[n]`; `counts` int64, one for each group.

    >>> first_of_ties(torch.tensor([0, 1, 0]), torch.tensor([5, 7, 2]), torch.tensor([1, 1])).tolist()
    [False, True, True]
    """
    by_word = torch.sort(word, stable=True).indices
    order = by_word[torch.sort(group[by_word], stable=True).indices]
    sizes = torch.bincount(group, minlength=len(counts))
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(group), dtype=torch.int64, device=group.device) - start[group[order]]
    chosen = torch.zeros_like(group, dtype=torch.bool)
    chosen[order] = rank < counts.to(group.device)[group[order]]
    return chosen
