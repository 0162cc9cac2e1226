"""Builds what the cases describe, and measures errors as DESIGN §8 states them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from cases import FitCase, LayerCase
from torch.nn import functional

import toykern as tk
from toykern import _native, reference
from toykern.network import LOSSES, Objective
from toykern.nn.functions import activated
from toykern.training.kernels import network_params

EVALUATION_FLOOR = 1e-6  # of a float32 evaluation, relative
PLAIN_CEILING = 1e-4  # of PyTorch's own, in float32: beyond, it is no float32 evaluation of the same thing
TRAJECTORY = 1e-4  # relative error of float32 weights after hundreds of steps (DESIGN §8)
# PyTorch's own, of pre-activations and the model; a name that is not here is a KeyError, never the identity.
PLAIN_ACTIVATIONS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "none": lambda z, model: z,
    "relu": lambda z, model: functional.relu(z),
    "gelu": lambda z, model: functional.gelu(z),
    "leaky_relu": lambda z, model: functional.leaky_relu(z, model.negative_slope),
    "softplus": lambda z, model: functional.softplus(z),
}
# ρ of outputs and targets, elementwise, by PyTorch's own functions.
PLAIN_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "squared_error": partial(functional.mse_loss, reduction="none"),
}
LEVELS = tuple(_native.isa_levels())


@contextmanager
def isa_level(name: str) -> Iterator[None]:
    """The kernels of one instruction-set level, within."""
    before = _native.isa_level()
    _native.set_isa_level(name)
    try:
        yield
    finally:
        _native.set_isa_level(before)


def model_of(case: FitCase) -> Any:
    """The stack at its start; biases are not zero, so that outputs of empty samples take part."""
    kind = getattr(tk, case.kind or ("TiedAutoencoder" if case.tied else "Autoencoder"))
    model = kind(case.n_features, case.n_hidden, n_models=case.n_models, **case.network)
    generator = torch.Generator().manual_seed(case.n_features)
    for bias in (model.bias, model.hidden_bias):
        if bias is not None:
            with torch.no_grad():
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
    return model


def dataset_of(case: FitCase) -> tk.Dataset:
    """Rows of a stream, dense or as entries, shared or of each model, alone or with targets or labels."""
    told = case.dataset
    assert told is not None
    stream = tk.SparseFeatures(case.n_features, case.probability, **case.features)
    x = stream.sample(0, told["rows"], 5, n_models=case.n_models if told["per_model"] else 1)
    inputs = tk.SparseBatch.from_dense(x) if told["entries"] else x
    generator = torch.Generator().manual_seed(11)
    outputs, shape = case.network.get("n_outputs", case.n_features), (case.n_models, told["rows"])
    if told.get("own") == "targets":
        targets = torch.randn(*shape, outputs, generator=generator)
        return tk.Dataset(inputs, targets.abs() if case.loss.get("loss") == "cross_entropy" else targets)
    if told.get("own") == "labels":
        return tk.Dataset(inputs, labels=torch.randint(outputs, shape, generator=generator))
    return tk.Dataset(inputs)


def data_of(case: FitCase) -> Any:
    if case.dataset is not None:
        return dataset_of(case)
    groups = [tk.Correlated(group) for group in case.correlated]
    groups += [tk.Anticorrelated(group) for group in case.anticorrelated]
    return tk.SparseFeatures(case.n_features, case.probability, groups=groups, **case.features)


def regime_of(case: FitCase) -> str:
    """Which loop the kernels pick."""
    return _native.regime(network_params(model_of(case).network))


def forms_of(case: FitCase) -> list[str]:
    """Which form of the step the CPU's kernels take, of each model."""
    network, data = network_params(model_of(case).network), data_of(case)
    return [
        _native.train_form(network, data.native(), case.n_models, case.batch_size, model)
        for model in range(case.n_models)
    ]


def fit_case(case: FitCase, **options: Any) -> tk.Run:
    """`tk.fit` on a new stack; `options` replace those of the case."""
    settings = {
        "steps": case.steps,
        "batch_size": case.batch_size,
        "optimizer": case.optimizer,
        "schedule": case.schedule,
        "progress": False,
        **case.loss,
    }
    return tk.fit(model_of(case), data_of(case), **(settings | options))


def batches_of(
    data: tk.SparseFeatures | tk.Dataset, batch_size: int | None, seed: Any, n_models: int, n_outputs: int = 0
) -> Any:
    """step -> (x, what the target is made from: x without noise), the batches that `fit` trains on."""

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(data, tk.Dataset):
            outputs = n_outputs if data.label is not None else None
            return data.batch(step, batch_size, seed, n_models, n_outputs=outputs)
        x = data.sample(step, batch_size, seed, n_models=n_models)
        if data.noise == 0:
            return x, x
        return x, data.sample(step, batch_size, seed, n_models=n_models, clean=True)

    return batch


@cache
def reference_of(case: FitCase, steps: int | None = None, seed: int | None = None) -> reference.Trained:
    """The float64 reference on the very batches of `fit_case`."""
    model = model_of(case)
    return reference.train(
        reference.parameters_of(model),
        batches_of(data_of(case), case.batch_size, seed, case.n_models, model.n_outputs),
        case.steps if steps is None else steps,
        case.optimizer,
        reference.network_of(model),
        schedule=case.schedule,
        **case.loss,
    )


def _mlp_loss_options(case: FitCase, model: tk.MLP, clean: torch.Tensor) -> dict[str, Any]:
    """Those of the case for `model.loss`, with the target as a tensor."""
    options = {"target": "identity", **case.loss}
    own = case.dataset is not None and "own" in case.dataset
    if not own or options["target"] != "identity":
        clean = model.target_of(clean, options["target"])
    return options | {"target": clean}


def folded_pytorch_loss(case: FitCase, model: tk.MLP, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The same with its matrices multiplied first, y = g(Q P x + Q D f(E P x + c − E b) + b): one network is
    as good a float32 evaluation as the other, and the kernels compute this one."""
    options = _mlp_loss_options(case, model, clean)
    e, p, q = model._encoder, model.embedding, model.unembedding
    d = e.mT if model.tied else model.decoder
    seen, given = (e if p is None else e @ p), (d if q is None else q @ d)
    hidden = x @ seen.mT
    if model.hidden_bias is not None:
        hidden = hidden + model.hidden_bias.unsqueeze(1)
    if model.centered:
        hidden = hidden - (e @ model.bias.unsqueeze(2)).mT
    codes = activated(hidden, model.hidden_activation, model)
    output = codes @ given.mT
    if model.residual:
        skip = x if p is None else x @ (p if q is None else q @ p).mT
        output = output + skip
    if model.bias is not None:
        output = output + model.bias.unsqueeze(1)
    output = activated(output, model.output_activation, model)
    loss, reduction = options.get("loss", "squared_error"), options.get("loss_reduction", "mean")
    importance = torch.as_tensor(options.get("importance", 1.0), dtype=torch.float32)
    terms = LOSSES[loss].of(output, options["target"].expand(output.shape)) * (
        importance.expand(case.n_models, model.n_outputs).unsqueeze(1)
    )
    divisor = Objective(loss_reduction=reduction, loss=loss).divisor(x.shape[1], model.n_outputs)
    l1 = torch.as_tensor(options.get("l1", 0.0), dtype=torch.float32)
    return terms.sum((1, 2)) / divisor + l1 * codes.abs().sum((1, 2)) / x.shape[1]


def plain_pytorch_loss(case: FitCase, model: Any, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Float32 `[models]` by PyTorch's own products: `model.loss` runs kernels of ours, but for an `MLP`."""
    if isinstance(model, tk.MLP):
        return model.loss(x, **_mlp_loss_options(case, model, clean))
    parameters = dict(model.named_parameters())
    encoder = parameters["weight" if case.tied else "encoder"]
    decoder = encoder.transpose(1, 2) if case.tied else parameters["decoder"]
    h = torch.einsum("kbn,kmn->kbm", x, encoder)
    h = PLAIN_ACTIVATIONS[model.hidden_activation](h, model)
    y = torch.einsum("kbm,knm->kbn", h, decoder)
    y = y + parameters["bias"][:, None] if "bias" in parameters else y
    y = PLAIN_ACTIVATIONS[model.output_activation](y, model)
    target = clean.abs() if case.loss.get("target") == "abs" else clean
    importance = torch.as_tensor(case.loss.get("importance", 1.0), dtype=torch.float32)
    importance = importance.expand(case.n_models, case.n_features)[:, None]
    plain = PLAIN_LOSSES[case.loss.get("loss", "squared_error")]
    summed = (importance * plain(y, target)).sum(2).mean(1)
    return summed if case.loss.get("loss_reduction") == "sum" else summed / case.n_features


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Largest difference over the largest expected value, of each model; 0 where all agree."""
    difference = (actual.detach().cpu().double() - expected).flatten(1).abs().amax(1)
    return torch.where(difference > 0, difference / expected.flatten(1).abs().amax(1), 0.0)


def worst_errors(model: Any, expected: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """By parameter, the largest relative error of any model."""
    return {
        name: relative_error(value, expected[name]).max().item() for name, value in model.named_parameters()
    }


def length_error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Length of the difference over that of what is expected, `[models]`; 0 where there is no difference."""
    difference = (actual.detach().cpu().double() - expected).reshape(len(expected), -1).norm(dim=1)
    return torch.where(difference > 0, difference / expected.reshape(len(expected), -1).norm(dim=1), 0.0)


def assert_as_exact_as_pytorch(case: FitCase, *fits: Callable[..., tk.Run]) -> None:
    """Loss and gradients of one evaluation: at most twice the error of plain PyTorch in float32, and a floor.

    Each of `fits` trains the case with the options it is given: with momentum and no decay, the buffer after
    the first step is the gradient.
    """
    model = model_of(case)
    x, clean = batches_of(data_of(case), case.batch_size, None, case.n_models, model.n_outputs)(0)
    loss, gradients = reference.loss_and_gradients(
        reference.parameters_of(model), x, reference.network_of(model), clean=clean, **case.loss
    )
    plain: dict[str, torch.Tensor] = {}
    for plain_loss in (plain_pytorch_loss, *([folded_pytorch_loss] if isinstance(model, tk.MLP) else [])):
        model.zero_grad()
        torch_loss = plain_loss(case, model, x, clean)
        torch_loss.sum().backward()
        errors = {"loss": length_error(torch_loss, loss)}
        for name, expected in gradients.items():
            errors[name] = length_error(model.get_parameter(name).grad, expected)
        plain = {name: torch.maximum(error, plain.get(name, error)) for name, error in errors.items()}
    if isinstance(model, tk.MLP):  # what one model has by chance is not the rule
        plain = {name: error.max().expand(case.n_models) for name, error in plain.items()}
    allowed = {}
    for name, error in plain.items():
        # Something else computed, and not the same in float32, would allow everything.
        assert (error <= PLAIN_CEILING).all(), (name, error)
        allowed[name] = 2 * error + EVALUATION_FLOOR
    for fit in fits:
        run = fit(steps=1, optimizer=tk.SGD(lr=1.0, momentum=0.9), schedule="constant")
        errors = {"loss": length_error(run.loss[:, 0], loss)}
        for name, expected in gradients.items():
            errors[name] = length_error(run.optimizer_state[f"{name}/momentum_buffer"], expected)
        for name, error in errors.items():
            assert (error <= allowed[name]).all(), (fit, name, error, allowed[name])


def assert_follows_the_reference(case: FitCase, run: tk.Run) -> None:
    """The whole trajectory of `fit_case(case, record_every=7)`: weights, losses, optimiser state."""
    expected = reference_of(case)
    errors = worst_errors(run.model, expected.parameters)
    assert max(errors.values()) <= TRAJECTORY, errors
    assert (run.diverged_at == -1).all()
    means, loss = reference.record_means(expected.losses, 7), run.loss.cpu()
    assert loss.shape == means.shape
    # Where a loss falls to nothing its own rounding is all that is left of it.
    assert ((loss - means).abs() <= TRAJECTORY * means + 1e-6 * means[:, :1]).all()
    assert run.optimizer_state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        scale = value.flatten(1).abs().amax(1)
        if name.endswith("/exp_avg"):  # averages gradients of either sign: their size is in the other moment
            scale = expected.state[f"{name}_sq"].flatten(1).amax(1).sqrt()
        difference = (run.optimizer_state[name].cpu().double() - value).flatten(1).abs().amax(1)
        assert (difference <= TRAJECTORY * scale).all(), (name, difference / scale)


def tensors_of(run: tk.Run) -> dict[str, torch.Tensor]:
    """Everything of a run that training makes, by a name."""
    found = {"loss": run.loss, "diverged_at": run.diverged_at, "carry": run.carry["loss"]}
    found |= {f"model.{name}": value.detach() for name, value in run.model.named_parameters()}
    found |= {f"state.{name}": value for name, value in run.optimizer_state.items()}
    found |= {f"record.{name}": value for name, value in run.records.items()}
    for step, snapshot in run.snapshots.items():
        found |= {f"snapshot {step}.{name}": value for name, value in snapshot.items()}
    return found


def assert_same_bits(run: tk.Run, other: tk.Run, models: Any = None, other_models: Any = None) -> None:
    """Everything training makes is equal bit by bit, in all models or in `models` (and `other_models`)."""
    ours, theirs = tensors_of(run), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        ours_of, theirs_of = (
            tensor if index is None else tensor[index]
            for tensor, index in ((value, models), (theirs[name], other_models))
        )
        assert ours_of.shape == theirs_of.shape, name
        same = ours_of.contiguous().numpy().tobytes() == theirs_of.contiguous().numpy().tobytes()
        assert same, f"{name}: {(ours_of != theirs_of).sum()} of {ours_of.numel()} differ"


# ---- the layer ---------------------------------------------------------------------------------------------


def on_a_grid(*shape: int, steps: int, seed: int) -> torch.Tensor:
    """Multiples of 1/8 from -steps/8 to steps/8, float64. Sums of a few products of such numbers are exact in
    float32.

    So a pre-activation has the same sign in every arithmetic, and a ReLU switches alike.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, shape, generator=generator).double() / 8


def layer_of(case: LayerCase, dtype: torch.dtype = torch.float64) -> Any:
    """The module of a case, parameters on a grid."""
    kind = tk.TiedAutoencoder if case.tied else tk.Autoencoder
    model = kind(case.n_features, case.n_hidden, case.n_models, init=0.0, **case.network)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = on_a_grid(*parameter.shape, steps=6, seed=seed).to(dtype)
    return model


def layer_batch(case: LayerCase, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """{"x"} and, where the case has one, {"target"}: [models or 1, batch, n]."""
    shape = (1 if case.shared else case.n_models, case.batch_size, case.n_features)
    generator = torch.Generator().manual_seed(9)
    active = torch.rand(shape, generator=generator) < case.density
    batch = {"x": (on_a_grid(*shape, steps=9, seed=10) * active).to(dtype)}
    if case.target_tensor:
        batch["target"] = on_a_grid(*shape, steps=9, seed=11).to(dtype)
    return batch


def layer_loss_options(case: LayerCase) -> dict[str, Any]:
    """Options of the loss, importance drawn where each feature of each model is to have its own."""
    options = dict(case.loss)
    if options.get("importance") == "each":
        options["importance"] = 1 + on_a_grid(case.n_models, case.n_features, steps=8, seed=12)
    return options


@cache
def layer_reference(case: LayerCase) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(output, loss, gradients by parameter and of "x" and "target") of the float64 oracle."""
    model, batch = layer_of(case), layer_batch(case)
    parameters, network = reference.parameters_of(model), reference.network_of(model)
    output = reference.forward(parameters, batch["x"], network).output
    loss, gradients = reference.loss_and_gradients(
        parameters,
        batch["x"],
        network,
        clean=batch.get("target"),
        input_gradients=True,
        **layer_loss_options(case),
    )
    if "clean" in gradients:
        gradients["target"] = gradients.pop("clean")
    for name in ("x", "target"):
        if case.shared and name in gradients:
            gradients[name] = gradients[name].sum(0, keepdim=True)
    return output, loss, gradients


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value (or 1, if that is less than 1e-30)."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().item()
    error = (actual.detach().double() - expected).abs().max().item() / (scale if scale > 1e-30 else 1.0)
    assert error == error, "not a number"
    return error
