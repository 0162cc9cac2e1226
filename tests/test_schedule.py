"""Schedules against their formulas and against PyTorch's schedulers."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toykern.training.schedule import (
    SCHEDULES,
    PeriodicCosine,
    WarmupCosine,
    multipliers,
    schedule_config,
    schedule_from_config,
)

T = 37
FORMULAS = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t / T,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / T)),
    "quarter_cosine": lambda t: math.cos(math.pi / 2 * t / (T - 1)),
}


def test_every_name_has_its_formula():
    assert set(FORMULAS) == set(SCHEDULES)


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    np.testing.assert_allclose(
        multipliers(name, T, 0, T), [FORMULAS[name](t) for t in range(T)], rtol=1e-15, atol=1e-16
    )


def test_against_pytorch():
    """Cosine and warm-up + cosine as LambdaLR/SequentialLR of PyTorch would step them."""

    def rates(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler, values = make(optimizer), []
        for _ in range(T):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return values

    lr = torch.optim.lr_scheduler
    np.testing.assert_allclose(
        multipliers("cosine", T, 0, T), rates(lambda o: lr.CosineAnnealingLR(o, T)), atol=1e-14
    )
    # PyTorch's goes on as a periodic one beyond its own length, which is half a period.
    np.testing.assert_allclose(
        multipliers(PeriodicCosine(10), T, 0, T), rates(lambda o: lr.CosineAnnealingLR(o, 5)), atol=1e-14
    )
    np.testing.assert_allclose(
        multipliers(WarmupCosine(7), T, 0, T)[7:],
        rates(lambda o: lr.CosineAnnealingLR(o, T - 7))[: T - 7],
        atol=1e-14,
    )


def test_warmup_cosine():
    values = multipliers(WarmupCosine(10), 30, 0, 30)
    np.testing.assert_allclose(values[:10], (np.arange(10) + 1) / 10, rtol=1e-15)
    np.testing.assert_allclose(
        values[10:], [0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)], rtol=1e-14
    )
    assert multipliers(WarmupCosine(5), 5, 0, 5).tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_one_step():
    for schedule in [*SCHEDULES, WarmupCosine(1), PeriodicCosine(2)]:
        assert multipliers(schedule, 1, 0, 1).tolist() == [1.0]


@given(
    schedule=st.sampled_from([*SCHEDULES, WarmupCosine(3), PeriodicCosine(7), lambda t, n: 1 / (t + 1)]),
    steps=st.integers(3, 60),
    data=st.data(),
)
def test_any_stretch_is_a_part_of_the_whole(schedule, steps, data):
    start = data.draw(st.integers(0, steps))
    stop = data.draw(st.integers(start, steps))
    part = multipliers(schedule, steps, start, stop)
    assert part.dtype == np.float64
    assert part.tobytes() == multipliers(schedule, steps, 0, steps)[start:stop].tobytes()


def test_callable_gets_step_and_steps():
    seen = []

    def schedule(step, steps):
        seen.append((step, steps))
        return np.float32(0.5)

    assert multipliers(schedule, 10, 3, 5).tolist() == [0.5, 0.5]
    assert seen == [(3, 10), (4, 10)]


@pytest.mark.parametrize("schedule", [*SCHEDULES, WarmupCosine(12), PeriodicCosine(9)])
def test_config_round_trip(schedule):
    assert schedule_from_config(json.loads(json.dumps(schedule_config(schedule)))) == schedule


def test_callable_config_says_which_and_cannot_be_rebuilt():
    config = json.loads(json.dumps(schedule_config(max)))
    assert config == {"name": "callable", "callable": "max"}
    with pytest.raises(ValueError, match="'max'; pass it again"):
        schedule_from_config(config)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ("exponential", ValueError, "schedule must be one of 'constant'.*'exponential'"),
        (3, TypeError, "schedule must be one of.*not 3"),
        (WarmupCosine, TypeError, "schedule must be"),
        (WarmupCosine(11), ValueError, r"warmup must be at most the number of steps \(10\), not 11"),
        (lambda t, n: math.nan, ValueError, "schedule must return a finite.*step 0"),
        (lambda t, n: -0.1, ValueError, "schedule must return.*at least 0, not -0.1"),
        (lambda t, n: "1", TypeError, "schedule must return a number, not '1'"),
    ],
)
def test_bad_schedules(schedule, error, message):
    with pytest.raises(error, match=message):
        multipliers(schedule, 10, 0, 10)


@pytest.mark.parametrize("bad", [0, 1, -4, 2.5, True])
def test_bad_period(bad):
    with pytest.raises((ValueError, TypeError), match="period must"):
        PeriodicCosine(bad)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_bad_warmup(bad):
    with pytest.raises((ValueError, TypeError), match="warmup must"):
        WarmupCosine(bad)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11), (0.0, 3)])
def test_bad_stretches(start, stop):
    with pytest.raises((ValueError, TypeError), match="start|stop"):
        multipliers("linear", 10, start, stop)


def test_foreign_config_is_refused():
    for config in (None, {}, {"name": "exponential"}):
        with pytest.raises(ValueError, match="name"):
            schedule_from_config(config)
