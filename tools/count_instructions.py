"""Warp-instructions of a model-step, by kind: counted while kernels run on an emulator; `make count`.

    python tools/count_instructions.py              prints the table
    python tools/count_instructions.py --write      and puts it into docs/gpu_trainer.md, between its markers

The workloads of the bench (bench/workloads.py), with few models and steps, run on the emulator of
tools/emulate.py, in a build whose training kernels count how often each basic block is executed
(tools/counting.h). A step is the difference of two runs that differ in their number of steps alone, so that
what a launch takes once is not in it.

These are instructions of PTX, which is what nvcc hands to the assembler: not yet machine code. Moves and
reads of parameters mostly disappear there; a division, a square root, a 64-bit product or shift becomes
several; addresses are folded or strength-reduced. So the sum is not the number of issued instructions, but
it moves with it: it shows what a change costs, and of which kind, without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import emulate
import native_build

ROOT = emulate.ROOT
OUT = ROOT / "build" / "counts"
DOCS = ROOT / "docs" / "gpu_trainer.md"
BEGIN = "<!-- counts: begin (written by `make count`) -->"
END = "<!-- counts: end -->"

# Sources whose kernels count, and which of them: the others trap.
COUNTED = {
    "csrc/cuda/tiny/train_tiny.cu": r"train_tiny\w*ILi(2ELi1|5ELi2)E",
    "csrc/cuda/small/train_small.cu": r"train_smallILi[05]E",
    "csrc/cuda/gram/train_gram.cu": r"train_gram",
}
KINDS = (
    "multiply-add", "add, multiply", "compare, select", "special", "integer", "convert", "move", "shared",
    "global", "local", "parameter", "branch, call", "exchange",
)  # fmt: skip
# key of the workload, models, steps of the shorter run, steps more of the longer one
RUNS = [("pentagon", 64, 2, 20), ("hard", 64, 1, 4), ("twenty", 4, 1, 8), ("eighty", 2, 1, 4)]
BY_HAND = {"pentagon": "660", "hard": "1,740", "twenty": "8,900", "eighty": "95,400"}  # of sm_90

Blocks = dict[int, Counter[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, counts, prints."""
    parser = argparse.ArgumentParser(
        prog="python tools/count_instructions.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"into {DOCS.relative_to(ROOT)}")
    parser.add_argument("--only", nargs="+", choices=[run[0] for run in RUNS], help="only these workloads")
    parser.add_argument("--run", nargs=3, metavar=("KEY", "MODELS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        train(options.run[0], int(options.run[1]), int(options.run[2]))
        return 0
    emulator, absent = emulate.find()
    if absent:
        print(f"counting is impossible: {absent}")
        return 1
    emulate.build(emulator, len(os.sched_getaffinity(0)))
    blocks = build(emulator)
    rows = []
    for key, models, steps, more in RUNS:
        if options.only is None or key in options.only:
            shorter, longer = (counted(emulator, blocks, key, models, s) for s in (steps, steps + more))
            rows.append((key, {k: (longer[k] - shorter[k]) / (models * more) for k in (*KINDS, "lanes")}))
    text = table(rows)
    print(text)
    if options.write:
        sys.path.insert(0, str(ROOT))
        from bench.table import replace_between

        replace_between(DOCS, BEGIN, END, text)
    return 0


def build(emulator: Path) -> dict[str, Blocks]:
    """The module with counting kernels in build/counts; the blocks of each counted source."""
    OUT.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(emulator))
    translated = {source: translate(source) for source in COUNTED}
    settings = native_build.Settings.from_environment(
        ROOT, "", {**os.environ, "TOYKERN_CUDA_ARCHS": str(emulate.ARCH)}
    )
    flags = importlib.import_module("build").KERNEL_FLAGS
    kernels, others = [], []
    for source in native_build.sources(settings):
        name = str(source.with_suffix("")).replace("/", "_")
        built = emulate.OUT / "objects" / f"{name}.o"
        if source.suffix != ".cu":
            others.append(
                built if built.exists() else settings.build_dir / "objects" / source.with_suffix(".o")
            )
            continue
        others.append(built.with_suffix(".cu.o"))
        kernels.append(built.with_suffix(".kernel.o"))
        if str(source) in COUNTED:
            code, kernels[-1] = OUT / f"{name}.cpp", OUT / f"{name}.kernel.o"
            if changed(code, translated[str(source)][0]) or not kernels[-1].exists():
                include = [f"-I{emulator}", f"-I{ROOT / 'tools'}"]
                subprocess.run(["g++", *flags, *include, "-c", str(code), "-o", str(kernels[-1])], check=True)
    package = OUT / "toykern"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "toykern", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in ("libptxemu.so", "torch_device.so"):
        shutil.copy2(emulate.OUT / library, OUT / library)
    module = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    # Kernels first: they must be known before the module's own start looks for them.
    command = [*settings.compiler, *map(str, kernels + others), "-o", str(module), "-shared", f"-L{OUT}"]
    command += ["-lptxemu", "-Wl,-rpath,$ORIGIN/..", "-fopenmp", "-ldl", "-lrt", "-pthread"]
    subprocess.run(command, check=True)
    return {source: blocks for source, (_, blocks) in translated.items()}


def changed(path: Path, text: str) -> bool:
    """Writes a file that is not there or says something else."""
    same = path.exists() and path.read_text() == text
    if not same:
        path.write_text(text)
    return not same


def translate(source: str) -> tuple[str, Blocks]:
    """C++ of a source's PTX that counts, and of each basic block its instructions by kind."""
    ptx2cpp: Any = importlib.import_module("ptx2cpp")
    blocks: Blocks = {}

    class Counting(ptx2cpp.FunctionEmitter):  # type: ignore[misc, name-defined]
        """Numbers blocks over all functions; the first block of a function is marked last."""

        def run(self) -> str:
            self.left, self.entry = len(self.f.body), Counter[str]()
            self.block = self.entry
            head, _, body = super().run().partition(ptx2cpp.signature(self.f) + " {\n")
            ends = "const counting::Ends ends{t};\n" if self.f.entry else ""
            return f"{head}{ptx2cpp.signature(self.f)} {{\n{ends}{body}"

        def mark(self, number: int) -> str:
            text = super().mark(number)
            self.block = Counter() if self.left else self.entry
            blocks[len(blocks)] = self.block
            return f"{text} counting::hit(t, {len(blocks) - 1}u);"

        def statement(self, number: int, s: str) -> str:
            self.left -= 1
            plain = re.sub(r"^@!?%\w+\s+", "", s)
            if re.match(r"[a-z][\w.:]*(\s|$)", plain) and not plain.endswith(":"):
                opcode = plain.split()[0]
                self.block[kind_of(opcode)] += 1
                if opcode.startswith(("bar", "shfl", "vote")):
                    return f"counting::meet(t); {super().statement(number, s)}"
            return str(super().statement(number, s))

    path = next((emulate.OUT / "ptx" / str(Path(source).with_suffix("")).replace("/", "_")).glob("*.ptx"))
    known, ptx2cpp.FunctionEmitter = ptx2cpp.FunctionEmitter, Counting
    try:
        translator = ptx2cpp.Translator(path.read_text(), path.stem)
        translator.used_sites, translator.static_of = set(), {}
        for function in translator.functions:
            if function.entry and not re.search(COUNTED[source], function.name):
                function.body = [(function.body[0][0], "trap")]
        text = translator.emit()
    finally:
        ptx2cpp.FunctionEmitter = known
    return f'#define TOYKERN_COUNTED "{source}"\n#include "counting.h"\n{text}', blocks


def kind_of(opcode: str) -> str:
    """Of an instruction of PTX, as `fma.rn.ftz.f32`; one of KINDS."""
    name, *modifiers = opcode.split(".")
    floating = bool({"f32", "f64", "f16", "bf16", "f16x2", "bf16x2"} & set(modifiers))
    if name in ("ld", "ldu", "st", "atom", "red"):
        spaces = {"shared": "shared", "local": "local", "param": "parameter", "const": "parameter"}
        return next((kind for space, kind in spaces.items() if space in modifiers), "global")
    if name in (
        "bar",
        "barrier",
        "shfl",
        "vote",
        "activemask",
        "membar",
        "fence",
        "match",
        "redux",
        "nanosleep",
    ):
        return "exchange"
    if name in ("bra", "call", "ret", "exit", "trap", "brx"):
        return "branch, call"
    if name in ("mov", "cvta"):
        return "move"
    if name == "cvt":
        return "convert"
    if name in ("rcp", "rsqrt", "sqrt", "ex2", "lg2", "sin", "cos", "tanh") or (name == "div" and floating):
        return "special"
    if not floating:
        return "integer"
    if name in ("fma", "mad"):
        return "multiply-add"
    return "add, multiply" if name in ("add", "sub", "mul") else "compare, select"


def counted(emulator: Path, blocks: dict[str, Blocks], key: str, models: int, steps: int) -> Counter[str]:
    """Warp-instructions of a run by kind, and `lanes`: those of all lanes, a thirty-second each."""
    path = OUT / "counts"
    path.unlink(missing_ok=True)
    environ = emulate.environment(emulator, 1)
    environ |= {"PTXEMU_OUT": str(OUT), "PTXEMU_CHECK": "0", "PTXEMU_ORDER": "0", "TOYKERN_COUNTS": str(path)}
    command = [sys.executable, __file__, "--run", key, str(models), str(steps)]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        source, block, warps, lanes = line.split("\t")
        for kind, number in blocks[source][int(block)].items():
            found[kind] += number * int(warps)
            found["lanes"] += number * int(lanes) / 32
    return found


def train(key: str, models: int, steps: int) -> None:
    """In the process that has the emulated device: one call of `fit`, as the bench makes it."""
    importlib.import_module("fake_cuda").install()
    sys.path.append(str(ROOT))
    from bench.peers.ours import ToykernTrainer
    from bench.peers.problem import problem_of
    from bench.workloads import GPU_WORKLOADS

    workload = next(w for w in GPU_WORKLOADS if w.key == key)
    ToykernTrainer(problem_of(workload, models, device="cuda")).run(steps)


def table(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """In Markdown: a column for each workload."""
    sys.path.insert(0, str(ROOT))

    from bench.gpu.roof import count
    from bench.table import markdown
    from bench.workloads import GPU_WORKLOADS

    workloads = {w.key: w for w in GPU_WORKLOADS}
    shape = {k: f"{w.n_features} → {w.n_hidden}, {f'S = {w.sparsity:g}' if w.sparsity else 'phase diagram'}"
             for k, w in workloads.items()}  # fmt: skip
    lines = [[kind, *(f"{found[kind]:,.0f}" for _, found in rows)] for kind in KINDS]
    sums = [sum(found[kind] for kind in KINDS) for _, found in rows]
    lines.append(["**all of PTX**", *(f"**{total:,.0f}**" for total in sums)])
    full = (found["lanes"] / total for (_, found), total in zip(rows, sums, strict=True))
    lines.append(["lanes at work", *(f"{share:.0%}" for share in full)])
    lines.append(["by hand, of machine code", *(BY_HAND.get(key, "") for key, _ in rows)])
    lines.append(["issue roof", *(f"{count(workloads[key]).issue:,.0f}" for key, _ in rows)])
    return markdown(["PTX instructions of a warp", *(shape[key] for key, _ in rows)], lines)


if __name__ == "__main__":
    sys.exit(main())
