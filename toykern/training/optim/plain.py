"""SGD, Adam and AdamW with PyTorch's arithmetic and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toykern.arguments.errors import check_flag, check_number
from toykern.training.optim.base import Optimizer
from toykern.training.optim.rates import Rate, check_betas


@dataclass(frozen=True, eq=False, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    `lr` and `weight_decay` are numbers, or `[models]`. Weight decay is added to the gradient. `nesterov`
    needs momentum > 0 and dampening 0 (ValueError). A learning-rate schedule multiplies `lr`. Further
    arguments are those of all optimisers (`toykern.training.Optimizer`).

    >>> SGD(lr=0.1, momentum=0.9).state_names
    ('momentum_buffer',)
    """

    lr: Rate = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: Rate = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "momentum", check_number("momentum", self.momentum, minimum=0.0))
        object.__setattr__(self, "dampening", check_number("dampening", self.dampening))
        object.__setattr__(self, "nesterov", check_flag("nesterov", self.nesterov))
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov=True needs momentum above 0 and dampening 0, "
                f"not momentum={self.momentum} and dampening={self.dampening}"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        """("momentum_buffer",), or () without momentum."""
        return ("momentum_buffer",) if self.momentum > 0 else ()

    def kernel_options(self) -> dict[str, Any]:
        """Momentum and dampening stand where the others have their betas."""
        return {"beta1": self.momentum, "beta2": self.dampening, "nesterov": self.nesterov}


@dataclass(frozen=True, eq=False, repr=False)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as `torch.optim.Adam`: weight decay is added to the gradient (L2).

    `lr` and `weight_decay` are numbers, or `[models]`; `betas` two numbers in [0, 1); `eps` ≥ 0. Further
    arguments are those of all optimisers (`toykern.training.Optimizer`).

    >>> Adam(lr=[1e-3, 1e-2])
    Adam(lr=<per model, [2]>, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", check_betas(self.betas))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0.0))

    @property
    def state_names(self) -> tuple[str, ...]:
        """("exp_avg", "exp_avg_sq")."""
        return ("exp_avg", "exp_avg_sq")

    def kernel_options(self) -> dict[str, Any]:
        """Both betas and eps."""
        return {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps}


@dataclass(frozen=True, eq=False, repr=False)
class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019), as `torch.optim.AdamW`: decoupled weight decay, of the biases too.

    `lr` and `weight_decay` are numbers, or `[models]`; `betas` two numbers in [0, 1); `eps` ≥ 0. Further
    arguments are those of all optimisers (`toykern.training.Optimizer`).

    >>> AdamW().weight_decay
    0.01
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", check_betas(self.betas))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0.0))

    @property
    def state_names(self) -> tuple[str, ...]:
        """("exp_avg", "exp_avg_sq")."""
        return ("exp_avg", "exp_avg_sq")

    def kernel_options(self) -> dict[str, Any]:
        """Both betas and eps."""
        return {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps}
