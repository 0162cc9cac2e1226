"""torch's default dtype and default device: where they are followed, and that no result depends on them."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toykern
import toykern as tk
from toykern import sparse
from toykern.experiments.phase_diagram import train_phase_diagram
from toykern.nn.dense_stack import DenseStack

PLAIN = {"dtype": torch.float32, "device": "cpu"}
DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def sampled() -> dict[str, torch.Tensor]:
    data = tk.SparseFeatures(6, 0.3, noise=0.1)
    entries = tk.SparseFeatures(6, 0.3, "half_normal", groups=[tk.Correlated((0, 2))])
    batch = entries.sample(1, 7, n_models=2, layout="sparse")
    return {
        "dense": data.sample(1, 7, n_models=2),
        "values": batch.value,
        "starts": batch.row_start,
        "again": tk.SparseBatch.from_dense(batch.to_dense()).value,
        "coo": entries.sample(0, 7, layout="coo")[0],
        "csr": batch.to_csr().values(),
    }


def models() -> dict[str, Any]:
    return {
        "tied": tk.TiedAutoencoder(6, 2, 3, **PLAIN),
        "untied": tk.Autoencoder(6, 2, 3, hidden_activation="relu", init=0.3, **PLAIN),
        "sparse": tk.SparseTiedAutoencoder(6, 4, 0.5, n_models=2, **PLAIN),
    }


def layers() -> dict[str, torch.Tensor]:
    found = {}
    x = tk.SparseFeatures(6, 0.3).sample(0, 8)
    for name, model in models().items():
        loss = model.loss(x, importance=0.7) if name == "sparse" else model.loss(x, l1=0.1, importance=0.7)
        (loss.sum() + model(x).square().sum()).backward()
        found[name] = loss.detach()
        found |= {f"{name}/{key}": parameter.grad for key, parameter in model.named_parameters()}
    centred = tk.TiedAutoencoder(6, 3, 2, centered=True, hidden_bias=True, **PLAIN)
    return found | {"centred": centred(tk.SparseBatch.from_dense(x)).detach(), "one": centred[1](x).detach()}


def trained() -> dict[str, torch.Tensor]:
    data, found = tk.SparseFeatures(6, 0.3), {}
    for name, model in models().items():
        more = {"topology": tk.RigL(interval=2, end=5)} if name == "sparse" else {"record": ["superposition"]}
        run = tk.fit(model, data, steps=6, batch_size=8, record_every=2, progress=False, **more)
        found[f"{name}/loss"] = run.loss
        found[f"{name}/evaluate"] = tk.evaluate(model, data, samples=100, seed=3)
        found[f"{name}/strata"] = tk.evaluate(model, data, samples=100, seed=3, method="stratified")
        found |= {f"{name}/{key}": value for key, value in model.stacked_parameters().items()}
        found |= {f"{name}/{key}": value for key, value in run.records.items()}
        found[f"{name}/again"] = run.rerun(1).loss
    return found


def stored(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name, model in models().items():
        run = tk.fit(model, tk.SparseFeatures(6, 0.3), steps=4, batch_size=8, progress=False)
        run.save(path / name)
        back = tk.Run.load(path / name)
        found |= {f"{name}/{key}": value for key, value in back.model.stacked_parameters().items()}
        found[f"{name}/loss"] = back.loss
    return found


def measured() -> dict[str, torch.Tensor]:
    """Metrics of all subjects, of tensors and of arrays."""
    ramp = torch.linspace(-1, 1, 40, **PLAIN).square().view(2, 4, 5)
    array, m = ramp.numpy(), tk.metrics
    weights = {"weight": ramp, "bias": ramp[:, 0]}
    turned = m.permute_units(weights, m.match_units(weights, {"weight": ramp.flip(1), "bias": ramp[:, 1]}))
    of_one = (
        "feature_dimensionality", "classify_phase", "sample_dimensionality", "leverage", "l0", "dead_units",
        "monosemanticity", "monosemantic_share", "fourier_power", "inverse_participation_ratio",
        "key_frequencies", "loss_barrier",
    )  # fmt: skip
    kinds = {"tensor": ramp, "array": array}
    found = {f"{name}/{kind}": getattr(m, name)(kinds[kind]) for name in of_one for kind in kinds}
    matching = m.match_directions(array, ramp[:, :, :3])
    found |= {f"turned/{name}": held for name, held in turned.items()}
    found |= {f"path/{name}": held for name, held in m.linear_path(weights, turned, points=3).items()}
    return found | {
        "mmcs": m.mean_max_cosine_similarity(ramp, array[0]),
        "index": matching.index,
        "cosine": matching.cosine,
        "explained": m.explained_variance(ramp, array),
        "single": m.single_feature_activations(tk.MLP(5, 3, n_models=2, **PLAIN)).detach(),
        "polygon": m.polygon(5).weight,
        "packing": torch.from_numpy(m.best_packing(1000, 400, [1.0, 4.0])),
    }


def looked_at(path: Path) -> dict[str, torch.Tensor]:
    """All records of a network that is looked at on a second dataset, and a part of its run."""
    x = tk.SparseFeatures(6, 0.5).sample(0, 12, n_models=2)
    labels = [0, 1, 2] * 4
    sets = tk.Dataset(x[:1], labels=labels), tk.Dataset(tk.SparseBatch.from_dense(x), labels=labels)
    model = tk.MLP(6, 4, n_models=2, n_outputs=3, hidden_activation="relu", dtype=torch.float32, device="cpu")
    run = tk.fit(
        model, sets[0], 6, record=["accuracy", "test_loss", "test_accuracy", "dead_units", "norms"],
        test=sets[1], loss="cross_entropy", progress=False, callback=lambda run: False,
    )  # fmt: skip
    run.isel(model=[1, 0]).save(path / "part")
    part = tk.Run.load(path / "part")
    return run.records | {f"part/{name}": values for name, values in part.records.items()}


def network() -> nn.Sequential:
    parts = nn.Linear(12, 8, **PLAIN), nn.ReLU(), nn.Linear(8, 3, **PLAIN)
    with torch.no_grad():
        for parameter in nn.ModuleList(parts).parameters():
            ramp = torch.linspace(-1, 1, parameter.numel(), **PLAIN)
            parameter.copy_(ramp.view(parameter.shape))
    return nn.Sequential(*parts)


def updated(recipe: sparse.Recipe, grouped: bool = False) -> dict[str, torch.Tensor]:
    if grouped:
        net: Any = tk.SparseLinear(12, 8, fan_in=4, group=4, seed=2, **PLAIN)
    else:
        net = tk.sparsify(network(), 0.4, "erk", seed=3, capacity=1.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    attached = recipe.attach(net, optimizer)
    for step in range(1, 6):
        x = torch.linspace(-1, 1, 60, **PLAIN).view(5, 12) * step
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        attached.step()
    assert attached.history
    return dict(net.state_dict())


def coefficients() -> dict[str, torch.Tensor]:
    x = tk.SparseFeatures(6, 0.3).dataset(12, seed=0, n_models=2)
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="local_learning_coefficient")
        for name in ("tied", "untied"):
            model, data = models()[name], x.row(0)
            estimate = tk.local_learning_coefficient(
                model, data, chains=2, draws=4, burn_in=2, lr=[1e-3] * 3, progress=False
            )
            for key in (
                "llc",
                "by_chain",
                "spread",
                "rhat",
                "traces",
                "initial_loss",
                "nbeta",
                "lr",
                "samples",
            ):
                found[f"{name}/{key}"] = getattr(estimate, key)
        polygons = tk.llc.polygon_learning_coefficients(
            4, samples=20, chains=2, draws=4, burn_in=2, steps_between_draws=1, progress=False
        )
    found |= {"polygons/loss": polygons.loss, "polygons/counted": polygons.counted}
    return found | {"polygons/llc": polygons.estimate.llc}


GUIDED = sparse.SampledGradient(distribution="graest")
CORE: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    "sample": lambda path: sampled(),
    "layers": lambda path: layers(),
    "metrics": lambda path: measured(),
    "fit": lambda path: trained(),
    "store": stored,
    "looked at": looked_at,
    "SET": lambda path: updated(tk.SET(interval=2, end=6)),
    "RigL, groups": lambda path: updated(tk.RigL(interval=2, end=6), grouped=True),
    "SRigL": lambda path: updated(tk.SRigL(interval=2, end=6, ablation=0.5)),
    "SNFS": lambda path: updated(tk.SNFS(interval=2, end=6)),
    "GSE": lambda path: updated(tk.GSE(interval=2, end=6, grow=GUIDED, seed=5)),
    "gradual": lambda path: updated(tk.GradualMagnitude(final_density=0.1, interval=2, end=5)),
    "lottery": lambda path: updated(tk.LotteryTicket(rounds=2, round_steps=2, rewind_to=1, seed=0)),
    "coefficients": lambda path: coefficients(),
    "diagram": lambda path: {
        "loss": train_phase_diagram(shape=(2, 2), seeds=2, steps=4, batch_size=64, progress=False).loss
    },
}
_wanted: dict[str, dict[str, torch.Tensor]] = {}


def wanted(core: str, path: Path) -> dict[str, torch.Tensor]:
    """What comes out without a default of one's own, computed once."""
    if core not in _wanted:
        (path / "wanted").mkdir()
        _wanted[core] = CORE[core](path / "wanted")
    return _wanted[core]


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys() and len(want) > 0
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].device.type == "cpu", name
        np.testing.assert_array_equal(got[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("core", CORE)
def test_default_dtype_changes_no_bit(core: str, dtype: torch.dtype, tmp_path: Path) -> None:
    want = wanted(core, tmp_path)
    torch.set_default_dtype(dtype)
    assert_same(CORE[core](tmp_path), want)


@pytest.mark.parametrize("context", [True, False], ids=["with torch.device", "set_default_device"])
@pytest.mark.parametrize("core", CORE)
def test_default_device_changes_no_bit(core: str, context: bool, tmp_path: Path) -> None:
    want = wanted(core, tmp_path)
    with torch.device("meta") if context else nullcontext():
        if not context:
            torch.set_default_device("meta")
        got = CORE[core](tmp_path)
    assert_same(got, want)


# ---- parameters follow them --------------------------------------------------------------------------------

MADE: dict[str, Callable[..., nn.Module]] = {
    "TiedAutoencoder": lambda **how: tk.TiedAutoencoder(5, 2, 3, hidden_bias=True, **how),
    "Autoencoder": lambda **how: tk.Autoencoder(5, 2, 3, hidden_bias=True, **how),
    "MLP": lambda **how: tk.MLP(5, 3, n_models=3, embedding=2, unembedding=True, **how),
    "from_published": lambda **how: tk.TiedAutoencoder.from_published(np.ones((3, 5, 2)), np.ones(5), **how),
    "SparseTiedAutoencoder": lambda **how: tk.SparseTiedAutoencoder(5, 4, 0.5, n_models=3, **how),
    "SparseLinear": lambda **how: tk.SparseLinear(5, 4, 0.5, n_models=3, **how),
}


def dtypes(module: nn.Module) -> set[torch.dtype]:
    floats = [held for held in module.buffers() if held.is_floating_point()]
    return {tensor.dtype for tensor in (*module.parameters(), *floats)}


@pytest.mark.parametrize("kind", MADE)
def test_parameters_are_made_in_the_default_dtype_or_the_one_given(kind: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = MADE[kind]()
    assert dtypes(model) == {torch.float64} and dtypes(MADE[kind](dtype=torch.bfloat16)) == {torch.bfloat16}
    assert kind == "MLP" or all(not b.is_floating_point() for b in model.buffers())  # whose P and Q are some
    x = torch.rand(8, 5)
    assert (model(x) if kind == "SparseLinear" else model.loss(x)).dtype == torch.float64  # type: ignore
    torch.set_default_dtype(torch.float16)
    with pytest.raises(ValueError, match=r"^dtype must be one of .*not torch.float16.*torch's default dtype"):
        MADE[kind]()
    assert dtypes(MADE[kind](dtype=torch.float32)) == {torch.float32}


def test_sparsify_keeps_the_dtype_of_each_layer() -> None:
    net = network().to(torch.bfloat16)
    torch.set_default_dtype(torch.float64)
    assert dtypes(tk.sparsify(net, 0.5)) == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["TiedAutoencoder", "Autoencoder", "MLP"])
def test_models_made_on_meta_begin_as_others_do(kind: str) -> None:
    want = MADE[kind](seed=[3, 1, 2])
    with torch.device("meta"):
        model = MADE[kind](seed=[3, 1, 2])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert isinstance(model, DenseStack) and model.seed.tolist() == [3, 1, 2]
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    for name, parameter in want.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


@pytest.mark.parametrize("kind", ["SparseTiedAutoencoder", "SparseLinear"])
def test_sparse_layers_refuse_meta_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match="^device must be one with memory"):
        MADE[kind](device="meta")
    with torch.device("meta"):
        with pytest.raises(ValueError, match="^device must be one with memory"):
            MADE[kind]()
        assert {p.device.type for p in MADE[kind](device="cpu").parameters()} == {"cpu"}


# ---- the rule that keeps it so -----------------------------------------------------------------------------

MAKERS = {
    "empty", "zeros", "ones", "full", "arange", "tensor", "eye", "rand", "randn", "randint", "randperm",
    "linspace", "scalar_tensor", "empty_strided",
}  # fmt: skip
TAKERS = {"as_tensor", "asarray", "sparse_csr_tensor", "sparse_coo_tensor"}


def test_every_tensor_that_is_made_states_its_dtype_and_device() -> None:
    package = Path(toykern.__file__).parent
    silent = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
                continue
            name, stated = node.func.attr, {keyword.arg for keyword in node.keywords}
            needed = {"dtype", "device"} if name in MAKERS else {"device"} if name in TAKERS else set()
            if needed - stated:
                silent.append(f"{path.relative_to(package)}:{node.lineno} torch.{name}")
    assert not silent
