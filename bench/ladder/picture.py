"""The plot of docs/ladder.md: what each idea gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.ladder.rungs import RUNGS


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws the times of a record's rungs, and toykern's as a line, on a logarithmic axis."""
    from matplotlib.figure import Figure

    (line,) = record["workloads"]
    times = line["nanoseconds"]
    labels = [rung.idea for rung in RUNGS]
    values = [times[rung.name] for rung in RUNGS]
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(labels, values, color="#0072B2", height=0.62)
    axes.bar_label(bars, [f"{value:,.0f} ns" for value in values], padding=4)
    axes.axvline(
        times["toykern"], color="#D55E00", linewidth=1.5, label=f"toykern.fit: {times['toykern']:,.0f} ns"
    )
    axes.legend(loc="lower right", frameon=False)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 3)
    axes.invert_yaxis()
    axes.set_xlabel("processor time of one step of one model, ns (one thread)")
    axes.set_title(line["name"], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
