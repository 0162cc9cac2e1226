"""What a dataset is made of, checked by name: rows, entries, labels, and how many samples a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import describe
from toykern.data.sparse_batch import SparseBatch

MAX_ROWS = 2**31 - 1
MAX_OUTPUTS = 2**24


def check_rows(name: str, given: Any, width: str) -> torch.Tensor:
    """float32 CPU `[1 or models, T, width]`, contiguous and finite; `width` is the last dimension's name."""
    rows = as_tensor(name, _of_dlpack(given), torch.float32)
    if rows.ndim not in (2, 3) or 0 in rows.shape:
        raise ValueError(
            f"{name} must have the shape [samples, {width}] or [models, samples, {width}] with at "
            f"least one of each, not {describe(given)}"
        )
    rows = (rows if rows.ndim == 3 else rows.unsqueeze(0)).contiguous()
    if not bool(torch.isfinite(rows).all()):
        at = (~torch.isfinite(rows)).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite, not {rows[tuple(at)].item()} (model, sample, place in it: {at})"
        )
    return rows


def check_entries(batch: SparseBatch) -> SparseBatch:
    """The batch with detached float32 values; ValueError where it is not on the CPU or not finite."""
    if batch.device.type != "cpu":
        raise ValueError(f"inputs must be on the CPU, not on {str(batch.device)!r}")
    if not bool(torch.isfinite(batch.value).all()):
        raise ValueError("inputs must be finite; a value of the SparseBatch is not")
    return SparseBatch(
        batch.row_start, batch.feature, batch.value.detach().float(), batch.n_features, batch.n_models
    )


def check_labels(given: Any, rows: int) -> torch.Tensor:
    """int32 CPU `[1 or models, T]`, contiguous, each at least 0 and below `MAX_OUTPUTS`."""
    labels = as_tensor("labels", _of_dlpack(given), torch.int64)
    if labels.ndim not in (1, 2) or labels.shape[-1] != rows or labels.numel() == 0:
        raise ValueError(
            f"labels must have one for each of the {rows} samples of inputs, [{rows}] or [models, {rows}], "
            f"not {describe(given)}"
        )
    labels = labels.reshape(-1, rows)
    refuse_label(labels, MAX_OUTPUTS, "at least 0, and below 2^24")
    return labels.to(torch.int32).contiguous()


def refuse_label(labels: torch.Tensor, n_outputs: int, allowed: str) -> None:
    """ValueError that names the first of the labels `[models, T]` that is no number of an output."""
    wrong = (labels < 0) | (labels >= n_outputs)
    if bool(wrong.any()):
        model, sample = wrong.nonzero()[0].tolist()
        place = f"sample {sample}" + (f" of model {model}" if len(labels) > 1 else "")
        raise ValueError(f"labels must be {allowed}, not {int(labels[model, sample])} ({place})")


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


def common_models(lengths: Mapping[str, int]) -> int | None:
    """For how many models things are, that are each of one model or of all; None where all are of one.
    ValueError where they are of different numbers of models."""
    own = {name: length for name, length in lengths.items() if length > 1}
    if len(set(own.values())) > 1:
        told = ", ".join(f"{name} for {length}" for name, length in own.items())
        names = list(lengths)
        raise ValueError(
            f"{', '.join(names[:-1])} and {names[-1]} must be for one number of models, not {told}"
        )
    return next(iter(own.values()), None)


def _of_dlpack(given: Any) -> Any:
    """What has memory to share by DLPack alone, as a tensor; all else as it is."""
    if isinstance(given, torch.Tensor | np.ndarray | np.generic) or not hasattr(given, "__dlpack__"):
        return given
    return torch.utils.dlpack.from_dlpack(given)
