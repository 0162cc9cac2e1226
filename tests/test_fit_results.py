"""What a run holds: records, other metrics, snapshots, models that diverged, provenance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import FIT_CASES
from kit import assert_same_bits, batches_of, data_of, fit_case, model_of, reference_of

import toykern as tk
from toykern import _native, metrics, reference

BY_NAME = {case.name: case for case in FIT_CASES}
BOTH_LOOPS = [BY_NAME["5,2 each model its own"], BY_NAME["20,9 each model its own"]]
both_loops = pytest.mark.parametrize("case", BOTH_LOOPS, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# Records


@both_loops
@pytest.mark.parametrize("every", [1, 3, 10, 29, 30, 1000])
def test_a_record_is_the_mean_loss_of_its_steps_before_their_updates(case, every):
    run = fit_case(case, steps=30, record_every=every)
    expected = reference.record_means(reference_of(case).losses[:, :30], every)
    assert run.loss.dtype == torch.float32 and run.loss.shape == expected.shape
    torch.testing.assert_close(run.loss.double(), expected, rtol=1e-5, atol=1e-9)
    assert run.record_steps.tolist() == [min(30, (r + 1) * every) for r in range(expected.shape[1])]


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (99, 1), (250, 2), (1000, 10)])
def test_there_are_about_a_hundred_records_by_default(steps, every):
    run = fit_case(BY_NAME["2,1 batch 1024"], steps=steps, batch_size=2)
    assert run.config["record_every"] == every
    assert run.loss.shape[1] == -(-steps // every)


def test_records_not_reached_are_nan_and_the_next_goes_on(monkeypatch):
    case = BOTH_LOOPS[0]
    run = fit_case(case, steps=30, record_every=7, record=("superposition",), stop_at=17)
    assert run.loss.isnan().tolist() == [[False, False, True, True, True]] * 3
    assert run.records["superposition"].isnan().all(2).tolist() == run.loss.isnan().tolist()
    losses = fit_case(case, steps=30, record_every=1).loss.double()
    torch.testing.assert_close(run.carry["loss"], losses[:, 14:17].sum(1), rtol=1e-6, atol=0)


@both_loops
def test_other_metrics_are_those_of_the_weights_after_the_last_update_of_a_record(case):
    names = ("features_per_dimension", "feature_dimensionality", "superposition")
    ends = [7, 14, 21, 28, 30]
    run = fit_case(case, steps=30, record_every=7, record=names, snapshots=ends)
    assert list(run.records) == list(names)
    for r, end in enumerate(ends):
        weight = run.snapshots[end]["weight"]
        for name in names:
            assert torch.equal(run.records[name][:, r], getattr(metrics, name)(weight)), (name, end)


def test_of_an_untied_model_the_encoder_is_measured():
    case = BY_NAME["7,3 untied relu none"]
    run = fit_case(case, steps=4, record=("features_per_dimension",), snapshots=(4,))
    expected = metrics.features_per_dimension(run.snapshots[4]["encoder"])
    assert torch.equal(run.records["features_per_dimension"][:, -1], expected)


def test_recording_more_changes_no_bit():
    case = BOTH_LOOPS[1]
    plain = fit_case(case, steps=20, record_every=3)
    other = fit_case(case, steps=20, record_every=3, record=("superposition",), snapshots=range(21))
    assert torch.equal(plain.loss, other.loss)
    assert torch.equal(plain.model.weight, other.model.weight)


# Snapshots


@both_loops
def test_snapshot_t_is_the_model_after_t_updates(case):
    start = {name: value.detach().clone() for name, value in model_of(case).named_parameters()}
    run = fit_case(case, steps=12, snapshots=[12, 0, 5, 5])
    assert list(run.snapshots) == [0, 5, 12]
    for name, value in run.model.named_parameters():
        assert torch.equal(run.snapshots[0][name], start[name])
        assert torch.equal(run.snapshots[12][name], value)
        after = dict(fit_case(case, steps=12, stop_at=5).model.named_parameters())
        assert torch.equal(run.snapshots[5][name], after[name])
        assert run.snapshots[12][name].data_ptr() != value.data_ptr()


def test_log_spaced_steps():
    assert tk.log_spaced_steps(1000, 4) == [1, 10, 100, 1000]
    assert tk.log_spaced_steps(10, 200) == list(range(1, 11))
    assert tk.log_spaced_steps(1) == [1]


# Models that diverge


def _float32_losses(case, steps: int, lr: torch.Tensor) -> torch.Tensor:
    """Losses of plain float32 PyTorch with SGD on the batches of `fit`, `[models, steps]`."""
    model = model_of(case)
    batch = batches_of(data_of(case), case.batch_size, None, case.n_models)
    losses = []
    for step in range(steps):
        model.zero_grad()
        loss = model.loss(batch(step)[0])
        loss.sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr.reshape(-1, *[1] * (parameter.ndim - 1)).float() * parameter.grad
        losses.append(loss.detach())
    return torch.stack(losses, dim=1)


@pytest.mark.parametrize("name", ["5,2 at .9", "20,9 at .9"])
def test_a_diverged_model_is_left_where_it_was_and_harms_no_other(name):
    case, lr = BY_NAME[name], torch.tensor([0.1, 300.0, 0.01], dtype=torch.float64)
    options = {"steps": 40, "record_every": 4, "record": ("superposition",)}
    run = fit_case(case, optimizer=tk.SGD(lr=lr), **options)
    finite = _float32_losses(case, 40, lr).isfinite()
    assert finite[[0, 2]].all() and not finite[1].all()
    at = int((~finite[1]).nonzero()[0])
    assert run.diverged_at.tolist() == [-1, at, -1]
    assert run.loss[1].isnan().tolist() == [(r + 1) * 4 > at for r in range(10)]
    assert run.records["superposition"][1].isnan().all(1).tolist() == run.loss[1].isnan().tolist()
    calm = fit_case(case, optimizer=tk.SGD(lr=[0.1, 0.1, 0.01]), **options)
    assert_same_bits(run, calm, [0, 2], [0, 2])
    stopped = fit_case(case, optimizer=tk.SGD(lr=lr), **options, stop_at=at)
    assert stopped.diverged_at.tolist() == [-1, -1, -1]
    assert torch.equal(stopped.model.weight[1].isfinite(), run.model.weight[1].isfinite())
    assert torch.equal(stopped.model.weight[1].nan_to_num(), run.model.weight[1].nan_to_num())
    tk.fit(resume=stopped, progress=False)
    assert_same_bits(run, stopped)
    assert_same_bits(run, run.rerun(1), slice(1, 2))
    assert np.array_equal(run.best(over=None), run.final_loss.nan_to_num(nan=9e9).argmin().numpy())


def test_a_model_of_nan_diverges_at_once_and_is_not_touched():
    model = tk.TiedAutoencoder(5, 2, 2)
    with torch.no_grad():
        model.weight[0, 0, 0] = torch.nan
    before = model.weight[0].detach().clone()
    run = tk.fit(model, tk.SparseFeatures(5, 0.5), 5, 32, progress=False)
    assert run.diverged_at.tolist() == [0, -1]
    assert torch.equal(model.weight[0].nan_to_num(), before.nan_to_num())
    assert run.loss[0].isnan().all() and run.loss[1].isfinite().all()


@pytest.mark.parametrize("case", [BY_NAME["5,2 at .9"], BY_NAME["20,9 at .9"]], ids=lambda case: case.name)
def test_what_the_last_update_breaks_has_diverged_too(case):
    run = fit_case(case, steps=1, optimizer=tk.SGD(lr=[1e-3, 1e200, 1e-3]))
    assert run.loss.isfinite().all() and not run.model.weight[1].isfinite().all()
    assert run.diverged_at.tolist() == [-1, 1, -1]


# Corners


def test_without_active_features_only_the_empty_sample_is_learned():
    """p = 0: the loss is Σ relu(b)² and weights shrink by their decay alone."""
    case = BY_NAME["5,2 never"]
    start = model_of(case)
    run = fit_case(case, steps=3, optimizer=tk.AdamW(lr=0.01, weight_decay=0.5), record_every=1)
    torch.testing.assert_close(run.loss[:, 0], start.bias.relu().square().mean(1).detach())
    torch.testing.assert_close(run.model.weight, start.weight * (1 - 0.01 * 0.5) ** 3)
    negative = start.bias < 0
    torch.testing.assert_close(run.model.bias[negative], (start.bias * (1 - 0.01 * 0.5) ** 3)[negative])
    assert (run.model.bias[~negative] < start.bias[~negative] * (1 - 0.01 * 0.5) ** 3).all()


@both_loops
def test_importance_zero_learns_nothing(case):
    start = model_of(case)
    run = fit_case(case, steps=5, importance=0.0, optimizer=tk.Adam(lr=0.1))
    assert not run.loss.any()
    assert torch.equal(run.model.weight, start.weight) and torch.equal(run.model.bias, start.bias)
    eps_zero = fit_case(case, steps=5, importance=0.0, optimizer=tk.Adam(lr=0.1, eps=0.0))
    assert torch.equal(eps_zero.model.weight, start.weight)


def test_a_feature_without_importance_is_only_an_input():
    case = BY_NAME["5,2 always"]
    start = model_of(case)
    importance = [1.0, 1.0, 0.0, 1.0, 1.0]
    run = fit_case(case, steps=5, importance=importance, optimizer=tk.SGD(lr=0.1))
    assert torch.equal(run.model.bias[:, 2], start.bias[:, 2])
    assert not torch.equal(run.model.weight[:, :, 2], start.weight[:, :, 2])


def test_a_schedule_of_zeros_trains_nothing():
    case = BOTH_LOOPS[0]
    run = fit_case(case, steps=5, schedule=lambda step, steps: 0.0)
    assert torch.equal(run.model.weight, model_of(case).weight)


def test_a_schedule_is_asked_once_for_every_step_of_the_whole_run(monkeypatch):
    asked = []

    def schedule(step, steps):
        asked.append((step, steps))
        return 1.0

    run = fit_case(BOTH_LOOPS[0], steps=20, schedule=schedule, stop_at=9)
    tk.fit(resume=run, progress=False)
    assert [step for step, _ in asked if step > 0] == list(range(1, 20))
    assert {steps for _, steps in asked} == {20}


def test_data_and_importance_may_be_changed_afterwards():
    """The run keeps its own copies: what it says about itself stays true."""
    importance, seed, lr = torch.ones(3, 5), torch.arange(3), torch.full((3,), 1e-3, dtype=torch.float64)
    p = torch.full((3, 5), 0.3, dtype=torch.float64)
    model = tk.TiedAutoencoder(5, 2, 3)
    run = tk.fit(
        model,
        tk.SparseFeatures(5, p),
        steps=8,
        batch_size=16,
        optimizer=tk.AdamW(lr=lr),
        importance=importance,
        seed=seed,
        progress=False,
    )
    for tensor in (importance, seed, lr, p):
        tensor.zero_()
    assert_same_bits(run, run.rerun(2), slice(2, 3))


def test_seeds_and_their_default():
    case = BOTH_LOOPS[0]
    assert_same_bits(fit_case(case, steps=4), fit_case(case, steps=4, seed=[0, 1, 2]))
    same = fit_case(case, steps=4, seed=1)
    assert same.arrays["seed"].tolist() == [1, 1, 1]
    assert_same_bits(fit_case(case, steps=4), same, [1], [1])
    big = fit_case(case, steps=4, seed=2**63 - 1)
    assert not torch.equal(big.loss, same.loss)


def test_fit_starts_afresh_every_time():
    """A second fit of a trained model begins at step 0 with a new optimiser state."""
    case = BOTH_LOOPS[1]
    model, data = model_of(case), data_of(case)
    tk.fit(model, data, 6, 32, progress=False)
    loss = tk.fit(model, data, 1, 32, progress=False).loss[:, 0].double()
    x = data.sample(0, 32, n_models=3)
    first = fit_case(case, steps=6, batch_size=32, optimizer=tk.AdamW()).model
    torch.testing.assert_close(loss, first.loss(x).detach().double(), rtol=1e-5, atol=0)


# About the run


def test_provenance_and_configuration():
    case = BOTH_LOOPS[0]
    run = fit_case(case, steps=7, seed=[5, 6, 7], snapshots=(3,))
    build = _native.build_info()
    assert run.provenance["commit"] == build["commit"] and run.provenance["toykern"] == tk.__version__
    assert run.provenance["instruction_set"] == _native.isa_level()
    assert run.provenance["stream_version"] == _native.stream_version()
    assert run.provenance["threads"] == torch.get_num_threads()
    assert {"torch", "numpy", "python", "platform", "date", "compiler"} <= run.provenance.keys()
    assert run.config["steps"] == 7 and run.config["batch_size"] == case.batch_size
    assert run.config["snapshots"] == [3] and run.config["record"] == ["loss"]
    assert run.arrays["seed"].tolist() == [5, 6, 7]
    assert run.arrays["lr"].tolist() == [1e-3, 3e-3, 1e-2]
    assert run.arrays["weight_decay"].tolist() == [0.01] * 3
    assert run.seconds > 0 and run.complete and not run.interrupted


def test_arguments_that_can_be_left_out():
    model, data = tk.TiedAutoencoder(3, 2), tk.SparseFeatures(3, 0.5)
    run = tk.fit(model, data, 3, progress=False)
    assert run.config["batch_size"] == 1024 and run.config["optimizer"] == tk.AdamW().config()
    assert run.model is model and run.data is data
