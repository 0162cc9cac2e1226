"""The record of a recipe's updates: small, and of bounded length however long the training is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from toykern.sparse.report import LayerReport, Update

HISTORY_LIMIT = 1000
"""How many updates are remembered at most."""

_COUNTS = ("dropped", "grown", "connections", "active_neurons", "active_inputs", "explored")


@dataclass(frozen=True)
class _Kept:
    """An update as it is kept: `counts` by layer, int32 or int64 `[6, n_models]`; −1: not tracked."""

    step: int
    number: int
    drop_fraction: float | None
    rewound_to: int | None
    skipped: tuple[int, ...]
    counts: dict[str, np.ndarray]


def _same(a: Update, b: Update) -> bool:
    """Whether two updates say the same."""
    if a is b:
        return True
    if any(getattr(a, name) != getattr(b, name) for name in vars(a) if name != "layers"):
        return False
    return a.layers.keys() == b.layers.keys() and all(
        _equal(part, getattr(b.layers[layer], name))
        for layer, report in a.layers.items()
        for name, part in vars(report).items()
    )


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return torch.equal(a, b) if a is not None and b is not None else a is b


class History(Sequence[Update]):
    """The updates in order, at most `limit` of them: all as long as they fit, then every second one, every
    fourth and so on, with the first and the newest always among them.

    An update is kept as six integers for each model and layer, some tens of bytes; an `Update` is made of it
    where it is looked at. So `history[i].number` is not i + 1 once updates were left out.

    Args:
        positions: in · out of every layer, by name.
        limit: at least 2.

    >>> history = History({}, limit=4)
    >>> for number in range(1, 12):
    ...     history.append(Update(10 * number, number, 0.3, {}))
    >>> [update.number for update in history]
    [1, 5, 9, 11]
    """

    def __init__(self, positions: Mapping[str, int], limit: int = HISTORY_LIMIT) -> None:
        self._positions = dict(positions)
        self._limit = limit
        self._stride = 1
        self._kept: list[_Kept] = []
        self._newest: Update | None = None  # as it was given, for the usual question

    def append(self, update: Update) -> None:
        """One more, the newest."""
        counts = {name: self._counts(name, report) for name, report in update.layers.items()}
        self._push(
            _Kept(update.step, update.number, update.drop_fraction, update.rewound_to, update.skipped, counts)
        )
        self._newest = update

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> list[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | list[Update]:
        if isinstance(index, slice):
            return [self._update(kept) for kept in self._kept[index]]
        kept = self._kept[index]
        return self._newest if kept is self._kept[-1] and self._newest is not None else self._update(kept)

    def __iter__(self) -> Iterator[Update]:
        return map(self._update, self._kept)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or not all(isinstance(update, Update) for update in other):
            return NotImplemented
        if len(other) != len(self):
            return False
        return all(_same(ours, theirs) for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"

    def state(self) -> dict[str, Any]:
        """As plain numbers, lists and one int tensor `[updates, 6, n_models]` for each layer."""
        return {
            "stride": self._stride,
            "updates": [
                {
                    "step": kept.step,
                    "number": kept.number,
                    "drop_fraction": kept.drop_fraction,
                    "rewound_to": kept.rewound_to,
                    "skipped": list(kept.skipped),
                }
                for kept in self._kept
            ],
            "layers": {
                name: torch.from_numpy(np.stack([kept.counts[name] for kept in self._kept]))
                for name in (self._positions if self._kept else ())
            },
        }

    def load(self, state: Any) -> History:
        """A history of the same layers with what `state()` gave, or a list of `Update.state()`.

        ValueError where it is neither, or of other layers.
        """
        made = History(self._positions, self._limit)
        try:
            if isinstance(state, list):  # of checkpoints from before
                for update in state:
                    made.append(Update.from_state(update))
                return made
            made._stride = int(state["stride"])
            arrays = {name: tensor.cpu().numpy() for name, tensor in state["layers"].items()}
            for i, update in enumerate(state["updates"]):
                counts = {name: arrays[name][i].copy() for name in self._positions}
                if any(part.ndim != 2 or len(part) != len(_COUNTS) for part in counts.values()):
                    raise ValueError(f"{len(_COUNTS)} counts for each model are needed")
                made._push(_Kept(**{**update, "skipped": tuple(update["skipped"])}, counts=counts))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"state's history is not one of these layers ({type(error).__name__}: {error})"
            ) from None
        return made

    def _push(self, kept: _Kept) -> None:
        if self._kept and (self._kept[-1].number - 1) % self._stride:
            self._kept.pop()  # it was there as the newest
        self._kept.append(kept)
        while len(self._kept) > self._limit:
            self._stride *= 2
            older = [one for one in self._kept[:-1] if (one.number - 1) % self._stride == 0]
            self._kept = [*older, self._kept[-1]]

    def _counts(self, name: str, report: LayerReport) -> np.ndarray:
        positions = self._positions[name]
        rows = [getattr(report, quantity) for quantity in _COUNTS[:-1]]
        if report.explored is None:
            rows.append(torch.full_like(report.connections, -1))
        else:  # exact: a quotient of whole numbers below 2⁵³
            rows.append((report.explored.double() * positions).round().long())
        dtype = np.int32 if positions < 2**31 else np.int64
        return torch.stack([row.cpu() for row in rows]).numpy().astype(dtype)

    def _update(self, kept: _Kept) -> Update:
        layers = {}
        for name, counts in kept.counts.items():
            numbers = torch.from_numpy(counts.astype(np.int64))
            whole = dict(zip(_COUNTS, numbers, strict=True))
            share = whole.pop("explored").double() / self._positions[name]
            layers[name] = LayerReport(
                **whole,
                density=whole["connections"].double() / self._positions[name],
                explored=None if bool((share < 0).any()) else share,
            )
        return Update(kept.step, kept.number, kept.drop_fraction, layers, kept.rewound_to, kept.skipped)
