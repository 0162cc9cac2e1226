"""The bench's table in Markdown, and the README's copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers import NOTEBOOK, OURS, PEERS

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- bench: begin (written by `python -m bench --readme`) -->"
END = "<!-- bench: end -->"

_TITLES = {
    OURS: "toykern",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "jax": "JAX",
    NOTEBOOK: "eager, as in the notebooks",
}
_SHOWN = (OURS, *PEERS, NOTEBOOK)


def render(record: dict[str, Any]) -> str:
    """The table, a line on what it was measured on, and each peer's winning set-up."""
    header = [
        "workload",
        *(_TITLES[name] for name in _SHOWN),
        "ratio to the best peer",
        "required",
        "roof",
        "distance",
    ]
    rows = [_row(entry) for entry in record["workloads"]]
    return "\n".join([_markdown(header, rows), "", _caption(record), "", _setups(record)])


def update_readme(record: dict[str, Any], path: Path = README) -> None:
    """Replaces what stands between the two comment markers; ValueError if the file lacks one of them."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path.name} must contain the lines {BEGIN!r} and {END!r}, in this order")
    path.write_text(f"{before}{BEGIN}\n{render(record)}\n{END}{after}", encoding="utf-8")


def _row(entry: dict[str, Any]) -> list[str]:
    contenders = entry["contenders"]
    cells = [entry["name"]]
    for name in _SHOWN:
        figures = contenders[name]
        text = "not installed" if "absent" in figures else _figure(figures["median"])
        cells.append(f"**{text}**" if name in (OURS, entry["best_peer"]) else text)
    ratio, distance = entry.get("ratio"), entry.get("roof_distance")
    cells.append("" if ratio is None else f"{_figure(ratio)}×")
    cells.append(f"{entry['required_ratio']:g}×")
    cells.append(_figure(entry["roof_microseconds"]))
    cells.append("" if distance is None else f"{_figure(distance)}×")
    return cells


def _caption(record: dict[str, Any]) -> str:
    versions = record["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "jax", "optax")
        if versions.get(name) != "not installed"
    )
    repeats = {
        len(c["samples"]) for e in record["workloads"] for c in e["contenders"].values() if "samples" in c
    }
    return (
        f"Microseconds per model-step, medians of {'/'.join(map(str, sorted(repeats)))} interleaved repeats. "
        f"{record['processor']}, {record['cores']} cores, {record['instruction_set']}; "
        f"{record['date'][:10]}; toykern {record['commit'] or versions['toykern']}, {packages}. "
        f"Roof: counted operations at the measured {record['peaks']['flops'] / 1e9:.0f} GFLOP/s and "
        f"{record['peaks']['random_words'] / 1e9:.1f}e9 random words a second."
    )


def _setups(record: dict[str, Any]) -> str:
    header = ["the set-up that won", *(_TITLES[name] for name in PEERS)]
    rows = [
        [entry["name"], *(entry["contenders"][name].get("setup", "not installed") for name in PEERS)]
        for entry in record["workloads"]
    ]
    return _markdown(header, rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _figure(value: float) -> str:
    """Three significant digits, no exponent: 0.0512, 3.14, 1230."""
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
