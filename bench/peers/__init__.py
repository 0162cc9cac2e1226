"""The contenders: who they are, and the set-ups of each that are tried on every workload.

The set-ups listed are those that won on some workload, or nearly; the fastest of a peer stands for it.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field

from bench.peers.problem import Problem, Trainer
from bench.workloads import Workload

OURS = "toykern"
PEERS = ("eager", "compile", "jax")  # tuned: the ratio is to the best of these
NOTEBOOK = "notebook"
PLAIN = (NOTEBOOK, "plain_compile", "plain_jax")  # the same libraries as people commonly write them
CONTENDERS = (OURS, *PEERS, *PLAIN)

_TRAINERS = {
    OURS: "bench.peers.ours:ToykernTrainer",
    "eager": "bench.peers.eager:EagerTrainer",
    "compile": "bench.peers.compiled:CompiledTrainer",
    "jax": "bench.peers.jax_scan:JaxTrainer",
    NOTEBOOK: "bench.peers.eager:NotebookTrainer",
    "plain_compile": "bench.peers.plain:PlainCompiledTrainer",
    "plain_jax": "bench.peers.plain:PlainJaxTrainer",
}


@dataclass(frozen=True)
class Variant:
    """One set-up of a contender.

    Attributes:
        contender: one of `CONTENDERS`.
        options: of its trainer.
        sharded: whether the models are split over one process per core, of one thread each, instead of one
            process that uses all cores. The models are independent, so any user can do that.
    """

    contender: str
    options: dict[str, str] = field(default_factory=dict)
    sharded: bool = False

    @property
    def label(self) -> str:
        """`features_first, gaps, a process per core`."""
        parts = list(self.options.values())
        return ", ".join([*parts, "a process per core"] if self.sharded else parts) or "as it is"

    def build(self, problem: Problem) -> Trainer:
        """The trainer, made in the process that calls this."""
        module, name = _TRAINERS[self.contender].split(":")
        return getattr(importlib.import_module(module), name)(problem, **self.options)


def why_absent(contender: str) -> str | None:
    """What a contender needs and is not installed, or None if it can run."""
    needs = {"jax": ("jax", "optax"), "plain_jax": ("jax", "optax"), OURS: ("toykern",)}.get(
        contender, ("torch",)
    )
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def variants(contender: str, workload: Workload) -> list[Variant]:
    """The set-ups of a contender that are worth trying on a workload."""
    small = workload.n_features * workload.n_hidden <= 100
    draws = ("uniform",) if workload.probability == 1.0 else ("uniform", "gaps")
    if contender == "eager":
        shapes = [("features_first", draw, sharded) for draw in draws for sharded in (False, True)]
        shapes.append(("samples_first", draws[-1], True))
        return [
            Variant("eager", {"layout": layout, "draw": draw}, sharded) for layout, draw, sharded in shapes
        ]
    if contender == "compile":
        product = "elementwise" if small else "matmul"
        shapes = [(product, draw, True) for draw in draws] + [(product, draws[-1], False)]
        if small and workload.n_features * workload.n_hidden > 10:
            shapes.append(("matmul", draws[-1], True))
        return [
            Variant("compile", {"product": product, "draw": draw}, sharded)
            for product, draw, sharded in shapes
        ]
    if contender == "jax":
        products = [
            "matmul",
            "unrolled" if workload.n_features * workload.n_hidden <= 10 else "matmul_samples_first",
        ]
        return [Variant("jax", {"product": product, "draw": draw}) for product in products for draw in draws]
    return [Variant(contender)]
