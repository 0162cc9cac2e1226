"""The form of the step over the connections of sparse models, and the Gram form's products over them, forced
for models that are small enough to be compared: each follows the masked dense reference, by itself, at every
level. Where it is taken unforced, `test_the_form_follows_from_density` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fit_topology_kit import (
    BY_NAME,
    CASES,
    LARGE,
    RIGL,
    Case,
    assert_follows_masked_dense,
    assert_nothing_where_nothing_is,
    assert_same,
    data_of,
    fit_case,
    model_of,
    updates_of,
)
from kit import LEVELS, TRAJECTORY, batches_of, isa_level, relative_error

import toykern as tk
from toykern import _native, reference
from toykern.training.kernels import network_params

CONNECTIONS = "connections"
# Blocks that are not full, units and features in several panels, more of either, both activations.
SHAPES = [
    Case("one unit", 40, 1, None, density=(0.1, 0.5, 0.9), steps=40),
    Case("panels of units", 19, 131, RIGL, probability=0.3, batch_size=77, density=(0.05, 0.3), steps=60),
    Case("panels of features", 150, 9, RIGL, probability=0.03, batch_size=130, density=(0.05, 0.3), steps=60),
    Case("both, dense x", 70, 66, RIGL, probability=0.9, batch_size=65, density=(0.02, 0.2), steps=60),
    Case(
        "relu, rare",
        33,
        17,
        RIGL,
        probability=0.02,
        network={"hidden_activation": "relu", "output_activation": "none"},
    ),
    Case("no bias", 24, 12, RIGL, network={"bias": False}, batch_size=7),
    Case("many entries", 90, 14, RIGL, probability=0.11, batch_size=100, steps=60),
    Case("wide, rare", 30, 200, RIGL, probability=0.05, density=(0.01, 0.05, 0.4), steps=60),
    Case("momentum", 21, 10, RIGL, optimizer=tk.SGD(lr=0.3, momentum=0.9, nesterov=True)),
]


@pytest.fixture(autouse=True)
def _one_thread_and_any_form() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
    _native.force_form("any")


def form_of(model: Any, data: tk.SparseFeatures, batch_size: int, i: int = 0) -> str:
    """The form that model number i takes."""
    network, many = network_params(model.network), int(model.topology.n_connections[i])
    network.sparse = True
    return _native.train_form(network, data.native(), model.n_models, batch_size, i, many)


def assert_follows(
    run: tk.Run,
    start: dict[str, torch.Tensor],
    mask: torch.Tensor,
    data: tk.SparseFeatures | tk.Dataset,
    batch_size: int,
    steps: int,
    with_connections: slice = slice(None),
) -> None:
    """The run, by Adam(1e-2) from these parameters, is the masked dense reference's; `with_connections`: the
    models that have any, whose weights can be compared."""
    wanted = reference.train(
        start,
        batches_of(data, batch_size, None, len(mask)),
        steps,
        tk.Adam(lr=1e-2),
        reference.network_of(run.model),
        connections=lambda step: mask,
    )
    weight = torch.where(mask, wanted.parameters["weight"], 0)[with_connections]
    assert (relative_error(run.model.weight[with_connections], weight) <= TRAJECTORY).all()
    assert (relative_error(run.model.bias, wanted.parameters["bias"]) <= TRAJECTORY).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*CASES, LARGE, *SHAPES], ids=str)
def test_the_trajectory_is_that_of_masked_dense_models(case, level):
    _native.force_form(CONNECTIONS)
    assert form_of(model_of(case), data_of(case), case.batch_size) == CONNECTIONS
    with isa_level(level):
        run = fit_case(case, record_every=7, snapshots=(0, *updates_of(case)))
    assert_follows_masked_dense(case, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in (*CASES, *SHAPES)
        if case.probability <= 0.125 and not case.network.get("hidden_activation")
    ],
    ids=str,
)
def test_the_gram_form_goes_by_connections(case, level):
    _native.force_form("gram")
    with isa_level(level):
        run = fit_case(case, record_every=7, snapshots=(0, *updates_of(case)))
    assert_follows_masked_dense(case, run)


def masks() -> torch.Tensor:
    """Nothing at all; one connection a unit; one a feature; rows and columns without any; all but one."""
    mask = torch.zeros(5, 11, 26, dtype=torch.bool)
    mask[1, torch.arange(11), torch.arange(11) * 2] = True
    mask[2, torch.arange(26) % 11, torch.arange(26)] = True
    mask[3, ::3, ::2] = True
    mask[4] = True
    mask[4, 5, 5] = False
    return mask


@pytest.mark.sanitize
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("probability", [0.05, 0.5])
@pytest.mark.parametrize("form", [CONNECTIONS, "gram", "any"])
def test_any_mask(form, probability, level):
    """A connection counts though its weight is 0: half of them begin there, and move where others do."""
    mask = masks()
    model = tk.SparseTiedAutoencoder(
        26, 11, topology=tk.Topology.from_mask(mask), n_models=5, dtype=torch.float32
    )
    with torch.no_grad():
        model.values[::2] = 0.0
    start, data = reference.parameters_of(model), tk.SparseFeatures(26, probability)
    _native.force_form(form)
    with isa_level(level):
        run = tk.fit(model, data, 50, 70, tk.Adam(lr=1e-2), progress=False)
    assert_follows(run, start, mask, data, 70, 50, slice(1, None))
    assert (run.model.weight[4][mask[4]] != 0).all()
    assert_nothing_where_nothing_is(run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [BY_NAME["tiles, RigL"], LARGE, *SHAPES[1:4]], ids=str)
def test_alone_among_others_on_any_threads_and_cut(case, level):
    _native.force_form(CONNECTIONS)
    with isa_level(level):
        whole = fit_case(case)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same(whole, fit_case(case))
            assert_same(whole, whole.rerun(1), slice(1, 2))  # a team, where there are parts
        cut = fit_case(case, stop_at=case.steps // 2 + 1)
        assert_same(whole, tk.fit(resume=cut, progress=False))


@pytest.mark.parametrize("case", [BY_NAME["tiles, RigL"], *SHAPES[1:4]], ids=str)
def test_a_step_whose_gradient_is_looked_at_is_the_same_step(case):
    """RigL wants the gradient at all places before an update that then moves nothing."""
    _native.force_form(CONNECTIONS)
    still = dataclasses.replace(RIGL, drop_fraction=1e-9)
    runs = [fit_case(dataclasses.replace(case, topology=topology)) for topology in (None, still)]
    assert runs[1].topology is not None and runs[1].topology.updates > 0
    assert torch.equal(runs[0].model.weight, runs[1].model.weight)


def test_noise_and_datasets():
    """Targets that are not the inputs, and rows of a dataset, given as they are and as entries."""
    _native.force_form(CONNECTIONS)
    x = torch.rand(90, 40, generator=torch.Generator().manual_seed(1)) * (
        torch.rand(90, 40, generator=torch.Generator().manual_seed(2)) < 0.2
    )
    for data in (
        tk.SparseFeatures(40, 0.1, noise=0.1),
        tk.SparseFeatures(40, 0.7, noise=0.1),
        tk.Dataset(x),
        tk.Dataset(tk.SparseBatch.from_dense(x)),
    ):
        model = tk.SparseTiedAutoencoder(40, 14, np.array([0.1, 0.4]), n_models=2, dtype=torch.float32)
        start, mask = reference.parameters_of(model), model.topology.to_mask()
        run = tk.fit(model, data, 40, 50, tk.Adam(lr=1e-2), progress=False)
        assert_follows(run, start, mask, data, 50, 40)


def test_a_model_that_diverges_harms_no_other():
    _native.force_form(CONNECTIONS)
    case = dataclasses.replace(SHAPES[3], density=(0.1, 0.1, 0.1), steps=30, topology=None)
    well = fit_case(case, optimizer=tk.SGD(lr=1e-2))
    run = fit_case(case, optimizer=tk.SGD(lr=np.array([1e-2, 1e30, 1e-2])))
    assert (run.diverged_at >= 0).tolist() == [False, True, False]
    assert_same(run, well, [0, 2], [0, 2])
    assert_nothing_where_nothing_is(run)


def test_the_form_follows_from_density():
    """Each model's own, at every level alike; a model with all connections takes what a dense one takes."""
    density = np.array([0.05, 0.25, 1.0])
    found = []
    for level in LEVELS:
        with isa_level(level):
            for n, m, p, hidden in ((128, 256, 0.5, "relu"), (80, 20, 0.5, "none"), (400, 30, 0.01, "relu")):
                model = tk.SparseTiedAutoencoder(n, m, density, n_models=3, hidden_activation=hidden)
                data = tk.SparseFeatures(n, p)
                found.append([form_of(model, data, 1024, i) for i in range(3)])
    assert found == [[CONNECTIONS, CONNECTIONS, "tiles"]] * len(found)
