"""Optimisers of the resident trainer, hyper-parameters per model.

An optimiser here is a description (a frozen dataclass): `toykern.fit` holds the state. What a step does is
written out in `toykern.reference.optimizer_step`.
"""

from __future__ import annotations

from typing import Any

from toykern.training.optim.around import BiasDecay, UnitNorm
from toykern.training.optim.base import Optimizer
from toykern.training.optim.descriptions import from_config, rate_names, told_rate, without_rates
from toykern.training.optim.lamb import LAMB
from toykern.training.optim.plain import SGD, Adam, AdamW
from toykern.training.optim.rates import PER_MODEL
from toykern.training.optim.sgld import SGLD

__all__ = [
    "LAMB",
    "OPTIMIZERS",
    "PER_MODEL",
    "SGD",
    "SGLD",
    "Adam",
    "AdamW",
    "BiasDecay",
    "Optimizer",
    "UnitNorm",
    "optimizer_from_config",
    "rate_names",
    "told_rate",
    "without_rates",
]

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.__name__: kind for kind in (SGD, Adam, AdamW, LAMB, SGLD)}


def optimizer_from_config(config: Any, **rates: Any) -> Optimizer:
    """The optimiser that `config()` described, with other `rates()` (by their names) where they are given.

    ValueError if the description is not one, or says "per_model" where no array is given.

    >>> optimizer_from_config(SGD(momentum=0.9).config())
    SGD(lr=0.001, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False)
    >>> optimizer_from_config(SGD(lr_scale={"bias": 2.0}).config(), **{"lr_scale/bias": 3.0}).lr_scale
    {'bias': 3.0}
    """
    return from_config(OPTIMIZERS, config, rates)
