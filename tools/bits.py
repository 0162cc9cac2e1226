"""Hashes the outcomes of every loop, so that a change of the code can be shown to change no bits.

    python tools/bits.py > before.txt      # then change the code, build, and
    python tools/bits.py --against before.txt

A line for each case of tests/cases.py and each way to run it: `fit` and `evaluate` at every instruction-set
level and by the device's source on the host (each loop that takes the shape), tied and untied, dense and
sparse; the layer's output, loss and gradients in every dtype, likewise. `--against` lists what differs, what
is new and what is gone, and exits with 1 if anything differs or is gone. `--only WORD` runs the ways whose
name holds the word.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cases  # noqa: E402
import kit  # noqa: E402
from device_kit import device_source  # noqa: E402
from layer_kit import device_layer  # noqa: E402

import toykern as tk  # noqa: E402
from toykern.training.schedule import WarmupCosine  # noqa: E402

STEPS = 6
DEVICE_STEPS = 3


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def trained(case: cases.FitCase, steps: int) -> str:
    """`fit` for some steps, then `evaluate`."""
    if isinstance(case.schedule, WarmupCosine):
        steps += case.schedule.warmup
    run = kit.fit_case(case, steps=steps, record_every=2)
    loss = case.loss.get("target", "identity"), case.loss.get("loss_reduction", "mean")
    held = tk.evaluate(run.model, kit.data_of(case), samples=300, target=loss[0], loss_reduction=loss[1])
    return hash_of(kit.tensors_of(run) | {"evaluated": held})


def trained_sparse(n: int, m: int, steps: int) -> str:
    """A sparse model in `fit`, its connections moved once."""
    model = tk.SparseTiedAutoencoder(n, m, density=0.4, n_models=3, seed=[1, 2, 3])
    data = tk.SparseFeatures(n, 0.2)
    run = tk.fit(
        model, data, steps=steps, batch_size=64, topology=tk.RigL(interval=2, end=steps), progress=False
    )
    return hash_of(kit.tensors_of(run) | {"mask": model.topology.to_mask()})


def trained_crowd(n: int, m: int, batch_size: int, steps: int) -> str:
    """Models enough that they are taken side by side, each with its own rare features."""
    p = torch.linspace(0.005, 0.1, 37, dtype=torch.float64)[:, None].expand(-1, n)
    model = tk.TiedAutoencoder(n, m, len(p))
    torch.set_num_threads(1)
    run = tk.fit(model, tk.SparseFeatures(n, p), steps, batch_size, record_every=2, progress=False)
    return hash_of(kit.tensors_of(run))


def evaluated(case: cases.LayerCase, dtype: torch.dtype, sparse: bool) -> str:
    """The layer's output, loss and gradients."""
    model, batch = kit.layer_of(case, dtype), kit.layer_batch(case, dtype)
    given = {name: value.requires_grad_() for name, value in batch.items()}
    x = tk.SparseBatch.from_dense(given["x"].detach()) if sparse else given["x"]
    options = kit.layer_loss_options(case)
    if "target" in given:
        options["target"] = given["target"]
    output = model(x)
    output.sum().backward()
    found = {f"output.{name}": p.grad.clone() for name, p in model.named_parameters()} | {"output": output}
    model.zero_grad()
    for value in given.values():
        value.grad = None
    loss = model.loss(x, **options)
    loss.sum().backward()
    found |= {f"loss.{name}": p.grad for name, p in model.named_parameters()} | {"loss": loss}
    found |= {f"loss.{name}": value.grad for name, value in given.items() if value.grad is not None}
    return hash_of(found)


def ways() -> Iterator[tuple[str, Callable[[], str]]]:
    """(name, what runs it) of everything that is hashed."""
    small = [c for c in cases.FIT_CASES if c.n_features * c.n_hidden <= 8192]
    dtypes = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

    def at_level(level: str, call: Callable[..., str], *arguments: object) -> Callable[[], str]:
        def run() -> str:
            with kit.isa_level(level):
                return call(*arguments)

        return run

    def on_host(regime: str | None, call: Callable[..., str], *arguments: object) -> Callable[[], str]:
        def run() -> str:
            with device_source(regime):
                return call(*arguments)

        return run

    def layer_on_host(large: bool, *arguments: object) -> Callable[[], str]:
        def run() -> str:
            with device_layer(large=large):
                return evaluated(*arguments)  # type: ignore[arg-type]

        return run

    for level in kit.LEVELS:
        for case in [*cases.FIT_CASES, *cases.FIT_LARGE, *cases.FIT_LONG]:
            large = case in cases.FIT_LARGE or case in cases.FIT_LONG
            yield f"fit {level} {case.name}", at_level(level, trained, case, 1 if large else STEPS)
        for n, m in ((6, 2), (12, 8), (40, 20)):
            yield f"fit sparse {level} {n},{m}", at_level(level, trained_sparse, n, m, STEPS)
        for n, m, batch in ((2, 1, 1024), (3, 2, 100), (5, 2, 1024), (7, 2, 256)):
            yield f"fit crowd {level} {n},{m} batch {batch}", at_level(level, trained_crowd, n, m, batch, 40)
        for number, case in enumerate(cases.LAYER_CASES):
            for dtype, name in dtypes.items():
                for sparse in (False, True):
                    label = f"layer {level} {name} {'entries' if sparse else 'dense'} {number} {case.name}"
                    yield label, at_level(level, evaluated, case, dtype, sparse)
    for case in small[::2]:
        yield f"fit device {case.name}", on_host(None, trained, case, DEVICE_STEPS)
        yield f"fit device small {case.name}", on_host("small", trained, case, DEVICE_STEPS)
        yield f"fit device large {case.name}", on_host("large", trained, case, DEVICE_STEPS)
    for n, m in ((6, 2), (12, 8)):
        yield f"fit sparse device {n},{m}", on_host(None, trained_sparse, n, m, DEVICE_STEPS)
    for number, case in enumerate(cases.LAYER_CASES):
        for dtype in (torch.float32, torch.bfloat16):
            for large in (False, True):
                label = f"layer device {'large' if large else 'any'} {dtypes[dtype]} {number} {case.name}"
                yield label, layer_on_host(large, case, dtype, False)


def main() -> int:
    """Prints the lines, or what differs from a file of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a file of lines from before")
    parser.add_argument("--only", default="", help="a word in the name of a way")
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    for name, run in ways():
        if arguments.only in name:
            try:
                found[name] = run()
            except (ValueError, RuntimeError, NotImplementedError) as error:
                found[name] = f"{type(error).__name__}"
            if not arguments.against:
                print(f"{found[name]}  {name}", flush=True)
    if not arguments.against:
        return 0
    lines = arguments.against.read_text().splitlines()
    before = {name: bits for bits, name in (line.split("  ", 1) for line in lines) if arguments.only in name}
    differ = [name for name in before if name in found and found[name] != before[name]]
    gone = [name for name in before if name not in found]
    for word, names in (
        ("differs", differ),
        ("is gone", gone),
        ("is new", [n for n in found if n not in before]),
    ):
        for name in names:
            print(f"{word}: {name}")
    print(f"{len(before) - len(differ) - len(gone)} of {len(before)} have the same bits")
    return 1 if differ or gone else 0


if __name__ == "__main__":
    sys.exit(main())
