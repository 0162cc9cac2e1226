"""Stochastic gradient Langevin dynamics, tempered and localised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from toykern.network.specification import NetworkSpec
from toykern.training.optim.base import Optimizer
from toykern.training.optim.rates import Rate


@dataclass(frozen=True, eq=False, repr=False)
class SGLD(Optimizer):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011), tempered and held near its start as for
    estimates of the local learning coefficient (Lau et al. 2023).

    x ← x − ε/2 · (nβ ∇L + λ x + γ (x − x₀)) + √ε · η, of every weight x of every model. η is normal, from the
    data stream (docs/data_stream.md §12): a function of the model's seed, the step and the weight's place. x₀
    is the weight at step 0, which the run keeps as the state "initial". Not for sparse models.

    Args:
        lr: the step size ε ≥ 0, a number or `[models]`. A schedule and `lr_scale` multiply it, in the noise
            too.
        nbeta: nβ ≥ 0, what the gradient of the batch's loss is multiplied by: the number of samples times the
            inverse temperature.
        localization: γ ≥ 0, the precision of a normal prior about x₀. With the number 0 there is no state.
        weight_decay: λ ≥ 0, that of a normal prior about 0.

    The last three are numbers or `[models]`, too.

    Further arguments are those of all optimisers (`toykern.training.Optimizer`).

    >>> SGLD(lr=1e-4, nbeta=100.0, localization=10.0).state_names
    ('initial',)
    """

    plain: ClassVar[bool] = False
    _own_rates: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "nbeta", "localization")

    lr: Rate = 1e-3
    nbeta: Rate = 1.0
    localization: Rate = 0.0
    weight_decay: Rate = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """("initial",), or () where `localization` is the number 0."""
        held = isinstance(self.localization, torch.Tensor) or self.localization != 0
        return ("initial",) if held else ()

    def initial_state(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """A copy of the parameter, on the CPU."""
        return parameter.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def check_for(self, network: NetworkSpec, n_models: int) -> None:
        """As of all optimisers; ValueError for sparse models too."""
        super().check_for(network, n_models)
        if network.sparse:
            raise ValueError(
                "optimizer must not be SGLD for sparse models: noise has no place where no connection is"
            )

    def kernel_options(self) -> dict[str, Any]:
        """None: all of its numbers may be given per model."""
        return {}
