"""Sparse models in the CUDA source of the small and the large regime, run on the host: the cases of the CPU's
loops, held to the same references; and what is moved to a device and back, with copies in place of another
memory."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from device_kit import HostLaunch, device_source
from fit_topology_kit import (
    BY_NAME,
    CASES,
    KEPT,
    LARGE_ON_A_DEVICE,
    TICKET,
    assert_follows_masked_dense,
    assert_nothing_where_nothing_is,
    data_of,
    fit_case,
    model_of,
    updates_of,
)
from kit import TRAJECTORY, assert_same_bits, batches_of, relative_error

import toykern as tk
from toykern import _native, reference
from toykern.sparse import DenseGradient
from toykern.training import kernels as resident
from toykern.training.kernels import network_params

loop_module = importlib.import_module("toykern.training.loop")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# The loop of small models, and that of large ones for small and for large models.
LOOPS = [(case, "small") for case in CASES]
LOOPS += [(BY_NAME["columns, momentum"], "large"), *((case, "large") for case in LARGE_ON_A_DEVICE)]
each_loop = pytest.mark.parametrize(("case", "loop"), LOOPS, ids=str)
loops_of = [(BY_NAME["columns, RigL"], "small"), *((case, "small") for case in KEPT), (TICKET, "small")]
loops_of += [(case, "large") for case in LARGE_ON_A_DEVICE[:2]]
some_of_each = pytest.mark.parametrize(("case", "loop"), loops_of, ids=str)


def fit_there(case, loop=None, *, descending=False, room_for=None, **options):
    """By the device's source, which picks its loop itself unless one is named."""
    with device_source(loop, descending, room_for):
        return fit_case(case, **options)


def regime(n_features, n_hidden, sparse=True):
    network = network_params(tk.SparseTiedAutoencoder(n_features, n_hidden, 0.5).network)
    network.sparse = sparse
    return _native.cuda.regime(network, 64)


def test_the_loop_of_sparse_models():
    assert (regime(2, 1), regime(2, 1, sparse=False)) == ("small", "tiny")
    assert {regime(case.n_features, case.n_hidden) for case in CASES} == {"small"}
    assert {regime(case.n_features, case.n_hidden) for case in LARGE_ON_A_DEVICE} == {"large"}


@each_loop
def test_the_whole_trajectory_is_that_of_masked_dense_models(case, loop):
    run = fit_there(case, loop, record_every=7, snapshots=(0, *updates_of(case)))
    assert_follows_masked_dense(case, run)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (5, 2), (6, 2)])
def test_shapes_that_are_tiny_when_dense(shape):
    """A quarter of the connections of several models at least is missing."""
    case = dataclasses.replace(
        BY_NAME["columns, fixed"], n_features=shape[0], n_hidden=shape[1], density=(0.5, 0.6, 0.7, 1.0)
    )
    assert_follows_masked_dense(case, fit_there(case, record_every=7, snapshots=(0,)))


@pytest.mark.parametrize(
    ("case", "loop"), [(c, loop) for c, loop in LOOPS if c.topology is not None and not c.loss], ids=str
)
def test_the_choices_are_those_of_the_cpu(case, loop):
    here, there = fit_case(case), fit_there(case, loop)
    assert there.model.topology == here.model.topology
    assert (relative_error(there.model.weight, here.model.weight.detach().double()) <= 2 * TRAJECTORY).all()
    for ours, theirs in zip(there.topology.history, here.topology.history, strict=True):
        assert torch.equal(ours.layers["weight"].grown, theirs.layers["weight"].grown)


class Kept(DenseGradient):
    """Keeps the gradient that it looked at last."""

    def observe(self, layer, first, number):
        super().observe(layer, first, number)
        layer.memory["seen"] = layer.memory["gradient"].clone()


@pytest.mark.parametrize(
    ("case", "loop"),
    [
        (BY_NAME["columns, RigL"], "small"), (BY_NAME["tiles, RigL"], "small"),
        *((case, "large") for case in LARGE_ON_A_DEVICE),
    ],
    ids=str,
)  # fmt: skip
def test_growth_sees_the_gradient_at_all_positions(case, loop):
    step = updates_of(case)[-1]
    case = dataclasses.replace(case, topology=dataclasses.replace(case.topology, grow=Kept()))
    run = fit_there(case, loop, snapshots=(step - 1,))
    found = run.topology.attached_layers[0].memory["seen"].reshape(run.model.weight.shape)
    before = {name: run.snapshots[step - 1][name].double() for name in ("weight", "bias")}
    batch, _ = batches_of(data_of(case), case.batch_size, None, run.n_models)(step - 1)
    _, wanted = reference.loss_and_gradients(before, batch, **case.loss)
    assert (relative_error(found, wanted["weight"]) < 1e-5).all()
    assert (found[~run.snapshots[step - 1]["connections"]] != 0).any()


@pytest.mark.parametrize(
    ("n", "m", "loop"),
    [
        (7, 3, "small"),
        (16, 7, "small"),
        (20, 10, "small"),
        (60, 17, "small"),
        (7, 3, "large"),
        (70, 33, "large"),
    ],
)
def test_with_all_connections_it_is_the_dense_model_bit_by_bit(n, m, loop):
    runs = []
    for model in (tk.SparseTiedAutoencoder(n, m, 1.0, n_models=3), tk.TiedAutoencoder(n, m, 3)):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            drawn = 0.3 * torch.randn(3, m, n, generator=generator)
            if isinstance(model, tk.TiedAutoencoder):
                model.weight.copy_(drawn)
            else:
                model.values.copy_(drawn.reshape(-1))
        with device_source(loop):
            steps = 40 if loop == "small" else 5
            runs.append(tk.fit(model, tk.SparseFeatures(n, 0.1), steps, 50, progress=False))
    ours, theirs = (run.model.stacked_parameters() for run in runs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(runs[0].loss, runs[1].loss)


@some_of_each
def test_nothing_but_the_model_decides_a_bit(case, loop, monkeypatch):
    """The order of lanes and blocks, room for one model, chunks, neighbours, interruptions."""
    whole = fit_there(case, loop)
    assert_nothing_where_nothing_is(whole)
    assert_same_bits(whole, fit_there(case, loop, descending=True))
    assert_same_bits(whole, fit_there(case, loop, room_for=1))
    with device_source(loop):
        cut = fit_case(case, stop_at=case.steps // 3)
        cut = tk.fit(resume=tk.fit(resume=cut, stop_at=case.steps // 2, progress=False), progress=False)
        assert_same_bits(whole, cut)
        alone = whole.rerun(1)
    assert torch.equal(alone.model.weight[0], whole.model.weight[1])
    assert torch.equal(alone.loss[0], whole.loss[1])
    monkeypatch.setattr(loop_module, "_next_length", lambda *_: 5)
    assert_same_bits(whole, fit_there(case, loop))


class ElsewhereLaunch(HostLaunch):
    """As on a device, nothing that is moved there shares its memory with what was here."""

    def moved(self, tensors):
        return [tensor.clone() for tensor in super().moved(tensors)]


@some_of_each
def test_what_is_moved_there_comes_back(case, loop, monkeypatch):
    options = {"snapshots": (0, 5, case.steps), "record": ("loss", "density"), "record_every": 7}
    expected = fit_there(case, loop, **options)
    monkeypatch.setattr(
        resident,
        "device_launch",
        lambda model, data, action: ElsewhereLaunch(data, model.n_models, regime=loop),
    )
    run = fit_case(case, **options)
    assert_same_bits(expected, run)
    cut = tk.fit(resume=fit_case(case, stop_at=case.steps - 3, **options), progress=False)
    assert_same_bits(expected, cut)


@pytest.mark.parametrize(
    ("case", "loop"), [(BY_NAME["tiles, RigL"], "small"), (LARGE_ON_A_DEVICE[1], "large")], ids=str
)
def test_a_diverged_model_keeps_its_connections_and_harms_no_other(case, loop):
    lr = np.full(len(case.density), 1e-2)
    lr[1] = 1e30
    run = fit_there(case, loop, optimizer=tk.SGD(lr=lr), snapshots=(0, case.steps))
    assert (run.diverged_at >= 0).tolist() == [i == 1 for i in range(len(lr))]
    masks = {step: snapshot["connections"] for step, snapshot in run.snapshots.items()}
    assert torch.equal(masks[case.steps][1], masks[0][1])
    assert not torch.equal(masks[case.steps][0], masks[0][0])
    well = fit_there(case, loop, optimizer=tk.SGD(lr=1e-2))
    others = [i for i in range(len(lr)) if i != 1]
    assert torch.equal(run.model.weight[others], well.model.weight[others])


def test_evaluation_of_sparse_models():
    case = BY_NAME["tiles, RigL"]
    model = model_of(case)
    here = tk.evaluate(model, data_of(case), 500, 0)
    with device_source():
        assert torch.allclose(tk.evaluate(model, data_of(case), 500, 0), here, rtol=1e-5)
