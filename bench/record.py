"""A dated JSON record of every figure of a bench run, with what it was measured on."""

from __future__ import annotations

import datetime
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measure import Timing
from bench.peers import OURS, PEERS, PLAIN
from bench.roof import Peaks, count_operations
from bench.session import cores
from bench.workloads import Workload

RESULTS = Path(__file__).parent / "results"


def new_record(peaks: Peaks) -> dict[str, Any]:
    """A record without workloads: the machine, the date, the commit, the versions and the peaks."""
    from toykern.info import info

    facts = info()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": facts["machine"]["processor"],
        "cores": cores(),
        "instruction_set": facts["native"].get("isa_level"),
        "system": facts["machine"]["system"],
        "versions": facts["versions"],
        "peaks": {"flops": peaks.flops, "random_words": peaks.random_words},
        "workloads": [],
    }


def head(kind: str, **facts: Any) -> dict[str, Any]:
    """What the record of a bench by itself begins with: the date, what its figures are, the commit, the
    instruction set, and facts of the bench's own."""
    from toykern.info import info

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "commit": commit(),
        "instruction_set": info()["native"].get("isa_level"),
        **facts,
    }


def workload_entry(workload: Workload, timings: dict[str, Timing | str], peaks: Peaks) -> dict[str, Any]:
    """One workload of a record: every contender's figures, the ratios to the best tuned and the best
    plain peer, the roof."""
    entry: dict[str, Any] = {
        "name": workload.name,
        **asdict(workload),
        "contenders": {name: _timing_entry(timing) for name, timing in timings.items()},
        "roof_microseconds": count_operations(workload).microseconds(peaks),
    }
    medians = {name: timing.median for name, timing in timings.items() if isinstance(timing, Timing)}
    if OURS in medians:
        entry["roof_distance"] = medians[OURS] / entry["roof_microseconds"]
    for names, best, ratio in ((PEERS, "best_peer", "ratio"), (PLAIN, "best_plain", "plain_ratio")):
        peers = {name: medians[name] for name in names if name in medians}
        entry[best] = min(peers, key=peers.__getitem__) if peers else None
        if OURS in medians:
            entry[ratio] = peers[entry[best]] / medians[OURS] if peers else None
    return entry


def save(record: dict[str, Any], bench: str = "fit", results: Path = RESULTS) -> Path:
    """Writes the record to `results/<bench>/<date>.json` and returns the path.

    Of a bench and a machine the newest record is kept: older ones are removed, unless they have a line
    that it lacks.
    """
    folder = results / bench
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['date'][:19].replace(':', '')}.json"
    for older in folder.glob("*.json"):
        if older.name < path.name and _replaces(record, json.loads(older.read_text(encoding="utf-8"))):
            older.unlink()
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def newest(bench: str = "fit", results: Path = RESULTS) -> dict[str, Any]:
    """The newest record of a bench; FileNotFoundError if there is none."""
    paths = sorted((results / bench).glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no record in {results / bench}; `python -m bench` writes one")
    return json.loads(paths[-1].read_text(encoding="utf-8"))


def _replaces(record: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether a record is of the same machine as an older one, and has every line that it has."""
    machine = ("processor", "cores", "threads", "instruction_set")
    return all(record.get(key) == older.get(key) for key in machine) and _lines(older) <= _lines(record)


def _lines(record: dict[str, Any]) -> set[str]:
    """What a record has figures of: its workloads, and parts with a name of their own."""
    found = {str(w.get("key", w.get("name", w.get("shape")))) for w in _entries(record)}
    return found | {part for part in ("memory", "updates") if part in record}


def _entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record.get("workloads") or record.get("shapes") or []


def _timing_entry(timing: Timing | str) -> dict[str, Any]:
    if isinstance(timing, str):
        return {"absent": timing}
    low, high = timing.quartiles
    return {
        "median": timing.median,
        "quartiles": [low, high],
        "samples": timing.samples,
        "steps": timing.steps,
        "setup": timing.variant.label,
        "tried": timing.tried,
    }


def commit() -> str | None:
    """The checkout's commit, with `+` if files that are tracked differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
