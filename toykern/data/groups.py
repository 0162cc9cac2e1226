"""Groups of features that share a gate, and the units of all features (docs/data_stream.md §2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from toykern.arguments.errors import check_int, describe

GROUP_SLACK = 1e-6  # an exclusive group's probabilities may exceed 1 by rounding
_SINGLE, _CORRELATED, EXCLUSIVE = 0, 1, 2


class _Group:
    """Features that share a gate; `members` is sorted and not empty."""

    kind: int

    def __init__(self, members: Iterable[int]) -> None:
        name = type(self).__name__
        if isinstance(members, str | bytes) or not isinstance(members, Iterable):
            raise TypeError(f"members must be the numbers of the features in {name}, not {describe(members)}")
        if isinstance(members, torch.Tensor) and (members.ndim == 0 or members.device.type == "meta"):
            raise TypeError(f"members must be the numbers of the features in {name}, not {describe(members)}")
        given = members.tolist() if isinstance(members, torch.Tensor) and members.ndim == 1 else members
        found = [check_int(f"each of the members of {name}", member, minimum=0) for member in given]
        if not found or len(set(found)) != len(found):
            raise ValueError(
                f"members of {name} must be one feature or several different ones, not {tuple(found)}"
            )
        self.members = tuple(sorted(found))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Group) and type(self) is type(other) and self.members == other.members

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.members))


class Correlated(_Group):
    """Features that are active together or not at all, each with a magnitude of its own.

    They share one gate, so their probabilities must be equal.

    >>> Correlated((0, 1))
    Correlated((0, 1))
    """

    kind = _CORRELATED


class Anticorrelated(_Group):
    """Features of which at most one is active in a sample; their probabilities add up to 1 at most.

    >>> Anticorrelated(range(3))
    Anticorrelated((0, 1, 2))
    """

    kind = EXCLUSIVE


@dataclass(frozen=True)
class Units:
    """The units of docs/data_stream.md §2, as arrays for the kernels."""

    start: np.ndarray  # int64 [units + 1]
    member: np.ndarray  # uint32 [n_features]
    kind: np.ndarray  # uint8 [units]


Group: TypeAlias = Correlated | Anticorrelated


def check_groups(groups: Any, n_features: int) -> tuple[Group, ...]:
    """`groups` as a tuple; TypeError or ValueError for what is none, overlaps and missing features."""
    if isinstance(groups, _Group) or not isinstance(groups, Iterable):
        raise TypeError(f"groups must be a sequence of Correlated and Anticorrelated, not {describe(groups)}")
    found = tuple(groups)
    owner: dict[int, Any] = {}
    for group in found:
        if not isinstance(group, Correlated | Anticorrelated):
            raise TypeError(f"groups must hold Correlated and Anticorrelated, not {describe(group)}")
        if group.members[-1] >= n_features:
            raise ValueError(f"groups: {group} has a feature beyond the last one, {n_features - 1}")
        for member in group.members:
            if member in owner:
                raise ValueError(f"groups: feature {member} is in both {owner[member]} and {group}")
            owner[member] = group
    return found


def make_units(n_features: int, groups: tuple[Group, ...]) -> Units:
    """Single features and groups by their smallest feature."""
    if not groups:
        return Units(
            np.arange(n_features + 1, dtype=np.int64),
            np.arange(n_features, dtype=np.uint32),
            np.zeros(n_features, dtype=np.uint8),
        )
    grouped = {member for group in groups for member in group.members}
    units: list[tuple[tuple[int, ...], int]] = [(group.members, group.kind) for group in groups]
    units += [((j,), _SINGLE) for j in range(n_features) if j not in grouped]
    units.sort()
    sizes = [len(members) for members, _ in units]
    return Units(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([members for members, _ in units]).astype(np.uint32),
        np.array([kind for _, kind in units], dtype=np.uint8),
    )


def check_probabilities(groups: tuple[Group, ...], probability: torch.Tensor) -> None:
    """ValueError for probabilities `[1 or models, n_features]` that a group cannot have."""
    for group in groups:
        p = probability[:, list(group.members)]
        if isinstance(group, Correlated) and bool((p != p[:, :1]).any()):
            raise ValueError(
                f"probability must be the same for all features of {group}, which share one gate"
            )
        if isinstance(group, Anticorrelated):
            total = p.cumsum(dim=1)[:, -1]
            if bool((total > 1.0 + GROUP_SLACK).any()):
                model = int(total.argmax())
                raise ValueError(
                    f"probability of {group} adds up to {float(total[model]):.6g} (model {model}); "
                    "at most one of them is active in a sample, so the sum must be at most 1"
                )
