"""`python -m bench.layer`: measures every workload of the layer, prints the table, writes a record."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

import torch

from bench.layer.contenders import OURS, PEERS, READ, contenders
from bench.layer.measure import gflops, interleaved, large_model_memory, median
from bench.layer.workloads import LAYER_WORKLOADS, LayerWorkload
from bench.load import Watch, add_option, mark
from bench.record import new_record, save
from bench.roof import Peaks, measure_peaks
from bench.session import cores


def entry(workload: LayerWorkload, repeats: int, peaks: Peaks) -> dict[str, Any]:
    """One workload of a record."""
    model, share = workload.model()
    x = workload.batch(seed=0)
    samples = interleaved(contenders(model, x), repeats)
    medians = {name: median(values) for name, values in samples.items()}
    best = min(PEERS, key=lambda name: medians[name])
    roof = max(1e3 * gflops(workload, x, share) * 1e9 / peaks.flops, medians[READ])
    return {
        "name": workload.name,
        **asdict(workload),
        "active_share": share,
        "milliseconds": medians,
        "samples": samples,
        "best_peer": best,
        "ratio": {name: medians[best] / medians[name] for name in OURS},
        "eager_ratio": medians["eager"] / medians["toykern"],
        "roof_milliseconds": roof,
    }


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    ms, ratio = found["milliseconds"], found["ratio"]
    cells = [
        found["name"],
        f"{100 * found['active_share']:.2g}%",
        *(f"{ms[name]:.3g}" for name in (*OURS, *PEERS)),
        f"**{ratio[OURS[0]]:.3g}×** ({ratio[OURS[1]]:.3g}×)",
        f"{found['required_ratio']:g}×",
        f"{found['roof_milliseconds']:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| workload | outputs active | toykern, ms | with a SparseBatch | eager | torch.compile "
    "| ratio to the better (SparseBatch) | asked | roof |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.layer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="repeats of each figure (default %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="KEY", choices=[w.key for w in LAYER_WORKLOADS])
    parser.add_argument("--memory", action="store_true", help="measure peak memory at n = 262,144 instead")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = Watch.begin(options.busy)
    torch.set_num_threads(cores())
    peaks = measure_peaks(cores())
    record = new_record(peaks)
    record["bench"] = "layer"
    if options.memory:
        record["memory"] = large_model_memory()
        found = record["memory"]
        print(
            f"peak beyond weights, gradients and input: {found['beyond_mib']:.0f} MiB at n=262144, m=512, ",
            end="",
        )
        print(f"batch 1024, float32 (the output alone: {found['output_mib']:.0f} MiB)")
    else:
        print(HEADER)
        for workload in LAYER_WORKLOADS:
            if options.only is None or workload.key in options.only:
                record["workloads"].append(entry(workload, options.repeats, peaks))
                print(row(record["workloads"][-1]), flush=True)
    record["load"] = watch.end()
    print(mark(record))
    print(f"\nEvery figure: {save(record, 'layer')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
