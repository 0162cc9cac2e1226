"""Finite datasets: samples that every step of a training sees again, in place of a stream of fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from toykern import _native
from toykern.arguments.broadcast import broadcast_seed
from toykern.arguments.errors import check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset_checks import (
    MAX_OUTPUTS,
    MAX_ROWS,
    check_entries,
    check_labels,
    check_rows,
    check_samples,
    common_models,
    refuse_label,
)
from toykern.data.philox import MAX_STEP
from toykern.data.shuffle import shuffled_rows
from toykern.data.sparse_batch import SparseBatch
from toykern.native.address import address

_ARRAYS = {
    "input": torch.float32,
    "row_start": torch.int64,
    "feature": torch.int32,
    "value": torch.float32,
    "target": torch.float32,
    "label": torch.int32,
    "samples": torch.int64,
}
"""What a dataset may have, by the kernels' names, in the order of runs and stores."""


class Dataset:
    """T samples for each model, shared by all models or of each model's own.

    Args:
        inputs: `[T, n_features]` (shared) or `[models, T, n_features]`; a tensor, an array, or whatever
            `torch.from_dlpack` takes. Or a `SparseBatch` of one model (shared) or of `models`, whose
            entries are kept as they are: for rare features far less memory and time. Finite; float32.
        targets: what the models are to give for them, `[T, n_outputs]` or `[models, T, n_outputs]`, finite;
            float32. None means the inputs, or the labels where there are some. `fit(target="abs")` takes the
            magnitude of targets or inputs.
        labels: in place of targets the number of one output for each sample, `[T]` or `[models, T]`,
            integers from 0 to n_outputs − 1: the target is 1 there and 0 elsewhere. How many outputs there
            are, the model says: `fit` and `evaluate` compare.
        samples: how many of the T samples a model has, the first ones, `[models]` from 1 to T; None means
            all.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.

    Inputs and targets are copied if they are not float32 on the CPU and contiguous; else they are the
    dataset's memory. Labels are kept as int32.

    Example:
        >>> data = Dataset(torch.eye(4))
        >>> data
        Dataset(4 samples of n_features=4, shared by all models)
        >>> data.batch(step=0, batch_size=2, seed=0, n_models=1)[0].shape
        torch.Size([1, 2, 4])
        >>> Dataset(torch.eye(4), labels=[0, 1, 0, 1])
        Dataset(4 samples of n_features=4, with labels, shared by all models)
    """

    def __init__(self, inputs: Any, targets: Any = None, *, labels: Any = None, samples: Any = None) -> None:
        self.input: torch.Tensor | None = None
        self.entries: SparseBatch | None = None
        if isinstance(inputs, SparseBatch):
            self.entries = check_entries(inputs)
            models, self.rows, self.n_features = inputs.shape
        else:
            self.input = check_rows("inputs", inputs, "n_features")
            models, self.rows, self.n_features = self.input.shape
        if not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(f"inputs must hold from 1 to {MAX_ROWS} samples, not {self.rows}")
        if targets is not None and labels is not None:
            raise ValueError("labels cannot be given together with targets, whose place they take")
        self.target = None if targets is None else check_rows("targets", targets, "n_outputs")
        if self.target is not None and (
            self.target.shape[1] != self.rows or self.target.shape[2] > MAX_OUTPUTS
        ):
            raise ValueError(
                f"targets must have a row for each of the {self.rows} samples of inputs, [{self.rows}, "
                f"n_outputs] or [models, {self.rows}, n_outputs] with n_outputs at most 2^24, not "
                f"{describe(targets)}"
            )
        self.label = None if labels is None else check_labels(labels, self.rows)
        self.samples = None if samples is None else check_samples(samples, self.rows)
        self._models = common_models(
            {"inputs": models}
            | {
                name: 1 if held is None else len(held)
                for name, held in (
                    ("targets", self.target),
                    ("labels", self.label),
                    ("samples", self.samples),
                )
            }
        )

    @property
    def n_outputs(self) -> int | None:
        """Width of the targets, that of the inputs where there are none; None with labels, which any model
        fits that has enough outputs."""
        if self.label is not None:
            return None
        return self.n_features if self.target is None else self.target.shape[2]

    def check_labels(self, n_outputs: int) -> None:
        """ValueError for a label that is not the number of one of so many outputs.

        >>> Dataset(torch.eye(3), labels=[0, 1, 5]).check_labels(5)
        Traceback (most recent call last):
          ...
        ValueError: labels must be from 0 to n_outputs − 1 = 4, not 5 (sample 2)
        """
        if self.label is not None:
            refuse_label(self.label, n_outputs, f"from 0 to n_outputs − 1 = {n_outputs - 1}")

    @property
    def n_models(self) -> int | None:
        """Number of models that the dataset has rows or numbers of samples of; None where one serves any."""
        return self._models

    def rows_of(
        self, step: int, batch_size: int | None = None, seed: Any = None, n_models: int | None = None
    ) -> torch.Tensor:
        """Which samples a step of `fit` sees: int64 `[models, batch_size]`, in order.

        batch_size None is the full batch: all samples, in the order of the dataset, and those of a model with
        fewer are followed by −1. Else place `step · batch_size + s` of the epochs laid end to end, each in an
        order of its own, drawn from the model's seed (docs/data_stream.md §11). `n_models` is that of the
        dataset by default, or 1.

        >>> Dataset(torch.eye(4)).rows_of(step=0, batch_size=4, seed=3).sort().values.tolist()
        [[0, 1, 2, 3]]
        """
        step = check_int("step", step, minimum=0, maximum=MAX_STEP)
        models = self._models_of(n_models)
        self._check_room(models, batch_size, 32)
        held = (
            self.samples
            if self.samples is not None
            else torch.full((1,), self.rows, dtype=torch.int64, device="cpu")
        )
        held = held.expand(models)
        if batch_size is None:
            rows = torch.arange(self.rows, dtype=torch.int64, device="cpu").repeat(models, 1)
            return torch.where(rows < held[:, None], rows, -1)
        size = check_size("batch_size", batch_size)
        seeds = broadcast_seed("seed", seed, models)
        found = [
            shuffled_rows(int(own), step, size, int(count)) for own, count in zip(seeds, held, strict=True)
        ]
        return torch.from_numpy(np.stack(found))

    def batch(
        self,
        step: int,
        batch_size: int | None = None,
        seed: Any = None,
        n_models: int | None = None,
        *,
        n_outputs: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, what the target is made from) of a step, as `fit` sees them: float32 `[models, batch_size,
        n_features]` and `[models, batch_size, n_outputs]`. Rows that a model does not have (full batch) are
        zeros. `n_outputs` is that of the dataset; with labels, that of the model, which they do not tell.

        >>> Dataset(torch.eye(2), labels=[2, 0]).batch(step=0, n_outputs=3)[1]
        tensor([[[0., 0., 1.],
                 [1., 0., 0.]]])
        """
        outputs = self._outputs_of(n_outputs)
        rows = self.rows_of(step, batch_size, seed, n_models)
        self._check_room(len(rows), batch_size, 12 * (self.n_features + outputs))
        if self.entries is not None:  # all rows become dense, and some of them are taken
            self._check_room(self._inputs_of_models(), None, 4 * self.n_features)
        dense = self.entries.to_dense() if self.entries is not None else self.input
        assert dense is not None
        x = _chosen(dense, rows)
        if self.label is not None:
            chosen = _chosen(self.label.unsqueeze(2), rows).long()
            target = torch.zeros(*rows.shape, outputs, dtype=torch.float32, device="cpu")
            return x, target.scatter_(2, chosen, 1.0) * (rows >= 0).unsqueeze(2)
        return x, x if self.target is None else _chosen(self.target, rows)

    def active_features(self) -> torch.Tensor:
        """Mean number of active features in a sample, float64 `[1 or models]`."""
        if self.entries is None:
            assert self.input is not None
            active = (self.input != 0).sum(dim=(1, 2)).double()
        else:
            counts = self.entries.row_start.diff().reshape(self.entries.n_models, -1)
            active = counts.sum(dim=1).double()
        return active / self.rows

    def native(self, full: bool) -> Any:
        """The kernels' view, for full batches or minibatches; valid while this object lives."""
        f = _native.FiniteData()
        f.rows, f.full = self.rows, full
        f.per_model = self._inputs_of_models() > 1
        f.target_per_model = self.target is not None and len(self.target) > 1
        f.label_per_model = self.label is not None and len(self.label) > 1
        arrays = self.arrays()
        for name, kind in _ARRAYS.items():
            held = arrays.get(f"data/{name}")
            if held is not None:
                setattr(f, name, address(f"dataset.{name}", held, kind))
        return f

    def arrays(self) -> dict[str, torch.Tensor]:
        """All that is in it, by the names that runs and stores have for it."""
        found: dict[str, torch.Tensor | None] = {"input": self.input, "target": self.target}
        found |= {"label": self.label, "samples": self.samples}
        if self.entries is not None:
            found |= {name: getattr(self.entries, name) for name in ("row_start", "feature", "value")}
        return {f"data/{name}": found[name] for name in _ARRAYS if found.get(name) is not None}  # type: ignore[misc]

    def config(self) -> dict[str, Any]:
        """JSON-able description without the arrays."""
        return {
            "dataset": "dense" if self.entries is None else "entries",
            "n_features": self.n_features,
            "rows": self.rows,
            "models": self._inputs_of_models(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Dataset:
        """The dataset that `config()` described, with these `arrays()`."""
        held = {name: arrays.get(f"data/{name}") for name in _ARRAYS}
        inputs: Any = held["input"]
        if config["dataset"] == "entries":
            kept = (held["row_start"], held["feature"], held["value"])
            inputs = SparseBatch(*kept, config["n_features"], config["models"])  # type: ignore[arg-type]
        return cls(inputs, held["target"], labels=held["label"], samples=held["samples"])

    def row(self, i: int) -> Dataset:
        """That of model `i` alone; what all models share stays whole."""
        return self.of_models(slice(i, i + 1))

    def of_models(self, chosen: slice | torch.Tensor) -> Dataset:
        """That of the models `chosen` (int64, or a slice); what all models share stays whole."""
        inputs: Any = self.input if self.entries is None else self.entries
        if self._inputs_of_models() > 1:
            inputs = _entries_of(inputs, chosen) if self.input is None else self.input[chosen]
        target, label, samples = (
            held[chosen] if held is not None and len(held) > 1 else held
            for held in (self.target, self.label, self.samples)
        )
        return type(self)(inputs, target, labels=label, samples=samples)

    def dense_rows(self, models: slice, rows: slice) -> torch.Tensor:
        """The inputs of some models (0 … 1 where all share them) at some rows, float32 `[models, rows,
        n_features]`, without making others dense."""
        if self.entries is None:
            assert self.input is not None
            return self.input[models, rows]
        entries = _entries_of(self.entries, models) if self._inputs_of_models() > 1 else self.entries
        starts = entries.row_start[:-1].view(entries.n_models, -1)[:, rows]
        counts = entries.row_start.diff().view(entries.n_models, -1)[:, rows]
        row = torch.arange(counts.numel(), dtype=torch.int64, device="cpu").repeat_interleave(
            counts.flatten()
        )
        within = torch.arange(len(row), dtype=torch.int64, device="cpu")
        within -= (counts.flatten().cumsum(0) - counts.flatten())[row]
        at = starts.flatten()[row] + within
        x = torch.zeros(counts.numel(), self.n_features, dtype=torch.float32, device="cpu")
        x[row, entries.feature[at].long()] = entries.value[at]
        return x.view(*counts.shape, self.n_features)

    def __repr__(self) -> str:
        whose = "shared by all models" if self._models is None else f"of {self._models} models"
        given = "" if self.label is None else ", with labels"
        if self.target is not None:
            own = self.n_outputs != self.n_features
            given = ", with targets" + (f" of n_outputs={self.n_outputs}" if own else "")
        return f"Dataset({self.rows} samples of n_features={self.n_features}{given}, {whose})"

    def _check_room(self, models: int, batch_size: int | None, bytes_per_sample: int) -> None:
        samples = self.rows if batch_size is None else check_size("batch_size", batch_size)
        check_free_memory(
            f"a batch of n_models={models:,}, batch_size={samples:,}",
            models * samples * bytes_per_sample,
            "take fewer samples or models",
        )

    def _inputs_of_models(self) -> int:
        if self.entries is not None:
            return self.entries.n_models
        assert self.input is not None
        return len(self.input)

    def _outputs_of(self, n_outputs: int | None) -> int:
        own = self.n_outputs
        if n_outputs is None:
            if own is None:
                raise ValueError("n_outputs must be given, as the model has it: labels do not tell it")
            return own
        outputs = check_int("n_outputs", n_outputs, minimum=1, maximum=MAX_OUTPUTS)
        if own is None:
            self.check_labels(outputs)
        elif own != outputs:
            raise ValueError(f"n_outputs must be {own}, that of the dataset, not {outputs}")
        return outputs

    def _models_of(self, n_models: int | None) -> int:
        if n_models is None:
            return self._models or 1
        models = check_size("n_models", n_models)
        if self._models not in (None, models):
            raise ValueError(f"n_models must be {self._models}, those of the dataset, not {models}")
        return models


def _entries_of(entries: SparseBatch, chosen: slice | torch.Tensor) -> SparseBatch:
    """The entries of the models `chosen`."""
    numbers = torch.arange(entries.n_models, dtype=torch.int64, device="cpu")[chosen].tolist()
    parts = [entries.of_model(i) for i in numbers]
    ends = torch.tensor([0, *(int(part.row_start[-1]) for part in parts)], dtype=torch.int64, device="cpu")
    starts = [part.row_start[:-1] + before for part, before in zip(parts, ends.cumsum(0), strict=False)]
    return SparseBatch(
        torch.cat([*starts, ends.sum().view(1)]),
        torch.cat([part.feature for part in parts]),
        torch.cat([part.value for part in parts]),
        entries.n_features,
        len(parts),
    )


def _chosen(held: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """held `[1 or models, T, n]` at rows `[models, B]`; zeros where a row is −1."""
    model = torch.arange(len(rows), dtype=torch.int64, device="cpu")[:, None]
    model = model if len(held) > 1 else model[:1] * 0
    return held[model, rows.clamp(min=0)] * (rows >= 0).unsqueeze(2)
