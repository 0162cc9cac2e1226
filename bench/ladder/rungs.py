"""The rungs of the ladder, how they are built, checked and timed."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi")

# Of problem.h.
N_FEATURES, N_HIDDEN, BATCH, DENSITY = 5, 2, 1024, 0.01
N_PARAMETERS = N_HIDDEN * N_FEATURES + N_FEATURES

LARGEST_ERROR = 2e-6  # of a parameter after CHECKED_STEPS, beside the float64 replay: float32's rounding
CHECKED_STEPS = 200
DEVIATIONS = 5.0  # of a count or a mean of what was drawn, in standard deviations


@dataclass(frozen=True)
class Rung:
    """A version of the step.

    Attributes:
        name: of its file and its namespace.
        idea: what it does that the one before does not.
    """

    name: str
    idea: str


RUNGS = (
    Rung("naive", "number by number"),
    Rung("samples_in_lanes", "samples in lanes"),
    Rung("zeros_not_drawn", "zeros are not drawn"),
    Rung("empty_in_one_term", "empty samples in one term"),
    Rung("sums_in_registers", "sums in registers"),
    Rung("models_side_by_side", "models side by side"),
)


def build(folder: Path, compiler: str | None = None) -> Path:
    """Compiles the rungs into one program in `folder` and returns its path.

    Args:
        folder: where the program is written; made if it is not there.
        compiler: a C++17 compiler with GCC's vectors (GCC, Clang); CXX of the environment or `g++` if None.

    Raises:
        RuntimeError: the compiler could not be run or failed; its message is in the error's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ladder"
    command = shlex.split(compiler or os.environ.get("CXX", "g++"))
    command += [*FLAGS, "-o", str(program), *map(str, sorted(SOURCES.glob("*.cpp")))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"the compiler {command[0]!r} could not be run: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return program


def run(program: Path, *arguments: object) -> dict[str, Any]:
    """What the program prints, as a dictionary by rung; see main.cpp for the arguments."""
    command = [str(program), *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def faults(found: Mapping[str, Mapping[str, Any]], steps: int) -> list[str]:
    """What is wrong with the rungs, a line each: none if each computes the step of the problem.

    Args:
        found: what `run(program, "check", steps)` returned.
        steps: as there.
    """
    wrong = [f"{rung.name}: not checked" for rung in RUNGS if rung.name not in found]
    for name, facts in found.items():
        if not facts["error"] <= LARGEST_ERROR:
            wrong.append(f"{name}: a parameter is {facts['error']:.1e} from the reference")
        if facts["unread"] or facts["twice"]:
            wrong.append(f"{name}: entries out of order, or drawn twice")
        if not facts["same_among_others"]:
            wrong.append(f"{name}: a model among others has other bits than alone")
        wrong += [f"{name}: {line}" for line in _unlikely(facts, steps)]
    return wrong


def _unlikely(facts: Mapping[str, Any], steps: int) -> list[str]:
    """What of the drawn entries is more than `DEVIATIONS` standard deviations from its expectation."""
    samples = steps * BATCH
    spread = math.sqrt(samples * DENSITY * (1.0 - DENSITY))
    total = sum(facts["drawn"])
    lines = [
        f"feature {j} was active {drawn} times, {samples * DENSITY:.0f} were expected"
        for j, drawn in enumerate(facts["drawn"])
        if not abs(drawn - samples * DENSITY) <= DEVIATIONS * spread
    ]
    # A uniform value has mean 1/2 and variance 1/12; its square has mean 1/3 and variance 4/45.
    for what, sum_of, mean, variance in (
        ("values", facts["values"], 1 / 2, 1 / 12),
        ("squares of values", facts["squares"], 1 / 3, 4 / 45),
    ):
        if not abs(sum_of - total * mean) <= DEVIATIONS * math.sqrt(total * variance):
            lines.append(f"the {what} have the mean {sum_of / max(total, 1):.4f}, {mean:.4f} was expected")
    return lines


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each rung: nanoseconds of processor time of a model-step."""
    return {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
