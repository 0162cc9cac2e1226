"""Parameters without `requires_grad`, and their optimiser state, stay as they are in `fit`; the others are
trained beside them."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from device_kit import device_source
from kit import TRAJECTORY, isa_level, relative_error

import toykern as tk
from toykern import _native

SEED, STEPS, BATCH = [3, 1, 4], 12, 48


def tied(n: int, m: int) -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(n, m, 3)


def untied(n: int, m: int) -> tk.Autoencoder:
    return tk.Autoencoder(n, m, 3, hidden_activation="relu")


def sparse(n: int, m: int) -> tk.SparseTiedAutoencoder:
    return tk.SparseTiedAutoencoder(n, m, n_models=3, density=0.6)


SHAPES = {"columns": (5, 2), "tiles": (24, 12)}
OPTIMIZERS = {
    "AdamW": (tk.AdamW(lr=1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1)),
    "SGD": (tk.SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
}
FROZEN = {
    tied: [("weight",), ("bias",), ("weight", "bias")],
    untied: [
        ("encoder",),
        ("decoder",),
        ("bias",),
        ("encoder", "bias"),
        ("decoder", "bias"),
        ("encoder", "decoder"),
    ],
    sparse: [("values",), ("bias",)],
}
CASES = [(make, names) for make, choices in FROZEN.items() for names in choices]


def begun(model: Any, seed: int = 5) -> Any:
    """The model with a bias that matters."""
    with torch.no_grad():
        model.bias.copy_(0.1 * torch.randn(model.bias.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def frozen(model: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        getattr(model, name).requires_grad_(False)
    return model


def fitted(model: Any, optimizer: Any, **options: Any) -> tk.Run:
    data = tk.SparseFeatures(model.n_features, 0.2)
    return tk.fit(model, data, STEPS, BATCH, optimizer, seed=SEED, progress=False, **options)


def by_autograd(model: Any, names: tuple[str, ...], make_optimizer: Any) -> dict[str, torch.Tensor]:
    """The same training in PyTorch, float64: the parameters afterwards, by name, W with its zeros."""
    kept = {name: value.double().requires_grad_() for name, value in model.stacked_parameters().items()}
    names = tuple("weight" if name == "values" else name for name in names)
    exists = (kept["weight"] != 0).double().detach() if "weight" in kept else 1.0
    trained = [value for name, value in kept.items() if name not in names]
    if not trained:
        return {name: value.detach() for name, value in kept.items()}
    optimizer = make_optimizer(trained)
    data = tk.SparseFeatures(model.n_features, 0.2)
    for step in range(STEPS):
        x = data.sample(step, BATCH, SEED, n_models=3).double()
        encoder = kept["weight"] * exists if "weight" in kept else kept["encoder"]
        decoder = encoder.mT if "weight" in kept else kept["decoder"]
        hidden = x @ encoder.mT
        hidden = hidden.relu() if model.hidden_activation == "relu" else hidden
        loss = ((hidden @ decoder.mT + kept["bias"][:, None]).relu() - x).square().mean(dim=(1, 2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return {name: value.detach() for name, value in kept.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("make", "names"), CASES, ids=lambda v: v.__name__ if callable(v) else "+".join(v))
def test_what_is_frozen_stays_and_the_rest_follows_autograd(make, names, shape, optimizer):
    ours, theirs = OPTIMIZERS[optimizer]
    model = frozen(begun(make(*SHAPES[shape])), names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = by_autograd(model, names, theirs)
    run = fitted(model, ours)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in names), name
    for name, value in model.stacked_parameters().items():
        assert (relative_error(value, expected[name]) <= TRAJECTORY).all(), name
    for name, state in run.optimizer_state.items():
        stays = name.split("/")[0].replace("weight", "values" if make is sparse else "weight") in names
        assert bool((state == 0).all()) == stays, name


@pytest.mark.parametrize("level", _native.isa_levels())
def test_at_every_level_and_by_a_team(level):
    """A batch large enough to be shared, frozen weights beside trained ones."""
    with isa_level(level):
        threads = torch.get_num_threads()
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            model = frozen(begun(tk.Autoencoder(64, 24, 1)), ("decoder",))
            decoder = model.decoder.detach().clone()
            tk.fit(model, tk.SparseFeatures(64, 0.1), 3, 1024, progress=False)
            assert torch.equal(model.decoder, decoder)
            results.append(model.encoder.detach().clone())
        torch.set_num_threads(threads)
        assert torch.equal(*results)


DEVICE = [
    *itertools.product(["tiny", "small", "large"], [(tied, ("weight",)), (tied, ("bias",))]),
    *itertools.product(["small", "large"], [(untied, ("encoder",)), (untied, ("decoder", "bias"))]),
    *itertools.product(["small", "large"], [(sparse, ("values",)), (sparse, ("bias",))]),
]


@pytest.mark.parametrize(
    ("regime", "case"),
    DEVICE,
    ids=lambda v: v if isinstance(v, str) else f"{v[0].__name__}, {'+'.join(v[1])}",
)
def test_by_the_loops_of_a_device(regime, case):
    make, names = case
    model = frozen(begun(make(5, 2)), names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = by_autograd(model, names, OPTIMIZERS["AdamW"][1])
    with device_source(regime) if regime else nullcontext():
        run = fitted(model, OPTIMIZERS["AdamW"][0])
    for name in names:
        assert torch.equal(getattr(model, name), before[name])
    for name, value in model.stacked_parameters().items():
        assert (relative_error(value, expected[name]) <= TRAJECTORY).all(), name
    assert run.config["frozen"] == sorted(names)


def test_bits_are_those_of_a_model_without_what_is_frozen_at_zero():
    model = frozen(tied(5, 2), ("bias",))
    run, without = fitted(model, tk.Adam()), fitted(tk.TiedAutoencoder(5, 2, 3, bias=False), tk.Adam())
    assert torch.equal(run.loss, without.loss) and torch.equal(model.weight, without.model.weight)


def test_it_goes_with_the_run_into_stores_and_reruns(tmp_path):
    whole = fitted(frozen(begun(untied(6, 3)), ("decoder",)), tk.Adam())
    cut = fitted(frozen(begun(untied(6, 3)), ("decoder",)), tk.Adam(), stop_at=5)
    cut.save(tmp_path / "cut")
    loaded = tk.Run.load(tmp_path / "cut")
    assert not loaded.model.decoder.requires_grad and loaded.model.encoder.requires_grad
    tk.fit(resume=loaded, progress=False)
    assert torch.equal(loaded.loss, whole.loss) and torch.equal(loaded.model.encoder, whole.model.encoder)
    alone = whole.rerun(1)
    assert torch.equal(alone.loss[0], whole.loss[1])
    assert torch.equal(alone.model.decoder[0], whole.model.decoder[1])


def test_what_is_frozen_is_so_for_the_whole_run():
    run = fitted(frozen(begun(untied(6, 3)), ("decoder",)), tk.Adam(), stop_at=5)
    run.model.bias.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"begun with \['decoder'\] frozen.*now False for \['bias', 'decoder'\]"
    ):
        tk.fit(resume=run, progress=False)
    run.model.bias.requires_grad_(True)
    assert tk.fit(resume=run, progress=False).complete


def test_a_recipe_does_not_replace_frozen_connections():
    model = frozen(sparse(20, 10), ("values",))
    before = model.to_dense().detach().clone()
    with pytest.raises(ValueError, match="topology=RigL.*model.values, which is frozen"):
        fitted(model, tk.Adam(), topology=tk.RigL(interval=2, end=8))
    fitted(model, tk.Adam(), topology=tk.Static())
    assert torch.equal(model.to_dense(), before)
