"""What the experiments with sparse autoencoders share: true directions, their frequencies, and scores.

An autoencoder's dictionary are the directions that its hidden units write to: the columns of its decoder,
`[models, d, n_hidden]`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from toykern.metrics.dictionaries import dead_units, explained_variance, l0, mean_max_cosine_similarity
from toykern.nn import MLP
from toykern.nn.kinds import AnyModel

_CODES_AT_ONCE = 1 << 24
"""Codes (64 MiB) that are worked on at a time."""


def random_directions(d: int, count: int, seed: int) -> torch.Tensor:
    """Directions drawn evenly from the sphere, as columns of length 1, float32 `[d, count]`.

    >>> random_directions(3, 5, seed=0).norm(dim=0).round(decimals=5).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    drawn = np.random.default_rng([0x5AE5, seed]).standard_normal((d, count))
    return torch.from_numpy((drawn / np.linalg.norm(drawn, axis=0)).astype(np.float32))


def decaying_probabilities(count: int, decay: float, mean_active: float) -> torch.Tensor:
    """Probabilities ∝ decayⁱ of which `mean_active` are active on average, float64 `[count]` (Sharkey et al.
    2022, toy data).

    ValueError where the first would have to be active more than always.

    >>> decaying_probabilities(3, 0.5, 0.7).tolist()
    [0.4, 0.2, 0.1]
    """
    shares = decay ** torch.arange(count, dtype=torch.float64, device="cpu")
    probabilities = mean_active * shares / shares.sum()
    if probabilities[0] > 1:
        raise ValueError(
            f"mean_active={mean_active} of {count} features with decay={decay} needs a first feature with "
            f"probability {float(probabilities[0]):.3g}"
        )
    return probabilities


def dictionary_of(model: AnyModel) -> torch.Tensor:
    """The directions that the hidden units write to, `[models, d, n_hidden]`, detached.

    >>> dictionary_of(MLP(4, 6, tied=True)).shape
    torch.Size([1, 4, 6])
    """
    held = dict(model.stacked_parameters())
    return (held["decoder"] if "decoder" in held else held["weight"].mT).detach()


@torch.no_grad()
def score_codes(model: MLP, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """How well sparse codes reconstruct the same samples for each model, double precision `[models]`.

    "l0": active units in a sample; "explained": the share of the target's variance; "dead": the share of
    units that no sample activates.

    inputs: what the models take, `[samples, n_features]`; target: `[samples, n_outputs]`.
    """
    at_once = max(1, _CODES_AT_ONCE // (model.n_models * model.n_hidden))
    active = torch.zeros(model.n_models, dtype=torch.float64, device="cpu")
    dead = torch.ones(model.n_models, model.n_hidden, dtype=torch.bool, device="cpu")
    outputs = []
    for start in range(0, len(inputs), at_once):
        codes = model.encode(inputs[start : start + at_once])
        active += l0(codes).double() * codes.shape[1]
        dead &= dead_units(codes)
        outputs.append(model.decode(codes))
    found = torch.cat(outputs, dim=1)
    explained = torch.stack([explained_variance(target, found[i]) for i in range(model.n_models)])
    return {
        "l0": active / len(inputs),
        "explained": explained.double(),
        "dead": dead.double().mean(-1),
    }


def recovery(model: AnyModel, truth: torch.Tensor) -> torch.Tensor:
    """MMCS of the true directions `[d, count]` with each model's dictionary, double precision `[models]`."""
    dictionary = dictionary_of(model).double()
    return torch.cat([mean_max_cosine_similarity(one[None], truth) for one in dictionary])


def principal_directions(samples: torch.Tensor) -> torch.Tensor:
    """The right singular vectors of samples `[samples, d]` with both signs, double precision `[d, 2 r]`, r
    the rank at most: all the directions that a decomposition of their covariance can give."""
    _, _, right = torch.linalg.svd(samples.double(), full_matrices=False)
    return torch.cat([right, -right]).mT


def at_l0(l0s: NDArray[np.float64], values: NDArray[np.float64], wanted: float) -> float:
    """`values` between models of a sweep, linearly in the logarithm of their L0; NaN outside of what it
    spans.

    >>> round(at_l0(np.array([10.0, 1.0, 0.0]), np.array([1.0, 0.5, 0.0]), 10**0.5), 6)
    0.75
    """
    used = np.isfinite(values) & (l0s > 0)
    logs, kept = np.log(l0s[used]), values[used]
    order = np.argsort(logs, kind="stable")
    if not len(logs) or not logs[order[0]] <= np.log(wanted) <= logs[order[-1]]:
        return float("nan")
    return float(np.interp(np.log(wanted), logs[order], kept[order]))
