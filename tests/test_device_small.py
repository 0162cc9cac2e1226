"""The small regime's CUDA source (csrc/cuda/small/train_small.cuh), run on the host: it computes what the
reference does, and nothing but the model itself decides a bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import FIT_CASES, FIT_LARGE, FIT_LONG, FitCase
from device_fit_checks import (
    assert_alone_as_among_others,
    assert_divergence_harms_no_other,
    assert_follows_in_any_order,
    fit_by_source,
)
from device_kit import device_regime, device_source
from kit import (
    assert_as_exact_as_pytorch,
    assert_follows_the_reference,
    assert_same_bits,
    data_of,
    model_of,
)

import toykern as tk
from toykern.training.kernels import Resident
from toykern.training.optim import AdamW
from toykern.training.settings import Settings


def ids(case: FitCase) -> str:
    return case.name


def _cases(cases: list[FitCase]) -> list[FitCase]:
    """Those that this regime can train: the tiny ones too, which a device would give to another loop."""
    return [case for case in cases if device_regime(model_of(case), case.batch_size) != "large"]


CASES = _cases([*FIT_CASES, *FIT_LARGE])
SMALL = [case for case in CASES if device_regime(model_of(case), case.batch_size) == "small"]
# A case of every kind for the checks that compare bits.
KINDS = [
    FitCase("one warp, columns", 7, 3, 0.05, 300, n_models=5),
    FitCase("two warps, columns", 20, 5, 0.02, 1024, n_models=5),
    FitCase("two warps, rows", 20, 5, [[0.05], [0.3], [0.9], [0.01], [0.125]], 100, n_models=5),
    FitCase("four warps, columns", 33, 17, 0.06, 150, n_models=5),
    FitCase("four warps, groups", 60, 9, 0.02, 100, n_models=5, correlated=((0, 5), (7, 9, 3))),
    FitCase("eight warps, columns", 100, 24, 0.02, 130, n_models=5),
    FitCase("eight warps, noise", 100, 24, 0.02, 70, n_models=5, features={"noise": 0.1}, tied=False),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


fit_small = partial(fit_by_source, "small")


def test_the_cases_reach_every_block_size():
    assert len(SMALL) > 40
    assert {device_regime(model_of(case), case.batch_size) for case in KINDS} == {"small"}


@pytest.mark.parametrize("case", [*CASES, *_cases(FIT_LONG[3:])], ids=ids)
def test_one_evaluation_is_as_exact_as_pytorch(case):
    assert_as_exact_as_pytorch(case, partial(fit_small, case))


@pytest.mark.parametrize("case", [case for case in SMALL if case.batch_size < 1000], ids=ids)
def test_training_follows_the_reference(case):
    case = replace(case, steps=min(case.steps, 60))
    assert_follows_the_reference(case, fit_small(case, record_every=7))


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_the_order_of_lanes_threads_and_blocks_changes_nothing(case):
    assert_same_bits(fit_small(case, steps=3), fit_small(case, steps=3, descending=True))


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_model_alone_is_the_same_as_among_others(case):
    assert_alone_as_among_others("small", case)


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_run_in_stretches_is_the_same_as_in_one_go(case):
    def advance(lengths: list[int]) -> dict[str, torch.Tensor]:
        """The native calls of a run, cut as asked for; recording every three steps."""
        model = model_of(case)
        arrays = {
            "seed": torch.arange(case.n_models),
            "importance": torch.ones(1, case.n_features),
            "lr": torch.full((case.n_models,), 3e-3, dtype=torch.float64),
            "weight_decay": torch.full((case.n_models,), 0.1, dtype=torch.float64),
        }
        state = {
            f"{name}/{moment}": torch.zeros_like(value)
            for name, value in model.named_parameters()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        loss = torch.zeros(case.n_models, 3)
        carry = torch.zeros(case.n_models, dtype=torch.float64)
        diverged = torch.full((case.n_models,), -1)
        settings = Settings(
            data=data_of(case), steps=7, batch_size=case.batch_size, record_every=3,
            optimizer=AdamW(lr=3e-3, weight_decay=0.1),
        )  # fmt: skip
        with device_source("small"):
            run = Resident(
                model, data_of(case), settings, arrays=arrays, state=state, loss=loss, loss_carry=carry,
                diverged_at=diverged,
            )  # fmt: skip
            first = 0
            for length in lengths:
                run.advance(first, np.linspace(1, 0.5, 7)[first : first + length])
                first += length
            run.write_back()
        return dict(model.named_parameters()) | state | {"loss": loss, "carry": carry, "diverged": diverged}

    whole = advance([7])
    for cut in ([1, 1, 1, 4], [2, 5]):
        for name, value in advance(cut).items():
            assert torch.equal(value, whole[name]), (cut, name)


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_evaluation_is_the_mean_loss_of_the_evaluation_stream(case):
    model, data, seeds = model_of(case), data_of(case), torch.arange(case.n_models) + 11
    expected = tk.evaluate(model, data, 5000, seeds)
    with device_source("small"):
        found = tk.evaluate(model, data, 5000, seeds)
    assert torch.allclose(found, expected, rtol=1e-5, atol=0)


@pytest.mark.sanitize
@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_a_diverged_model_is_left_as_it_was_and_harms_no_other(case):
    assert_divergence_harms_no_other("small", case)


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 9), (2, 1), (5, 2), (31, 8), (32, 9), (88, 8), (64, 40), (40, 80), (400, 2)]
)
@pytest.mark.parametrize("p", [0.0, 0.03, 0.4])
def test_sizes_at_the_borders_of_blocks(n, m, p):
    assert_follows_in_any_order("small", n, m, p)
