"""Places drawn where gradients are likely to be large, without forming any (Heddes et al. 2024).

With h the inputs and δ the output gradients of a batch, ∂L/∂W[i, j] = Σ_b δ[b, i] h[b, j]. The probability of
place (i, j) is proportional to f[i] · g[j]:

    GraBo     f[i] = Σ_b |δ[b, i]|      g[j] = Σ_b |h[b, j]|       f · g is at least |∂L/∂W[i, j]|
    GraEst    f[i] = |Σ_b s[b] δ[b, i]| g[j] = |Σ_b s[b] h[b, j]|  s[b] = ±1: the signed product is on average
                                                                   the gradient (Alon, Matias & Szegedy 1996)

so outputs and inputs are drawn independently, in time linear in their numbers.
"""

from __future__ import annotations

import numpy as np
import torch

from toykern.sparse.draws import words64
from toykern.sparse.layer import AttachedLayer

DISTRIBUTIONS = ("uniform", "grabo", "graest")
"""What candidates can be drawn from."""

_OUTPUTS, _INPUTS, _SIGNS = (
    1,
    2,
    3,
)  # the sequences of a model (docs/data_stream.md §9); 0 is for uniform draws


def guided_places(layer: AttachedLayer, distribution: str, wanted: torch.Tensor, number: int) -> torch.Tensor:
    """Keys of free places, ascending and different, int64: what `wanted[k]` draws of model k find.

    Each draw is an output and an input by their weights in the last backward pass, with replacement; those
    that hit a connection are left out. `wanted` is int64 `[n_models]`. Where all weights of a model's outputs
    or inputs are 0 or not finite, all are equally likely. Over ranks the weights are averaged.
    ValueError if the layer does not show its passes.
    """
    topology = layer.topology
    f, g = weights(layer, distribution, number)
    counts, found = wanted.cpu().numpy(), []
    for model in range(topology.n_models):
        row = _drawn(layer, f[model], int(counts[model]), model, _OUTPUTS, number)
        column = _drawn(layer, g[model], int(counts[model]), model, _INPUTS, number)
        found.append((model * topology.out_features + row) * topology.in_features + column)
    key = np.unique(np.concatenate(found))
    taken = topology.keys().cpu().numpy()
    free = np.ones(len(key), dtype=bool)
    if len(taken):
        at = np.searchsorted(taken, key).clip(max=len(taken) - 1)
        free = taken[at] != key
    return torch.from_numpy(key[free]).to(topology.device)


def weights(layer: AttachedLayer, distribution: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(f `[n_models, outputs]`, g `[n_models, inputs]`), float64: see the module. Outputs are units."""
    passes = layer.captured_passes()
    topology = layer.topology
    samples = sum(x.shape[1] for x, _ in passes)
    signs = torch.ones(topology.n_models, samples, dtype=torch.float64, device="cpu")
    if distribution == "graest":
        words = words64(
            layer.seeds,
            np.full(topology.n_models, _SIGNS),
            samples,
            purpose="candidates",
            layer=layer.number,
            step=number,
        )
        signs = torch.from_numpy(np.where(words >> np.uint64(63), -1.0, 1.0))
    f = g = torch.zeros((), dtype=torch.float64, device="cpu")
    start = 0
    for x, dy in passes:
        sign = signs[:, start : start + x.shape[1], None].to(dy.device, torch.float64)
        start += x.shape[1]
        x, dy = x.double(), dy.double()
        if distribution == "grabo":
            x, dy = x.abs(), dy.abs()
        f = f.to(dy.device) + (sign * dy).sum(dim=1)
        g = g.to(dy.device) + (sign * x).sum(dim=1)
    f = layer.of_outputs(f.abs())
    parts = []
    for part in (f, g.abs()):
        part = layer.reduce(part.contiguous()).nan_to_num(nan=0.0, posinf=0.0)
        parts.append(torch.where(part.sum(dim=1, keepdim=True) > 0, part, 1.0).cpu().numpy())
    return parts[0], parts[1]


def _drawn(
    layer: AttachedLayer, weight: np.ndarray, count: int, model: int, sequence: int, number: int
) -> np.ndarray:
    """`count` indices with replacement, in proportion to `weight`: u · Σ falls into the index's share."""
    words = words64(
        layer.seeds[model : model + 1],
        np.array([sequence]),
        count,
        purpose="candidates",
        layer=layer.number,
        step=number,
    )[0]
    ends = np.cumsum(weight)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * ends[-1]
    return np.searchsorted(ends, uniform, side="right").clip(max=np.flatnonzero(weight)[-1])
