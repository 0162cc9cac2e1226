"""Builds the wheel that people install, and tries it where nothing of the checkout is.

    python tools/make_wheel.py           builds: checkout → sdist → wheel → dist/
    python tools/make_wheel.py --anew    and compiles everything, as for a release
    python tools/make_wheel.py --check   tries the wheel of dist/ in an environment of its own

The wheel is made from the sdist, so that what is missing there fails here. Unless told `--anew`, objects that
the checkout has compiled from the same sources are taken along; ninja compares.

On Linux `auditwheel` then says for which systems it is (the oldest glibc that has what it calls), and names
it so. libgomp is left out on purpose: torch's wheels bring one, and threads of a second would fight those of
the first for the cores. The module asks for `libgomp.so.1`, which is the name of torch's, and `import
toykern` loads torch first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from native_build import find_commit

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
LEFT_OUT = ("libgomp.so.1",)
"""Libraries that torch brings."""

NEVER_IN = (r"(^|/)libgomp", r"(^|/)lib(torch|c10)", r"\.(cu|cpp|h|o)$", r"^tests/", r"^bench/", r"^tools/")
ALWAYS_IN = (
    r"^toykern/py\.typed$",
    r"^toykern/_native\.pyi$",
    r"^toykern/_native\..*\.(so|pyd)$",
    r"LICENSE$",
)

CORE = (
    "import", "info", "progress", "typing", "wheel", "broadcast", "models", "metrics", "plot", "run_store",
    "optim", "schedule", "sparsify", "topology_attached", "fit_results", "sweep_topology", "evaluate",
    "sparse_batch", "fit_invariances",
)  # fmt: skip
"""The files of the suite that run against an installed wheel: of each part, none that reads the checkout."""

READ_BY_TESTS = "csrc/common/stream/tables.h"
"""Where the suite's own data stream has its tables from."""

TRY = """
import shutil, sys
import toykern as tk
assert "site-packages" in tk.__file__, tk.__file__
compilers = [name for name in ("cc", "gcc", "g++", "clang", "clang++", "nvcc") if shutil.which(name)]
assert not compilers, compilers
g = tk.grid(density=[1.0, 0.1], seed=range(3))
model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=g.n_models)
data = tk.SparseFeatures(n_features=5, probability=g.density[:, None])
run = tk.fit(model, data, steps=200, batch_size=64, optimizer=tk.AdamW(lr=1e-2), grid=g)
assert bool((run.loss[:, -1] < run.loss[:, 0]).all()), run.loss
best = run.best(over="seed", by=tk.evaluate(model, data))
tk.plot.feature_directions(model.weight[best[-1]]).figure.savefig("directions.png")
print("trained", g.n_models, "models with toykern", tk.__version__, "and drew one")
"""


def run(command: Sequence[str | Path], **options: object) -> str:
    """What a command says; SystemExit with all of it where it fails."""
    told: dict[str, object] = {"capture_output": True, "text": True} | options
    done = subprocess.run([str(part) for part in command], **told)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout or ''}{done.stderr or ''}")
    return done.stdout or ""


def sdist() -> Path:
    """The source distribution, in dist/."""
    DIST.mkdir(exist_ok=True)
    code = "from setuptools import build_meta as b; import sys; print('made', b.build_sdist(sys.argv[1]))"
    said = run([sys.executable, "-c", code, DIST], cwd=ROOT)
    return DIST / re.findall(r"^made (.+)$", said, re.MULTILINE)[-1]


def unpacked(archive: Path, anew: bool) -> Path:
    """The folder that an sdist unpacks to, below build/wheel; with the checkout's objects unless `anew`."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(WORK, filter="data")
    (folder,) = [path for path in WORK.iterdir() if path.is_dir()]
    objects = ROOT / "build" / "native"
    if not anew and objects.exists():
        shutil.copytree(objects, folder / "build" / "native", copy_function=shutil.copy2)
    return folder


def built(folder: Path) -> Path:
    """The wheel of an unpacked sdist, as the compiler left it."""
    into = WORK / "plain"
    environ = {**os.environ, "TOYKERN_COMMIT": find_commit(ROOT)}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", into, folder]
    run(command, env=environ, cwd=WORK)
    (wheel,) = into.glob("*.whl")
    return wheel


def repaired(wheel: Path) -> Path:
    """The wheel with its honest name, in dist/. Elsewhere than on Linux it has that already."""
    before = set(DIST.glob("*.whl"))
    if not sys.platform.startswith("linux"):
        return Path(shutil.copy2(wheel, DIST))
    left_out = [part for name in LEFT_OUT for part in ("--exclude", name)]
    command = [sys.executable, "-m", "auditwheel", "repair", *left_out, "-w", WORK / "repaired", wheel]
    run(command, env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    (made,) = (WORK / "repaired").glob("*.whl")
    for old in before:  # of this Python, whatever its platform is called
        if old.name.split("-")[:3] == made.name.split("-")[:3]:
            old.unlink()
    return Path(shutil.copy2(made, DIST))


def check_contents(wheel: Path) -> None:
    """SystemExit where something is in the wheel that must not be, or is missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wrong = [name for name in names if any(re.search(pattern, name) for pattern in NEVER_IN)]
    missing = [pattern for pattern in ALWAYS_IN if not any(re.search(pattern, name) for name in names)]
    if wrong or missing:
        sys.exit(f"{wheel.name}: must not be in it: {wrong}; missing: {missing}")


def newest() -> Path:
    """The wheel in dist/ for this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(DIST.glob(f"toykern-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"there is no wheel for {tag} in {DIST}; `make wheel` builds it")
    return found[-1]


def environment(wheel: Path, constraints: Path | None, folder: Path) -> Path:
    """The Python of a virtual environment that has the wheel, what it needs and pytest; made once."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    pins = ["-c", constraints] if constraints else []
    tests = ["pytest", "pytest-xdist", "hypothesis", "mypy", "scikit-learn"]
    run([*install, *pins, f"toykern[results,plot,analysis] @ {wheel.as_uri()}", *tests])
    run([*install, "--no-deps", "--force-reinstall", wheel])  # also where the version is the same
    return python


def check(wheel: Path, constraints: Path | None, folder: Path, jobs: int) -> int:
    """Import, train, plot and the core of the suite, away from the sources and without a compiler."""
    python = environment(wheel, constraints, folder)
    away = WORK / "away"
    shutil.rmtree(away, ignore_errors=True)
    away.mkdir(parents=True)
    shutil.copytree(ROOT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", away)
    (away / READ_BY_TESTS).parent.mkdir(parents=True)
    shutil.copy2(ROOT / READ_BY_TESTS, away / READ_BY_TESTS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environ = {**kept, "PATH": str(python.parent)}
    print(run([python, "-c", TRY], cwd=away, env=environ).strip(), flush=True)
    files = [f"tests/test_{name}.py" for name in CORE]
    spread = ["-n", str(jobs), "--dist", "loadfile"]
    pytest = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *files]
    return subprocess.run(pytest, cwd=away, env=environ).returncode


def main() -> int:
    """The command; its status."""
    parser = argparse.ArgumentParser(description="Builds the wheel and tries it.")
    parser.add_argument("--anew", action="store_true", help="compile everything, taking no objects along")
    parser.add_argument("--check", action="store_true", help="try the wheel that is in dist/")
    parser.add_argument("--constraints", type=Path, help="of the environment that it is tried in")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "wheel-venv")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the tests; 0 is this one alone")
    told = parser.parse_args()
    if told.check:
        return check(newest(), told.constraints, told.environment, told.jobs)
    folder = unpacked(sdist(), told.anew)
    wheel = repaired(built(folder))
    check_contents(wheel)
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
