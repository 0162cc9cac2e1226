"""Builds `toykern._native` with ninja: which sources, which flags, and the facts baked into the module.

`setup.py` calls `build`. Sources are found by folder, so a new kernel needs no edit here; a file's suffix
says for which instruction-set level it is compiled:

    *_v4.cpp    x86-64-v4 (AVX-512)         *_neon.cpp    64-bit ARM
    *_v3.cpp    x86-64-v3 (AVX2, FMA)       others        the baseline of any CPU

The levels of another CPU than the compiler makes code for are left out; a cross compiler's CPU is its own.

In csrc/cuda, .cu files are compiled by nvcc, one process each, and what ptxas says of their kernels is kept
beside the object (`ptxas_report.py`). Where the module gets no CUDA kernels, `<name>_stub.cpp` stands in for
`<name>.cu`. All other .cpp files there are ordinary host sources, compiled either way: they run the device
sources on the CPU.

Environment:

    CXX                 the compiler (g++ by default; `clang++` and wrappers such as `ccache g++` work)
    MAX_JOBS            compiler processes at a time (default: the cores this process may use)
    TOYKERN_CUDA        CUDA kernels: auto (if nvcc is found; the default) | 1 (or fail) | 0 (without)
    TOYKERN_CUDA_ARCHS  for which GPUs, "75;80;90;100;120" by default; later ones run PTX
    CUDACXX, CUDA_HOME, CUDA_PATH
                        where nvcc is, if not on the PATH (`cuda_toolkit.py`)
    TOYKERN_SANITIZE    a list for -fsanitize=, for example address,undefined
    TOYKERN_COMMIT      the commit to bake in where there is no git checkout
    TOYKERN_ONLY_BASE   1: the baseline alone, without a level of any CPU
    TOYKERN_THREADS     whose threads: libgomp (torch's on Linux; the default there) | own (std::thread; the
                        default on macOS, where torch brings an OpenMP runtime that is not libgomp)
    TOYKERN_CXXFLAGS    appended to every compile, for profiling and experiments

CXXFLAGS is not read: a stray -march or -ffast-math in it would silently break the promise that every
instruction-set level and every installation computes the same bits.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cuda_toolkit import Cuda, CudaError, choose

SOURCE_FOLDERS = ("csrc/cuda", "csrc/cpu", "csrc/bind", "csrc/common")  # the slowest to compile first
BINDING = "csrc/bind/module.cpp"  # alone is told the commit, so that a new commit recompiles nothing else

COMMON_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
COMMON_FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
INCLUDES = ["-Icsrc", "-Icsrc/include"]
OPTIMIZED = ["-O3", "-g0"]
# Calls into the kernels, and the device's source on the host for the tests: -O3 takes twice as long.
LIGHTLY = ["-O1", "-g0"]
LIGHT_FOLDERS = (Path("csrc/bind"), Path("csrc/cuda"))
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# And operations on lanes stay calls (immintrin.h spells the attribute with underscores: its own are inlined):
# with a copy of every check at every use of one, a level's file compiles for several times as long.
CALLED = ["-Dalways_inline="]
LEVEL_FLAGS = {
    "_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mtune=generic"],
    "_v3": ["-march=x86-64-v3", "-mtune=generic"],
    "_neon": [],  # part of the baseline of 64-bit ARM
}
LEVELS = {"x86_64": ("_v4", "_v3"), "aarch64": ("_neon",)}  # by the CPU that the compiler makes code for


class BuildError(Exception):
    """The native module cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is built: equal settings and equal sources give equal modules."""

    root: Path
    compiler: tuple[str, ...]
    clang: bool
    version: str
    commit: str
    cuda: Cuda
    cpu: str = "x86_64"
    sanitize: str = ""
    only_base: bool = False
    own_threads: bool = False
    macos: bool = False
    extra_flags: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, root: Path, version: str, environ: Mapping[str, str] = os.environ) -> Settings:
        """Reads and checks the environment; raises BuildError for a value that is not allowed."""
        macos = sys.platform == "darwin"
        compiler = tuple(shlex.split(environ.get("CXX", "") or ("clang++" if macos else "g++")))
        sanitize = environ.get("TOYKERN_SANITIZE", "")
        try:
            cuda = choose(environ, compiler, sanitize)
        except CudaError as error:
            raise BuildError(str(error)) from None
        macros = _macros(compiler)
        return cls(
            root=root,
            compiler=compiler,
            clang="__clang__" in macros,
            version=version,
            commit=find_commit(root, environ),
            cuda=cuda,
            cpu=next((cpu for cpu in LEVELS if f"__{cpu}__" in macros), "other"),
            sanitize=sanitize,
            only_base=environ.get("TOYKERN_ONLY_BASE", "0") not in ("", "0"),
            own_threads=_own_threads(environ, macos),
            macos=macos,
            extra_flags=tuple(shlex.split(environ.get("TOYKERN_CXXFLAGS", ""))),
        )

    @property
    def levels(self) -> tuple[str, ...]:
        """The suffixes of the levels that are built beside the baseline, best first."""
        return () if self.only_base else LEVELS.get(self.cpu, ())

    @property
    def build_dir(self) -> Path:
        """Objects are kept here between builds, apart for each Python, compiler and sanitizer."""
        parts = [sys.implementation.cache_tag, Path(self.compiler[-1]).name]
        parts += ["base"] if self.only_base else []
        parts += ["own-threads"] if self.own_threads else []
        parts += self.sanitize.split(",") if self.sanitize else []
        return self.root / "build" / "native" / "-".join(parts)


def find_commit(root: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The checkout's commit (`-dirty` if a tracked file differs), else TOYKERN_COMMIT, else 'unknown'."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            raise OSError("the sources lie inside some other repository")
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return environ.get("TOYKERN_COMMIT", "") or "unknown"


def sources(settings: Settings) -> list[Path]:
    """The files to compile, relative to the root, in a fixed order."""
    suffixes = [".cu", ".cpp"] if settings.cuda.toolkit else [".cpp"]
    found = [
        path.relative_to(settings.root)
        for folder in SOURCE_FOLDERS
        for suffix in suffixes
        for path in sorted((settings.root / folder).rglob(f"*{suffix}"))
    ]
    if not found:
        raise BuildError(f"no sources under {settings.root / 'csrc'}: is the checkout complete?")
    if settings.cuda.toolkit:
        found = [path for path in found if not _is_stub(path)]
    return [path for path in found if _level(path) in ("", *settings.levels)]


def compile_flags(settings: Settings, source: Path) -> list[str]:
    """The host compiler's flags for one source, include folders and definitions among them."""
    flags = [*COMMON_FLAGS, *LEVEL_FLAGS.get(_level(source), [])]
    if _level(source) == "_v4" and not settings.clang:
        # GCC 12's own AVX-512 headers start from undefined registers and warn about it (its bug 105593).
        flags += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    flags += ["-DTOYKERN_OWN_THREADS", "-pthread"] if settings.own_threads else _libgomp(settings)
    optimized = LIGHTLY if any(source.is_relative_to(folder) for folder in LIGHT_FOLDERS) else OPTIMIZED
    flags += [f"-fsanitize={settings.sanitize}", *SANITIZED, *CALLED] if settings.sanitize else optimized
    flags += INCLUDES
    if settings.only_base:
        flags += ["-DTOYKERN_ONLY_BASE"]
    if source.parent == Path(BINDING).parent:
        flags += [f"-isystem{folder}" for folder in _binding_includes()]
    if source == Path(BINDING):
        archs = ";".join(map(str, settings.cuda.archs))
        facts = {"VERSION": settings.version, "COMMIT": settings.commit}
        facts |= {"CUDA_STATE": settings.cuda.state, "CUDA_ARCHS": archs, "CUDA_PTX": settings.cuda.ptx or ""}
        flags += [f'-DTOYKERN_{name}="{value}"' for name, value in facts.items()]
    return [*flags, *settings.extra_flags]


def cuda_command(settings: Settings) -> list[str]:
    """nvcc and its flags, the same for every .cu file."""
    host = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
    host += [f"-fsanitize={settings.sanitize}", *SANITIZED] if settings.sanitize else []
    return [*settings.cuda.compile_command([*host, *settings.extra_flags]), *INCLUDES]


def link_flags(settings: Settings) -> list[str]:
    """All flags of the one link, to come after the objects."""
    # On macOS an extension is a bundle, and Python's own names are found when it is loaded.
    flags = ["-bundle", "-undefined", "dynamic_lookup"] if settings.macos else ["-shared"]
    flags += settings.cuda.link_flags()
    flags += ["-pthread"] if settings.own_threads else _libgomp(settings)
    if settings.sanitize:
        flags += [f"-fsanitize={settings.sanitize}"]
    if settings.sanitize and settings.clang:  # its run-time libraries lie where the loader does not look
        library = f"-print-file-name=libclang_rt.asan-{platform.machine()}.so"
        found = subprocess.run([*settings.compiler, library], capture_output=True, text=True).stdout
        flags += ["-shared-libsan", f"-Wl,-rpath,{Path(found.strip()).parent}"]
    return flags


def ninja_text(settings: Settings) -> str:
    """The whole of build.ninja: one line per source, one link."""
    compiler = shlex.join(settings.compiler)
    # relative to the root, where ninja runs: nvcc's own shell would stumble over a '$' in the path to it
    objects_dir = settings.build_dir.relative_to(settings.root) / "objects"
    lines = [
        "# Written by tools/native_build.py",
        f"# {_cuda_line(settings)}",
        "ninja_required_version = 1.8",
        f"builddir = {_value(settings.build_dir)}",
        "rule compile",
        f"  command = {_value(compiler)} -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        *(_cuda_rule(settings) if settings.cuda.toolkit else []),
        "rule link",
        f"  command = {_value(compiler)} $in -o $out $flags",
        "  description = link $out",
    ]
    objects = []
    for source in sources(settings):
        if source.suffix == ".cu":  # apart from the object of a .cpp of the same name
            target = _path(objects_dir / source.with_suffix(".cu.o"))
            objects.append(target)
            lines += [f"build {target} | {target}.ptxas: cuda {_path(source)}"]
            continue
        target = _path(objects_dir / source.with_suffix(".o"))
        objects.append(target)
        lines += [f"build {target}: compile {_path(source)}"]
        lines += [f"  flags = {_value(shlex.join(compile_flags(settings, source)))}"]
    lines += [f"build {_path(module_path(settings))}: link {' '.join(objects)}"]
    lines += [f"  flags = {_value(shlex.join(link_flags(settings)))}"]
    return "\n".join(lines) + "\n"


def module_path(settings: Settings) -> Path:
    """Where ninja leaves the module before it is copied to its destination."""
    return settings.build_dir / "_native.so"


def build(settings: Settings, destination: Path) -> None:
    """Brings the module up to date and moves it to `destination`; a running process keeps its own."""
    if shutil.which(settings.compiler[-1]) is None:
        name = settings.compiler[-1]
        raise BuildError(f"compiler {name!r} not found; install GCC 11 or Clang 12 or newer, or set CXX")
    settings.build_dir.mkdir(parents=True, exist_ok=True)
    ninja_file = settings.build_dir / "build.ninja"
    text = ninja_text(settings)
    before = ninja_file.read_text() if ninja_file.exists() else ""
    if text != before:
        ninja_file.write_text(text)
    if _cuda_line(settings) not in before:  # once, not at every rebuild
        print(f"toykern: {_cuda_line(settings)}", flush=True)
    jobs, ninja = int(os.environ.get("MAX_JOBS") or _cores()), _ninja()
    if ninja is None:
        print("toykern: ninja not found, so everything is compiled anew (pip install ninja)", flush=True)
        done = _build_plainly(settings, jobs)
    else:
        command = [ninja, "-f", str(ninja_file), "-j", str(jobs)]
        done = subprocess.run(command, cwd=settings.root).returncode == 0
    if not done:
        raise BuildError("compiling the native module failed; the compiler's messages are above")
    destination.parent.mkdir(parents=True, exist_ok=True)
    beside = destination.with_name(destination.name + ".new")
    shutil.copy2(module_path(settings), beside)
    os.replace(beside, destination)


def _build_plainly(settings: Settings, jobs: int) -> bool:
    """What ninja would do with nothing built before: all sources in parallel, then the link."""
    objects_dir = settings.build_dir.relative_to(settings.root) / "objects"
    targets, commands = [], []
    for source in sources(settings):
        target = objects_dir / source.with_suffix(".cu.o" if source.suffix == ".cu" else ".o")
        (settings.root / target).parent.mkdir(parents=True, exist_ok=True)
        targets.append(str(target))
        if source.suffix == ".cu":
            command = shlex.join([*cuda_command(settings), "-c", str(source), "-o", str(target)])
            commands.append(_keeping_remarks(command, shlex.quote(f"{target}.ptxas")))
        else:
            flags = compile_flags(settings, source)
            commands.append(shlex.join([*settings.compiler, *flags, "-c", str(source), "-o", str(target)]))

    def run(command: str) -> bool:
        return subprocess.run(command, shell=True, cwd=settings.root).returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        if not all(list(pool.map(run, commands))):
            return False
    link = [*settings.compiler, *targets, "-o", str(module_path(settings)), *link_flags(settings)]
    return run(shlex.join(link))


def _keeping_remarks(command: str, report: str) -> str:
    """A shell command that puts nvcc's messages and ptxas' remarks into a report, and shows the former."""
    shown = f"grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' {report} >&2"
    return f"{command} 2>{report}; status=$?; {shown}; exit $status"


def _cuda_line(settings: Settings) -> str:
    return f"CUDA kernels {settings.cuda.state}"


def _cuda_rule(settings: Settings) -> list[str]:
    command = _value(shlex.join(cuda_command(settings))) + " -MD -MF $out.d -c $in -o $out"
    keeping = _keeping_remarks(command, "$out.ptxas").replace("$?", "$$?").replace("$status", "$$status")
    return [
        "rule cuda",
        f"  command = {keeping}",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
    ]


def _libgomp(settings: Settings) -> list[str]:
    """The flag that links libgomp, whose threads are torch's too.

    Clang makes no code of `#pragma omp` for that runtime: what has to run in parallel calls its own entry
    points (csrc/cpu/threads/parallel.h).
    """
    return ["-fopenmp=libgomp" if settings.clang else "-fopenmp"]


def _own_threads(environ: Mapping[str, str], macos: bool) -> bool:
    asked = environ.get("TOYKERN_THREADS", "") or ("own" if macos else "libgomp")
    if asked not in ("libgomp", "own"):
        raise BuildError(f"TOYKERN_THREADS is {asked!r}; allowed are 'libgomp' and 'own'")
    return asked == "own"


def _is_stub(source: Path) -> bool:
    return source.is_relative_to("csrc/cuda") and source.stem.endswith("_stub")


def _level(source: Path) -> str:
    return next((suffix for suffix in LEVEL_FLAGS if source.stem.endswith(suffix)), "")


def _macros(compiler: tuple[str, ...]) -> frozenset[str]:
    """The names that the compiler defines by itself: who it is, and for which CPU it makes code."""
    try:
        command = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
        text = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        text = ""  # `build` reports a missing compiler
    return frozenset(line.split()[1] for line in text.splitlines() if line.startswith("#define "))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _binding_includes() -> list[str]:
    import pybind11  # here, so that the rest of this file can be tested without it

    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        raise BuildError(f"no Python.h in {python}; install this Python's development files (python3-dev)")
    return [pybind11.get_include(), python]


def _ninja() -> str | None:
    """The path of ninja, or None where there is none."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return str(Path(ninja.BIN_DIR) / "ninja")


def _value(text: object) -> str:
    """Escapes the value of a ninja variable."""
    return str(text).replace("$", "$$")


def _path(text: object) -> str:
    """Escapes a path on a ninja build line."""
    return _value(text).replace(" ", "$ ").replace(":", "$:")
