"""Every optimiser and what it may do beside its step, through `fit`: the reference, the bits, stores."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import stream_oracle
import torch
from device_kit import device_source
from kit import LEVELS, TRAJECTORY, batches_of, isa_level, relative_error

import toykern as tk
from toykern import reference
from toykern.training.optim import UnitNorm

K, STEPS, BATCH, SEED = 3, 40, 64, [3, 1, 4]

BASE: dict[str, Any] = {
    "lr_scale": {"bias": [0.5, 2.0, 0.0]},
    "weight_decay_scale": {"bias": 0.0},
    "clip_norm": [0.05, 0.2, 100.0],
    "bias_decay": tk.BiasDecay([0.5, 1.0, 2.0], until=20, tensor="bias"),
}
OPTIMIZERS = {
    "SGD, clipped": tk.SGD(lr=0.3, momentum=0.9, clip_norm=[0.05, 0.2, 100.0]),
    "SGD, all": tk.SGD(lr=[0.3, 0.1, 0.2], momentum=0.9, weight_decay=0.01, nesterov=True, **BASE),
    "Adam, scales": tk.Adam(lr=0.01, weight_decay=0.1, weight_decay_scale={"bias": 0.0}),
    "Adam, all": tk.Adam(lr=0.01, weight_decay=[0.1, 0.0, 0.3], **BASE),
    "AdamW, all": tk.AdamW(lr=[0.01, 0.003, 0.02], weight_decay=0.1, **BASE),
    "LAMB": tk.LAMB(lr=0.02),
    "LAMB, debiased": tk.LAMB(lr=0.02, clamp=0.5, debias=True, weight_decay=[0.0, 0.1, 1.0]),
    "LAMB of the paper": tk.LAMB(lr=[0.02, 0.01, 0.03], form="paper", weight_decay=0.1),
    "LAMB, all": tk.LAMB(lr=0.02, weight_decay=0.1, **BASE),
    "SGLD": tk.SGLD(lr=[1e-3, 1e-4, 3e-3], nbeta=[10.0, 100.0, 3.0], localization=[0.0, 10.0, 1.0]),
    "SGLD, all": tk.SGLD(lr=1e-3, nbeta=10.0, weight_decay=0.3, **BASE),
}
UNIT = {
    "columns": UnitNorm("decoder"),
    "columns, the rest removed": UnitNorm("decoder", remove_parallel=True),
    "rows": UnitNorm("encoder"),
    "rows, the rest removed": UnitNorm("encoder", remove_parallel=True),
}


def begun(kind: type, n: int, m: int, models: int = K, **options: Any) -> Any:
    """A stack with biases that matter."""
    model = kind(n, m, models, **options)
    generator = torch.Generator().manual_seed(n)
    with torch.no_grad():
        model.bias.copy_(0.1 * torch.randn(1, n, generator=generator).expand(models, n))
    return model


def tied(n: int = 5, m: int = 3, models: int = K) -> Any:
    return begun(tk.TiedAutoencoder, n, m, models)


def untied(n: int = 20, m: int = 70, models: int = K) -> Any:
    return begun(tk.Autoencoder, n, m, models, hidden_activation="relu")


def data_of(model: Any) -> tk.SparseFeatures:
    return tk.SparseFeatures(model.n_features, 0.2)


def fitted(model: Any, optimizer: Any, steps: int = STEPS, **options: Any) -> tk.Run:
    options = {"seed": SEED[: model.n_models], "progress": False, **options}
    return tk.fit(model, data_of(model), steps, BATCH, optimizer, **options)


def expected_of(model: Any, optimizer: Any, steps: int = STEPS, schedule: Any = "constant") -> Any:
    return reference.train(
        reference.parameters_of(model), batches_of(data_of(model), BATCH, SEED, K), steps, optimizer,
        reference.network_of(model), schedule=schedule, seed=SEED,
    )  # fmt: skip


def assert_close(run: tk.Run, expected: Any) -> None:
    for name, value in run.model.stacked_parameters().items():
        assert (relative_error(value, expected.parameters[name]) <= TRAJECTORY).all(), name
    assert run.optimizer_state.keys() == expected.state.keys()
    for name, value in run.optimizer_state.items():
        assert (relative_error(value, expected.state[name]) <= TRAJECTORY).all(), name


def assert_same(a: tk.Run, b: tk.Run, rows: Any = slice(None)) -> None:
    """The bits of the models `rows` of a are those of b."""
    assert torch.equal(a.loss[rows], b.loss)
    theirs = b.model.stacked_parameters()
    for name, value in a.model.stacked_parameters().items():
        assert torch.equal(value[rows], theirs[name]), name
    for name, value in a.optimizer_state.items():
        assert torch.equal(value[rows], b.optimizer_state[name]), name


# The reference


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [tied, untied])
def test_training_is_the_references(make, name, level):
    optimizer = OPTIMIZERS[name]
    expected = expected_of(make(), optimizer, schedule="cosine")
    with isa_level(level):
        run = fitted(make(), optimizer, schedule="cosine", record_every=1)
    assert_close(run, expected)
    assert (relative_error(run.loss, expected.losses) <= TRAJECTORY).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("unit", UNIT)
@pytest.mark.parametrize("name", ["SGD, clipped", "Adam, all", "LAMB", "SGLD"])
def test_vectors_of_unit_norm(name, unit, level):
    """70 hidden units: more than a group of columns."""
    optimizer = dataclasses.replace(OPTIMIZERS[name], unit_norm=UNIT[unit])
    model = untied()
    with torch.no_grad():
        model.encoder[:, 3] = 0
        model.decoder[:, :, 3] = 0
    expected = expected_of(model, optimizer, 15)
    with isa_level(level):
        run = fitted(model, optimizer, 15)
    assert_close(run, expected)
    if name != "SGLD":  # whose noise moves what is off
        assert not run.model.encoder[:, 3].any() and not run.model.decoder[:, :, 3].any()


def test_rows_of_a_tied_model_have_unit_norm():
    optimizer = tk.Adam(lr=0.01, unit_norm=UnitNorm("weight", remove_parallel=True))
    run = fitted(tied(), optimizer)
    assert_close(run, expected_of(tied(), optimizer))
    torch.testing.assert_close(run.model.weight.norm(dim=-1), torch.ones(K, 3), rtol=2e-6, atol=0)


def test_every_part_has_an_effect():
    """No option is passed over: leaving any of them out changes what every model becomes."""
    whole = dataclasses.replace(
        OPTIMIZERS["AdamW, all"], unit_norm="weight", clip_norm=1e-3, lr_scale={"bias": 3.0}
    )
    run = fitted(tied(), whole)
    for option in ("lr_scale", "weight_decay_scale", "clip_norm", "bias_decay", "unit_norm"):
        less = fitted(tied(), dataclasses.replace(whole, **{option: None}))
        differ = [bool((run.model.bias[k] != less.model.bias[k]).any()) for k in range(K)]
        assert all(differ), option


def test_a_number_that_changes_nothing_changes_little():
    """The general loop beside the one of today."""
    plain = fitted(untied(), tk.AdamW(lr=0.01))
    for same in ({"lr_scale": {"encoder": 1.0}}, {"clip_norm": 1e30}, {"weight_decay_scale": {"bias": 1.0}}):
        run = fitted(untied(), tk.AdamW(lr=0.01, **same))
        for name, value in run.model.stacked_parameters().items():
            error = relative_error(value, plain.model.stacked_parameters()[name].detach().double())
            assert (error <= TRAJECTORY).all()


def test_small_gradients_are_clipped_with_torchs_constant():
    """max_norm / (norm + 1e-6), the constant as large as the norm; the first buffer is the gradient."""
    model, optimizer = untied(), tk.SGD(momentum=0.9, clip_norm=[1e-7, 1e-6, 1.0])
    batches = batches_of(data_of(model), BATCH, SEED, K)
    _, gradients = reference.loss_and_gradients(
        reference.parameters_of(model), batches(0)[0], reference.network_of(model), importance=3e-6
    )
    leaves = [{name: value[k].clone() for name, value in gradients.items()} for k in range(K)]
    run = fitted(model, optimizer, 1, importance=3e-6)
    for k, most in enumerate([1e-7, 1e-6, 1.0]):
        parameters = [torch.nn.Parameter(torch.zeros_like(value)) for value in leaves[k].values()]
        for parameter, gradient in zip(parameters, leaves[k].values(), strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        assert 1e-7 < norm < 1e-5
        for name, parameter in zip(leaves[k], parameters, strict=True):
            found = run.optimizer_state[f"{name}/momentum_buffer"][k]
            assert parameter.grad is not None
            assert relative_error(found[None], parameter.grad[None]) < 1e-4, name


def test_frozen_tensors_stay_and_do_not_count_in_the_norm():
    optimizer = tk.SGD(lr=1.0, clip_norm=0.01)
    model = untied()
    model.decoder.requires_grad_(False)
    begin = {name: value.detach().clone() for name, value in model.stacked_parameters().items()}
    run = fitted(model, optimizer, 1)
    moved = {name: (v.detach() - begin[name]) for name, v in run.model.stacked_parameters().items()}
    assert not moved["decoder"].any()
    norms = sum(moved[name].double().square().flatten(1).sum(dim=1) for name in ("encoder", "bias")).sqrt()
    torch.testing.assert_close(norms, torch.full((K,), 0.01, dtype=torch.float64), rtol=1e-3, atol=0)


def test_frozen_tensors_keep_their_norm_and_bias():
    optimizer = tk.LAMB(unit_norm="decoder", bias_decay=tk.BiasDecay(0.1, tensor="bias"))
    model = untied()
    model.decoder.requires_grad_(False)
    model.bias.requires_grad_(False)
    decoder, bias = model.decoder.detach().clone(), model.bias.detach().clone()
    run = fitted(model, optimizer, 5)
    assert torch.equal(run.model.decoder, decoder) and torch.equal(run.model.bias, bias)
    assert not run.optimizer_state["decoder/exp_avg"].any() and run.optimizer_state["encoder/exp_avg"].any()


# The family


def jermyn() -> tk.MLP:
    """Engineering monosemanticity (Jermyn et al. 2022), small."""
    return tk.MLP(
        20, 40, n_models=K, hidden_activation="relu", bias=False, embedding=8, hidden_bias_init=-0.1
    )


def sae() -> tk.MLP:
    return tk.MLP(20, 70, n_models=K, centered=True)


FAMILY = {
    "LAMB and a bias that decays": (
        jermyn,
        tk.LAMB(lr=0.02, bias_decay=tk.BiasDecay([0.0, 1.0, 5.0], until=20)),
        {"schedule": tk.PeriodicCosine(16), "loss_reduction": "sum"},
    ),
    "SGLD": (jermyn, tk.SGLD(lr=1e-4, nbeta=30.0, localization=100.0, lr_scale={"hidden_bias": 0.5}), {}),
    "a sparse autoencoder": (
        sae,
        tk.Adam(
            lr=1e-3,
            clip_norm=[0.01, 0.1, 1.0],
            unit_norm=UnitNorm("decoder", remove_parallel=True),
            lr_scale={"hidden_bias": 10.0, "bias": [0.0, 1.0, 0.1]},
        ),
        {"l1": [1e-3, 1e-2, 0.0]},
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_members_of_the_family(name):
    make, optimizer, options = FAMILY[name]
    model = make()
    network = reference.network_of(model)
    batches = batches_of(data_of(model), BATCH, SEED, K)
    expected = reference.train(
        reference.parameters_of(model), batches, STEPS, optimizer, network, seed=SEED, **options
    )
    run = fitted(model, optimizer, **options)
    assert_close(run, expected)
    for i in range(K):
        assert_same(run, run.rerun(i), slice(i, i + 1))
    halves = fitted(make(), optimizer, stop_at=17, **options)
    assert_same(run, tk.fit(resume=halves, progress=False))


# SGLD


@pytest.mark.parametrize("level", LEVELS)
def test_noise_to_the_bit(level):
    """Without a gradient a step of ε = 1 is the stream's noise."""
    model = tk.Autoencoder(70, 66, 2, init=0.0)
    with isa_level(level):
        optimizer = tk.SGLD(lr=1.0, nbeta=0.0)
        run = tk.fit(model, data_of(model), 1, 4, optimizer, seed=[5, 2**40 + 1], progress=False)
    for role in ("encoder", "decoder", "bias"):
        for k, seed in enumerate((5, 2**40 + 1)):
            found = getattr(run.model, role)[k].detach().flatten().numpy()
            expected = stream_oracle.langevin_noise(seed, 0, role, np.arange(len(found)))
            assert np.array_equal(found.view(np.int32), expected.view(np.int32)), role


def test_the_state_is_where_the_run_began():
    model = tied()
    before = {name: value.detach().clone() for name, value in model.stacked_parameters().items()}
    run = fitted(model, OPTIMIZERS["SGLD"])
    for name, value in before.items():
        assert torch.equal(run.optimizer_state[f"{name}/initial"], value)
    assert fitted(tied(), OPTIMIZERS["SGLD, all"]).optimizer_state == {}


def test_models_are_held_by_their_localization():
    """Without a gradient x is an autoregression about x₀: the variance of the stationary state is 1/γ."""
    gamma = torch.tensor([10.0, 1000.0])
    model = tk.TiedAutoencoder(100, 60, 2, init=0.3)
    start = model.weight.detach().clone()
    optimizer = tk.SGLD(lr=[0.05, 0.0005], nbeta=0.0, localization=gamma)
    run = tk.fit(model, data_of(model), 60, 2, optimizer, seed=[1, 2], progress=False)
    a = gamma.double() * torch.tensor([0.05, 0.0005], dtype=torch.float64) / 2
    rest = (1 - a) ** (2 * 60)
    variance = (1 - rest) / (gamma * (1 - a / 2))
    found = (run.model.weight.detach() - start).double().square().flatten(1).mean(dim=1)
    assert ((found / variance - 1).abs() < 4.5 * (2 / 6000) ** 0.5).all()


# The same bits


EVERYTHING = {
    name: dataclasses.replace(OPTIMIZERS[name], unit_norm=UnitNorm("decoder", True))
    for name in ("SGD, all", "AdamW, all", "LAMB, all", "SGLD", "SGLD, all")
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_alone_and_in_any_chunks(name):
    together = fitted(untied(), EVERYTHING[name])
    for i in range(K):
        assert_same(together, together.rerun(i), slice(i, i + 1))
    halves = fitted(untied(), EVERYTHING[name], stop_at=17)
    halves = tk.fit(resume=halves, stop_at=18, progress=False)
    assert_same(together, tk.fit(resume=halves, progress=False))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", EVERYTHING)
def test_by_a_team_and_by_one(name, level):
    """A model so large that threads share its batch, and tensors of several blocks."""
    optimizer = dataclasses.replace(EVERYTHING[name], lr=1e-3, lr_scale={"bias": 0.5}, clip_norm=0.5)
    if isinstance(optimizer, tk.SGLD):
        optimizer = dataclasses.replace(optimizer, nbeta=3.0, localization=2.0)
    elif not isinstance(optimizer, tk.LAMB):
        optimizer = dataclasses.replace(optimizer, weight_decay=0.1)
    optimizer = dataclasses.replace(optimizer, bias_decay=tk.BiasDecay(0.5, tensor="bias"))
    threads, runs = torch.get_num_threads(), []
    with isa_level(level):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            model = untied(130, 70, 1)
            runs.append(tk.fit(model, data_of(model), 4, 1024, optimizer, seed=[7], progress=False))
    torch.set_num_threads(threads)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("name", EVERYTHING)
def test_through_a_store(name, tmp_path):
    whole = fitted(untied(), EVERYTHING[name])
    fitted(untied(), EVERYTHING[name], stop_at=11).save(tmp_path / "run.zarr")
    loaded = tk.Run.load(tmp_path / "run.zarr")
    assert loaded.settings.optimizer == EVERYTHING[name]
    assert loaded.arrays.keys() == whole.arrays.keys()
    assert_same(whole, tk.fit(resume=loaded, optimizer=EVERYTHING[name], progress=False))


def test_a_run_says_no_more_than_before_where_nothing_new_is_used():
    run = fitted(tied(), tk.AdamW(), 2)
    assert set(run.config["optimizer"]) == {"name", "lr", "betas", "eps", "weight_decay"}
    assert {"lr", "weight_decay"} == set(run.arrays) - {
        "seed", "importance", "probability", "init_seed", "init/weight", "init/bias",
    }  # fmt: skip


def test_what_is_given_beside_resume_must_be_the_same():
    run = fitted(untied(), EVERYTHING["AdamW, all"], stop_at=3)
    for change in (
        {"clip_norm": None},
        {"clip_norm": 3.0},
        {"lr_scale": {"bias": [0.5, 2.0, 0.1]}},
        {"lr_scale": {"encoder": 1.0}},
        {"bias_decay": tk.BiasDecay([0.5, 1.0, 2.0], until=21, tensor="bias")},
        {"unit_norm": "decoder"},
    ):
        other = dataclasses.replace(EVERYTHING["AdamW, all"], **change)
        with pytest.raises(ValueError, match="optimizer differs from that of the run"):
            tk.fit(resume=run, optimizer=other, progress=False)
    same = dataclasses.replace(EVERYTHING["AdamW, all"], weight_decay_scale={"bias": [0.0] * K})
    assert tk.fit(resume=run, optimizer=same, progress=False).complete


def test_an_edited_rate_trains_and_a_bad_one_is_refused():
    run = fitted(untied(), EVERYTHING["AdamW, all"], stop_at=3)
    run.arrays["clip_norm"][1] = -1.0
    with pytest.raises(ValueError, match="clip_norm must be finite and above 0.*model 1"):
        tk.fit(resume=run, progress=False)
    run.arrays["clip_norm"] = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"arrays\['clip_norm'\] must be a float64 tensor of shape \[3\]"):
        tk.fit(resume=run, progress=False)
    run.arrays["clip_norm"] = torch.ones(K, dtype=torch.float64)
    del run.arrays["lr_scale/bias"]
    with pytest.raises(TypeError, match=r"arrays\['lr_scale/bias'\] must be a tensor, not None"):
        tk.fit(resume=run, progress=False)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("lr_scale", 5, "lr_scale must be a dict"),
        ("bias_decay", 5, "bias_decay must be a toykern BiasDecay"),
        ("bias_decay", {"rate": 0.1}, "bias_decay must have the entries"),
        ("unit_norm", 5, "unit_norm must be the name of a tensor"),
        ("clip_norm", None, "clip_norm"),
        ("momentum", 0.9, "unknown keys.*momentum"),
    ],
)
def test_a_config_that_describes_none_is_refused(entry, value, message):
    run = fitted(untied(), EVERYTHING["AdamW, all"], stop_at=3)
    run.config["optimizer"][entry] = value
    with pytest.raises((TypeError, ValueError), match=message):
        tk.fit(resume=run, progress=False)
    assert run.step == 3


def test_a_sweep_keeps_what_every_model_was_told(tmp_path):
    grid = tk.grid(clip=[0.1, 1.0], scale=[0.0, 0.5, 1.0])

    def plan(points: tk.Grid, index: torch.Tensor) -> dict[str, Any]:
        optimizer = tk.LAMB(lr_scale={"bias": points.scale}, clip_norm=points.clip)
        model = tk.TiedAutoencoder(3, 2, points.n_models)
        return {"model": model, "data": tk.SparseFeatures(3, 0.5), "optimizer": optimizer}

    done = tk.sweep(grid, plan, tmp_path / "s.zarr", steps=4, batch_size=8, chunk=4, progress=False)
    assert np.array_equal(done.read("inputs/clip_norm").flatten(), grid.clip.numpy())
    assert np.array_equal(done.read("inputs/lr_scale/bias").flatten(), grid.scale.numpy())


# Refusals


@pytest.mark.parametrize(
    ("make", "optimizer", "message"),
    [
        (tied, tk.SGD(lr_scale={"encoder": 1.0}), r"lr_scale must name.*\('weight', 'bias'\), not 'encoder'"),
        (tied, tk.SGD(unit_norm="decoder"), r"unit_norm must name.*\('weight'\), not 'decoder'"),
        (
            untied,
            tk.SGD(bias_decay=tk.BiasDecay(0.1)),
            r"bias_decay must name.*\('bias'\), not 'hidden_bias'",
        ),
        (tied, tk.LAMB(clip_norm=[1.0, 2.0]), "clip_norm must.*3 models"),
        (tied, tk.SGLD(nbeta=[1.0, 2.0]), "nbeta must.*3 models"),
    ],
)
def test_what_does_not_fit_the_models_is_refused_before_training(make, optimizer, message):
    model = make()
    before = model.bias.detach().clone()
    with pytest.raises(ValueError, match=message):
        fitted(model, optimizer)
    assert torch.equal(model.bias, before)


def test_noise_is_not_for_sparse_models():
    model = tk.SparseTiedAutoencoder(8, 4, n_models=K, density=0.5)
    with pytest.raises(ValueError, match="SGLD for sparse models"):
        fitted(model, tk.SGLD())


@pytest.mark.parametrize(
    "optimizer", [tk.LAMB(), tk.SGLD(), tk.Adam(clip_norm=1.0), tk.SGD(unit_norm="weight")]
)
def test_the_loops_of_a_device_refuse_what_they_do_not_know(optimizer):
    model = tied()
    with (
        device_source("tiny"),
        pytest.raises(ValueError, match="update must be a plain one of SGD, Adam or AdamW"),
    ):
        fitted(model, optimizer)


@pytest.mark.parametrize(
    ("name", "recipe"), [*itertools.product(["LAMB, all", "Adam, all"], [None, tk.SET(interval=5, end=30)])]
)
def test_sparse_models_keep_their_zeros(name, recipe):
    optimizer = dataclasses.replace(OPTIMIZERS[name], unit_norm=UnitNorm("weight", remove_parallel=True))
    model = tk.SparseTiedAutoencoder(20, 10, n_models=K, density=0.4)
    run = fitted(model, optimizer, topology=recipe)
    weight = run.model.to_dense().detach()
    assert bool(torch.isfinite(weight).all()) and (weight != 0).flatten(1).sum(dim=1).tolist() == [80] * K
    norms = weight.norm(dim=-1)
    torch.testing.assert_close(norms[norms != 0], torch.ones_like(norms[norms != 0]), rtol=2e-6, atol=0)
