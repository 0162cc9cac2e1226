"""What holds for every training loop of the device, checked on its source run on the host."""

from __future__ import annotations

from dataclasses import replace

import torch
from cases import FitCase
from device_kit import device_source
from kit import (
    TRAJECTORY,
    assert_same_bits,
    data_of,
    fit_case,
    model_of,
    reference_of,
    relative_error,
    tensors_of,
)

import toykern as tk


def fit_by_source(regime: str, case: FitCase, *, descending: bool = False, **options) -> tk.Run:
    """The case trained by this loop's source; `descending`: lanes, threads and blocks from the last on."""
    with device_source(regime, descending=descending):
        return fit_case(case, **options)


def assert_alone_as_among_others(regime: str, case: FitCase) -> None:
    """Two of five models, trained alone, have the bits that they have in the stack."""
    seeds = torch.arange(case.n_models) * 7 + 3
    among = tensors_of(fit_by_source(regime, case, steps=3, seed=seeds))
    stack = model_of(case)
    for i in (0, 3):
        p = case.probability[i] if isinstance(case.probability, list) else case.probability
        model = type(stack)(case.n_features, case.n_hidden, 1)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(stack.get_parameter(name)[i : i + 1])
        options = {"optimizer": case.optimizer, "seed": seeds[i : i + 1], "progress": False}
        with device_source(regime):
            run = tk.fit(model, data_of(replace(case, probability=p)), 3, case.batch_size, **options)
        for name, value in tensors_of(run).items():
            assert torch.equal(value[0], among[name][i]), (i, name)


def assert_divergence_harms_no_other(regime: str, case: FitCase) -> None:
    """The third of five models begins at infinity: it is marked and left, the others have their bits."""
    seeds = torch.arange(case.n_models)
    whole = fit_by_source(regime, case, steps=4, seed=seeds)
    poisoned = model_of(case)
    with torch.no_grad():
        next(iter(poisoned.parameters()))[2] = torch.inf
    before = next(iter(poisoned.parameters()))[2].clone()
    with device_source(regime):
        run = tk.fit(
            poisoned, data_of(case), 4, case.batch_size, optimizer=case.optimizer, seed=seeds, progress=False
        )
    assert run.diverged_at.tolist() == [-1, -1, 0, -1, -1]
    assert torch.equal(next(iter(run.model.parameters()))[2], before)
    others = torch.tensor([0, 1, 3, 4])
    assert_same_bits(run, whole, others, others)


def assert_follows_in_any_order(regime: str, n: int, m: int, p: float) -> None:
    """Two steps of a shape follow the reference, and the order of lanes and blocks changes no bit."""
    optimizer = tk.SGD(lr=0.01, momentum=0.5)
    case = FitCase("border", n, m, p, 67, n_models=2, optimizer=optimizer)
    run = fit_by_source(regime, case, steps=2)
    assert_same_bits(run, fit_by_source(regime, case, steps=2, descending=True))
    expected = reference_of(case, 2)
    for name, value in run.model.named_parameters():
        assert relative_error(value, expected.parameters[name]).max() <= TRAJECTORY, name
