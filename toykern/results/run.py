"""`Run`: everything that one call of `toykern.fit` produced, and everything needed to do it again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from toykern.arguments.broadcast import as_tensor
from toykern.arguments.errors import check_int, describe
from toykern.results.labels import trailing_dims, trained_arrays
from toykern.results.part import by_label, by_place, part_of
from toykern.results.store import load_run, save_run
from toykern.training.beginning import begin
from toykern.training.kernels import freeze
from toykern.training.loop import train
from toykern.training.schedule import schedule_from_config
from toykern.training.state import TrainingState

if TYPE_CHECKING:
    import xarray

__all__ = ["Run"]


class Run(TrainingState):
    """A training run: what came out, what went in, and where it stands. Made by `toykern.fit`.

    With K models, R records of `record_every` steps each:

    Attributes:
        model: the trained module (the one given to `fit`, trained in place); parameters `[K, …]`.
        data: the feature distribution or the dataset it was trained on.
        config: plain dictionary (JSON-able) of the settings: steps, batch size (None: the whole dataset),
            optimiser, schedule, model, data, ….
        arrays: the exact per-model inputs: `seed` int64 `[K]`, `importance` float32 `[1 or K, n]`, `lr` and
            `weight_decay` float64 `[K]` (and `clip_norm`, `lr_scale/bias`, … where they are used),
            `probability` float64 `[1 or K, n]`, ….
        step: updates done so far, of `config["steps"]`; with a `LotteryTicket` in the round at hand, the
            steps before it among them (`steps_made` counts all of them, of `steps_to_make`).
        loss: float32 `[K, R]`; record r is the mean of the batch losses of its steps, each taken before the
            update. Records not reached are NaN.
        records: the other metrics recorded, `[K, R, …]` each.
        snapshots: step t → {parameter name: `[K, …]`}, the parameters after t updates; of sparse models
            "weight" with its zeros, and "connections", bool, which exist.
        optimizer_state: for example `"weight/exp_avg"` → `[K, …]`.
        carry: partial sums of a record begun and not finished, so that a resumed run has the same bits.
        diverged_at: int64 `[K]`, the step at which a model stopped being finite; −1 = never.
        seconds: wall-clock time of the training.
        provenance: versions, stream version, instruction set, threads, commit, platform, date; "trainer":
            whether kernels or batched products began it (`toykern.fit`).
        interrupted: True if Ctrl-C cut it short.
        grid: the grid the models came from, or None.
        test: the dataset it was looked at on, or None.
        optimizer, schedule: as given to `fit`; a callable schedule is None in a run read from a store.
        topology: the recipe at work on sparse models (`toykern.sparse.AttachedTopology`): its `history` says
            what every update did, `plot()` draws it. None without one, and in a run read from a store whose
            recipe holds callables or classes of one's own; `topology_state` is then what it needs to go on.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=3)
        >>> run = tk.fit(model, tk.SparseFeatures(5, 0.1), steps=20, batch_size=32)
        >>> run.loss.shape
        torch.Size([3, 20])
        >>> bool((run.rerun(1).loss[0] == run.loss[1]).all())
        True
    """

    @property
    def final_loss(self) -> Tensor:
        """float32 `[K]`: the last finished record of the loss; NaN throughout if there is none yet."""
        return self._last(self.loss)

    @property
    def model_steps_per_second(self) -> float:
        """Throughput of the training, in model-steps per second (NaN before any time has passed)."""
        return self.n_models * self.steps_made / self.seconds if self.seconds > 0 else float("nan")

    def __repr__(self) -> str:
        config = self.config.get("model", {})
        shape = ", ".join(
            f"{name}={config[name]}" for name in ("n_features", "n_hidden", "n_outputs") if name in config
        )
        lines = [f"<toykern.Run of {_count(self.n_models, 'model')}: {type(self.model).__name__}({shape})>"]
        if self.grid is not None:
            axes = zip(self.grid.shape, self.grid.dims, strict=True)
            lines.append("  grid        " + " × ".join(f"{points} {name}" for points, name in axes))
        steps = f"{self.step:,} of {int(self.config['steps']):,}"
        if self.steps_to_make > int(self.config["steps"]):
            steps += f" in this round, {self.steps_made:,} of {self.steps_to_make:,} in all"
        state = "  (interrupted, can be resumed)" if self.interrupted else "  (can be resumed)"
        state = "" if self.complete else state
        lines.append(
            f"  steps       {steps}, batch {self.config.get('batch_size') or 'of all samples'}{state}"
        )
        losses = self.final_loss.detach().cpu().numpy()
        losses = losses[np.isfinite(losses)]
        if losses.size:
            low, median, high = np.quantile(losses, [0.05, 0.5, 0.95])
            lines.append(f"  final loss  median {median:.4g}, 5% {low:.4g}, 95% {high:.4g}")
        diverged = int((self.diverged_at >= 0).sum())
        if self.topology is not None:
            lines.append(f"  topology    {self.topology.summary()}")
        lines.append(f"  diverged    {diverged:,}" if diverged else "  diverged    none")
        lines.append(f"  time        {self.seconds:.2f} s, {self.model_steps_per_second:,.0f} model-steps/s")
        extra = [
            *self.records,
            *(["snapshots at " + ", ".join(map(str, self.snapshots))] if self.snapshots else []),
        ]
        if extra:
            lines.append(f"  also        {'; '.join(extra)}")
        return "\n".join(lines)

    def to_xarray(self) -> xarray.Dataset:
        """The results as one labelled `xarray.Dataset`.

        Dimensions: the grid's axes (or `model`), then `record`, `hidden`, `feature`, `snapshot`. Variables:
            `loss`, the other
        recorded metrics, `diverged_at`, the trained parameters under their names, and
        `<parameter>_snapshots`. The coordinate of `record` is `record_steps`. The arrays of a CPU run are
        views of the run's memory: training its model further changes them too; `.copy(deep=True)` detaches.

        Raises:
            ImportError: xarray is not installed (`pip install toykern[results]`).
        """
        xr = _import_xarray()
        network = self.model.network
        dims: tuple[str, ...] = ("model",)
        coords: dict[str, Any] = {}
        if self.grid is not None:
            dims = self.grid.dims
            coords.update(self.grid.coords)
        else:
            coords["model"] = np.arange(self.n_models, dtype=np.int64)
            if "seed" in self.arrays:
                coords["seed"] = ("model", self.arrays["seed"].detach().cpu().expand(self.n_models).numpy())
        coords["record"] = ("record", self.record_steps, {"long_name": "training step", "units": "steps"})

        def labelled(tensor: Tensor, trailing: tuple[str, ...], **attrs: str) -> tuple[Any, ...]:
            array = tensor.detach().cpu().numpy()
            folded = array if self.grid is None else self.grid.unflatten(array)
            return (*dims, *trailing), folded, attrs

        variables: dict[str, Any] = {
            "loss": labelled(
                self.loss, ("record",), long_name=f"loss ({self.config.get('loss_reduction', 'mean')})"
            ),
            "diverged_at": labelled(
                self.diverged_at, (), long_name="step of divergence, -1 = never", units="steps"
            ),
        }
        for name, values in self.records.items():
            variables[name] = labelled(values, ("record", *trailing_dims(name, values.ndim - 2, network)))
        for name, values in trained_arrays(self).items():
            variables[name] = labelled(values, trailing_dims(name, values.ndim - 1, network))
        if self.snapshots:
            coords["snapshot"] = (
                "snapshot",
                list(self.snapshots),
                {"long_name": "training step", "units": "steps"},
            )
            for name in next(iter(self.snapshots.values())):
                stacked = torch.stack([snapshot[name] for snapshot in self.snapshots.values()], dim=1)
                variables[f"{name}_snapshots"] = labelled(
                    stacked, ("snapshot", *trailing_dims(name, stacked.ndim - 2, network))
                )
        clash = sorted(set(variables) & set(dims))
        if clash:
            raise ValueError(
                f"to_xarray: the grid's axis {clash[0]!r} has the name of a result; rename the axis"
            )
        attrs = {"step": self.step, "steps": int(self.config["steps"]), "seconds": self.seconds}
        return xr.Dataset(variables, coords=coords, attrs=attrs)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the whole run to a Zarr store at `path`; see `toykern.results.store.save_run`."""
        save_run(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run back, ready for `fit(..., resume=run)`; see `toykern.results.store.load_run`."""
        return load_run(path, cls)

    def best(
        self, over: str | Sequence[str] | None = "seed", by: str | Tensor | np.ndarray | None = None
    ) -> np.ndarray:
        """The best model of each group: flat numbers, int64, shaped as the grid's remaining dimensions.

        Args:
            over: the axis (or axes) of the grid to choose along. None: one choice among all models (a
                zero-dimensional array; the only possibility without a grid).
            by: what should be lowest: per-model values `[K]`, or the name of a recorded metric (its last
                finished record). Default: `final_loss`. Prefer `toykern.evaluate(...)` where the choice
                matters: the last record is an average over few batches.

        Returns:
            Flat model numbers, so `run.model.weight[run.best()]` are the winners. Models that diverged or
            whose value is not finite are never chosen; a group with no other has −1. Ties go to the lowest
            number.

        Raises:
            ValueError: `over` names no axis of the grid, there is no grid, or `by` has the wrong length.
        """
        values = self._values_to_rank(by)
        values[~np.isfinite(values) | (self.diverged_at.detach().cpu().numpy() >= 0)] = np.inf
        if over is None:
            groups, remaining = np.arange(self.n_models, dtype=np.int64)[None], tuple[int, ...]()
        else:
            groups, remaining = self._groups(over)
        ranked = values[groups]
        chosen = np.take_along_axis(groups, ranked.argmin(axis=1)[:, None], axis=1)[:, 0]
        chosen[np.isinf(ranked.min(axis=1))] = -1
        return chosen.reshape(remaining)

    def sel(self, points: Mapping[str, Any] | None = None, *, method: str | None = None, **axes: Any) -> Run:
        """The run of the models at some points of the grid, alone: their results, weights and all else.

        Everything of it is a copy of its own: it can be saved, trained further (to the same bits as among the
        others) and compared. `seconds` and `provenance` stay those of the whole.

        Args:
            points: the axes below as a dictionary, for an axis that is called "points" or "method".
            method: None for points of the axis as they are (floats to one part in 10⁹), "nearest" for the
                nearest ones.
            **axes: by the names of the grid's axes (of a run without a grid "model", the models' numbers)
                one value, and the axis goes; several, which stay in this order; or a slice, of all points
                from its start to its end, both included. Axes that are not named stay whole. Those of vectors
                are chosen by their number.

        Returns:
            A run with the grid that is left; without one, if no axis is.

        Raises:
            ValueError: no such axis, no such point (the message says which there are), the same point twice,
                or a run with a topology recipe.

        Example:
            >>> import toykern as tk
            >>> g = tk.grid(density=[0.3, 0.1], seed=range(3))
            >>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=g.n_models)
            >>> run = tk.fit(model, tk.SparseFeatures(5, g.density[:, None]), steps=5, grid=g)
            >>> run.sel(density=0.1).grid
            <toykern.Grid 3 = 3 models: seed=0…2>
            >>> bool((run.sel(density=0.1, seed=2).loss[0] == run.loss[5]).all())
            True
        """
        return part_of(self, *by_label(self, _together("points", points, axes, self._dims), method))

    def isel(self, places: Mapping[str, Any] | None = None, **axes: Any) -> Run:
        """As `sel`, with places on the axes in place of values: an integer (from 0, or from −1 backwards),
        several, a mask, or a slice as of a list.

        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=4)
        >>> run = tk.fit(model, tk.SparseFeatures(5, 0.1), steps=5)
        >>> run.isel(model=[0, 3]).n_models
        2
        """
        return part_of(self, *by_place(self, _together("places", places, axes, self._dims)))

    def rerun(self, i: int, *, progress: bool | None = False) -> Run:
        """Train model `i` again, alone, from the same start, data and settings, to the same bits.

        That holds for the same version, stream version and instruction-set level (see `provenance`). A run
        that was cut short is repeated up to the same step.

        Raises:
            IndexError: there is no model `i`.
            ValueError: the run used a callable schedule, or a recipe that a store cannot hold, and was loaded
                from a store.
        """
        i = check_int("i", i)
        if not -self.n_models <= i < self.n_models:
            raise IndexError(f"i must be the number of one of {self.n_models} models, not {i}")
        i %= self.n_models
        # One row of every per-model input; what all models share has a first dimension of 1, or is not per
        # model.
        rows = {
            name: value[i : i + 1] if len(value) == self.n_models else value
            for name, value in self.arrays.items()
        }
        initial = {name.removeprefix("init/"): rows[name] for name in rows if name.startswith("init/")}
        model = self.model[i].begun_with(initial)
        model = model.to(next(self.model.parameters()).device)  # where its bits are made
        freeze(model, self.config.get("frozen", []))
        settings = self.settings
        if "topology" in self.config:
            if settings.topology is None:
                raise ValueError(
                    "rerun: the run's recipe has a callable or a class of your own in it, which its store "
                    "could not hold"
                )
            recipe = dataclasses.replace(settings.topology, seed=self.arrays["topology_seed"])
            settings = dataclasses.replace(settings, topology=recipe)
        if settings.schedule is None:
            schedule_from_config(self.config["schedule"])  # raises: it was a callable
        again = begin(Run, model, settings.row(i))
        train(again, again.steps_to_make if self.complete else self.steps_made, progress)
        return again

    @property
    def _dims(self) -> tuple[str, ...]:
        """The names of the dimensions of models in `to_xarray`."""
        return ("model",) if self.grid is None else self.grid.dims

    def _last(self, records: Tensor) -> Tensor:
        """The last finished record `[K, …]` of `[K, R, …]`."""
        finished = int((self.record_steps <= self.step).sum())
        if finished == 0:
            return torch.full_like(records[:, 0], torch.nan)
        return records[:, finished - 1]

    def _values_to_rank(self, by: str | Tensor | np.ndarray | None) -> np.ndarray:
        if by is None or (isinstance(by, str) and by == "loss"):
            values = self.final_loss
        elif isinstance(by, str):
            if by not in self.records:
                raise ValueError(
                    f"best: by={by!r} was not recorded; recorded are {', '.join(['loss', *self.records])}"
                )
            values = self._last(self.records[by])
        else:
            values = as_tensor("by", by, torch.float64)
        if tuple(values.shape) != (self.n_models,):
            raise ValueError(
                f"best: by must give one value per model, shape ({self.n_models},), got {tuple(values.shape)}"
            )
        return values.detach().cpu().numpy().astype(np.float64)

    def _groups(self, over: str | Sequence[str]) -> tuple[np.ndarray, tuple[int, ...]]:
        """Flat model numbers `[groups, members]`, and the shape of the remaining dimensions."""
        names = (over,) if isinstance(over, str) else over
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"over must be the name of an axis, or several, or None, not {describe(over)}")
        if self.grid is None:
            raise ValueError(
                f"best: over={over!r} needs a grid (fit(..., grid=...)); over=None chooses among all models"
            )
        for name in names:
            if name not in self.grid.dims:
                raise ValueError(
                    f"best: over={name!r} is no axis of the grid; its axes are {', '.join(self.grid.dims)}"
                )
        kept = [at for at, name in enumerate(self.grid.dims) if name not in names]
        reduced = [at for at, name in enumerate(self.grid.dims) if name in names]
        flat = np.arange(self.n_models, dtype=np.int64).reshape(self.grid.shape).transpose(kept + reduced)
        remaining = tuple(self.grid.shape[at] for at in kept)
        return flat.reshape(int(np.prod(remaining, dtype=np.int64)), -1), remaining


def _together(argument: str, given: Any, axes: dict[str, Any], dims: Sequence[str]) -> dict[str, Any]:
    """What is given as a dictionary, by the name of that argument, and by the names of axes."""
    if given is None:
        return axes
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a dictionary from axes to values, not {describe(given)}")
    for name in given:
        if name not in dims:
            raise ValueError(f"{argument} has {name!r}, which is no axis of the run: {', '.join(dims)}")
        if name in axes:
            raise ValueError(f"{argument} has {name!r}, which is given by name too")
    return {**given, **axes}


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _import_xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise ImportError("Run.to_xarray needs xarray: pip install 'toykern[results]'") from error
    return xarray
