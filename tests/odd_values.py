"""Every public callable with arguments that are fine, and values that are odd for nearly every argument.

`CALLS` says how each is called; `test_odd_values.py` replaces one argument at a time by each of `VALUES`.
What comes back is a result, or a TypeError or ValueError that names the argument: never another exception,
and never the end of the process.
"""

from __future__ import annotations

import decimal
import fractions
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import toykern as tk
from toykern import metrics, plot
from toykern.experiments.phase_diagram import train_phase_diagram
from toykern.nn import initial_std, layer_densities, model_from_config
from toykern.sparse import DenseGradient, Magnitude, MomentumGrowth, SampledGradient

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1.9": lambda: 1.9,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "nan": lambda: float("nan"),
    "-inf": lambda: -float("inf"),
    "complex": lambda: 1 + 2j,
    "empty text": lambda: "",
    "text": lambda: "no such thing",
    "bytes": lambda: b"relu",
    "object": object,
    "type": lambda: int,
    "function": lambda: lambda: None,
    "empty list": list,
    "list": lambda: [1, "a"],
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "set": lambda: {0.5},
    "dict": lambda: {"a": 1},
    "range": lambda: range(2),
    "fraction": lambda: fractions.Fraction(1, 3),
    "decimal": lambda: decimal.Decimal("0.5"),
    "no samples": lambda: torch.ones(0, 3),
    "three dimensions": lambda: torch.ones(2, 3, 4),
    "nan tensor": lambda: torch.full((2,), torch.nan),
    "complex tensor": lambda: torch.ones(2, dtype=torch.complex64),
    "bool tensor": lambda: torch.tensor([True, False]),
    "meta tensor": lambda: torch.ones(2, device="meta"),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "texts": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([object(), None]),
    "half": lambda: np.float16(0.5),
    "date": lambda: np.datetime64("2020-01-01"),
    "infinite array": lambda: np.full((2, 2), np.inf),
}


LARGE = (10**9, 2**31 - 1, 2**31, 2**40)
"""Sizes for every argument: what would be so large does not fit."""

LASTS = {
    ("fit", "steps"),
    ("fit", "batch_size"),
    ("evaluate", "samples"),
    ("fit of an MLP", "steps"),
    ("fit of an MLP", "batch_size"),
    ("fit of a dataset with a test", "steps"),
    ("fit of a dataset with a test", "batch_size"),
    ("evaluate of an MLP", "samples"),
    ("train_phase_diagram", "steps"),
    ("train_phase_diagram", "batch_size"),
    ("local_learning_coefficient", "batch_size"),
    ("local_learning_coefficient", "steps_between_draws"),
    ("llc.polygon_learning_coefficients", "batch_size"),
    ("llc.polygon_learning_coefficients", "steps_between_draws"),
}
"""Arguments by (callable, name) that may be so large: it lasts, but takes no memory."""


@dataclass(frozen=True)
class PublicCall:
    """How a public callable is called.

    Attributes:
        call: it, or what makes it (a method needs an object of its own each time).
        arguments: fresh ones, by name; those not in it keep their defaults.
        skip: arguments that take anything (a label of a user's own).
    """

    call: Callable[[], Callable[..., Any]]
    arguments: Callable[[], Mapping[str, Any]]
    skip: tuple[str, ...] = ()


def _model() -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(3, 2, 2, seed=[0, 1])


def _mlp() -> tk.MLP:
    return tk.MLP(3, 2, n_models=2, embedding=3, unembedding=True)


def _data() -> tk.SparseFeatures:
    return tk.SparseFeatures(3, 0.5)


def _dataset() -> tk.Dataset:
    return tk.Dataset(torch.eye(3))


def _grid() -> tk.Grid:
    return tk.grid(density=[0.1, 0.5])


def _run() -> tk.Run:
    return tk.fit(_model(), _data(), steps=4, batch_size=4, stop_at=2, grid=_grid(), progress=False)


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def _weight() -> torch.Tensor:
    return torch.linspace(-1, 1, 12).reshape(2, 2, 3)


def _network_weights() -> dict[str, torch.Tensor]:
    return {"encoder": _weight(), "decoder": _weight().mT, "bias": torch.zeros(2, 3)}


def _place(name: str) -> Path:
    return Path(tempfile.mkdtemp()) / name


_SHAPE = {"n_features": 3, "n_hidden": 2, "n_models": 2}
_RECIPE = {"interval": 2, "end": 8}


def _of(call: Callable[..., Any], skip: tuple[str, ...] = (), **arguments: Any) -> PublicCall:
    """A plain function or class; callables among the arguments are called for a fresh value."""
    return PublicCall(
        lambda: call,
        lambda: {name: value() if callable(value) else value for name, value in arguments.items()},
        skip,
    )


def _method(of: Callable[[], Any], name: str, skip: tuple[str, ...] = (), **arguments: Any) -> PublicCall:
    return PublicCall(
        lambda: getattr(of(), name),
        lambda: {key: value() if callable(value) else value for key, value in arguments.items()},
        skip,
    )


def _recipe(kind: Any, **options: Any) -> PublicCall:
    return _of(kind, **(_RECIPE | options))


CALLS: dict[str, PublicCall] = {
    "TiedAutoencoder": _of(tk.TiedAutoencoder, **_SHAPE),
    "Autoencoder": _of(tk.Autoencoder, **_SHAPE),
    "SparseTiedAutoencoder": _of(tk.SparseTiedAutoencoder, n_features=6, n_hidden=4, density=0.5),
    "SparseLinear": _of(tk.SparseLinear, in_features=6, out_features=4, density=0.5),
    "SparseFeatures": _of(tk.SparseFeatures, n_features=3, probability=0.5),
    "SparseFeatures.one_sparse": _of(tk.SparseFeatures.one_sparse, n_features=3),
    "SparseFeatures.sample": _method(_data, "sample", step=0, batch_size=4),
    "SparseFeatures of so many active": _of(tk.SparseFeatures, n_features=3, active=2),
    "SparseFeatures with a projection": _of(
        tk.SparseFeatures, n_features=3, probability=0.5, projection=lambda: torch.ones(2, 3)
    ),
    "SparseFeatures.targets": _method(_data, "targets", step=0, batch_size=4),
    "SparseFeatures.dataset": _method(_data, "dataset", samples=4),
    "Dataset": _of(tk.Dataset, inputs=lambda: torch.ones(2, 3)),
    "Dataset of labels": _of(tk.Dataset, inputs=lambda: torch.ones(2, 3), labels=[0, 1]),
    "Dataset.batch of labels": _method(
        lambda: tk.Dataset(torch.eye(3), labels=[0, 1, 0]), "batch", step=0, n_outputs=2
    ),
    "Dataset.rows_of": _method(_dataset, "rows_of", step=0, batch_size=2),
    "Dataset.batch": _method(_dataset, "batch", step=0, batch_size=2),
    "Hierarchy": _of(tk.Hierarchy, parents=[-1, 0, 0]),
    "Copula": _of(tk.Copula, correlation=lambda: torch.eye(3)),
    "Copula of loadings": _of(tk.Copula, loadings=lambda: torch.full((3, 1), 0.5)),
    "modular_addition": _of(tk.modular_addition, p=5),
    "zipf": _of(tk.zipf, n_features=5, exponent=1.0, mean_active=2.0),
    "SparseBatch": _of(
        tk.SparseBatch,
        row_start=lambda: torch.tensor([0, 1]),
        feature=lambda: torch.tensor([2], dtype=torch.int32),
        value=lambda: torch.ones(1),
        n_features=3,
    ),
    "SparseBatch.from_dense": _of(tk.SparseBatch.from_dense, x=lambda: torch.eye(3)),
    "SparseBatch.from_coo": _of(
        tk.SparseBatch.from_coo,
        indices=lambda: torch.tensor([[0], [1], [2]]),
        values=lambda: torch.ones(1),
        shape=[1, 2, 3],
    ),
    "SparseBatch.of_model": _method(lambda: tk.SparseBatch.from_dense(torch.eye(3)), "of_model", i=0),
    "SparseBatch.from_csr": _of(tk.SparseBatch.from_csr, csr=lambda: torch.eye(3).to_sparse_csr()),
    "Correlated": _of(tk.Correlated, members=[0, 1]),
    "Anticorrelated": _of(tk.Anticorrelated, members=[0, 1]),
    "SGD": _of(tk.SGD),
    "Adam": _of(tk.Adam),
    "AdamW": _of(tk.AdamW),
    "LAMB": _of(tk.LAMB),
    "SGLD": _of(tk.SGLD),
    "BiasDecay": _of(tk.BiasDecay, rate=0.1),
    "UnitNorm": _of(tk.UnitNorm),
    "WarmupCosine": _of(tk.WarmupCosine, warmup=2),
    "PeriodicCosine": _of(tk.PeriodicCosine, period=4),
    "grid": _of(tk.grid, skip=("axes",), density=lambda: [0.1, 0.5]),
    "Grid": _of(tk.Grid, axes=lambda: {"density": [0.1, 0.5]}),
    "Grid.from_config": _of(tk.Grid.from_config, config=lambda: _grid().config()),
    "Grid.unflatten": _method(_grid, "unflatten", flat=lambda: np.arange(2)),
    "Grid.index": _method(_grid, "index", skip=("selectors",), density=0.1),
    "log_spaced_steps": _of(tk.log_spaced_steps, steps=100, count=5),
    "fit": _of(
        tk.fit,
        model=_model,
        data=_data,
        steps=2,
        batch_size=4,
        optimizer=tk.Adam,
        progress=False,
    ),
    "evaluate": _of(tk.evaluate, model=_model, data=_data, samples=8),
    "fit of a dataset with a test": _of(
        tk.fit,
        model=lambda: tk.MLP(3, 2, n_models=2, hidden_activation="relu"),
        data=_dataset,
        steps=2,
        test=_dataset,
        record=["test_loss", "accuracy", "dead_units"],
        callback=None,
        progress=False,
    ),
    "Run.sel": _method(_run, "sel", skip=("axes",), density=0.1),
    "Run.sel by a dictionary": _method(_run, "sel", skip=("axes",), points=lambda: {"density": 0.1}),
    "Run.isel": _method(_run, "isel", skip=("axes",), density=0),
    "Run.isel by a dictionary": _method(_run, "isel", skip=("axes",), places=lambda: {"density": [0]}),
    "Run.rerun": _method(_run, "rerun", i=0),
    "Run.best": _method(_run, "best", over="density"),
    "Run.save": _method(_run, "save", path=lambda: _place("run.zarr")),
    "Run.load": _of(tk.Run.load, path=lambda: _saved()),
    "sweep": _of(
        tk.sweep,
        skip=("settings", "measure"),
        grid=_grid,
        plan=lambda: _plan,
        path=lambda: _place("sweep.zarr"),
        progress=False,
    ),
    "merge_sweeps": _of(
        tk.merge_sweeps,
        paths=lambda: [_saved_sweep(), _saved_sweep()],
        path=lambda: _place("merged.zarr"),
    ),
    "open_sweep": _of(tk.open_sweep, path=lambda: _saved_sweep()),
    "sparsify": _of(tk.sparsify, module=_network, density=0.5),
    "GSE": _recipe(tk.GSE),
    "SET": _recipe(tk.SET),
    "SNFS": _recipe(tk.SNFS),
    "RigL": _recipe(tk.RigL),
    "SRigL": _recipe(tk.SRigL),
    "PruneAndGrow": _recipe(tk.PruneAndGrow),
    "GradualMagnitude": _recipe(tk.GradualMagnitude, final_density=0.1),
    "LotteryTicket": _of(tk.LotteryTicket, rounds=2, round_steps=3),
    "Static": _of(tk.Static),
    "SampledGradient": _of(SampledGradient),
    "MomentumGrowth": _of(MomentumGrowth),
    "Magnitude": _of(Magnitude),
    "DenseGradient": _of(DenseGradient),
    "GradualMagnitude.density_at": _method(
        lambda: tk.GradualMagnitude(final_density=0.1, end=1000), "density_at", step=500, initial=1.0
    ),
    "AttachedTopology.plot": _method(lambda: _attached(), "plot", quantity="density"),
    "AttachedTopology.put_weights_back": _method(
        lambda: _attached(), "put_weights_back", with_optimizer=True
    ),
    "AttachedTopology.load_state_dict": _method(
        lambda: _attached(), "load_state_dict", state=lambda: _attached().state_dict()
    ),
    "Recipe.attach": _method(
        tk.SET, "attach", model=lambda: _sparse_network()[0], optimizer=lambda: _held["network"][1]
    ),
    "Topology": _of(
        tk.Topology,
        in_features=3,
        out_features=2,
        row_start=lambda: torch.tensor([[0, 1, 2]]),
        column=lambda: torch.tensor([0, 2], dtype=torch.int32),
    ),
    "Topology.random": _of(tk.Topology.random, in_features=6, out_features=4, density=0.5),
    "Topology.random_fan_in": _of(tk.Topology.random_fan_in, in_features=6, out_features=4, fan_in=2),
    "Topology.from_mask": _of(tk.Topology.from_mask, mask=lambda: torch.eye(3).bool()),
    "Topology.from_largest": _of(tk.Topology.from_largest, weight=lambda: torch.rand(3, 4), density=0.5),
    "Topology.to_dense": _method(
        lambda: tk.Topology.from_mask(torch.eye(3).bool()), "to_dense", values=lambda: torch.ones(3)
    ),
    "Topology.to": _method(lambda: tk.Topology.from_mask(torch.eye(3).bool()), "to", device="cpu"),
    "Topology.with_changes": _method(
        lambda: tk.Topology.from_mask(torch.eye(3).bool()),
        "with_changes",
        drop=lambda: torch.tensor([True, False, False]),
        grow=lambda: tuple(torch.tensor([i]) for i in (0, 0, 2)),
    ),
    "Topology.keys": _method(
        lambda: tk.Topology.from_mask(torch.eye(3).bool()),
        "keys",
        drop=lambda: torch.tensor([True, False, False]),
    ),
    "TiedAutoencoder.from_published": _of(tk.TiedAutoencoder.from_published, weight=_weight),
    "TiedAutoencoder.to_published": _method(_model, "to_published", model=0),
    "MLP": _of(tk.MLP, **_SHAPE),
    "MLP with an embedding": _of(tk.MLP, **_SHAPE, embedding=2, unembedding=True),
    "MLP.from_published": _of(
        tk.MLP.from_published,
        weights=lambda: {"linear1.weight": torch.ones(4, 3), "linear2.weight": torch.ones(2, 4)},
    ),
    "MLP.to_published": _method(_mlp, "to_published", model=0),
    "MLP.forward": _method(_mlp, "forward", x=lambda: torch.ones(4, 3)),
    "MLP.encode": _method(_mlp, "encode", x=lambda: torch.ones(4, 3)),
    "MLP.decode": _method(
        lambda: tk.MLP(3, 2, residual=True),
        "decode",
        codes=lambda: torch.ones(4, 2),
        x=lambda: torch.ones(4, 3),
    ),
    "MLP.loss": _method(_mlp, "loss", x=lambda: torch.ones(4, 3)),
    "MLP[i]": _method(_mlp, "__getitem__", index=0),
    "fit of an MLP": _of(
        tk.fit, model=lambda: _mlp(), data=_data, steps=2, batch_size=4, l1=0.1, progress=False
    ),
    "evaluate of an MLP": _of(tk.evaluate, model=lambda: _mlp(), data=_data, samples=8, l1=0.1),
    "model[i]": _method(_model, "__getitem__", index=0),
    "model.forward": _method(_model, "forward", x=lambda: torch.ones(4, 3)),
    "model.loss": _method(_model, "loss", x=lambda: torch.ones(4, 3)),
    "SparseTiedAutoencoder.loss": _method(
        lambda: tk.SparseTiedAutoencoder(3, 2, 0.5), "loss", x=lambda: torch.ones(4, 3)
    ),
    "SparseTiedAutoencoder.forward": _method(
        lambda: tk.SparseTiedAutoencoder(3, 2, 0.5), "forward", x=lambda: torch.ones(4, 3)
    ),
    "SparseTiedAutoencoder[i]": _method(
        lambda: tk.SparseTiedAutoencoder(3, 2, 0.5, n_models=2), "__getitem__", index=0
    ),
    "SparseLinear.forward": _method(
        lambda: tk.SparseLinear(3, 2, 0.5), "forward", x=lambda: torch.ones(4, 3)
    ),
    "SparseLinear.from_linear": _of(
        tk.SparseLinear.from_linear,
        linear=lambda: nn.Linear(3, 3),
        topology=lambda: tk.Topology.from_mask(torch.eye(3).bool()),
    ),
    "SparseLinear.to_linear": _method(lambda: tk.SparseLinear(3, 2, 0.5), "to_linear", model=0),
    "initial_std": _of(initial_std, init="xavier", **_SHAPE),
    "layer_densities": _of(layer_densities, shapes=lambda: [(3, 4), (4, 5)], density=0.5),
    "model_from_config": _of(model_from_config, config=lambda: _model().config()),
    "metrics.features_per_dimension": _of(metrics.features_per_dimension, weight=_weight),
    "metrics.feature_dimensionality": _of(metrics.feature_dimensionality, weight=_weight),
    "metrics.superposition": _of(metrics.superposition, weight=_weight),
    "metrics.interference": _of(metrics.interference, weight=_weight),
    "metrics.classify_phase": _of(metrics.classify_phase, weight=_weight),
    "metrics.ignored_loss": _of(metrics.ignored_loss, density=0.5),
    "metrics.antipodal_loss": _of(metrics.antipodal_loss, density=0.5),
    "metrics.solution_losses": _of(metrics.solution_losses, density=0.5, relative_importance=1.0),
    "metrics.best_solution": _of(metrics.best_solution, density=0.5, relative_importance=1.0),
    "metrics.phase_boundary": _of(metrics.phase_boundary, relative_importance=1.0),
    "metrics.polygon": _of(metrics.polygon, n_vertices=5),
    "metrics.leverage": _of(metrics.leverage, matrix=_weight),
    "metrics.sample_dimensionality": _of(metrics.sample_dimensionality, codes=_weight),
    "metrics.mean_max_cosine_similarity": _of(
        metrics.mean_max_cosine_similarity, dictionary=_weight, truth=_weight
    ),
    "metrics.match_directions": _of(metrics.match_directions, dictionary=_weight, truth=_weight),
    "metrics.explained_variance": _of(metrics.explained_variance, target=_weight, reconstruction=_weight),
    "metrics.l0": _of(metrics.l0, codes=_weight),
    "metrics.dead_units": _of(metrics.dead_units, codes=_weight),
    "metrics.single_feature_activations": _of(metrics.single_feature_activations, model=lambda: _mlp()),
    "metrics.monosemanticity": _of(metrics.monosemanticity, activations=_weight),
    "metrics.monosemantic_share": _of(metrics.monosemantic_share, activations=_weight),
    "metrics.fourier_power": _of(metrics.fourier_power, weights=_weight),
    "metrics.inverse_participation_ratio": _of(metrics.inverse_participation_ratio, weights=_weight),
    "metrics.key_frequencies": _of(metrics.key_frequencies, weights=_weight),
    "metrics.match_units": _of(metrics.match_units, first=_network_weights, second=_network_weights),
    "metrics.permute_units": _of(
        metrics.permute_units, parameters=_network_weights, order=lambda: torch.tensor([1, 0])
    ),
    "metrics.linear_path": _of(metrics.linear_path, first=_network_weights, second=_network_weights),
    "metrics.loss_barrier": _of(metrics.loss_barrier, losses=lambda: torch.tensor([1.0, 3.0, 2.0])),
    "metrics.packing_interference": _of(metrics.packing_interference, n=100.0, d=200.0),
    "metrics.packing_loss": _of(metrics.packing_loss, n=100.0, d=200.0),
    "metrics.packing_slope": _of(metrics.packing_slope, n=100.0, d=200.0),
    "metrics.best_packing": _of(metrics.best_packing, n=100.0, d=200.0),
    "local_learning_coefficient": _of(
        tk.local_learning_coefficient,
        model=lambda: _model(),
        data=_dataset,
        chains=2,
        draws=2,
        burn_in=0,
        progress=False,
    ),
    "llc.polygon_learning_coefficients": _of(
        tk.llc.polygon_learning_coefficients,
        n_features=3,
        samples=8,
        chains=2,
        draws=2,
        burn_in=0,
        steps_between_draws=1,
        progress=False,
    ),
    "llc.reduced_rank_learning_coefficient": _of(
        tk.llc.reduced_rank_learning_coefficient, n_in=4, n_out=3, n_hidden=2, rank=1
    ),
    "train_phase_diagram": _of(
        train_phase_diagram, shape=[2, 2], seeds=1, steps=1, batch_size=2, progress=False
    ),
    "plot.loss_curves": _of(
        plot.loss_curves, loss=lambda: torch.rand(2, 5), steps=[1, 2, 3, 4, 5], labels=["a", "b"]
    ),
    "plot.feature_directions": _of(
        plot.feature_directions, weight=lambda: _weight()[0], importance=[1.0, 0.5, 0.1], skip=("title",)
    ),
    "plot.interference": _of(
        plot.interference, weight=lambda: _weight()[0], bias=[0.0, 0.1, 0.2], skip=("title",)
    ),
    "plot.dimensionality_scatter": _of(
        plot.dimensionality_scatter, weight=_weight, density=lambda: [0.1, 0.5], skip=("title",)
    ),
    "plot.phase_diagram": _of(
        plot.phase_diagram,
        weight=lambda: torch.rand(2, 3, 1, 2),
        importance=[0.1, 1.0],
        density=[0.01, 0.1, 1.0],
        skip=("title",),
    ),
}

UNCALLED = {
    "Run": "made by fit; what it is made of is checked where it is resumed and loaded",
    "Sweep": "made by sweep and open_sweep",
    "StoreError": "an exception",
    "llc": "a module, its functions are in the list",
    "LearningCoefficient": "made by local_learning_coefficient",
    "metrics": "a module, its functions are in the list",
    "plot": "a module, its functions are in the list",
    "sparse": "a module, for recipes of one's own; its public classes are in the list",
    "StackedModel": "what TiedAutoencoder and Autoencoder are made of",
    "AttachedLayer": "made by attach; what a recipe of one's own is given",
    "Change": "what a recipe of one's own returns; checked as drop and grow of Topology.with_changes",
    "ConstantFanIn": "takes nothing to choose",
    "GrowCriterion": "a protocol",
    "LayerReport": "made by an update",
    "NoBackwardPass": "an exception",
    "Places": "a type",
    "PruneCriterion": "a protocol",
    "RandomGrowth": "takes nothing to choose",
    "RandomPrune": "takes nothing to choose",
    "Sensitivity": "takes nothing to choose",
    "SparseLayer": "a protocol",
    "Update": "made by an update",
    "is_sparse_layer": "takes anything",
}
"""Public names that are not called, and why."""

_held: dict[str, Any] = {}


def _plan(part: tk.Grid, index: torch.Tensor) -> dict[str, Any]:
    return {"model": tk.TiedAutoencoder(3, 2, part.n_models), "data": _data(), "steps": 2, "batch_size": 4}


def _saved() -> Path:
    if "run" not in _held:
        _held["run"] = _place("run.zarr")
        _run().save(_held["run"])
    return _held["run"]


def _saved_sweep() -> Path:
    if "sweep" not in _held:
        _held["sweep"] = _place("sweep.zarr")
        tk.sweep(_grid(), _plan, _held["sweep"], progress=False)
    return _held["sweep"]


def _attached() -> Any:
    """A recipe at a network, the same one always."""
    if "attached" not in _held:
        network, optimizer = _sparse_network()
        _held["attached"] = tk.SET(**_RECIPE).attach(network, optimizer)
        _held["attached"].keep_weights()
    return _held["attached"]


def _sparse_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = tk.sparsify(_network(), 0.5, seed=0)
    _held["network"] = network, torch.optim.Adam(network.parameters())
    return _held["network"]
