"""Which part of a sweep a process has where several work at it, such as the tasks of a job array."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toykern.arguments.errors import check_int, describe

_MOST = 2**31 - 1


@dataclass(frozen=True)
class Share:
    """Number `i` of `n` shares, from 0; `origin` says where that comes from, "" where it is the whole.

    >>> Share(1, 3).own(7)
    [1, 4]
    """

    i: int
    n: int
    origin: str = ""

    def own(self, chunks: int) -> list[int]:
        """The numbers of its chunks, spread evenly: no two shares have one in common."""
        return list(range(self.i, chunks, self.n))

    def order(self, chunks: int) -> list[int]:
        """All chunks as this share takes them: its own, then those of the next share, and so on.

        Each of the others is gone through from its end, where its own process comes last.
        """
        others = [range(i % self.n, chunks, self.n)[::-1] for i in range(self.i + 1, self.i + self.n)]
        return [*self.own(chunks), *(number for share in others for number in share)]

    def __str__(self) -> str:
        return f"share {self.i} of {self.n} ({self.origin})" if self.n > 1 else "the whole"


def share_of(given: Any, environment: Mapping[str, str] | None = None) -> Share:
    """The share that is `given`, (i, n); for None that of the environment.

    A task of a SLURM job array has the share of its place in the array (`SLURM_ARRAY_TASK_ID` with `…_MIN`,
    `…_STEP` and `…_COUNT`); a rank, as torchrun starts them, that of its number (`RANK` of `WORLD_SIZE`); a
    rank in a task of an array that of both. Where there is none of them: the whole.

    >>> share_of(None, {"RANK": "3", "WORLD_SIZE": "8"})
    Share(i=3, n=8, origin='RANK=3')

    Raises:
        TypeError, ValueError: it is no share, or the environment's variables make none.
    """
    if given is not None:
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise TypeError(f"share must be (i, n), share i of n counted from 0, not {describe(given)}")
        n = check_int("share[1]", given[1], minimum=1, maximum=_MOST)
        return Share(check_int("share[0]", given[0], minimum=0, maximum=n - 1), n, "given")
    found = os.environ if environment is None else environment
    task, tasks, from_task = _array_task(found)
    rank, ranks, from_rank = _rank(found)
    return Share(task * ranks + rank, tasks * ranks, ", ".join(filter(None, (from_task, from_rank))))


def _array_task(found: Mapping[str, str]) -> tuple[int, int, str]:
    if "SLURM_ARRAY_TASK_ID" not in found or "SLURM_ARRAY_TASK_COUNT" not in found:
        return 0, 1, ""
    number, count = _number(found, "SLURM_ARRAY_TASK_ID"), _number(found, "SLURM_ARRAY_TASK_COUNT", 1)
    first = _number(found, "SLURM_ARRAY_TASK_MIN") if "SLURM_ARRAY_TASK_MIN" in found else 0
    step = _number(found, "SLURM_ARRAY_TASK_STEP", 1) if "SLURM_ARRAY_TASK_STEP" in found else 1
    # An array of scattered numbers (--array=3,7,9) has some share twice: claims divide it.
    return (number - first) // step % count, count, f"SLURM_ARRAY_TASK_ID={number}"


def _rank(found: Mapping[str, str]) -> tuple[int, int, str]:
    if "RANK" not in found or "WORLD_SIZE" not in found:
        return 0, 1, ""
    rank, size = _number(found, "RANK"), _number(found, "WORLD_SIZE", 1)
    if rank >= size:
        raise ValueError(f"the environment has RANK={rank} of WORLD_SIZE={size}: give share=(i, n)")
    return rank, size, f"RANK={rank}"


def _number(found: Mapping[str, str], name: str, minimum: int = 0) -> int:
    text = found[name].strip()
    if not (text.isdecimal() and text.isascii() and minimum <= int(text[:12]) <= _MOST):
        raise ValueError(
            f"the environment's {name}={found[name]!r:.40} is no number from {minimum}: give share=(i, n)"
        )
    return int(text)


def unfinished(share: Share, finished: np.ndarray) -> list[int]:
    """What is left to do, as this share takes it."""
    return [number for number in share.order(len(finished)) if not finished[number]]
