"""The oracle itself: gradients against autograd and finite differences, steps against torch.optim."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern import reference
from toykern.nn import Autoencoder, TiedAutoencoder
from toykern.reference import Network
from toykern.training.optim import SGD, Adam, AdamW, optimizer_from_config
from toykern.training.schedule import WarmupCosine, multipliers

MODELS, N, M, BATCH = 3, 5, 2, 12


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _parameters(tied=True, models=MODELS, n=N, m=M, bias=True, seed=0):
    shapes = {"weight": (models, m, n)} if tied else {"encoder": (models, m, n), "decoder": (models, n, m)}
    if bias:
        shapes["bias"] = (models, n)
    generator = _rng(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def _batch(step=0, models=MODELS, batch=BATCH, n=N):
    x = 2 * torch.rand(models, batch, n, generator=_rng(100 + step), dtype=torch.float64) - 1
    return x * (torch.rand(x.shape, generator=_rng(200 + step)) < 0.6)


def _plain_loss(parameters, x, network, importance, target, clean, loss_reduction):
    """The loss once more, one model and one sample at a time, for autograd."""
    losses = []
    for k in range(len(x)):
        encoder = parameters["weight"][k] if "weight" in parameters else parameters["encoder"][k]
        decoder = encoder.T if "weight" in parameters else parameters["decoder"][k]
        total = 0.0
        for s in range(x.shape[1]):
            hidden = encoder @ x[k, s]
            hidden = hidden.relu() if network.hidden_activation == "relu" else hidden
            output = decoder @ hidden
            output = output + parameters["bias"][k] if "bias" in parameters else output
            output = output.relu() if network.output_activation == "relu" else output
            wanted = clean[k, s].abs() if target == "abs" else clean[k, s]
            total = total + (importance[k] * (wanted - output) ** 2).sum()
        losses.append(total / x.shape[1] / (x.shape[2] if loss_reduction == "mean" else 1))
    return torch.stack(losses)


@given(
    tied=st.booleans(),
    bias=st.booleans(),
    models=st.integers(1, 3),
    n=st.integers(1, 5),
    m=st.integers(1, 5),
    batch=st.integers(1, 4),
    network=st.builds(Network, st.sampled_from(["none", "relu"]), st.sampled_from(["none", "relu"])),
    target=st.sampled_from(["identity", "abs"]),
    loss_reduction=st.sampled_from(["mean", "sum"]),
    noisy=st.booleans(),
)
def test_loss_and_gradients_are_autograds(
    tied, bias, models, n, m, batch, network, target, loss_reduction, noisy
):
    parameters = _parameters(tied, models, n, m, bias)
    x = _batch(0, models, batch, n)
    clean = _batch(1, models, batch, n) if noisy else None
    importance = torch.rand(models, n, generator=_rng(5), dtype=torch.float64)
    loss, gradients = reference.loss_and_gradients(
        parameters,
        x,
        network,
        importance=importance,
        target=target,
        clean=clean,
        loss_reduction=loss_reduction,
    )
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    wanted = x if clean is None else clean
    expected = _plain_loss(leaves, x, network, importance, target, wanted, loss_reduction)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-15)
    expected_gradients = torch.autograd.grad(expected.sum(), list(leaves.values()), allow_unused=True)
    assert set(gradients) == set(parameters)
    for name, value in zip(leaves, expected_gradients, strict=True):
        torch.testing.assert_close(gradients[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("network", [Network(), Network("relu", "none"), Network("relu", "relu")])
def test_gradients_are_finite_differences(tied, network):
    parameters, x, size = _parameters(tied), _batch(), 1e-6
    _, gradients = reference.loss_and_gradients(parameters, x, network, target="abs")
    for name, value in parameters.items():
        for index in np.ndindex(*value.shape[1:]):
            sides = []
            for sign in (1, -1):
                moved = {key: other.clone() for key, other in parameters.items()}
                moved[name][(slice(None), *index)] += sign * size
                sides.append(reference.loss_and_gradients(moved, x, network, target="abs")[0])
            difference = (sides[0] - sides[1]) / (2 * size)
            torch.testing.assert_close(
                gradients[name][(slice(None), *index)], difference, rtol=1e-6, atol=1e-8
            )


def test_relu_slope_at_zero_is_zero():
    parameters = {"weight": torch.zeros(1, 1, 2).double(), "bias": torch.zeros(1, 2).double()}
    _, gradients = reference.loss_and_gradients(parameters, torch.ones(4, 2))
    assert not gradients["bias"].any()


def test_shared_batch_goes_to_every_model():
    parameters, x = _parameters(), _batch()[0]
    loss, gradients = reference.loss_and_gradients(parameters, x)
    expected, expected_gradients = reference.loss_and_gradients(parameters, x.expand(MODELS, -1, -1))
    assert torch.equal(loss, expected)
    assert torch.equal(gradients["weight"], expected_gradients["weight"])


RATES = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)
DECAYS = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
OPTIMIZERS = [
    SGD(lr=RATES),
    SGD(lr=RATES, weight_decay=DECAYS),
    SGD(lr=RATES, momentum=0.9),
    SGD(lr=RATES, momentum=0.9, dampening=0.4, weight_decay=DECAYS),
    SGD(lr=RATES, momentum=0.8, nesterov=True, weight_decay=DECAYS),
    Adam(lr=RATES),
    Adam(lr=RATES, betas=(0.7, 0.95), eps=1e-3, weight_decay=DECAYS),
    AdamW(lr=RATES),
    AdamW(lr=RATES, betas=(0.7, 0.95), eps=1e-3, weight_decay=DECAYS),
]


def _torch_trajectory(optimizer, steps, schedule):
    """Every model by itself with torch.optim and a LambdaLR, on the gradients of autograd."""
    kind = getattr(torch.optim, optimizer.name)
    settings = {k: v for k, v in optimizer.config().items() if k not in ("name", "lr", "weight_decay")}
    factors = multipliers(schedule, steps, 0, steps)
    rates, decays = optimizer.per_model(MODELS)
    finals, losses, states = [], [], []
    for k in range(MODELS):
        leaves = {name: value[k : k + 1].clone().requires_grad_() for name, value in _parameters().items()}
        peer = kind(
            list(leaves.values()),
            lr=rates[k].item(),
            weight_decay=decays[k].item(),
            foreach=False,
            **settings,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(peer, lambda t: factors[min(t, steps - 1)])
        losses.append([])
        for step in range(steps):
            x = _batch(step)[k : k + 1]
            hidden = torch.einsum("kbn,kmn->kbm", x, leaves["weight"])
            output = (torch.einsum("kbm,kmn->kbn", hidden, leaves["weight"]) + leaves["bias"]).relu()
            loss = (x - output).square().mean()
            losses[-1].append(loss.item())
            peer.zero_grad()
            loss.backward()
            peer.step()
            scheduler.step()
        finals.append({name: value.detach() for name, value in leaves.items()})
        states.append({name: peer.state[value] for name, value in leaves.items()})
    return finals, torch.tensor(losses, dtype=torch.float64), states


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("schedule", ["constant", "cosine", WarmupCosine(7)], ids=str)
def test_training_is_torch_optims(optimizer, schedule):
    steps = 25
    trained = reference.train(_parameters(), _batch, steps, optimizer, schedule=schedule)
    finals, losses, states = _torch_trajectory(optimizer, steps, schedule)
    torch.testing.assert_close(trained.losses, losses, rtol=1e-9, atol=1e-12)
    for k in range(MODELS):
        for name, value in finals[k].items():
            torch.testing.assert_close(trained.parameters[name][k : k + 1], value, rtol=1e-9, atol=1e-11)
            for key in optimizer.state_names:
                torch.testing.assert_close(
                    trained.state[f"{name}/{key}"][k : k + 1], states[k][name][key], rtol=1e-8, atol=1e-12
                )
    assert set(trained.state) == {f"{p}/{s}" for p in ("weight", "bias") for s in optimizer.state_names}


def test_adamw_decays_biases_too():
    parameters = {"weight": torch.zeros(1, 1, 2).double(), "bias": torch.full((1, 2), -1.0).double()}
    trained = reference.train(parameters, lambda _: torch.zeros(4, 2), 1, AdamW(lr=0.1, weight_decay=0.5))
    assert trained.parameters["bias"].tolist() == [[-0.95, -0.95]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_going_on_is_never_having_stopped(optimizer):
    whole = reference.train(_parameters(), _batch, 12, optimizer, schedule="linear")
    first = reference.train(_parameters(), _batch, 12, optimizer, schedule="linear", stop=5)
    rest = reference.train(
        first.parameters, _batch, 12, optimizer, schedule="linear", start=5, state=first.state
    )
    assert torch.equal(torch.cat([first.losses, rest.losses], dim=1), whole.losses)
    for name, value in whole.parameters.items():
        assert torch.equal(rest.parameters[name], value)


def test_each_model_trains_as_if_alone():
    optimizer = AdamW(lr=RATES, weight_decay=DECAYS)
    importance = torch.rand(MODELS, N, generator=_rng(3))
    together = reference.train(
        _parameters(False), _batch, 10, optimizer, Network("relu"), importance=importance
    )
    for k in range(MODELS):
        alone = reference.train(
            {name: value[k : k + 1] for name, value in _parameters(False).items()},
            lambda step, k=k: _batch(step)[k : k + 1],
            10,
            optimizer_from_config(optimizer.config(), lr=RATES[k], weight_decay=DECAYS[k]),
            Network("relu"),
            importance=importance[k],
        )
        torch.testing.assert_close(alone.losses[0], together.losses[k], rtol=1e-12, atol=0)


def test_noisy_batches_have_a_clean_target():
    def noisy(step):
        return _batch(step) + 0.1, _batch(step)

    trained = reference.train(_parameters(), noisy, 3, SGD(), target="abs", loss_reduction="sum")
    expected, _ = reference.loss_and_gradients(
        _parameters(), _batch() + 0.1, clean=_batch(), target="abs", loss_reduction="sum"
    )
    assert torch.equal(trained.losses[:, 0], expected)
    other = reference.train(
        _parameters(), lambda s: _batch(s) + 0.1, 3, SGD(), target="abs", loss_reduction="sum"
    )
    assert not torch.allclose(other.losses, trained.losses)


def test_training_leaves_its_arguments_alone():
    parameters = _parameters()
    state = reference.initial_state(Adam(), parameters)
    reference.train(parameters, _batch, 3, Adam(lr=0.1), state=state)
    assert all(torch.equal(value, _parameters()[name]) for name, value in parameters.items())
    assert not any(value.any() for value in state.values())


def test_record_means():
    losses = torch.arange(14.0, dtype=torch.float64).reshape(2, 7)
    assert reference.record_means(losses, 3).tolist() == [[1.0, 4.0, 6.0], [8.0, 11.0, 13.0]]
    assert torch.equal(reference.record_means(losses, 1), losses)


@pytest.mark.parametrize("kind", [TiedAutoencoder, Autoencoder])
def test_parameters_of_a_module_are_double_copies(kind):
    model = kind(4, 2, 3, "relu", "none").double()
    parameters = reference.parameters_of(model)
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    assert all(value.dtype == torch.float64 for value in parameters.values())
    parameters["bias"] += 1
    assert not model.bias.any()
    assert reference.network_of(model) == Network("relu", "none")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Network("tanh"), "hidden_activation must"),
        (lambda: Network(output_activation="tanh"), "output_activation must"),
        (lambda: reference.target_of(torch.zeros(1), "square"), "target must"),
        (
            lambda: reference.loss_and_gradients(_parameters(), _batch(), loss_reduction="max"),
            "loss_reduction must",
        ),
        (lambda: reference.train(_parameters(), _batch, 0, SGD()), "steps must"),
        (lambda: reference.train(_parameters(), _batch, 3, SGD(lr=[0.1, 0.2])), "lr must"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
