"""The check of a whole run, before it is resumed and when it is loaded.

A `Run` is an open book: its settings are a plain dictionary and its arrays plain tensors, which people edit
and which files may hold wrongly. The kernels believe what they are told about both, so all of it is looked at
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from toykern.arguments.broadcast import broadcast_importance, broadcast_seed
from toykern.arguments.errors import check_int, check_number, describe
from toykern.data.dataset import Dataset
from toykern.network.losses import Objective
from toykern.nn.kinds import AnyModel
from toykern.training.held_out import held_out_arrays
from toykern.training.kernels import check_data, check_model, frozen_parameters
from toykern.training.optim import PER_MODEL, Optimizer, optimizer_from_config, rate_names, told_rate
from toykern.training.records import records_of
from toykern.training.resident_topology import ResidentTopology
from toykern.training.schedule import schedule_from_config
from toykern.training.settings import Settings, l1_from
from toykern.training.state import TrainingState

State = TypeVar("State", bound=TrainingState)

_SETTINGS = (
    "model", "data", "steps", "batch_size", "optimizer", "schedule", "target", "loss_reduction",
    "record_every", "record", "snapshots",
)  # fmt: skip


def check_run(run: State, name: str) -> State:
    """`run` if it could have been made by `fit`, stopped where it stands.

    Its settings pass the checks of a new run; 0 ≤ step ≤ steps; every array, record, snapshot and optimiser
    state is a plain contiguous tensor on the CPU, of the shape and dtype that follow from the settings.

    Raises:
        TypeError, ValueError: it is not, by `name` and the entry that is wrong. Nothing has been changed.
    """
    if not isinstance(run, TrainingState):
        raise TypeError(f"{name} must be a Run, not {describe(run)}")
    try:
        _check(run)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return run


def _check(run: TrainingState) -> None:
    model = check_model(run.model, "fit")
    check_data(run.data, model)
    for kind in ("config", "arrays", "records", "snapshots", "optimizer_state", "carry"):
        if not isinstance(getattr(run, kind), dict):
            raise TypeError(f"{kind} must be a dict, not {describe(getattr(run, kind))}")
    settings, optimizer = _check_config(run, model)
    step = check_int("step", run.step, minimum=0, maximum=settings.steps)
    check_number("seconds", run.seconds, minimum=0.0)

    n_models = model.n_models
    network = model.network
    shapes = {tensor.name: [n_models, *network.shape(tensor)] for tensor in network.tensors}
    parameters = {tensor.name: shapes[tensor.name] for tensor in network.parameters}
    _check_inputs(run, model, shapes, optimizer)
    _check_array("loss", run.loss, [n_models, settings.n_records])
    _check_array("diverged_at", run.diverged_at, [n_models], torch.int64)
    if bool(((run.diverged_at < -1) | (run.diverged_at > step)).any()):
        raise ValueError(f"diverged_at must hold steps up to {step}, or -1, not {run.diverged_at.tolist()}")
    _check_names("carry", run.carry, ["loss"])
    _check_array("carry['loss']", run.carry["loss"], [n_models], torch.float64)

    states = [f"{name}/{suffix}" for name in parameters for suffix in optimizer.state_names]
    _check_names("optimizer_state", run.optimizer_state, states)
    for name, state in run.optimizer_state.items():
        _check_array(f"optimizer_state[{name!r}]", state, parameters[name.split("/")[0]])

    records = records_of(network)
    for name, values in run.records.items():
        if name not in settings.record or name == "loss":
            raise ValueError(f"records has {name!r}, which config['record'] {list(settings.record)} does not")
        trailing = [network.sizes[dim] for dim in records[name].dims]
        _check_array(f"records[{name!r}]", values, [n_models, settings.n_records, *trailing])
    _check_snapshots(run, settings, shapes)


def _check_config(run: TrainingState, model: AnyModel) -> tuple[Settings, Optimizer]:
    """The settings and the optimiser that `run.config` describes, after comparing it with the run."""
    config = run.config
    optional = [name for name in ("frozen", "topology", "loss", "l1", "test") if name in config]
    _check_names("config", config, [*_SETTINGS, *optional])
    if run.test is not None and not isinstance(run.test, Dataset):
        raise TypeError(f"test must be a Dataset, not {describe(run.test)}")
    if (run.test is None) != ("test" not in config):
        raise ValueError("test must be there where config has 'test', and there alone")
    compared = {"model": model.config(), "data": run.data.config()}
    for name, described in (compared | ({} if run.test is None else {"test": run.test.config()})).items():
        # A setting that the config does not have yet is one that came into being after it was written.
        told = config[name]
        if not isinstance(told, dict) or any(k not in described or described[k] != told[k] for k in told):
            raise ValueError(f"config[{name!r}] does not describe the run's {name}: {describe(told)}")
    if frozen_parameters(model) != config.get("frozen", []):
        raise ValueError(
            f"the run was begun with {config.get('frozen', [])} frozen; requires_grad is now False for "
            f"{frozen_parameters(model)}"
        )
    arrays = run.arrays
    given: dict[str, torch.Tensor] = {}
    for name in rate_names(config["optimizer"]):
        _check_array(f"arrays[{name!r}]", arrays.get(name), [model.n_models], torch.float64)
        given[name] = arrays[name]
    optimizer = optimizer_from_config(config["optimizer"], **given)
    for name, values in given.items():
        told = told_rate(config["optimizer"], name)
        if told != PER_MODEL and not bool((values == check_number(name, told, minimum=0.0)).all()):
            raise ValueError(
                f"config['optimizer'][{name!r}] is {describe(told)}, but arrays[{name!r}], which the run "
                f"trains with, is not"
            )
    own = {
        name: values for name, values in given.items() if told_rate(config["optimizer"], name) == PER_MODEL
    }
    optimizer = optimizer_from_config(config["optimizer"], **own)
    if "l1" in config:
        _check_array("arrays['l1']", arrays.get("l1"), [model.n_models], torch.float64)
        told = config["l1"]
        if told != PER_MODEL and not bool((arrays["l1"] == check_number("l1", told, minimum=0.0)).all()):
            raise ValueError(
                f"config['l1'] is {describe(told)}, but arrays['l1'], which the run trains with, is not"
            )
    schedule = run.schedule
    described = config["schedule"]
    if schedule is None and not (isinstance(described, dict) and described.get("name") == "callable"):
        schedule = schedule_from_config(described)
    tracks_explored = _check_topology(run, model)
    record_every = check_int("record_every", config["record_every"], minimum=1)
    settings = Settings(
        data=run.data,
        schedule=schedule,
        optimizer=optimizer,
        grid=run.grid,
        test=run.test,
        record_every=record_every,
        loss=config.get("loss", Objective.loss),
        l1=l1_from(config, arrays),
        **{
            name: config[name]
            for name in ("steps", "batch_size", "target", "loss_reduction", "record", "snapshots")
        },
    ).check(model, tracks_explored)
    return settings, optimizer


def _check_topology(run: TrainingState, model: AnyModel) -> bool:
    """Whether the run's recipe tracks explored positions; ValueError where run and config disagree."""
    if "topology" not in run.config:
        if run.topology is not None or run.topology_state is not None:
            raise ValueError("topology is there, but config has no 'topology'")
        return False
    if not model.network.sparse:
        raise ValueError(f"config has 'topology', but the model is a {type(model).__name__}")
    if run.topology is not None:
        if not isinstance(run.topology, ResidentTopology):
            raise TypeError(f"topology must be the recipe at work, not {describe(run.topology)}")
        return run.topology.recipe.track_explored
    if not isinstance(run.topology_state, dict):
        raise ValueError("config has 'topology', but the run has neither topology nor topology_state")
    return run.topology_state["layers"]["weight"].get("explored") is not None


def _check_inputs(
    run: TrainingState, model: AnyModel, shapes: dict[str, list[int]], optimizer: Optimizer
) -> None:
    """What went in: `run.arrays`."""
    n_models, n = model.n_models, model.n_outputs
    arrays = run.arrays
    rows = ([1, n], [n_models, n])
    expected: dict[str, tuple[Sequence[list[int]], torch.dtype]] = {
        "seed": ([[n_models]], torch.int64),
        "importance": (rows, torch.float32),
        **{name: ([[n_models]], torch.float64) for name in optimizer.rates()},
        "init_seed": ([[n_models]], torch.int64),
    }
    datasets = run.data.arrays() | held_out_arrays(run.test)
    expected |= {name: ([list(held.shape)], held.dtype) for name, held in datasets.items()}
    expected |= {f"init/{name}": ([shape], _dtype_of(name)) for name, shape in shapes.items()}
    if "l1" in run.config:
        expected["l1"] = ([[n_models]], torch.float64)
    if "topology" in run.config:
        expected["topology_seed"] = ([[n_models]], torch.int64)
    _check_names("arrays", arrays, expected)
    for name, (allowed, dtype) in expected.items():
        shape = next((s for s in allowed if list(getattr(arrays[name], "shape", ())) == s), allowed[0])
        _check_array(f"arrays[{name!r}]", arrays[name], shape, dtype)
    broadcast_seed("arrays['seed']", arrays["seed"], n_models)
    broadcast_importance(arrays["importance"], n_models, n, width=model.output_width)
    for name, held in datasets.items():
        if not torch.equal(held, arrays[name]):
            whose = "data" if name in run.data.arrays() else "test"
            raise ValueError(f"arrays[{name!r}] is not that of the run's {whose}")


def _check_snapshots(run: TrainingState, settings: Settings, shapes: dict[str, list[int]]) -> None:
    for at, snapshot in run.snapshots.items():
        if at not in settings.snapshots or at > run.step:
            raise ValueError(
                f"snapshots has step {describe(at)}, which is none of config['snapshots'] "
                f"{settings.snapshots} up to step {run.step}"
            )
        if not isinstance(snapshot, dict):
            raise TypeError(f"snapshots[{at}] must be a dict, not {describe(snapshot)}")
        _check_names(f"snapshots[{at}]", snapshot, list(shapes))
        for name, values in snapshot.items():
            _check_array(f"snapshots[{at}][{name!r}]", values, shapes[name], _dtype_of(name))


def _dtype_of(tensor: str) -> torch.dtype:
    return torch.bool if tensor == "connections" else torch.float32


def _check_names(where: str, found: dict[str, Any], expected: Any) -> None:
    if found.keys() != set(expected):
        raise ValueError(f"{where} must have the entries {sorted(expected)}, not {sorted(map(str, found))}")


def _check_array(where: str, value: Any, shape: list[int], dtype: torch.dtype = torch.float32) -> None:
    """TypeError or ValueError unless `value` is a plain contiguous CPU tensor with all of its memory."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        raise TypeError(f"{where} must be a tensor, not {describe(value)}")
    if value.device.type != "cpu":
        raise ValueError(f"{where} must be on the CPU, not on {str(value.device)!r}")
    if list(value.shape) != shape or value.dtype != dtype:
        wanted = f"a {str(dtype).removeprefix('torch.')} tensor of shape {shape}"
        raise ValueError(f"{where} must be {wanted}, not {describe(value)}")
    needed = (value.storage_offset() + value.numel()) * value.element_size()
    if not value.is_contiguous() or value.is_neg() or value.untyped_storage().nbytes() < needed:
        raise ValueError(f"{where} must be contiguous in memory of its own, not of strides {value.stride()}")
