"""GPUs whose blocks have 64 KiB of shared memory (sm_75), not 99: what is cut otherwise there."""

from __future__ import annotations

import pytest
import torch
from sparse_cases import DTYPES, SparseCase, problem_of
from test_device_sparse import results

import toykern as tk
from toykern import _native
from toykern.native.devices import shared_limit
from toykern.training.kernels import network_params

LESS = 64 << 10


def sparse_launches_with(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of sparse kernels on the host have so much from now on; one that takes more is an error."""
    kind = _native.SparseLaunch

    def launch(device: int, stream: int) -> object:
        made = kind(device, stream)
        assert made.shared_limit == shared_limit(torch.device("cpu"))
        made.shared_limit = limit
        return made

    monkeypatch.setattr(_native, "SparseLaunch", launch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        SparseCase("many inputs and outputs", 700, 300, 35, 0.05, relu=True),
        SparseCase("a stack", 600, 270, 33, 0.03, n_models=2),
    ],
    ids=lambda case: case.name,
)
def test_sparse_layers_have_the_same_bits_with_less(monkeypatch, case, dtype):
    """A panel is staged in more pieces, and the widest blocks of float64 have a warp less."""
    p = problem_of(case, dtype)
    expected = results(case, p, "slots")
    sparse_launches_with(LESS, monkeypatch)
    for name, tensor in results(case, p, "slots").items():
        assert torch.equal(tensor, expected[name]), name


def test_sparse_kernels_are_held_to_what_there_is(monkeypatch):
    """Those that cut nothing take 40 KiB at most, which every GPU has: with less they must not run."""
    case = SparseCase("dense", 70, 30, 35, 0.05)
    sparse_launches_with(1 << 10, monkeypatch)
    with pytest.raises(RuntimeError, match="more shared memory than there is"):
        results(case, problem_of(case, torch.float32), "dense")


def test_networks_between_the_two_go_the_large_way():
    def regime(n_features: int, *limit: int) -> str:
        return _native.cuda.regime(network_params(tk.TiedAutoencoder(n_features, 20).network), 256, *limit)

    regimes = {(regime(n), regime(n, LESS)) for n in range(50, 800, 50)}
    assert regimes == {("small", "small"), ("small", "large"), ("large", "large")}


def test_layers_between_the_two_go_the_large_way():
    def stacked(n_features: int, **limit: int) -> bool:
        return _native.layer_is_stacked(n_features, 10, True, **limit)

    ways = {(stacked(n), stacked(n, shared_limit=LESS)) for n in range(20, 400, 20)}
    assert ways == {(True, True), (True, False), (False, False)}
