"""Batched products on the CPU's tensors: the reference, the kernels' records, what a step must not do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from drawn_members import assert_follows, fit_member, members
from family_kit import FAMILY, Family, assert_close, batched
from fit_topology_kit import BY_NAME as SPARSE
from fit_topology_kit import assert_follows_masked_dense, updates_of
from fit_topology_kit import data_of as sparse_data_of
from fit_topology_kit import model_of as sparse_model_of
from hypothesis import given, settings
from kit import TRAJECTORY, assert_same_bits, relative_error
from test_general_update import OPTIMIZERS, UNIT, expected_of, fitted, tied, untied
from test_general_update import assert_close as assert_follows_steps
from torch.utils._python_dispatch import TorchDispatchMode

import toykern as tk
from toykern.training import batched as module
from toykern.training import ways

BY_NAME = {case.name: case for case in FAMILY}
CALM = [
    BY_NAME[name] for name in ("a network", "embedded", "fewer samples", "SGLD", "sparse, clipped", "extras")
]


@settings(max_examples=60)
@given(member=members())
def test_every_member_follows_the_reference(member):
    with batched():
        assert_follows(member, fit_member(member))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [tied, untied])
def test_every_optimizer_follows_the_reference(make, name):
    optimizer = OPTIMIZERS[name]
    with batched():
        run = fitted(make(), optimizer, schedule="cosine", record_every=1)
    expected = expected_of(make(), optimizer, schedule="cosine")
    assert_follows_steps(run, expected)
    assert (relative_error(run.loss, expected.losses) <= TRAJECTORY).all()


@pytest.mark.parametrize("unit", UNIT)
def test_vectors_of_unit_norm(unit):
    optimizer = dataclasses.replace(OPTIMIZERS["Adam, all"], unit_norm=UNIT[unit])
    with batched():
        run = fitted(untied(), optimizer, 15)
    assert_follows_steps(run, expected_of(untied(), optimizer, 15))


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_a_run_is_that_of_the_kernels(case: Family, monkeypatch):
    """Weights, states, records, snapshots, the sum of an unfinished record."""
    options = {"snapshots": [0, 6, 12], "record": ["feature_dimensionality"]}
    expected = case.run(**options)
    made = []
    monkeypatch.setattr(module.BatchedResident, "advance", _counted(module.BatchedResident.advance, made))
    with batched():
        run = case.run(**options)
    assert sum(made) == 12
    assert_close(run, expected)


def _counted(advance: Any, made: list[int]) -> Any:
    def counted(self: Any, first: int, factors: Any, gradient: bool = False) -> None:
        made.append(len(factors))
        advance(self, first, factors, gradient)

    return counted


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_evaluation_is_that_of_the_kernels(case: Family):
    with batched():
        found = case.evaluated()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, case.evaluated(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_what_no_kernel_takes_is_named(case: Family):
    """And told by a run whose models are on a CUDA device; the CPU's kernels take all of it."""
    run = case.run(stop_at=0)
    network = run.settings.network(run.model)
    asked = ways.beyond_kernels(network, run.data, run.settings.l1, run.settings.optimizer)
    assert asked == case.asked
    assert ways.way_of(torch.device("cuda", 0), asked) == "batched products"
    assert run.provenance["trainer"] == "kernels" and "trainer_because" not in run.provenance


def test_what_kernels_take_they_keep():
    """Every network, stream and optimiser that CUDA kernels trained before there was another way."""
    stream = tk.SparseFeatures(7, 0.3, "half_normal", [tk.Correlated((0, 1)), tk.Anticorrelated((2, 3))], 0.1)
    for optimizer in (tk.SGD(momentum=0.9, nesterov=True), tk.Adam(), tk.AdamW(lr=[0.1, 0.2])):
        for model in (
            tk.TiedAutoencoder(7, 4, 2, hidden_activation="gelu", output_activation="softplus"),
            tk.Autoencoder(7, 4, 2, hidden_activation="leaky_relu", negative_slope=0.2, bias=False),
            tk.SparseTiedAutoencoder(7, 4, density=0.5, n_models=2),
            tk.MLP(7, 4, n_models=2, hidden_bias=False, tied=True),
        ):
            network = model.network.trained_for(tk.network.Objective("abs", "sum"))
            asked = ways.beyond_kernels(network, stream, torch.zeros(2), optimizer)
            assert asked == [] and ways.way_of(torch.device("cuda", 0), asked) == "kernels"


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_an_interrupted_run_goes_on_with_its_bits(case: Family):
    options = {"snapshots": [0, 6, 12]}
    with batched():
        whole = case.run(**options)
        cut = case.run(stop_at=3, **options)
        cut = tk.fit(resume=tk.fit(resume=cut, stop_at=7, progress=False), progress=False)
    assert_same_bits(cut, whole)


@pytest.mark.parametrize("case", CALM, ids=str)
def test_a_run_goes_from_the_kernels_to_batched_products_and_back(case: Family):
    expected = case.run()
    run = case.run(stop_at=3)
    with batched():
        run = tk.fit(resume=run, stop_at=8, progress=False)
    run = tk.fit(resume=run, progress=False)
    assert_close(run, expected)


@pytest.mark.parametrize("case", CALM, ids=str)
def test_pieces_and_modes_around_change_nothing(case: Family, monkeypatch):
    """The CPU's part may be made for one step at a time; autocast, inference mode and no_grad are others'."""
    with batched():
        whole = case.run()
        for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
            with mode:
                run = case.run()
            assert_same_bits(run, whole)
        monkeypatch.setattr(module, "_MADE_BYTES", 1)
        assert_same_bits(case.run(), whole)


@pytest.mark.parametrize("name", ["a network", "embedded", "rows of each, minibatches", "sparse, clipped"])
def test_models_that_diverge_are_marked_and_harm_no_other(name):
    case = BY_NAME[name]

    def run(scale: float, **options: Any) -> tk.Run:
        rates = tk.SGD(lr=[1e-3, scale, 2e-3], momentum=0.9, clip_norm=1e30)
        return case.run(**{"optimizer": rates, "record_every": 1, "topology": None, **options})

    with batched():
        calm, wild = run(1e-3), run(1e30)
        cut = tk.fit(resume=run(1e30, stop_at=5), progress=False)
    assert wild.diverged_at[0] == wild.diverged_at[2] == -1 and 0 < wild.diverged_at[1] < 12
    assert_same_bits(wild, calm, [0, 2], [0, 2])
    assert_same_bits(cut, wild)
    at = int(wild.diverged_at[1])
    assert wild.loss[1, :at].isfinite().all() and wild.loss[1, at:].isnan().all()
    assert wild.carry["loss"].isfinite().all()
    expected = run(1e30)
    assert torch.equal(wild.diverged_at, expected.diverged_at)
    assert torch.equal(wild.loss.isnan(), expected.loss.isnan())


class NoWaiting(TorchDispatchMode):
    """Fails where something asks for a tensor's value, for which a device would have to be waited for."""

    ASKING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.ASKING, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_no_step_asks_for_a_value(case: Family, monkeypatch):
    """Of what the loop does by torch; what moves from the CPU is made before."""
    advance = module.BatchedResident._advance
    steps = []

    def watched(self: Any, step: int, *arguments: Any) -> None:
        steps.append(step)
        with NoWaiting():
            advance(self, step, *arguments)

    monkeypatch.setattr(module.BatchedResident, "_advance", watched)
    with batched():
        case.run(steps=3, topology=None, schedule="constant")
    assert steps == [0, 1, 2]


def test_asking_for_a_value_is_seen():
    with NoWaiting(), pytest.raises(AssertionError):
        bool(torch.ones(2).any())


@pytest.mark.parametrize("name", ["a network", "unit norm", "extras", "SGLD"])
def test_frozen_parameters_stay(name):
    case = BY_NAME[name]
    model = case.start()
    frozen = "decoder" if "decoder" in dict(model.named_parameters()) else "weight"
    froze = dataclasses.replace(case, model=lambda: _frozen(case.model(), frozen))
    with batched():
        run = froze.run()
    assert run.config["frozen"] == [frozen]
    before = run.arrays[f"init/{frozen}"]
    assert torch.equal(run.model.get_parameter(frozen), before)
    for kind in run.optimizer.state_names:
        state = run.optimizer_state[f"{frozen}/{kind}"]
        assert torch.equal(state, before) if kind == "initial" else not state.any()
    assert_close(run, froze.run())


def _frozen(model: Any, name: str) -> Any:
    model.get_parameter(name).requires_grad_(False)
    return model


def test_a_model_of_frozen_parameters_alone_is_recorded():
    case = BY_NAME["hidden bias"]
    still = dataclasses.replace(case, model=lambda: case.model().requires_grad_(False))
    with batched():
        run = still.run()
    assert_close(run, still.run())


@pytest.mark.parametrize("name", ["columns, RigL", "tiles, SNFS"])
def test_sparse_models_follow_the_masked_dense_reference(name):
    case = SPARSE[name]
    with batched():
        run = tk.fit(
            sparse_model_of(case), sparse_data_of(case), case.steps, case.batch_size, case.optimizer,
            topology=case.topology, record_every=7, snapshots=[0, *updates_of(case)], progress=False,
            **case.loss,
        )  # fmt: skip
    assert_follows_masked_dense(case, run)


def test_parameters_that_are_not_contiguous_are_trained():
    case = BY_NAME["centred, untied"]

    def scattered() -> Any:
        model = case.model()
        model.encoder.data = model.encoder.data.mT.contiguous().mT
        return model

    with batched():
        run = dataclasses.replace(case, model=scattered).run()
        assert_same_bits(run, case.run())
        assert not run.model.encoder.is_contiguous()


def test_expanded_parameters_are_refused():
    model = tk.MLP(7, 4, n_models=3)
    model.encoder = torch.nn.Parameter(model.encoder.detach()[:1].expand(3, -1, -1))
    with batched(), pytest.raises(ValueError, match="encoder is an expanded tensor"):
        tk.fit(model, tk.SparseFeatures(7, 0.3), 3, progress=False)
