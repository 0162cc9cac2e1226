"""Sparse models in the small regime's CUDA source, run on the host: the cases of the CPU's loops, held to the
same references; and what is moved to a device and back, with copies in place of another memory."""

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
from toykern import _native, reference, resident
from toykern.resident import network_params
from toykern.sparse import DenseGradient

fit_module = importlib.import_module("toykern.fit")  # toykern.fit is the function


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def fit_there(case, *, descending=False, **options):
    """By the device's source, which picks its loop itself."""
    with device_source(descending=descending):
        return fit_case(case, **options)


def regime(n_features, n_hidden, sparse=True):
    network = network_params(tk.SparseTiedAutoencoder(n_features, n_hidden, 0.5), "identity", "mean")
    network.sparse = sparse
    return _native.cuda.regime(network, 64)


def test_the_loop_of_sparse_models():
    assert (regime(2, 1), regime(2, 1, sparse=False)) == ("small", "tiny")
    assert {regime(case.n_features, case.n_hidden) for case in CASES} == {"small"}
    assert regime(200, 40) == "large"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_trajectory_is_that_of_masked_dense_models(case):
    run = fit_there(case, record_every=7, snapshots=(0, *updates_of(case)))
    assert_follows_masked_dense(case, run)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (5, 2), (6, 2)])
def test_shapes_that_are_tiny_when_dense(shape):
    """A quarter of the connections of several models at least is missing."""
    case = dataclasses.replace(
        BY_NAME["columns, fixed"], n_features=shape[0], n_hidden=shape[1], density=(0.5, 0.6, 0.7, 1.0)
    )
    assert_follows_masked_dense(case, fit_there(case, record_every=7, snapshots=(0,)))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.topology is not None and not case.loss], ids=str
)
def test_the_choices_are_those_of_the_cpu(case):
    here, there = fit_case(case), fit_there(case)
    assert there.model.topology == here.model.topology
    assert (relative_error(there.model.weight, here.model.weight.detach().double()) <= 2 * TRAJECTORY).all()
    for ours, theirs in zip(there.topology.history, here.topology.history, strict=True):
        assert torch.equal(ours.layers["weight"].grown, theirs.layers["weight"].grown)


class Kept(DenseGradient):
    """Keeps the gradient that it looked at last."""

    def observe(self, layer, first, number):
        super().observe(layer, first, number)
        layer.memory["seen"] = layer.memory["gradient"].clone()


@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], BY_NAME["tiles, RigL"]], ids=str)
def test_growth_sees_the_gradient_at_all_positions(case):
    step = updates_of(case)[-1]
    case = dataclasses.replace(case, topology=dataclasses.replace(case.topology, grow=Kept()))
    run = fit_there(case, snapshots=(step - 1,))
    found = run.topology.attached_layers[0].memory["seen"].reshape(run.model.weight.shape)
    before = {name: run.snapshots[step - 1][name].double() for name in ("weight", "bias")}
    batch, _ = batches_of(data_of(case), case.batch_size, None, run.n_models)(step - 1)
    _, wanted = reference.loss_and_gradients(before, batch, **case.loss)
    assert (relative_error(found, wanted["weight"]) < 1e-5).all()
    assert (found[~run.snapshots[step - 1]["connections"]] != 0).any()


@pytest.mark.parametrize(("n", "m"), [(7, 3), (16, 7), (20, 10), (60, 17)])
def test_with_all_connections_it_is_the_dense_model_bit_by_bit(n, m):
    runs = []
    for model in (tk.SparseTiedAutoencoder(n, m, 1.0, n_models=3), tk.TiedAutoencoder(n, m, 3)):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            drawn = 0.3 * torch.randn(3, m, n, generator=generator)
            if isinstance(model, tk.TiedAutoencoder):
                model.weight.copy_(drawn)
            else:
                model.values.copy_(drawn.reshape(-1))
        with device_source("small"):
            runs.append(tk.fit(model, tk.SparseFeatures(n, 0.1), 40, 50, progress=False))
    ours, theirs = (run.model.stacked_parameters() for run in runs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(runs[0].loss, runs[1].loss)


@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], *KEPT, TICKET], ids=str)
def test_nothing_but_the_model_decides_a_bit(case, monkeypatch):
    """The order of lanes and blocks, chunks, neighbours, interruptions."""
    whole = fit_there(case)
    assert_nothing_where_nothing_is(whole)
    assert_same_bits(whole, fit_there(case, descending=True))
    with device_source():
        cut = fit_case(case, stop_at=case.steps // 3)
        cut = tk.fit(resume=tk.fit(resume=cut, stop_at=case.steps // 2, progress=False), progress=False)
        assert_same_bits(whole, cut)
        alone = whole.rerun(1)
    assert torch.equal(alone.model.weight[0], whole.model.weight[1])
    assert torch.equal(alone.loss[0], whole.loss[1])
    monkeypatch.setattr(fit_module, "_next_length", lambda *_: 5)
    assert_same_bits(whole, fit_there(case))


class ElsewhereLaunch(HostLaunch):
    """As on a device, nothing that is moved there shares its memory with what was here."""

    def moved(self, tensors):
        return [tensor.clone() for tensor in super().moved(tensors)]


@pytest.mark.parametrize("case", [BY_NAME["columns, RigL"], *KEPT, TICKET], ids=str)
def test_what_is_moved_there_comes_back(case, monkeypatch):
    options = {"snapshots": (0, 5, case.steps), "record": ("loss", "density"), "record_every": 7}
    expected = fit_there(case, **options)
    monkeypatch.setattr(
        resident, "device_launch", lambda model, data, action: ElsewhereLaunch(data, model.n_models)
    )
    run = fit_case(case, **options)
    assert_same_bits(expected, run)
    cut = tk.fit(resume=fit_case(case, stop_at=case.steps - 3, **options), progress=False)
    assert_same_bits(expected, cut)


def test_a_diverged_model_keeps_its_connections_and_harms_no_other():
    case = BY_NAME["tiles, RigL"]
    run = fit_there(case, optimizer=tk.SGD(lr=np.array([1e-2, 1e30, 1e-2, 1e-2])), snapshots=(0, 100))
    assert (run.diverged_at >= 0).tolist() == [False, True, False, False]
    masks = {step: snapshot["connections"] for step, snapshot in run.snapshots.items()}
    assert torch.equal(masks[100][1], masks[0][1]) and not torch.equal(masks[100][0], masks[0][0])
    well = fit_there(case, optimizer=tk.SGD(lr=1e-2))
    assert torch.equal(run.model.weight[[0, 2, 3]], well.model.weight[[0, 2, 3]])


def test_evaluation_of_sparse_models():
    case = BY_NAME["tiles, RigL"]
    model = model_of(case)
    here = tk.evaluate(model, data_of(case), 500, 0)
    with device_source():
        assert torch.allclose(tk.evaluate(model, data_of(case), 500, 0), here, rtol=1e-5)


def test_large_models_are_refused():
    model = tk.SparseTiedAutoencoder(200, 40, 0.1, n_models=2)
    before = model.values.detach().clone()
    with (
        device_source(),
        pytest.raises(ValueError, match="sparse models of 200 features and 40 hidden units"),
    ):
        tk.fit(model, tk.SparseFeatures(200, 0.05), 3)
    assert torch.equal(model.values, before)
