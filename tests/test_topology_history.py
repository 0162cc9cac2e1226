"""The record of a recipe's updates: what it holds, how long it becomes, and what checkpoints make of it."""

import io

import pytest
import torch
from masked_dense import network, sparse_layer

import toykern as tk
from toykern import sparse
from toykern.sparse.history import HISTORY_LIMIT, History
from toykern.sparse.report import LayerReport, Update


def _update(number, n_models=2):
    counts = torch.arange(n_models) + number
    return Update(
        step=3 * number,
        number=number,
        drop_fraction=0.3,
        layers={
            "a": LayerReport(
                dropped=counts,
                grown=counts + 1,
                connections=counts + 2,
                density=(counts + 2).double() / 700,
                explored=counts.double() / 700,
                active_neurons=counts + 3,
                active_inputs=counts + 4,
            )
        },
        skipped=(1,) if number == 2 else (),
    )


def _same(ours, theirs):
    assert (ours.step, ours.number, ours.drop_fraction, ours.rewound_to, ours.skipped) == (
        theirs.step,
        theirs.number,
        theirs.drop_fraction,
        theirs.rewound_to,
        theirs.skipped,
    )
    for name, report in theirs.layers.items():
        for quantity, value in vars(report).items():
            kept = getattr(ours.layers[name], quantity)
            assert kept is None and value is None or (torch.equal(kept, value) and kept.dtype == value.dtype)


def test_an_update_comes_back_as_it_was():
    history = History({"a": 700})
    updates = [_update(number) for number in range(1, 5)]
    for update in updates:
        history.append(update)
    loaded = History({"a": 700}).load(history.state())
    old = History({"a": 700}).load([update.state() for update in updates])
    assert history == updates and history == loaded == old and history != updates[:3]
    assert history != [*updates[:3], _update(9)] and history != [updates[0], *updates[:3]]
    for made in (history, loaded, old):
        assert len(made) == 4 and made[-1].number == 4 and [u.number for u in made[1:3]] == [2, 3]
        for ours, theirs in zip(made, updates, strict=True):
            _same(ours, theirs)
        _same(made[-1], updates[-1])


def test_the_record_is_thinned_evenly_and_stays_small():
    history = History({"a": 700}, limit=10)
    for number in range(1, 84):
        history.append(_update(number))
        numbers = [update.number for update in history]
        assert len(numbers) <= 10 and numbers[0] == 1 and numbers[-1] == number
        assert len({b - a for a, b in zip(numbers[:-1], numbers[1:-1], strict=False)}) <= 1  # but the last
    assert numbers == [1, 17, 33, 49, 65, 81, 83]
    again = History({"a": 700}, limit=10).load(history.state())
    for number in range(84, 200):
        history.append(_update(number))
        again.append(_update(number))
    assert [u.number for u in again] == [u.number for u in history]


@pytest.mark.slow
def test_checkpoints_stay_small_and_old_ones_load():
    model = network(9, 12, 7, make=sparse_layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sparse.SET(interval=1).attach(model, optimizer)
    sizes = []
    for step in range(1, HISTORY_LIMIT + 301):
        topology.step()
        if step in (1, HISTORY_LIMIT, HISTORY_LIMIT + 300):
            file = io.BytesIO()
            torch.save(topology.state_dict(), file)
            sizes.append(len(file.getvalue()))
    assert topology.updates == HISTORY_LIMIT + 300 and len(topology.history) <= HISTORY_LIMIT
    assert (sizes[1] - sizes[0]) / HISTORY_LIMIT < 150  # bytes of two layers
    assert sizes[2] < sizes[1]
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    old = state | {"version": 1, "history": [update.state() for update in topology.history[:5]]}
    again = sparse.SET(interval=1).attach(model, optimizer)
    again.load_state_dict(old)
    assert [repr(u) for u in again.history] == [repr(u) for u in topology.history[:5]]
    again.load_state_dict(state)
    assert [repr(u) for u in again.history] == [repr(u) for u in topology.history]
    assert len(again.plot("dropped").lines) == 2


@pytest.mark.parametrize("damage", ["none", "of another layer", "cut"])
def test_a_history_of_something_else_is_refused(damage):
    model = tk.SparseLinear(20, 5, 0.3, seed=0)
    topology = sparse.SET(interval=1).attach(model, torch.optim.SGD(model.parameters(), 0.1))
    topology.step()
    state = topology.state_dict()
    history = state["history"]
    state["history"] = {
        "none": None,
        "of another layer": history | {"layers": {"other": history["layers"][""]}},
        "cut": history | {"layers": {"": history["layers"][""][:0]}},
    }[damage]
    with pytest.raises(ValueError, match="state's history is not one of these layers"):
        topology.load_state_dict(state)
    assert topology.updates == 1 and len(topology.history) == 1
