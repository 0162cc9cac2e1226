"""How the features of a sample depend on each other, where groups do not say it (docs/data_stream.md §10)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import as_tensor, real_array
from toykern.arguments.errors import describe

_ASYMMETRY = 1e-8  # what rounding may leave
_LEAST_PIVOT = 1e-10  # a factorisation's rest below this is taken for none
_SURPLUS = 1e-9  # loadings may exceed a variance of 1 by rounding


class Hierarchy:
    """Features of which each can only be active together with its parent: trees of any depth.

    `probability` is then conditional: of a feature given that its parent is active, and of a root without
    condition. Given their parents, features are independent, and so are all magnitudes.

    Args:
        parents: the number of each feature's parent, `[n_features]`; −1 for a root.

    Raises:
        ValueError, TypeError: naming `parents`, where one is out of range or features are their own
            ancestors.

    Example:
        A feature with two children, of which the second has one itself.

        >>> tree = Hierarchy([-1, 0, 0, 2])
        >>> data = SparseFeatures(4, [0.1, 0.5, 0.5, 0.5], dependence=tree)
        >>> data.marginals()
        tensor([[0.1000, 0.0500, 0.0500, 0.0250]], dtype=torch.float64)
        >>> x = data.sample(step=0, batch_size=1000)[0]
        >>> bool((x[:, 3] <= 1.0 * (x[:, 2] > 0)).all())
        True
    """

    kind = "hierarchy"

    def __init__(self, parents: Any) -> None:
        given = as_tensor("parents", parents, torch.int64)
        if given.ndim != 1 or given.numel() == 0:
            raise ValueError(
                f"parents must be the number of each feature's parent, [n_features], not {describe(parents)}"
            )
        n = given.numel()
        wrong = ((given < -1) | (given >= n)).nonzero()
        if len(wrong):
            feature = int(wrong[0, 0])
            raise ValueError(
                f"parents must be numbers of features, 0 … {n - 1}, or −1 for a root, "
                f"not {int(given[feature])} (feature {feature})"
            )
        self.parents: tuple[int, ...] = tuple(given.tolist())
        self.order = _parents_first(self.parents)

    @property
    def n_features(self) -> int:
        """Number of features that it speaks of."""
        return len(self.parents)

    def marginals(self, probability: torch.Tensor) -> torch.Tensor:
        """Of being active without condition, `[rows, n_features]`, from the conditional ones."""
        found = probability.clone()
        for feature in self.order:
            parent = self.parents[feature]
            if parent >= 0:
                found[:, feature] *= found[:, parent]
        return found

    def native_arrays(self, probability: torch.Tensor) -> dict[str, np.ndarray]:
        """The kernels' arrays of it, by their names, at these probabilities `[rows, n_features]`."""
        parents = np.array(self.parents, dtype=np.int64)
        return {
            "parent": np.where(parents < 0, self.n_features, parents).astype(np.uint32),
            "order": np.array(self.order, dtype=np.uint32),
        }

    def config(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"name": "Hierarchy", "parents": list(self.parents)}

    def __repr__(self) -> str:
        roots = sum(parent < 0 for parent in self.parents)
        return f"Hierarchy(<{self.n_features} features, {roots} roots>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hierarchy) and self.parents == other.parents

    def __hash__(self) -> int:
        return hash(("Hierarchy", self.parents))


class Copula:
    """Features that are active where correlated normal variates exceed a threshold: a Gaussian copula.

    Feature j is active iff z_j > Φ⁻¹(1 − p_j), where the z are jointly normal with mean 0, variance 1 and the
    given correlations. So `probability` stays that of each feature by itself. Magnitudes are independent.

    Args:
        correlation: of the normal variates, `[n_features, n_features]`: symmetric, positive semidefinite,
            with ones on the diagonal. A sample costs n(n + 1)/2 multiplications.
        loadings: instead of it, Λ `[n_features, r]` of r common factors: z = Λ f + √(1 − Σ Λ²) ε, so that the
            correlation of i and j is Λ_i·Λ_j. A sample costs n(r + 1) multiplications.

    Raises:
        ValueError, TypeError: naming the argument: shapes, asymmetry, a diagonal other than 1, negative
            eigenvalues, loadings whose squares add up to more than 1.

    Example:
        >>> together = Copula(loadings=[[0.9], [0.9], [0.0]])
        >>> data = SparseFeatures(3, 0.1, dependence=together)
        >>> active = data.sample(step=0, batch_size=100_000)[0] > 0
        >>> bool((active[:, 0] & active[:, 1]).double().mean() > 0.05)  # 0.01 if they were independent
        True
    """

    kind = "copula"

    def __init__(self, *, correlation: Any = None, loadings: Any = None) -> None:
        if (correlation is None) == (loadings is None):
            raise ValueError(
                "Copula takes either correlation [n_features, n_features] or loadings [n_features, r]"
            )
        if correlation is not None:
            self._name, self._given = "correlation", _check_correlation(correlation)
            factor = _cholesky(self._given.tobytes(), len(self._given))
            unique = None
        else:
            self._name, self._given = "loadings", _check_loadings(loadings)
            factor = self._given
            square = np.zeros(len(factor))
            for column in factor.T:  # in this order, the same everywhere
                square += column * column
            unique = np.sqrt(np.maximum(0.0, 1.0 - square)).astype(np.float32)
        self.factor = np.ascontiguousarray(factor, dtype=np.float32)
        """float32 `[n_features, r]`: what the kernels multiply the common normal variates by."""
        self.unique = unique
        """float32 `[n_features]`: of each feature's own variate; None where it has none."""
        r = self.factor.shape[1]
        last = r - np.argmax(self.factor[:, ::-1] != 0, axis=1) if r else np.zeros(len(self.factor))
        self.end = np.where((self.factor != 0).any(axis=1), last, 0).astype(np.uint32)
        """uint32 `[n_features]`: the factors of a feature from this one on are 0."""

    @property
    def n_features(self) -> int:
        """Number of features that it speaks of."""
        return len(self.factor)

    def thresholds(self, probability: torch.Tensor) -> torch.Tensor:
        """float32 of the same shape: what a variate exceeds with this probability."""
        values, where = np.unique(probability.numpy(), return_inverse=True)
        normal = NormalDist()
        quantile = [-np.inf if p >= 1 else np.inf if p <= 0 else -normal.inv_cdf(p) for p in values.tolist()]
        found = np.array(quantile, dtype=np.float32)[where.reshape(probability.shape)]
        return torch.from_numpy(np.ascontiguousarray(found))

    def native_arrays(self, probability: torch.Tensor) -> dict[str, np.ndarray]:
        """The kernels' arrays of it, by their names, at these probabilities `[rows, n_features]`."""
        found = {
            "loading": self.factor,
            "loading_end": self.end,
            "threshold": self.thresholds(probability).numpy(),
        }
        if self.unique is not None:
            found["unique"] = self.unique
        if self.factor.shape[1] == 0:
            del found["loading"]
        return found

    def config(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"name": "Copula", self._name: self._given.tolist()}

    def __repr__(self) -> str:
        return f"Copula({self._name}=<{list(self._given.shape)}>)"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Copula)
            and self._name == other._name
            and np.array_equal(self._given, other._given)
        )

    def __hash__(self) -> int:
        return hash(("Copula", self._name, self._given.tobytes()))


Dependence = Hierarchy | Copula


def dependence_from_config(config: Mapping[str, Any]) -> Dependence:
    """What `config()` described.

    >>> dependence_from_config(Hierarchy([-1, 0]).config())
    Hierarchy(<2 features, 1 roots>)
    """
    if config["name"] == "Hierarchy":
        return Hierarchy(config["parents"])
    return Copula(correlation=config.get("correlation"), loadings=config.get("loadings"))


def _parents_first(parents: tuple[int, ...]) -> tuple[int, ...]:
    """All features, each after its parent; ValueError where features are their own ancestors."""
    children: dict[int, list[int]] = {}
    for feature, parent in enumerate(parents):
        children.setdefault(parent, []).append(feature)
    order: list[int] = []
    level = children.get(-1, [])
    while level:
        order += level
        level = [child for feature in level for child in children.get(feature, [])]
    if len(order) < len(parents):
        circle = [min(set(range(len(parents))) - set(order))]
        while parents[circle[-1]] not in circle:
            circle.append(parents[circle[-1]])
        circle = circle[circle.index(parents[circle[-1]]) :]
        shown = " → ".join(str(feature) for feature in [*circle[:8], *(["…"] if len(circle) > 8 else [])])
        raise ValueError(f"parents must lead to a root; these features are their own ancestors: {shown}")
    return tuple(order)


def _check_correlation(value: Any) -> np.ndarray:
    given = real_array("correlation", value)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or given.shape[0] == 0:
        raise ValueError(f"correlation must be [n_features, n_features], not {describe(value)}")
    if not np.isfinite(given).all():
        raise ValueError("correlation must be finite")
    uneven = np.abs(given - given.T)
    if uneven.max() > _ASYMMETRY:
        i, j = (int(at) for at in np.unravel_index(uneven.argmax(), uneven.shape))
        raise ValueError(
            f"correlation must be symmetric, not {given[i, j]:g} at [{i}, {j}] "
            f"and {given[j, i]:g} at [{j}, {i}]"
        )
    off = np.abs(np.diagonal(given) - 1.0)
    if off.max() > _ASYMMETRY:
        i = int(off.argmax())
        raise ValueError(f"correlation must have a diagonal of 1, not {given[i, i]:g} at [{i}, {i}]")
    return np.ascontiguousarray((given + given.T) / 2)


def _check_loadings(value: Any) -> np.ndarray:
    given = real_array("loadings", value)
    if given.ndim != 2 or given.shape[0] == 0:
        raise ValueError(f"loadings must be [n_features, factors], not {describe(value)}")
    if not np.isfinite(given).all():
        raise ValueError("loadings must be finite")
    square = (given * given).sum(axis=1)
    if square.max() > 1.0 + _SURPLUS:
        i = int(square.argmax())
        raise ValueError(
            "loadings of a feature must have squares that add up to at most 1, "
            f"not {square[i]:g} (feature {i})"
        )
    return np.ascontiguousarray(given)


@lru_cache(maxsize=4)
def _cholesky(correlation: bytes, n: int) -> np.ndarray:
    """float64 `[n, n]`, lower triangular: its rows' products are the correlations.

    Column by column in elementwise operations, which are rounded the same everywhere: LAPACK's sums are not,
    and samples must not depend on the machine. ValueError where it is not positive semidefinite.
    """
    rest = np.frombuffer(correlation, dtype=np.float64).reshape(n, n).copy()
    factor = np.zeros((n, n))
    for k in range(n):
        pivot, column = rest[k, k], rest[k + 1 :, k]
        if pivot <= _LEAST_PIVOT:
            if pivot < -_LEAST_PIVOT or bool((np.abs(column) > _LEAST_PIVOT**0.5).any()):
                given = np.frombuffer(correlation, dtype=np.float64).reshape(n, n)
                raise ValueError(
                    "correlation must be positive semidefinite; its smallest eigenvalue is "
                    f"{np.linalg.eigvalsh(given)[0]:.3g}"
                )
            continue
        factor[k, k] = np.sqrt(pivot)
        factor[k + 1 :, k] = column / factor[k, k]
        rest[k + 1 :, k + 1 :] -= np.outer(factor[k + 1 :, k], factor[k + 1 :, k])
    return factor
