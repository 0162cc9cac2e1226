"""Whether the CPU's trainer picks the right form of the step: all that a shape can take, on a grid of shapes.

    python -m bench.bench_loops [--all] [--only 20,10 64,2] [--repeats 5]

One thread, processor time, the forms in turn: a busy machine disturbs all of them alike. A line is one shape
with one density and batch; shown are those where the form that is picked takes more than `LIMIT` times the
best one's time (`--all`: every line). Writes a record to bench/results/.

A form is forced by `toykern._native.force_form(name)`, which holds for the process until
`force_form("any")`; `forced` is the same as a context. What a model takes in the end, `train_form` says: a
form that cannot take it (the columns more than eight hidden units, the Gram form frequent features) leaves it
to another one, and the line has no figure there.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save
from bench.table import markdown, significant
from toykern import _native
from toykern.training.kernels import network_params

LIMIT = 1.25  # times the best form's time
SECONDS = 0.03  # of processor time at least, for each repeat of a form
PICKED = "any"
FORMS = ("columns", "tiles", "gram")
SHAPES = (
    (2, 1), (5, 2), (16, 8), (20, 5), (24, 8), (64, 2), (65, 2), (64, 4), (100, 5), (128, 1), (200, 2),
    (20, 10), (40, 8), (40, 20), (80, 20), (80, 40), (200, 20), (400, 30),
)  # fmt: skip
SPARSITIES = (0.999, 0.99, 0.97, 0.9, 0.5, 0.0)
BATCHES = (128, 1024)


@dataclass(frozen=True)
class Cell:
    """A place of the grid: tied autoencoders n → m → n, S, samples of a batch."""

    n_features: int
    n_hidden: int
    sparsity: float
    batch_size: int
    n_models: int = 2

    @property
    def key(self) -> str:
        return f"{self.n_features} → {self.n_hidden}, S = {self.sparsity:g}, batch {self.batch_size}"

    def data(self) -> tk.SparseFeatures:
        return tk.SparseFeatures(self.n_features, round(1.0 - self.sparsity, 12))

    def model(self) -> tk.TiedAutoencoder:
        return tk.TiedAutoencoder(self.n_features, self.n_hidden, self.n_models, seed=0)


@contextlib.contextmanager
def forced(form: str) -> Iterator[None]:
    """All models that can take a form take it; the choice is the kernels' own again afterwards."""
    _native.force_form(form)
    try:
        yield
    finally:
        _native.force_form(PICKED)


def taken(cell: Cell, form: str) -> str:
    """Which form the cell's models take while `form` is forced."""
    network, data = network_params(cell.model().network), cell.data()  # whose memory the kernels look at
    with forced(form):
        return _native.train_form(network, data.native(), cell.n_models, cell.batch_size, 0)


def forms_of(cell: Cell) -> list[str]:
    """The forms that a cell can take."""
    return [form for form in FORMS if taken(cell, form) == form]


def measure(cell: Cell, repeats: int, seconds: float = SECONDS) -> dict[str, Any]:
    """A line: which form is picked, and microseconds of processor time per model-step of all."""
    forms, model, data = forms_of(cell), cell.model(), cell.data()
    steps = dict.fromkeys(forms, 1)

    def spent(form: str) -> float:
        with forced(form):
            began = time.process_time()
            tk.fit(
                model, data, steps[form], cell.batch_size, tk.Adam(lr=1e-3), record_every=steps[form],
                progress=False,
            )  # fmt: skip
            return time.process_time() - began

    for form in forms:
        while (took := spent(form)) < seconds / 4:
            steps[form] *= 4
        steps[form] = max(1, int(steps[form] * seconds / took))
    figures: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(repeats):
        for form in forms:
            figures[form].append(spent(form) / steps[form] / cell.n_models * 1e6)
    picked = taken(cell, PICKED)
    medians = {form: statistics.median(values) for form, values in figures.items()}
    best = min(medians, key=medians.__getitem__)
    return {
        "key": cell.key, "picked": picked, "best": best, "microseconds": figures,
        "over_the_best": medians[picked] / medians[best],
    }  # fmt: skip


def render(lines: list[dict[str, Any]], every: bool) -> str:
    """The lines over the limit, or all, the worst first; and how many there are."""
    shown = sorted((line for line in lines if every or line["over_the_best"] > LIMIT), key=_worst_first)
    rows = [
        [line["key"], *(_cell(line, form) for form in FORMS), line["picked"], f"{line['over_the_best']:.2f}"]
        for line in shown
    ]
    over = sum(line["over_the_best"] > LIMIT for line in lines)
    told = (
        f"{over} of {len(lines)} lines: the form that is picked takes over {LIMIT} times the best one's time."
    )
    table = markdown(["µs per model-step, one thread", *FORMS, "picked", "over the best"], rows)
    return f"{told}\n\n{table}" if rows else told


def _worst_first(line: dict[str, Any]) -> float:
    return -line["over_the_best"]


def _cell(line: dict[str, Any], form: str) -> str:
    values = line["microseconds"].get(form)
    return "" if values is None else significant(statistics.median(values))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_loops", description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="show every line, not only those over the limit")
    parser.add_argument(
        "--only", nargs="+", metavar="N,M", help="only these shapes, which need not be listed"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of each form (default %(default)s)")
    add_option(parser)
    options = parser.parse_args(arguments)
    shapes = SHAPES
    if options.only:
        shapes = tuple((int(n), int(m)) for n, m in (shape.split(",") for shape in options.only))
    watch = Watch.begin(options.busy)
    torch.set_num_threads(1)
    lines = []
    for n, m in shapes:
        print(f"{n} → {m} …", file=sys.stderr, flush=True)
        for sparsity in SPARSITIES:
            lines += [measure(Cell(n, m, sparsity, batch), options.repeats) for batch in BATCHES]
    record = head("loops", limit=LIMIT, threads=1, workloads=lines, load=watch.end())
    print(render(lines, options.all), mark(record), sep="\n\n")
    if not options.only:
        print(f"\nEvery figure: {save(record, 'loops')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
