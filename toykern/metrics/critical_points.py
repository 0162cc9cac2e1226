"""Exact critical points of the loss, for exactly one active feature per sample (Chen et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from toykern.arguments.errors import check_int, check_size
from toykern.arguments.memory import check_free_memory

MAX_VERTICES = 12
"""Largest polygon of `polygon`; up to here the tests check that it has the lowest loss of its kind."""


@dataclass(frozen=True)
class CriticalPoint:
    """An exact critical point of the loss of one tied autoencoder with ReLU output.

    Attributes:
        weight: float64 `[n_hidden, n_features]`.
        bias: float64 `[n_features]`.
        loss: per sample, summed over features (`loss_reduction="sum"`).
        radius: length of the represented features' columns.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    loss: float
    radius: float


def polygon(n_vertices: int, n_features: int | None = None) -> CriticalPoint:
    """The regular polygon of features in m=2, exact for one-sparse data (Chen et al. 2023).

    The data are x = μ e_i, μ uniform on [0, 1], i uniform over the `n_features` features (by default as many
    as vertices), importance 1. The first `n_vertices` features point at the corners of a regular polygon, all
    of one length and bias, which minimise the loss among such polygons; the others have a column of 0 and
    their mean 1/(2·n_features) as bias. By symmetry the gradient of the loss vanishes there. Up to the square
    the loss of the represented features is 0, from the pentagon on their biases are negative. ValueError
    where `n_vertices` is not from 2 to 12, or `n_features` less than it.

    >>> pentagon = polygon(5)
    >>> round(pentagon.radius, 5), round(pentagon.bias[0].item(), 5), round(pentagon.loss, 5)
    (1.17046, -0.2823, 0.01583)
    """
    n_vertices = check_int("n_vertices", n_vertices, minimum=2, maximum=MAX_VERTICES)
    n_features = n_vertices if n_features is None else check_size("n_features", n_features)
    check_int("n_features", n_features, minimum=n_vertices)
    check_free_memory(f"n_features={n_features:,} features", 24 * n_features, "take fewer")
    cosines = torch.cos(
        2 * math.pi * torch.arange(1, n_vertices, dtype=torch.float64, device="cpu") / n_vertices
    )
    neighbours = cosines[cosines > 1e-9]  # only these features' outputs can be switched on by another feature
    square, bias = (1.0, 0.0) if len(neighbours) == 0 else _polygon_minimum(neighbours)
    represented = float(
        _polygon_loss(torch.tensor([square, bias], dtype=torch.float64, device="cpu"), neighbours)
    )
    dead_loss = 1 / (3 * n_features) - 1 / (4 * n_features**2)

    angles = 2 * math.pi * torch.arange(n_vertices, dtype=torch.float64, device="cpu") / n_vertices
    weight = torch.zeros(2, n_features, dtype=torch.float64, device="cpu")
    weight[:, :n_vertices] = math.sqrt(square) * torch.stack([torch.cos(angles), torch.sin(angles)])
    biases = torch.full((n_features,), 1 / (2 * n_features), dtype=torch.float64, device="cpu")
    biases[:n_vertices] = bias
    loss = represented * n_vertices / n_features + dead_loss * (n_features - n_vertices)
    return CriticalPoint(weight, biases, loss, math.sqrt(square))


def _polygon_loss(point: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Exact loss over the represented features given that one of them is active; point = (radius², bias ≤ 0).

    An output with slope c in μ is c μ + b from μ = −b/c on; the active feature itself has c = radius².
    """
    square, bias = point[0], point[1]
    start = -bias / square
    slope = 1 - square  # of the error x − y while the output is on
    off = start**3 / 3
    on = slope**2 * (1 - start**3) / 3 - slope * bias * (1 - start**2) + bias**2 * (1 - start)
    reach = (square * neighbours + bias).clamp(min=0)
    return off + on + (reach**3 / (3 * square * neighbours)).sum()


def _polygon_minimum(neighbours: torch.Tensor) -> tuple[float, float]:
    """(radius², bias) where `_polygon_loss` is least: Newton's method with halved steps."""
    point = torch.tensor([1.2, -0.3], dtype=torch.float64, device="cpu")
    for _ in range(100):
        at = point.clone().requires_grad_()
        loss = _polygon_loss(at, neighbours)
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        rows = [torch.autograd.grad(component, at, retain_graph=True)[0] for component in slope]
        slope = slope.detach()
        if float(slope.abs().max()) < 1e-15:
            break
        step = -torch.linalg.solve(torch.stack(rows), slope)
        if slope @ step >= 0:  # not downhill: the curvature is not positive here
            step = -slope
        while _polygon_loss(point + step, neighbours) > loss and float(step.abs().max()) > 1e-15:
            step = step / 2
        point = point + step
    return float(point[0]), float(point[1])
