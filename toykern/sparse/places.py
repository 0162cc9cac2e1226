"""Where connections are in a stack of matrices: their places, the keys that order them, and draws at random.

A place is (model, row, column). Its key is (model · out_features + row) · in_features + column, so that keys
ascend in the order in which a `Topology` keeps its connections.
"""

from __future__ import annotations

import numpy as np
import torch

from toykern.arguments.broadcast import Values, broadcast_per_model, broadcast_seed
from toykern.arguments.errors import check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.sparse.draws import distinct, free_numbers

Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Connections by name: (model, row, column), each int64 `[connections]`."""


class MatrixStack:
    """The checked shape of `n_models` matrices `[out_features, in_features]`; ValueError says what is off."""

    def __init__(self, in_features: int, out_features: int, n_models: int) -> None:
        self.in_features = check_int("in_features", in_features, minimum=1, maximum=2**31 - 1)
        self.out_features = check_int("out_features", out_features, minimum=1, maximum=2**31 - 1)
        self.n_models = check_size("n_models", n_models)
        self.positions = self.in_features * self.out_features
        if self.positions * self.n_models >= 2**62:
            raise ValueError("in_features · out_features · n_models must be below 2⁶²")
        check_free_memory(
            f"the rows of n_models={self.n_models:,}, out_features={self.out_features:,}",
            8 * self.n_models * (self.out_features + 1),
            "take fewer",
        )

    @classmethod
    def of(cls, name: str, dense: torch.Tensor) -> tuple[MatrixStack, torch.Tensor]:
        """The shape of a dense `[out, in]` or `[n_models, out, in]`, and the tensor as the latter."""
        stacked = dense.unsqueeze(0) if dense.ndim == 2 else dense
        if stacked.ndim != 3 or 0 in stacked.shape:
            raise ValueError(
                f"{name} must have the shape [out_features, in_features] or [n_models, out_features, "
                f"in_features], none of them 0, not {list(dense.shape)}"
            )
        return cls(stacked.shape[2], stacked.shape[1], stacked.shape[0]), stacked

    def counts_at(self, name: str, density: Values) -> np.ndarray:
        """round(density · positions) for each model, int64; ValueError outside (0, 1] and where it is 0."""
        densities = broadcast_per_model(name, density, self.n_models, torch.float64).numpy()
        if ((densities <= 0) | (densities > 1)).any():
            raise ValueError(f"{name} must be above 0 and at most 1, not {describe(density)}")
        counts = np.floor(densities * self.positions + 0.5).astype(np.int64)
        if (counts == 0).any():
            raise ValueError(
                f"{name} {densities[counts == 0][0]:.6g} leaves no connection in a layer of "
                f"{self.in_features} × {self.out_features}; the least is {1 / self.positions:.6g}"
            )
        return counts

    def random_keys(
        self, density: Values, seed: Values | None, layer: int, minimum_fan_in: int
    ) -> torch.Tensor:
        """Keys of round(density · positions) places of each model, ascending, int64.

        Every row first gets `minimum_fan_in`, at random; the rest fall anywhere else. ValueError where they
        are not enough for that.
        """
        counts = self.counts_at("density", density)
        minimum = check_int("minimum_fan_in", minimum_fan_in, minimum=0, maximum=self.in_features)
        if (counts < minimum * self.out_features).any():
            least = int(counts.min())
            raise ValueError(
                f"density leaves {least} connections, not enough for minimum_fan_in={minimum} on each "
                f"of {self.out_features} outputs; the least density is {minimum / self.in_features:.6g}"
            )
        seeds, layer = self._seeds(seed), _checked_layer(layer)
        taken_model = taken = np.empty(0, np.int64)
        if minimum:
            row, column = self._in_rows(np.full(self.n_models, minimum), seeds, "minimum", layer)
            taken_model, taken = row // self.out_features, row * self.in_features + column
            taken = taken - taken_model * self.positions
        models = np.arange(self.n_models)
        used = np.full(self.n_models, minimum * self.out_features)
        model, rank = distinct(
            self.positions - used,
            counts - used,
            seeds,
            np.zeros_like(models),
            purpose="initial",
            layer=layer,
        )
        place = free_numbers(model, rank, taken_model, taken, self.n_models)
        key = np.concatenate([model * self.positions + place, taken_model * self.positions + taken])
        return torch.from_numpy(np.sort(key))

    def random_keys_in_rows(self, fan_in: Values, seed: Values | None, layer: int) -> torch.Tensor:
        """Keys of `fan_in` places in every row, one or `[n_models]`, ascending, int64."""
        counts = broadcast_per_model("fan_in", fan_in, self.n_models, torch.int64).numpy()
        if ((counts < 1) | (counts > self.in_features)).any():
            raise ValueError(
                f"fan_in must be from 1 to in_features ({self.in_features}), not {describe(fan_in)}"
            )
        row, column = self._in_rows(counts, self._seeds(seed), "initial", _checked_layer(layer))
        return torch.from_numpy(row * self.in_features + column)

    def _seeds(self, seed: Values | None) -> np.ndarray:
        return broadcast_seed("seed", seed, self.n_models).numpy()

    def _in_rows(
        self, counts: np.ndarray, seeds: np.ndarray, purpose: str, layer: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`counts[model]` columns at random for every row: (model · out + row, column), ascending."""
        rows = self.n_models * self.out_features
        return distinct(
            np.full(rows, self.in_features),
            np.repeat(counts, self.out_features),
            np.repeat(seeds, self.out_features),
            np.tile(np.arange(self.out_features), self.n_models),
            purpose=purpose,
            layer=layer,
        )


def _checked_layer(layer: int) -> int:
    return check_int("layer", layer, minimum=0, maximum=2**24 - 1)


def name_of(key: int, in_features: int, out_features: int) -> str:
    """The place of a key in the words of an error."""
    row, column = divmod(key, in_features)
    return f"(model {row // out_features}, row {row % out_features}, column {column})"


def keys_of_growth(
    grow: Places, n_models: int, out_features: int, in_features: int, device: torch.device
) -> torch.Tensor:
    """The keys of `grow`, ascending, on `device`; ValueError if a place is out of range or named twice."""
    if (
        not isinstance(grow, tuple)
        or len(grow) != 3
        or not all(isinstance(part, torch.Tensor) for part in grow)
        or len({tuple(part.shape) for part in grow}) != 1
    ):
        raise ValueError(
            "grow must be a tuple (model, row, column) of int64 tensors of the same length, "
            f"not {describe(grow)}"
        )
    limits = (n_models, out_features, in_features)
    for name, part, limit in zip(("model", "row", "column"), grow, limits, strict=True):
        if part.dtype != torch.int64 or part.ndim != 1:
            raise TypeError(f"grow: {name} must be an int64 tensor of shape [grown], not {describe(part)}")
        if len(part) and (int(part.min()) < 0 or int(part.max()) >= limit):
            bad = int(part[(part < 0) | (part >= limit)][0])
            raise ValueError(f"grow: {name} must be from 0 to {limit - 1}, not {bad}")
    model, row, column = (part.to(device) for part in grow)
    key = (model * out_features + row) * in_features + column
    if bool((key[1:] < key[:-1]).any()):
        key = torch.sort(key).values
    if len(key) > 1 and bool((key[1:] == key[:-1]).any()):
        twice = int(key[1:][key[1:] == key[:-1]][0])
        raise ValueError(f"grow names {name_of(twice, in_features, out_features)} more than once")
    return key
