"""The CUDA build: which nvcc and archs, refusals, and what ptxas made of the kernels (the compile gate)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import cuda_toolkit  # noqa: E402
import native_build  # noqa: E402
import ptxas_report  # noqa: E402
from cuda_toolkit import Cuda, CudaError, choose, find_toolkit  # noqa: E402
from native_build import Settings  # noqa: E402

KIB = 1024
# KiB of shared memory that a block can ask for (CUDA C++ Programming Guide, by compute capability).
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
REGISTERS = 65536  # of an SM, and of a block

FAKE_NVCC = """#!/bin/sh
case "$*" in
    --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
    --list-gpu-arch) for arch in {archs}; do echo compute_$arch; done ;;
    *--dryrun*) printf '#$ TOP=%s\\n#$ LIBRARIES=  "-L%s/stubs" "-L%s/lib"\\n' "{top}" "{top}" "{top}" >&2 ;;
    *-E*) {probe} ;;
    *) exit 1 ;;
esac
"""


class FakeToolkit:
    """A CUDA toolkit in a folder: an nvcc that answers questions and compiles nothing."""

    def __init__(self, top: Path, release="13.0", archs="75 80 86 90 100 120", probe="exit 0"):
        self.top, self.nvcc = top, top / "bin/nvcc"
        text = FAKE_NVCC.format(release=release, archs=archs, top=top, probe=probe)
        write_program(self.nvcc, text)
        (top / "lib").mkdir()
        (top / "lib/libcudart_static.a").touch()


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def without(monkeypatch):
    """An environment in which there is no nvcc, wherever it may be on this machine."""
    which = shutil.which

    def no_default(name, path=None):
        return which(name, path=path.replace("/usr/local/cuda/bin", "") if path is not None else None)

    monkeypatch.setattr(cuda_toolkit.shutil, "which", no_default)
    return {"PATH": "/no/such/folder"}


@pytest.fixture
def fake(tmp_path, without):
    def make(folder="toolkit", **settings):
        return FakeToolkit(tmp_path / folder, **settings)

    return make


def real_environment() -> dict[str, str]:
    return {
        name: os.environ[name] for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH") if name in os.environ
    }


@pytest.fixture
def real():
    """The toolkit of this machine."""
    try:
        return find_toolkit(real_environment(), ["g++"])
    except CudaError as error:
        pytest.skip(f"no CUDA toolkit: {error}")


# --- which nvcc -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_by", ["CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH"])
def test_nvcc_is_found_by(fake, without, named_by):
    toolkit = fake()
    value = {"CUDACXX": toolkit.nvcc, "PATH": toolkit.nvcc.parent}.get(named_by, toolkit.top)
    found = find_toolkit({**without, named_by: str(value)}, ["g++"])
    assert found.nvcc == toolkit.nvcc
    assert found.release == (13, 0)
    assert found.cudart == toolkit.top / "lib/libcudart_static.a"
    assert found.known_archs == (75, 80, 86, 90, 100, 120)


def test_what_is_named_goes_before_the_path(fake):
    first, second, third = fake("first"), fake("second"), fake("third")
    environ = {"PATH": str(third.nvcc.parent), "CUDA_HOME": str(second.top), "CUDACXX": str(first.nvcc)}
    for toolkit, name in ((first, "CUDACXX"), (second, "CUDA_HOME"), (third, None)):
        assert find_toolkit(environ, ["g++"]).nvcc == toolkit.nvcc
        environ.pop(name, None)


def test_a_cuda_home_without_nvcc_does_not_hide_the_one_on_the_path(fake):
    toolkit = fake()
    environ = {"PATH": str(toolkit.nvcc.parent), "CUDA_HOME": "/no/such/folder"}
    assert find_toolkit(environ, ["g++"]).nvcc == toolkit.nvcc


def test_libraries_are_found_behind_a_wrapper_script(fake, tmp_path, without):
    toolkit = fake()
    wrapper = tmp_path / "elsewhere/nvcc"
    write_program(wrapper, f'#!/bin/sh\nexec "{toolkit.nvcc}" "$@"\n')
    found = find_toolkit({"PATH": str(wrapper.parent)}, ["g++"])
    assert found.nvcc == wrapper
    assert found.cudart == toolkit.top / "lib/libcudart_static.a"


def test_a_wrapper_script_of_the_real_nvcc(real, tmp_path):
    wrapper = tmp_path / "nvcc"
    write_program(wrapper, f'#!/bin/sh\nexec "{real.nvcc}" "$@"\n')
    found = find_toolkit({"CUDACXX": str(wrapper), "PATH": os.environ["PATH"]}, ["g++"])
    assert (found.nvcc, found.cudart) == (wrapper, real.cudart)


# --- which archs ------------------------------------------------------------------------------------------


def gencode(cuda: Cuda) -> list[str]:
    return [
        flag.removeprefix("-gencode=") for flag in cuda.compile_command([]) if flag.startswith("-gencode")
    ]


def test_all_default_archs_from_one_ptx_for_each_generation(fake):
    cuda = choose({"CUDACXX": str(fake().nvcc)}, ["g++"])
    assert (cuda.archs, cuda.ptx) == ((75, 80, 90, 100, 120), 100)
    assert cuda.state == "built: nvcc 13.0 for sm_75, sm_80, sm_90, sm_100, sm_120 and PTX of compute_100"
    assert gencode(cuda) == [
        "arch=compute_75,code=[sm_75]",
        "arch=compute_80,code=[sm_80]",
        "arch=compute_90,code=[sm_90]",
        "arch=compute_100,code=[sm_100,sm_120,compute_100]",
    ]


@pytest.mark.parametrize(
    ("archs", "code"),
    [
        ("90", ["arch=compute_90,code=[sm_90,compute_90]"]),
        ("80;86", ["arch=compute_80,code=[sm_80,sm_86,compute_80]"]),
        ("75;80", ["arch=compute_75,code=[sm_75]", "arch=compute_80,code=[sm_80,compute_80]"]),
        ("86;120", ["arch=compute_86,code=[sm_86]", "arch=compute_120,code=[sm_120,compute_120]"]),
    ],
)
def test_what_few_archs_are_made_from(fake, archs, code):
    assert gencode(choose({"CUDACXX": str(fake().nvcc), "TOYKERN_CUDA_ARCHS": archs}, ["g++"])) == code


def test_the_sources_tell_no_more_archs_apart_than_the_build_makes():
    """Machine code from an older PTX is right only while nothing in the sources asks for a newer one."""
    asked = [
        (path.name, line.strip())
        for path in sorted((ROOT / "csrc").rglob("*"))
        if path.suffix in (".cu", ".cuh", ".h")
        for line in path.read_text().splitlines()
        if "__CUDA_ARCH__" in line and re.search(r"\d{3,}", line.split("__CUDA_ARCH__")[-1])
    ]
    assert asked  # train_tiny.cu, common/lanes.h
    for name, line in asked:
        numbers = {int(n) for n in re.findall(r"__CUDA_ARCH__\s*[<>=!]+\s*(\d+)", line)}
        assert numbers <= {10 * first for first in cuda_toolkit.LINEAGES}, (name, line)


def test_an_older_nvcc_leaves_out_what_it_does_not_know_and_says_so(fake):
    cuda = choose({"CUDACXX": str(fake(release="12.0", archs="70 80 90").nvcc)}, ["g++"])
    assert cuda.archs == (80, 90)
    assert cuda.state == (
        "built: nvcc 12.0 for sm_80, sm_90 and PTX of compute_90; left out sm_75, sm_100, sm_120, "
        "which nvcc 12.0 does not know"
    )


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_archs_asked_for_must_be_known(fake, wanted):
    environ = {"CUDACXX": str(fake(release="12.0", archs="70 80 90").nvcc), "TOYKERN_CUDA": wanted}
    assert choose(environ | {"TOYKERN_CUDA_ARCHS": "90, 80;90"}, ["g++"]).archs == (80, 90)
    with pytest.raises(CudaError, match=r"asks for 120, which nvcc 12\.0 does not know; it knows 80, 90$"):
        choose(environ | {"TOYKERN_CUDA_ARCHS": "80;120"}, ["g++"])


@pytest.mark.parametrize("archs", ["sm_90", "9.0", "70", "8", "9000", "native", "80 90", "-80", ";"])
def test_archs_are_checked(without, archs):
    for wanted in ("auto", "1", "0"):
        with pytest.raises(CudaError, match=r"TOYKERN_CUDA_ARCHS is '.*'[,;]"):
            choose({**without, "TOYKERN_CUDA": wanted, "TOYKERN_CUDA_ARCHS": archs}, ["g++"])


# --- left out, or refused ---------------------------------------------------------------------------------


def both_ways(environ, reason):
    """By itself CUDA is left out with the reason; asked for, the build fails with it."""
    assert re.match(f"not built: .*{reason}", choose(environ, ["g++"]).state)
    with pytest.raises(CudaError, match=f"TOYKERN_CUDA=1 asks for CUDA kernels, but .*{reason}"):
        choose({**environ, "TOYKERN_CUDA": "1"}, ["g++"])


def test_without_nvcc(without):
    both_ways(without, "nvcc is not found; install the CUDA toolkit")


def test_cudacxx_that_is_no_program(fake, without):
    both_ways(
        {"PATH": str(fake().nvcc.parent), "CUDACXX": "/no/nvcc"}, "CUDACXX is '/no/nvcc', which is no program"
    )


def test_an_nvcc_too_old(fake):
    both_ways({"CUDACXX": str(fake(release="11.2").nvcc)}, r"nvcc 11\.2 .* is too old: 11\.8 or newer")


def test_an_nvcc_that_refuses_the_compiler(fake):
    probe = "echo 'In file included from x' >&2; echo 'x.h:1: error: unsupported GNU version!' >&2; exit 1"
    both_ways({"CUDACXX": str(fake(probe=probe).nvcc)}, "does not work with the compiler .*: unsupported GNU")


def test_a_broken_nvcc(tmp_path, without):
    write_program(tmp_path / "nvcc", "#!/bin/sh\necho 'license expired' >&2; exit 3\n")
    both_ways({"PATH": str(tmp_path)}, "nvcc does not work: license expired")


def test_a_toolkit_without_the_static_runtime(fake):
    toolkit = fake()
    (toolkit.top / "lib/libcudart_static.a").unlink()
    both_ways({"CUDACXX": str(toolkit.nvcc)}, r"has no libcudart_static\.a beside it")


def test_cuda_switched_off(fake):
    cuda = choose({"CUDACXX": str(fake().nvcc), "TOYKERN_CUDA": "0"}, ["g++"])
    assert (cuda.state, cuda.toolkit, cuda.link_flags()) == ("not built: TOYKERN_CUDA=0", None, [])


def test_sanitizers_build_the_kernels_only_when_asked(fake):
    environ = {"CUDACXX": str(fake().nvcc)}
    assert choose(environ, ["g++"], sanitize="address").state.startswith(
        "not built: sanitizers see host code"
    )
    assert choose({**environ, "TOYKERN_CUDA": "1"}, ["g++"], sanitize="address").toolkit


@pytest.mark.parametrize("wanted", ["yes", "", "2"])
def test_the_setting_is_checked(wanted):
    with pytest.raises(CudaError, match=f"TOYKERN_CUDA is '{wanted}'; allowed are 'auto', '1' and '0'"):
        choose({"TOYKERN_CUDA": wanted}, ["g++"])


def test_setup_fails_loudly_where_cuda_cannot_be_had():
    environ = {**os.environ, "TOYKERN_CUDA": "1", "CUDACXX": "/no/nvcc"}
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode != 0
    assert "toykern: TOYKERN_CUDA=1 asks for CUDA kernels, but CUDACXX is" in result.stderr
    assert "Traceback" not in result.stderr


# --- building ---------------------------------------------------------------------------------------------

TOY_SOURCES = {
    "csrc/cuda/shared.cuh": "template <int N> __global__ void first(float* x) { x[threadIdx.x] = N; }\n",
    "csrc/cuda/toy.cu": (
        '#include "cuda/shared.cuh"\nint level_base();\n'
        "int on_gpu() {\n    int unused;\n    first<7><<<1, 1>>>(nullptr);\n"
        "    return (int)cudaGetLastError() + level_base();\n}\n"
    ),
    "csrc/cuda/other.cu": "__global__ void second(double* x) { *x = 1; }\n",
    "csrc/cuda/toy_stub.cpp": "int on_gpu() { return -1; }\n",
    "csrc/cuda/host_toy.cpp": "int on_host() { return 1; }\n",
    "csrc/cpu/toy_base.cpp": "int level_base() { return 1; }\n",
    "csrc/bind/module.cpp": (
        'int on_gpu();\nextern "C" __attribute__((visibility("default"))) const char* archs() {\n'
        '    return on_gpu() ? TOYKERN_CUDA_ARCHS : "";\n}\n'
    ),
}


@pytest.fixture
def toy(tmp_path):
    """A project with two CUDA sources, in a folder whose name needs quoting."""
    root = tmp_path / "a checkout: $1"
    for name, text in TOY_SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def settings(cuda: Cuda) -> Settings:
        return Settings(root=root, compiler=("g++",), clang=False, version="1.2", commit="abc", cuda=cuda)

    return settings


def test_which_sources_are_built_with_and_without_cuda(toy, fake):
    def names(cuda):
        return {path.name for path in native_build.sources(toy(cuda)) if path.is_relative_to("csrc/cuda")}

    assert names(Cuda("not built: a test")) == {"toy_stub.cpp", "host_toy.cpp"}
    assert names(choose({"CUDACXX": str(fake().nvcc)}, ["g++"])) == {"toy.cu", "other.cu", "host_toy.cpp"}


def test_host_flags_reach_nvcc_and_fast_math_does_not(toy, fake):
    cuda = choose({"CUDACXX": str(fake().nvcc), "TOYKERN_CUDA": "1"}, ["g++"])
    command = native_build.cuda_command(toy(cuda))
    assert command[1:3] == ["-ccbin", shutil.which("g++")]
    assert {"--fmad=false", "--prec-div=true", "-Xcompiler=-fvisibility=hidden", "-Icsrc"} <= set(command)
    assert not [flag for flag in command if "fast" in flag]
    newer = choose({"CUDACXX": str(fake("newer", release="13.1").nvcc)}, ["g++"])
    assert {"-DTOYKERN_NVCC=13.1"} == {*newer.compile_command([])[3:]} - set(command)  # compiles again
    assert "-Xcompiler=-fsanitize=address\\,undefined" in cuda.compile_command(
        ["-fsanitize=address,undefined"]
    )


@pytest.mark.slow
def test_builds_and_rebuilds_only_what_changed(toy, real, capfd):
    settings = toy(Cuda("built: a test", real, (80, 90)))
    destination = settings.root / "module.so"

    def rebuild():
        native_build.build(settings, destination)
        return capfd.readouterr()

    def compiled(output):
        return {Path(name).name for name in re.findall(r"compile (\S+)", output.out)}

    first = rebuild()
    assert compiled(first) == {"toy.cu", "other.cu", "host_toy.cpp", "toy_base.cpp", "module.cpp"}
    assert "CUDA kernels built: a test" in first.out
    assert "unused" in first.err + first.out  # warnings are shown, ptxas' remarks are not
    assert "ptxas info" not in first.err + first.out
    assert b"80;90" in destination.read_bytes()
    assert compiled(rebuild()) == set()
    header = settings.root / "csrc/cuda/shared.cuh"
    header.write_text(header.read_text() + "// changed\n")
    assert compiled(rebuild()) == {"toy.cu"}

    reports = sorted((settings.build_dir / "objects/csrc/cuda").glob("*.ptxas"))
    kernels = {(kernel.name, kernel.arch) for kernel in ptxas_report.read(reports)}
    assert kernels == {(name, arch) for name in ("first<7>", "second") for arch in (80, 90)}
    assert exported(destination) == {"archs"}

    (settings.root / "csrc/cuda/other.cu").write_text("__global__ void broken( {}\n")
    with pytest.raises(native_build.BuildError, match="failed"):
        native_build.build(settings, destination)
    assert "error" in "".join(capfd.readouterr())


# --- what ptxas says --------------------------------------------------------------------------------------

REMARKS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7toykern5trainILi5ELi2EEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN7toykern5trainILi5ELi2EEEvPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 12.111 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90a'
ptxas info    : Function properties for helper
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
"""


def test_remarks_are_read():
    first, second = ptxas_report.parse(REMARKS)
    resources = (first.registers, first.shared, first.stack, first.spill_stores, first.spill_loads)
    assert (first.name, first.arch, resources) == (
        "_ZN7toykern5trainILi5ELi2EEEvPf",
        80,
        (255, 256, 16, 8, 12),
    )
    assert (second.name, second.arch, second.registers, second.stack) == ("plain", 90, 8, 0)
    if shutil.which("c++filt"):
        assert ptxas_report.demangle([first.name])[first.name] == "toykern::train<5, 2>"


def test_remarks_that_are_cut_short_are_an_error():
    with pytest.raises(ValueError, match="does not say what plain for sm_90 needs"):
        ptxas_report.parse(REMARKS.rsplit("ptxas info", 1)[0])


# --- the compile gate -------------------------------------------------------------------------------------


def build_folder() -> Path:
    compiler = Path(os.environ.get("CXX", "g++").split()[-1]).name
    return ROOT / "build/native" / f"{sys.implementation.cache_tag}-{compiler}" / "objects/csrc"


@pytest.fixture(scope="module")
def kernels() -> list[ptxas_report.Kernel]:
    """Every kernel of the module under test, for every arch."""
    from toykern import _native

    state = _native.build_info()["cuda"]
    if not state.startswith("built"):
        pytest.skip(f"CUDA kernels are {state}")
    if not build_folder().exists():
        pytest.skip("the objects of the build are not here (installed, not built in place)")
    reports = [
        build_folder() / path.relative_to(ROOT / "csrc").with_suffix(".cu.o.ptxas") for path in cuda_sources()
    ]
    return ptxas_report.read(reports)


def cuda_sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").rglob("*.cu"))


LIMIT = -1  # of `shared`: whatever cuda_shared_limit gives


def promises() -> list[tuple[str, int, int, int]]:
    """(pattern, threads, stack, shared) of each line of csrc/cuda/promises.txt."""
    lines = (ROOT / "csrc/cuda/promises.txt").read_text().splitlines()
    rows = [line.rsplit(maxsplit=3) for line in lines if line.strip() and not line.startswith("#")]
    return [
        (name.strip(), int(threads), int(stack), LIMIT if shared == "limit" else int(shared))
        for name, threads, stack, shared in rows
    ]


def fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def broken_promises(kernels, promised) -> list[str]:
    """What is not as promised, a line each."""
    broken = []
    for kernel in kernels:
        where = f"{kernel.name} for sm_{kernel.arch}"
        if kernel.shared > 48 * KIB:
            broken.append(f"{where}: {kernel.shared} bytes of static shared memory")
        found = [row[1:] for row in promised if fits(kernel.name, row[0])]
        if not found:
            continue
        threads, stack, shared = found[0]
        if kernel.spill_stores + kernel.spill_loads:
            broken.append(f"{where} spills: {kernel.spill_stores} bytes out, {kernel.spill_loads} back")
        if kernel.stack > stack:
            broken.append(f"{where}: {kernel.stack} bytes of stack, {stack} promised")
        if (kernel.registers + 7) // 8 * 8 * threads > REGISTERS:
            broken.append(f"{where}: {kernel.registers} registers are too many for {threads} threads")
        there = SHARED_LIMIT.get(kernel.arch, 48) * KIB
        if kernel.shared + (min(there, 99 * KIB) if shared == LIMIT else shared) > there:
            broken.append(
                f"{where}: {kernel.shared} + {shared} bytes of shared memory are more than there are"
            )
    names = {kernel.name for kernel in kernels}
    unused = [row[0] for row in promised if not any(fits(name, row[0]) for name in names)]
    return broken + [f"there is no kernel {pattern}" for pattern in unused]


def test_every_kernel_is_there_for_every_arch(kernels):
    from toykern import _native

    archs = {int(arch) for arch in _native.build_info()["cuda_archs"].split(";")}
    assert {kernel.arch for kernel in kernels} == archs
    for name in {kernel.name for kernel in kernels}:
        assert {kernel.arch for kernel in kernels if kernel.name == name} == archs, name


def test_kernels_keep_their_promises(kernels):
    assert broken_promises(kernels, promises()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spill_stores": 4}, "spills: 4 bytes out, 0 back"),
        ({"spill_loads": 4}, "spills: 0 bytes out, 4 back"),
        ({"stack": 24}, "24 bytes of stack, 16 promised"),
        ({"registers": 129}, "129 registers are too many for 512 threads"),
        ({"shared": 100 * KIB - 8191}, "shared memory"),
        ({"shared": 48 * KIB + 1}, "bytes of static shared memory"),
        ({"name": "another"}, "there is no kernel k<*"),
    ],
)
def test_the_gate_sees(changes, says):
    sound = {"name": "k<5, 2>", "arch": 120, "registers": 128, "shared": 1024, "stack": 16}
    sound |= {"spill_stores": 0, "spill_loads": 0}
    promised = [("k<*", 512, 16, 8192), ("*", 1, 0, 0)]
    assert broken_promises([ptxas_report.Kernel(**sound)], promised[:1]) == []
    assert says in "\n".join(broken_promises([ptxas_report.Kernel(**(sound | changes))], promised[:1]))


def test_the_gate_knows_how_much_shared_memory_an_arch_has():
    """What takes all that a kernel may take of a block leaves no room where that is all there is."""
    plain = {"name": "k", "registers": 32, "stack": 0, "spill_stores": 0, "spill_loads": 0}
    for arch, shared, fits_in in ((75, 0, True), (75, 4, False), (80, 4, True), (86, 4, False)):
        kernel = ptxas_report.Kernel(**plain, arch=arch, shared=shared)
        assert (broken_promises([kernel], [("k", 64, 0, LIMIT)]) == []) == fits_in, (arch, shared)
    kernel = ptxas_report.Kernel(**plain, arch=75, shared=0)
    assert broken_promises([kernel], [("k", 64, 0, 99 * KIB)]) != []


# --- the module -------------------------------------------------------------------------------------------


def exported(library: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    text = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[-1] for line in text.splitlines()}


def test_the_module_needs_no_cuda_library_and_hides_its_own_runtime():
    """An exported or imported cudaMalloc would be one with torch's, which is another version perhaps."""
    from toykern import _native

    needed = subprocess.run(
        ["readelf", "-d", _native.__file__], check=True, capture_output=True, text=True
    ).stdout
    assert "NEEDED" in needed and "libcuda" not in needed
    undefined = subprocess.run(
        ["nm", "-D", _native.__file__], check=True, capture_output=True, text=True
    ).stdout
    assert not re.findall(r"\b_*cuda\w+$", undefined, re.MULTILINE)


@pytest.mark.slow
def test_stubs_stand_in_for_all_that_the_rest_of_the_module_calls(kernels, tmp_path):
    """Where there is an nvcc the stubs are never built: a function forgotten would show at others' import."""

    def symbols(paths, *options):
        command = ["nm", "-C", *options, *map(str, paths)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return set(re.findall(r"^[0-9a-f ]* [UTBDR] (toykern::.+)$", text, re.MULTILINE))

    stubs = sorted((ROOT / "csrc/cuda").rglob("*_stub.cpp"))
    assert all(stub.with_name(stub.name.replace("_stub.cpp", ".cu")).exists() for stub in stubs)
    for stub in stubs:
        command = [
            "g++",
            "-std=c++17",
            "-Icsrc",
            "-Icsrc/include",
            "-c",
            str(stub),
            "-o",
            str(tmp_path / f"{stub.stem}.o"),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
    used = symbols(
        [path for path in build_folder().rglob("*.o") if path.suffixes != [".cu", ".o"]], "--undefined-only"
    )
    in_cuda = symbols(
        [build_folder() / path.relative_to(ROOT / "csrc").with_suffix(".cu.o") for path in cuda_sources()],
        "--defined-only",
    )
    assert used & in_cuda
    assert used & in_cuda <= symbols(sorted(tmp_path.glob("*.o")), "--defined-only")
