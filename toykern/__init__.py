"""toykern: toy models of superposition and sparsity, trained fast and in huge numbers.

>>> import toykern as tk
>>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=100)
>>> data = tk.SparseFeatures(n_features=5, probability=0.05)
>>> run = tk.fit(model, data, steps=10, batch_size=128, optimizer=tk.AdamW(lr=1e-3))
>>> run.loss.shape
torch.Size([100, 10])
"""

import torch as _torch  # noqa: F401  (first: the kernels share its OpenMP runtime)

from toykern import metrics, plot

try:
    from toykern._native import build_info as _build_info
except ImportError as _error:
    # `python -m toykern.info` still works and tells more; the names that are missing say why they are.
    _WHY = str(_error)

    def __getattr__(name: str) -> object:
        if name in __all__ or name == "__version__":
            raise ImportError(
                f"toykern.{name} needs toykern's native module, which cannot be loaded ({_WHY}); build it "
                "with `pip install -e .` in the checkout. `python -m toykern.info` says what is there"
            )
        raise AttributeError(f"module 'toykern' has no attribute {name!r}")

else:
    from toykern import llc, sparse
    from toykern.arguments import Grid, grid
    from toykern.data import (
        Anticorrelated,
        Copula,
        Correlated,
        Dataset,
        Hierarchy,
        SparseBatch,
        SparseFeatures,
        modular_addition,
        zipf,
    )
    from toykern.fitting import fit, log_spaced_steps
    from toykern.llc import LearningCoefficient, local_learning_coefficient
    from toykern.nn import MLP, Autoencoder, SparseLinear, SparseTiedAutoencoder, TiedAutoencoder, sparsify
    from toykern.results import Run, StoreError
    from toykern.sparse import (
        GSE,
        SET,
        SNFS,
        GradualMagnitude,
        LotteryTicket,
        PruneAndGrow,
        RigL,
        SRigL,
        Static,
        Topology,
    )
    from toykern.sweeps import Sweep, merge_sweeps, open_sweep, sweep
    from toykern.training import (
        LAMB,
        SGD,
        SGLD,
        Adam,
        AdamW,
        BiasDecay,
        PeriodicCosine,
        UnitNorm,
        WarmupCosine,
        evaluate,
    )

    __version__: str = _build_info()["version"]

__all__ = [
    "GSE",
    "LAMB",
    "MLP",
    "SET",
    "SGD",
    "SGLD",
    "SNFS",
    "Adam",
    "AdamW",
    "Anticorrelated",
    "Autoencoder",
    "BiasDecay",
    "Copula",
    "Correlated",
    "Dataset",
    "GradualMagnitude",
    "Grid",
    "Hierarchy",
    "LearningCoefficient",
    "LotteryTicket",
    "PeriodicCosine",
    "PruneAndGrow",
    "RigL",
    "Run",
    "SRigL",
    "SparseBatch",
    "SparseFeatures",
    "SparseLinear",
    "SparseTiedAutoencoder",
    "Static",
    "StoreError",
    "Sweep",
    "TiedAutoencoder",
    "Topology",
    "UnitNorm",
    "WarmupCosine",
    "evaluate",
    "fit",
    "grid",
    "llc",
    "local_learning_coefficient",
    "log_spaced_steps",
    "merge_sweeps",
    "metrics",
    "modular_addition",
    "open_sweep",
    "plot",
    "sparse",
    "sparsify",
    "sweep",
    "zipf",
]
