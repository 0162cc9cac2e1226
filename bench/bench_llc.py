"""Local learning coefficients of a stack of models, beside the public estimator on the same work.

    python -m bench.bench_llc [--models 64] [--samples 1024] [--chains 10] [--steps 400] [--repeats 3]

Tied autoencoders 8 → 2, trained on a dataset (p = 0.1), then full-batch SGLD beside each of them:
microseconds of a step of one chain, wall and processor time, medians of repeats that take turns. Contenders:

* `toykern`: `tk.local_learning_coefficient` of all models and chains, with its checks and its evaluation.
* `devinterp`: `estimate_learning_coeff_with_summary` of devinterp 1.x, a model at a time, as its
  documentation has it: a `DataLoader` of the samples. Optional: `pip install "devinterp<2"` (2.x takes token
  models alone).
* `devinterp, one batch`: the same with a loader that hands out the batch ready made.
* `torch, batched`: all models and chains in one stack of batched products, in a loop of our own: the best
  that we know to make of PyTorch.

One chain-step is the same work for all of them, so peers do a few and are compared by the step. Then the
estimates: a few models by both estimators with many draws, and how many standard errors they are apart.
Prints a table and writes a record to bench/results/.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import toykern as tk
from bench.load import Watch, add_option, mark
from bench.record import head, save

N, M, PROBABILITY = 8, 2, 0.1
KINDS = ("wall", "processor")
TOLD = {"lr": 1e-3, "localization": 1.0}

Contender = Callable[[int], int]
"""Takes about so many steps of each chain; returns how many steps of one chain that were in all."""


def trained(models: int, samples: int, steps: int = 3000) -> tuple[tk.TiedAutoencoder, tk.Dataset]:
    """The models at their minima, and their samples."""
    data = tk.SparseFeatures(N, PROBABILITY).dataset(samples, seed=0, n_models=1)
    model = tk.TiedAutoencoder(N, M, models)
    tk.fit(
        model,
        data,
        steps,
        optimizer=tk.Adam(lr=1e-2),
        schedule="cosine",
        loss_reduction="sum",
        progress=False,
    )
    return model, data


def ours(model: tk.TiedAutoencoder, data: tk.Dataset, chains: int) -> Contender:
    """`tk.local_learning_coefficient`."""

    def run(steps: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few steps are no estimate
            tk.local_learning_coefficient(
                model, data, chains=chains, draws=steps - steps // 2, burn_in=steps // 2,
                loss_reduction="sum", progress=False, **TOLD,
            )  # fmt: skip
        return steps * chains * model.n_models

    return run


def why_no_devinterp() -> str | None:
    """None where devinterp's estimator for any model is here, else what is missing."""
    try:
        version = importlib.metadata.version("devinterp")
    except importlib.metadata.PackageNotFoundError:
        return 'devinterp is not installed (pip install "devinterp<2")'
    if int(version.split(".")[0]) > 1:
        return f'devinterp {version} takes token models alone (pip install "devinterp<2")'
    try:
        import devinterp.slt.sampler  # noqa: F401
    except ImportError as error:
        return f"devinterp {version} cannot be imported: {error}"
    return None


class Plain(nn.Module):
    """One tied autoencoder in PyTorch."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)


def plain(model: tk.TiedAutoencoder, i: int) -> Plain:
    """Model `i` of a stack."""
    assert model.bias is not None
    return Plain(model.weight.detach()[i], model.bias.detach()[i])


def summed(model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss of a batch, as devinterp takes it: a sum over outputs, a mean over samples."""
    x, wanted = batch
    return (model(x) - wanted).square().sum(1).mean(), {}


class OneBatch(DataLoader):  # type: ignore[type-arg]
    """A loader of one batch, which it does not put together again for every step."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__(TensorDataset(x, x), batch_size=len(x))
        self.ready = (x, x)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # type: ignore[override]
        yield self.ready


def by_devinterp(module: Plain, x: torch.Tensor, ready: bool, **told: Any) -> dict[str, Any]:
    """devinterp's estimate of one model; `told` are further arguments of its estimator."""
    from devinterp.optim.sgld import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    loader: Any = OneBatch(x) if ready else DataLoader(TensorDataset(x, x), batch_size=len(x), shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = estimate_learning_coeff_with_summary(
            module, loader, evaluate=summed, sampling_method=SGLD, verbose=False,
            optimizer_kwargs={"nbeta": len(x) / math.log(len(x)), **TOLD},
            init_loss=float(summed(module, (x, x))[0]), **told,
        )  # fmt: skip
    return found


def devinterp_contender(model: tk.TiedAutoencoder, x: torch.Tensor, ready: bool) -> Contender:
    """One chain of the first model."""

    def run(steps: int) -> int:
        by_devinterp(
            plain(model, 0), x, ready, num_chains=1, num_draws=steps - steps // 2, num_burnin_steps=steps // 2
        )
        return steps

    return run


def batched_contender(model: tk.TiedAutoencoder, x: torch.Tensor, chains: int) -> Contender:
    """All chains as one stack of batched products."""

    def run(steps: int) -> int:
        assert model.bias is not None
        start = [p.detach().repeat_interleave(chains, dim=0) for p in (model.weight, model.bias)]
        here = [p.clone().requires_grad_() for p in start]
        nbeta, lr, held = len(x) / math.log(len(x)), TOLD["lr"], TOLD["localization"]
        for _ in range(steps):
            weight, bias = here
            output = torch.relu(x @ weight.mT @ weight + bias.unsqueeze(1))
            loss = (output - x).square().sum(2).mean(1)
            gradients = torch.autograd.grad(loss.sum(), here)
            with torch.no_grad():
                for p, gradient, begun in zip(here, gradients, start, strict=True):
                    p.add_(nbeta * gradient + held * (p - begun), alpha=-lr / 2)
                    p.add_(torch.randn_like(p), alpha=lr**0.5)
        return steps * len(start[0])

    return run


def timed(contender: Contender, steps: int) -> tuple[float, float]:
    """Microseconds of wall and processor time of a step of one chain."""
    begin = time.perf_counter(), time.process_time()
    count = contender(steps)
    return 1e6 * (time.perf_counter() - begin[0]) / count, 1e6 * (time.process_time() - begin[1]) / count


def measure(
    model: tk.TiedAutoencoder, data: tk.Dataset, chains: int, steps: int, repeats: int
) -> dict[str, Any]:
    """The line of the table: every repeat of every contender, and what is absent and why."""
    x = data.batch(0)[0][0]
    few = max(2, steps // 20)
    contenders = {"toykern": (ours(model, data, chains), steps)}
    absent = why_no_devinterp()
    if absent is None:
        contenders["devinterp"] = devinterp_contender(model, x, False), few
        contenders["devinterp, one batch"] = devinterp_contender(model, x, True), steps
    contenders["torch, batched"] = batched_contender(model, x, chains), few
    found: dict[str, Any] = {name: {kind: [] for kind in KINDS} for name in contenders}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, (contender, count) in contenders.items():
            for kind, value in zip(KINDS, timed(contender, count), strict=True):
                found[name][kind] += [value] if repeat else []
    medians = {
        name: {kind: statistics.median(values[kind]) for kind in KINDS} for name, values in found.items()
    }
    ratios = {
        name: {kind: value[kind] / medians["toykern"][kind] for kind in KINDS}
        for name, value in medians.items()
    }
    return {
        "name": f"{model.n_models} models {N} → {M}, {len(x)} samples, {chains} chains", "contenders": found,
        "medians": medians, "ratios": ratios, "absent": {} if absent is None else {"devinterp": absent},
    }  # fmt: skip


def compared(
    model: tk.TiedAutoencoder, data: tk.Dataset, chains: int, draws: int, models: int
) -> list[dict[str, float]]:
    """The estimates of the first models by both, with `draws` draws after as many steps; standard errors by
    chains, and the difference in units of both errors together."""
    x = data.batch(0)[0][0]
    told = {
        "chains": chains,
        "draws": draws,
        "burn_in": draws,
        "loss_reduction": "sum",
        "progress": False,
        **TOLD,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tk.local_learning_coefficient(model[:models], data, **told)
    lines = []
    for i in range(models):
        theirs = by_devinterp(
            plain(model, i), x, True, num_chains=chains, num_draws=draws, num_burnin_steps=draws, seed=i
        )
        error = theirs["llc/std"] / chains**0.5
        apart = float(found.llc[i]) - theirs["llc/mean"]
        lines.append({
            "toykern": float(found.llc[i]), "error": float(found.standard_error[i]),
            "rhat": float(found.rhat[i]),
            "devinterp": theirs["llc/mean"], "devinterp_error": error,
            "apart": apart / math.hypot(error, float(found.standard_error[i])),
        })  # fmt: skip
    return lines


def table(line: dict[str, Any]) -> str:
    """A row for each contender, in Markdown."""
    rows = ["| contender | µs a chain-step, wall / processor | over toykern |", "|---|---:|---:|"]
    for name, median in line["medians"].items():
        ratio = line["ratios"][name]
        rows.append(
            f"| {name} | {median['wall']:.3g} / {median['processor']:.3g} | "
            f"{ratio['wall']:.3g}× / {ratio['processor']:.3g}× |"
        )
    return "\n".join([*rows, *(f"{name}: {why}" for name, why in line["absent"].items())])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compare", type=int, default=3, help="models whose estimates are compared; 0: none")
    parser.add_argument("--draws", type=int, default=4000, help="of these comparisons")
    parser.add_argument("--threads", type=int, help="cores to use (default: as many as PyTorch would)")
    parser.add_argument("--no-record", action="store_true", help="only print")
    add_option(parser)
    options = parser.parse_args(arguments)
    watch = None if options.no_record else Watch.begin(options.busy)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, data = trained(options.models, options.samples)
    line = measure(model, data, options.chains, options.steps, options.repeats)
    record = head(
        "microseconds of a step of one chain, wall and processor", threads=torch.get_num_threads(),
        torch=torch.__version__, workloads=[line],
    )  # fmt: skip
    print(table(line), flush=True)
    if not line["absent"] and options.compare:
        line["devinterp"] = importlib.metadata.version("devinterp")
        line["estimates"] = compared(model, data, options.chains, options.draws, options.compare)
        for i, pair in enumerate(line["estimates"]):
            print(
                f"model {i}: {pair['toykern']:.2f} ± {pair['error']:.2f} (R̂ {pair['rhat']:.2f}), devinterp "
                f"{pair['devinterp']:.2f} ± {pair['devinterp_error']:.2f}: {pair['apart']:+.1f} errors apart"
            )
    if watch is not None:
        record["load"] = watch.end()
        print(mark(record))
        print(f"Every figure: {save(record, 'llc')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
