"""Optimisers of the resident trainer: PyTorch's arithmetic and defaults, hyper-parameters per model.

An optimiser here is a description (a frozen dataclass): `toykern.fit` holds the state. What a step does is
written out in `toykern.reference.optimizer_step`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from toykern.arguments.broadcast import as_tensor, broadcast_per_model
from toykern.arguments.errors import check_choice, check_flag, check_number, describe, is_number

PER_MODEL = "per_model"

Rate: TypeAlias = "float | torch.Tensor | np.ndarray | list[float]"
"""One number for all models, or `[models]`."""


class Optimizer:
    """Base of `SGD`, `Adam` and `AdamW`; not to be made directly."""

    lr: Rate
    weight_decay: Rate

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", _check_rate("lr", self.lr))
        object.__setattr__(self, "weight_decay", _check_rate("weight_decay", self.weight_decay))

    @property
    def name(self) -> str:
        """The class's name: "SGD", "Adam" or "AdamW"."""
        return type(self).__name__

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors the optimiser keeps for each parameter, as in PyTorch's state_dict."""
        raise NotImplementedError

    def kernel_options(self) -> dict[str, Any]:
        """What the kernels are told beside `lr` and `weight_decay`, by the fields of their parameters."""
        raise NotImplementedError

    def per_model(self, n_models: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(lr, weight_decay) as float64 CPU tensors `[n_models]`; ValueError if either has another length.

        >>> SGD(lr=[0.1, 0.2]).per_model(2)[0]
        tensor([0.1000, 0.2000], dtype=torch.float64)
        """
        return (
            broadcast_per_model("lr", self.lr, n_models, torch.float64),
            broadcast_per_model("weight_decay", self.weight_decay, n_models, torch.float64),
        )

    def config(self) -> dict[str, Any]:
        """JSON-able description; a learning rate or weight decay given per model appears as "per_model".

        `optimizer_from_config` is its inverse.

        >>> Adam(lr=0.01).config()
        {'name': 'Adam', 'lr': 0.01, 'betas': [0.9, 0.999], 'eps': 1e-08, 'weight_decay': 0.0}
        """
        config: dict[str, Any] = {"name": self.name}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = PER_MODEL
            config[field.name] = list(value) if isinstance(value, tuple) else value
        return config

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Optimizer):
            return NotImplemented
        return self.config() == other.config() and all(
            torch.equal(torch.as_tensor(a, device="cpu"), torch.as_tensor(b, device="cpu"))
            for a, b in ((self.lr, other.lr), (self.weight_decay, other.weight_decay))
        )

    def __hash__(self) -> int:
        return hash(repr(self.config()))

    def __repr__(self) -> str:
        parts = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            text = f"<per model, [{value.shape[0]}]>" if isinstance(value, torch.Tensor) else repr(value)
            parts.append(f"{field.name}={text}")
        return f"{self.name}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    `lr` and `weight_decay` are numbers, or `[models]`. Weight decay is added to the gradient. `nesterov`
    needs momentum > 0 and dampening 0 (ValueError). A learning-rate schedule multiplies `lr`.

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

    `lr` and `weight_decay` are numbers, or `[models]`; `betas` two numbers in [0, 1); `eps` ≥ 0.

    >>> Adam(lr=[1e-3, 1e-2])
    Adam(lr=<per model, [2]>, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", _check_betas(self.betas))
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

    `lr` and `weight_decay` are numbers, or `[models]`; `betas` two numbers in [0, 1); `eps` ≥ 0.

    >>> AdamW().weight_decay
    0.01
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", _check_betas(self.betas))
        object.__setattr__(self, "eps", check_number("eps", self.eps, minimum=0.0))

    @property
    def state_names(self) -> tuple[str, ...]:
        """("exp_avg", "exp_avg_sq")."""
        return ("exp_avg", "exp_avg_sq")

    def kernel_options(self) -> dict[str, Any]:
        """Both betas and eps."""
        return {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps}


OPTIMIZERS: dict[str, type[SGD] | type[Adam] | type[AdamW]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def optimizer_from_config(config: dict[str, Any], lr: Any = None, weight_decay: Any = None) -> Optimizer:
    """The optimiser that `config()` described, with another `lr` and `weight_decay` where they are given.

    ValueError if the description is not one, or says "per_model" where no array is given.

    >>> optimizer_from_config(SGD(momentum=0.9).config())
    SGD(lr=0.001, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False)
    """
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"the optimizer's config must be a dict with the key 'name', not {describe(config)}")
    kind = OPTIMIZERS[check_choice("the optimizer's name", config["name"], OPTIMIZERS)]
    arguments = {key: value for key, value in config.items() if key != "name"}
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(
            f"the config of {kind.__name__} has unknown keys {unknown}; known are {sorted(known)}"
        )
    for key, given in (("lr", lr), ("weight_decay", weight_decay)):
        if given is not None:
            arguments[key] = given
        elif arguments.get(key) == PER_MODEL:
            raise ValueError(f"{key} was given per model: pass it, [models], to optimizer_from_config")
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    return kind(**arguments)


def _check_rate(name: str, value: Any) -> float | torch.Tensor:
    """A float ≥ 0, or a float64 CPU tensor `[models]` of them (a copy)."""
    if is_number(value) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0):
        return check_number(name, value, minimum=0.0)
    tensor = as_tensor(name, value, torch.float64)
    if tensor.ndim != 1 or tensor.shape[0] == 0:
        raise ValueError(f"{name} must be one number or have one entry for each model, not {describe(value)}")
    bad = ~(torch.isfinite(tensor) & (tensor >= 0))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} must be finite and at least 0, not {tensor[first].item()} (model {first})")
    return tensor.clone()


def _check_betas(value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"betas must be two numbers, not {describe(value)}")
    first, second = (
        check_number(f"betas[{i}]", beta, minimum=0.0, below=1.0) for i, beta in enumerate(value)
    )
    return first, second
