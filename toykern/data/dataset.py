"""Finite datasets: samples that every step of a training sees again, in place of a stream of fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from toykern import _native
from toykern.arguments.broadcast import as_tensor, broadcast_seed
from toykern.arguments.errors import check_int, check_size, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.philox import MAX_STEP
from toykern.data.shuffle import shuffled_rows
from toykern.data.sparse_batch import SparseBatch
from toykern.native.address import address

MAX_ROWS = 2**31 - 1
_ARRAYS = ("input", "row_start", "feature", "value", "target", "samples")


class Dataset:
    """T samples for each model, shared by all models or of each model's own.

    Args:
        inputs: `[T, n_features]` (shared) or `[models, T, n_features]`; a tensor, an array, or whatever
            `torch.from_dlpack` takes. Or a `SparseBatch` of one model (shared) or of `models`, whose
            entries are kept as they are: for rare features far less memory and time. Finite; float32.
        targets: what the models are to give for them, shaped as dense inputs are (shared or per model);
            None means the inputs. `fit(target="abs")` takes the magnitude of either.
        samples: how many of the T samples a model has, the first ones, `[models]` from 1 to T; None means
            all.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.

    Tensors are copied if they are not float32 on the CPU and contiguous; else they are the dataset's memory.

    Example:
        >>> data = Dataset(torch.eye(4))
        >>> data
        Dataset(4 samples of n_features=4, shared by all models)
        >>> data.batch(step=0, batch_size=2, seed=0, n_models=1)[0].shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, inputs: Any, targets: Any = None, *, samples: Any = None) -> None:
        self.input: torch.Tensor | None = None
        self.entries: SparseBatch | None = None
        if isinstance(inputs, SparseBatch):
            self.entries = _checked_entries(inputs)
            models, self.rows, self.n_features = inputs.shape
        else:
            self.input = _rows("inputs", inputs)
            models, self.rows, self.n_features = self.input.shape
        if not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(f"inputs must hold from 1 to {MAX_ROWS} samples, not {self.rows}")
        self.target = None if targets is None else _rows("targets", targets)
        shape = [self.rows, self.n_features]
        if self.target is not None and list(self.target.shape[1:]) != shape:
            raise ValueError(
                f"targets must have the shape of the inputs, {shape} or [models, …], not {describe(targets)}"
            )
        self.samples = None if samples is None else check_samples(samples, self.rows)
        lengths = {
            "inputs": models,
            "targets": 1 if self.target is None else len(self.target),
            "samples": 1 if self.samples is None else len(self.samples),
        }
        own = {name: length for name, length in lengths.items() if length > 1}
        if len(set(own.values())) > 1:
            told = ", ".join(f"{name} for {length}" for name, length in own.items())
            raise ValueError(f"inputs, targets and samples must be for one number of models, not {told}")
        self._models = next(iter(own.values()), None)

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
        self, step: int, batch_size: int | None = None, seed: Any = None, n_models: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, what the target is made from) of a step, float32 `[models, batch_size, n_features]` each,
        as `fit` sees them. Rows that a model does not have (full batch) are zeros."""
        rows = self.rows_of(step, batch_size, seed, n_models)
        self._check_room(len(rows), batch_size, 16 * self.n_features)
        if self.entries is not None:  # all rows become dense, and some of them are taken
            self._check_room(self._inputs_of_models(), None, 4 * self.n_features)
        dense = self.entries.to_dense() if self.entries is not None else self.input
        assert dense is not None
        x = _chosen(dense, rows)
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
        arrays = self.arrays()
        kinds = {
            "row_start": torch.int64, "feature": torch.int32, "samples": torch.int64,
            "input": torch.float32, "value": torch.float32, "target": torch.float32,
        }  # fmt: skip
        for name, kind in kinds.items():
            held = arrays.get(f"data/{name}")
            if held is not None:
                setattr(f, name, address(f"dataset.{name}", held, kind))
        return f

    def arrays(self) -> dict[str, torch.Tensor]:
        """All that is in it, by the names that runs and stores have for it."""
        found: dict[str, torch.Tensor | None] = {"input": self.input, "target": self.target}
        found["samples"] = self.samples
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
        return cls(inputs, held["target"], samples=held["samples"])

    def row(self, i: int) -> Dataset:
        """That of model `i` alone; what all models share stays whole."""
        inputs: Any = self.input if self.entries is None else self.entries
        if self._inputs_of_models() > 1:
            inputs = _of_model(self.entries, i) if self.input is None else self.input[i : i + 1]
        target = self.target[i : i + 1] if self.target is not None and len(self.target) > 1 else self.target
        samples = self.samples
        if samples is not None and len(samples) > 1:
            samples = samples[i : i + 1]
        return type(self)(inputs, target, samples=samples)

    def __repr__(self) -> str:
        whose = "shared by all models" if self._models is None else f"of {self._models} models"
        targets = "" if self.target is None else ", with targets"
        return f"Dataset({self.rows} samples of n_features={self.n_features}, {whose}{targets})"

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

    def _models_of(self, n_models: int | None) -> int:
        if n_models is None:
            return self._models or 1
        models = check_size("n_models", n_models)
        if self._models not in (None, models):
            raise ValueError(f"n_models must be {self._models}, those of the dataset, not {models}")
        return models


def _rows(name: str, given: Any) -> torch.Tensor:
    """float32 CPU `[1 or models, T, n]`, contiguous."""
    if not isinstance(given, torch.Tensor | np.ndarray) and hasattr(given, "__dlpack__"):
        given = torch.utils.dlpack.from_dlpack(given)
    rows = as_tensor(name, given, torch.float32)
    if rows.ndim not in (2, 3) or 0 in rows.shape:
        raise ValueError(
            f"{name} must have the shape [samples, n_features] or [models, samples, n_features] with at "
            f"least one of each, not {describe(given)}"
        )
    rows = (rows if rows.ndim == 3 else rows.unsqueeze(0)).contiguous()
    if not bool(torch.isfinite(rows).all()):
        at = (~torch.isfinite(rows)).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, not {rows[tuple(at)].item()} (model, sample, feature {at})")
    return rows


def _checked_entries(batch: SparseBatch) -> SparseBatch:
    if batch.device.type != "cpu":
        raise ValueError(f"inputs must be on the CPU, not on {str(batch.device)!r}")
    if not bool(torch.isfinite(batch.value).all()):
        raise ValueError("inputs must be finite; a value of the SparseBatch is not")
    return SparseBatch(
        batch.row_start, batch.feature, batch.value.detach().float(), batch.n_features, batch.n_models
    )


def check_samples(given: Any, rows: int | None = None) -> torch.Tensor:
    """How many samples each model has, int64 CPU `[1 or models]`, at least 1 and at most `rows`."""
    samples = as_tensor("samples", given, torch.int64)
    if samples.ndim > 1:
        raise ValueError(f"samples must be a number or [models], not {describe(given)}")
    samples = samples.reshape(-1).contiguous()
    bad = (samples < 1) | (samples > (MAX_ROWS if rows is None else rows))
    if samples.numel() == 0 or bool(bad.any()):
        wrong = describe(given) if samples.numel() == 0 else int(samples[bad][0])
        allowed = "at least 1" if rows is None else f"from 1 to {rows} for each model"
        raise ValueError(f"samples must be {allowed}, not {wrong}")
    return samples


def _chosen(held: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """held `[1 or models, T, n]` at rows `[models, B]`; zeros where a row is −1."""
    model = torch.arange(len(rows), dtype=torch.int64, device="cpu")[:, None]
    model = model if len(held) > 1 else model[:1] * 0
    return held[model, rows.clamp(min=0)] * (rows >= 0).unsqueeze(2)


def _of_model(entries: SparseBatch | None, i: int) -> SparseBatch:
    assert entries is not None
    size = entries.batch_size
    start = entries.row_start[i * size : (i + 1) * size + 1]
    first, end = int(start[0]), int(start[-1])
    return SparseBatch(
        start - first, entries.feature[first:end], entries.value[first:end], entries.n_features
    )
