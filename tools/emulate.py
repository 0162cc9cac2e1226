"""The GPU tests without a GPU, on an emulator of PTX: `make emulate`, `make emulate-all`.

The emulator lies outside of this project, in the folder that TOYKERN_EMULATOR names (`../shared/ptxemu`
beside the checkout where it names none). It translates the PTX that nvcc makes of csrc/cuda into C++ and
runs it on the CPU under the project's own launchers, bindings and Python code, with tensors of the device
`cuda` that are real. Beside what a test itself asks, it fails for accesses out of bounds, races, barriers
that not all meet, launches that a device refuses, reads of what nobody wrote. Its README says what it cannot
show; nothing that it does says how fast a kernel is.

What runs is chosen here: the core, CORE, for every change, in minutes; everything before a release and
whenever csrc/cuda changes. Lanes, warps and blocks run in a random order, another in each run; `--seed`
repeats one. In a share of the core every call of kernels is made by the device's source on the host too,
and what both leave in memory is compared bit by bit. Tests run in `--jobs` processes, and build/emulator
keeps what was built.

    python tools/emulate.py                      the core
    python tools/emulate.py --all                every GPU test
    python tools/emulate.py -- -k "80,20" tests/test_gpu_fit.py       these, by pytest's arguments
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import native_build
from cuda_toolkit import CudaError, find_toolkit

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "emulator"
ARCH = 90  # an H200's; one generation's PTX is enough for what is looked for

# Of the compiler's passes over translated kernels, those that ask again and again which registers live where:
# in functions of thousands of blocks that is a third of the time that building takes.
LEFT_OUT = [
    f"-fno-{name}"
    for name in (
        "if-conversion", "if-conversion2", "move-loop-invariants", "dse", "forward-propagate", "compare-elim",
        "cprop-registers", "combine-stack-adjustments", "shrink-wrap", "split-wide-types",
    )
]  # fmt: skip
STARTER = "import build, json, sys; build.KERNEL_FLAGS += json.loads(sys.argv.pop(1)); build.main()"

# What an emulator cannot do, or not in an hour: memory that runs out, operators' fake tensors, many models
# (populations of 40 to 700 at full length).
NEVER = "not out_of_memory and not opcheck and not hundred_thousand and not among_many"


@dataclass(frozen=True)
class Share:
    """A part of the tests, for one process: pytest's arguments, and how the emulator runs them."""

    name: str
    arguments: tuple[str, ...]
    twins: bool = False  # every call is made by the device's source on the host too, and compared
    steps: int = 0  # training cases are cut to as many; 0: not


INVARIANCES, FIT, LAYER = (
    "tests/test_gpu_invariances.py::test_",
    "tests/test_gpu_fit.py",
    "tests/test_gpu_layer.py",
)
CORE = [  # the longest first
    Share(
        "layer",
        (LAYER, "-k", "((every_gradient or backward) and not chunks) or few_active or autocast"),
    ),
    Share(
        "fit",
        (
            FIT, "-k",
            "not warm and not twenty_steps and not largest and not longest and not 000"
            " and not (is_that and (active or deep or noise))",
        ),
        steps=8,
    ),
    # Every call once more by the device's source on the host: of each loop and each kind of pass.
    Share(
        "twins",
        (
            FIT, "tests/test_gpu_sample.py", "tests/test_devices.py", LAYER, "-k",
            "gpu_sample or test_devices"
            " or (follows and (momentum or pieces or frequent or groups or untied or gram or 80))"
            " or (as_exact and (many or large)) or (every_gradient and (codes or gelu or centred or deep))",
        ),
        twins=True, steps=8,
    ),
    # Draws by our kernels, everything else by torch: what no training kernel takes.
    Share("family", ("tests/test_gpu_family.py",), twins=True),
    Share(
        "sparse",
        (
            "tests/test_gpu_sparse.py", "-k",
            "dense_oracle and not auto and not long and not past and not (blocks and (float32 or float64))",
        ),
    ),
    Share(
        "topology",
        (
            "tests/test_gpu_topology.py", "-k",
            "masked_dense or (resumed and columns) or repeated or interrupted or contiguous or next",
            INVARIANCES + "a_repeated_run_has_the_same_bits[3,2 batch 31]",
            INVARIANCES + "a_repeated_run_has_the_same_bits[8,3 groups of all kinds]",
            INVARIANCES + "an_interrupted_run_goes_on[5,2 rare and frequent]",
            INVARIANCES + "an_interrupted_run_goes_on[17,9 Nesterov]",
            INVARIANCES + "parameters_that_are_not_contiguous_are_trained_in_place[5,2 rare and frequent]",
            INVARIANCES + "a_block_goes_from_one_model_to_the_next",
        ),
        steps=40,
    ),
]  # fmt: skip
FILES = ("fit", "layer", "invariances", "topology", "sparse")
EVERYTHING = [
    *(Share(name, (f"tests/test_gpu_{name}.py", "-k", NEVER)) for name in FILES),
    Share("others", ("tests", *(f"--ignore=tests/test_gpu_{name}.py" for name in FILES), "-k", NEVER)),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, runs, says how it went; 0 if everything passed."""
    parser = argparse.ArgumentParser(
        prog="python tools/emulate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--all", action="store_true", help="every GPU test (the core otherwise)")
    parser.add_argument(
        "--if-there", action="store_true", help="without an emulator or nvcc, say so and pass"
    )
    parser.add_argument("--seed", type=int, help="of the order of lanes, warps and blocks (random otherwise)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--only", nargs="+", metavar="SHARE", help="only these shares")
    parser.add_argument("pytest", nargs="*", help="pytest's arguments, instead of a choice of this file")
    options = parser.parse_args(arguments)
    emulator, absent = find()
    if absent:
        print(f"emulation {'skipped' if options.if_there else 'impossible'}: {absent}", flush=True)
        return 0 if options.if_there else 1
    shares = (
        [Share("chosen", tuple(options.pytest), True)]
        if options.pytest
        else EVERYTHING
        if options.all
        else CORE
    )
    shares = [share for share in shares if options.only is None or share.name in options.only]
    seed = random.randrange(1, 2**31) if options.seed is None else options.seed
    began = time.monotonic()
    build(emulator, options.jobs)
    took = spent(began, resource.getrusage(resource.RUSAGE_CHILDREN))
    print(f"built ({took}); --seed {seed} repeats this order", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        passed = list(pool.map(lambda share: run(emulator, share, seed), shares))
    bad = [share.name for share, good in zip(shares, passed, strict=True) if not good]
    print(
        f"emulation of sm_{ARCH}: {f'FAILED: {bad}' if bad else 'passed'}, {time.monotonic() - began:.0f} s"
    )
    return 1 if bad else 0


def find() -> tuple[Path, str]:
    """(the emulator's folder, why there can be no emulation; empty if there can)."""
    folder = Path(os.environ.get("TOYKERN_EMULATOR") or ROOT.parent / "shared" / "ptxemu").resolve()
    if not (folder / "build.py").exists():
        return folder, "no emulator in the folder that TOYKERN_EMULATOR names, ../shared/ptxemu by default"
    try:
        find_toolkit(os.environ, ("g++",))
    except CudaError as error:
        return folder, str(error)
    return folder, ""


def build(emulator: Path, jobs: int) -> None:
    """The emulator's own build of this checkout in build/emulator: what has changed since the last.

    The host's objects are those of `setup.py build_ext`, if there are any: the flags are the same.
    """
    command = [sys.executable, "-c", STARTER, json.dumps(LEFT_OUT), str(ROOT), str(OUT)]
    command += ["--arch", str(ARCH), "--jobs", str(jobs)]
    objects = native_build.Settings.from_environment(ROOT, "").build_dir / "objects"
    command += ["--objects", str(objects)] if objects.exists() else []
    environ = {**os.environ, "PYTHONPATH": str(emulator), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, cwd=emulator, env=environ, check=True)


def environment(emulator: Path, seed: int) -> dict[str, str]:
    """Of a Python in which `cuda` is the emulated device."""
    return {
        **os.environ,
        "PYTHONPATH": str(emulator), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "TOYKERN_EXPECT_GPU": "1", "PTXEMU_OUT": str(OUT), "PTXEMU_ARCH": str(ARCH),
        "PTXEMU_NO_WORKAROUNDS": "1", "PTXEMU_ORDER": "2", "PTXEMU_SEED": str(seed),
        "PTXEMU_FILL": str(seed % 256),
    }  # fmt: skip


def run(emulator: Path, share: Share, seed: int) -> bool:
    """One share in a process of its own; what it says is printed when it ends, all of it if it failed."""
    environ = environment(emulator, seed)
    environ |= {
        "PTXEMU_COVERAGE": str(OUT / f"coverage-{share.name}"),
        "PTXEMU_FAULTS": str(OUT / f"faults-{share.name}"),
    }
    environ |= {"PTXEMU_TWINS": "1"} if share.twins else {}
    environ |= {"PTXEMU_MAX_STEPS": str(share.steps)} if share.steps else {}
    for name in ("PTXEMU_COVERAGE", "PTXEMU_FAULTS"):  # which are appended to
        Path(environ[name]).unlink(missing_ok=True)
    # The package of build/emulator before that of the checkout, whose module has no emulated kernels.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "ptx_plugin", "-o", f"pythonpath={OUT} tests .", *share.arguments]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    shown = lines[-1:] if process.returncode == 0 else lines
    twins = [line for line in lines if line.startswith("twin ")]
    others = passed_over(Path(environ["PTXEMU_FAULTS"]))
    print("\n".join([f"== {share.name} ({spent(began, usage)})", *twins, *shown, *others]), flush=True)
    return process.returncode == 0 and not others


def spent(began: float, usage: resource.struct_rusage) -> str:
    """Seconds since `began`, and those of processor time, which other work on the machine does not change."""
    processor = usage.ru_utime + usage.ru_stime
    return f"{time.monotonic() - began:.0f} s, {processor:.0f} s of processor time"


def passed_over(faults: Path) -> list[str]:
    """A line for each place of a kernel with a fault that fails no test of itself: reads of what nobody had
    written, and what the emulator's own list takes for harmless, by lines that may be others by now."""
    lines = faults.read_text(encoding="utf-8").splitlines() if faults.exists() else []
    first: dict[str, str] = {}
    for found in map(json.loads, lines):
        if found["kind"] == "fault":
            continue
        what, _, rest = found["text"].partition("\n")
        place = re.search(r"^\s*at (\S+)", rest, re.M)
        verb = " read" if found["kind"] == "note" else ", passed over"
        first.setdefault(f"{what.partition(':')[0]}{verb} at {place[1] if place else '?'}", found["test"])
    return [f"{what}, first in {test}" for what, test in sorted(first.items())]


if __name__ == "__main__":
    sys.exit(main())
