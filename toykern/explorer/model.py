"""One model of a sweep: how its features lie, its loss curve, and the lines of Python that bring it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from toykern import metrics
from toykern.results.store_format import StoreError
from toykern.results.stored import Stored

# Of settings: as fit takes them.
_PLAIN = ("steps", "batch_size", "record_every", "target", "loss_reduction", "loss")


class Read(Stored, Protocol):
    """A sweep, as far as one model of it is read."""

    @property
    def result_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one model's results, by name."""

    def read_at(self, name: str, key: Any) -> np.ndarray:
        """The numbers at a key; NaN or the lowest where there are none yet."""


@dataclass(frozen=True)
class Details:
    """All of one model.

    Attributes:
        number: flat, in the whole grid.
        point: its values along the axes, by name.
        weight: `[hidden, feature]`, or None where there is none.
        bias: `[feature]`, or None.
        importance: `[feature]`, or None.
        loss: of each record, with the steps at which they end.
        steps: of the records.
        diverged_at: the step at which it stopped being finite, −1 if it did not.
        results: single numbers that were stored with it, by name.
        snippet: Python that loads it, and that trains it again.
    """

    number: int
    point: dict[str, float]
    weight: np.ndarray | None
    bias: np.ndarray | None
    importance: np.ndarray | None
    loss: np.ndarray
    steps: np.ndarray
    diverged_at: int
    results: dict[str, float]
    snippet: str

    @property
    def gram(self) -> np.ndarray:
        """WᵀW, `[feature, feature]`."""
        return self._tensor.mT.matmul(self._tensor).numpy()

    @property
    def norm(self) -> np.ndarray:
        """Of each feature."""
        return self._tensor.norm(dim=0).numpy()

    @property
    def dimensionality(self) -> np.ndarray:
        """Of each feature."""
        return metrics.feature_dimensionality(self._tensor).numpy()

    @property
    def plane(self) -> tuple[np.ndarray, bool]:
        """The features' columns in at most three dimensions, `[3, feature]`, 0 where there are fewer; and
        whether these are the first three principal ones of more."""
        found, hidden = np.zeros((3, self._tensor.shape[1])), self._tensor.shape[0]
        if hidden <= 3:
            found[:hidden] = self._tensor.numpy()
            return found, False
        _, lengths, right = np.linalg.svd(self._tensor.numpy(), full_matrices=False)
        most = min(3, len(lengths))
        found[:most] = lengths[:most, None] * right[:most]
        return found, True

    @property
    def _tensor(self) -> torch.Tensor:
        assert self.weight is not None
        return torch.from_numpy(np.ascontiguousarray(self.weight)).double()


def details_of(sweep: Read, number: int) -> Details:
    """All of the model with a flat number in the whole grid.

    Raises:
        StoreError: it is not finished yet, or damaged.
        IndexError: there is no such model.
    """
    grid, shapes = sweep.grid, sweep.result_shapes
    if not 0 <= number < grid.n_models:
        raise IndexError(f"number must be from 0 to {grid.n_models - 1}, not {number}")
    place = tuple(int(at) for at in np.unravel_index(number, grid.shape))

    def read(name: str) -> np.ndarray | None:
        if name not in shapes:
            return None
        return sweep.read_at(name, [*place, *(slice(None) for _ in shapes[name])])

    loss, diverged = read("loss"), read("diverged_at")
    assert loss is not None and diverged is not None
    if int(diverged) < -1:  # the value that stands for none
        raise StoreError(f"model {number} of {sweep.path} is not finished")
    weight = read("weight") if "weight" in shapes else read("encoder")
    results = {
        name: float(value)
        for name, shape in shapes.items()
        if shape == () and "/" not in name and name != "diverged_at" and (value := read(name)) is not None
    }
    every = int(sweep.attributes["settings"].get("record_every") or 1)
    ends = np.minimum(every * np.arange(1, len(loss) + 1), int(sweep.attributes["settings"]["steps"]))
    point = {name: values[at].item() for (name, values), at in zip(grid.coords.items(), place, strict=True)}
    return Details(
        number, point, weight, read("bias"), read("inputs/importance"), loss, ends, int(diverged),
        results,
        snippet_of(sweep, number, place),
    )  # fmt: skip


def snippet_of(sweep: Read, number: int, place: tuple[int, ...]) -> str:
    """Lines of Python that load one model, and that train it again with the plan of the sweep."""
    grid, settings = sweep.grid, sweep.attributes["settings"]
    chosen = ", ".join(f"{name}={at}" for name, at in zip(grid.dims, place, strict=True))
    values = ", ".join(
        f"{name} {grid.coords[name][at]:.6g}" for name, at in zip(grid.dims, place, strict=True)
    )
    axes = ", ".join(f"{name}=axes[{name!r}][[{at}]]" for name, at in zip(grid.dims, place, strict=True))
    plain = ", ".join(f"{name}={settings[name]!r}" for name in _PLAIN if name in settings)
    return "\n".join(
        [
            "import toykern as tk",
            "import torch",
            "",
            f"sweep = tk.open_sweep({str(sweep.path)!r})",
            f"model = sweep.to_xarray().isel({chosen})  # {values}",
            "",
            "# the same model again, by itself; `plan` is that of the sweep, and what else its call was",
            "# given, such as optimizer=, belongs to fit too",
            "axes = sweep.grid.axes",
            f"point = tk.grid({axes})",
            f"index = torch.tensor([{number}])",
            'arguments = {"seed": index, **plan(point, index)}',
            f"run = tk.fit(**arguments, {plain})",
        ]
    )
