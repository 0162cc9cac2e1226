"""The beginning of a training: everything checked, then laid out at step 0."""

from __future__ import annotations

import datetime
import functools
import platform
from typing import Any, TypeVar

import numpy as np
import torch

from toykern import _native
from toykern.arguments.errors import describe
from toykern.native.devices import arch_of
from toykern.nn.kinds import AnyModel, has_connections
from toykern.sparse.named import Static
from toykern.sparse.recipe import Recipe
from toykern.training.kernels import check_data, check_model, device_of, frozen_parameters
from toykern.training.resident_topology import ResidentTopology, check_recipe
from toykern.training.schedule import check_schedule
from toykern.training.settings import Settings, check_memory
from toykern.training.state import TrainingState
from toykern.training.ways import trainer_of

State = TypeVar("State", bound=TrainingState)


def begin(kind: type[State], model: AnyModel, settings: Settings) -> State:
    """A state of this kind at step 0; what is raised for other arguments is what `fit` raises."""
    return begin_told(kind, model, settings)[0]


def begin_told(kind: type[State], model: AnyModel, settings: Settings) -> tuple[State, Settings]:
    """`begin`, and what the state is told as its config and arrays have it: for whoever trains it at once."""
    model = check_model(model, "fit")
    data = check_data(settings.data, model)
    recipe, given_seed = settings.topology, settings.seed
    recipe = None if recipe is None else _check_recipe(recipe, model)
    check_schedule(settings.schedule)
    settings = settings.check(model)
    optimizer = settings.optimizer
    check_memory(model, settings, state_names=optimizer.state_names)
    attached = None
    if recipe is not None:
        assert has_connections(model)
        seeds = given_seed if recipe.seed is None else recipe.seed
        attached = ResidentTopology.fresh(recipe, model, seeds, settings.steps)

    n_models = model.n_models
    parameters = model.stacked_parameters()
    arrays = settings.arrays(n_models) | {"init_seed": model.seed.clone()}
    arrays |= {f"init/{name}": _copy_on_cpu(array) for name, array in model.trained_arrays().items()}
    config = {"model": model.config(), **settings.config()}
    if frozen := frozen_parameters(model):
        config["frozen"] = frozen
    if attached is not None:
        arrays["topology_seed"] = attached.seeds
    state = kind(
        model=model,
        data=data,
        config=config,
        arrays=arrays,
        step=0,
        loss=torch.full((n_models, settings.n_records), torch.nan, dtype=torch.float32, device="cpu"),
        diverged_at=torch.full((n_models,), -1, dtype=torch.int64, device="cpu"),
        optimizer_state={
            f"{name}/{suffix}": optimizer.initial_state(suffix, p)
            for name, p in parameters.items()
            for suffix in optimizer.state_names
        },
        carry={"loss": torch.zeros(n_models, dtype=torch.float64, device="cpu")},
        provenance=_provenance(device_of(model)) | trainer_of(model, data, settings),
        grid=settings.grid,
        optimizer=optimizer,
        schedule=settings.schedule,
        topology=attached,
        test=settings.test,
    )
    return state, settings


def _check_recipe(given: Any, model: AnyModel) -> Recipe:
    """The recipe that `given` is; TypeError or ValueError that says why the models cannot follow it."""
    recipe = check_recipe(given)
    if not has_connections(model):
        raise TypeError(
            "topology is for sparse models: give fit a tk.SparseTiedAutoencoder(n_features, n_hidden, "
            f"density=…), not {describe(model)}"
        )
    if not model.values.requires_grad and not isinstance(recipe, Static):
        raise ValueError(
            f"topology={type(recipe).__name__}(…) would replace connections of model.values, which is frozen "
            "(requires_grad=False); use Static() or none"
        )
    return recipe


def _copy_on_cpu(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _provenance(device: torch.device) -> dict[str, Any]:
    """What a reader of the results needs in order to have the same bits again."""
    build = _native.build_info()
    gpu = {}
    if device.type == "cuda":
        gpu = {"gpu": torch.cuda.get_device_name(device), "instruction_set": arch_of(device)}
    return {
        "toykern": build["version"],
        "commit": build["commit"],
        "stream_version": _native.stream_version(),
        "instruction_set": _native.isa_level(),
        "compiler": build["compiler"],
        "threads": torch.get_num_threads(),
        **_versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **gpu,
    }
