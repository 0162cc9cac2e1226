"""Distributions of sparse features: what a batch is drawn from. docs/data_stream.md defines the bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload

import numpy as np
import torch

from toykern import _native
from toykern.arguments.broadcast import Values, as_tensor, broadcast_seed
from toykern.arguments.errors import (
    check_choice,
    check_flag,
    check_int,
    check_number,
    check_size,
    describe,
)
from toykern.arguments.memory import check_free_memory
from toykern.data.dataset import Dataset
from toykern.data.dataset_checks import common_models
from toykern.data.dependence import Copula, Dependence, Hierarchy, dependence_from_config
from toykern.data.groups import (
    Anticorrelated,
    Correlated,
    Group,
    check_groups,
    check_probabilities,
    make_units,
)
from toykern.data.kept import keep
from toykern.data.philox import MAX_STEP
from toykern.data.projection import Projection
from toykern.data.sparse_batch import SparseBatch
from toykern.native.address import address, address_of_array
from toykern.native.device_launch import DeviceLaunch
from toykern.native.devices import check_kernels
from toykern.native.numbers import number
from toykern.native.threads import kernel_threads

MAGNITUDES = ("uniform", "symmetric", "half_normal", "constant", "exponential", "lognormal")
PURPOSES = ("training", "evaluation")
MAX_FEATURES = 2**24


class SparseFeatures:
    """Sparse features, each active with its probability and then of random magnitude (Elhage et al. 2022).

    Args:
        n_features: n, at most 2²⁴.
        probability: of being active (1 − sparsity), in [0, 1]; broadcasts to `[models, n_features]`: a
            number, `[n_features]`, `[models, 1]` or `[models, n_features]`. With `active` it follows from
            that; in a `Hierarchy` it is conditional.
        magnitude: of an active feature. "uniform" on [0, 1]; "symmetric", uniform on [−1, 1]; "half_normal",
            |N(0, 1)|; "constant", 1; "exponential" of rate 1; "lognormal", e^N(0, 1).
        groups: disjoint `Correlated` and `Anticorrelated` groups; features in none are independent.
        noise: standard deviation of Gaussian noise added to every input. The training target is made from the
            features without it.
        active: instead of probabilities, exactly so many features in every sample, each subset as likely as
            the others.
        dependence: instead of groups, a `Hierarchy` or a `Copula` of all features.
        projection: a fixed matrix T, `[n_outputs, n_features]` or `[models, n_outputs, n_features]`, finite:
            the target of a sample x is T x, of the features without noise. `fit` and `evaluate` take it with
            target="identity", for models of as many outputs.

    Samples with `active` or `dependence` are drawn on the CPU, and moved from there where models are trained
    or evaluated on a CUDA device; `evaluate(method="stratified")` refuses them.

    Raises:
        ValueError, TypeError: naming the argument, for probabilities that are NaN or outside [0, 1], unequal
            ones in a correlated group, a sum above 1 in an anticorrelated one, overlapping groups, more
            active features than there are, and so on.

    Example:
        >>> data = SparseFeatures(n_features=5, probability=0.01)
        >>> data.sample(step=0, batch_size=4, seed=7, n_models=2).shape
        torch.Size([2, 4, 5])
        >>> (SparseFeatures(n_features=9, active=3).sample(0, 4)[0] != 0).sum(dim=1)
        tensor([3, 3, 3, 3])
    """

    def __init__(
        self,
        n_features: int,
        probability: Values | None = None,
        magnitude: str = "uniform",
        groups: Iterable[Group] = (),
        noise: float = 0.0,
        *,
        active: int | None = None,
        dependence: Dependence | None = None,
        projection: Values | None = None,
    ) -> None:
        self.n_features = check_int("n_features", n_features, minimum=1, maximum=MAX_FEATURES)
        self.active: int | None = None
        if active is not None:
            self.active = check_int("active", active, minimum=1, maximum=self.n_features)
            if probability is not None:
                raise ValueError("probability must be left out where active is given, which says it")
            probability = self.active / self.n_features
        if probability is None:
            raise TypeError("probability must be given, or active in its place, not None")
        self.probability = _check_probability(probability, self.n_features)
        self.magnitude = check_choice("magnitude", magnitude, MAGNITUDES)
        self.groups = check_groups(groups, self.n_features)
        self.noise = check_number("noise", noise, minimum=0.0)
        check_probabilities(self.groups, self.probability)
        self.dependence = self._check_dependence(dependence)
        self._units = make_units(self.n_features, self.groups)
        self.projection = None if projection is None else Projection(projection, self.n_features)
        self._models = common_models(
            {
                "probability": len(self.probability),
                "projection": 1 if self.projection is None else len(self.projection.matrix),
            }
        )

    @classmethod
    def one_sparse(cls, n_features: int, magnitude: str = "uniform", noise: float = 0.0) -> SparseFeatures:
        """Exactly one active feature in every sample, each as likely as the others (Chen et al. 2023).

        >>> int((SparseFeatures.one_sparse(6).sample(0, 100, n_models=1) != 0).sum())
        100
        """
        n = check_int("n_features", n_features, minimum=1, maximum=MAX_FEATURES)
        return cls(n, 1.0 / n, magnitude, groups=(Anticorrelated(range(n)),), noise=noise)

    @property
    def n_models(self) -> int | None:
        """Number of models that probabilities or projections are for; None where one serves any number."""
        return self._models

    @property
    def n_outputs(self) -> int:
        """Width of the targets: of the projection, or n_features."""
        return self.n_features if self.projection is None else self.projection.n_outputs

    @overload
    def sample(
        self, step: int, batch_size: int, seed: Values | None = None, *, n_models: int | None = None,
        layout: Literal["dense"] = "dense", clean: bool = False, purpose: str = "training",
        device: torch.device | str | None = None,
    ) -> torch.Tensor: ...  # fmt: skip

    @overload
    def sample(
        self, step: int, batch_size: int, seed: Values | None = None, *, n_models: int | None = None,
        layout: Literal["sparse"], clean: bool = False, purpose: str = "training",
        device: torch.device | str | None = None,
    ) -> SparseBatch: ...  # fmt: skip

    @overload
    def sample(
        self, step: int, batch_size: int, seed: Values | None = None, *, n_models: int | None = None,
        layout: Literal["coo"], clean: bool = False, purpose: str = "training",
        device: torch.device | str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...  # fmt: skip

    def sample(
        self,
        step: int,
        batch_size: int,
        seed: Values | None = None,
        *,
        n_models: int | None = None,
        layout: str = "dense",
        clean: bool = False,
        purpose: str = "training",
        device: torch.device | str | None = None,
    ) -> torch.Tensor | SparseBatch | tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step, bit for bit as `toykern.fit` draws it.

        Args:
            step: 0 … 2³² − 1.
            batch_size: samples.
            seed: int, or `[models]`; None means 0 … models−1.
            n_models: number of models; by default that of the probabilities or of the seeds, or 1.
            layout: "dense"; "sparse", the active entries alone as a `SparseBatch` (what a layer takes); or
                "coo", the active entries as indices and values.
            clean: leave out the input noise (what the target is made from).
            purpose: "training", or "evaluation" for the stream that `toykern.evaluate` uses.
            device: where the batch is wanted; the CPU by default. On a CUDA device dense batches are drawn
                there, with the same bits; sparse ones, and those of `active` or `dependence`, are drawn on
                the CPU and moved.

        Returns:
            float32 `[models, batch_size, n_features]`; a `SparseBatch` with layout="sparse"; with
            layout="coo" the pair (indices, values): int64 `[3, entries]` (model, sample, feature; sorted) and
            float32 `[entries]`.
        """
        step = check_int("step", step, minimum=0, maximum=MAX_STEP)
        batch_size = check_size("batch_size", batch_size)
        layout = check_choice("layout", layout, ("dense", "sparse", "coo"))
        purpose = check_choice("purpose", purpose, PURPOSES)
        clean = check_flag("clean", clean)
        models = self.models_of(seed, n_models)
        seeds = broadcast_seed("seed", seed, models)
        wanted = check_kernels("cpu" if device is None else device)
        there = wanted if self.drawn_on_devices else torch.device("cpu")
        if layout == "dense" and there.type == "cpu":
            check_free_memory(
                f"a batch of n_models={models:,}, batch_size={batch_size:,}, n_features={self.n_features:,}",
                4 * models * batch_size * self.n_features,
                'fewer models or samples need less, and so does layout="sparse"',
            )

        params = _native.SampleParams()
        params.data = self.native()
        params.n_models = models
        params.batch_size = batch_size
        params.seed = address("seed", seeds, torch.int64)
        params.seed_stride = 1
        params.step = step
        params.purpose = number("purpose", purpose)
        noisy = self.noise > 0.0 and not clean
        if layout == "dense":
            x = torch.empty(models, batch_size, self.n_features, dtype=torch.float32, device=there)
            setattr(params, "noisy" if noisy else "clean", address("x", x, torch.float32, there))
            if there.type == "cuda":
                launch = DeviceLaunch(self, models, there, "sampling")
                (seeds,) = launch.moved([seeds])
                params.data, params.seed = launch.distribution, address("seed", seeds, torch.int64, there)
                launch.sample(params)
            else:
                _native.sample(params, kernel_threads())
            return x.to(wanted)
        if not noisy:
            data = params.data
            data.noise = 0.0
            params.data = data
        starts, sample, feature, value = _native.sample_entries(params)
        model = np.repeat(np.arange(models, dtype=np.int64), np.diff(starts))
        indices = np.stack([model, sample.astype(np.int64), feature.astype(np.int64)])
        coo = torch.from_numpy(indices), torch.from_numpy(value)
        if layout == "coo":
            return coo[0].to(wanted), coo[1].to(wanted)
        return SparseBatch.from_coo(*coo, (models, batch_size, self.n_features)).to(wanted)

    def targets(
        self,
        step: int,
        batch_size: int,
        seed: Values | None = None,
        *,
        n_models: int | None = None,
        purpose: str = "training",
    ) -> torch.Tensor:
        """What the target of a step is made from, float32 `[models, batch_size, n_outputs]`: the samples
        without noise, or the projection's products with them (each rounded once from float64 sums, where the
        kernels add float32). Arguments as for `sample`.

        >>> data = SparseFeatures(4, 0.5, projection=torch.ones(1, 4))
        >>> torch.allclose(data.targets(0, 8), data.sample(0, 8).sum(dim=2, keepdim=True))
        True
        """
        check_choice("purpose", purpose, PURPOSES)
        clean = self.sample(step, batch_size, seed, n_models=n_models, clean=True, purpose=purpose)
        return clean if self.projection is None else self.projection.of(clean)

    def dataset(
        self,
        samples: Values,
        seed: Values | None = None,
        *,
        n_models: int | None = None,
        normalize: str | None = None,
        purpose: str = "training",
    ) -> Dataset:
        """The first samples of the stream, kept: a finite dataset, as in Henighan et al. 2023.

        Args:
            samples: how many, T; an int, or one number for each model, `[models]`. They are the samples of
                step 0, so that a dataset of fewer samples is the beginning of one of more.
            seed: int, or `[models]`; None means 0 … models−1.
            n_models: number of models; by default that of the probabilities, samples or seeds. A dataset of
                one is shared by all models that are trained on it; so is that of one seed and one row of
                probabilities, of which models may have different numbers of samples.
            normalize: "unit" scales every sample that is not all zeros to length 1.
            purpose: "training", or "evaluation" for samples that training never draws, to test on.

        Input noise is kept in the inputs; the targets are then the samples without it. With a `projection`
        they are its products with these samples, scaled where they are.

        >>> data = SparseFeatures(n_features=100, probability=0.05).dataset(samples=[4, 8], normalize="unit")
        >>> data
        Dataset(8 samples of n_features=100, of 2 models)
        """
        check_choice("purpose", purpose, PURPOSES)
        return keep(self, samples, seed, n_models, normalize, purpose)

    def arrays(self) -> dict[str, torch.Tensor]:
        """What is given per model, by the name that runs and stores have for it."""
        found = {"probability": self.probability}
        return found if self.projection is None else found | {"data/projection": self.projection.matrix}

    def row(self, i: int) -> SparseFeatures:
        """That of model `i` alone; what all models share stays as it is."""
        return self.of_models(slice(i, i + 1))

    def of_models(self, chosen: slice | torch.Tensor) -> SparseFeatures:
        """That of the models `chosen` (int64, or a slice); what all models share stays as it is."""
        own = {name: held[chosen] if len(held) > 1 else held for name, held in self.arrays().items()}
        return features_from_config(self.config(), own)

    def native(self) -> Any:
        """The kernels' view of this distribution; valid while this object lives."""
        d = _native.Distribution()
        d.n_features = self.n_features
        d.n_units = len(self._units.kind)
        d.unit_start = address_of_array("units", self._units.start, np.int64)
        d.unit_member = address_of_array("units", self._units.member, np.uint32)
        d.unit_kind = address_of_array("units", self._units.kind, np.uint8)
        d.probability = address("probability", self.probability, torch.float64)
        d.probability_stride = self.n_features if self.probability.shape[0] > 1 else 0
        d.magnitude = number("magnitude", self.magnitude)
        d.noise = self.noise
        d.joint = number("joint", self._joint())
        if self.active is not None:
            d.n_active = self.active
        for name, array in self._joint_arrays.items():
            setattr(d, name, address_of_array(name, array, array.dtype))
        if isinstance(self.dependence, Copula):
            d.n_factors = self.dependence.factor.shape[1]
        return d

    def marginals(self) -> torch.Tensor:
        """Of each feature, how often it is active: float64 `[1 or models, n_features]`.

        This is `probability`, but in a `Hierarchy`, where that is conditional.
        """
        if isinstance(self.dependence, Hierarchy):
            return self.dependence.marginals(self.probability)
        return self.probability

    def unit_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is switched on together (docs/data_stream.md §2): int64 starts `[units + 1]`, uint32 members
        `[n_features]`, uint8 kinds `[units]`.
        """
        return self._units.start, self._units.member, self._units.kind

    def active_features(self) -> torch.Tensor:
        """Expected number of active features in a sample, float64 `[1 or models]`.

        >>> SparseFeatures(4, 0.25).active_features()
        tensor([1.], dtype=torch.float64)
        """
        return self.marginals().sum(dim=1)

    def config(self) -> dict[str, Any]:
        """JSON-able description without the probabilities; `features_from_config` is its inverse."""
        groups = [[type(group).__name__, list(group.members)] for group in self.groups]
        described = {
            "n_features": self.n_features,
            "magnitude": self.magnitude,
            "groups": groups,
            "noise": self.noise,
        }
        if self.active is not None:
            described["active"] = self.active
        if self.dependence is not None:
            described["dependence"] = self.dependence.config()
        return described

    def __repr__(self) -> str:
        p = self.probability
        shown = f"{float(p.flatten()[0]):g}" if bool((p == p.flatten()[0]).all()) else f"<{list(p.shape)}>"
        parts = [f"n_features={self.n_features}", f"probability={shown}", f"magnitude={self.magnitude!r}"]
        parts += [f"groups=<{len(self.groups)}>"] if self.groups else []
        parts += [f"noise={self.noise:g}"] if self.noise else []
        if self.active is not None:
            parts[1] = f"active={self.active}"
        parts += [f"dependence={self.dependence!r}"] if self.dependence is not None else []
        parts += [f"projection=<{list(self.projection.matrix.shape)}>"] if self.projection is not None else []
        return f"SparseFeatures({', '.join(parts)})"

    def models_of(self, seed: Values | None, n_models: int | None) -> int:
        """How many models a batch is for; ValueError where the arguments disagree."""
        if n_models is None:
            if self.n_models is not None:
                return self.n_models
            one = seed is None or isinstance(seed, int)
            return 1 if one else max(1, as_tensor("seed", seed, torch.int64).numel())
        models = check_size("n_models", n_models)
        if self.n_models not in (None, models):
            raise ValueError(f"n_models must be {self.n_models}, those of the distribution, not {models}")
        return models

    @property
    def drawn_on_devices(self) -> bool:
        """Whether CUDA devices have kernels that draw it: those of single features and of groups."""
        return self._joint() == "units"

    def refuse_dependence(self, what: str) -> None:
        """ValueError where `what` knows single features and groups alone."""
        if not self.drawn_on_devices:
            given = f"active={self.active}" if self.active is not None else f"dependence={self.dependence!r}"
            raise ValueError(f"data with {given} cannot be used by {what}")

    def _joint(self) -> str:
        if self.active is not None:
            return "subset"
        return "units" if self.dependence is None else self.dependence.kind

    def _check_dependence(self, dependence: Any) -> Dependence | None:
        """Checked against all else; the kernels' arrays of it are made."""
        self._joint_arrays: dict[str, np.ndarray] = {}
        if dependence is None and self.active is None:
            return None
        other = "active" if self.active is not None else "dependence"
        if self.groups:
            raise ValueError(f"groups cannot be given together with {other}, which is about all features")
        if dependence is None:
            return None
        if self.active is not None:
            raise ValueError("dependence cannot be given together with active")
        if not isinstance(dependence, Hierarchy | Copula):
            raise TypeError(f"dependence must be a Hierarchy or a Copula, not {describe(dependence)}")
        if dependence.n_features != self.n_features:
            raise ValueError(
                f"dependence must be of n_features = {self.n_features} features, not {dependence.n_features}"
            )
        self._joint_arrays = dependence.native_arrays(self.probability)
        return dependence


def features_from_config(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> SparseFeatures:
    """The distribution that `config()` described, with these `arrays()`.

    >>> data = SparseFeatures(3, 0.5, groups=[Correlated((0, 2))])
    >>> features_from_config(data.config(), {"probability": data.probability})
    SparseFeatures(n_features=3, probability=0.5, magnitude='uniform', groups=<1>)
    """
    kinds: dict[str, type[Group]] = {
        "Correlated": Correlated,
        "Anticorrelated": Anticorrelated,
    }
    active, dependence = config.get("active"), config.get("dependence")
    return SparseFeatures(
        config["n_features"],
        arrays["probability"] if active is None else None,
        magnitude=config["magnitude"],
        groups=[kinds[name](members) for name, members in config["groups"]],
        noise=config["noise"],
        active=active,
        dependence=None if dependence is None else dependence_from_config(dependence),
        projection=arrays.get("data/projection"),
    )


def _check_probability(value: Any, n_features: int) -> torch.Tensor:
    """float64 CPU `[1 or models, n_features]`, contiguous and the distribution's own."""
    p = as_tensor("probability", value, torch.float64)
    rows = p.reshape(1, -1) if p.ndim < 2 else p
    if rows.ndim > 2 or rows.shape[0] == 0 or rows.shape[1] not in (1, n_features):
        raise ValueError(
            f"probability must broadcast to [models, n_features] with n_features = {n_features}: one number, "
            f"[{n_features}], [models, 1] or [models, {n_features}], not {describe(value)}"
        )
    bad = ~((rows >= 0.0) & (rows <= 1.0))
    if bool(bad.any()):
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"probability must lie in [0, 1], not {rows[at].item()} (model {at[0]}, feature {at[1]})"
        )
    return rows.expand(rows.shape[0], n_features).clone(memory_format=torch.contiguous_format)
