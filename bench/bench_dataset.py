"""A step on a finite dataset, full batch: the set-up of double descent (Henighan et al. 2023).

    python -m bench.bench_dataset [--features 10000] [--samples 5000] [--repeats 5]

n → 2 → n tied autoencoders, p = 0.001, samples of length 1, AdamW, at the beginning of training (half of all
outputs active) and with biases of −0.3 (few are). `tk.fit`, PyTorch eager and torch.compile take turns on the
same dataset and the same weights; medians of wall and processor time of a whole step. The roof counts the
multiply-adds of the products at the outputs, which none of them can leave out: n·T·(m + 2·m·active share),
over this machine's measured peak. Prints a table and writes a record to bench/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save

HIDDEN = 2
PROBABILITY = 0.001
LR = 1e-3

Step = Callable[[], Any]


def fit_step(data: tk.Dataset, bias: float, steps: int) -> Step:
    """`steps` steps of `tk.fit`, from the same start each time."""

    def run() -> None:
        model = model_of(data, bias)
        tk.fit(model, data, steps, optimizer=tk.AdamW(lr=LR), loss_reduction="sum", progress=False)

    return run


def torch_step(data: tk.Dataset, bias: float, steps: int, compiled: bool) -> Step:
    """The same in PyTorch, on dense rows."""
    (x,) = data.batch(0)[0]

    def loss_of(weight: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = torch.relu((x @ weight.T) @ weight + b)
        return (x - y).square().sum(1).mean()

    function = torch.compile(loss_of) if compiled else loss_of

    def run() -> None:
        model = model_of(data, bias)
        weight, b = (p.detach()[0].clone().requires_grad_() for p in (model.weight, model.bias))
        optimizer = torch.optim.AdamW([weight, b], lr=LR)
        for _ in range(steps):
            optimizer.zero_grad()
            function(weight, b).backward()
            optimizer.step()

    return run


def model_of(data: tk.Dataset, bias: float) -> Any:
    """The model at its start."""
    model = tk.TiedAutoencoder(data.n_features, HIDDEN)
    with torch.no_grad():
        model.bias.fill_(bias)
    return model


def measure(data: tk.Dataset, bias: float, repeats: int, compiled: bool) -> dict[str, Any]:
    """A line of the table: milliseconds a step of each, every repeat."""
    few, many = 2, 8
    contenders = {
        "fit": (fit_step(data, bias, many), many),
        "eager": (torch_step(data, bias, few, False), few),
    }
    if compiled:
        contenders["compile"] = (torch_step(data, bias, few, True), few)
    found: dict[str, Any] = {name: {"wall": [], "processor": []} for name in contenders}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, (run, steps) in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if repeat:
                found[name]["wall"].append(1e3 * (time.perf_counter() - wall) / steps)
                found[name]["processor"].append(1e3 * (time.process_time() - processor) / steps)
    return {"name": f"bias {bias:g}", "bias": bias, **found, "active": active_share(data, bias)}


def active_share(data: tk.Dataset, bias: float) -> float:
    """Share of the outputs that are above 0 at the start."""
    return float((model_of(data, bias)(data.batch(0)[0]) > 0).float().mean())


def row(line: dict[str, Any], roof: float) -> str:
    """A line of the table in words; `roof` in milliseconds."""
    ours = {kind: statistics.median(line["fit"][kind]) for kind in ("wall", "processor")}
    parts = [f"{line['active']:.1%}", f"{ours['wall']:.1f} / {ours['processor']:.1f}", f"{roof:.1f}"]
    for name in ("eager", "compile"):
        if name not in line:
            parts.append("–")
            continue
        theirs = {kind: statistics.median(line[name][kind]) for kind in ours}
        ratios = " / ".join(f"{theirs[kind] / ours[kind]:.1f}" for kind in ours)
        parts.append(f"{theirs['wall']:.0f} / {theirs['processor']:.0f} ({ratios}×)")
    return "| " + " | ".join(parts) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    from toykern import _native

    threads = torch.get_num_threads()
    peak = _native.measure_fma_peak(threads) / 2  # multiply-adds a second
    stream = tk.SparseFeatures(options.features, PROBABILITY)
    data = stream.dataset(options.samples, seed=0, normalize="unit")
    record = head(
        "milliseconds of a full-batch step, wall and processor", threads=threads, features=options.features,
        samples=options.samples, hidden=HIDDEN, multiply_adds_per_second=peak, workloads=[],
    )  # fmt: skip
    print("| active outputs | fit, ms | roof, ms | eager, ms | torch.compile, ms |")
    print("|---|---|---|---|---|")
    for bias in (0.0, -0.3):
        line = measure(data, bias, options.repeats, not options.no_compile)
        products = options.features * options.samples * HIDDEN * (1 + 2 * line["active"])
        line["roof"] = 1e3 * products / peak
        record["workloads"].append(line)
        print(row(line, line["roof"]), flush=True)
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        print(f"Every figure: {save(record, 'dataset')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
