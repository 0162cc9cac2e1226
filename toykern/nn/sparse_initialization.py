"""What modules with sparse weights begin with: their topology, and the values at its connections."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from toykern.arguments.broadcast import broadcast_per_model
from toykern.arguments.errors import check_choice, check_non_negative_int, describe
from toykern.arguments.memory import check_free_memory
from toykern.data.philox import KIND_INIT, normal, sequence
from toykern.sparse.groups import check_group, expanded, reduced
from toykern.sparse.topology import Topology

SPARSE_INITIALIZATIONS = ("linear", "kaiming", "xavier")
"""The initialisations of sparse weights with a name; a standard deviation can be given instead."""

_BYTES_PER_SLOT = 64  # at most, of the values and of what they are drawn with


def random_topology(
    in_features: int,
    out_features: int,
    density: Any,
    fan_in: Any,
    topology: Topology | None,
    n_models: int,
    seed: torch.Tensor,
    capacity: int | None,
    group: int = 1,
    minimum_fan_in: int = 0,
) -> Topology:
    """The topology that a constructor's arguments ask for: exactly one of density, fan_in and topology."""
    if sum(given is not None for given in (density, fan_in, topology)) != 1:
        raise ValueError(
            "exactly one of density, fan_in and topology must be given, not "
            f"density={describe(density)}, fan_in={describe(fan_in)}, topology={describe(topology)}"
        )
    if density is None and check_non_negative_int("minimum_fan_in", minimum_fan_in):
        raise ValueError(
            f"minimum_fan_in={minimum_fan_in} goes with density; fan_in and topology say what each output has"
        )
    if topology is not None:
        if not isinstance(topology, Topology):
            raise TypeError(f"topology must be a toykern.sparse.Topology, not {describe(topology)}")
        if capacity is not None:
            raise ValueError("capacity must not be given with a topology, which has one")
        shape = (topology.in_features, topology.out_features, topology.n_models)
        if shape != (in_features, out_features, n_models):
            raise ValueError(
                "topology must have the layer's (in_features, out_features, n_models), "
                f"{(in_features, out_features, n_models)}, not {shape}"
            )
        if group > 1:
            reduced(topology, group)
        return topology
    if group > 1:
        if fan_in is None:
            raise ValueError(
                "group needs fan_in (or a topology): all outputs of a group have the same inputs"
            )
        check_group(group, out_features)
        units = Topology.random_fan_in(
            in_features, out_features // group, fan_in, n_models=n_models, seed=seed
        )
        return _with_room(expanded(units, group), capacity)
    if fan_in is not None:
        return Topology.random_fan_in(
            in_features, out_features, fan_in, n_models=n_models, seed=seed, capacity=capacity
        )
    return Topology.random(
        in_features,
        out_features,
        density,
        n_models=n_models,
        seed=seed,
        minimum_fan_in=minimum_fan_in,
        capacity=capacity,
    )


def _with_room(topology: Topology, capacity: int | None) -> Topology:
    """The same connections with that many slots for each model; None: as it is."""
    if capacity is None or capacity == topology.capacity:
        return topology
    return Topology.from_mask(topology.to_mask(), capacity=capacity)


def initial_values(topology: Topology, seed: torch.Tensor, init: Any) -> torch.Tensor:
    """Initial values of every slot, float32 CPU `[n_models · capacity]`, 0 in the slack.

    The spread follows the connections there are, not the size of the matrix (Evci et al. 2022): with f the
    fan-in of the connection's row and o the mean fan-out of the model's columns,

    * `"linear"`: uniform on ±1/√f, what `torch.nn.Linear` draws;
    * `"kaiming"`: normal, standard deviation √(2/f);
    * `"xavier"`: normal, √(2/(f + o));
    * a number ≥ 0, or one for each model: normal with that standard deviation.

    Slot i of a model draws word i of the stream of its seed (docs/data_stream.md §8).

    >>> topology = Topology.random_fan_in(100, 10, 4)
    >>> bool((initial_values(topology, torch.tensor([0]), "linear").abs() <= 0.5).all())
    True
    """
    check_free_memory(
        f"the weights of capacity={topology.capacity:,} slots of n_models={topology.n_models:,}, and the "
        f"index of in_features={topology.in_features:,}",
        topology.n_models * (_BYTES_PER_SLOT * topology.capacity + 8 * topology.in_features),
        "take fewer",
    )
    occupied = topology.occupied()
    fan_in = topology.fan_in.double()
    model = torch.arange(topology.n_models, dtype=torch.int64, device="cpu")
    model = model.repeat_interleave(topology.capacity)
    fan = fan_in[model, topology.row.clamp(min=0)].clamp(min=1)
    if isinstance(init, str):
        name = check_choice("init", init, SPARSE_INITIALIZATIONS)
        if name == "linear":
            draws = _symmetric(seed, topology.capacity)
            spread = fan.rsqrt()
        else:
            fan_out = (topology.n_connections.double() / topology.in_features)[model]
            spread = (2.0 / (fan if name == "kaiming" else fan + fan_out)).sqrt()
            draws = normal(seed.numpy(), topology.capacity)
    else:
        std = check_std(init, topology.n_models)
        spread, draws = std[model], normal(seed.numpy(), topology.capacity)
    values = torch.from_numpy(draws).reshape(-1) * spread.float()
    return values.masked_fill_(~occupied, 0)


def initial_bias(topology: Topology, seed: torch.Tensor, init: Any) -> torch.Tensor:
    """Initial biases, float32 CPU `[n_models, out_features]`: uniform on ±1/√fan-in for "linear", else 0.

    0 also where a row has no connection.
    """
    if init != "linear":
        return torch.zeros(topology.n_models, topology.out_features, dtype=torch.float32, device="cpu")
    draws = torch.from_numpy(_symmetric(seed, topology.out_features, member=1))
    bound = topology.fan_in.double().clamp(min=1).rsqrt().masked_fill(topology.fan_in == 0, 0.0)
    return draws * bound.float()


def check_std(init: Any, n_models: int) -> torch.Tensor:
    """A standard deviation for each model, float64 `[n_models]`; ValueError or TypeError if it is none."""
    if init is None or isinstance(init, bool):
        allowed = ", ".join(map(repr, SPARSE_INITIALIZATIONS))
        raise TypeError(f"init must be one of {allowed}, or a standard deviation, not {describe(init)}")
    stds = broadcast_per_model("init", init, n_models, torch.float64)
    if bool((stds < 0).any()):
        raise ValueError(f"init (a standard deviation) must be at least 0, not {describe(init)}")
    return stds


def _symmetric(seed: torch.Tensor, count: int, member: int = 0) -> np.ndarray:
    """Uniform draws on (−1, 1), float32 `[n_models, count]`."""
    words = sequence(seed.numpy(), count, kind=KIND_INIT, member=member)
    return (words | np.uint32(1)).view(np.int32).astype(np.float32) * np.float32(math.ldexp(1.0, -31))
