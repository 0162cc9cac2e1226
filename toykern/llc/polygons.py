"""The local learning coefficients of polygons of features in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_int, check_number, check_size, describe
from toykern.data.features import SparseFeatures
from toykern.llc.estimation import local_learning_coefficient
from toykern.llc.result import LearningCoefficient
from toykern.metrics import polygon
from toykern.nn.tied_autoencoder import TiedAutoencoder
from toykern.training.progress import BarMaker

MAX_VERTICES = 12

_REPRESENTED = {2: 2.0, 3: 3.0, 4: 5.5, 5: 7.0, 6: 8.5}
"""λ of a polygon whose features are all there are: half of the directions in which the loss grows. Of two
and three, lengths and biases, but not angles, which nothing meets; from four on, all but the rotation."""

_OFF = {2: 0.0, 3: 1.0, 4: 1.0, 5: 0.0, 6: 0.0}
"""What a further feature adds whose output is off: its column is held where any direction switches on an
output of bias 0, and free where two leave a gap or biases are below 0."""

_MEAN = {4: 1.5, 5: 1.5}
"""And one whose output is its mean: column and bias. Beside two and three vertices the loss falls."""


@dataclass(frozen=True, eq=False)
class PolygonCoefficients:
    """What `polygon_learning_coefficients` returns, a value for each polygon.

    Attributes:
        vertices: of each polygon.
        loss: at each of them, exact, of the distribution: the mean over samples of the sum over outputs.
        counted: λ by counting directions (docs/learning_coefficient.md), float64; NaN where the loss falls in
            some direction, and above six vertices.
        estimate: the `LearningCoefficient`.
        model: the polygons, a stack.
    """

    vertices: tuple[int, ...]
    loss: torch.Tensor
    counted: torch.Tensor
    estimate: LearningCoefficient
    model: TiedAutoencoder

    def table(self) -> str:
        """A line for each polygon, in Markdown."""
        lines = ["| k | loss | λ, counted | λ̂ | split R̂ |", "|---:|---:|---:|---:|---:|"]
        found = self.estimate
        for at, k in enumerate(self.vertices):
            counted = float(self.counted[at])
            says = "–" if math.isnan(counted) else f"{counted:g}"
            lines.append(
                f"| {k} | {float(self.loss[at]):.5f} | {says} | {float(found.llc[at]):.2f} ± "
                f"{float(found.standard_error[at]):.2f} | {float(found.rhat[at]):.2f} |"
            )
        return "\n".join(lines)


def polygon_learning_coefficients(
    n_features: int = 6,
    vertices: Iterable[int] | None = None,
    *,
    unrepresented_bias: float | None = None,
    samples: int = 10_000,
    sample_seed: int = 0,
    chains: int = 10,
    draws: int = 500,
    burn_in: int = 4000,
    steps_between_draws: int = 20,
    lr: Any = 5e-5,
    nbeta: Any = None,
    localization: Any = 1.0,
    batch_size: int | None = 64,
    seed: Values = 0,
    progress: bool | None | BarMaker = None,
) -> PolygonCoefficients:
    """λ̂ of regular polygons in the toy model of superposition, all at once (Chen et al. 2023).

    x′ = ReLU(WᵀWx + b) with two hidden dimensions and exactly one active feature in a sample, whose size is
    uniform; the loss is the sum over outputs. `metrics.polygon` says where the critical points are.

    Args:
        n_features: of the data, c.
        vertices: k of each polygon, from 2 to `n_features` and at most 12; None is all from 2.
        unrepresented_bias: of the features that are no vertices; None is their mean, 1/(2c), where the loss
            is least. A negative number turns their outputs off: "k-gons" rather than "k⁺-gons".
        samples, sample_seed: the dataset that L_n is of, `SparseFeatures.one_sparse(c).dataset`.

    The others are as in `local_learning_coefficient`, with defaults for this model: minibatches, whose noise
    adds less than the step size does.

    >>> quick = {"samples": 500, "burn_in": 500, "draws": 20, "chains": 2}
    >>> found = polygon_learning_coefficients(5, [5], nbeta=80.0, **quick)
    >>> found.counted, found.estimate.traces.shape
    (tensor([7.], dtype=torch.float64), torch.Size([1, 2, 45]))
    """
    c = check_int("n_features", n_features, minimum=2)
    c = check_size("n_features", c)
    chosen = _vertices(vertices, c)
    bias = (
        1 / (2 * c) if unrepresented_bias is None else check_number("unrepresented_bias", unrepresented_bias)
    )
    if unrepresented_bias is not None and bias >= 0:
        raise ValueError(
            f"unrepresented_bias must be below 0, or None for the mean of the features, not {bias:g}"
        )
    model = TiedAutoencoder(c, 2, n_models=len(chosen), init=0.0, seed=0, dtype=torch.float32, device="cpu")
    losses, counted = [], []
    for at, k in enumerate(chosen):
        point = polygon(k, c)
        outside = c - k
        with torch.no_grad():
            model.weight[at].copy_(point.weight)
            assert model.bias is not None
            model.bias[at].copy_(point.bias)
            model.bias[at, k:] = bias
        # an output that is off loses E x² = 1/(3c), one that is the mean 1/(4c²) less
        missed = 0.0 if unrepresented_bias is None else outside / (4 * c**2)
        losses.append(point.loss + missed)
        more = (_MEAN if unrepresented_bias is None else _OFF).get(k, math.nan)
        counted.append(_REPRESENTED.get(k, math.nan) + (outside * more if outside else 0.0))
    count, drawn_from = check_size("samples", samples), check_int("sample_seed", sample_seed, minimum=0)
    data = SparseFeatures.one_sparse(c).dataset(count, drawn_from, n_models=1)
    estimate = local_learning_coefficient(
        model,
        data,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        steps_between_draws=steps_between_draws,
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        batch_size=batch_size,
        seed=seed,
        loss_reduction="sum",
        progress=progress,
    )
    loss, expected = (torch.tensor(v, dtype=torch.float64, device="cpu") for v in (losses, counted))
    return PolygonCoefficients(chosen, loss, expected, estimate, model)


def _vertices(given: Any, n_features: int) -> tuple[int, ...]:
    most = min(n_features, MAX_VERTICES)
    if given is None:
        return tuple(range(2, most + 1))
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"vertices must be a sequence of integers, not {describe(given)}")
    found = tuple(check_int("vertices", k, minimum=2, maximum=most) for k in given)
    if not found:
        raise ValueError("vertices must name at least one polygon, not none")
    return found
