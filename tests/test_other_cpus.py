"""What levels and CPUs owe each other: one stream everywhere, and the same bits where levels count alike.

Programs of tests/native print a hash for each operation and each case. They are made of the objects of the
build for this machine and, where there are a cross compiler and an emulator (g++-aarch64-linux-gnu and
qemu-user of Debian), of the sources for 64-bit ARM. `neon` has the lanes, the order of sums and the fused
multiply-add of `v3`, and the baseline is the same C++ on both CPUs: so whole runs of training have the same
bits.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kit import LEVELS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import native_build  # noqa: E402
from native_build import Settings  # noqa: E402

pytestmark = pytest.mark.slow

CROSS = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ENTRY_POINTS = ("csrc/cpu", "csrc/common", "csrc/include")
PROGRAM = "tests/native/levels.cpp"
EVERYWHERE = ("stream", "choice")  # what begins so is whole numbers: the same at every level
SAME = (("v3", "neon"), ("base", "base"))  # here, and on ARM


@pytest.fixture(scope="module")
def arm() -> Settings:
    """How a program for 64-bit ARM is compiled."""
    if shutil.which(CROSS) is None or EMULATOR is None:
        pytest.skip("no aarch64-linux-gnu-g++, or no qemu-aarch64")
    environ = {"CXX": CROSS, "TOYKERN_CUDA": "0", "TOYKERN_THREADS": "own", "TOYKERN_CXXFLAGS": "-O1"}
    return Settings.from_environment(ROOT, "", environ)


def run(command: list[str]) -> dict[str, str]:
    """What a program printed: a hash for each name."""
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = dict(line.rsplit(": ", 1) for line in text.splitlines())
    assert not [name for name in lines if name.startswith("not ")], "a case did not do what it is there for"
    return lines


def different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The names whose hashes differ."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def build(settings: Settings, sources: list[str], program: Path, *flags: str) -> None:
    """Compiles and links, one process to a source."""
    folder = program.with_suffix(".objects")
    folder.mkdir(parents=True, exist_ok=True)
    objects = [str(folder / (source.replace("/", "-") + ".o")) for source in sources]
    for source, target in zip(sources, objects, strict=True):
        compile_flags = native_build.compile_flags(settings, Path(source))
        command = [*settings.compiler, *compile_flags, *flags, "-c", source, "-o", target]
        subprocess.run(command, cwd=ROOT, check=True)
    threads = ["-pthread"] if settings.own_threads else native_build._libgomp(settings)
    linked = ["-static"] if settings.compiler == (CROSS,) else []
    subprocess.run([*settings.compiler, *objects, *linked, *threads, "-o", str(program)], check=True)
    shutil.rmtree(folder)


# --- the lanes of a level ---------------------------------------------------------------------------------


def test_lanes_of_neon_are_those_of_v3(arm, tmp_path):
    if "v3" not in LEVELS:
        pytest.skip("this CPU has no AVX2")
    here = replace(arm, compiler=("g++",), cpu="x86_64")
    for settings, level, flags in (
        (here, "v3", native_build.LEVEL_FLAGS["_v3"]),
        (arm, "neon", ["-DTOYKERN_NEON"]),
    ):
        build(settings, ["tests/native/lanes.cpp"], tmp_path / level, f"-DTOYKERN_LEVEL={level}", *flags)
    found = run([str(tmp_path / "v3")])
    assert len(found) > 60
    assert not different(found, run([EMULATOR, str(tmp_path / "neon")]))


def test_every_word_of_the_vocabulary_is_tried():
    """A function that a level has and the program does not call would be compared by nobody."""
    text = (ROOT / "tests/native/lanes.cpp").read_text(encoding="utf-8")
    header = (ROOT / "csrc/cpu/simd/avx512.h").read_text(encoding="utf-8")
    words = set(re.findall(r"^TOYKERN_INLINE \w+ (\w+)\(", header, re.MULTILINE)) - {"operator", "sum16"}
    assert len(words) > 50
    assert not {word for word in words if not re.search(rf"\b{word}\b", text)}


# --- the entry points -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What each level of this machine gives, from the objects that the module was linked from."""
    settings = Settings.from_environment(ROOT, "")
    folder = settings.build_dir / "objects/csrc/cpu"
    objects = sorted(map(str, folder.rglob("*.o")))
    if not objects or settings.sanitize:
        pytest.skip("the objects of the build are not here (installed, not built in place)")
    program = tmp_path_factory.mktemp("levels") / "levels"
    command = ["g++", "-std=c++17", "-O1", *native_build.INCLUDES, PROGRAM, *objects]
    threads = ["-pthread"] if settings.own_threads else ["-fopenmp"]
    subprocess.run([*command, *threads, "-o", str(program)], cwd=ROOT, check=True)
    return {level: run([str(program), level]) for level in LEVELS}


@pytest.fixture(scope="module")
def on_arm(arm) -> dict[str, dict[str, str]]:
    """What each level of 64-bit ARM gives; the program stays in build/other_cpus until a source changes."""
    digest = hashlib.sha256(repr(native_build.compile_flags(arm, Path(PROGRAM))).encode())
    sources = sorted(path for folder in ENTRY_POINTS for path in (ROOT / folder).rglob("*.*"))
    for path in [ROOT / PROGRAM, (ROOT / PROGRAM).with_name("hash.h"), *sources]:
        digest.update(path.read_bytes())
    program = ROOT / "build/other_cpus" / f"levels-{digest.hexdigest()[:16]}"
    if not program.exists():
        shutil.rmtree(program.parent, ignore_errors=True)
        program.parent.mkdir(parents=True)
        compiled = [path.as_posix() for path in native_build.sources(arm) if path.is_relative_to("csrc/cpu")]
        assert {"csrc/cpu/level_neon.cpp", "csrc/cpu/level_base.cpp"} <= set(compiled)
        build(arm, [PROGRAM, *compiled], program)
    return {level: run([EMULATOR, str(program), level]) for level in ("neon", "base")}


def test_the_stream_and_choices_are_the_same_at_every_level(here):
    first = here[LEVELS[0]]
    assert sum(name.startswith(EVERYWHERE) for name in first) > 60
    for level in LEVELS[1:]:
        assert not [name for name in different(first, here[level]) if name.startswith(EVERYWHERE)], level


def test_the_program_tells_levels_apart(here):
    """Levels sum in orders of their own: were all lines the same, the hashes would see nothing."""
    if len(LEVELS) < 2:
        pytest.skip("this CPU has one level")
    found = different(here[LEVELS[0]], here[LEVELS[-1]])
    assert sum(name.startswith("train") for name in found) > 30
    assert sum(name.startswith("layer") for name in found) > 20


@pytest.mark.parametrize(("level", "arm_level"), SAME)
def test_arm_has_the_bits_of_x86(here, on_arm, level, arm_level):
    if level not in here:
        pytest.skip(f"this CPU has no level {level}")
    assert not different(here[level], on_arm[arm_level])
