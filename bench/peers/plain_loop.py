"""The training written down in plain loops, as a good student does it in an afternoon, in C++ and in numba.

One model after another, one sample after another, jumps over inactive entries; nothing is batched, so nothing
has to be a matrix product. Both have a process on every core (`sharded`), with a share of the models.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.problem import LEARNING_RATE, Problem

SOURCE = Path(__file__).with_name("plain_loop.cpp")
BUILD = Path(__file__).parent.parent.parent / "build" / "bench"
ENTRY = np.dtype([("sample", np.int32), ("feature", np.int32), ("value", np.float32)])  # an active feature


class PlainLoop:
    """State and bookkeeping of a trainer of one thread; who inherits trains, draws and updates.

    Attributes:
        parameters_of, first, second: float32 `[models, n·m + n]`: the weights `[n, m]` and the biases, and
            Adam's moments of them.
        state: uint64 `[models]` of the generators.
        entries: room for a batch's active features in the order of their samples.
    """

    chunk = 1

    def __init__(self, problem: Problem) -> None:
        models, m, n = problem.weight.shape
        self.shape, self.batch_size = (n, m), problem.workload.batch_size
        self.probability = problem.probability.item()
        self.parameters_of = np.zeros((models, n * m + n), np.float32)
        self.parameters_of[:, : n * m] = problem.weight.transpose(0, 2, 1).reshape(models, n * m)
        self.first, self.second = np.zeros_like(self.parameters_of), np.zeros_like(self.parameters_of)
        self.importance = np.ascontiguousarray(problem.importance)
        self.state = np.random.default_rng(problem.seed + 1).integers(2**63, size=models, dtype=np.uint64)
        self.entries = np.zeros(self.batch_size * n + 1, ENTRY)
        self._loss, self._done, self._reported = np.zeros(models), 0, 0

    def run(self, steps: int) -> None:
        self.train_models(self._done, steps, self._loss)
        self._done += steps

    def mean_loss(self) -> np.ndarray:
        mean = self._loss / (self._done - self._reported)
        self._loss[:], self._reported = 0.0, self._done
        return mean

    def draw(self) -> np.ndarray:
        x = np.zeros((len(self.state), self.batch_size, self.shape[0]), np.float32)
        for i in range(len(x)):
            drawn = self.entries[: self.draw_batch(i)]
            x[i, drawn["sample"], drawn["feature"]] = drawn["value"]
        return x

    def update(self, x: np.ndarray) -> None:
        self._done += 1
        for i, batch in enumerate(x):
            sample, feature = np.nonzero(batch)
            given = self.entries[: len(sample)]
            given["sample"], given["feature"], given["value"] = sample, feature, batch[sample, feature]
            self._loss[i] += self.update_model(i, len(sample), self._done)

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        n, m = self.shape
        weight = self.parameters_of[:, : n * m].reshape(-1, n, m).transpose(0, 2, 1)
        return weight.copy(), self.parameters_of[:, n * m :].copy()

    def train_models(self, done: int, steps: int, loss: np.ndarray) -> None:
        """Trains all models by `steps` steps, `done` before them, and adds their losses to `loss`."""
        raise NotImplementedError

    def draw_batch(self, model: int) -> int:
        """Puts a batch of a model into `entries` and returns how many there are."""
        raise NotImplementedError

    def update_model(self, model: int, count: int, step: int) -> float:
        """Step `step` (from 1) of a model on the first `count` of `entries`; returns the batch's loss."""
        raise NotImplementedError


class CppTrainer(PlainLoop):
    """plain_loop.cpp, compiled for the shape at hand; `optimize`: flags beside those that it always has."""

    def __init__(self, problem: Problem, optimize: str) -> None:
        super().__init__(problem)
        self._library = library(*self.shape, optimize)
        arrays = (self.parameters_of, self.first, self.second, self.importance, self.state, self.entries)
        self._at = [array.ctypes.data for array in arrays]
        self._strides = [array.strides[0] for array in arrays[:5]]

    def train_models(self, done: int, steps: int, loss: np.ndarray) -> None:
        model, first, second, importance, state, _ = self._at
        self._library.train(
            len(self.state), model, first, second, importance, state, self.probability, self.batch_size,
            LEARNING_RATE, done, steps, loss.ctypes.data,
        )  # fmt: skip

    def draw_batch(self, model: int) -> int:
        state = self._at[4] + model * self._strides[4]
        return self._library.draw_batch(state, self.batch_size, self.probability, self._at[5])

    def update_model(self, model: int, count: int, step: int) -> float:
        *of_model, _ = (a + model * s for a, s in zip(self._at, self._strides, strict=False))
        return self._library.update(*of_model, self._at[5], count, self.batch_size, LEARNING_RATE, step)


def compiler() -> list[str]:
    """The C++ compiler's command: CXX, or g++."""
    return shlex.split(os.environ.get("CXX", "g++"))


def compiler_absent() -> str | None:
    """Why plain C++ cannot run here, or None."""
    command = compiler()
    return f"{command[0]} not installed" if shutil.which(command[0]) is None else None


def compiler_version() -> str | None:
    """`g++ 12.2.0`, or None where there is none."""
    if compiler_absent():
        return None
    command = [*compiler(), "-dumpfullversion", "-dumpversion"]
    version = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"{Path(compiler()[-1]).name} {version}"


def library(n: int, m: int, optimize: str) -> Any:
    """plain_loop.cpp as a shared library, compiled into build/bench unless it is there already."""
    command = [
        *compiler(),
        *optimize.split(),
        "-march=native",
        "-ffast-math",
        "-std=c++17",
        "-fPIC",
        "-c",
    ]
    command += [f"-DFEATURES={n}", f"-DHIDDEN={m}", str(SOURCE)]
    cpuinfo = Path("/proc/cpuinfo")
    machine = (
        sorted(set(cpuinfo.read_text().split())) if cpuinfo.exists() else []
    )  # -march=native depends on it
    flags = [word for word in machine if word.isidentifier()]
    key = hashlib.sha256(repr((command, SOURCE.read_bytes(), flags)).encode()).hexdigest()[:16]
    path = BUILD / f"plain_loop-{n}-{m}-{key}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")  # another process may be at it too
        compiled = unfinished.with_suffix(f".{os.getpid()}.o")
        subprocess.run([*command, "-o", str(compiled)], check=True)
        # Linked without -ffast-math, with which a library would flush denormals in whatever process loads it.
        subprocess.run([*compiler(), "-shared", str(compiled), "-o", str(unfinished)], check=True)
        compiled.unlink()
        unfinished.replace(path)
    found = ctypes.CDLL(str(path))
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    found.draw_batch.argtypes = [pointer, integer, ctypes.c_double, pointer]
    found.update.argtypes = [pointer] * 5 + [integer, integer, real, integer]
    found.update.restype = real
    found.train.argtypes = [
        integer,
        *[pointer] * 5,
        ctypes.c_double,
        integer,
        real,
        integer,
        integer,
        pointer,
    ]
    found.train.restype = None
    return found
