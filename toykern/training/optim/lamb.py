"""LAMB (You et al. 2020), in the form of the PyTorch optimisers and in the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from toykern.arguments.errors import check_choice, check_flag, check_number
from toykern.training.optim.base import Optimizer
from toykern.training.optim.rates import Rate, check_betas

FORMS = ("pytorch", "paper")


@dataclass(frozen=True, eq=False, repr=False)
class LAMB(Optimizer):
    """LAMB: Adam's direction, its length by the norm of the tensor (You et al. 2020, "Large batch
    optimization for deep learning: training BERT in 76 minutes").

    With Adam's moments m and v of each tensor w of each model: u = m / (√v + eps) + weight_decay · w, then
    w ← w − lr · r · u with the trust ratio r = min(‖w‖, clamp) / ‖u‖, which is 1 where either norm is 0.

    Args:
        lr, weight_decay: ≥ 0, numbers or `[models]`.
        betas: two numbers in [0, 1).
        eps: ≥ 0.
        clamp: > 0, the most that ‖w‖ counts for. None is what the form has: 10, or no clamp.
        debias: whether the moments' start at 0 is corrected. None is what the form has.
        form: "pytorch", that of the package pytorch-optimizer, which Jermyn, Schiefer & Hubinger 2022 trained
            with: clamp 10, no correction (with `debias` the learning rate is multiplied by
            √(1 − β2ᵗ) / (1 − β1ᵗ)). "paper", that of the paper with φ = identity: no clamp, moments corrected
            (m̂ and v̂ in u).

    Further arguments are those of all optimisers (`toykern.training.Optimizer`).

    >>> LAMB(lr=0.01)
    LAMB(lr=0.01, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, clamp=10.0, debias=False, form='pytorch')
    >>> LAMB(form="paper").debias
    True
    """

    plain: ClassVar[bool] = False

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: Rate = 0.0
    clamp: float | None = None
    debias: bool | None = None
    form: str = "pytorch"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", check_betas(self.betas))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0.0))
        paper = check_choice("form", self.form, FORMS) == "paper"
        clamp = (
            (None if paper else 10.0)
            if self.clamp is None
            else check_number("clamp", self.clamp, minimum=0.0)
        )
        if clamp == 0:
            raise ValueError("clamp must be a finite number above 0, or None for that of the form, not 0.0")
        object.__setattr__(self, "clamp", clamp)
        object.__setattr__(
            self, "debias", paper if self.debias is None else check_flag("debias", self.debias)
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        """("exp_avg", "exp_avg_sq")."""
        return ("exp_avg", "exp_avg_sq")

    def kernel_options(self) -> dict[str, Any]:
        """Both betas, eps, the clamp, and what is corrected."""
        paper = self.form == "paper"
        return {
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "norm_clamp": math.inf if self.clamp is None else self.clamp,
            "debias_step": bool(self.debias) and not paper,
            "debias_moments": bool(self.debias) and paper,
        }
