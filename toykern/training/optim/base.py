"""What all optimisers have: rates per model and per tensor, clipping, and what happens after a step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from toykern.arguments.broadcast import broadcast_per_model
from toykern.network.specification import NetworkSpec
from toykern.training.optim.around import BiasDecay, UnitNorm, bias_decay_of, unit_norm_of
from toykern.training.optim.rates import (
    SCALES,
    Rate,
    Scales,
    check_rate,
    check_scales,
    described,
    shown,
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Optimizer:
    """Base of `SGD`, `Adam`, `AdamW`, `LAMB` and `SGLD`; not to be made directly.

    All of them take these, by keyword.

    Args:
        lr_scale: factors of the learning rate by the names of tensors, as in {"decoder": 0.1}; each ≥ 0, a
            number or `[models]`. Tensors that are not named have 1. With 0 a tensor stays where it is, but
            its state goes on (`requires_grad_(False)` leaves both as they are).
        weight_decay_scale: the same of the weight decay; {"bias": 0.0} leaves biases undecayed.
        clip_norm: the most that the norm of a model's gradient may be, over all tensors that are trained,
            > 0, a number or `[models]`; as `torch.nn.utils.clip_grad_norm_`, for each model by itself.
        bias_decay: a `BiasDecay`.
        unit_norm: a `UnitNorm`, or the name of its tensor.
    """

    plain: ClassVar[bool] = (
        True  # loops of tiles and columns and CUDA kernels know it without the arguments above
    )

    lr_scale: Scales = None
    weight_decay_scale: Scales = None
    clip_norm: Rate | None = None
    bias_decay: BiasDecay | None = None
    unit_norm: UnitNorm | str | None = None

    def __post_init__(self) -> None:
        if type(self) is Optimizer:
            raise TypeError(
                "Optimizer is what optimisers have in common; make an SGD, Adam, AdamW, LAMB or SGLD"
            )
        for name in self._own_rates:
            object.__setattr__(self, name, check_rate(name, getattr(self, name)))
        for name in SCALES:
            object.__setattr__(self, name, check_scales(name, getattr(self, name)))
        if self.clip_norm is not None:
            object.__setattr__(self, "clip_norm", check_rate("clip_norm", self.clip_norm, above_zero=True))
        object.__setattr__(self, "bias_decay", bias_decay_of(self.bias_decay))
        object.__setattr__(self, "unit_norm", unit_norm_of(self.unit_norm))

    _own_rates: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    @property
    def name(self) -> str:
        """The class's name: "SGD", "Adam", "AdamW", …."""
        return type(self).__name__

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors the optimiser keeps for each parameter, as in PyTorch's state_dict."""
        raise NotImplementedError

    def initial_state(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """What the state `name` of a parameter is at step 0, on the CPU: zeros."""
        return torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")

    def kernel_options(self) -> dict[str, Any]:
        """What the kernels are told beside numbers per model and per tensor, by the fields of their
        parameters."""
        raise NotImplementedError

    def rates(self) -> dict[str, Any]:
        """All that may be given per model and is used, by the names that a run's arrays have for it: "lr",
        "weight_decay", "clip_norm", "lr_scale/bias", "bias_decay", ….

        >>> from toykern.training.optim import SGD
        >>> list(SGD(lr_scale={"bias": 0.1}).rates())
        ['lr', 'weight_decay', 'lr_scale/bias']
        """
        found = {name: getattr(self, name) for name in self._own_rates}
        for name in SCALES:
            found |= {f"{name}/{tensor}": rate for tensor, rate in getattr(self, name).items()}
        if self.clip_norm is not None:
            found["clip_norm"] = self.clip_norm
        if self.bias_decay is not None:
            found["bias_decay"] = self.bias_decay.rate
        return found

    def arrays(self, n_models: int) -> dict[str, torch.Tensor]:
        """`rates()` as float64 CPU tensors `[n_models]`; ValueError if one has another length."""
        return {
            name: broadcast_per_model(name, rate, n_models, torch.float64)
            for name, rate in self.rates().items()
        }

    def per_model(self, n_models: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(lr, weight_decay) as float64 CPU tensors `[n_models]`; ValueError if either has another length.

        >>> from toykern.training.optim import SGD
        >>> SGD(lr=[0.1, 0.2]).per_model(2)[0]
        tensor([0.1000, 0.2000], dtype=torch.float64)
        """
        rates = self.rates()
        lr, weight_decay = (
            broadcast_per_model(name, rates[name], n_models, torch.float64) for name in ("lr", "weight_decay")
        )
        return lr, weight_decay

    def extras(self) -> list[str]:
        """The names of the arguments that are used beyond those of the optimiser itself.

        >>> from toykern.training.optim import SGD
        >>> SGD(clip_norm=1.0).extras()
        ['clip_norm']
        """
        names = (*SCALES, "clip_norm", "bias_decay", "unit_norm")
        return [name for name in names if getattr(self, name) not in (None, {})]

    def without_kernels(self) -> list[str]:
        """The names of what no CUDA kernel of ours knows.

        >>> from toykern.training.optim import LAMB
        >>> LAMB(clip_norm=1.0).without_kernels()
        ['LAMB', 'clip_norm']
        """
        return [*([] if self.plain else [self.name]), *self.extras()]

    def check_for(self, network: NetworkSpec, n_models: int) -> None:
        """ValueError or TypeError where these models cannot be trained so: names of tensors they do not have,
        numbers of other models."""
        self.arrays(n_models)
        names = [tensor.name for tensor in network.parameters]
        for name in SCALES:
            for tensor in getattr(self, name):
                _check_tensor(name, tensor, names)
        if self.bias_decay is not None:
            biases = [tensor.name for tensor in network.parameters if len(tensor.dims) == 1]
            _check_tensor("bias_decay", self.bias_decay.tensor, biases, "biases")
        if self.unit_norm is not None:
            assert isinstance(self.unit_norm, UnitNorm)
            weights = [tensor.name for tensor in network.weights]
            _check_tensor("unit_norm", self.unit_norm.tensor, weights, "matrices")

    def config(self) -> dict[str, Any]:
        """JSON-able description; numbers given per model appear as "per_model".

        `optimizer_from_config` is its inverse. What all optimisers may have is told where it is used.

        >>> from toykern.training.optim import Adam
        >>> Adam(lr=0.01).config()
        {'name': 'Adam', 'lr': 0.01, 'betas': [0.9, 0.999], 'eps': 1e-08, 'weight_decay': 0.0}
        """
        config: dict[str, Any] = {"name": self.name}
        for name in self._own_fields():
            value = described(getattr(self, name))
            config[name] = list(value) if isinstance(value, tuple) else value
        for name in self.extras():
            value = getattr(self, name)
            if isinstance(value, dict):
                config[name] = {tensor: described(rate) for tensor, rate in value.items()}
            else:
                config[name] = value.config() if isinstance(value, BiasDecay | UnitNorm) else described(value)
        return config

    @classmethod
    def _own_fields(cls) -> list[str]:
        """Those that its class adds to what all have, in their order."""
        common = {field.name for field in dataclasses.fields(Optimizer)}
        return [field.name for field in dataclasses.fields(cls) if field.name not in common]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Optimizer):
            return NotImplemented
        if self.config() != other.config():
            return False
        ours, theirs = self.rates(), other.rates()
        return all(
            torch.equal(
                torch.as_tensor(ours[name], device="cpu"), torch.as_tensor(theirs[name], device="cpu")
            )
            for name in ours
        )

    def __hash__(self) -> int:
        return hash(repr(self.config()))

    def __repr__(self) -> str:
        parts = [f"{name}={shown(getattr(self, name))}" for name in [*self._own_fields(), *self.extras()]]
        return f"{self.name}({', '.join(parts)})"


def _check_tensor(option: str, given: str, allowed: list[str], kind: str = "tensors") -> None:
    if given not in allowed:
        there = ", ".join(map(repr, allowed)) if allowed else "none"
        raise ValueError(f"optimizer: {option} must name one of the model's {kind} ({there}), not {given!r}")
