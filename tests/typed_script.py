"""A user's script, as a strict type checker reads it: `assert_type` holds for no `Any`.

`make lint` checks it beside the package, `tests/test_typing.py` away from the sources. Nobody runs it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from torch import nn

import toykern as tk
from toykern import experiments
from toykern import typing as tkt


def models_and_data() -> None:
    grid = tk.grid(density=[1.0, 0.3], seed=range(3))
    assert_type(grid, tk.Grid)
    assert_type(grid.density, torch.Tensor)
    assert_type(grid.n_models, int)

    model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=grid.n_models, seed=grid.seed)
    assert_type(model.weight, nn.Parameter)
    assert_type(model.bias, nn.Parameter | None)
    assert_type(model[0], tk.TiedAutoencoder)
    assert_type(model(torch.zeros(6, 1, 5)), torch.Tensor)
    assert_type(model.loss(torch.zeros(6, 1, 5), importance=[1.0] * 5), torch.Tensor)
    assert_type(model.to_published(), dict[str, torch.Tensor])
    assert_type(tk.Autoencoder(5, 2)(torch.zeros(1, 1, 5)), torch.Tensor)
    assert_type(tk.MLP(5, 2, 3)(torch.zeros(1, 1, 5)), torch.Tensor)
    assert_type(tk.SparseTiedAutoencoder(5, 2, density=0.5)(torch.zeros(1, 1, 5)), torch.Tensor)
    assert_type(tk.SparseLinear(3, 4, density=0.5)(torch.zeros(1, 3)), torch.Tensor)

    data = tk.SparseFeatures(n_features=5, probability=grid.density[:, None])
    assert_type(data.sample(0, 8), torch.Tensor)
    assert_type(data.sample(0, 8, layout="sparse"), tk.SparseBatch)
    assert_type(data.sample(0, 8, layout="coo"), tuple[torch.Tensor, torch.Tensor])
    assert_type(data.targets(0, 8), torch.Tensor)
    assert_type(data.dataset(samples=20), tk.Dataset)
    assert_type(tk.modular_addition(5, 0.3), tuple[tk.Dataset, tk.Dataset])
    assert_type(tk.zipf(5, 1.0, 2.0), torch.Tensor)


def training(model: tkt.AnyModel, data: tkt.Source, optimizer: tkt.Optimizer, schedule: tkt.Schedule) -> None:
    run = tk.fit(model, data, steps=10, optimizer=optimizer, schedule=schedule, importance=np.ones(5))
    assert_type(run, tk.Run)
    assert_type(run.loss, torch.Tensor)
    assert_type(run.final_loss, torch.Tensor)
    assert_type(run.records, dict[str, torch.Tensor])
    assert_type(run.model, tkt.AnyModel)
    assert_type(run.grid, tk.Grid | None)
    assert_type(run.topology, tkt.ResidentTopology | None)
    assert_type(run.best(over="seed"), np.ndarray)
    assert_type(run.sel(density=0.3), tk.Run)
    assert_type(run.rerun(2), tk.Run)
    assert_type(run.to_xarray(), xr.Dataset)
    assert_type(tk.Run.load("run.zarr"), tk.Run)
    assert_type(tk.evaluate(model, data), torch.Tensor)
    assert_type(tk.log_spaced_steps(10, 3), list[int])
    assert_type(tk.local_learning_coefficient(model, tk.Dataset(torch.zeros(3, 5))), tk.LearningCoefficient)


def sweeping(grid: tk.Grid, plan: tkt.Plan, measure: tkt.Measure) -> None:
    sweep = tk.sweep(grid, plan, Path("s.zarr"), measure=measure)
    assert_type(sweep, tk.Sweep)
    assert_type(tk.sweep(grid, plan, "s.zarr", dry_run=True), tkt.SweepPlan)
    assert_type(tk.open_sweep("s.zarr"), tk.Sweep)
    assert_type(tk.merge_sweeps(["a.zarr", "b.zarr"], "s.zarr"), tk.Sweep)
    assert_type(sweep.grid, tk.Grid)
    assert_type(sweep.read("loss"), np.ndarray)
    assert_type(sweep.to_xarray(), xr.Dataset)
    assert_type(experiments.run("intro-polygons", quick=True), tkt.Result)


def looking(weight: torch.Tensor) -> None:
    assert_type(tk.metrics.features_per_dimension(weight), torch.Tensor)
    assert_type(tk.metrics.feature_dimensionality(weight), torch.Tensor)
    assert_type(tk.metrics.match_directions(weight, weight), tkt.Matching)
    assert_type(tk.plot.feature_directions(weight), Axes)
    assert_type(tk.plot.loss_curves(tk.Run.load("run.zarr"), by="density"), Axes)


def topologies(network: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    assert_type(tk.sparsify(network, density=0.1), nn.Sequential)
    assert_type(tk.sparsify(nn.Linear(3, 4), density=0.5), nn.Linear | tk.SparseLinear)
    recipe: tkt.Recipe = tk.RigL(interval=50, end=300)
    attached = recipe.attach(network, optimizer)
    assert_type(attached, tkt.AttachedTopology)
    assert_type(attached.layers, dict[str, nn.Module])


def callables() -> None:
    def plan(points: tk.Grid, index: torch.Tensor) -> Mapping[str, Any]:
        return {"model": tk.TiedAutoencoder(5, 2, points.n_models, seed=index)}

    def stop(run: tk.Run) -> bool:
        return run.step > 5

    kept: tuple[tkt.Plan, tkt.Callback, tkt.Values] = plan, stop, 1.0
    as_they_are: Callable[[tk.Run], bool | None] = kept[1]
    assert_type(as_they_are(tk.Run.load("run.zarr")), bool | None)
