"""Dictionaries that were learnt, beside the truth, and the codes that they give.

A dictionary's directions are its *columns*, as those of `Autoencoder.decoder` `[models, n_features,
n_hidden]` and of an embedding; of a tied weight take `weight.mT`. Codes are `[models, samples, n_hidden]`.
One model's tensor has no models' dimension, and stands for every model where the other argument is a stack.
Results are of the dtype of the arguments (of the finer one, where they differ), computed in double precision,
and can be differentiated unless they are counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_number, describe
from toykern.arguments.memory import check_free_memory
from toykern.metrics.assignment import largest_assignment
from toykern.metrics.stacks import check_stack, models_last, total

_AT_ONCE = 1 << 22
"""Cosines (32 MiB of doubles) that are worked on at a time."""


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching of true directions with those of a dictionary; see `match_directions`.

    Attributes:
        index: int64 `[models, n_truth]`: the column of the dictionary that each true direction is matched
            with, or −1.
        cosine: `[models, n_truth]`: their cosine; 0 where there is none.
    """

    index: torch.Tensor
    cosine: torch.Tensor


def mean_max_cosine_similarity(dictionary: Values, truth: Values) -> torch.Tensor:
    """MMCS, `[models]`: the mean over the true directions of the largest cosine with any of the dictionary.

    1 where every true direction is in the dictionary, whatever else is in it. The other way round,
    `mean_max_cosine_similarity(truth, dictionary)` says how much of the dictionary is true, whatever is
    missing. A cosine has a sign; a column of 0 has the cosine 0 with all. NaN for a model that is not finite.
    Bits may depend on the number of models and of threads (the cosines are matrix products). Sharkey et al.
    2022, *Taking features out of superposition with sparse autoencoders*; Cunningham et al. 2023.

    dictionary: `[models, n, n_dictionary]` or `[n, n_dictionary]`; truth: `[models, n, n_truth]` or
    `[n, n_truth]`. TypeError or ValueError names the argument, MemoryError where the cosines do not fit.

    >>> learnt = torch.tensor([[1.0, 0.6, -3.0], [0.0, 0.8, 0.0]])
    >>> round(mean_max_cosine_similarity(learnt, torch.eye(2)).item(), 6)
    0.9
    """
    d, t = _check_pair(dictionary, truth)
    found = [cosines.amax(-1).mean(-1) for cosines in _cosines(d, t)]
    return _result(torch.cat(found), d, t)


def match_directions(dictionary: Values, truth: Values) -> Matching:
    """Each true direction with one of the dictionary for itself, so that the sum of cosines is largest.

    Where MMCS lets several true directions share one of the dictionary, here each is taken once at most: with
    fewer in the dictionary, true ones are left without (index −1, cosine 0), as are all of a model that is
    not finite (whose cosines are NaN). `matching.cosine.mean(-1)` is at most the MMCS. The cosines can be
    differentiated.

    dictionary: `[models, n, n_dictionary]` or `[n, n_dictionary]`; truth: `[models, n, n_truth]` or
    `[n, n_truth]`. TypeError or ValueError names the argument, ImportError where SciPy is missing
    (`pip install toykern[analysis]`).

    >>> match_directions(torch.tensor([[0.0, 2.0], [1.0, 2.0]]), torch.eye(2)).index.tolist()
    [1, 0]
    """
    d, t = _check_pair(dictionary, truth)
    indices, matched = [], []
    for cosines in _cosines(d, t):
        finite = torch.isfinite(cosines).flatten(1).all(1)
        index = torch.full(cosines.shape[:2], -1, dtype=torch.int64, device="cpu")
        for i in finite.nonzero().flatten().tolist():
            index[i] = largest_assignment(cosines[i])
        index = index.to(cosines.device)
        chosen = cosines.gather(2, index.clamp(min=0).unsqueeze(2)).squeeze(2)
        chosen = torch.where(index < 0, 0.0, chosen)
        matched.append(torch.where(finite.unsqueeze(1), chosen, torch.nan))
        indices.append(index)
    index = torch.cat(indices)
    stacked = max(d.ndim, t.ndim) == 3
    return Matching(index if stacked else index[0], _result(torch.cat(matched), d, t))


def explained_variance(target: Values, reconstruction: Values) -> torch.Tensor:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², `[models]`: the share of the target's variance that is explained.

    x̄ is the mean over samples. 1 for a perfect reconstruction, 0 for one by the mean, negative for worse
    ones; NaN where the target is the same in all samples. A model's bits are its own, whatever stands beside
    it.

    target, reconstruction: `[models, samples, n]` or `[samples, n]`, of the same samples.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> explained_variance(x, torch.tensor([[0.5], [1.0], [1.5]])).item()
    0.75
    """
    x = check_stack("target", target, ("samples", "n"))
    y = check_stack("reconstruction", reconstruction, ("samples", "n"))
    _check_beside("reconstruction", y, "target", x, slice(-2, None))
    wide = models_last(x)
    error = total((wide - models_last(y)).square().flatten(0, 1))
    moved = wide - wide[:1]  # so that what is the same in all samples is so to the last bit
    spread = total((moved - total(moved) / len(moved)).square().flatten(0, 1))
    varied = spread != 0
    share = torch.where(varied, 1 - error / torch.where(varied, spread, 1.0), torch.nan)
    return _result(share, x, y)


def l0(codes: Values, threshold: float = 0.0) -> torch.Tensor:
    """The mean number of units that are active in a sample, `[models]`.

    codes: `[models, samples, n_hidden]` or `[samples, n_hidden]`; a unit is active where |code| is above
    `threshold`. NaN for a model with codes that are NaN. A model's bits are its own.

    >>> l0(torch.tensor([[0.0, 2.0], [0.5, 1.0]])).item()
    1.5
    """
    h, active = _active(codes, threshold)
    counts = active.sum(dim=(-2, -1)).double() / h.shape[-2]
    return torch.where(h.isnan().flatten(-2).any(-1), torch.nan, counts).to(h.dtype)


def dead_units(codes: Values, threshold: float = 0.0) -> torch.Tensor:
    """Which units are active in no sample, bool `[models, n_hidden]`; `.double().mean(-1)` is their share.

    codes: `[models, samples, n_hidden]` or `[samples, n_hidden]`; a unit is active where |code| is above
    `threshold`, or NaN. A model's bits are its own.

    >>> dead_units(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [True, False]
    """
    return ~_active(codes, threshold)[1].any(dim=-2)


def _active(codes: Values, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    h = check_stack("codes", codes, ("samples", "n_hidden")).detach()
    threshold = check_number("threshold", threshold, minimum=0.0)
    return h, ~(h.double().abs() <= threshold)


def _cosines(dictionary: torch.Tensor, truth: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cosines float64 `[some models, n_truth, n_dictionary]`, all models in order."""
    learnt, true = _unit(dictionary), _unit(truth)
    models, one = max(len(learnt), len(true)), learnt.shape[-1] * true.shape[-1]
    check_free_memory(f"{one:,} cosines of a dictionary with the truth", 16 * one, "take fewer directions")
    at_once = max(1, _AT_ONCE // one)
    for start in range(0, models, at_once):
        part = [side if len(side) == 1 else side[start : start + at_once] for side in (true, learnt)]
        yield part[0].mT @ part[1]


def _unit(directions: torch.Tensor) -> torch.Tensor:
    """float64 `[models, n, directions]` of length 1, or 0."""
    wide = directions.double() if directions.ndim == 3 else directions.double().unsqueeze(0)
    # By the largest entry first, so that no square overflows or vanishes; it has no say in the result.
    largest = wide.detach().abs().amax(-2, keepdim=True)
    wide = wide / torch.where(largest == 0, 1.0, largest)
    square = wide.square().sum(-2, keepdim=True)
    return wide / torch.where(square == 0, 1.0, square).sqrt()


def _check_pair(dictionary: Values, truth: Values) -> tuple[torch.Tensor, torch.Tensor]:
    d = check_stack("dictionary", dictionary, ("n", "n_dictionary"))
    t = check_stack("truth", truth, ("n", "n_truth"))
    _check_beside("truth", t, "dictionary", d, slice(-2, -1))
    return d, t


def _check_beside(name: str, value: torch.Tensor, other: str, beside: torch.Tensor, same: slice) -> None:
    """ValueError unless two arguments have the same sizes in the dimensions `same`, and as many models."""
    models = {len(tensor) for tensor in (value, beside) if tensor.ndim == 3}
    if value.shape[same] != beside.shape[same] or len(models) > 1:
        raise ValueError(f"{name} does not go with {other}: {describe(value)} with {describe(beside)}")
    if value.device != beside.device:
        raise ValueError(f"{name} is on {value.device}, but {other} on {beside.device}")


def _result(per_model: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
    """`[models, …]`, or `[…]` where no argument is a stack, of the finer dtype of the arguments."""
    dtype = arguments[0].dtype
    for argument in arguments[1:]:
        dtype = torch.promote_types(dtype, argument.dtype)
    result = per_model.to(dtype)
    return result if any(argument.ndim == 3 for argument in arguments) else result[0]
