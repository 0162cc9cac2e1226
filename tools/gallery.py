"""The gallery of experiments: a page for each from what `toykern experiment` recorded, and an index of them.

    toykern experiment NAME --out docs/gallery/NAME.png --summary docs/gallery/NAME.json --overwrite
    python tools/gallery.py            writes docs/gallery/NAME.md of every record, and docs/gallery.md
    python tools/gallery.py --check    says which of them are not what it would write

Nothing on a page is typed by hand: what an experiment is comes from its module, what came out of it from the
record beside its picture. A second run with other settings, NAME--WORD.json and its picture, is shown below
the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toykern import experiments

ROOT = Path(__file__).resolve().parent.parent
FOLDER, INDEX = ROOT / "docs" / "gallery", ROOT / "docs" / "gallery.md"
WIDTH = 120
VERDICTS = {True: "yes", False: "**no**", None: "cannot tell"}

BEGINNING = """\
# Gallery of experiments

Experiments of the literature, trained from scratch by one command each, with what came out beside what was
published. `toykern experiment --list` names them, `toykern experiment NAME --describe` says what may be set,
and `--quick` runs a version of seconds. From Python: `toykern.experiments.run("intro-polygons", quick=True)`.
This page and those that it leads to are written by `tools/gallery.py` from the records in `docs/gallery`.

"""


def recorded() -> list[str]:
    """The experiments that have a record, in the order of the registry."""
    return [name for name in experiments.names() if (FOLDER / f"{name}.json").exists()]


def second_runs(name: str) -> dict[str, dict[str, Any]]:
    """Records of further runs of an experiment, by the names of their files."""
    return {path.stem: record_of(path.stem) for path in sorted(FOLDER.glob(f"{name}--*.json"))}


def record_of(name: str) -> dict[str, Any]:
    """What was recorded of an experiment, or of a further run of it."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def command_of(name: str, record: Mapping[str, Any]) -> str:
    """The command line that the record was made by, but for where the results went."""
    experiment = experiments.get(name)
    base = experiment.quick if record["quick"] else experiment.settings
    words = ["toykern experiment", name] + (["--quick"] if record["quick"] else [])
    for setting, value in record["settings"].items():
        before = getattr(base, setting)
        if value != (list(before) if isinstance(before, tuple) else before):
            words.append(f"--set {setting}={_text(value)}")
    return " ".join(words)


def page_of(name: str, record: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of one experiment: its run, and others by their files' names."""
    experiment = experiments.get(name)
    lines = [
        f"# {experiment.title}",
        "",
        _filled(experiment.source + "."),
        "",
        _filled(experiment.summary),
        "",
        *_run_of(name, name, record),
    ]
    for file, other in others.items():
        lines += ["", f"## Another run: {file.partition('--')[2].replace('-', ' ')}", ""]
        lines += _run_of(name, file, other)
    return "\n".join(lines) + "\n"


def _run_of(name: str, file: str, record: Mapping[str, Any]) -> list[str]:
    """The lines of a run: picture, command, outcomes, settings."""
    lines = [f"![{experiments.get(name).title}]({file}.png)", ""]
    lines += ["```sh", command_of(name, record), "```", ""]
    processor, wall = record["processor_seconds"], _time(record["seconds"])
    spent = f"{processor:,.0f} s of processor time, {wall} beside other work"
    lines += [f"{record['models']:,} networks, {spent}." if record["models"] else f"{spent}.", ""]
    if record.get("remark"):  # put there by hand: what a run of the published size would take
        lines += [_filled(record["remark"]), ""]
    lines += ["| what | published | seen | agrees |", "|---|---|---|---|"]
    notes = []
    for outcome in record["outcomes"]:
        verdict = VERDICTS[outcome["agrees"]]
        if outcome["note"]:
            notes.append(outcome["note"])
            verdict += f" ({len(notes)})"
        cells = (outcome["what"], outcome["published"], outcome["seen"], verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for number, note in enumerate(notes, 1):
        lines += ["", _filled(f"({number}) {note}")]
    lines += ["", "Settings:", ""]
    return lines + [f"* `{setting}` = {_text(value)}" for setting, value in record["settings"].items()]


def index_of(names: list[str]) -> str:
    """The page that leads to all of them."""
    lines = []
    for name in names:
        experiment, record = experiments.get(name), record_of(name)
        agreeing = sum(outcome["agrees"] is True for outcome in record["outcomes"])
        judged = sum(outcome["agrees"] is not None for outcome in record["outcomes"])
        lines += [f"## [{experiment.title}](gallery/{name}.md)", ""]
        lines += [f'<img src="gallery/{name}.png" alt="{experiment.title}" width="480">', ""]
        lines += [_filled(experiment.summary), ""]
        lines += [_filled(f"{experiment.source}. {agreeing} of {judged} outcomes agree."), ""]
    return BEGINNING + "\n".join(lines).rstrip() + "\n"


def _filled(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> int:
    """Write the pages, or with --check name those that differ."""
    parser = argparse.ArgumentParser(description="Write the gallery of experiments.")
    parser.add_argument("--check", action="store_true", help="write nothing; name what is not up to date")
    check = parser.parse_args().check
    wanted = {FOLDER / f"{name}.md": page_of(name, record_of(name), second_runs(name)) for name in recorded()}
    wanted[INDEX] = index_of(recorded())
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is not what tools/gallery.py writes", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
