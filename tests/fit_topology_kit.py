"""Sparse models in `fit` that every loop is compared on, and the masked dense reference they are held to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from kit import TRAJECTORY, assert_same_bits, batches_of, relative_error

import toykern as tk
from toykern import reference
from toykern.sparse import RandomGrowth, Recipe, Sensitivity

DENSITIES = (0.1, 0.25, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    n_features: int
    n_hidden: int
    topology: Recipe | None
    probability: float = 0.1
    batch_size: int = 48
    steps: int = 120
    optimizer: tk.AdamW | tk.Adam | tk.SGD = tk.AdamW(lr=1e-2)
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: dict[str, Any] = dataclasses.field(default_factory=dict)
    density: Any = DENSITIES

    def __str__(self) -> str:
        return self.name


RIGL = tk.RigL(interval=20, end=100, drop_fraction=0.5)
CASES = [
    Case("columns, fixed", 6, 2, None, density=(0.3, 0.5, 0.7, 1.0)),
    Case("columns, static", 16, 5, tk.Static()),
    Case("columns, SET", 16, 8, tk.SET(interval=15, end=90), optimizer=tk.Adam(lr=1e-2, weight_decay=0.01)),
    Case("columns, RigL", 12, 5, RIGL, probability=0.4),
    Case("columns, RigL to the last step", 16, 5, tk.RigL(interval=30, end=120, minimum_fan_in=1)),
    Case("columns, momentum", 15, 7, RIGL, optimizer=tk.SGD(lr=0.3, momentum=0.9, nesterov=True)),
    Case("columns, relu", 20, 6, RIGL, network={"hidden_activation": "relu", "bias": False}),
    Case("tiles, fixed", 17, 9, None, optimizer=tk.SGD(lr=0.5, momentum=0.9, dampening=0.1)),
    Case("tiles, SET", 20, 10, tk.SET(interval=15, end=90, seed=[3, 1, 4, 1])),
    Case("tiles, RigL", 20, 10, RIGL),
    Case("tiles, accumulated", 33, 17, tk.RigL(interval=25, end=100, accumulate=4), batch_size=33),
    Case("tiles, frequent", 24, 12, RIGL, probability=0.6, loss={"loss_reduction": "sum"}),
    Case("tiles, SRigL", 20, 16, tk.SRigL(interval=25, end=100, ablation=0.5), density=0.3),
    Case("tiles, SNFS", 20, 10, tk.SNFS(interval=20, end=60), steps=80),
    Case("tiles, GSE", 20, 10, tk.GSE(interval=20, end=100)),
    Case("tiles, gradual", 20, 10, tk.GradualMagnitude(final_density=0.08, end=100, interval=20)),
    Case(
        "tiles, random and sensitivity",
        20,
        10,
        tk.PruneAndGrow(prune=Sensitivity(), grow=RandomGrowth(), interval=20, end=100),
    ),
]
LARGE = Case("many parts", 200, 40, tk.RigL(interval=2, end=6), batch_size=256, steps=6, density=(0.05, 0.2))
BY_NAME = {case.name: case for case in CASES}
# Too large for a block of a device: samples as rows and as entries, more of them than one chain of sums.
LARGE_ON_A_DEVICE = [
    dataclasses.replace(LARGE, name="large, rows", batch_size=40),
    dataclasses.replace(LARGE, name="large, entries", probability=0.02, batch_size=100),
    dataclasses.replace(
        LARGE, name="large, long", n_features=600, n_hidden=18, probability=0.002, batch_size=1500, steps=3
    ),
]
TICKET = dataclasses.replace(
    BY_NAME["tiles, RigL"],
    name="a ticket",
    steps=30,
    topology=tk.LotteryTicket(rounds=2, round_steps=30, rewind_to=9, drop_fraction=0.3),
    density=(0.9, 0.7, 1.0),
)
# Whatever is kept between steps: nothing, draws, a gradient, a running mean, candidates, connections alone.
KEPT = [
    BY_NAME[f"tiles, {name}"] for name in ("SET", "RigL", "accumulated", "SNFS", "GSE", "gradual", "SRigL")
]


def model_of(case: Case) -> tk.SparseTiedAutoencoder:
    many = len(case.density) if isinstance(case.density, tuple) else 3
    density = np.array(case.density) if isinstance(case.density, tuple) else case.density
    model = tk.SparseTiedAutoencoder(
        case.n_features, case.n_hidden, density, n_models=many, dtype=torch.float32, **case.network
    )
    if model.bias is not None:
        generator = torch.Generator().manual_seed(case.n_features)
        with torch.no_grad():
            model.bias.copy_(0.1 * torch.randn(model.bias.shape, generator=generator))
    return model


def data_of(case: Case) -> tk.SparseFeatures:
    return tk.SparseFeatures(case.n_features, case.probability)


def fit_case(case: Case, **options: Any) -> tk.Run:
    settings: dict[str, Any] = {
        "steps": case.steps,
        "batch_size": case.batch_size,
        "optimizer": case.optimizer,
        "topology": case.topology,
        "progress": False,
        **case.loss,
    }
    return tk.fit(model_of(case), data_of(case), **(settings | options))


def updates_of(case: Case) -> list[int]:
    if case.topology is None:
        return []
    return [step for step in range(1, case.steps + 1) if case.topology.is_update(step)]


def assert_nothing_where_nothing_is(run: tk.Run) -> None:
    """Where there is no connection all is +0, bit by bit."""
    missing = ~run.model.topology.to_mask()
    for tensor in (run.model.weight.detach(), *(t for n, t in run.optimizer_state.items() if "weight" in n)):
        assert (tensor.contiguous().view(torch.int32)[missing] == 0).all()


def assert_follows_masked_dense(case: Case, run: tk.Run) -> None:
    """The run's weights, states and losses (records of 7 steps) are those of dense models in double precision
    whose missing connections have no gradient; which those are is taken over from the run's snapshots."""
    updates = updates_of(case)
    assert (run.diverged_at == -1).all()
    masks = {step: snapshot["connections"] for step, snapshot in run.snapshots.items()}
    at = sorted(masks)
    model = model_of(case)
    expected = reference.train(
        reference.parameters_of(model),
        batches_of(data_of(case), case.batch_size, None, model.n_models),
        case.steps,
        case.optimizer,
        reference.network_of(model),
        connections=lambda step: masks[max(t for t in at if t <= step)],
        **case.loss,
    )
    exists = run.model.topology.to_mask()
    for name, value in run.model.stacked_parameters().items():
        wanted = torch.where(exists, expected.parameters[name], 0) if name == "weight" else None
        wanted = expected.parameters[name] if wanted is None else wanted
        assert (relative_error(value, wanted) <= TRAJECTORY).all(), name
    means = reference.record_means(expected.losses, 7)
    assert ((run.loss - means).abs() <= TRAJECTORY * means + 1e-6 * means[:, :1]).all()
    for name, value in expected.state.items():
        if name.startswith("weight/"):
            value = torch.where(exists, value, 0)
        scale = value.flatten(1).abs().amax(1)
        if name.endswith("/exp_avg"):  # of gradients of either sign: their size is in the other moment
            scale = expected.state[f"{name}_sq"].flatten(1).amax(1).sqrt()
        difference = (run.optimizer_state[name].double() - value).flatten(1).abs().amax(1)
        assert (difference <= TRAJECTORY * scale).all(), name
    assert_nothing_where_nothing_is(run)
    if updates:
        moved = torch.stack([(masks[t] != masks[0]).flatten(1).any(1) for t in updates])
        assert moved.any(0).all()  # every model went somewhere else


def assert_same(run: tk.Run, other: tk.Run, models: Any = None, other_models: Any = None) -> None:
    """All bits of all models, or of `models` (and `other_models`): dense arrays, connections, reports."""
    pair = []
    for one in (run, other):
        dense = tk.TiedAutoencoder(one.model.n_features, one.model.n_hidden, one.n_models)
        with torch.no_grad():
            dense.weight.copy_(one.model.weight)
            if one.model.bias is not None:
                dense.bias.copy_(one.model.bias)
        pair.append(dataclasses.replace(one, model=dense))
    assert_same_bits(*pair, models, other_models)
    masks = [one.model.topology.to_mask() for one in (run, other)]
    chosen = [
        mask if index is None else mask[index]
        for mask, index in zip(masks, (models, other_models), strict=True)
    ]
    assert torch.equal(*chosen)
    assert (run.topology is None) == (other.topology is None)
    if run.topology is None:
        return
    for ours, theirs in zip(run.topology.history, other.topology.history, strict=True):
        for name, value in vars(ours.layers["weight"]).items():
            if value is not None:
                a, b = value, getattr(theirs.layers["weight"], name)
                assert torch.equal(
                    a if models is None else a[models], b if other_models is None else b[other_models]
                ), name
