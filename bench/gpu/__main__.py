"""`python -m bench.gpu`: measures every workload on the GPU beside its peers. See `--help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.roof import bounds
from bench.gpu.table import render_figures
from bench.gpu.worker import Worker
from bench.load import Watch
from bench.peers import OURS, PEERS, why_absent
from bench.workloads import GPU_WORKLOADS, HARD_STEPS, Workload

CONTENDERS = (OURS, *PEERS)

REPEATS = 5
START = 40.0  # seconds that a process may take to import its library and to begin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Times toykern.fit on the GPU beside PyTorch eager, torch.compile with CUDA graphs, and "
        "JAX, each at its best number of models, and prints the table with the roof.",
    )
    parser.add_argument("--budget", type=int, default=600, help="seconds in all (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each figure (default %(default)s)")
    keys = [w.key for w in GPU_WORKLOADS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="only these workloads")
    parser.add_argument("--leave-out", nargs="+", choices=keys, default=(), help="all but these")
    parser.add_argument("--out", type=Path, help="a JSON file for every figure, written as they come")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the bench itself"
    )
    parser.add_argument("--most", type=int, help="models of any contender, at most (to try the bench)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    workloads = [w for w in GPU_WORKLOADS if w.key in options.only and w.key not in options.leave_out]
    watch = Watch.begin(
        insist=True
    )  # on a GPU the record is marked, not refused: its machine is lent by minutes
    end = time.monotonic() + options.budget
    figures: dict[str, Any] = {**device_facts(options.device), "repeats": options.repeats, "workloads": []}
    workers = {name: Worker(name, options.device) for name in CONTENDERS if why_absent(name) is None}
    try:
        for at, workload in enumerate(workloads):
            share = (end - time.monotonic()) / (len(workloads) - at)
            entry = new_entry(workload, figures)
            figures["workloads"].append(entry)
            if share < 0:
                entry["failed"] = "no time was left"
                continue
            print(f"{workload.name} …", file=sys.stderr, flush=True)
            for _ in measure(workload, workers, entry, share, options.repeats, options.most):
                write(figures, options.out)
            conclude(entry)
            write(figures, options.out)
            print(json.dumps(entry["rates"]), file=sys.stderr, flush=True)
        run_whole(workers[OURS], workloads, figures, end)
        write(figures, options.out)
    finally:
        for worker in workers.values():
            worker.close()
    figures["load"] = watch.end()
    write(figures, options.out)
    print(render_figures(figures))
    ours = [entry["contenders"].get(OURS, {}) for entry in figures["workloads"]]
    return 0 if ours and all("median" in found for found in ours) else 1


def device_facts(device: str) -> dict[str, Any]:
    """What the roof needs to know of the device, and what clock it was measured at."""
    if device == "cpu":
        return {"device": "cpu", "multiprocessors": 1, "clock_hz": 1e9, "clock": "made up, for a trial"}
    import torch

    from toykern.native.devices import check_kernels

    check_kernels("cuda")
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "clock_rate", None)  # kHz, at most; newer versions of torch know it
    if not clock:
        import shutil
        import subprocess

        smi = shutil.which("nvidia-smi")
        query = [smi, "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True).stdout if smi else ""
        clock = float(answer.split()[0]) * 1e3 if answer.split() else None
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "clock_hz": clock * 1e3 if clock else None,
        "clock": "the highest of the multiprocessors",
        "versions": {name: _version(name) for name in ("torch", "jax", "numpy")},
    }


def new_entry(workload: Workload, figures: dict[str, Any]) -> dict[str, Any]:
    """A workload's part of the figures, without any yet."""
    entry: dict[str, Any] = {
        "key": workload.key, "name": workload.name, "n_models": workload.n_models,
        "n_features": workload.n_features, "n_hidden": workload.n_hidden,
        "batch_size": workload.batch_size, "sparsity": workload.sparsity,
        "required_ratio": workload.required_ratio, "required_rate": workload.required_rate,
        "contenders": {}, "rates": {},
    }  # fmt: skip
    if figures["clock_hz"]:
        entry["roof"] = bounds(workload, figures["multiprocessors"], figures["clock_hz"])
    return entry


def measure(
    workload: Workload, workers: dict[str, Worker], entry: dict[str, Any], seconds: float, repeats: int,
    most: int | None,
) -> Iterator[None]:  # fmt: skip
    """Tunes every contender, then times all in turn; what fails says why, and the others go on.

    Yields whenever there is something new to write.
    """
    began, found = time.monotonic(), entry["contenders"]
    for name in CONTENDERS:
        if name not in workers:
            found[name] = {"absent": why_absent(name) or ""}
    repeating = repeats * len(workers) * 0.6
    for at, (name, worker) in enumerate(workers.items()):
        left = seconds - repeating - (time.monotonic() - began)
        wanted = max(2.0, left / (len(workers) - at) - 3.0)
        result, why = worker.call("tune", workload, wanted, most, limit=3 * wanted + START)
        found[name] = {**result, "samples": []} if why is None else {"failed": why}
        yield
    for _ in range(repeats):
        for name, worker in workers.items():
            if "failed" in found[name]:
                continue
            result, why = worker.call("repeat", limit=START)
            if why is not None:
                found[name] = {"failed": why, "before": found[name]}
                continue
            found[name]["samples"].append(result["rate"])
            if "call_seconds" in result:
                found[name]["call_seconds"] = result["call_seconds"]
        yield
    if workload.key == "hard" and found.get(OURS, {}).get("samples"):
        entry["projected_seconds"] = workload.n_models * HARD_STEPS / float(np.median(found[OURS]["samples"]))
    for worker in workers.values():  # the memory is wanted, and the device to whoever is next
        worker.call("drop", limit=START)


def run_whole(worker: Worker, workloads: Sequence[Workload], figures: dict[str, Any], end: float) -> None:
    """The phase diagram in full, where it takes less than 80 s and there is the time for it."""
    for workload, entry in zip(workloads, figures["workloads"], strict=True):
        projected = entry.get("projected_seconds")
        if projected is None or figures["device"] == "cpu":
            continue
        if projected > min(80.0, end - time.monotonic() - 15.0):
            entry["whole"] = {"left_out": "it would take too long"}
            continue
        result, why = worker.call("whole", workload, HARD_STEPS, limit=3 * projected + START)
        entry["whole"] = result if why is None else {"failed": why}


def conclude(entry: dict[str, Any]) -> None:
    """Medians, the best peer, the ratio, the share of the roof."""
    for name, found in entry["contenders"].items():
        if found.get("samples"):
            low, middle, high = np.quantile(found["samples"], (0.25, 0.5, 0.75))
            found |= {"median": float(middle), "quartiles": [float(low), float(high)]}
            entry["rates"][name] = float(middle)
    peers = {name: rate for name, rate in entry["rates"].items() if name in PEERS}
    ours = entry["rates"].get(OURS)
    entry["best_peer"] = max(peers, key=peers.__getitem__) if peers else None
    if ours and peers:
        entry["ratio"] = ours / peers[entry["best_peer"]]
    if ours and "roof" in entry:
        for bound in ("issue", "arithmetic"):
            entry[f"{bound}_share"] = ours / entry["roof"][f"{bound}_rate"]


def write(figures: dict[str, Any], path: Path | None) -> None:
    """Replaces the file at once, so that it is whole whenever this process is ended."""
    if path is None:
        return
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
