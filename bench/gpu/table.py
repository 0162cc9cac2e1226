"""The GPU's table in Markdown, in docs/benchmarks.md, from the newest record of `make gpu-check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.load import mark
from bench.peers import OURS, PEERS, TITLES
from bench.table import PAGE, markdown, replace_between, significant

RESULTS = Path(__file__).parent.parent / "results"
BEGIN = "<!-- gpu: begin (written by `python -m bench --readme`) -->"
END = "<!-- gpu: end -->"
NOTHING = (
    "No figure has been measured on a GPU yet: `make gpu-check` measures them, checks the kernels, and "
    "writes a record from which this table is made."
)


def newest_record(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The newest record of `make gpu-check` that has figures, or None.

    Its two calls write a record each: stages that the newest lacks come from older ones of the same commit on
    the same device, newest first.
    """
    found: dict[str, Any] | None = None
    for path in sorted(folder.glob("gpu-*.json"), reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        if found is None:
            found = record if figures_of(record) else None
        elif all(record.get(key) == found.get(key) for key in ("commit", "device")):
            found["stages"] = {**record.get("stages", {}), **found["stages"]}
    return found


def figures_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of the workloads that a record has, those of the headline first; None if it has none."""
    stages = record.get("stages", {})
    found = [stages.get(name, {}).get("figures", {}) for name in ("headline", "bench")]
    found = [figures for figures in found if figures.get("workloads")]
    return {**found[0], "workloads": [w for f in found for w in f["workloads"]]} if found else None


def update_readme(record: dict[str, Any] | None, path: Path = PAGE) -> None:
    """Replaces what stands between the two comment markers; ValueError if the file lacks one of them."""
    replace_between(path, BEGIN, END, NOTHING if record is None else render(record))


def render(record: dict[str, Any]) -> str:
    """The table, and a line on what it was measured on and how the checks went."""
    figures = figures_of(record)
    if figures is None:
        raise ValueError("this record has no figures of any workload")
    checks = ", ".join(
        f"{stage} {'passed' if outcome.get('passed') else 'skipped' if 'skipped' in outcome else 'failed'}"
        for stage, outcome in record["stages"].items()
    )
    summaries = (record["stages"].get(stage, {}).get("summary") for stage in ("proof", "tests"))
    tested = "; ".join(summary for summary in summaries if summary)
    caption = (
        f"{record.get('device')}, driver {record.get('driver')}, nvcc {record.get('nvcc')}; "
        f"{record['date'][:10]}; toykern {record['commit']}, torch {record.get('torch')}"
        f"{', jax ' + figures['versions']['jax'] if figures.get('versions', {}).get('jax') else ''}. "
        f"`make gpu-check`: {checks}{f' ({tested})' if tested else ''}."
    )
    return f"{render_figures(figures)}\n\n{caption}"


def render_figures(figures: dict[str, Any]) -> str:
    """The tables of a bench: ratios and roof; every peer with its set-up."""
    entries = figures["workloads"]
    header = ["workload", "toykern", "best peer", "ratio", "asked for"]
    header += ["issue roof", "share", "arithmetic roof"]
    peers = ["peers", *(TITLES[name] for name in PEERS)]
    others = [[e["name"], *(_peer(e["contenders"].get(name, {})) for name in PEERS)] for e in entries]
    notes = [_whole(entry) for entry in entries if "projected_seconds" in entry]
    caption = (
        f"Model-steps per second, medians of {figures['repeats']} interleaved repeats on one "
        f"{figures['device']}; every contender draws a fresh batch of each model at every step. Each peer at "
        "its best number of models. Issue roof: counted warp-instructions at four per clock and "
        f"multiprocessor (bench/gpu/roof.py). {mark(figures)}"
    ).rstrip()
    rows = [_row(entry) for entry in entries]
    parts = [markdown(header, rows), " ".join([*notes, caption]), markdown(peers, others)]
    return "\n\n".join(parts)


def _row(entry: dict[str, Any]) -> list[str]:
    ours, best = entry["contenders"].get(OURS, {}), entry.get("best_peer")
    asked = [f"{entry['required_ratio']:g}×"] if entry["required_ratio"] else []
    asked += [f"{_rate(entry['required_rate'])}/s"] if entry["required_rate"] else []
    roof = entry.get("roof")
    failed = any("failed" in entry["contenders"].get(name, {}) for name in PEERS)
    others = ", of those that did not fail" if failed else ""
    return [
        entry["name"],
        f"**{_rate(ours['median'])}**" if "median" in ours else "failed",
        "" if best is None else f"{_rate(entry['rates'][best])} ({TITLES[best]}){others}",
        f"{significant(entry['ratio'])}×" if "ratio" in entry else "",
        ", ".join(asked),
        _rate(roof["issue_rate"]) if roof else "",
        f"{entry['issue_share']:.0%}" if "issue_share" in entry else "",
        _rate(roof["arithmetic_rate"]) if roof else "",
    ]


def _peer(found: dict[str, Any]) -> str:
    if "median" in found:
        return f"{_rate(found['median'])} ({found['setup']})"
    return "not installed" if "absent" in found else "failed" if "failed" in found else ""


def _whole(entry: dict[str, Any]) -> str:
    whole = entry.get("whole", {})
    if "call_seconds" in whole:
        return f"All {whole['steps']:,} steps of {entry['name']}: {whole['call_seconds']:.1f} s, measured."
    return f"All 10,000 steps of {entry['name']}: {entry['projected_seconds']:.0f} s, from the rate."


def _rate(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return significant(value)
