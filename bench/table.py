"""The bench's tables in Markdown: all of them in docs/benchmarks.md, the first one in the README."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench.load import mark
from bench.peers import KINDS, OURS, TITLES
from bench.record import fastest

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- bench: begin (written by `python -m bench --readme`) -->"
END = "<!-- bench: end -->"

_AFTER = {"plain": ", as used", "tuned": ", tuned", "loop": ""}
_HEADERS = {"plain": "libraries as people use them", "tuned": "best of an expert", "loop": "plain C++"}


def render(record: dict[str, Any]) -> str:
    """The table, a line on what it was measured on, every peer's figures, and the winning set-ups."""
    header = ["workload", "toykern"]
    for kind in KINDS:
        header += [_HEADERS[kind], "ratio"]
    header += ["asked for", "roof", "distance"]
    rows = [_row(entry) for entry in record["workloads"]]
    parts = [markdown(header, rows), _caption(record), _every_peer(record), _setups(record)]
    return "\n\n".join(parts)


def brief(record: dict[str, Any]) -> str:
    """What the README shows: the figure of each workload, the best of each kind of peers, what those are."""
    header = ["workload", "toykern"]
    for kind in KINDS:
        header += [_HEADERS[kind], "ratio"]
    rows = [_row(entry)[: len(header)] for entry in record["workloads"]]
    return f"{markdown(header, rows)}\n\n{_caption(record, brief=True)}"


def update_readme(record: dict[str, Any], path: Path = README, page: Path = PAGE) -> None:
    """Replaces what stands between the two comment markers, here and there; ValueError if a file lacks one of
    them."""
    replace_between(path, BEGIN, END, brief(record))
    replace_between(page, BEGIN, END, render(record))


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two lines of a file; ValueError if it lacks one of them."""
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path.name} must contain the lines {begin!r} and {end!r}, in this order")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _row(entry: dict[str, Any]) -> list[str]:
    cells = [entry["name"], f"**{significant(entry['contenders'][OURS]['median'])}**"]
    for names in KINDS.values():
        best = fastest(entry, names)
        cells.append("" if best is None else f"{significant(best['median'])} ({TITLES[best['name']]})")
        cells.append("" if best is None else _ratio(best))
    asked = entry["required_ratio"]
    cells += ["" if asked is None else f"{asked:g}×", significant(entry["roof_microseconds"])]
    return [*cells, f"{significant(entry['roof_distance'])}×"]


def _ratio(best: dict[str, Any]) -> str:
    """By wall time / by processor time: two digits are what a measurement is good for."""
    ratios = [f"{float(f'{best[key]:.2g}'):g}×" for key in ("ratio", "processor_ratio") if key in best]
    return " / ".join(ratios)


def _every_peer(record: dict[str, Any]) -> str:
    header = ["wall / processor", TITLES[OURS]]
    header += [f"{TITLES[name]}{_AFTER[kind]}" for kind, names in KINDS.items() for name in names]
    everyone = [OURS, *(name for names in KINDS.values() for name in names)]
    rows = [[entry["name"], *(_both(entry, name) for name in everyone)] for entry in record["workloads"]]
    return markdown(header, rows)


def _both(entry: dict[str, Any], name: str) -> str:
    figures = entry["contenders"].get(name, {"absent": "not measured"})
    if "absent" in figures:
        return "failed" if figures["absent"].startswith("failed") else "not installed"
    wall = significant(figures["median"])
    return f"{wall} / {significant(median(figures['processor']))}" if "processor" in figures else wall


def _caption(record: dict[str, Any], brief: bool = False) -> str:
    versions = record["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "jax", "optax", "numba", "occhio")
        if versions.get(name, "not installed") != "not installed"
    )
    compiler = f", {record['compiler']}" if record.get("compiler") else ""
    repeats = {
        len(c["samples"]) for e in record["workloads"] for c in e["contenders"].values() if "samples" in c
    }
    if brief:
        return (
            "Microseconds for one step of one model, less is better; in brackets which; ratios by wall / "
            "by processor time. As people use them: batched products, a random number for every entry, "
            "defaults. Best of an expert: of several ways to write it with the same libraries, with ideas of "
            "this project. Plain C++: a hundred lines of loops, an afternoon's work of a good student, "
            f"compiled for each shape. {record['processor']}, {record['cores']} cores; "
            f"{record['date'][:10]}; {packages}. "
            f"{mark(record)}"
        ).rstrip()
    return (
        "Microseconds per model-step; ratios by wall time / by processor time of all cores. Libraries as "
        "people use them: einsums, a gate and a magnitude for every entry, defaults. Best of an expert: the "
        "best of several set-ups of the same libraries (named below), of which `gaps` jumps over inactive "
        "entries. Plain C++: what a good student writes in an afternoon, the faster of C++ and numba: one "
        "model and one sample after another, jumps over inactive entries, a process per core. Asked for: of "
        "the fastest of all peers, by wall time. "
        f"Medians of {'/'.join(map(str, sorted(repeats)))} interleaved repeats. "
        f"{record['processor']}, {record['cores']} cores, {record['instruction_set']}{_others(record)}; "
        f"{record['date'][:10]}; toykern {record['commit'] or versions['toykern']}, {packages}{compiler}. "
        "Roof: counted operations, each product in its cheapest known form, at the measured "
        f"{record['peaks']['flops'] / 1e9:.0f} GFLOP/s and "
        f"{record['peaks']['random_words'] / 1e9:.1f}e9 random words a second. {mark(record)}"
    ).rstrip()


def _others(record: dict[str, Any]) -> str:
    """How much of a quiet machine others used meanwhile; a busy one has its mark."""
    load = record.get("load")
    if not load or load["busy"] or load["others"] is None:
        return ""
    return f", of which other programs used {load['others']:.2f}"


def _setups(record: dict[str, Any]) -> str:
    names = [*KINDS["tuned"], "cpp"]
    header = ["the set-up that won", *(TITLES[name] for name in names)]
    rows = [
        [entry["name"], *(entry["contenders"].get(name, {}).get("setup", "–") for name in names)]
        for entry in record["workloads"]
    ]
    return markdown(header, rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def significant(value: float) -> str:
    """Three significant digits, no exponent: 0.0512, 3.14, 1230."""
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
