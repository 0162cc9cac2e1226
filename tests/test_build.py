"""The build: flags by level, incremental rebuilds, refusals, and what the module it makes must be like."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import native_build  # noqa: E402
from cuda_toolkit import Cuda  # noqa: E402
from native_build import BuildError, Settings  # noqa: E402

# A project small enough to build in a test: one file per level, a header that two of them share, a binding.
TOY_SOURCES = {
    "csrc/common/shared.h": "int level_v4(); int level_v3(); int level_base();\n",
    "csrc/cpu/toy_v4.cpp": '#include "common/shared.h"\nint level_v4() { return 4; }\n',
    "csrc/cpu/toy_v3.cpp": '#include "common/shared.h"\nint level_v3() { return 3; }\n',
    "csrc/cpu/toy_neon.cpp": "#include <arm_neon.h>\nint level_neon() { return 8; }\n",
    "csrc/cpu/toy_base.cpp": "int level_base() { return 1; }\n",
    "csrc/bind/module.cpp": 'extern "C" const char* commit() { return TOYKERN_COMMIT; }\n',
}


@pytest.fixture
def toy(tmp_path):
    """Settings for the toy project, in a folder whose name needs quoting."""
    root = tmp_path / "a checkout: $1"
    for name, text in TOY_SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    facts = {"version": "1.2", "commit": "abc-dirty", "cuda": Cuda("not built: a test")}
    return Settings(root=root, compiler=("g++",), clang=False, **facts)


def compiled(output: str) -> set[str]:
    """The files that ninja says it compiled."""
    return {Path(name).name for name in re.findall(r"compile (\S+)", output)}


# --- flags ------------------------------------------------------------------------------------------------


def test_each_level_has_its_flags_and_only_its_own(toy):
    def flags(name):
        return native_build.compile_flags(toy, Path("csrc/cpu") / name)

    def march(name):
        return [flag for flag in flags(name) if flag.startswith("-m")]

    assert march("a_v4.cpp") == ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mtune=generic"]
    assert march("a_v3.cpp") == ["-march=x86-64-v3", "-mtune=generic"]
    assert march("a_neon.cpp") == march("a_base.cpp") == march("dispatch.cpp") == []
    for name in ("a_v4.cpp", "a_v3.cpp", "a_neon.cpp", "a_base.cpp"):
        assert {"-ffp-contract=off", "-fvisibility=hidden", "-O3", "-std=c++17"} <= set(flags(name))
        assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags(name))


def test_what_runs_no_loop_that_counts_is_compiled_lightly_and_means_the_same(toy):
    kernel = set(native_build.compile_flags(toy, Path("csrc/cpu/toy.cpp")))
    for name in ("csrc/bind/toy.cpp", "csrc/cuda/host_toy.cpp"):
        flags = set(native_build.compile_flags(toy, Path(name)))
        assert kernel - flags == {"-O3"} and "-O1" in flags, name


def test_only_the_binding_is_told_the_commit(toy):
    flags = {str(source): native_build.compile_flags(toy, source) for source in native_build.sources(toy)}
    assert [name for name in flags if "abc-dirty" in " ".join(flags[name])] == ["csrc/bind/module.cpp"]


@pytest.mark.parametrize(
    ("cpu", "levels"),
    [("x86_64", {"toy_v4.cpp", "toy_v3.cpp"}), ("aarch64", {"toy_neon.cpp"}), ("other", set())],
)
def test_every_cpu_gets_its_own_levels_and_the_base(toy, cpu, levels):
    settings = replace(toy, cpu=cpu)
    assert {p.name for p in native_build.sources(settings)} == {*levels, "toy_base.cpp", "module.cpp"}
    assert "-DTOYKERN_ONLY_BASE" not in native_build.compile_flags(settings, Path("csrc/cpu/toy_base.cpp"))
    only_base = replace(settings, only_base=True)
    assert [p.name for p in native_build.sources(only_base)] == ["toy_base.cpp", "module.cpp"]
    assert "-DTOYKERN_ONLY_BASE" in native_build.compile_flags(only_base, Path("csrc/cpu/toy_base.cpp"))
    assert only_base.build_dir != settings.build_dir


@pytest.mark.parametrize(
    ("macro", "cpu"), [("__x86_64__", "x86_64"), ("__aarch64__", "aarch64"), ("__riscv", "other")]
)
def test_the_compiler_says_for_which_cpu_it_is_and_that_it_is_clang(tmp_path, macro, cpu):
    """As a cross compiler would, which is for another CPU than this one."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho '#define {macro} 1'\necho '#define __clang__ 1'\n")
    compiler.chmod(0o755)
    settings = Settings.from_environment(ROOT, "1", {"CXX": str(compiler), "TOYKERN_CUDA": "0"})
    assert settings.cpu == cpu and settings.clang and not settings.only_base


def test_sanitizers_reach_compiler_and_linker_and_build_apart(toy):
    sanitized = replace(toy, sanitize="address,undefined")
    flags = native_build.compile_flags(sanitized, Path("csrc/cpu/toy_v4.cpp"))
    assert "-fsanitize=address,undefined" in flags and "-O3" not in flags
    assert "-Dalways_inline=" in flags and "-Dalways_inline=" not in native_build.compile_flags(
        toy, Path("csrc/cpu/toy_v4.cpp")
    )
    assert "-fsanitize=address,undefined" in native_build.link_flags(sanitized)
    assert sanitized.build_dir != toy.build_dir


# --- building ---------------------------------------------------------------------------------------------


def test_builds_and_rebuilds_only_what_changed(toy, capfd):
    destination = toy.root / "out" / "module.so"

    def rebuild(settings):
        native_build.build(settings, destination)
        return compiled(capfd.readouterr().out)

    every_file = {"module.cpp", "toy_v4.cpp", "toy_v3.cpp", "toy_base.cpp"}
    assert rebuild(toy) == every_file
    assert b"abc-dirty" in destination.read_bytes()
    assert rebuild(toy) == set()

    header = toy.root / "csrc/common/shared.h"
    header.write_text(header.read_text() + "// changed\n")
    assert rebuild(toy) == {"toy_v4.cpp", "toy_v3.cpp"}  # the two that include it

    assert rebuild(replace(toy, commit="0123456789ab")) == {"module.cpp"}
    assert b"0123456789ab" in destination.read_bytes()

    (toy.root / "csrc/cpu/new_base.cpp").write_text("int added() { return 2; }\n")
    assert rebuild(replace(toy, commit="0123456789ab")) == {"new_base.cpp"}  # found, listed nowhere


def test_the_module_is_replaced_not_overwritten(toy):
    destination = toy.root / "module.so"
    native_build.build(toy, destination)
    with destination.open("rb") as old:  # as a running process holds it
        before = old.read()
        native_build.build(replace(toy, commit="another"), destination)
        old.seek(0)
        assert old.read() == before
    assert [p.name for p in toy.root.iterdir() if "module" in p.name] == ["module.so"]


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_compile_error_fails_and_leaves_the_old_module(toy):
    destination = toy.root / "module.so"
    native_build.build(toy, destination)
    before = destination.read_bytes()
    (toy.root / "csrc/cpu/toy_base.cpp").write_text("this is not C++\n")
    with pytest.raises(BuildError, match="failed"):
        native_build.build(toy, destination)
    assert destination.read_bytes() == before


def test_a_missing_compiler_is_named(toy):
    with pytest.raises(BuildError, match=r"no-such-compiler.*GCC 11 or Clang 12.*CXX"):
        native_build.build(replace(toy, compiler=("no-such-compiler",)), toy.root / "module.so")


def test_missing_sources_are_reported(toy):
    shutil.rmtree(toy.root / "csrc")
    with pytest.raises(BuildError, match="no sources under"):
        native_build.sources(toy)


def test_setup_stops_with_the_message_not_a_traceback():
    environ = {**os.environ, "TOYKERN_CUDA": "yes"}
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode != 0
    assert "toykern: TOYKERN_CUDA is 'yes'" in result.stderr and "Traceback" not in result.stderr


# --- the commit -------------------------------------------------------------------------------------------


def test_commit_without_a_checkout(toy):
    assert native_build.find_commit(toy.root, {}) == "unknown"
    assert native_build.find_commit(toy.root, {"TOYKERN_COMMIT": "feedc0ffee12"}) == "feedc0ffee12"


def test_commit_of_a_checkout_and_its_changes(toy):
    def git(*args):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(toy.root), *identity, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "toy")
    head = git("rev-parse", "HEAD")
    environ = {"TOYKERN_COMMIT": "not-used"}
    assert native_build.find_commit(toy.root, environ) == head[:12]
    (toy.root / "untracked").write_text("x")
    assert native_build.find_commit(toy.root, environ) == head[:12]
    (toy.root / "csrc/cpu/toy_base.cpp").write_text("int level_base() { return 0; }\n")
    assert native_build.find_commit(toy.root, environ) == head[:12] + "-dirty"
    assert native_build.find_commit(toy.root / "csrc", environ) == "not-used"  # not this project's repository


# --- what came out ----------------------------------------------------------------------------------------


@pytest.fixture
def module_path():
    from toykern import _native

    return Path(_native.__file__)


@pytest.mark.sanitize
def test_the_build_under_test_is_the_one_meant(module_path):
    sanitized = b"__asan_init" in module_path.read_bytes()
    assert sanitized == bool(os.environ.get("TOYKERN_EXPECT_SANITIZE"))


def test_shares_the_openmp_runtime_of_torch(module_path):
    """Two runtimes would ignore torch.set_num_threads and put twice the threads on the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    torch.ones(1000, 1000).sum()
    lines = maps.read_text().splitlines()
    runtimes = {line.split()[-1] for line in lines if re.search(r"/lib[gi]?omp[^/]*$", line)}
    assert len(runtimes) == 1, f"more than one OpenMP runtime: {runtimes}"


@pytest.mark.slow
def test_kernels_start_threads():
    """A compiler that ignores `omp parallel` builds without a word what then runs on one core for ever."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc")
    count = "len(os.listdir('/proc/self/task'))"
    code = f"import os, toykern; from toykern import _native; before = {count}; "
    code += f"_native.measure_fma_peak(3); print({count} - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2"


def test_exports_its_entry_and_none_of_its_functions(module_path):
    names = [name for _, name in _nm("-D", "--defined-only", module_path)]
    assert "PyInit__native" in names
    assert not [name for name in names if re.match(r"_ZNK?7toykern", name)]


def _level_objects() -> list[Path]:
    compiler = Path(os.environ.get("CXX", "g++")).name
    folder = ROOT / "build/native" / f"{sys.implementation.cache_tag}-{compiler}" / "objects/csrc/cpu"
    return [path for path in sorted(folder.glob("*.o")) if native_build._level(path)]


def test_level_objects_keep_to_themselves():
    """The linker keeps one copy of a shared function: it must not be the one compiled for AVX-512."""
    objects = _level_objects()
    if not objects:
        pytest.skip("the objects of the build are not here (installed, not built in place)")
    for path in objects:
        level = native_build._level(path)[1:]
        for kind, name in _nm("-C", "--defined-only", path):
            assert kind not in "WVu" or re.search(rf"\b{level}::", name), f"{path.name} defines shared {name}"


def test_level_objects_run_nothing_when_loaded():
    """A static initialiser of a level file would run, AVX-512 and all, on machines that lack it."""
    objects = _level_objects()
    if not objects:
        pytest.skip("the objects of the build are not here (installed, not built in place)")
    for path in objects:
        sections = subprocess.run(["readelf", "-SW", path], check=True, capture_output=True, text=True).stdout
        assert ".text" in sections
        assert not re.search(r"\.(init_array|ctors)", sections), f"{path.name} has a static initialiser"


def _nm(*arguments) -> list[tuple[str, str]]:
    """(kind, name) of every symbol listed."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    text = subprocess.run(["nm", *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    return [(kind, name) for kind, name in re.findall(r"^[0-9a-f]* *([A-Za-z]) (.+)$", text, re.MULTILINE)]


def test_python_headers_are_those_of_this_python():
    assert any(sysconfig.get_path("include") in folder for folder in native_build._binding_includes())


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_without_ninja_everything_is_compiled_and_linked_all_the_same(toy, capfd, monkeypatch, jobs):
    monkeypatch.setattr(native_build, "_ninja", lambda: None)
    monkeypatch.setenv("MAX_JOBS", jobs)
    destination = toy.root / "out" / "module.so"
    native_build.build(toy, destination)
    assert "ninja not found, so everything is compiled anew" in capfd.readouterr().out
    assert b"abc-dirty" in destination.read_bytes()
    (toy.root / "csrc/cpu/toy_v3.cpp").write_text("int level_v3() { return }\n")
    before = destination.read_bytes()
    with pytest.raises(BuildError, match="compiling the native module failed"):
        native_build.build(toy, destination)
    assert "toy_v3.cpp:1" in capfd.readouterr().err
    assert destination.read_bytes() == before


# --- whose threads ----------------------------------------------------------------------------------------


def test_threads_are_libgomps_unless_asked_otherwise(toy):
    for clang, flag in ((False, "-fopenmp"), (True, "-fopenmp=libgomp")):
        settings = replace(toy, clang=clang)
        assert flag in native_build.compile_flags(settings, Path("csrc/cpu/toy_base.cpp"))
        assert flag in native_build.link_flags(settings) and "-shared" in native_build.link_flags(settings)


def test_own_threads_need_no_openmp_and_build_apart(toy):
    own = replace(toy, own_threads=True)
    flags = native_build.compile_flags(own, Path("csrc/cpu/toy_base.cpp"))
    assert "-DTOYKERN_OWN_THREADS" in flags
    assert not [flag for flag in [*flags, *native_build.link_flags(own)] if "openmp" in flag]
    assert own.build_dir != toy.build_dir


def test_a_module_for_macos_is_a_bundle_without_openmp(toy):
    settings = replace(toy, own_threads=True, macos=True, clang=True, only_base=True)
    flags = native_build.link_flags(settings)
    assert flags[:3] == ["-bundle", "-undefined", "dynamic_lookup"] and "-shared" not in flags
    assert not [flag for flag in flags if "openmp" in flag or flag.startswith("-Wl,")]


def test_what_threads_may_be_asked_for(tmp_path):
    for asked, own in (("", False), ("libgomp", False), ("own", True)):
        environ = {"TOYKERN_THREADS": asked, "TOYKERN_CUDA": "0"}
        assert Settings.from_environment(tmp_path, "1", environ).own_threads == own
    with pytest.raises(BuildError, match=r"TOYKERN_THREADS is 'tbb'; allowed are 'libgomp' and 'own'"):
        Settings.from_environment(tmp_path, "1", {"TOYKERN_THREADS": "tbb", "TOYKERN_CUDA": "0"})
