"""What ptxas says of every kernel: registers, spills, stack and shared memory, for each arch.

The build keeps what ptxas says of a .cu beside its object (`<object>.ptxas`). tests/test_cuda_build.py reads
the reports of the last build and holds them against csrc/cuda/promises.txt. To see them as a table:

    python tools/ptxas_report.py $(find build -name '*.ptxas')
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """The resources of one kernel on one arch; sizes in bytes, stack and spills per thread."""

    name: str
    arch: int
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def parse(text: str) -> list[Kernel]:
    """The kernels that ptxas -v speaks of, under their linker's names."""
    kernels: list[Kernel] = []
    functions: dict[str, tuple[int, int, int]] = {}  # of the entry being compiled: (stack, stores, loads)
    function = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for 'sm_(\d+)\w?'", line):
            kernels.append(Kernel(match[1], int(match[2]), -1, 0, -1, -1, -1))
            functions = {}
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            functions[function] = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := re.search(r"Used (\d+) registers", line)) and kernels:
            shared = re.search(r"(\d+) bytes smem", line)
            own = functions.get(kernels[-1].name, (-1, -1, -1))
            kernels[-1] = replace(
                kernels[-1],
                registers=int(match[1]),
                shared=int(shared[1]) if shared else 0,
                stack=own[0],
                spill_stores=own[1],
                spill_loads=own[2],
            )
    unfinished = [
        f"{kernel.name} for sm_{kernel.arch}" for kernel in kernels if min(kernel.registers, kernel.stack) < 0
    ]
    if unfinished:
        raise ValueError(f"ptxas' report does not say what {', '.join(unfinished)} needs")
    return kernels


def demangle(names: Iterable[str]) -> dict[str, str]:
    """The names as the source has them, without their arguments; as they are where there is no c++filt."""
    names = sorted(set(names))
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    command = ["c++filt", "--no-params", *names]
    readable = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(names, readable, strict=True))


def read(paths: Iterable[Path]) -> list[Kernel]:
    """The kernels of several reports, under their names in the source."""
    kernels = [kernel for path in paths for kernel in parse(path.read_text())]
    readable = demangle(kernel.name for kernel in kernels)
    return [replace(kernel, name=readable[kernel.name]) for kernel in kernels]


def show(paths: list[Path]) -> None:
    """Prints one line for each kernel and arch."""
    print(f"{'arch':>6} {'regs':>5} {'shared':>7} {'stack':>6} {'spills':>7}  kernel")
    for kernel in sorted(read(paths), key=lambda kernel: (kernel.name, kernel.arch)):
        spills = kernel.spill_stores + kernel.spill_loads
        resources = f"{kernel.registers:>5} {kernel.shared:>7} {kernel.stack:>6} {spills:>7}"
        print(f"{f'sm_{kernel.arch}':>6} {resources}  {kernel.name}")


if __name__ == "__main__":
    show([Path(name) for name in sys.argv[1:]])
