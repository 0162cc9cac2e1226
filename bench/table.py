"""The bench's tables in Markdown: all of them in docs/benchmarks.md, the first one in the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.load import mark
from bench.peers import NOTEBOOK, OURS, PEERS, PLAIN

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- bench: begin (written by `python -m bench --readme`) -->"
END = "<!-- bench: end -->"

_TITLES = {
    OURS: "toykern",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "jax": "JAX",
    NOTEBOOK: "PyTorch eager",
    "plain_compile": "torch.compile",
    "plain_jax": "JAX",
}


def render(record: dict[str, Any]) -> str:
    """The table, a line on what it was measured on, and each peer's winning set-up."""
    header = [
        "workload",
        "toykern",
        "best plain peer",
        "ratio",
        "best tuned peer",
        "ratio",
        "asked for",
        "roof",
        "distance",
    ]
    rows = [_row(entry) for entry in record["workloads"]]
    parts = [markdown(header, rows), _caption(record), _every_peer(record), _setups(record)]
    return "\n\n".join(parts)


def brief(record: dict[str, Any]) -> str:
    """What the README shows: the figure of each workload, the best of each kind of peers, what those are."""
    header = ["workload", "toykern", "libraries as people use them", "ratio", "the same, tuned", "ratio"]
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
    cells = [entry["name"], f"**{_median(entry, OURS)}**"]
    for best, ratio in (("best_plain", "plain_ratio"), ("best_peer", "ratio")):
        name, value = entry[best], entry.get(ratio)
        cells.append("" if name is None else f"{_median(entry, name)} ({_TITLES[name]})")
        cells.append("" if value is None else f"{significant(value)}×")
    distance = entry.get("roof_distance")
    cells += [f"{entry['required_ratio']:g}×", significant(entry["roof_microseconds"])]
    return [*cells, "" if distance is None else f"{significant(distance)}×"]


def _every_peer(record: dict[str, Any]) -> str:
    header = ["every peer", *(f"{_TITLES[name]}, plain" for name in PLAIN)]
    header += [f"{_TITLES[name]}, tuned" for name in PEERS]
    rows = [
        [entry["name"], *(_median(entry, name) for name in (*PLAIN, *PEERS))] for entry in record["workloads"]
    ]
    return markdown(header, rows)


def _median(entry: dict[str, Any], name: str) -> str:
    figures = entry["contenders"][name]
    return "not installed" if "absent" in figures else significant(figures["median"])


def _caption(record: dict[str, Any], brief: bool = False) -> str:
    versions = record["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "jax", "optax")
        if versions.get(name) != "not installed"
    )
    repeats = {
        len(c["samples"]) for e in record["workloads"] for c in e["contenders"].values() if "samples" in c
    }
    if brief:
        return (
            "Microseconds for one step of one model, less is better; in brackets which library. As people "
            "use them: batched products, a random number for every entry, defaults. Tuned: the best "
            "of several ways in which an expert would write it with the same library, with ideas of this "
            f"project. {record['processor']}, {record['cores']} cores; {record['date'][:10]}; {packages}. "
            f"{mark(record)}"
        ).rstrip()
    return (
        "Plain: the libraries as people commonly write this (einsums, a gate and a magnitude for every "
        "entry, defaults). Tuned: the best of several set-ups of an expert (named below), of which `gaps` "
        "jumps over inactive entries as toykern does. "
        f"Microseconds per model-step, medians of {'/'.join(map(str, sorted(repeats)))} interleaved repeats. "
        f"{record['processor']}, {record['cores']} cores, {record['instruction_set']}; "
        f"{record['date'][:10]}; toykern {record['commit'] or versions['toykern']}, {packages}. "
        f"Roof: counted operations at the measured {record['peaks']['flops'] / 1e9:.0f} GFLOP/s and "
        f"{record['peaks']['random_words'] / 1e9:.1f}e9 random words a second. {mark(record)}"
    ).rstrip()


def _setups(record: dict[str, Any]) -> str:
    header = ["the tuned set-up that won", *(_TITLES[name] for name in PEERS)]
    rows = [
        [entry["name"], *(entry["contenders"][name].get("setup", "not installed") for name in PEERS)]
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
