"""What a view of a stack is saved as: its own models, whichever way it is saved, and not the stack."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import toykern as tk

STACK = 500
MODELS: dict[str, Callable[[], Any]] = {
    "tied": lambda: tk.TiedAutoencoder(50, 20, STACK, hidden_bias=True),
    "untied": lambda: tk.Autoencoder(50, 20, STACK),
    "sparse": lambda: tk.SparseTiedAutoencoder(50, 20, 0.3, n_models=STACK),
}


def size(what: Any) -> int:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return len(buffer.getvalue())


@pytest.mark.parametrize("index", [3, slice(2, 4), slice(1, 400, 200), [7, 0]], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_a_view_is_saved_without_its_stack(kind: str, index: Any) -> None:
    view = MODELS[kind]()[index]
    view.train(False)
    own = sum(t.numel() * t.element_size() for t in (*view.parameters(), *view.buffers()))
    room = own + 20_000  # names and headers
    assert size(view.state_dict()) < room and size(view) < room and len(pickle.dumps(view)) < room
    assert size(copy.deepcopy(view).state_dict()) < room
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert twin.state_dict().keys() == view.state_dict().keys() and not twin.training
        for name, value in view.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value), name
        assert [p.requires_grad for p in twin.parameters()] == [True] * len(list(twin.parameters()))


def test_a_view_still_trains_the_stack() -> None:
    stack = tk.TiedAutoencoder(5, 2, 4)
    view = stack[1]
    view.weight.requires_grad_(False)
    view.state_dict(keep_vars=True)["weight"].fill_(7.0)
    assert bool((stack.weight[1] == 7).all()) and not bool((stack.weight[0] == 7).any())
    assert [p.requires_grad for p in pickle.loads(pickle.dumps(view)).parameters()] == [False, True]
    other = tk.TiedAutoencoder(5, 2)
    view.load_state_dict(other.state_dict())
    assert torch.equal(stack.weight[1:2], other.weight)


def test_the_state_of_a_whole_stack_is_its_memory() -> None:
    stack = tk.TiedAutoencoder(5, 2, 4)
    stack.state_dict()["weight"].fill_(7.0)
    assert bool((stack.weight == 7).all())


def test_an_optimizer_copied_along_holds_the_copy_of_the_view() -> None:
    view = tk.TiedAutoencoder(5, 2, 4)[1]
    optimizer = torch.optim.SGD(view.parameters(), 0.1)
    twin, copied = copy.deepcopy((view, optimizer))
    assert [id(p) for p in copied.param_groups[0]["params"]] == [id(p) for p in twin.parameters()]
