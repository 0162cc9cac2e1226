"""`python -m bench.gpu.sparse`: a training step of sparse layers on a GPU, beside dense, masked and cuSPARSE.

A step is forward, backward to input, values and bias, and torch's fused Adam, replayed from a CUDA graph
(cuSPARSE, whose calls cannot be captured in every version, runs without one where capturing fails, and the
entry says so). Contenders of a workload take turns; figures are the medians of the rounds.

    dense         torch.nn.Linear, connections or not: the rate to beat
    masked        its weight times a mask: what packages with masks do
    cusparse      torch.sparse CSR products and sampled_addmm
    toykern …     tk.SparseLinear by each back end, and by its own choice ("auto")

TF32 workloads set torch's switch for all contenders; bf16 ones hold weights and optimiser state in bfloat16,
for all contenders alike. The roof of a step is the larger of its arithmetic at the connections over the
measured peak of a dense product at that precision, and its bytes over the measured bandwidth of a copy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.gpu.__main__ import device_facts, write
from bench.load import Watch, mark
from bench.table import markdown, significant

REPEATS = 5
ROUND_SECONDS = 0.05  # of each contender in each round
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SHAPES = ((1024, 768, 3072), (256, 1024, 1024), (64, 3072, 1024), (128, 512, 256))


@dataclass(frozen=True)
class SparseWorkload:
    """One layer: shape, share of connections that do not exist, precision, outputs to a group.

    `required` is how many times faster than `beside` the best of toykern's back ends is asked to be.
    """

    batch: int
    in_features: int
    out_features: int
    sparsity: float
    precision: str = "tf32"
    group: int = 1
    beside: str = "masked"
    required: float = 0.95

    @property
    def key(self) -> str:
        """For options and files."""
        parts = [self.batch, self.in_features, self.out_features, f"{self.sparsity:g}", self.precision]
        parts += [f"groups{self.group}"] if self.group > 1 else []
        parts += ["beside-dense"] if self.beside == "dense" else []
        return "-".join(map(str, parts))

    @property
    def fan_in(self) -> int:
        """Inputs of every output."""
        return max(1, round((1 - self.sparsity) * self.in_features))

    @property
    def connections(self) -> int:
        """Of the layer."""
        return self.fan_in * self.out_features

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and optimiser state."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def roof_seconds(self, flops: float, bandwidth: float) -> float:
        """The least time of a step: three products; values, moments, x, dx, y and dy moved once or twice."""
        arithmetic = 6.0 * self.batch * self.connections / flops
        size = 2 if self.precision == "bf16" else 4
        moved = 9 * self.connections + self.batch * (3 * self.in_features + 3 * self.out_features)
        return max(arithmetic, size * moved / bandwidth)


def workloads() -> tuple[SparseWorkload, ...]:
    """The shapes and sparsities asked for, those with a ratio of their own first."""
    named = [
        SparseWorkload(1024, 768, 3072, 0.99, beside="dense", required=2.0),
        SparseWorkload(4096, 4096, 16384, 0.9, "bf16", 128, "dense", 2.5),
        SparseWorkload(4096, 4096, 16384, 0.9, "bf16", 64, "dense", 2.5),
    ]
    return (*named, *(SparseWorkload(*shape, s) for shape in SHAPES for s in SPARSITIES))


# --- contenders -------------------------------------------------------------------------------------------


class Step:
    """A contender: `run(n)` does n steps and returns their seconds."""

    def __init__(self, name: str, w: SparseWorkload, device: str) -> None:
        self.cuda = device == "cuda"
        generator = torch.Generator().manual_seed(0)
        x, dy = (
            torch.randn(w.batch, n, generator=generator).to(device, w.dtype)
            for n in (w.in_features, w.out_features)
        )
        self.x, self.dy = x.requires_grad_(), dy
        self.layer = build(name, w, device)
        self.optimizer = torch.optim.Adam(
            self.layer.parameters(), lr=1e-5, fused=self.cuda, capturable=self.cuda
        )
        self.graph: Any = None
        self.why_no_graph = "" if self.cuda else "there are none on a CPU"
        if self.cuda:
            self._capture()

    def step(self) -> None:
        """Forward, backward, Adam."""
        self.optimizer.zero_grad(set_to_none=False)
        self.x.grad = None
        self.layer(self.x).backward(self.dy)
        self.optimizer.step()

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except RuntimeError as error:
            self.why_no_graph = str(error).splitlines()[0]
            torch.cuda.synchronize()
            return
        self.graph = graph

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        work = self.graph.replay if self.graph is not None else self.step
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(steps):
                work()
            return time.perf_counter() - began
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(steps):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def build(name: str, w: SparseWorkload, device: str) -> nn.Module:
    """A contender's layer; all hold the same connections and values."""
    import toykern as tk

    ours = tk.SparseLinear(w.in_features, w.out_features, fan_in=w.fan_in, group=w.group, seed=0)
    if name.startswith("toykern"):
        ours.backend = name.split()[1]
        return ours.to(device, w.dtype)
    linear = ours.to_linear().to(device, w.dtype)
    if name == "dense":
        return linear
    mask = ours.topology.to_mask()[0].to(device, w.dtype)
    return _Masked(linear, mask) if name == "masked" else _CuSparse(linear, mask)


def contenders_of(w: SparseWorkload) -> list[str]:
    """Who takes part."""
    ours = ["toykern auto", "toykern dense", "toykern slots"]
    ours += ["toykern groups"] if w.group > 1 else []
    return [*ours, "dense", "masked", *(["cusparse"] if w.precision != "bf16" else [])]


class _Masked(nn.Module):
    def __init__(self, linear: nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class _CuSparse(nn.Module):
    """The values of a CSR matrix as the parameter; its structure and that of its transpose are made once."""

    def __init__(self, linear: nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        csr = (linear.weight.detach() * mask).to_sparse_csr()
        self.values, self.bias = nn.Parameter(csr.values().clone()), linear.bias
        count = torch.arange(1, csr.values().numel() + 1, device=mask.device, dtype=torch.float64)
        named = torch.sparse_csr_tensor(csr.crow_indices(), csr.col_indices(), count, csr.shape)
        other = named.to_dense().t().to_sparse_csr()
        self.structure = (csr.crow_indices().int(), csr.col_indices().int())
        self.transposed = (other.crow_indices().int(), other.col_indices().int())
        self.order = other.values().long() - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _CuSparseProduct.apply(x, self.values, self.structure, self.transposed, self.order) + self.bias


class _CuSparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, values: Any, structure: Any, transposed: Any, order: Any) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.structure, ctx.transposed, ctx.order = structure, transposed, order
        weight = torch.sparse_csr_tensor(*structure, values, (len(structure[0]) - 1, x.shape[1]))
        return (weight @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, values = ctx.saved_tensors
        shape = (dy.shape[1], x.shape[1])
        other = torch.sparse_csr_tensor(*ctx.transposed, values[ctx.order], shape[::-1])
        zeros = torch.sparse_csr_tensor(*ctx.structure, torch.zeros_like(values), shape)
        dvalues = torch.sparse.sampled_addmm(zeros, dy.t().contiguous(), x.contiguous()).values()
        return (other @ dy.t()).t(), dvalues, None, None, None


# --- measuring --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures them and prints the table; 0 if toykern took every step of every workload begun."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sparse", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=300, help="seconds in all (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", nargs="+", choices=[w.key for w in workloads()], help="only these")
    parser.add_argument("--out", type=Path, help="a JSON file for every figure, written as they come")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the bench")
    parser.add_argument("--scale", type=int, default=1, help="divides all sizes (to try the bench)")
    options = parser.parse_args(arguments)
    chosen = [scaled(w, options.scale) for w in workloads() if options.only is None or w.key in options.only]
    figures: dict[str, Any] = {**device_facts(options.device), "peaks": {}, "workloads": [], "left_out": []}
    watch = Watch.begin(insist=True)  # marked, not refused, as in bench.gpu
    end = time.monotonic() + options.budget
    for at, workload in enumerate(chosen):
        if time.monotonic() > end:
            figures["left_out"] = [w.key for w in chosen[at:]]
            break
        print(f"{workload.key} …", file=sys.stderr, flush=True)
        if workload.precision not in figures["peaks"]:
            figures["peaks"][workload.precision] = peaks(workload, options.device, options.scale)
        entry = measure(workload, options.device, options.repeats, figures["peaks"][workload.precision])
        figures["workloads"].append(entry)
        write(figures, options.out)
    figures["load"] = watch.end()
    print(render(figures), mark(figures), sep="\n")
    ours = [c for e in figures["workloads"] for n, c in e["contenders"].items() if n.startswith("toykern")]
    write(figures, options.out)
    return 0 if ours and all("median" in found for found in ours) else 1


def scaled(w: SparseWorkload, scale: int) -> SparseWorkload:
    """A smaller workload of the same form."""
    if scale == 1:
        return w
    batch, in_features, out_features = (max(8, n // scale) for n in (w.batch, w.in_features, w.out_features))
    group = max(2, min(w.group // scale, 8)) if w.group > 1 else 1
    rounded = out_features // group * group
    return replace(w, batch=batch, in_features=in_features, out_features=rounded, group=group)


def measure(w: SparseWorkload, device: str, repeats: int, peak: dict[str, float]) -> dict[str, Any]:
    """All contenders in turn; what fails says why."""
    torch.set_float32_matmul_precision("high" if w.precision == "tf32" else "highest")
    entry: dict[str, Any] = {
        "key": w.key, "beside": w.beside, "required": w.required, "connections": w.connections,
        "roof_ms": 1e3 * w.roof_seconds(peak["flops"], peak["bandwidth"]), "contenders": {},
    }  # fmt: skip
    steps: dict[str, tuple[Step, int]] = {}
    for name in contenders_of(w):
        try:
            step = Step(name, w, device)
            step.run(2)
            count = max(1, int(ROUND_SECONDS / max(step.run(2) / 2, 1e-7)))
        except Exception as error:  # the others go on
            entry["contenders"][name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        steps[name] = (step, min(count, 2000))
        entry["contenders"][name] = {"samples": [], "graph": step.why_no_graph or "captured"}
    for _ in range(repeats):
        for name, (step, count) in steps.items():
            entry["contenders"][name]["samples"].append(1e3 * step.run(count) / count)
    for name in steps:
        entry["contenders"][name]["median"] = float(np.median(entry["contenders"][name]["samples"]))
    if device == "cuda":
        entry["choices"] = [times for _, times in _choices()]
    conclude(entry)
    return entry


def conclude(entry: dict[str, Any]) -> None:
    """Our best, what it is beside, the ratio, the share of the roof."""
    medians = {name: c["median"] for name, c in entry["contenders"].items() if "median" in c}
    ours = {name: ms for name, ms in medians.items() if name.startswith("toykern")}
    entry["best"] = min(ours, key=ours.__getitem__) if ours else None
    if ours and entry["beside"] in medians:
        entry["ratio"] = medians[entry["beside"]] / ours[entry["best"]]
        entry["chosen_ratio"] = medians[entry["beside"]] / ours.get("toykern auto", float("inf"))
    if ours:
        entry["roof_share"] = entry["roof_ms"] / ours[entry["best"]]


def peaks(w: SparseWorkload, device: str, scale: int) -> dict[str, float]:
    """Measured: operations per second of a large dense product, bytes per second of a large copy."""
    torch.set_float32_matmul_precision("high" if w.precision == "tf32" else "highest")
    n = 8192 // scale
    a = torch.randn(n, n, device=device).to(w.dtype)
    seconds = _best(lambda: a @ a, device)
    source = torch.empty(2**28 // scale // 4, device=device)
    target = torch.empty_like(source)
    copied = _best(lambda: target.copy_(source), device)
    return {"flops": 2.0 * n**3 / seconds, "bandwidth": 2.0 * source.numel() * 4 / copied}


def _best(work: Callable[[], object], device: str) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def _choices() -> list[tuple[str, dict[str, float]]]:
    from toykern.ops.backend_choice import measurements

    return [(str(key), times) for key, times in measurements().items()]


def render(figures: dict[str, Any]) -> str:
    """Milliseconds of a step, in Markdown; the ratio is that of our best back end."""
    header = ["workload", "auto", "dense", "slots", "groups", "nn.Linear", "masked", "cuSPARSE"]
    names = [
        "toykern auto",
        "toykern dense",
        "toykern slots",
        "toykern groups",
        "dense",
        "masked",
        "cusparse",
    ]
    header += ["ratio", "asked for", "share of roof"]
    rows = []
    for entry in figures["workloads"]:
        cells = [_cell(entry["contenders"].get(name, {})) for name in names]
        ratio = f"{entry['ratio']:.2f}× {entry['beside']}" if "ratio" in entry else "—"
        share = f"{entry['roof_share']:.0%}" if "roof_share" in entry else "—"
        rows.append([entry["key"], *cells, ratio, f"{entry['required']:g}×", share])
    left = f"\n\nLeft out for want of time: {', '.join(figures['left_out'])}." if figures["left_out"] else ""
    return f"Milliseconds of a step on {figures['device']}.\n\n{markdown(header, rows)}{left}"


def _cell(found: dict[str, Any]) -> str:
    if "median" in found:
        return significant(found["median"])
    return "failed" if "failed" in found else "—"


if __name__ == "__main__":
    sys.exit(main())
