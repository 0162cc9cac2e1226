"""The contenders on a CPU and on a GPU: who they are, and how one is made.

Which set-ups of each are tried is told by `bench.setups` (CPU) and `bench.gpu.setups`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field

from bench.peers.plain_loop import compiler_absent
from bench.peers.problem import Problem, Trainer

OURS = "toykern"
NOTEBOOK, OCCHIO = "notebook", "occhio"
PLAIN = (NOTEBOOK, "plain_compile", "plain_jax", OCCHIO)  # libraries as people commonly use them
PEERS = ("eager", "compile", "jax")  # the best that an expert makes of them
LOOPS = ("cpp", "numba")  # what a good student writes in an afternoon without them
KINDS = {"plain": PLAIN, "tuned": PEERS, "loop": LOOPS}
CONTENDERS = (OURS, *PEERS, *LOOPS, *PLAIN)
TITLES = {
    OURS: "toykern",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "jax": "JAX",
    NOTEBOOK: "PyTorch eager",
    "plain_compile": "torch.compile",
    "plain_jax": "JAX",
    OCCHIO: "occhio",
    "cpp": "C++",
    "numba": "numba",
}

_TRAINERS = {
    OURS: "bench.peers.ours:ToykernTrainer",
    "eager": "bench.peers.eager:EagerTrainer",
    "compile": "bench.peers.compiled:CompiledTrainer",
    "cuda_graphs": "bench.peers.compiled:CudaGraphTrainer",
    "jax": "bench.peers.jax_scan:JaxTrainer",
    NOTEBOOK: "bench.peers.eager:NotebookTrainer",
    "plain_compile": "bench.peers.plain:PlainCompiledTrainer",
    "plain_jax": "bench.peers.plain:PlainJaxTrainer",
    OCCHIO: "bench.peers.occhio_grid:OcchioTrainer",
    "cpp": "bench.peers.plain_loop:CppTrainer",
    "numba": "bench.peers.numba_loop:NumbaTrainer",
}
_NEEDS = {
    "jax": ("jax",),
    "plain_jax": ("jax", "optax"),
    OCCHIO: ("occhio", "tqdm"),
    "numba": ("numba",),
    OURS: ("toykern",),
}


@dataclass(frozen=True)
class Variant:
    """One set-up of a contender.

    Attributes:
        contender: one of `CONTENDERS`.
        options: of its trainer.
        sharded: whether the models are split over one process per core, of one thread each, instead of one
            process that uses all cores. The models are independent, so any user can do that.
        n_models: how many models it trains at once; None: as many as the workload has.
    """

    contender: str
    options: dict[str, str] = field(default_factory=dict, hash=False)
    sharded: bool = False
    n_models: int | None = None

    @property
    def label(self) -> str:
        """`features_first, gaps, a process per core`, `matmul, rbg, 4,096 models`."""
        parts = list(self.options.values())
        parts += ["a process per core"] if self.sharded else []
        parts += [] if self.n_models is None else [f"{self.n_models:,} models"]
        return ", ".join(parts) or "as it is"

    def build(self, problem: Problem) -> Trainer:
        """The trainer, made in the process that calls this."""
        name = "cuda_graphs" if "graphs" in self.options else self.contender
        module, trainer = _TRAINERS[name].split(":")
        return getattr(importlib.import_module(module), trainer)(problem, **self.options)


def why_absent(contender: str) -> str | None:
    """What a contender needs and is not installed, or None if it can run."""
    if contender == "cpp":
        return compiler_absent()
    needs = _NEEDS.get(contender, ("torch",))
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None
