"""A dated JSON record of every figure of a bench run, with what it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measure import Timing, Tried
from bench.peers import KINDS, OURS
from bench.peers.plain_loop import compiler_version
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
        "versions": {**facts["versions"], **{name: _version(name) for name in ("numba", "occhio")}},
        "compiler": compiler_version(),
        "peaks": {"flops": peaks.flops, "random_words": peaks.random_words},
        "workloads": [],
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


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
    """One workload of a record: every contender's figures, the fastest peer of each kind, the roof."""
    entry: dict[str, Any] = {
        "name": workload.name,
        **asdict(workload),
        "contenders": {name: _timing_entry(timing) for name, timing in timings.items()},
        "roof_microseconds": count_operations(workload).microseconds(peaks),
    }
    if isinstance(timings[OURS], Timing):
        entry["roof_distance"] = timings[OURS].median / entry["roof_microseconds"]
    entry["fastest"] = {kind: fastest(entry, names) for kind, names in KINDS.items()}
    return entry


def fastest(entry: dict[str, Any], names: Iterable[str]) -> dict[str, Any] | None:
    """Of some contenders of a workload the one that takes the least wall time: its name and median, and how
    many times as long as toykern it takes, by wall and by processor time; None where none was measured."""
    measured = {
        name: entry["contenders"][name] for name in names if "median" in entry["contenders"].get(name, {})
    }
    if not measured:
        return None
    name = min(measured, key=lambda name: measured[name]["median"])
    found = {"name": name, "median": measured[name]["median"]}
    ours = entry["contenders"][OURS]
    if "median" in ours:
        found["ratio"] = found["median"] / ours["median"]
    if "processor" in ours and "processor" in measured[name]:
        processor = statistics.median(measured[name]["processor"])
        found["processor_ratio"] = processor / statistics.median(ours["processor"])
    return found


def tried_before(record: dict[str, Any]) -> dict[str, Tried]:
    """What a record's set-ups took, by workload and contender: what `bench.setups.promising` goes by."""
    return {
        entry["name"]: {name: figures.get("tried", {}) for name, figures in entry["contenders"].items()}
        for entry in record["workloads"]
    }


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
        "processor": timing.processor,
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
