"""Finds nvcc and what belongs to it, and decides for which GPUs the CUDA kernels are built.

`native_build` calls `choose`. nvcc is looked for in CUDACXX (its path), CUDA_HOME/bin, CUDA_PATH/bin, the
PATH and /usr/local/cuda/bin, in this order. Where its libraries are is asked of nvcc itself
(`nvcc --dryrun`): on the PATH it is often a script that starts the real one, whose folder says nothing.

No GPU, no driver and no CUDA build of torch is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHS = (75, 80, 90, 100, 120)
OLDEST_ARCH = 75
# From each of these on machine code is made from one PTX, so that nvcc's front end, half of its time, runs
# once less for the default archs. The sources must tell no others apart (__CUDA_ARCH__). Two lineages would
# not do: Blackwell's code from Hopper's PTX spills.
LINEAGES = (75, 80, 90, 100)
OLDEST_NVCC = (11, 8)  # sm_90, thread block clusters, C++17
NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo", "--expt-relaxed-constexpr", "-Xfatbin=-compress-all"]
# As on the CPU: a multiply-add is fused where the source says fma and nowhere else, quotients and roots are
# rounded correctly, and denormals are zero (the CPU's kernels run with flush-to-zero).
NVCC_FLAGS += ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=true"]
NVCC_FLAGS += ["-Xptxas=-v"]  # registers, spills and shared memory of every kernel: see ptxas_report.py


class CudaError(Exception):
    """CUDA kernels cannot be built; the message says why."""


@dataclass(frozen=True)
class Toolkit:
    """One installation of nvcc that is complete and works with the project's compiler."""

    nvcc: Path
    release: tuple[int, int]
    host_compiler: str
    cudart: Path  # libcudart_static.a
    known_archs: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is called in messages: `nvcc 13.0`."""
        return f"nvcc {self.release[0]}.{self.release[1]}"


@dataclass(frozen=True)
class Cuda:
    """Whether the module gets CUDA kernels (it does if there is a toolkit), for which GPUs, and why."""

    state: str
    toolkit: Toolkit | None = None
    archs: tuple[int, ...] = ()

    @property
    def ptx(self) -> int | None:
        """What the PTX is for that the module brings along for GPUs still to come; None without kernels."""
        return ptx_of(self.archs, self.archs[-1]) if self.archs else None

    def compile_command(self, host_flags: Sequence[str]) -> list[str]:
        """nvcc and its flags: machine code for every arch, and PTX for GPUs still to come."""
        assert self.toolkit is not None
        command = [str(self.toolkit.nvcc), "-ccbin", self.toolkit.host_compiler, *NVCC_FLAGS]
        # an nvcc that has been replaced in its place must compile everything again
        command.append("-DTOYKERN_NVCC={}.{}".format(*self.toolkit.release))
        for ptx in sorted({ptx_of(self.archs, arch) for arch in self.archs}):
            code = [f"sm_{arch}" for arch in self.archs if ptx_of(self.archs, arch) == ptx]
            code += [f"compute_{ptx}"] if ptx == self.ptx else []
            command.append(f"-gencode=arch=compute_{ptx},code=[{','.join(code)}]")
        # nvcc splits the value of -Xcompiler at commas
        return command + ["-Xcompiler=" + flag.replace(",", "\\,") for flag in host_flags]

    def link_flags(self) -> list[str]:
        """The static CUDA runtime, its names hidden from torch's own one, which may be another version."""
        if self.toolkit is None:
            return []
        return [
            str(self.toolkit.cudart),
            f"-Wl,--exclude-libs,{self.toolkit.cudart.name}",
            "-ldl",
            "-lrt",
            "-pthread",
        ]


def choose(environ: Mapping[str, str], compiler: Sequence[str], sanitize: str = "") -> Cuda:
    """What TOYKERN_CUDA and TOYKERN_CUDA_ARCHS ask for, as far as it can be built; else CudaError."""
    wanted = environ.get("TOYKERN_CUDA", "auto")
    if wanted not in ("auto", "1", "0"):
        raise CudaError(f"TOYKERN_CUDA is {wanted!r}; allowed are 'auto', '1' and '0'")
    asked = parse_archs(environ.get("TOYKERN_CUDA_ARCHS", ""))
    if wanted == "0":
        return Cuda("not built: TOYKERN_CUDA=0")
    if wanted == "auto" and sanitize:
        return Cuda(
            "not built: sanitizers see host code only (TOYKERN_CUDA=1 builds the CUDA kernels all the same)"
        )
    try:
        toolkit = find_toolkit(environ, compiler)
    except CudaError as error:
        if wanted == "1":
            raise CudaError(f"TOYKERN_CUDA=1 asks for CUDA kernels, but {error}") from None
        return Cuda(f"not built: {error}")
    archs, left_out = _split_archs(toolkit, asked)
    names = ", ".join(f"sm_{arch}" for arch in archs)
    state = f"built: {toolkit.name} for {names} and PTX of compute_{ptx_of(archs, archs[-1])}"
    if left_out:
        state += (
            f"; left out {', '.join(f'sm_{arch}' for arch in left_out)}, which {toolkit.name} does not know"
        )
    return Cuda(state, toolkit, archs)


def parse_archs(text: str) -> tuple[int, ...]:
    """The archs of TOYKERN_CUDA_ARCHS in rising order, each once; none for an empty text.

    >>> parse_archs("90;80")
    (80, 90)
    """
    parts = [part.strip() for part in re.split("[;,]", text) if part.strip()]
    for part in parts:
        if not (part.isdecimal() and 2 <= len(part) <= 3 and int(part) >= OLDEST_ARCH):
            raise CudaError(
                f"TOYKERN_CUDA_ARCHS is {text!r}; allowed are compute capabilities of at least "
                f"{OLDEST_ARCH}, without a point and separated by ';', such as '80;90'"
            )
    if text.strip() and not parts:
        raise CudaError(f"TOYKERN_CUDA_ARCHS is {text!r}, which names no compute capability")
    return tuple(sorted({int(part) for part in parts}))


def ptx_of(archs: Sequence[int], arch: int) -> int:
    """The PTX that an arch's machine code is made from: that of the oldest of `archs` of its lineage.

    >>> [ptx_of((80, 86, 90, 100, 120), arch) for arch in (80, 86, 90, 100, 120)]
    [80, 80, 90, 100, 100]
    """
    lineage = max(first for first in LINEAGES if first <= arch)
    return min(other for other in archs if other >= lineage)


def find_toolkit(environ: Mapping[str, str], compiler: Sequence[str]) -> Toolkit:
    """The first nvcc there is, checked; CudaError with the reason if there is none or it cannot be used."""
    nvcc = _find_nvcc(environ)
    release = _release(nvcc)
    name = f"nvcc {release[0]}.{release[1]} ({nvcc})"
    if release < OLDEST_NVCC:
        raise CudaError(f"{name} is too old: {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or newer is needed")
    host_compiler = shutil.which(compiler[-1]) or compiler[-1]
    # Preprocessing nothing includes CUDA's own headers, which refuse compilers that nvcc does not support.
    probe = _run([str(nvcc), "-ccbin", host_compiler, "-E", "-x", "cu", os.devnull, "-o", os.devnull])
    if probe.returncode != 0:
        raise CudaError(
            f"{name} does not work with the compiler {host_compiler}: {_first_error(probe.stderr)}"
        )
    known = {
        int(arch) for arch in re.findall(r"compute_(\d+)\b", _run([str(nvcc), "--list-gpu-arch"]).stdout)
    }
    if not known:
        raise CudaError(f"{name} does not say for which GPUs it compiles (nvcc --list-gpu-arch)")
    return Toolkit(nvcc, release, host_compiler, _find_cudart(nvcc, host_compiler), tuple(sorted(known)))


def _find_nvcc(environ: Mapping[str, str]) -> Path:
    named = environ.get("CUDACXX", "")
    if named:  # asked for by name: no other will do
        found = shutil.which(named, path=environ.get("PATH"))
        if found is None:
            raise CudaError(f"CUDACXX is {named!r}, which is no program")
        return Path(found)
    folders = [Path(environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    looked_in = os.pathsep.join([*map(str, folders), environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which("nvcc", path=looked_in)
    if found is None:
        raise CudaError(
            "nvcc is not found; install the CUDA toolkit and put it on the PATH, or set CUDACXX or CUDA_HOME"
        )
    return Path(found)


def _release(nvcc: Path) -> tuple[int, int]:
    answer = _run([str(nvcc), "--version"])
    match = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    if match is None:
        raise CudaError(f"{nvcc} does not work: {_first_error(answer.stderr or answer.stdout)}")
    return int(match[1]), int(match[2])


def _find_cudart(nvcc: Path, host_compiler: str) -> Path:
    """libcudart_static.a, in the folders that nvcc would give to the linker, or the compiler's own."""
    plan = _run([str(nvcc), "--dryrun", "-x", "cu", os.devnull, "-o", "a.out"])
    says = dict(re.findall(r"^#\$ (\w+)=(.*)$", plan.stderr + plan.stdout, re.MULTILINE))
    folders = [flag[2:] for flag in shlex.split(says.get("LIBRARIES", "")) if flag.startswith("-L")]
    top = says.get("TOP", "").strip() or str(nvcc.resolve().parent.parent)
    folders += [f"{top}/lib64", f"{top}/lib"]
    own = _run([host_compiler, "-print-file-name=libcudart_static.a"]).stdout.strip()
    candidates = [Path(folder) / "libcudart_static.a" for folder in folders] + [Path(own)]
    for path in candidates:
        if path.is_absolute() and path.exists():
            return path.resolve()
    raise CudaError(
        f"{nvcc} has no libcudart_static.a beside it (looked in {', '.join(folders)}); install the "
        "development files of the CUDA runtime"
    )


def _split_archs(toolkit: Toolkit, asked: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(built, left out). What was asked for must be known to nvcc, of the default what is known is built."""
    unknown = tuple(arch for arch in asked or DEFAULT_ARCHS if arch not in toolkit.known_archs)
    if asked and unknown:
        usable = ", ".join(str(arch) for arch in toolkit.known_archs if arch >= OLDEST_ARCH)
        raise CudaError(
            f"TOYKERN_CUDA_ARCHS asks for {', '.join(map(str, unknown))}, which {toolkit.name} does not "
            f"know; it knows {usable}"
        )
    return tuple(arch for arch in asked or DEFAULT_ARCHS if arch not in unknown), unknown


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: {error.strerror}")


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it says nothing")
