"""Everything there is to find out about toykern on a GPU, in one command: `make gpu-check`.

Stages, each in a process of its own with a time limit, one after another:

    build       the native module with CUDA kernels, for the GPU that is there, in place
    proof       pytest -m gpu: the data stream's bits, parity with the float64 reference over the shared list
                of cases, bitwise repeatability, errors; an error that takes the GPU from the process costs
                that test alone, another process goes on
    memcheck    compute-sanitizer over tools/gpu_steps.py
    racecheck   likewise, for races in shared memory
    headline    bench.gpu: the three workloads with a rate to reach, beside their peers and the roof
    tests       pytest -m gpu: the other tests, of the fused layer, sparse layers and topologies
    bench       bench.gpu: the other workloads
    layer       bench.gpu.layer: the fused autoencoder layer beside eager and torch.compile
    sparse      bench.gpu.sparse: a training step of sparse layers by every back end, beside dense and masked

One JSON record in bench/results/ (gpu-<date>.json) gets the device, driver, versions, commit, and every
stage's figures as soon as it ends: a stage that fails or runs out of time loses nothing of the others. Beside
it gpu-<date>.log has everything that was said, as it comes. Last a line for each stage, the tests that failed
and the ratios are printed. README.md's table is made from the newest records by `python -m bench --readme`.

It needs nvcc, a PyTorch with CUDA, pytest, pybind11 and setuptools, and no network; JAX is a peer if it
is there, and so are compute-sanitizer and ninja used if they are.

Where a machine is lent for fifteen minutes in all, its start among them, there is time for two calls, one of
eight minutes and one of four; the folder of the results is what comes back. What matters most comes first:

    python tools/gpu_check.py --results $OUT --call first
    python tools/gpu_check.py --results $OUT --call second
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CALLS = {
    "first": ("build", "proof", "memcheck", "racecheck", "headline"),
    "second": ("build", "tests", "bench", "layer", "sparse"),
}
STAGES = tuple(dict.fromkeys(CALLS["first"] + CALLS["second"]))
BUDGETS = {"first": 465, "second": 225}  # seconds for everything; ten more are left to what starts this
SHARES = {
    "build": 80,
    "proof": 120,
    "memcheck": 50,
    "racecheck": 50,
    "headline": 200,
    "tests": 60,
    "bench": 80,
    "layer": 45,
    "sparse": 45,
}  # at most, each; the last one has what is left
NEEDED = {
    "proof": 40,
    "memcheck": 25,
    "racecheck": 25,
    "headline": 140,
    "tests": 30,
    "bench": 50,
    "layer": 30,
    "sparse": 30,
}  # kept for it by the stages before; it is not begun with less than half
TAIL = 6000  # characters of a stage's output that the record keeps
SHOWN = 1500  # and that are printed
STARTS = 12  # of pytest, at most, where processes lose their GPU
PROOF = [f"tests/test_gpu_{what}.py" for what in ("sample", "fit", "invariances", "errors")]  # in this order
GPU_TESTS = [
    "tests/test_devices.py",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_gpu_*.py")),
]
HEADLINE = ("hard", "pentagon", "twenty")  # of bench/workloads.py

Outcome = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages asked for; returns 0 if all of them passed."""
    parser = argparse.ArgumentParser(
        prog="python tools/gpu_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--call", choices=CALLS, help="what is done first, or the rest (default: everything)")
    which.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help="only these stages")
    parser.add_argument(
        "--budget",
        type=int,
        default=0,
        help=f"seconds for everything (default: of the first call {BUDGETS['first']}, of the second "
        f"{BUDGETS['second']}, else both)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args(arguments)
    if options.budget < 0:
        parser.error(f"--budget must be at least 1, or 0 for its default, not {options.budget}")
    end = time.monotonic() + (options.budget or BUDGETS.get(options.call) or sum(BUDGETS.values()))
    record = Record(options.results)
    wanted = options.only or CALLS.get(options.call, STAGES)
    wanted = [stage for stage in STAGES if stage in wanted]
    for at, stage in enumerate(wanted):
        left = end - time.monotonic()
        kept = sum(NEEDED.get(later, 0) for later in wanted[at + 1 :])
        limit = left if at + 1 == len(wanted) else min(SHARES.get(stage, left), left - kept)
        if limit < max(1, NEEDED.get(stage, 0) / 2):
            record.add(stage, {"passed": False, "skipped": f"{max(left, 0):.0f} s left of the budget"})
            continue
        if stage != "build" and record.device is None:
            record.add(stage, {"passed": False, "error": f"torch sees no GPU: {record.why}"})
            continue
        print(f"\n== {stage} (at most {limit:.0f} s)", flush=True)
        began = time.monotonic()
        try:
            outcome = _STAGES[stage](limit, record)
        except Exception as error:  # whatever breaks here must not lose the other stages
            outcome = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        outcome["seconds"] = round(time.monotonic() - began, 1)
        record.add(stage, outcome)
    print(f"\n{record.summary()}\n{record.path} and beside it, as .log, all that was said", flush=True)
    return 0 if record.passed(wanted) else 1


class Record:
    """The dated JSON file, written anew whenever something is added."""

    def __init__(self, folder: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._data: dict[str, Any] = {"date": now.isoformat(timespec="seconds"), **facts(), "stages": {}}
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"gpu-{now:%Y-%m-%dT%H%M%S}.json"
        self.log = self.path.with_suffix(".log")
        self._write()

    @property
    def device(self) -> str | None:
        """The GPU's name; None where torch sees none, and `why`."""
        return self._data.get("device")

    @property
    def why(self) -> str:
        """Why there is no device, as far as is known."""
        return str(self._data.get("why") or f"torch {self._data.get('torch')}")

    @property
    def capability(self) -> list[int] | None:
        """Of the GPU, as in [9, 0]."""
        return self._data.get("capability")

    def add(self, stage: str, outcome: Outcome) -> None:
        """Adds a stage's outcome, and says it."""
        self._data["stages"][stage] = outcome
        self._write()
        print(_line(stage, outcome), flush=True)

    def passed(self, stages: Sequence[str]) -> bool:
        """Whether all of these stages passed."""
        return all(self._data["stages"].get(stage, {}).get("passed") for stage in stages)

    def summary(self) -> str:
        """What matters in few lines: the machine, tests that failed, figures, and each stage last."""
        device, stages = self._data.get("device") or "no GPU", self._data["stages"]
        lines = [f"{device}; toykern {self._data['commit']}"]
        failed = [name for stage in ("proof", "tests") for name in stages.get(stage, {}).get("failed", [])]
        lines += [f"failed: {name}" for name in failed[:20]]
        lines += [f"and {len(failed) - 20} more"] if len(failed) > 20 else []
        for stage, outcome in stages.items():
            lines += [f"{stage}: {line}" for line in figure_lines(outcome.get("figures", {}))]
        lines += [_line(stage, outcome) for stage, outcome in stages.items()]
        return "\n".join(lines)

    def _write(self) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self._data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def _line(stage: str, outcome: Outcome) -> str:
    state = "passed" if outcome.get("passed") else "skipped" if "skipped" in outcome else "FAILED"
    why = next((str(outcome[k]) for k in ("skipped", "error", "summary") if outcome.get(k)), "")
    return f"{stage:<10} {state:<8} {outcome.get('seconds', 0):6.1f} s  {why}".rstrip()


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """A line for each workload of a bench: its ratio, what is asked, the rate and the share of the roof."""
    lines = []
    for entry in figures.get("workloads", []):
        asked = entry.get("required_ratio") or entry.get("required")
        parts = [f"{entry['ratio']:.3g}×" if "ratio" in entry else "no ratio"]
        parts += [f"asked {asked:g}×"] if asked else []
        rates = entry.get("contenders", {}).get("toykern", {}).get("tried", {}).values()
        tuned = max((rate for rate in rates if isinstance(rate, float)), default=None)
        rate = entry.get("rates", {}).get("toykern", tuned)
        parts += [f"{rate:.3g} model-steps/s"] if rate else []
        parts += [f"asked {entry['required_rate']:.2g}"] if entry.get("required_rate") else []
        if "whole" in entry and "call_seconds" in entry["whole"]:
            parts.append(f"whole {entry['whole']['call_seconds']:.1f} s")
        elif "projected_seconds" in entry:
            parts.append(f"whole {entry['projected_seconds']:.0f} s, projected")
        for share in ("issue_share", "matrix_share", "roof_share"):
            parts += [f"{entry[share]:.0%} of the roof"] if share in entry else []
        ours = {n: f for n, f in entry.get("contenders", {}).items() if n.startswith("toykern")}
        why = [f"{name}: {found['failed']}" for name, found in ours.items() if "failed" in found]
        why += [entry["failed"]] if "failed" in entry else []
        lines.append(", ".join([f"{entry['key']} {parts[0]}", *parts[1:], *(w[:200] for w in why)]))
    return lines


# What is known of the machine


def facts() -> dict[str, Any]:
    """Device, driver, CUDA, torch, commit; None where it cannot be found out, and why."""
    script = """if True:
        import json, torch
        found = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "device": None}
        if torch.cuda.is_available():
            p = torch.cuda.get_device_properties(0)
            found |= {"device": p.name, "capability": [p.major, p.minor], "memory": p.total_memory}
            found["multiprocessors"] = p.multi_processor_count
        print(json.dumps(found))
    """
    found: dict[str, Any] = {"commit": _commit(), "python": sys.version.split()[0]}
    code, output = run([sys.executable, "-c", script], 60)
    try:
        found |= json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found |= {"device": None, "torch": None, "why": output[-500:] or f"exit status {code}"}
    names = "driver_version,clocks.max.sm,clocks.max.memory,power.limit,ecc.mode.current"
    smi = shutil.which("nvidia-smi")
    if smi:
        code, output = run([smi, f"--query-gpu={names}", "--format=csv,noheader"], 30)
        if code == 0 and output.strip():
            values = [part.strip() for part in output.strip().splitlines()[0].split(",")]
            found |= dict(zip(("driver", "clock_sm", "clock_memory", "power", "ecc"), values, strict=False))
    nvcc = cuda_tool("nvcc")
    if nvcc:
        _, output = run([nvcc, "--version"], 30)
        release = re.search(r"release ([\d.]+)", output)
        found["nvcc"] = release.group(1) if release else None
    return found


def cuda_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit: on the PATH, in CUDA_HOME, or in /usr/local."""
    homes = [
        os.environ.get("CUDA_HOME", ""),
        "/usr/local/cuda",
        *sorted(glob.glob("/usr/local/cuda-*"))[::-1],
    ]
    looked_in = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(looked_in))


def _commit() -> str:
    sys.path.insert(0, str(ROOT / "tools"))
    import native_build

    return native_build.find_commit(ROOT)


# Stages


def build(limit: float, record: Record) -> Outcome:
    """The module with CUDA kernels for the GPU that is here, which takes a fraction of building for all."""
    environ = {"TOYKERN_CUDA": "1"}
    capability = record.capability
    if capability and "TOYKERN_CUDA_ARCHS" not in os.environ:
        environ["TOYKERN_CUDA_ARCHS"] = "".join(map(str, capability))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code, output = run(command, limit, environ, record.log)
    outcome: Outcome = {
        "passed": code == 0,
        "archs": environ.get("TOYKERN_CUDA_ARCHS"),
        "output": output[-TAIL:],
    }
    if code == 0:
        code, info = run([sys.executable, "-m", "toykern.info"], 60)
        outcome |= {"passed": code == 0, "info": info[-TAIL:]}
    return outcome


def tests(limit: float, record: Record, files: Sequence[str]) -> Outcome:
    """`pytest -m gpu` of these files, where a GPU that cannot be used fails tests instead of skipping them.

    A process that dies, or that has lost its GPU, is followed by another for the tests that are left.
    """
    from gpu_progress import read  # which needs pytest

    end = time.monotonic() + limit
    outputs: list[str] = []
    environ = {"TOYKERN_EXPECT_GPU": "1", "PYTHONPATH": python_path(ROOT / "tools")}
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
        command += ["--durations=10", "-p", "gpu_progress", "--progress", str(progress), *files]
        while True:
            before = len(read(progress))
            left = end - time.monotonic()
            code, output = run(command, left, environ, record.log)
            outputs.append(output)
            states = read(progress)
            over = code in (0, 1, 5, 124) or len(states) == before  # 5: none was left
            if over or len(outputs) == STARTS or end - time.monotonic() < 10:
                break
    counts = {state: list(states.values()).count(state) for state in sorted(set(states.values()))}
    summary = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no test was run"
    summary += f", {len(outputs)} processes" if len(outputs) > 1 else ""
    summary += f", exit status {code}" if code not in (0, 1, 5) else ""
    # What the limit cut off has not failed; one that hangs is seen by its being the last of every record.
    cut = [name for name, state in states.items() if state == "begun"] if code == 124 else []
    summary += f", cut off in {cut[-1]}" if cut else ""
    bad = [name for name, state in states.items() if state not in ("passed", "skipped")]
    return {
        "passed": code in (0, 5) and counts.keys() <= {"passed", "skipped"} and counts.get("passed", 0) > 0,
        "summary": summary, "counts": counts,
        "failed": [name for name in bad if name not in cut[-1:]],
        "output": "\n".join(outputs)[-TAIL:],
    }  # fmt: skip


def sanitizer(tool: str) -> Callable[[float, Record], Outcome]:
    """A stage that runs the small steps under a tool of compute-sanitizer."""

    def stage(limit: float, record: Record) -> Outcome:
        program = cuda_tool("compute-sanitizer")
        if program is None:
            return {"passed": False, "skipped": "compute-sanitizer is neither on the PATH nor in CUDA_HOME"}
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "tools/gpu_steps.py"]
        command += ["--until", str(time.time() + limit - 10)]  # what was found is said at the end only
        # torch's caching allocator would hide accesses beyond a tensor inside a larger block.
        code, output = run(command, limit, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, record.log)
        found = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: .*$", output, re.M)
        summary = found[-1].strip("= ") if found else f"exit status {code}"
        taken = re.findall(r"^\d+ of \d+ steps.*$", output, re.M)
        summary += f"; {taken[-1]}" if taken else ""
        clean = bool(found) and re.search(r"\b0 (errors|hazards)", found[-1]) is not None
        return {"passed": code == 0 and clean, "summary": summary, "output": output[-TAIL:]}

    return stage


def bench(module: str, *arguments: str) -> Callable[[float, Record], Outcome]:
    """A stage that measures; figures are written as they come, so that what there is survives the limit."""

    def stage(limit: float, record: Record) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures.json"
            command = [sys.executable, "-m", module, "--out", str(figures), "--budget", str(int(limit - 10))]
            command += arguments
            code, output = run(command, limit, log=record.log)
            outcome: Outcome = {"passed": code == 0, "output": output[-TAIL:]}
            if figures.exists():
                outcome["figures"] = json.loads(figures.read_text(encoding="utf-8"))
                outcome["summary"] = f"{len(outcome['figures']['workloads'])} workloads"
            return outcome

    return stage


_STAGES: dict[str, Callable[[float, Record], Outcome]] = {
    "build": build,
    "proof": partial(tests, files=PROOF),
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "headline": bench("bench.gpu", "--only", *HEADLINE),
    "tests": partial(tests, files=[name for name in GPU_TESTS if name not in PROOF]),
    "bench": bench("bench.gpu", "--leave-out", *HEADLINE),
    "layer": bench("bench.gpu.layer"),
    "sparse": bench("bench.gpu.sparse"),
}


def python_path(*folders: Path) -> str:
    """This checkout, then what PYTHONPATH has: packages that a machine lacks may have been brought along."""
    return os.pathsep.join(filter(None, [str(ROOT), *map(str, folders), os.environ.get("PYTHONPATH", "")]))


def run(
    command: Sequence[str], limit: float, environ: dict[str, str] | None = None, log: Path | None = None
) -> tuple[int, str]:
    """Exit status and output (both streams) of a command in the project's root.

    124 when the time limit ended it, with all the processes that it had started. With a `log`, the output is
    appended to that file as it comes, and its end is printed.
    """
    settings = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path()}
    settings |= environ or {}
    with tempfile.TemporaryFile() if log is None else log.open("ab+") as sink:
        if log is not None:
            sink.write(f"$ {' '.join(command)}\n".encode())
            sink.flush()
        sink.seek(0, os.SEEK_END)
        start = sink.tell()
        process = subprocess.Popen(
            list(command), cwd=ROOT, env=settings, start_new_session=True,
            stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(max(limit, 0.0))
        except subprocess.TimeoutExpired:
            code = 124
        finally:  # Ctrl-C too; the group has the same id as its first process
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        sink.seek(start)
        output = sink.read().decode("utf-8", errors="replace")
    if code == 124:
        output += f"\nended by the time limit of {limit:.0f} s\n"
    if log is not None:
        print(output[-SHOWN:], flush=True)
    return code, output


if __name__ == "__main__":
    sys.exit(main())
