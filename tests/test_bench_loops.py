"""The bench of the forms of the CPU's step: a forced form is taken, trains the same, and is let go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import toykern as tk
from bench import bench_loops
from bench.bench_loops import PICKED, Cell, forced, forms_of, taken
from toykern import _native

SMALL = Cell(20, 5, 0.97, 64)


@pytest.mark.parametrize(
    "cell, forms",
    [
        (SMALL, ["columns", "tiles", "gram"]),
        (Cell(150, 3, 0.98, 64), ["columns", "tiles", "gram"]),  # more weights than columns are picked for
        (Cell(150, 3, 0.5, 64), ["columns", "tiles"]),  # frequent features have no list of entries
        (Cell(20, 9, 0.5, 64), ["tiles"]),
        (Cell(20, 9, 0.97, 64), ["tiles", "gram"]),
    ],
    ids=lambda value: value.key if isinstance(value, Cell) else "",
)
def test_every_form_of_a_cell_trains_the_same(cell: Cell, forms: list[str]) -> None:
    assert set(forms) <= set(forms_of(cell))
    weights = {}
    for form in [PICKED, *forms_of(cell)]:
        model = cell.model()
        with forced(form):
            tk.fit(model, cell.data(), 30, cell.batch_size, tk.Adam(lr=1e-2), progress=False)
        weights[form] = model.weight.detach().clone()
    for form in forms_of(cell):
        torch.testing.assert_close(weights[form], weights[PICKED], rtol=2e-4, atol=2e-5)
    assert torch.equal(weights[taken(cell, PICKED)], weights[PICKED])


def test_a_sample_in_which_every_feature_is_active_fits_the_columns() -> None:
    """Rare features that come together, more of them than a group of columns otherwise holds."""
    n = 200
    data = tk.SparseFeatures(n, 0.05, groups=[tk.Correlated(range(n))])
    weights = []
    for form in ("columns", "tiles"):
        model = tk.TiedAutoencoder(n, 2, seed=0)
        with forced(form):
            network = bench_loops.network_params(model.network)
            assert _native.train_form(network, data.native(), 1, 100, 0) == form
            tk.fit(model, data, 20, 100, tk.Adam(lr=1e-3), progress=False)
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_a_form_is_forced_by_name_and_let_go() -> None:
    with pytest.raises(ValueError, match="not rows"):
        _native.force_form("rows")
    with pytest.raises(RuntimeError, match="in between"), forced("tiles"):
        assert taken_now() == "tiles"
        raise RuntimeError("in between")
    assert taken_now() == taken(SMALL, PICKED)


def taken_now() -> str:
    network, data = bench_loops.network_params(SMALL.model().network), SMALL.data()
    return _native.train_form(network, data.native(), 1, SMALL.batch_size, 0)


def test_a_line_says_how_far_the_picked_form_is_from_the_best() -> None:
    line = bench_loops.measure(SMALL, repeats=1, seconds=0.0)
    assert line["picked"] in line["microseconds"] and line["over_the_best"] >= 1
    made: dict[str, Any] = {
        "key": "a", "picked": "tiles", "best": "columns", "microseconds": {"columns": [2.0], "tiles": [3.0]},
        "over_the_best": 1.5,
    }  # fmt: skip
    good = made | {"key": "b", "over_the_best": 1.2}
    text = bench_loops.render([made, good], every=False)
    assert text.startswith("1 of 2 lines") and "| b |" not in text
    assert "| a | 2 | 3 |" in text and text.endswith("| tiles | 1.50 |")
    assert "| b |" in bench_loops.render([made, good], every=True)
