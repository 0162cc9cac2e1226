"""`tk.MLP` as a module: against the reference, by autograd, in views, copies, descriptions and layouts."""

from __future__ import annotations

import copy
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import toykern as tk
from toykern import reference
from toykern.data.philox import normal
from toykern.network import HIDDEN_ACTIVATIONS, LOSSES, OUTPUT_ACTIVATIONS
from toykern.nn import model_from_config
from toykern.nn.embedding import drawn_embedding

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 6e-2}


def perturbed(model: tk.MLP) -> tk.MLP:
    """No bias at 0, so that all of them take part."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    """Half of it zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * (torch.rand(shape, generator=generator) < 0.5)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().clamp(min=1.0)
    assert found.shape == expected.shape
    assert (found.detach().double() - expected).abs().max() <= TOLERANCE[dtype] * scale


@st.composite
def stacks(draw: Any, dtype: torch.dtype = torch.float64) -> tk.MLP:
    """Any member of the family, small."""
    n, m, models = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    d = draw(st.none() | st.integers(1, n))
    embedding: Any = d
    if d is not None and draw(st.booleans()):
        embedding = batch(*draw(st.sampled_from([(d, n), (models, d, n)])), seed=3)
    unembedding: Any = None
    outputs = draw(st.integers(1, 6))
    if d is not None and draw(st.booleans()):
        unembedding = draw(st.sampled_from(["transpose", "shared", "per model"]))
        outputs = n if unembedding == "transpose" else outputs
        if unembedding != "transpose":
            shape = (outputs, d) if unembedding == "shared" else (models, outputs, d)
            unembedding = batch(*shape, seed=4)
    seen = n if d is None else d
    paired = draw(st.booleans()) if unembedding is None else True
    if paired and unembedding is None:
        outputs = seen
    hidden = draw(st.sampled_from(HIDDEN_ACTIVATIONS))
    bias = draw(st.booleans())
    model = tk.MLP(
        n,
        m,
        outputs,
        models,
        hidden,
        draw(st.sampled_from(OUTPUT_ACTIVATIONS)),
        bias,
        draw(st.booleans()),
        tied=paired and draw(st.booleans()),
        embedding=embedding,
        unembedding=unembedding,
        residual=paired and draw(st.booleans()),
        centered=paired and bias and unembedding is None and draw(st.booleans()),
        top_k=draw(st.integers(1, m)) if hidden == "topk" else None,
        dtype=dtype,
    )
    return perturbed(model)


@given(model=stacks(), data=st.data())
def test_outputs_loss_and_gradients_are_the_references(model, data):
    names = ["tensor", "labels"]
    names += ["identity", "abs"] if model.n_outputs == model.n_features else []
    names += ["embedding"] if model.n_embedding == model.n_outputs else []
    target = data.draw(st.sampled_from(names))
    loss = "squared_error"
    if model.output_activation == "none":
        loss = data.draw(st.sampled_from(tuple(LOSSES)))
    samples, shared = data.draw(st.integers(1, 5)), data.draw(st.booleans())
    models = 1 if shared else model.n_models
    x = batch(models, samples, model.n_features).requires_grad_()
    clean, wanted = None, target
    if target == "tensor":
        clean = batch(model.n_models, samples, model.n_outputs, seed=1).requires_grad_()
        wanted = clean
    elif target == "labels":
        wanted = torch.arange(model.n_models * samples).reshape(model.n_models, -1) % model.n_outputs
        clean = reference.one_hot(wanted, model.n_outputs)
    options = {
        "importance": batch(model.n_models, model.n_outputs, seed=2).abs(),
        "loss_reduction": data.draw(st.sampled_from(["mean", "sum"])),
        "loss": loss,
        "l1": data.draw(st.sampled_from([0.0, 0.5, np.linspace(0, 1, model.n_models)])),
    }
    parameters, network = reference.parameters_of(model), reference.network_of(model)
    expected, slopes = reference.loss_and_gradients(
        parameters, x, network, clean=clean, input_gradients=True,
        target=target if target in ("abs", "embedding") else "identity", **options,
    )  # fmt: skip
    found = model.loss(x, target=wanted, **options)
    found.sum().backward()
    close(found, expected.detach(), torch.float64)
    for name, parameter in model.named_parameters():
        close(parameter.grad, slopes[name].detach(), torch.float64)
    close(x.grad, (slopes["x"].sum(0, keepdim=True) if shared else slopes["x"]).detach(), torch.float64)
    if target == "tensor":
        close(clean.grad, slopes["clean"].detach(), torch.float64)
    activity = reference.forward(parameters, x.detach(), network)
    codes = model.encode(x)
    close(codes, activity.hidden, torch.float64)
    close(model(x), activity.output, torch.float64)
    close(model.decode(codes, x if model.residual else None), activity.output, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_other_dtypes_compute_the_same(dtype, loss):
    model = perturbed(tk.MLP(9, 7, n_models=3, embedding=4, unembedding=True, residual=True, dtype=dtype))
    x = batch(3, 33, 9).to(dtype)
    expected, slopes = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), loss=loss, l1=0.1
    )
    found = model.loss(x, loss=loss, l1=0.1)
    assert found.dtype == torch.float32
    found.sum().backward()
    close(found, expected, dtype)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype == dtype
        close(parameter.grad, slopes[name], dtype)


@pytest.mark.parametrize("hidden", [name for name in HIDDEN_ACTIVATIONS if name not in ("relu", "topk")])
@pytest.mark.parametrize("loss", LOSSES)
def test_first_and_second_derivatives_are_finite_differences(hidden, loss):
    model = perturbed(
        tk.MLP(4, 3, n_models=2, hidden_activation=hidden, embedding=3, unembedding=True, residual=True)
    ).double()
    names = [name for name, _ in model.named_parameters()]
    x = batch(2, 3, 4) + 0.1

    def of(x, *parameters):
        told = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, told, (x,))

    inputs = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in model.parameters())]
    assert torch.autograd.gradcheck(of, inputs)
    if hidden != "leaky_relu":
        assert torch.autograd.gradgradcheck(of, inputs)


def test_entries_are_the_dense_batch():
    model = perturbed(tk.MLP(9, 7, 4, n_models=3, embedding=4)).double()
    for models in (3, 1):
        x = batch(models, 11, 9).requires_grad_()
        entries = tk.SparseBatch.from_dense(x.detach())
        entries.value.requires_grad_()
        target = batch(3, 11, 4, seed=5)
        torch.testing.assert_close(model(entries), model(x))
        torch.testing.assert_close(model.encode(entries), model.encode(x))
        dense, sparse = model.loss(x, target=target), model.loss(entries, target=target)
        torch.testing.assert_close(sparse, dense)
        (slope,) = torch.autograd.grad(dense.sum(), x)
        (of_values,) = torch.autograd.grad(sparse.sum(), entries.value)
        torch.testing.assert_close(of_values, slope[x != 0])


def test_cross_entropy_of_labels_is_pytorchs():
    model, x = perturbed(tk.MLP(5, 8, 3, n_models=2)), batch(7, 5).float()
    labels = torch.arange(14).reshape(2, 7) % 3
    expected = torch.stack([functional.cross_entropy(model(x)[k], labels[k]) for k in range(2)])
    torch.testing.assert_close(model.loss(x, target=labels, loss="cross_entropy"), expected)
    shared = torch.stack([functional.cross_entropy(model(x)[k], labels[0]) for k in range(2)])
    torch.testing.assert_close(model.loss(x, target=labels[0], loss="cross_entropy"), shared)


def test_of_equal_codes_the_first_stay():
    model = tk.MLP(3, 4, hidden_activation="topk", top_k=2, init=0.0, hidden_bias_init=2.0)
    assert model.encode(torch.zeros(1, 3)).tolist() == [[[2.0, 2.0, 0.0, 0.0]]]


def test_autocast_computes_in_its_dtype():
    model, x = perturbed(tk.MLP(16, 8, n_models=2, embedding=4, n_outputs=16)), batch(32, 16).float()
    plain = model.loss(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(x)
        assert model(x).dtype == torch.bfloat16 or model(x).dtype == torch.float32
    assert low.dtype == torch.float32 and not torch.equal(low, plain)
    torch.testing.assert_close(low, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("target", ["identity", "labels"])
def test_it_compiles_without_a_graph_break(target):
    model, x = perturbed(tk.MLP(5, 4, n_models=3, embedding=2, unembedding=True)), batch(8, 5).float()
    options = {"target": torch.arange(8) % 5, "loss": "cross_entropy"} if target == "labels" else {}
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, **options), model.loss(x, **options))


# Initial parameters


def test_a_model_depends_on_its_own_seed_alone():
    stack = tk.MLP(8, 5, n_models=4, embedding=3, unembedding=True, seed=[5, 6, 5, 7])
    for k, seed in enumerate((5, 6, 5, 7)):
        alone = tk.MLP(8, 5, embedding=3, unembedding=True, seed=seed)
        for name, value in alone.state_dict().items():
            assert torch.equal(value[0], stack.state_dict()[name][k]), name
    assert not torch.equal(stack.embedding[0], stack.embedding[1])


def test_weights_are_xavier_of_each_matrix():
    model = tk.MLP(30, 40, 70, n_models=20, embedding=10)
    for name, shape in (("encoder", (40, 10)), ("decoder", (70, 40))):
        assert model.get_parameter(name).std().item() == pytest.approx((2 / sum(shape)) ** 0.5, rel=0.03)
    same = tk.MLP(30, 40, 70, n_models=2, init=0.05)
    assert same.encoder.std().item() == pytest.approx(0.05, rel=0.1)
    assert same.decoder.std().item() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(same.encoder.flatten()[:50], same.decoder.flatten()[:50])
    tied = tk.TiedAutoencoder(6, 3, 2, seed=[4, 5])
    assert torch.equal(tk.MLP(6, 3, n_models=2, tied=True, seed=[4, 5]).weight, tied.weight)
    assert torch.equal(tk.MLP(6, 3, seed=4).decoder, tk.Autoencoder(6, 3, seed=4).decoder)


def test_hidden_biases_begin_where_they_are_told():
    assert not tk.MLP(4, 3).hidden_bias.any() and not tk.MLP(4, 3, hidden_bias_init=-1.0).bias.any()
    assert (tk.MLP(4, 3, n_models=2, hidden_bias_init=-1.0).hidden_bias == -1).all()
    assert tk.MLP(4, 3, hidden_bias=False).hidden_bias is None


def test_an_embedding_is_drawn_as_jermyn_et_al_draw_it():
    """The thin SVD of a Gaussian, each feature's row of it scaled to unit length."""
    found = drawn_embedding(torch.tensor([3, 2**63 - 1]), 4, 9)
    for model, seed in enumerate((3, 2**63 - 1)):
        gaussian = normal(np.array([seed]), 36, purpose=1).astype(np.float64).reshape(4, 9)
        rows, singular, _ = np.linalg.svd(gaussian.T, full_matrices=False)  # theirs is [features, d]
        theirs = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        ours = found[model].double().numpy().T
        signs = np.sign((ours * theirs).sum(0))
        np.testing.assert_allclose(ours, theirs * signs, atol=3e-7)
        assert np.all(np.diff(singular) < 0)
        undone = ours * np.linalg.norm(rows, axis=1, keepdims=True)
        largest = np.abs(undone).argmax(axis=0)
        assert np.all(undone[largest, np.arange(4)] > 0)
    weights = normal(np.array([3]), 36)
    assert not np.array_equal(weights, normal(np.array([3]), 36, purpose=1))


def test_embeddings_are_drawn_alike_in_every_direction():
    """Of many seeds: columns of unit length, and no direction preferred but by the sign."""
    p = drawn_embedding(torch.arange(400), 3, 12).double()
    torch.testing.assert_close(p.norm(dim=1), torch.ones(400, 12).double(), rtol=0, atol=1e-6)
    second = (p.square().mean(dim=(0, 2)) - 1 / 3).abs().max()
    assert second < 0.02  # four standard deviations


def test_given_embeddings_are_kept_as_they_are():
    p, q = batch(2, 5, seed=1), batch(3, 4, 2, seed=2)
    model = tk.MLP(5, 3, 4, 3, embedding=p.numpy(), unembedding=q)
    assert torch.equal(model.embedding, p[None].float()) and torch.equal(model.unembedding, q.float())
    assert {name for name, _ in model.named_parameters()} == {"encoder", "decoder", "bias", "hidden_bias"}
    p.zero_()
    assert bool(model.embedding.any())
    assert not model.embedding.requires_grad
    twice = tk.MLP(5, 3, n_models=3, embedding=q.new_ones(3, 2, 5), unembedding="transpose")
    assert twice.unembedding.shape == (3, 5, 2)


def test_a_model_made_on_meta_is_drawn_later():
    made = tk.MLP(6, 4, n_models=2, embedding=3, unembedding=True, hidden_bias_init=-1.0, device="meta")
    made = made.to_empty(device="cpu")
    made.reset_parameters()
    plain = tk.MLP(6, 4, n_models=2, embedding=3, unembedding=True, hidden_bias_init=-1.0)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in made.state_dict().items())


# Views, copies, descriptions

VARIETY = {
    "plain": lambda: tk.MLP(5, 3, 4, 4, seed=[3, 1, 4, 1]),
    "tied": lambda: tk.MLP(5, 3, n_models=4, tied=True, centered=True, hidden_bias=False),
    "drawn": lambda: tk.MLP(5, 3, n_models=4, embedding=2, unembedding=True, residual=True),
    "shared": lambda: tk.MLP(5, 3, 6, 4, embedding=batch(2, 5), unembedding=batch(6, 2)),
    "per model": lambda: tk.MLP(5, 3, 6, 4, embedding=batch(4, 2, 5), unembedding=batch(4, 6, 2)),
    "mixed": lambda: tk.MLP(5, 3, 6, 4, embedding=2, unembedding=batch(6, 2), bias=False),
    "topk": lambda: tk.MLP(5, 3, n_models=4, hidden_activation="topk", top_k=2, hidden_bias_init=0.5),
    "leaky": lambda: tk.MLP(5, 3, n_models=4, hidden_activation="leaky_relu", negative_slope=0.2),
    "numbered": lambda: tk.MLP(5, 3, n_models=4, init=0.3, output_activation="square"),
    "transposed": lambda: tk.MLP(5, 3, n_models=4, embedding=batch(2, 5), unembedding="transpose"),
}


@pytest.fixture(params=VARIETY)
def model(request):
    return perturbed(VARIETY[request.param]())


def test_views_share_memory_and_compute_as_the_stack(model):
    x = batch(4, 6, 5).float()
    whole = model(x)
    for index, chosen in ((1, slice(1, 2)), (slice(1, 3), slice(1, 3)), (-1, slice(3, 4))):
        part = model[index]
        assert part.network == model.network and len(part) == len(whole[chosen])
        torch.testing.assert_close(part(x[chosen]), whole[chosen])
        for name, parameter in part.named_parameters():
            assert parameter.data_ptr() == model.get_parameter(name)[chosen].data_ptr()
        for name, held in part.fixed_tensors().items():
            own = model.get_buffer(name)
            assert held.data_ptr() == (own if model.shares(name) else own[chosen]).data_ptr()
    for indices in ([3, 0, 3], torch.tensor([2]), np.array([True, False, True, False])):
        part = model[indices]
        chosen = torch.arange(4)[torch.as_tensor(indices)]
        torch.testing.assert_close(part(x[chosen]), whole[chosen])
        with torch.no_grad():
            next(part.parameters()).zero_()
    torch.testing.assert_close(model(x), whole)
    assert [len(one) for one in model] == [1] * 4


def test_training_a_view_trains_the_stack(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part = model[1:3]
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    part.loss(batch(6, 5).float(), target=torch.ones(6, model.n_outputs)).sum().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        moved = (value != before[name]).flatten(1).any(dim=1).tolist()
        assert moved == (
            [False] * len(moved) if name in model.fixed_tensors() else [False, True, True, False]
        )


def test_copies_and_what_is_saved(model):
    x = batch(4, 6, 5).float()
    for whole in (model, model[1:3]):
        rows = whole.n_models
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        assert file.tell() < 5000
        twins = [copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))]
        for twin in twins:
            assert torch.equal(twin(x[:rows]), whole(x[:rows]))
            assert twin.config() == whole.config() and torch.equal(twin.seed, whole.seed)
        assert len(pickle.dumps(whole)) < 12_000
        for twin in twins:
            for held in twin.state_dict().values():
                assert (
                    held.untyped_storage().nbytes() == held.numel() * held.element_size() or twin is twins[0]
                )


def test_large_stacks_are_not_saved_with_their_views():
    model = tk.MLP(50, 20, n_models=100, embedding=10)
    one = pickle.dumps(model[0])
    assert len(one) < 4 * (50 * 10 + 20 * 10 + 50 * 20 + 70) + 8000
    assert all(v.untyped_storage().nbytes() < 5000 for v in model[0].state_dict().values())


def test_a_description_makes_the_same_network(model):
    config = json.loads(json.dumps(model.config()))
    fixed = {
        name: model.get_buffer(name)[0 if model.shares(name) else slice(None)]
        for name in ("embedding", "unembedding")
        if config[name] in ("shared", "per_model")
    }
    again = model_from_config(config, seed=model.seed, **fixed)
    assert again.network == model.network and again.config() == config
    again.load_state_dict(model.state_dict())
    x = batch(6, 5).float()
    assert torch.equal(again(x), model(x))
    stored = type(model).from_state(config, model.state_dict(), model.drawn_from())
    assert torch.equal(stored(x), model(x))
    assert stored.config() == config and torch.equal(stored.init_std, model.init_std)
    initial = {name: torch.full_like(p, 0.5) for name, p in model.stacked_parameters().items()}
    begun = model.begun_with(initial)
    assert all(torch.equal(p, initial[name]) for name, p in begun.named_parameters())
    assert all(torch.equal(held, model.get_buffer(name)) for name, held in begun.fixed_tensors().items())
    assert begun.config() == config
    for name in fixed:
        with pytest.raises(ValueError, match=f"{name} was given as numbers: pass it to model_from_config"):
            model_from_config(config, **{key: value for key, value in fixed.items() if key != name})


def test_initial_parameters_are_drawn_again(model):
    fresh = model_from_config(
        model.config(), seed=model.seed,
        **{name: model.get_buffer(name)[0 if model.shares(name) else slice(None)]
           for name in ("embedding", "unembedding") if model.config()[name] in ("shared", "per_model")},
    )  # fmt: skip
    again = model.initial_parameters()
    assert list(again) == [tensor.name for tensor in model.network.weights]
    assert all(torch.equal(value, fresh.get_parameter(name)) for name, value in again.items())


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ({"class": "MLP", "n_features": 3}, {}, "config must have the keys"),
        (tk.MLP(3, 2).config(), {"embedding": torch.ones(2, 3)}, "embedding is for a model whose embedding"),
        (
            tk.TiedAutoencoder(3, 2).config(),
            {"embedding": 2},
            "embedding is for an MLP, not for",
        ),
        (tk.MLP(3, 2, n_models=2, init=[0.1, 0.2]).config(), {}, "init was given per model"),
    ],
)
def test_foreign_descriptions(config, given, message):
    with pytest.raises(ValueError, match=message):
        model_from_config(config, **given)


def test_repr_shows_shape_and_options():
    assert repr(tk.MLP(5, 2)) == (
        "MLP(n_models=1, init='xavier', n_features=5, n_hidden=2, n_outputs=5, hidden_activation='relu', "
        "output_activation='none', bias=True, hidden_bias=True)"
    )
    assert "n_embedding=2, embedding='drawn', unembedding='transpose'" in repr(
        tk.MLP(5, 2, embedding=2, unembedding=True)
    )


# Published layouts


def test_two_linear_layers_there_and_back():
    first, second = nn.Linear(5, 8), nn.Linear(8, 3)
    state = {f"linear1.{name}": value for name, value in first.state_dict().items()}
    state |= {f"linear2.{name}": value for name, value in second.state_dict().items()}
    model, x = tk.MLP.from_published(state), torch.randn(7, 5)
    torch.testing.assert_close(model(x)[0], second(first(x).relu()))
    first.weight.data.zero_()
    assert bool(model.encoder.all())  # a copy
    back = model.to_published(model=0)
    assert list(back) == ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
    second.load_state_dict({"weight": back["linear2.weight"], "bias": back["linear2.bias"]})
    first.load_state_dict({"weight": back["linear1.weight"], "bias": back["linear1.bias"]})
    torch.testing.assert_close(model(x)[0], second(first(x).relu()))


def test_published_layouts_there_and_back(model):
    options = {
        name: getattr(model, name)
        for name in ("hidden_activation", "output_activation", "residual", "centered")
    }
    if model.top_k:
        options["top_k"] = model.top_k
    if "leaky_relu" in (model.hidden_activation, model.output_activation):
        options["negative_slope"] = model.negative_slope
    published = model.to_published()
    again, x = tk.MLP.from_published(published, **options), batch(4, 6, 5).float()
    assert torch.equal(again(x), model(x))
    one = tk.MLP.from_published(model.to_published(model=2), **options)
    torch.testing.assert_close(one(x[2:3]), model(x)[2:3])
    if model.tied:
        assert published["weight"].shape == (4, 5, 3)
    for value in published.values():
        value.zero_()
    assert bool(model._encoder.any())


def test_tied_autoencoders_there_and_back():
    for options in ({}, {"bias": False}):
        model = tk.TiedAutoencoder(6, 2, 3, **options)
        published = model.to_published()
        assert published["weight"].shape == (3, 6, 2) and published["weight"].is_contiguous()
        again = tk.TiedAutoencoder.from_published(**published)
        assert (
            torch.equal(again.weight, model.weight)
            and list(published) == ["weight", "bias"][: len(published)]
        )
        assert len(published) == (1 if options else 2)
        assert torch.equal(model.to_published(model=1)["weight"], model.weight[1].T)
    with pytest.raises(ValueError, match="model must be an integer from 0 to 2, not 3"):
        tk.TiedAutoencoder(6, 2, 3).to_published(model=3)
    codes = tk.TiedAutoencoder(6, 2, 3, hidden_bias=True, hidden_activation="relu")
    family = tk.MLP.from_published(codes.to_published(), output_activation="relu")
    torch.testing.assert_close(family(torch.ones(4, 6)), codes(torch.ones(4, 6)))


STATE = {"linear1.weight": torch.ones(8, 5), "linear2.weight": torch.ones(3, 8)}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(2), TypeError, "weights must be a dictionary of tensors"),
        ({}, ValueError, "weights must have the entries linear1.weight, linear2.weight .* not none"),
        ({"linear1.weight": torch.ones(8, 5)}, ValueError, "weights must have the entries"),
        (STATE | {"linear3.weight": torch.ones(8, 5)}, ValueError, "not .*linear3.weight"),
        (STATE | {"linear1.bias": torch.ones(1, 8)}, ValueError, r"'linear1.bias'\] must have 1 dimensions"),
        (STATE | {"linear1.bias": torch.ones(7)}, ValueError, r"'linear1.bias'\] does not fit the others"),
        (STATE | {"linear2.weight": torch.ones(3, 7)}, ValueError, r"'linear2.weight'\] does not fit"),
        (STATE | {"linear2.weight": torch.ones(3, 0)}, ValueError, r"'linear2.weight'\] must have 2"),
        (STATE | {"linear2.weight": "no"}, TypeError, r"'linear2.weight'\] must"),
        (STATE | {"embedding": torch.ones(4, 9)}, ValueError, r"'linear1.weight'\] does not fit"),
        (STATE | {"unembedding": torch.ones(9, 3)}, ValueError, "unembedding needs an embedding"),
        ({"weight": torch.ones(5, 2), "linear1.weight": torch.ones(2, 5)}, ValueError, "entries weight"),
        ({"weight": torch.ones(5)}, ValueError, r"'weight'\] must have 2 dimensions"),
    ],
)
def test_bad_published_weights(weights, error, message):
    with pytest.raises(error, match=message):
        tk.MLP.from_published(weights)


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_outputs": 0}, ValueError, "n_outputs must be an integer at least 1, not 0"),
        ({"n_outputs": 2.0}, TypeError, "n_outputs must be an integer"),
        ({"hidden_activation": "tanh"}, ValueError, "hidden_activation must be one of .*'solu', not 'tanh'"),
        ({"output_activation": "solu"}, ValueError, "output_activation must be one of"),
        ({"output_activation": "topk"}, ValueError, "output_activation must be one of"),
        ({"hidden_activation": "topk"}, ValueError, "top_k must be given"),
        ({"hidden_activation": "topk", "top_k": 4}, ValueError, "top_k must be an integer from 1 to 3"),
        ({"top_k": 2}, ValueError, "top_k is for hidden_activation='topk'"),
        ({"negative_slope": 0.1}, ValueError, "negative_slope is for"),
        ({"bias": 1}, TypeError, "bias must be True or False"),
        ({"hidden_bias": None}, TypeError, "hidden_bias must be True or False"),
        ({"tied": "yes"}, TypeError, "tied must be True or False"),
        ({"residual": 1}, TypeError, "residual must be True or False"),
        ({"embedding": 0}, ValueError, "embedding must be an integer from 1 to 5, not 0"),
        ({"embedding": 6}, ValueError, "embedding must be an integer from 1 to 5, not 6"),
        ({"embedding": True}, TypeError, "embedding must be a number"),
        ({"embedding": torch.ones(2, 4)}, ValueError, r"embedding must have the shape .* \[d, 5\] or"),
        ({"embedding": torch.ones(2, 2, 5)}, ValueError, "embedding must have the shape"),
        ({"embedding": torch.ones(0, 5)}, ValueError, "embedding must have the shape"),
        ({"embedding": torch.full((2, 5), torch.nan)}, ValueError, "embedding must be finite"),
        ({"unembedding": True}, ValueError, "unembedding needs an embedding"),
        ({"unembedding": torch.ones(5, 2)}, ValueError, "unembedding needs an embedding"),
        ({"embedding": 2, "unembedding": "t"}, ValueError, "unembedding must be one of 'transpose', not 't'"),
        ({"embedding": 2, "unembedding": torch.ones(2, 5)}, ValueError, r"unembedding must .*\[5, 2\]"),
        ({"embedding": 2, "unembedding": True, "n_outputs": 4}, ValueError, "unembedding=True is the transp"),
        ({"tied": True, "n_outputs": 4}, ValueError, "tied needs n_outputs = n_features = 5, not 4"),
        ({"residual": True, "n_outputs": 4}, ValueError, "residual needs n_outputs"),
        ({"centered": True, "n_outputs": 4}, ValueError, "centered needs n_outputs"),
        ({"centered": True, "bias": False}, ValueError, "centered takes the bias off .* bias=True"),
        ({"init": "xavier_stacked_hidden_features"}, ValueError, "init must be one of 'xavier'"),
        ({"init": -1.0}, ValueError, "init"),
        ({"hidden_bias_init": "low"}, TypeError, "hidden_bias_init must be"),
        ({"hidden_bias_init": float("inf")}, ValueError, "hidden_bias_init must be"),
        ({"hidden_bias_init": -1.0, "hidden_bias": False}, ValueError, "hidden_bias_init is for hidden_bias"),
        ({"embedding": torch.ones(2, 5), "device": "meta"}, ValueError, "device must be one with memory"),
    ],
)  # fmt: skip
def test_bad_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        tk.MLP(**{"n_features": 5, "n_hidden": 3, **arguments})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 4), ValueError, r"x must have the shape .*\[3, batch, 5\] or \[batch, 5\]"),
        (torch.zeros(8, 5).double(), TypeError, "x must have the dtype of the weights"),
        (np.zeros((8, 5)), TypeError, "x must be a tensor"),
        (torch.zeros(8, 5, device="meta"), ValueError, "x must be on the device"),
        (tk.SparseBatch.from_dense(torch.ones(2, 4)), ValueError, "x must be a SparseBatch of 3 models"),
    ],
)
def test_bad_inputs(x, error, message):
    model = tk.MLP(5, 2, n_models=3)
    for call in (model, model.loss, model.encode):
        with pytest.raises(error, match=message):
            call(x)


def test_an_empty_batch():
    model = tk.MLP(5, 2, 3, n_models=3)
    assert model(torch.zeros(0, 5)).shape == (3, 0, 3)
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        model.loss(torch.zeros(0, 5))


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({}, {"target": "square"}, ValueError, "target must be one of 'identity', 'abs', 'embedding'"),
        ({}, {"target": "embedding"}, ValueError, "target='embedding' is for a model with an embedding"),
        ({"embedding": 2}, {"target": "embedding"}, ValueError, "n_embedding = 2, but .* n_outputs = 5"),
        ({"n_outputs": 3}, {}, ValueError, "target='identity' has .* n_features = 5, .*n_outputs = 3"),
        ({"n_outputs": 3}, {"target": torch.zeros(8, 5)}, ValueError, r"target must .* \[1, batch, 3\]"),
        ({}, {"target": torch.zeros(7, 5)}, ValueError, "target must have as many samples as x"),
        ({}, {"target": torch.zeros(7, dtype=torch.int64)}, ValueError, "target must have as many samples"),
        ({}, {"target": torch.full((8,), 5)}, ValueError, "target must hold labels from 0 to 4, not 5"),
        ({}, {"target": torch.full((8,), -1)}, ValueError, "target must hold labels from 0 to 4, not -1"),
        ({}, {"target": torch.zeros(2, 8, dtype=torch.int64)}, ValueError, "target must have the shape"),
        ({}, {"target": torch.zeros(8, 5, dtype=torch.int32)}, TypeError, "target must have the dtype"),
        ({}, {"loss": "hinge"}, ValueError, "loss must be one of 'squared_error', 'cross_entropy'"),
        ({"output_activation": "relu"}, {"loss": "cross_entropy"}, ValueError, "loss='cross_entropy' is of"),
        ({}, {"loss_reduction": "none"}, ValueError, "loss_reduction must be one of"),
        ({"n_outputs": 3}, {"importance": torch.ones(5), "target": torch.zeros(8, 3)}, ValueError,
         r"importance must broadcast to \[models, n_outputs\] = \[1, 3\]"),
        ({}, {"importance": -1.0}, ValueError, "importance must be finite and at least 0"),
        ({}, {"l1": -1.0}, ValueError, "l1 must be"),
        ({}, {"l1": [0.1, 0.2]}, ValueError, "l1 must be one number or have one entry"),
    ],
)  # fmt: skip
def test_bad_loss_arguments(options, arguments, error, message):
    with pytest.raises(error, match=message):
        tk.MLP(5, 2, **options).loss(torch.zeros(8, 5), **arguments)


def test_decode_wants_inputs_where_they_are_used():
    plain, residual = tk.MLP(5, 2), tk.MLP(5, 2, residual=True)
    codes = torch.zeros(8, 2)
    with pytest.raises(ValueError, match="x must be None to decode for a network that is not residual"):
        plain.decode(codes, torch.zeros(8, 5))
    with pytest.raises(ValueError, match="x must be given to decode for a residual network"):
        residual.decode(codes)
    with pytest.raises(ValueError, match="x must have as many samples as codes"):
        residual.decode(codes, torch.zeros(7, 5))
    with pytest.raises(ValueError, match=r"codes must have the shape \[models, batch, n_hidden\]"):
        plain.decode(torch.zeros(8, 5))


@pytest.mark.parametrize("kind", [tk.TiedAutoencoder, tk.Autoencoder])
def test_the_fused_layer_takes_no_more_than_it_has(kind):
    for name in ("square", "x_exp", "solu", "softplus"):
        with pytest.raises(ValueError, match=f"hidden_activation must be one of .* not '{name}'"):
            kind(5, 2, hidden_activation=name)
    for name in ("cross_entropy", "batch_cross_entropy"):
        with pytest.raises(ValueError, match=f"loss must be one of 'squared_error', not '{name}'"):
            kind(5, 2).loss(torch.ones(4, 5), loss=name)
    with pytest.raises(ValueError, match="target must be one of 'identity', 'abs', not 'embedding'"):
        kind(5, 2).loss(torch.ones(4, 5), target="embedding")
    with pytest.raises(ValueError, match="target must be one of 'identity', 'abs', not 'tensor'"):
        tk.SparseTiedAutoencoder(5, 2, 0.5).loss(torch.ones(4, 5), target="tensor")
    with pytest.raises(ValueError, match="loss must be one of 'squared_error', not 'cross_entropy'"):
        tk.SparseTiedAutoencoder(5, 2, 0.5).loss(torch.ones(4, 5), loss="cross_entropy")
