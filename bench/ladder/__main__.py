"""`python -m bench.ladder`: builds, checks and times the rungs, writes a record and a plot. See `--help`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench.ladder import energy
from bench.ladder.rungs import (
    BATCH,
    CHECKED_STEPS,
    DENSITY,
    N_FEATURES,
    N_HIDDEN,
    RUNGS,
    build,
    faults,
    medians,
    run,
)
from bench.load import Watch, add_option, mark
from bench.record import head, save

ROOT = Path(__file__).resolve().parents[2]
OURS = "toykern"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ladder",
        description="Times one training step in six programs, each with one idea more than the one before, "
        "and toykern.fit beside them: processor time of one thread. Takes about two minutes.",
    )
    parser.add_argument("--models", type=int, default=64, help="models (default %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in turn (default %(default)s)")
    parser.add_argument(
        "--watts",
        type=float,
        default=5.0,
        help="assumed power of a busy core, for the energy (default %(default)s)",
    )
    parser.add_argument("--picture", type=Path, help="also draw the plot there (docs/ladder.png)")
    add_option(parser)
    options = parser.parse_args(arguments)
    for name in ("models", "steps", "rounds", "watts"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive, not {getattr(options, name)}")
    program = build(ROOT / "build" / "ladder")
    wrong = faults(run(program, "check", CHECKED_STEPS), CHECKED_STEPS)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    watch = Watch.begin(options.busy)
    taken = run(program, "time", options.models, options.steps, options.rounds)
    taken[OURS] = time_ours(options.models, 10 * options.steps, options.rounds)
    record = head(
        "nanoseconds of processor time of a model-step, one thread",
        models=options.models, steps=options.steps, watts=options.watts, workloads=[entry(taken)],
    )  # fmt: skip
    record["load"] = watch.end()
    print(render(record), mark(record))
    print(f"\nEvery figure: {save(record, 'ladder')}", file=sys.stderr)
    if options.picture:
        from bench.ladder.picture import draw

        draw(record, options.picture)
    return 0


def entry(taken: dict[str, list[float]]) -> dict[str, Any]:
    """The one line of a record."""
    return {
        "name": f"{N_FEATURES} → {N_HIDDEN}, S = {1 - DENSITY:g}, batch {BATCH:,}",
        "samples": taken,
        "nanoseconds": medians(taken),
        "erased_bits": energy.erased_bits(),
        "landauer_joules": energy.landauer_joules(),
    }


def time_ours(models: int, steps: int, rounds: int) -> list[float]:
    """toykern.fit on the same step: nanoseconds of processor time of a model-step, for each round."""
    import torch

    import toykern as tk

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(rounds + 1):
            model = tk.nn.TiedAutoencoder(N_FEATURES, N_HIDDEN, n_models=models)
            data = tk.SparseFeatures(N_FEATURES, DENSITY)
            began = time.process_time()
            tk.fit(model, data, steps=steps, batch_size=BATCH, progress=False)
            taken.append((time.process_time() - began) / (models * steps) * 1e9)
        return taken[1:]  # the first warms up
    finally:
        torch.set_num_threads(before)


def render(record: dict[str, Any]) -> str:
    """The table of docs/ladder.md."""
    (line,) = record["workloads"]
    times, bound = line["nanoseconds"], line["landauer_joules"]
    rows = [
        "| version | ns a step | gain | in all | nJ a step | times Landauer's bound |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    before = first = times[RUNGS[0].name]
    for name, idea in [*((rung.name, rung.idea) for rung in RUNGS), (OURS, "`toykern.fit`")]:
        took = times[name]
        spent = energy.joules(took, record["watts"])
        rows.append(
            f"| {idea} | {took:,.0f} | {before / took:.1f}× | {first / took:,.0f}× "
            f"| {spent * 1e9:,.1f} | {spent / bound:.0e} |"
        )
        before = took
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
